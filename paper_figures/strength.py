"""Does the strength act? KL and its response to the strength (bandit, exact; language model, measured; claim C2)."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from analysis.evidence import METHODS, NEAR_DETERMINISTIC, Evidence, MissingEvidence, Setting
from paper_figures import selection, style
from paper_figures.drawing import Drawing

CLAIMS = ("C2",)
CAPTION = (
    "Effective strength of the KL term, computed exactly in a bandit, for certain preferences (p = 1, strong "
    "lines) and for noisy ones (thin lines): (a) KL from the policy to the reference against the "
    "regularisation strength (β, or τ for IPO); (b) its response, the fall of KL per factor e of strength. At "
    "p = 1 DPO has no finite minimiser at any strength, so its strength has no effect: its response is 0 "
    "throughout. (c), where the records have several strengths: the same on the language model, near-deterministic labels, after a fixed "
    "number of steps, with 95 % intervals."
)
KL = "kl_policy_reference"


def draw(evidence: Evidence) -> Drawing:
    """Two panels: KL, and minus its derivative by log strength."""
    run = evidence.bandit_run("strength")
    frame = run.table("results")
    noisy = frame.loc[frame["probability"] < 1, "probability"]
    shown = [1.0, *([noisy.max()] if len(noisy) else [])]
    measured = _measured(evidence)
    figure, (left, right, *rest) = style.panels(style.DOUBLE, 2.6, 1, 3 if measured else 2)
    for method in METHODS:
        look = style.look(method)
        for p in shown:
            rows = frame[(frame["objective"] == method) & np.isclose(frame["probability"], p, rtol=0, atol=1e-12)]
            rows = rows.sort_values("strength")
            strong = p == 1.0
            options: dict[str, Any] = {
                "color": look.colour,
                "linestyle": look.line,
                "linewidth": 1.5 if strong else 0.7,
                "marker": look.marker,
                "markersize": 3.5 if strong else 2,
                "markevery": max(len(rows) // 8, 1),
                "label": f"{look.label}, p = {p:g}",
            }
            finite = rows[np.isfinite(rows[KL]) & (rows["status"] != "diverges")]
            if len(finite) > 1:
                left.plot(finite["strength"], finite[KL], **options)
                right.plot(*response(finite), **options)
            elif strong:
                _no_minimiser(left, right, rows, look)
    for axis in rest:
        for settings in measured.values():
            _language_model(axis, settings)
        axis.set(yscale="log", title="KL, language model", ylabel="KL(policy ‖ reference)\n[nats per completion]")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    for axis in (left, right, *rest):
        axis.set_xscale("log")
        axis.set_xlabel("strength β (τ for IPO)")
    for axis in rest:  # over less than two decades matplotlib would name every tick
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.yaxis.set_minor_formatter(NullFormatter())
    left.set_ylabel("KL(policy ‖ reference)  [nats]")
    right.set_ylabel("−dKL / d ln strength  [nats]")
    left.set_title("KL")
    right.set_title("effective strength")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    style.letter((left, right, *rest))
    used = [setting for settings in measured.values() for setting in settings]
    return Drawing(
        figure, [run, *(run for one in used for run in one.runs)], f"(c): {selection.rests_on(used)}" if used else ""
    )


def _measured(evidence: Evidence) -> dict[str, list[Setting]]:
    """The settings of each method on the language model; none where no method has two strengths."""
    found = {}
    for method in METHODS:
        with suppress(MissingEvidence):
            found[method] = evidence.method(method, NEAR_DETERMINISTIC)
    return found if any(len(settings) > 1 for settings in found.values()) else {}


def _language_model(axis: Axes, settings: list[Setting]) -> None:
    values = [selection.measured(one, "held_out_prompts", KL) for one in settings]
    style.errorbars(axis, [one.strength for one in settings], values, style.look(settings[0].objective))


def response(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Strengths, and minus the central difference of KL by the logarithm of the strength."""
    strengths = rows["strength"].to_numpy(dtype=float)
    return strengths, -np.gradient(rows[KL].to_numpy(dtype=float), np.log(strengths))


def _no_minimiser(left: Axes, right: Axes, rows: pd.DataFrame, look: style.Look) -> None:
    """DPO at p = 1: triangles at the top of the left panel, for there is no KL to draw; a response of 0 on the right."""
    label = f"{look.label}, p = 1 (no finite minimiser)"
    every = rows["strength"].to_numpy()[:: max(len(rows) // 8, 1)]
    left.plot(
        every,
        np.full(len(every), 0.98),
        transform=left.get_xaxis_transform(),
        linestyle="none",
        marker="^",
        color=look.colour,
        label=label,
        clip_on=False,
    )
    right.plot(every, np.zeros(len(every)), color=look.colour, linestyle=look.line, linewidth=1.5, marker="^")

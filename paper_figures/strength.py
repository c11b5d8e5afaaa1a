"""Does the strength act? KL and its response to the strength (bandit, exact; claim C2)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.evidence import METHODS, Evidence
from paper_figures import style
from paper_figures.drawing import Drawing

CLAIMS = ("C2",)
CAPTION = (
    "Effective strength of the KL term, computed exactly in a bandit, for certain preferences (p = 1, strong "
    "lines) and for noisy ones (thin lines): (a) KL from the policy to the reference against the "
    "regularisation strength (β, or τ for IPO); (b) its response, the fall of KL per factor e of strength. At "
    "p = 1 DPO has no finite minimiser at any strength, so its strength has no effect: its response is 0 "
    "throughout."
)
KL = "kl_policy_reference"


def draw(evidence: Evidence) -> Drawing:
    """Two panels: KL, and minus its derivative by log strength."""
    run = evidence.bandit_run("strength")
    frame = run.table("results")
    noisy = frame.loc[frame["probability"] < 1, "probability"]
    shown = [1.0, *([noisy.max()] if len(noisy) else [])]
    figure, (left, right) = style.panels(style.DOUBLE, 2.6, 1, 2)
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
    for axis in (left, right):
        axis.set_xscale("log")
        axis.set_xlabel("strength β (τ for IPO)")
    left.set_ylabel("KL(policy ‖ reference)  [nats]")
    right.set_ylabel("−dKL / d ln strength  [nats]")
    left.set_title("KL")
    right.set_title("effective strength")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    style.letter((left, right))
    return Drawing(figure, [run])


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

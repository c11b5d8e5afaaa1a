"""The main finding: exact bandit and measured language model side by side (claim C1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.evidence import LLM_COMMAND, METHODS, Evidence, MissingEvidence, Setting
from paper_figures import selection, style
from paper_figures.drawing import Drawing

CLAIMS = ("C1",)
CAPTION = (
    "Distance from the reference, KL(reference ‖ policy), against how often a label goes against the better answer, 1 − p (right: "
    "nearer to certainty). (a) Exact minimisers in a bandit; DPO's grows without bound, and at p = 1 it has none ('diverges'). (b) A "
    "language model after the same number of training steps on the same pairs, labelled at several temperatures: per-token KL along "
    "held-out samples of the reference. Bars: 95 % intervals."
)
KL = "kl_reference_policy"
STRENGTH = 0.1


def draw(evidence: Evidence) -> Drawing:
    """Two panels with the same axes' meaning: computed, and measured."""
    run = evidence.bandit_run("determinism")
    settings = {method: at_one_strength(evidence, method) for method in METHODS}
    figure, (left, right) = style.panels(style.DOUBLE, 2.75, 1, 2)
    strength = _exact(left, run.table("results"))
    for index, (method, found) in enumerate(settings.items()):
        _measured(right, found, style.look(method), 1.05 ** (index - 1))
    right.set(xscale="log", xlabel="1 − p  (log scale)", ylabel="KL(reference ‖ policy)\n[nats per completion]")
    right.set_ylim(bottom=0)
    right.invert_xaxis()
    left.set_title("bandit, computed exactly")
    right.set_title("language model, measured")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    style.letter((left, right))
    used = [setting for found in settings.values() for setting in found]
    model = used[0].runs[0].config["model"]["name"]
    remarks = (
        f"Strengths: β = τ = {strength:g} in (a); in (b) {', '.join(_strength(found) for found in settings.values())}. "
        f"Model: {model}. {selection.rests_on(used)}"
    )
    return Drawing(figure, [run, *(run for setting in used for run in setting.runs)], remarks)


def at_one_strength(evidence: Evidence, method: str) -> list[Setting]:
    """The method at the strength nearest to .1 of those that were run on the most kinds of labels, surest labels first."""
    kinds = selection.label_kinds(evidence)
    by_strength: dict[float, dict[str, Setting]] = {}
    for kind in kinds:
        try:
            for setting in evidence.method(method, kind):
                by_strength.setdefault(setting.strength, {})[kind] = setting
        except MissingEvidence:
            continue
    if not by_strength:
        raise MissingEvidence(f"language-model runs of {method}", LLM_COMMAND)
    best = max(by_strength, key=lambda one: (len(by_strength[one]), -abs(np.log(one / STRENGTH))))
    return [by_strength[best][kind] for kind in kinds if kind in by_strength[best]]


def _exact(axis: Axes, frame: pd.DataFrame) -> float:
    strengths = frame["strength"].unique()
    strength = float(strengths[np.abs(np.log(strengths / STRENGTH)).argmin()])
    frame = frame[frame["strength"] == strength]
    doubt = 1 - frame.loc[frame["probability"] < 1, "probability"]
    certain = 10 ** (np.log10(doubt.min()) - 1.5)  # where the column p = 1 stands on the logarithmic axis
    finite = frame.loc[np.isfinite(frame[KL]), KL]
    top = 10 ** (np.ceil(np.log10(finite.max())) + 0.3)
    axis.axvline(certain, color=style.GREY, linewidth=0.6, linestyle=":")
    for method in METHODS:
        look = style.look(method)
        rows = frame[frame["objective"] == method].sort_values("probability")
        below = rows[rows["probability"] < 1]
        axis.plot(
            1 - below["probability"],
            below[KL],
            color=look.colour,
            marker=look.marker,
            linestyle=look.line,
            markersize=3,
            label=look.label,
        )
        for _, row in rows[rows["probability"] == 1].iterrows():
            if row["status"] == "diverges" or not np.isfinite(row[KL]):
                axis.plot(certain, top, marker="^", color=look.colour, markersize=5, clip_on=False)
                axis.annotate(
                    f"{look.label} diverges",
                    (certain, top),
                    (-7, 0),
                    textcoords="offset points",
                    ha="right",
                    va="center",
                    fontsize=7,
                )
            else:
                axis.plot(certain, row[KL], marker=look.marker, color=look.colour, markersize=4.5)
    axis.set(xscale="log", yscale="log", xlabel="1 − p  (log scale)", ylabel="KL(reference ‖ policy)  [nats]")
    axis.set(xlim=(doubt.max() * 1.5, certain / 4), ylim=(finite.min() / 2, top * 1.5))
    ticks = [tick for tick in (1e-1, 1e-3, 1e-5, 1e-7) if tick > certain * 3]
    axis.set_xticks([*ticks, certain], [*(f"$10^{{{int(np.log10(tick))}}}$" for tick in ticks), "p = 1"])
    axis.xaxis.minorticks_off()
    return strength


def _measured(axis: Axes, settings: Sequence[Setting], look: style.Look, shift: float) -> None:
    values = [selection.measured(setting, "held_out_reference_samples", KL) for setting in settings]
    # Apart, so that bars do not hide each other.
    style.errorbars(axis, [selection.doubt(setting) * shift for setting in settings], values, look, elinewidth=0.8)


def _strength(settings: Sequence[Setting]) -> str:
    return selection.names(settings)[settings[0].label]

"""KL against preference determinism, for every strength (bandit, exact; claim C1)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.evidence import METHODS, Evidence
from paper_figures import style
from paper_figures.drawing import Drawing

CLAIMS = ("C1",)
CAPTION = (
    "Near-deterministic preferences, computed exactly in a bandit: forward KL from the reference to the "
    "minimiser, against 1 - p, where p is the probability of the preferred answer (right: nearer to certainty;"
    " the column 'p = 1' holds the certain preferences). Each line is one regularisation strength. DPO's KL "
    "grows without bound for every strength, and at p = 1 it has no finite minimiser ('diverges', triangles at"
    " the top); IPO's and MaxPO's level off and stay finite."
)
KL = "kl_reference_policy"


def draw(evidence: Evidence) -> Drawing:
    """Three panels, one per method, on shared axes."""
    run = evidence.bandit_run("determinism")
    frame = run.table("results")
    finite = frame[np.isfinite(frame[KL]) & (frame[KL] > 0)]
    top = 10 ** (np.ceil(np.log10(finite[KL].max())) + 0.7)
    bottom = max(10 ** np.floor(np.log10(finite[KL].min())), 1e-5)
    doubt = 1 - frame.loc[frame["probability"] < 1, "probability"]
    certain = 10 ** (np.log10(doubt.min()) - 1.5)  # where the column p = 1 stands on the logarithmic axis
    figure, axes = style.panels(style.DOUBLE, 2.5, 1, 3, sharex=True, sharey=True)
    for axis, method in zip(axes, METHODS, strict=True):
        _panel(axis, frame[frame["objective"] == method], method, certain, top)
        axis.set_title(style.look(method).label)
        axis.set_xlabel("1 − p  (log scale)")
    axes[0].set(xscale="log", yscale="log", ylim=(bottom, top * 1.6), xlim=(doubt.max() * 1.5, certain / 4))
    ticks = [1e-1, 1e-3, 1e-5, 1e-7]
    axes[0].set_xticks([*[tick for tick in ticks if tick > certain * 3], certain])
    axes[0].set_xticklabels([*[f"$10^{{{int(np.log10(tick))}}}$" for tick in ticks if tick > certain * 3], "p = 1"])
    axes[0].minorticks_off()
    axes[0].set_ylabel("KL(reference ‖ policy)  [nats]")
    style.letter(axes)
    return Drawing(figure, [run])


def _panel(axis: Axes, frame: pd.DataFrame, method: str, certain: float, top: float) -> None:
    look = style.look(method)
    groups = list(frame.groupby("strength"))
    symbol = "τ" if method == "ipo" else "β"
    axis.axvline(certain, color=style.GREY, linewidth=0.6, linestyle=":")
    diverged = 0
    for (strength, group), colour in zip(groups, style.shades(look.colour, len(groups)), strict=True):
        group = group.sort_values("probability")
        below = group[group["probability"] < 1]
        axis.plot(
            1 - below["probability"],
            below[KL],
            color=colour,
            marker=look.marker,
            markersize=2.5,
            label=f"{symbol} = {strength:g}",
        )
        for _, row in group[group["probability"] == 1].iterrows():
            if row["status"] == "diverges" or not np.isfinite(row[KL]):
                # side by side, so that every strength's triangle is seen
                axis.plot(certain * 1.6 ** (diverged - 1), top, marker="^", color=colour, markersize=4.5, clip_on=False)
                diverged += 1
            else:
                axis.plot(certain, row[KL], marker=look.marker, color=colour, markersize=4)
    if diverged:
        axis.annotate(
            "diverges",
            (certain, top),
            xytext=(-14, -1),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=7,
        )
    place = {"loc": "lower right", "bbox_to_anchor": (0.93, 0.0)} if method == "dpo" else {"loc": "upper left"}
    axis.legend(ncols=2, columnspacing=1.0, handlelength=1.4, **place)

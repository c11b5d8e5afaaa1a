"""Finite data: when DPO has no finite minimiser, and how much each method overfits (bandit, exact; claim C4)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.claims.c4 import divergence, minimisers
from analysis.evidence import METHODS, Evidence
from analysis.statistics import mean, proportion
from paper_figures import style
from paper_figures.drawing import Drawing

CLAIMS = ("C4",)
CAPTION = (
    "Finite data, computed exactly in a bandit on data sets of N sampled labels: (a) share of the data sets on which the method has"
    " no finite minimiser; (b) overfitting gap of the minimiser: how much more probable it is that the policy's choice within a pair"
    " agrees with a label of its own data than with a new one; (c) the gap along a gradient path. Bars: 95 % intervals over data"
    " sets (Wilson in (a), bootstrap in (b)); a minimiser that does not exist has no gap and is left out of (b)."
)


def draw(evidence: Evidence) -> Drawing:
    """Two panels over N, and a third over gradient steps where the records have them."""
    run = evidence.bandit_run("finite_data")
    frame = run.table("results")
    points = minimisers(frame)
    paths = frame[frame["step"].notna()] if "step" in frame else frame.iloc[:0]
    figure, axes = style.panels(style.DOUBLE, 2.5, 1, 3 if len(paths) else 2)
    for index, method in enumerate(METHODS):
        look = style.look(method)
        shift = 1.06 ** (index - 1)  # so that bars at the same N do not hide each other
        _probability(axes[0], points, method, look, shift)
        _gap(axes[1], points[points["objective"] == method], look, shift)
    axes[0].set(ylim=(-0.03, 1.03), ylabel="share of data sets", title="no finite minimiser")
    axes[1].set(ylabel="overfitting gap", title="gap of the minimiser")
    for axis in axes[:2]:
        axis.set(xscale="log", xlabel="number of labels N")
    if len(paths):
        _paths(axes[2], paths)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    style.letter(axes)
    return Drawing(figure, [run], f"{points['seed'].nunique()} data sets for each N.")


def _probability(axis: Axes, frame: pd.DataFrame, method: str, look: style.Look, shift: float) -> None:
    counts = divergence(frame, method)
    values = [proportion(int(diverges), int(n)) for diverges, n in counts.itertuples(index=False)]
    estimates = np.array([value.estimate for value in values])
    axis.errorbar(
        counts.index * shift,
        estimates,
        yerr=style.error_lengths(values),
        color=look.colour,
        marker=look.marker,
        linestyle=look.line,
        elinewidth=0.7,
        label=look.label,
    )


def _gap(axis: Axes, frame: pd.DataFrame, look: style.Look, shift: float) -> None:
    frame = frame[np.isfinite(frame["overfit_gap"])]
    by_set = frame.groupby(["labels", "seed"])["overfit_gap"].mean()
    values = {size: mean(group, over="data sets") for size, group in by_set.groupby(level="labels")}
    if not values:
        return
    estimates = np.array([value.estimate for value in values.values()])
    x = np.array(list(values), dtype=float) * shift
    axis.errorbar(
        x,
        estimates,
        yerr=style.error_lengths(values.values()),
        color=look.colour,
        marker=look.marker,
        linestyle=look.line,
        elinewidth=0.7,
    )


def _paths(axis: Axes, paths: pd.DataFrame) -> None:
    size = paths["labels"].median()
    size = paths["labels"].iloc[(paths["labels"] - size).abs().argmin()]
    paths = paths[paths["labels"] == size]
    for method in METHODS:
        look = style.look(method)
        by_step = paths[paths["objective"] == method].groupby("step")["overfit_gap"].mean()
        axis.plot(
            by_step.index,
            by_step,
            color=look.colour,
            linestyle=look.line,
            marker=look.marker,
            markevery=max(len(by_step) // 7, 1),
        )
    axis.set_xscale("symlog", linthresh=1)
    axis.set(xlabel="gradient steps", title=f"gap during training, N = {size:g}", ylabel="overfitting gap")

"""One figure per world and measure: a panel for every objective and loop, all on the same axes, below the same bound."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from toy_bandits.frontiers.pieces import LOOP, OPTIMUM, PATH, SWEEP
from toy_bandits.worlds import World

MEASURES = {"expected_reward": "expected reward", "win_rate": "win rate against the reference"}
KL = "KL(π ‖ π_ref)  [nats]"
MARKS = {"converged": "o", "not_unique": "D", "diverges": "^", "unsolved": "x"}
MEANINGS = {
    "converged": "the minimiser",
    "not_unique": "one of many minimisers",
    "diverges": "no minimiser: the limit",
    "unsolved": "not solved: best found",
}
COLOURS = "viridis_r"
PATH_COLOUR, LOOP_COLOUR, BOUND_COLOUR = "#D55E00", "#0072B2", "#000000"
WIDEST = 7


def draw(world: World, frame: pd.DataFrame, measure: str) -> Figure:
    """The figure.

    Args:
        world: for its title.
        frame: tables of pieces of this world, one below the other.
        measure: a key of `MEASURES`.
    """
    means = _over_data_sets(frame)
    shown = means[means["kind"].isin([SWEEP, LOOP])]
    panels = list(dict.fromkeys(zip(shown["kind"], shown["name"], strict=True)))
    columns = min(WIDEST, max(2, math.ceil(math.sqrt(1.5 * len(panels)))))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(1.2 + 1.6 * columns, 1.5 + 1.25 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    bound = means[(means["kind"] == OPTIMUM) & (means["name"] == measure)].sort_values("kl_policy_reference")
    for axis, (kind, name) in zip(axes.ravel(), panels, strict=False):
        axis.plot(bound["kl_policy_reference"], bound[measure], ":", color=BOUND_COLOUR, linewidth=1.2, zorder=1)
        here = means[means["name"] == name]
        if kind == SWEEP:
            _sweep(axis, here[here["kind"] == SWEEP], measure)
            _paths(axis, here[here["kind"] == PATH], measure)
        else:
            loop = here[here["kind"] == LOOP]
            axis.plot(loop["kl_policy_reference"], loop[measure], ".-", color=LOOP_COLOUR, linewidth=0.8, markersize=3)
        axis.set_title(name if kind == SWEEP else f"loop: {name}", fontsize=8, pad=3)
        axis.tick_params(labelsize=7)
        axis.grid(color="#dddddd", linewidth=0.4)
        axis.spines[["top", "right"]].set_visible(False)
    for index, axis in enumerate(axes.ravel()):
        axis.set_visible(index < len(panels))
        if index + columns >= len(panels):  # nothing below
            axis.tick_params(labelbottom=True)
            axis.set_xlabel(KL, fontsize=7)
    figure.supylabel(MEASURES[measure], fontsize=8)
    figure.suptitle(f"{world.id}: {world.summary}", fontsize=9)
    _legend(figure, axes, means)
    return figure


def _over_data_sets(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over data sets, where there are several; what a status says of one problem it cannot say of many."""
    if "data_set" not in frame or frame["data_set"].nunique() < 2:
        return frame
    keys = [key for key in ("kind", "name", "strength", "held", "step") if key in frame]
    numbers = [column for column in ("kl_policy_reference", *MEASURES) if column in frame]
    return frame.groupby(keys, sort=False, dropna=False)[numbers].mean().reset_index().assign(status="converged")


def _sweep(axis: Axes, rows: pd.DataFrame, measure: str) -> None:
    rows = rows.sort_values("held")
    axis.plot(rows["kl_policy_reference"], rows[measure], "-", color="#bbbbbb", linewidth=0.8, zorder=2)
    for status, marks in rows.groupby("status"):
        axis.scatter(
            marks["kl_policy_reference"],
            marks[measure],
            c=marks["held"].fillna(0.5),
            cmap=COLOURS,
            vmin=0,
            vmax=1,
            s=14,
            marker=MARKS[str(status)],
            linewidths=0.8,
            zorder=3,
        )


def _paths(axis: Axes, rows: pd.DataFrame, measure: str) -> None:
    for _, path in rows.groupby("strength", dropna=False):
        axis.plot(path["kl_policy_reference"], path[measure], "-", color=PATH_COLOUR, linewidth=0.7, zorder=2)


def _legend(figure: Figure, axes: np.ndarray, means: pd.DataFrame) -> None:
    handles = [Line2D([], [], linestyle=":", color=BOUND_COLOUR, label="the RLHF optimum: no policy above")]
    present = set(means.loc[means["kind"] == SWEEP, "status"])
    handles += [
        Line2D([], [], linestyle="", marker=mark, color="#31688e", markersize=4, label=MEANINGS[status])
        for status, mark in MARKS.items()
        if status in present
    ]
    if (means["kind"] == PATH).any():
        handles.append(Line2D([], [], color=PATH_COLOUR, label="Adam from the reference"))
    if (means["kind"] == LOOP).any():
        handles.append(Line2D([], [], color=LOOP_COLOUR, label="steps of an outer loop"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(3, len(handles)), fontsize=7, frameon=False)
    if (means["kind"] == SWEEP).any():
        colours = figure.colorbar(
            ScalarMappable(Normalize(0, 1), COLOURS), ax=axes, fraction=0.02, pad=0.01, ticks=[0, 1], aspect=30
        )
        colours.ax.set_yticklabels(["weakest", "strongest"], fontsize=7, rotation=90, va="center")
        colours.set_label("hold on the policy, over the strengths swept", fontsize=7)

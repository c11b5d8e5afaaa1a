"""Heat maps of scores: the leaderboard, the factorial, and who does its work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from toy_bandits.diagnostics import DIAGNOSTICS
from toy_bandits.leaderboard.decomposition import Decomposition
from toy_bandits.leaderboard.text import named, place_of

STYLE: Any = {"font.family": "DejaVu Sans", "font.size": 7, "pdf.fonttype": 42, "axes.linewidth": 0.6}
COLOURS = "Blues"
COMPONENTS = {"regulariser": "#0072B2", "pair loss": "#E69F00", "interaction": "#999999"}  # Okabe and Ito's
HATCHES = {"regulariser": "", "pair loss": "///", "interaction": "..."}


def leaderboard(board: pd.DataFrame, labels: Mapping[str, str]) -> Figure:
    """Rows: objectives, best first. Columns: mean, sensitivity, and a score per diagnostic; "–" where there is none.

    Args:
        board: as `selection.leaderboard` makes it.
        labels: by name, what stands at the row.
    """
    ids = [column for column in board.columns if column in DIAGNOSTICS]
    with rc_context(STYLE):
        figure = Figure(figsize=(3.2 + 0.42 * (len(ids) + 2), 1.9 + 0.19 * len(board)), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[2, len(ids)], sharey=True)
        rows = [f"{place_of(place)}   {labels[str(name)]}" for name, place in board["place"].items()]
        _heat(
            left,
            board[["mean", "sensitivity"]].rename(columns={"mean": "mean score", "sensitivity": "sensitivity"}),
            rows,
        )
        _heat(right, board[ids].rename(columns={name: DIAGNOSTICS[name].label for name in ids}), None)
        figure.colorbar(
            ScalarMappable(Normalize(0, 1), COLOURS),
            ax=[left, right],
            location="bottom",
            shrink=0.4,
            aspect=40,
            pad=0.01,
            label="score: 0 worst, 1 best  (sensitivity: range of the mean over the strengths)",
        )
    return figure


def factorial(tables: Mapping[str, pd.DataFrame], found: Mapping[str, Decomposition]) -> Figure:
    """A panel per diagnostic: pair losses x regularisers; the title says which component explains most of the variation."""
    columns = 4
    count = -(-len(tables) // columns)
    first = next(iter(tables.values()))
    width, height = 1.2 + 0.5 * first.shape[1], 0.9 + 0.2 * first.shape[0]
    with rc_context(STYLE):
        figure = Figure(figsize=(1.2 + columns * width, 0.7 + count * (height + 0.35)), layout="constrained")
        axes = figure.subplots(count, columns, squeeze=False, sharex=True, sharey=True)
        for axis, (name, table) in zip(axes.ravel(), tables.items(), strict=False):
            _heat(axis, table, [named(str(loss)) for loss in table.index], top=False)
            axis.set_title(_title(name, found.get(name)), fontsize=7)
        for index, axis in enumerate(axes.ravel()):
            axis.set_visible(index < len(tables))
            if index + columns >= len(tables):
                axis.tick_params(labelbottom=True)
        figure.supxlabel("regulariser", fontsize=8)
        figure.supylabel("pair loss", fontsize=8)
    return figure


def shares(found: Mapping[str, Decomposition]) -> Figure:
    """A bar per diagnostic: how much of the variation each component explains."""
    with rc_context(STYLE):
        figure = Figure(figsize=(5.6, 1.2 + 0.24 * len(found)), layout="constrained")
        axis = figure.subplots()
        names = list(found)
        begin = np.zeros(len(names))
        for component, colour in COMPONENTS.items():
            part = np.array([found[name].shares[component] for name in names])
            axis.barh(
                range(len(names)),
                part,
                left=begin,
                color=colour,
                hatch=HATCHES[component],
                edgecolor="white",
                linewidth=0.5,
                label=component,
            )
            begin += part
        axis.set_yticks(range(len(names)), [DIAGNOSTICS[name].label for name in names])
        axis.invert_yaxis()
        axis.set_xlim(0, 1)
        axis.set_xticks(np.linspace(0, 1, 5), ["0", "25", "50", "75", "100"])
        axis.set_xlabel("share of the variation of the score  [%]")
        axis.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure


def writer(figure: Figure, kind: str) -> Callable[[BinaryIO], None]:
    """What `analysis.records.atomic_write` calls to write the figure as "png" or "pdf"; the same figure gives the same bytes."""

    def write(handle: BinaryIO) -> None:
        metadata = {"CreationDate": None} if kind == "pdf" else {"Software": None}
        with rc_context(STYLE):
            figure.savefig(handle, format=kind, dpi=200, metadata=metadata)

    return write


def _title(name: str, found: Decomposition | None) -> str:
    label = DIAGNOSTICS[name].label
    if found is None or not any(found.shares.values()):
        return label
    winner = max(found.shares, key=lambda key: found.shares[key])
    return f"{label}\n{winner} {found.shares[winner]:.0%}"


def _heat(axis: Axes, table: pd.DataFrame, rows: list[str] | None, *, top: bool = True) -> None:
    values = table.to_numpy(dtype=float)
    axis.imshow(np.ma.masked_invalid(values), cmap=COLOURS, vmin=0, vmax=1, aspect="auto")
    for (y, x), value in np.ndenumerate(values):
        text = "–" if np.isnan(value) else f"{value:.2f}"
        axis.text(x, y, text, ha="center", va="center", fontsize=6.5, color="white" if value > 0.6 else "black")
    axis.set_xticks(range(table.shape[1]), [str(name) for name in table.columns])
    axis.tick_params(length=0)
    if top:
        axis.xaxis.tick_top()
        axis.tick_params(axis="x", labelrotation=55)
        for label in axis.get_xticklabels():
            label.set_horizontalalignment("left")
            label.set_rotation_mode("anchor")
    else:
        axis.tick_params(axis="x", labelrotation=30)
        for label in axis.get_xticklabels():
            label.set_horizontalalignment("right")
            label.set_rotation_mode("anchor")
    if rows is not None:
        axis.set_yticks(range(len(rows)), rows)
    else:
        axis.tick_params(labelleft=False)
    axis.spines[:].set_visible(False)

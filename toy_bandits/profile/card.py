"""The card of one objective on one page: what it is, radar, frontier, and a table of its scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any, BinaryIO

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.projections.polar import PolarAxes

import objectives
from toy_bandits import frontiers, worlds
from toy_bandits.diagnostics import DIAGNOSTICS
from toy_bandits.profile.measuring import Profile

WIDTH, HEIGHT = 8.27, 11.69  # A4, inches
STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same glyphs on every machine
    "font.size": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "pdf.fonttype": 42,
    "svg.hashsalt": "preference-objectives",
}


@dataclass(frozen=True)
class Look:
    """Colour, marker and line of one objective; none is told from another by colour alone."""

    colour: str
    marker: str
    line: Any  # as matplotlib takes it


MINE = Look("#000000", "o", "-")
BASELINES = (  # Okabe and Ito's colours
    Look("#D55E00", "s", "--"),
    Look("#0072B2", "^", "-."),
    Look("#009E73", "D", ":"),
    Look("#CC79A7", "v", (0, (5, 1))),
    Look("#E69F00", "P", (0, (3, 1, 1, 1))),
    Look("#56B4E9", "X", (0, (1, 1))),
)
GREY = "#777777"


def draw(mine: Profile, others: Sequence[Profile]) -> Figure:
    """The figure, A4 upright."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT))
        looks = [MINE, *BASELINES[: len(others)]]
        everyone = list(zip([mine, *others], looks, strict=True))
        _head(figure, mine)
        radar = figure.add_axes((0.155, 0.545, 0.36, 0.255), projection="polar")
        assert isinstance(radar, PolarAxes)
        _radar(radar, everyone)
        worlds_ = list(
            dict.fromkeys(world for each, _ in everyone if len(each.frontier) for world in each.frontier["world"])
        )
        for index, world in enumerate(worlds_):
            _frontier(figure.add_axes((0.7, 0.705 - 0.19 * index, 0.26, 0.115)), world, everyone)
        handles = [
            Line2D(
                [],
                [],
                color=look.colour,
                marker=look.marker,
                linestyle=look.line,
                markersize=4,
                label=each.objective.label,
            )
            for each, look in everyone
        ]
        handles.append(Line2D([], [], color=GREY, linewidth=2.5, alpha=0.5, label="RLHF optimum (bound)"))
        if _given(mine) is not None:
            ring: Any = {"marker": "o", "linestyle": "", "fillstyle": "none", "markersize": 8}
            handles.append(Line2D([], [], color="black", label="strength given (nearest swept)", **ring))
        figure.legend(
            handles=handles,
            loc="center",
            bbox_to_anchor=(0.5, 0.468),
            ncols=min(4, len(handles)),
            frameon=False,
            fontsize=7,
        )
        _table(figure.add_axes((0.05, 0.025, 0.9, 0.425)), everyone)
        return figure


def _head(figure: Figure, mine: Profile) -> None:
    about = objectives.describe(mine.objective)
    figure.text(0.05, 0.965, mine.objective.label, fontsize=15, fontweight="bold", va="top")
    figure.text(0.05, 0.938, fill(about.summary, 118), fontsize=8.5, va="top")
    swept = mine.objective.strength
    lines = [
        f"loss:  {about.formula}",
        f"source:  {about.source}.   needs:  {', '.join(sorted(mine.objective.needs_on_pairs))}",
        f"strength:  {swept.text}" if swept else "strength:  none",
    ]
    wrapped = [fill(line, 132, subsequent_indent="     ", max_lines=3, placeholder=" ...") for line in lines]
    figure.text(0.05, 0.915, "\n".join(wrapped), fontsize=7.2, va="top", color="#333333", linespacing=1.35)


def _radar(axes: PolarAxes, everyone: Sequence[tuple[Profile, Look]]) -> None:
    names = list(everyone[0][0].scores)
    angles = np.linspace(0.0, 2.0 * np.pi, len(names), endpoint=False)
    axes.set_theta_offset(np.pi / 2)
    axes.set_theta_direction(-1)
    axes.set_ylim(0.0, 1.0)
    axes.set_yticks([0.25, 0.5, 0.75, 1.0], ["", ".5", "", "1"], fontsize=6, color=GREY)
    axes.set_rlabel_position(float(np.degrees(np.pi / max(len(names), 1))))
    axes.grid(color="#dddddd", linewidth=0.5)
    axes.spines["polar"].set_color("#bbbbbb")
    axes.set_xticks(angles, [""] * len(names))
    for angle, name in zip(angles, names, strict=True):
        missing = np.isnan(everyone[0][0].scores[name].value)
        side = np.sin(angle)
        axes.text(
            angle,
            1.1,
            DIAGNOSTICS[name].label + (" (no score)" if missing else ""),
            fontsize=7,
            ha="center" if abs(side) < 0.15 else ("left" if side > 0 else "right"),
            va="center" if abs(side) > 0.15 else ("bottom" if np.cos(angle) > 0 else "top"),
            color=GREY if missing else "black",
        )
    for each, look in reversed(everyone):
        values = np.array([each.scores[name].value for name in names])
        mine = look is MINE
        axes.plot(
            [*angles, angles[0]],
            [*values, values[0]],
            color=look.colour,
            linestyle=look.line,
            marker=look.marker,
            markersize=4 if mine else 2.8,
            linewidth=1.8 if mine else 1.0,
            clip_on=False,
            zorder=4 if mine else 3,
        )
        if mine and not np.isnan(values).any():
            axes.fill(angles, values, color=look.colour, alpha=0.08, zorder=1)


def _frontier(axes: Axes, world: str, everyone: Sequence[tuple[Profile, Look]]) -> None:
    bound = frontiers.optima(worlds.get(world), "expected_reward")
    axes.plot(bound["kl_policy_reference"], bound["expected_reward"], color=GREY, linewidth=2.5, alpha=0.5, zorder=1)
    for each, look in reversed(everyone):
        if not len(each.frontier):
            continue
        rows = each.frontier[each.frontier["world"] == world].sort_values("strength")
        axes.plot(
            rows["kl_policy_reference"],
            rows["expected_reward"],
            color=look.colour,
            linestyle=look.line,
            marker=look.marker,
            markersize=3 if look is MINE else 2.2,
            linewidth=1.3 if look is MINE else 0.8,
            zorder=4 if look is MINE else 3,
        )
    given = _given(everyone[0][0])
    if given is not None and len(everyone[0][0].frontier):
        rows = everyone[0][0].frontier[everyone[0][0].frontier["world"] == world]
        nearest = rows.iloc[(np.log(rows["strength"]) - np.log(given)).abs().argmin()]
        axes.plot(
            nearest["kl_policy_reference"],
            nearest["expected_reward"],
            "o",
            color="black",
            fillstyle="none",
            markersize=9,
            zorder=5,
        )
    axes.set_title(fill(f"{world}: {worlds.get(world).summary}", 44), fontsize=6.5, loc="left", pad=4)
    axes.set_xlabel("KL(π ‖ π_ref)  [nats]", fontsize=7)
    axes.set_ylabel("expected reward", fontsize=7)
    axes.tick_params(labelsize=6.5)
    axes.grid(color="#eeeeee", linewidth=0.4)
    axes.set_axisbelow(True)


def _given(mine: Profile) -> float | None:
    """The objective's own strength, where it has one that lies on a logarithmic axis."""
    swept = mine.objective.strength
    value = None if swept is None else mine.objective.hyperparameters[swept.parameter]
    return value if isinstance(value, float) and value > 0 else None


def _table(axes: Axes, everyone: Sequence[tuple[Profile, Look]]) -> None:
    """Scores: a row per diagnostic with its meaning, a column per objective."""
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    names = list(everyone[0][0].scores)
    axes.set_ylim(len(names) + 0.4, -1.6)
    first, last = 0.33, 0.33 + 0.085 + 0.068 * (len(everyone) - 1)
    columns = np.array([first, *(first + 0.085 + 0.068 * np.arange(len(everyone) - 1))])
    meaning = last - 0.025
    width = int((1.0 - meaning) * 150)
    axes.text(0.005, -0.6, "diagnostic", fontsize=7, color=GREY, va="center")
    axes.text(meaning, -0.6, "a high score says", fontsize=7, color=GREY, va="center")
    for x, (each, look) in zip(columns, everyone, strict=True):
        axes.plot([x - 0.03, x + 0.03], [-1.35, -1.35], color=look.colour, linestyle=look.line, linewidth=1.3)
        axes.plot([x], [-1.35], color=look.colour, marker=look.marker, markersize=4)
        axes.text(
            x,
            -0.6,
            fill(each.objective.name, 16, break_long_words=False),
            fontsize=6,
            ha="center",
            va="center",
            color=look.colour,
        )
    for row, name in enumerate(names):
        diagnostic = DIAGNOSTICS[name]
        if row % 2 == 0:
            axes.axhspan(row - 0.5, row + 0.5, color="#f4f4f4", zorder=0)
        axes.text(0.005, row, fill(diagnostic.title, 38), fontsize=6.8, va="center", linespacing=1.0)
        for x, (each, look) in zip(columns, everyone, strict=True):
            score = each.scores[name]
            mine = look is MINE
            shown = "–" if np.isnan(score.value) else f"{score.value:.2f}"
            axes.text(
                x,
                row - 0.1 * (mine and not np.isnan(score.low)),
                shown,
                fontsize=8 if mine else 7,
                ha="center",
                va="center",
                fontweight="bold" if mine else "normal",
            )
        score = everyone[0][0].scores[name]
        if not np.isnan(score.low):
            axes.text(first, row + 0.33, f"[{score.low:.2f}, {score.high:.2f}]", fontsize=5, ha="center", va="center")
        says = f"No score: {score.reason}" if np.isnan(score.value) else diagnostic.reading
        axes.text(
            meaning, row, fill(says, width, max_lines=2, placeholder=" ..."), fontsize=6.3, va="center", linespacing=1.0
        )


def writer(figure: Figure, kind: str) -> Callable[[BinaryIO], None]:
    """What `analysis.records.atomic_write` calls to write the figure as "png" or "pdf"."""

    def write(handle: BinaryIO) -> None:
        metadata = {"CreationDate": None} if kind == "pdf" else {"Software": None}
        with rc_context(STYLE):
            figure.savefig(handle, format=kind, dpi=200, metadata=metadata)

    return write

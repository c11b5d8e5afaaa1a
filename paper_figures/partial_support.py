"""Partial support: where training ends from many starts (bandit, exact; claim C3)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.evidence import METHODS, Evidence, MissingEvidence
from paper_figures import style
from paper_figures.drawing import Drawing

CLAIMS = ("C3",)
CAPTION = (
    "Partial support, computed exactly in a bandit: only some pairs of answers are compared. Every point is "
    "the final policy from one start; the corners of the triangle are the preferred answer, the other compared"
    " one(s), and those that no pair shows. On the dotted line the mass of the answers that no pair shows "
    "equals the reference's. DPO's and IPO's minimisers form a continuum, and the start decides where training"
    " ends; MaxPO ends in one point, on the line, from every start."
)
CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(3) / 2]])  # preferred, other, off the support


def draw(evidence: Evidence) -> Drawing:
    """One triangle per method, at the strength nearest to .1 and the most certain preferences with a minimiser."""
    run = evidence.bandit_run("partial_support")
    frame = run.table("results")
    figure, axes = style.panels(style.DOUBLE, 2.35, 1, 3)
    remarks = []
    for axis, method in zip(axes, METHODS, strict=True):
        rows = chosen(frame[frame["objective"] == method])
        if rows.empty:
            raise MissingEvidence(
                f"{method} in the bandit experiment 'partial_support'",
                "python -m toy_bandits run partial_support --out out/bandits",
            )
        symbol = "τ" if method == "ipo" else "β"
        setting = f"{symbol} = {rows['strength'].iloc[0]:g}, p = {rows['probability'].iloc[0]:g}"
        axis.set_title(f"{style.look(method).label}  ({setting})")
        off = _triangle(axis, rows, method)
        remarks.append(f"{style.look(method).label}: off-support mass from {off.min():.3g} to {off.max():.3g}")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    style.letter(axes)
    starts = frame["start"].nunique()
    return Drawing(figure, [run], f"{starts} starts. {'; '.join(remarks)}.")


def chosen(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of one method that the figure shows."""
    frame = frame[frame["status"] != "diverges"]
    frame = frame[frame["probability"] == frame["probability"].max()]
    distances = np.log(frame["strength"].to_numpy(dtype=float) / 0.1)
    return frame[np.isclose(np.abs(distances), np.abs(distances).min())] if len(frame) else frame


def _triangle(axis: Axes, rows: pd.DataFrame, method: str) -> np.ndarray:
    look = style.look(method)
    points = np.stack([shares(group) for _, group in rows.groupby("start")])
    reference = shares(rows[rows["start"] == rows["start"].min()], "reference_mass")
    axis.plot(*_xy(np.eye(3)[[0, 1, 2, 0]]), color=style.GREY, linewidth=0.8)
    level = reference[2]
    axis.plot(
        *_xy(np.array([[1 - level, 0, level], [0, 1 - level, level]])), color=style.BLACK, linestyle=":", linewidth=0.8
    )
    axis.plot(
        *_xy(points),
        linestyle="none",
        marker=look.marker,
        color=look.colour,
        markersize=4.5,
        alpha=0.75,
        markeredgewidth=0,
    )
    axis.plot(
        *_xy(reference[None]), linestyle="none", marker="*", color=style.BLACK, markersize=7, label="reference policy"
    )
    axis.plot([], [], color=style.BLACK, linestyle=":", linewidth=0.8, label="off-support mass as in the reference")
    axis.plot([], [], linestyle="none", marker="o", color=style.GREY, label="final policy from one start")
    for corner, text, place in zip(
        CORNERS, ("preferred", "not preferred", "no pair shows it"), ((0, -9), (0, -9), (0, 4)), strict=True
    ):
        axis.annotate(text, tuple(corner), xytext=place, textcoords="offset points", ha="center", fontsize=7)
    axis.set(xlim=(-0.14, 1.14), ylim=(-0.14, 0.98), aspect="equal")
    axis.axis("off")
    return points[:, 2]


def shares(group: pd.DataFrame, column: str = "probability_mass") -> np.ndarray:
    """Mass of the first (preferred) action on the support, of the others on it, and of all off it."""
    group = group.sort_values("action")
    on = group["on_support"].to_numpy(dtype=bool)
    mass = group[column].to_numpy(dtype=float)
    first = mass[on][0]
    return np.array([first, mass[on].sum() - first, mass[~on].sum()])


def _xy(shares: np.ndarray) -> np.ndarray:
    return np.asarray(shares @ CORNERS).T

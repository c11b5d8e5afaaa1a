"""KL-vs-reward in the bandits, with the RLHF optimum as bound (exact; claim C7)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from scipy.interpolate import PchipInterpolator

from analysis.evidence import Evidence
from paper_figures import style
from paper_figures.drawing import Drawing

CLAIMS = ("C7",)
CAPTION = (
    "KL-vs-reward frontiers, computed exactly in bandits: each line is one method over its whole range of "
    "strengths. Top: expected reward; no policy can lie above the RLHF optimum (dotted), which has the best "
    "reward at its KL. Bottom: how far each method lies below that optimum at equal KL (logarithmic); a method"
    " that is optimal does not appear there."
)
BOUND = "rlhf"
WORLDS = {"bradley_terry": "Bradley-Terry", "near_deterministic": "near-deterministic"}
FLOOR = 1e-4  # distances below the optimum that are smaller are not told apart from the interpolation of the bound


def draw(evidence: Evidence) -> Drawing:
    """One column per world: the frontiers, and their distance from the optimum."""
    run = evidence.bandit_run("frontier")
    frame = run.table("results")
    frame = frame[np.isfinite(frame["kl_policy_reference"])].sort_values("kl_policy_reference")
    worlds = sorted(frame["world"].unique())
    width = style.SINGLE if len(worlds) == 1 else style.DOUBLE
    figure, axes = style.panels(width, 3.6, 2, len(worlds), sharex="col", sharey="row", height_ratios=(1.5, 1))
    for column, world in enumerate(worlds):
        top, bottom = axes[column], axes[len(worlds) + column]
        _frontiers(top, bottom, frame[frame["world"] == world])
        top.set_title(WORLDS.get(str(world), str(world).replace("_", " ")))
        bottom.set_xlabel("KL(policy ‖ reference)  [nats]")
        bottom.set_yscale("log")
    axes[0].set_ylabel("expected reward")
    axes[len(worlds)].set_ylabel("below the optimum")
    axes[len(worlds)].set_ylim(bottom=FLOOR)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 2 if len(worlds) == 1 else 4))
    style.letter(axes)
    return Drawing(figure, [run])


def _frontiers(top: Axes, bottom: Axes, rows: pd.DataFrame) -> None:
    bound = rows[rows["objective"] == BOUND]
    for index, objective in enumerate(style.order(rows["objective"])):
        look = style.look(objective)
        here = rows[rows["objective"] == objective]
        options: dict[str, Any] = {
            "color": look.colour,
            "linestyle": look.line,
            "marker": look.marker,
            "markevery": (index * len(here) // 24, max(len(here) // 6, 1)),  # apart where curves coincide
            "linewidth": 2.0 if objective == BOUND else 1.2,
            "zorder": 3 if objective == BOUND else 2,
        }
        top.plot(here["kl_policy_reference"], here["expected_reward"], label=look.label, **options)
        if objective != BOUND and len(bound) > 1:
            kl, distance = distance_below(bound, here)
            bottom.plot(kl, np.where(distance >= FLOOR, distance, np.nan), **options)


def distance_below(bound: pd.DataFrame, rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """KL of ``rows`` within the bound's range, and the bound's reward at that KL less theirs.

    The bound rises like the square root of KL near 0, so it is interpolated (monotone cubic) over that root.
    """
    bound = bound.drop_duplicates("kl_policy_reference")
    curve = PchipInterpolator(np.sqrt(bound["kl_policy_reference"]), bound["expected_reward"])
    kl = rows["kl_policy_reference"].to_numpy(dtype=float)
    inside = (kl >= bound["kl_policy_reference"].min()) & (kl <= bound["kl_policy_reference"].max())
    return kl[inside], curve(np.sqrt(kl[inside])) - rows["expected_reward"].to_numpy(dtype=float)[inside]

"""Certain labels, and the strength of regularisation swept over its five decades, two values in each.

What a strength is for: from one end of its range to the other KL(pi || pi_ref) should go from the most that the labels can ask for, a
point mass on the best action, to nothing, without turning back. DPO's is at the most for every beta where labels are certain. Only
the strength moves; the other hyper-parameters keep their values.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from objectives import Objective
from toy_bandits import worlds
from toy_bandits.diagnostics.base import Answer, Case, Diagnostic, joined

WORLDS = ("determinism/6", "determinism/7", "determinism/8")
PER_DECADE = 2


def cases(objective: Objective) -> list[Case]:
    """One per world, of all strengths, from the end that holds least to the one that holds most; ``kl_limit`` is the KL of a point mass on
    the best action."""
    swept = objective.strength
    assert swept is not None, "probed only where there is a strength"
    grid = swept.grid(PER_DECADE)[:: 1 if swept.rising else -1]
    found = []
    for world in map(worlds.get, WORLDS):
        columns = {"strength": grid, "order": range(len(grid)), "kl_limit": -float(world.truth.log_reference[0, 0])}
        problem = world.problem.expand((len(grid),))
        found.append(Case(world.id, problem, world.truth, columns=columns, strength=grid))
    return found


def table(answers: Sequence[Answer]) -> pd.DataFrame:
    """One row per (world, strength)."""
    return joined(answer.rows() for answer in answers)


def score(frame: pd.DataFrame) -> float:
    """Share of the possible KL that the strength commands: (KL at the weak end - KL at the strong end)/KL of a point mass on the best
    action, times the same difference over the sum of all changes in between (1 where KL never turns back); mean over the worlds.

    1: the strength leads from the point mass to the reference. 0: KL does not respond, as with DPO (F2), or goes the other way.
    """
    shares = []
    for _, rows in frame.groupby("world"):
        kl = rows.sort_values("order")["kl_policy_reference"].to_numpy()
        down, travelled = kl[0] - kl[-1], np.abs(np.diff(kl)).sum()
        monotone = down / travelled if travelled > 0 else 0.0
        shares.append(np.clip(down / rows["kl_limit"].iloc[0], 0.0, 1.0) * max(monotone, 0.0))
    return float(np.mean(shares)) if shares else float("nan")


DIAGNOSTIC = Diagnostic(
    id="strength",
    label="strength acts",
    title="Response of KL to strength",
    reading="the strength of regularisation moves the KL, with certain labels too",
    worlds=WORLDS,
    facts=("F2", "F6", "C2"),
    cases=cases,
    table=table,
    score=score,
    needs_strength=True,
)

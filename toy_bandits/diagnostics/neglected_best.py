"""The best action of five has a tenth, a hundredth, ..., a millionth of the reference's mass. Is it found?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from objectives import Objective
from toy_bandits.diagnostics.base import Answer, Case, Diagnostic, joined, whole_worlds

WORLDS = tuple(f"neglected_best/{number}" for number in range(6))
BEST = 0


def cases(objective: Objective) -> list[Case]:
    """One per world."""
    return whole_worlds(WORLDS)


def table(answers: Sequence[Answer]) -> pd.DataFrame:
    """One row per world; ``before`` and ``after`` are the reference's and the policy's probability of the best action."""
    return joined(
        answer.rows(before=answer.case.truth.reference[..., 0, BEST], after=answer.log_policy[..., 0, BEST].exp())
        for answer in answers
    )


def score(frame: pd.DataFrame) -> float:
    """Mean over worlds of the share that the best action gains of what it lacked: (after - before)/(1 - before), within [0, 1].

    1: found however rare it was. 0: it stays where the reference had it. Any penalty towards the reference pays here (F1): the score is
    the other side of the scores of regularisation.
    """
    if not len(frame):
        return float("nan")
    gained = (frame["after"] - frame["before"]) / (1.0 - frame["before"])
    return float(np.mean(gained.clip(0.0, 1.0)))


DIAGNOSTIC = Diagnostic(
    id="neglected_best",
    label="neglected best",
    title="Recovery of a good action that the reference neglects",
    reading="the best action is found where the reference nearly excludes it",
    worlds=WORLDS,
    facts=("F1", "F6"),
    cases=cases,
    table=table,
    score=score,
)

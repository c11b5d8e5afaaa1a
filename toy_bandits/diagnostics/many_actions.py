"""2 to 128 actions, each compared with about six others, under Bradley-Terry: does the answer stay as good for its KL?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from objectives import Objective
from toy_bandits.diagnostics.base import Answer, Case, Diagnostic, joined, whole_worlds

WORLDS = tuple(f"many_actions/{number}" for number in range(7))
MANY = 16


def cases(objective: Objective) -> list[Case]:
    """One per world, with its number of actions."""
    return [replace(case, columns={"actions": case.problem.actions}) for case in whole_worlds(WORLDS)]


def table(answers: Sequence[Answer]) -> pd.DataFrame:
    """One row per world; ``efficiency`` as in `Answer.efficiency`."""
    return joined(answer.rows(efficiency=answer.efficiency) for answer in answers)


def score(frame: pd.DataFrame) -> float:
    """Gain in reward as a share of the RLHF optimum's at the same KL: mean over worlds of 16 actions and more, over that with fewer; at
    most 1.

    1: no worse for each nat with many actions than with few, as DPO under Bradley-Terry (F2). 0: with many the KL buys nothing.
    """
    gains = frame.assign(efficiency=frame["efficiency"].clip(0.0, 1.0))
    few, many = (gains[of]["efficiency"].mean() for of in (gains["actions"] < MANY, gains["actions"] >= MANY))
    if np.isnan(few) or np.isnan(many):
        return float("nan")
    return float(min(1.0, many / few)) if few > 0 else 0.0


DIAGNOSTIC = Diagnostic(
    id="many_actions",
    label="many actions",
    title="Growth with the number of actions",
    reading="what a nat buys does not fall as actions become many",
    worlds=WORLDS,
    facts=("F1", "F2", "F6"),
    cases=cases,
    table=table,
    score=score,
)

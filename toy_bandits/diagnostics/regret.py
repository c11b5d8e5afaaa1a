"""All that the derivations assume is true: Bradley-Terry labels, every part connected, infinite data. How good is the answer for its KL?

The RLHF optimum of the same KL(pi || pi_ref) is the bound that no policy passes (F1), so the comparison needs no common unit of strength.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from objectives import Objective
from toy_bandits import metrics
from toy_bandits.diagnostics.base import Answer, Case, Diagnostic, joined, whole_worlds

WORLDS = tuple(f"bradley_terry/{number}" for number in range(7))


def cases(objective: Objective) -> list[Case]:
    """One per world."""
    return whole_worlds(WORLDS)


def table(answers: Sequence[Answer]) -> pd.DataFrame:
    """One row per world; ``efficiency`` as in `Answer.efficiency`."""
    return joined(
        answer.rows(
            expected_reward=metrics.expected_reward(answer.case.truth, answer.log_policy), efficiency=answer.efficiency
        )
        for answer in answers
    )


def score(frame: pd.DataFrame) -> float:
    """Gain in reward over the reference's, as a share of the RLHF optimum's gain at the same KL; mean over worlds, within [0, 1].

    1: the RLHF optimum, as DPO's is under Bradley-Terry (F2). 0: the KL buys no reward. A policy that stays at the reference counts 1: it
    wastes nothing.
    """
    return float(np.mean(frame["efficiency"].clip(0.0, 1.0))) if len(frame) else float("nan")


DIAGNOSTIC = Diagnostic(
    id="regret",
    label="reward at its KL",
    title="Regret to the RLHF optimum at equal KL",
    reading="the KL that is spent buys as much reward as it can",
    worlds=WORLDS,
    facts=("F1", "F2", "C7"),
    cases=cases,
    table=table,
    score=score,
)

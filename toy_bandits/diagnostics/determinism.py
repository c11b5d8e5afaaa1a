"""Labels become certain: four actions in order, the better one winning with probability .9, .99, .999, 1 - 1e-6, 1 - 1e-12 and 1.

A penalty that works holds the policy about as near to the reference at certain labels as at labels that are right nine times in ten. The
distance is KL(pi_ref || pi), which is infinite as soon as an action of the reference has lost all its mass (with finitely many
actions KL(pi || pi_ref) is bounded and cannot tell). The ratio of the two distances does not depend on the units of the strength.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from objectives import Objective
from toy_bandits.diagnostics.base import Answer, Case, Diagnostic, joined, whole_worlds

NOISY, CERTAIN = "determinism/1", "determinism/6"
WORLDS = tuple(f"determinism/{number}" for number in (1, 2, 3, 4, 5, 6))


def cases(objective: Objective) -> list[Case]:
    """One per world."""
    return whole_worlds(WORLDS)


def table(answers: Sequence[Answer]) -> pd.DataFrame:
    """One row per world."""
    return joined(answer.rows() for answer in answers)


def score(frame: pd.DataFrame) -> float:
    """KL(pi_ref || pi) with labels that are right nine times in ten, over the same with certain labels; at most 1.

    1: certainty takes the policy no further. 0: it gives up actions of the reference altogether, as DPO does for every beta (F2), while
    IPO's margins are at most a quarter larger (F4) and MaxPO's KL stays below 1/beta (F6).
    """
    kl = frame.set_index("world")["kl_reference_policy"]
    if not {NOISY, CERTAIN} <= set(kl.index):
        return float("nan")
    noisy, certain = float(kl[NOISY]), float(kl[CERTAIN])
    if certain == float("inf"):
        return 0.0
    return 1.0 if certain <= noisy else noisy / certain


DIAGNOSTIC = Diagnostic(
    id="determinism",
    label="determinism",
    title="Regularisation at determinism",
    reading="the penalty holds the policy when labels become certain",
    worlds=WORLDS,
    facts=("F2", "F4", "F6", "C1"),
    cases=cases,
    table=table,
    score=score,
)

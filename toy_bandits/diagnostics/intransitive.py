"""Cycles: rock, paper, scissors, noisy and certain, with and without a favourite of the reference; a cycle of five; one above a loser.

No reward explains a cycle, and each of its actions wins and loses alike, so the labels give no reason to prefer one to another: among them
the policy should stay as the reference has it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from objectives import Objective
from toy_bandits.diagnostics.base import Answer, Case, Diagnostic, joined, whole_worlds
from toy_bandits.problem import Bandit

WORLDS = tuple(f"intransitive/{number}" for number in range(5))


def moved(truth: Bandit, log_policy: Tensor) -> Tensor:
    """(B,): total variation distance between policy and reference, both conditional on the actions of the cycle (those of the highest
    reward), as a share of the largest possible: a point mass on the reference's rarest."""
    assert truth.rewards is not None
    cycle = truth.rewards == truth.rewards.amax(-1, keepdim=True)
    masked = [torch.where(cycle, logits, -torch.inf).softmax(-1) for logits in (log_policy, truth.log_reference)]
    largest = 1.0 - torch.where(cycle, masked[1], torch.inf).amin(-1)
    return (0.5 * (masked[0] - masked[1]).abs().sum(-1) / largest).mean(-1)


def cases(objective: Objective) -> list[Case]:
    """One per world."""
    return whole_worlds(WORLDS)


def table(answers: Sequence[Answer]) -> pd.DataFrame:
    """One row per world; ``moved`` as in `moved`."""
    return joined(answer.rows(moved=moved(answer.case.truth, answer.logits)) for answer in answers)


def score(frame: pd.DataFrame) -> float:
    """Mean over worlds of 1 - the distance from the reference among the actions of the cycle, as a share of the largest possible.

    1: a cycle leaves the policy where it is: IPO's least squares and DPO's logits cancel around it exactly (F2, F4). 0: one action of the
    cycle takes all. MaxPO's bounded pair loss gains by breaking the symmetry where its penalty is weak: two wins for one loss.
    """
    return float(np.mean(1.0 - frame["moved"])) if len(frame) else float("nan")


DIAGNOSTIC = Diagnostic(
    id="intransitive",
    label="cycles",
    title="Intransitivity",
    reading="a cycle of preferences gives no reason to leave the reference",
    worlds=WORLDS,
    facts=("F2", "F4", "F6"),
    cases=cases,
    table=table,
    score=score,
)

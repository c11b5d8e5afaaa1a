"""Pairs that compare some of the actions only: what happens to the mass of the others, and of separate groups of actions.

Nothing in such data speaks for or against moving mass between parts of the pair graph that no pair connects, so it should stay where the
reference has it. The answer is the one that gradient flow reaches from the reference (where it is not unique), the limit where
there is none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from objectives import Objective
from toy_bandits import metrics
from toy_bandits.diagnostics.base import Answer, Case, Diagnostic, joined, whole_worlds
from toy_bandits.problem import Bandit

WORLDS = tuple(f"partial_support/{number}" for number in range(8))


def kept(truth: Bandit, log_policy: Tensor) -> Tensor:
    """(B,): over the parts of the pair graph, the smallest ratio of policy's and reference's mass, the larger one below; mean over
    contexts."""
    before = metrics.component_masses(truth, truth.log_reference)
    after = metrics.component_masses(truth.expand(log_policy.shape[:-2]), log_policy)
    ratio = torch.minimum(before, after) / torch.maximum(before, after)
    return (truth.contexts * ratio.amin(-1)).sum(-1)


def cases(objective: Objective) -> list[Case]:
    """One per world."""
    return whole_worlds(WORLDS)


def table(answers: Sequence[Answer]) -> pd.DataFrame:
    """One row per world; ``kept`` as in `kept`."""
    return joined(answer.rows(kept=kept(answer.case.truth, answer.log_policy)) for answer in answers)


def score(frame: pd.DataFrame) -> float:
    """Mean over worlds of the share of mass kept: of the part of the pair graph where policy and reference differ most, the smaller mass
    over the larger.

    1: every part keeps its mass exactly, as with MaxPO for any labels (F6) and with any pair loss plus forward KL (F7). 0: some
    part loses all of it. DPO and IPO do not see such moves and come in between, at 0 where they diverge (F5).
    """
    return float(np.mean(frame["kept"])) if len(frame) else float("nan")


DIAGNOSTIC = Diagnostic(
    id="off_support",
    label="off-support mass",
    title="Off-support mass kept",
    reading="actions that no pair shows keep the reference's mass",
    worlds=WORLDS,
    facts=("F5", "F6", "F7", "C3"),
    cases=cases,
    table=table,
    score=score,
)

"""Log-linear policies, whose features are shared by actions and contexts: mass of actions that no pair shows, when what is learnt of the
others moves them too.

A tabular policy keeps what an objective does not touch; a policy with shared parameters does not, and a penalty on the pairs that are seen
does not notice. The never compared are, in turn, an action with the winner's features, one that stands out while winner and loser are
alike, and half of the actions in each of sixteen contexts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from objectives import Objective
from toy_bandits import worlds
from toy_bandits.diagnostics.base import Answer, Case, Diagnostic, joined
from toy_bandits.policies import LogLinear
from toy_bandits.problem import Bandit

WORLDS = tuple(f"shared_features/{number}" for number in range(6))


def kept(truth: Bandit, log_policy: Tensor) -> Tensor:
    """(B,): of policy's and reference's mass on actions that no pair shows the smaller over the larger, mean over contexts."""
    unseen = ~(truth.pairs > 0).any(-1)
    before, after = ((unseen * logs.exp()).sum(-1) for logs in (truth.log_reference, log_policy))
    return (truth.contexts * torch.minimum(before, after) / torch.maximum(before, after)).sum(-1)


def cases(objective: Objective) -> list[Case]:
    """One per world, with a log-linear policy in its features."""
    found = []
    for world in map(worlds.get, WORLDS):
        assert world.features is not None
        found.append(Case(world.id, world.problem, world.truth, policy=LogLinear(world.features)))
    return found


def table(answers: Sequence[Answer]) -> pd.DataFrame:
    """One row per world; ``kept`` as in `kept`."""
    return joined(answer.rows(kept=kept(answer.case.truth, answer.log_policy)) for answer in answers)


def score(frame: pd.DataFrame) -> float:
    """Mean over worlds of the share of mass kept by the actions that no pair shows: of policy's and reference's mass the smaller over the
    larger, mean over contexts.

    1: none leaks to or from them. 0: they lose all, or what they had is nothing beside what they get. Forward KL sees the whole reference
    and holds most of it (F7), though with shared features not all: its equality (F6) is of tabular policies.
    """
    return float(np.mean(frame["kept"])) if len(frame) else float("nan")


DIAGNOSTIC = Diagnostic(
    id="leak",
    label="no leak",
    title="Leak to unseen actions under shared features",
    reading="what is learnt of the compared does not move the others",
    worlds=WORLDS,
    facts=("F6", "F7", "C3"),
    cases=cases,
    table=table,
    score=score,
)

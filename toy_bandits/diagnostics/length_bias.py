"""Responses of one to six tokens over a token tree, where length is worth nothing: all worth the same, or good and bad of every length.

Among responses that are worth the same the labels give no reason to prefer the short or the long, so their mean length should stay the
reference's. An objective that sums over tokens, averages over them or charges for them can shift it.
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
from toy_bandits.policies import TokenTree
from toy_bandits.worlds import World

WORLDS = tuple(f"sequences/{number}" for number in (0, 1, 6, 7))


def shift(world: World, log_policy: Tensor) -> Tensor:
    """(B,): change of the mean length among responses of equal reward, as a share of the largest change in that direction, with its sign;
    mean over the rewards, weighted by the policy's mass."""
    truth, lengths = world.truth, world.lengths
    assert truth.rewards is not None
    total = torch.zeros_like(log_policy[..., 0, 0])
    for reward in sorted(set(truth.rewards.flatten().tolist())):
        group = truth.rewards == reward
        before, after = (
            (torch.where(group, logs, -torch.inf).softmax(-1) * lengths).sum(-1)
            for logs in (truth.log_reference, log_policy)
        )
        longest, shortest = (lengths.expand_as(group)[group].amax(), lengths.expand_as(group)[group].amin())
        room = torch.where(after > before, longest - before, before - shortest)
        total += (log_policy.exp() * group).sum((-2, -1)) * ((after - before) / room).squeeze(-1)
    return total


def cases(objective: Objective) -> list[Case]:
    """One per world, with a policy over the tree of its responses."""
    found = []
    for world in map(worlds.get, WORLDS):
        assert world.responses is not None
        found.append(Case(world.id, world.problem, world.truth, policy=TokenTree(world.responses)))
    return found


def table(answers: Sequence[Answer]) -> pd.DataFrame:
    """One row per world; ``shift`` as in `shift`, positive for longer."""
    return joined(answer.rows(shift=shift(worlds.get(answer.case.world), answer.logits)) for answer in answers)


def score(frame: pd.DataFrame) -> float:
    """Mean over worlds of 1 - |change of the mean length among responses worth the same|, as a share of the largest possible change.

    1: length stays the reference's, as with the RLHF optimum (F1) and so DPO (F2). 0: only the longest, or only the shortest, are left.
    """
    return float(np.mean(1.0 - frame["shift"].abs())) if len(frame) else float("nan")


DIAGNOSTIC = Diagnostic(
    id="length_bias",
    label="length",
    title="Length bias",
    reading="length is left alone where it is worth nothing",
    worlds=WORLDS,
    facts=("F1", "F2"),
    cases=cases,
    table=table,
    score=score,
)

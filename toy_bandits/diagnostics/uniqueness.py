"""The worlds of partial support once more, from eight starts: the reference, and seven random policies.

An objective has one answer, a continuum of answers among which the start decides, or none at all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from objectives import Objective
from toy_bandits import worlds
from toy_bandits.diagnostics.base import Answer, Case, Diagnostic, joined
from toy_bandits.solution import DIVERGES, UNSOLVED

WORLDS = tuple(f"partial_support/{number}" for number in range(7))
STARTS, SCALE = 8, 2.0
NOTHING = -30.0
"""Log-probabilities below count as no mass at all."""


def cases(objective: Objective) -> list[Case]:
    """One per world, of all starts."""
    found = []
    for world in map(worlds.get, WORLDS):
        reference = world.problem.log_reference
        generator = torch.Generator().manual_seed(0)
        drawn = SCALE * torch.randn((STARTS - 1, *reference.shape), generator=generator, dtype=torch.float64)
        start = torch.cat([reference.unsqueeze(0), drawn])
        columns = {"start": range(STARTS)}
        found.append(Case(world.id, world.problem.expand((STARTS,)), world.truth, start, columns=columns))
    return found


def table(answers: Sequence[Answer]) -> pd.DataFrame:
    """One row per (world, start); ``log_apart`` is the largest difference between the log-probs of one action
    from two starts that were solved."""
    frames = []
    for answer in answers:
        solved = torch.as_tensor(answer.status != UNSOLVED)[:, None, None]
        logs = answer.log_policy.clamp(min=NOTHING)
        highest, lowest = torch.where(solved, logs, -torch.inf).amax(0), torch.where(solved, logs, torch.inf).amin(0)
        frames.append(answer.rows(log_apart=(highest - lowest).amax()))
    return joined(frames)


def score(frame: pd.DataFrame) -> float:
    """Mean over worlds of the smallest over the largest mass that an action gets from any start, of the action where they differ most; 0 in
    a world without an answer.

    1: the same answer from every start, as with MaxPO (F6). 0: there is no minimiser, or the start decides everything. Between: it decides
    part of it, as with IPO (F5).
    """
    if not len(frame):
        return float("nan")
    agreement = np.where(frame["status"] == DIVERGES, 0.0, np.exp(-frame["log_apart"]))
    return float(frame.assign(agreement=agreement).groupby("world")["agreement"].min().mean())


DIAGNOSTIC = Diagnostic(
    id="uniqueness",
    label="one answer",
    title="Uniqueness of the answer",
    reading="there is an answer, and it does not depend on the start",
    worlds=WORLDS,
    facts=("F5", "F6"),
    cases=cases,
    table=table,
    score=score,
)

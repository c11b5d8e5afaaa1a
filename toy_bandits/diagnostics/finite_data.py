"""Few labels, each drawn once and therefore certain, in many data sets: four actions under Bradley-Terry, 5 to 1,280 labels.

The gap is the probability that the policy's choice within a pair, s(d), agrees with a label of its own data, less that with a new label.
Data that are memorised, the majority of its own labels chosen within every pair, have the largest gap that is worth
speaking of: it sets the scale.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from objectives import Objective
from toy_bandits import worlds
from toy_bandits.diagnostics.base import DATA_SET, Answer, Case, Diagnostic, joined
from toy_bandits.experiments.finite_data import overfit_gap
from toy_bandits.problem import Bandit

WORLDS = tuple(f"finite_labels/{number}" for number in range(7))


def memorised_gap(truth: Bandit, data: Bandit) -> Tensor:
    """(S,): the gap of who chooses the majority of the labels within every pair (either, where they are even)."""
    wins = data.label_weights
    chosen = 0.5 * (1.0 + torch.sign(wins - wins.transpose(-1, -2)))
    return ((wins - truth.label_weights) * chosen).sum((-3, -2, -1))


def cases(objective: Objective) -> list[Case]:
    """One per world, of all its data sets."""
    found = []
    for world in map(worlds.get, WORLDS):
        columns = {"labels": world.settings["labels"]["count"], DATA_SET: range(world.problem.batch_shape[0])}
        found.append(Case(world.id, world.problem, world.truth, columns=columns))
    return found


def table(answers: Sequence[Answer]) -> pd.DataFrame:
    """One row per (world, data set)."""
    return joined(
        answer.rows(
            gap=overfit_gap(answer.case.truth, answer.case.problem, answer.logits),
            memorised_gap=memorised_gap(answer.case.truth, answer.case.problem),
            efficiency=answer.efficiency,
        )
        for answer in answers
    )


def score(frame: pd.DataFrame) -> float:
    """1 - gap/gap of memorised data, each a mean over data sets summed over the numbers of labels; within [0, 1].

    1: labels seen fit no better than new ones. 0: the data are memorised, which DPO comes near to at usual strengths, most of its data
    sets of few labels having no finite minimiser (F2, C4).
    """
    if not len(frame):
        return float("nan")
    gap, memorised = frame.groupby("labels")[["gap", "memorised_gap"]].mean().sum()
    return float(np.clip(1.0 - gap / memorised, 0.0, 1.0))


DIAGNOSTIC = Diagnostic(
    id="finite_data",
    label="finite data",
    title="Finite-data overfitting",
    reading="few labels, each seen once, are not memorised",
    worlds=WORLDS,
    facts=("F2", "C4"),
    cases=cases,
    table=table,
    score=score,
)

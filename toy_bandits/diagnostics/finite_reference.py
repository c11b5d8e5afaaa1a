"""A penalty that sees the reference through 4 to 1,024 of its samples, many data sets: what is lost against the whole reference?

With N samples the regulariser is the cross entropy to their empirical distribution: an action that was never sampled has nothing that
holds it (F11). The question does not arise for an objective that takes no samples of the reference, as most do: no score.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from objectives import Objective
from toy_bandits import worlds
from toy_bandits.diagnostics.base import DATA_SET, Answer, Case, Diagnostic, joined
from toy_bandits.solution import UNSOLVED

WORLDS = tuple(f"finite_reference/{number}" for number in range(5))


def cases(objective: Objective) -> list[Case]:
    """The whole reference, then one per world, of all its data sets."""
    first = worlds.get(WORLDS[0])
    found = [Case("whole", first.truth, first.truth)]
    for world in map(worlds.get, WORLDS):
        samples = world.settings["reference_samples"]["count"]
        columns = {"samples": samples, DATA_SET: range(world.problem.batch_shape[0])}
        found.append(Case(world.id, world.problem, world.truth, columns=columns))
    return found


def table(answers: Sequence[Answer]) -> pd.DataFrame:
    """One row per (world, data set); ``apart`` is the total variation distance to the answer with the whole reference."""
    whole, *drawn = answers
    return joined(
        answer.rows(
            apart=0.5 * (answer.log_policy.exp() - whole.log_policy.exp()).abs().sum((-2, -1)),
            status=np.where(whole.status == UNSOLVED, UNSOLVED, answer.status),
        )
        for answer in drawn
    )


def score(frame: pd.DataFrame) -> float:
    """1 - the mean total variation distance between the answers with N samples and with the whole reference; mean over N.

    1: samples do as well as the reference. 0: the answers have nothing in common.
    """
    return float(1.0 - np.mean(frame.groupby("samples")["apart"].mean())) if len(frame) else float("nan")


DIAGNOSTIC = Diagnostic(
    id="finite_reference",
    label="reference data",
    title="Finite reference data",
    reading="few samples of the reference do as well as the reference",
    worlds=WORLDS,
    facts=("F11", "C9"),
    cases=cases,
    table=table,
    score=score,
    needs_samples=True,
)

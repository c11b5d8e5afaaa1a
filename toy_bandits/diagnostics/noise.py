"""Forty labels of five actions, of which none, one in ten, one in five or two in five are turned round; many data sets.

Noise shrinks the margins that labels ask for, from logit p to logit((1 - e)p + e(1 - p)) with DPO (F3), and with few labels some pairs are
seen wrong. What is left of the gain in true reward that the same objective makes of as many clean labels?
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from objectives import Objective
from toy_bandits import worlds
from toy_bandits.diagnostics.base import DATA_SET, Answer, Case, Diagnostic, joined

WORLDS = tuple(f"label_noise/{number}" for number in (5, 6, 7, 8))


def cases(objective: Objective) -> list[Case]:
    """One per world, of all its data sets; ``noise`` is the share of labels turned round."""
    found = []
    for world in map(worlds.get, WORLDS):
        columns = {"noise": world.settings["label_noise"], DATA_SET: range(world.problem.batch_shape[0])}
        found.append(Case(world.id, world.problem, world.truth, columns=columns))
    return found


def table(answers: Sequence[Answer]) -> pd.DataFrame:
    """One row per (world, data set); ``gain`` is the true reward's over the reference."""
    return joined(answer.rows(gain=answer.gain) for answer in answers)


def score(frame: pd.DataFrame) -> float:
    """Gain in true reward over the reference's, mean over data sets: with noise over without, mean over the levels of noise; within [0, 1].

    1: noise in the labels costs nothing. 0: with noise nothing is gained. An objective that knows the noise, robust_dpo, keeps most of it
    up to that noise; one that is far from the reference anyway keeps more of its gain than a cautious one.
    """
    gains = frame.groupby("noise")["gain"].mean()
    if 0.0 not in gains or len(gains) < 2:
        return float("nan")
    clean, noisy = gains[0.0], gains[gains.index > 0.0]
    return float(np.clip(noisy / clean, 0.0, 1.0).mean()) if clean > 0 else 0.0


DIAGNOSTIC = Diagnostic(
    id="noise",
    label="label noise",
    title="Noise robustness",
    reading="labels turned round do not lead the policy astray",
    worlds=WORLDS,
    facts=("F3",),
    cases=cases,
    table=table,
    score=score,
)

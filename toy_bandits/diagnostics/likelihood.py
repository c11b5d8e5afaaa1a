"""How likely are the chosen responses after training, compared with before? Four actions with noisy and with certain labels, eight under
Bradley-Terry, and the best of five against some of the others.

Only the difference within a pair enters most pair losses, so both of its responses may become less likely.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from objectives import Objective
from toy_bandits.diagnostics.base import Answer, Case, Diagnostic, joined, whole_worlds

WORLDS = ("determinism/1", "determinism/6", "bradley_terry/1", "bradley_terry/4", "partial_support/4")


def _rows(answer: Answer) -> pd.DataFrame:
    truth = answer.case.truth
    chosen = truth.label_weights.sum(-1)
    ratio = (answer.log_policy - truth.log_reference).exp()
    return answer.rows(
        log_ratio=torch.where(chosen > 0, chosen * (answer.log_policy - truth.log_reference), 0.0).sum((-2, -1)),
        kept=(chosen * ratio.clamp(max=1.0)).sum((-2, -1)),
    )


def cases(objective: Objective) -> list[Case]:
    """One per world."""
    return whole_worlds(WORLDS)


def table(answers: Sequence[Answer]) -> pd.DataFrame:
    """One row per world; ``log_ratio`` is the mean over labels of log pi(w)/pi_ref(w), ``kept`` that of min(1, pi(w)/pi_ref(w))."""
    return joined(map(_rows, answers))


def score(frame: pd.DataFrame) -> float:
    """Mean over labels of min(1, pi(chosen)/pi_ref(chosen)), and over worlds.

    1: no chosen response is less likely than before. 0: all of them are given up. Between: the share of its likelihood that a chosen
    response keeps; a policy on one action alone keeps only that one's labels.
    """
    return float(np.mean(frame["kept"])) if len(frame) else float("nan")


DIAGNOSTIC = Diagnostic(
    id="likelihood",
    label="chosen likelihood",
    title="Fall of the chosen response's likelihood",
    reading="chosen responses do not become less likely",
    worlds=WORLDS,
    facts=("F2", "F6"),
    cases=cases,
    table=table,
    score=score,
)

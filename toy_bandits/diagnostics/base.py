"""What a diagnostic is: a probe that makes a tidy table, and a score that reads nothing but that table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from inspect import getdoc, getmodule
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import bootstrap
from torch import Tensor

from objectives import Objective, ObjectiveError
from toy_bandits import metrics
from toy_bandits.errors import BanditError
from toy_bandits.expectations import SUPPLIERS
from toy_bandits.optimum import regret_to_bound
from toy_bandits.policies import Policy
from toy_bandits.problem import MINIMAL_NDIM, Bandit
from toy_bandits.solution import UNSOLVED
from toy_bandits.solver import solve

DATA_SET = "data_set"
"""The column that numbers independent data sets, where a probe draws any; its score then has an interval."""
MOST_UNSOLVED = 0.1
"""The share of a probe's problems that may be unsolved; the score is of the others. With more there is no score."""
RESAMPLES = 299
CONFIDENCE = 0.95
NONE_TO_GAIN = 1e-9


@dataclass(frozen=True)
class Diagnostic:
    """One failure that an objective can have, and how much of it an objective has.

    Attributes:
        id: stable; names the record's folder.
        label: for the radar, a few words.
        title: in full.
        reading: what a high score says, in one sentence.
        worlds: ids of those that the probe solves.
        facts: of the theory (F1, ...) or the claims (C1, ...) that it rests on.
        probe: solves the objective in the diagnostic's worlds; one row per problem, with a column ``status``.
        score: from the rows of such a table that were solved, a number in [0, 1], or NaN where they do not tell.
        needs_strength: the probe sweeps the objective's strength.
        needs_samples: it asks what samples of the reference do, so it applies only to objectives that take some.
    """

    id: str
    label: str
    title: str
    reading: str
    worlds: tuple[str, ...]
    facts: tuple[str, ...]
    probe: Callable[[Objective], pd.DataFrame]
    score: Callable[[pd.DataFrame], float]
    needs_strength: bool = False
    needs_samples: bool = False

    @property
    def why(self) -> str:
        """What is measured and why so: the docstring of the module."""
        return (getattr(getmodule(self.probe), "__doc__", None) or "").strip()

    @property
    def formula(self) -> str:
        """What the score is: the docstring of `score`."""
        return getdoc(self.score) or ""


@dataclass(frozen=True)
class Score:
    """What a table says.

    Attributes:
        value: in [0, 1], or NaN, and then ``reason`` says why.
        low, high: a 95 % interval over data sets; NaN where the probe draws none, since its rows are exact.
        problems, unsolved: how many problems the probe had, and how many of them ended "unsolved" and were left out.
        reason: why there is no score, or empty.
        applies: false where the question does not arise for the objective, so that nothing is missing.
    """

    value: float
    low: float = float("nan")
    high: float = float("nan")
    problems: int = 0
    unsolved: int = 0
    reason: str = ""
    applies: bool = True


def no_score(reason: str, *, applies: bool = True) -> Score:
    """None, never 0, and why; ``applies`` as in `Score`."""
    return Score(float("nan"), reason=reason, applies=applies)


def score(diagnostic: Diagnostic, frame: pd.DataFrame, *, interval: bool = True) -> Score:
    """The diagnostic's score of a table, with its interval if wanted (it takes longer); a pure function of the table."""
    unsolved = frame["status"] == UNSOLVED
    outcome = replace(no_score(""), problems=len(frame), unsolved=int(unsolved.sum()))
    if unsolved.mean() > MOST_UNSOLVED:
        return replace(outcome, reason=f"{outcome.unsolved} of {outcome.problems} problems unsolved")
    solved = frame[~unsolved]
    value = diagnostic.score(solved)
    if np.isnan(value):
        return replace(outcome, reason="the table does not tell")
    low, high = _interval(diagnostic, solved) if interval else (float("nan"), float("nan"))
    return replace(outcome, value=value, low=low, high=high)


def _interval(diagnostic: Diagnostic, frame: pd.DataFrame) -> tuple[float, float]:
    """Percentile bootstrap over data sets, which are drawn anew together in all worlds of the probe."""
    if DATA_SET not in frame:
        return float("nan"), float("nan")
    rows = [np.flatnonzero(frame[DATA_SET] == one) for one in np.unique(frame[DATA_SET])]

    def resampled(chosen: np.ndarray) -> float:
        return diagnostic.score(frame.iloc[np.concatenate([rows[i] for i in chosen])])

    if len(rows) < 2:
        return float("nan"), float("nan")
    answer = bootstrap(
        (np.arange(len(rows)),),
        resampled,
        n_resamples=RESAMPLES,
        vectorized=False,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(answer.confidence_interval.low), float(answer.confidence_interval.high)


def refusal(diagnostic: Diagnostic, objective: Objective) -> str:
    """Why the objective cannot be probed; empty where it can."""
    missing = [term.source for term in objective.terms if term.source not in SUPPLIERS]
    if missing:
        return f"needs {' and '.join(dict.fromkeys(missing))}, which a bandit does not have"
    if diagnostic.needs_strength and objective.strength is None:
        return "has no hyper-parameter that is its strength"
    if diagnostic.needs_samples and "reference_samples" not in {term.source for term in objective.terms}:
        return "takes no reference samples"
    return ""


def measure(
    diagnostic: Diagnostic, objective: Objective, *, interval: bool = True
) -> tuple[pd.DataFrame | None, Score]:
    """Probe and score; no table, and a score that is NaN with its reason, where the objective needs what a bandit cannot give.

    Raises:
        BanditError, ObjectiveError: a loss breaks its contract; the message names world, objective and cell.
    """
    reason = refusal(diagnostic, objective)
    if reason:
        return None, no_score(reason, applies=False)
    try:
        frame = diagnostic.probe(objective)
    except ObjectiveError as error:
        if "references" not in objective.needs:
            raise
        return None, no_score(str(error), applies=False)  # an objective of several references in a world of one
    return frame, score(diagnostic, frame, interval=interval)


@dataclass(frozen=True)
class Case:
    """A world to solve: what the objective sees, and what its policy is judged by.

    ``problem`` may have one leading dimension, of data sets or of starts; ``start`` are logits of its shape, ``columns`` broadcast with
    that dimension, and ``truth`` with the problem. ``policy``: another than the tabular one; such a case is solved by itself.
    """

    world: str
    problem: Bandit
    truth: Bandit
    start: Tensor | None = None
    policy: Policy | None = None
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """The solution of a case; log_policy and logits (B, X, A), status (B,)."""

    case: Case
    log_policy: Tensor
    logits: Tensor
    status: np.ndarray

    def rows(self, **columns: Any) -> pd.DataFrame:
        """One row per problem: world, the case's columns, these columns (B,), status, and the KLs."""
        truth = self.case.truth
        values = {
            "world": self.case.world,
            **self.case.columns,
            "status": self.status,
            "kl_policy_reference": metrics.kl_policy_reference(truth, self.log_policy),
            "kl_reference_policy": metrics.kl_reference_policy(truth, self.log_policy),
            **columns,
        }
        return pd.DataFrame({name: np.broadcast_to(np.asarray(of), len(self.status)) for name, of in values.items()})

    @property
    def gain(self) -> Tensor:
        """(B,): expected true reward over the reference's."""
        truth = self.case.truth
        return metrics.expected_reward(truth, self.log_policy) - metrics.expected_reward(truth, truth.log_reference)

    @property
    def efficiency(self) -> Tensor:
        """(B,): gain in true reward over the reference's, as a share of the greatest gain that any policy of the same KL has.

        The greatest is the RLHF optimum's (F1). 1 where the policy is the reference: nothing is lost.

        Raises:
            BanditError: a policy gains more than that, which none can.
        """
        truth = self.case.truth.expand(self.log_policy.shape[:-2])
        before = metrics.expected_reward(truth, truth.log_reference)
        bound, missing = regret_to_bound(truth, self.log_policy, f"world {self.case.world}")
        possible = bound - before
        return torch.where(possible > NONE_TO_GAIN, 1.0 - missing / possible.clamp(min=NONE_TO_GAIN), 1.0)


def answers(objective: Objective, cases: Sequence[Case]) -> Iterator[Answer]:
    """Solve the cases, those of equal shape in one batch, in their order.

    Raises:
        BanditError, ObjectiveError: as `solve` does; the message names the world.
    """
    found: dict[int, Answer] = {}
    groups = [(tuple(case.problem.reference.shape[-2:]), id(case.policy or 0)) for case in cases]
    for group in dict.fromkeys(groups):
        members = [index for index, of in enumerate(groups) if of == group]
        policy = cases[members[0]].policy
        problems = [_alone(_given(objective, cases[index].problem)) for index in members]
        # A policy with parameters starts at the reference, or as near to it as it can.
        starts = [None if policy else _start(cases[i], problem) for i, problem in zip(members, problems, strict=True)]
        try:
            start = torch.cat([each for each in starts if each is not None]) if policy is None else None
            solution = solve(_joined(problems), objective, start, policy=policy)
        except (BanditError, ObjectiveError):
            for problem, start in zip(problems, starts, strict=True):  # one by one, so that the message names the world
                solve(problem, objective, start, policy=policy)
            raise
        end = 0
        for index, problem in zip(members, problems, strict=True):
            mine = slice(end, end := end + problem.reference.shape[0])
            found[index] = Answer(cases[index], solution.log_policy[mine], solution.logits[mine], solution.status[mine])
    return (found[index] for index in range(len(cases)))


def _given(objective: Objective, problem: Bandit) -> Bandit:
    """The problem without its rewards where the objective is content with labels: all objectives are to see the same data."""
    if "rewards" not in objective.needs or "rewards" in objective.needs_on_pairs or problem.rewards is None:
        return problem
    given = {name: getattr(problem, name) for name in MINIMAL_NDIM if name != "rewards"}
    return Bandit(**given, name=problem.name)


def _alone(problem: Bandit) -> Bandit:
    """With exactly one leading dimension."""
    return problem if problem.batch_shape else problem.expand((1,))


def _start(case: Case, problem: Bandit) -> Tensor:
    start = problem.log_reference if case.start is None else case.start
    return start.expand(problem.reference.shape)


def _joined(problems: Sequence[Bandit]) -> Bandit:
    """All problems along one leading dimension; several references and lengths only where all have them."""
    if len(problems) == 1:
        return problems[0]
    tensors = {name: [getattr(problem, name) for problem in problems] for name in MINIMAL_NDIM}
    joined: dict[str, Any] = {name: torch.cat(of) for name, of in tensors.items() if all(one is not None for one in of)}
    return Bandit(**joined)

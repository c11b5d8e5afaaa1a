"""What a diagnostic is: a probe that makes a tidy table, and a score that reads nothing but that table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from inspect import getdoc, getmodule
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import bootstrap
from torch import Tensor

from objectives import Objective, ObjectiveError
from objectives.terms import on_pairs
from toy_bandits import metrics, worlds
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
        cases: what the probe solves for an objective.
        table: of the cases' answers, in their order: one row per problem, with a column ``status``.
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
    cases: Callable[[Objective], list[Case]]
    table: Callable[[Sequence[Answer]], pd.DataFrame]
    score: Callable[[pd.DataFrame], float]
    needs_strength: bool = False
    needs_samples: bool = False

    @property
    def why(self) -> str:
        """What is measured and why so: the docstring of the module."""
        return (getattr(getmodule(self.score), "__doc__", None) or "").strip()

    @property
    def formula(self) -> str:
        """What the score is: the docstring of `score`."""
        return getdoc(self.score) or ""

    def parts(self, objective: Objective, strengths: Sequence[float] | None = None) -> list[Part]:
        """What makes the tables at several strengths of the objective; of None at its own, a single one."""
        cases = self.cases(objective)
        if strengths is None or self.needs_strength:
            return [(cases, self.table)]
        return [([case.at(strength) for case in cases], self.table) for strength in strengths]


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
    (found,) = measure_at([diagnostic], objective, None, interval=interval)
    return found[0]


def measure_at(
    chosen: Sequence[Diagnostic], objective: Objective, strengths: Sequence[float] | None, *, interval: bool = True
) -> list[list[tuple[pd.DataFrame | None, Score]]]:
    """`measure`, of several diagnostics and at several strengths of the objective (None: its own), all solved together.

    Of each diagnostic one outcome per strength; of one that sweeps the strength by itself, or does not apply, one in all.

    Raises:
        BanditError, ObjectiveError: as `measure` does.
    """
    reasons = [refusal(diagnostic, objective) for diagnostic in chosen]
    parts = [
        [] if reason else diagnostic.parts(objective, strengths)
        for diagnostic, reason in zip(chosen, reasons, strict=True)
    ]
    try:
        frames = iter(solved_together(objective, [part for of in parts for part in of]))
    except ObjectiveError as error:
        if "references" not in objective.needs or len(chosen) > 1:
            raise
        return [[(None, no_score(str(error), applies=False))]]  # several references in a world of one
    found: list[list[tuple[pd.DataFrame | None, Score]]] = []
    for diagnostic, reason, of in zip(chosen, reasons, parts, strict=True):
        own: list[tuple[pd.DataFrame | None, Score]] = [
            (frame, score(diagnostic, frame, interval=interval)) for frame in islice(frames, len(of))
        ]
        found.append([(None, no_score(reason, applies=False))] if reason else own)
    return found


@dataclass(frozen=True)
class Case:
    """A world to solve: what the objective sees, and what its policy is judged by.

    ``problem`` may have one leading dimension, of data sets or of starts; ``start`` are logits of its shape, ``columns`` broadcast with
    that dimension, and ``truth`` with the problem. ``policy``: another than the tabular one; only cases of the same one are solved
    together. ``strength``: of the objective, one for all or one per problem; None: its own.
    """

    world: str
    problem: Bandit
    truth: Bandit
    start: Tensor | None = None
    policy: Policy | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    strength: float | Sequence[float] | None = None

    def at(self, strength: float) -> Case:
        """The same at a strength of the objective."""
        return replace(self, strength=strength)


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


Part = tuple[list[Case], Callable[[Sequence[Answer]], pd.DataFrame]]
"""Cases, and what makes the table of their answers."""


def whole_worlds(ids: Sequence[str]) -> list[Case]:
    """Worlds as they are, a case each."""
    return [Case(world.id, world.problem, world.truth) for world in map(worlds.get, ids)]


def joined(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """The rows of all."""
    return pd.concat(frames, ignore_index=True)


def solved_together(objective: Objective, parts: Sequence[Part]) -> list[pd.DataFrame]:
    """The tables of all parts, whose cases are solved in one go.

    Raises:
        BanditError, ObjectiveError: as `solve` does; the message names the world.
    """
    found = answers(objective, [case for cases, _ in parts for case in cases])
    return [table(list(islice(found, len(cases)))) for cases, table in parts]


def answers(objective: Objective, cases: Sequence[Case]) -> Iterator[Answer]:
    """Solve the cases, those of equal shape in one batch, in their order.

    Raises:
        BanditError, ObjectiveError: as `solve` does; the message names the world.
    """
    found: dict[int, Answer] = {}
    groups = [(tuple(case.problem.reference.shape[-2:]), id(case.policy or 0), case.strength is None) for case in cases]
    for group in dict.fromkeys(groups):
        members = [index for index, of in enumerate(groups) if of == group]
        problems = [_Problems.of(objective, cases[index]) for index in members]
        try:
            solved = _Problems.joined(problems).solved()
        except (BanditError, ObjectiveError):
            for problem in problems:  # one by one, so that the message names the world
                problem.solved()
            raise
        end = 0
        for index, problem in zip(members, problems, strict=True):
            mine = slice(end, end := end + problem.count)
            found[index] = Answer(cases[index], solved[0][mine], solved[1][mine], solved[2][mine])
    return (found[index] for index in range(len(cases)))


@dataclass(frozen=True)
class _Problems:
    """Problems along one leading dimension, with what else their answers depend on."""

    objective: Objective
    problem: Bandit
    policy: Policy | None
    start: Tensor | None
    strength: Tensor | None

    @staticmethod
    def of(objective: Objective, case: Case) -> _Problems:
        """Those of a case."""
        problem = case.problem
        if _labels_suffice(objective):
            objective, problem = on_pairs(objective), _without_rewards(problem)
        problem = problem if problem.batch_shape else problem.expand((1,))
        start, strength = None, None
        if case.policy is None:  # one with parameters starts at the reference, or as near to it as it can
            start = (problem.log_reference if case.start is None else case.start).expand(problem.reference.shape)
        if case.strength is not None:
            strength = torch.as_tensor(case.strength, dtype=torch.float64).expand(problem.batch_shape)
        return _Problems(objective, problem, case.policy, start, strength)

    @staticmethod
    def joined(parts: Sequence[_Problems]) -> _Problems:
        """All of them; several references and lengths only where all have them."""
        if len(parts) == 1:
            return parts[0]
        tensors = {name: [getattr(part.problem, name) for part in parts] for name in MINIMAL_NDIM}
        given: dict[str, Any] = {
            name: torch.cat(of) for name, of in tensors.items() if all(one is not None for one in of)
        }
        start, strength = ([getattr(part, name) for part in parts] for name in ("start", "strength"))
        return replace(
            parts[0],
            problem=Bandit(**given),
            start=None if start[0] is None else torch.cat(start),
            strength=None if strength[0] is None else torch.cat(strength),
        )

    @property
    def count(self) -> int:
        """How many."""
        return len(self.problem.reference)

    def solved(self) -> tuple[Tensor, Tensor, np.ndarray]:
        """log_policy and logits (B, X, A), status (B,)."""
        objective = self.objective if self.strength is None else self.objective.with_strength(self.strength)
        solution = solve(self.problem, objective, self.start, policy=self.policy)
        return solution.log_policy, solution.logits, solution.status


def _labels_suffice(objective: Objective) -> bool:
    """Whether an objective that can be told rewards is content with labels; all objectives are to see the same data."""
    return "rewards" in objective.needs and "rewards" not in objective.needs_on_pairs


def _without_rewards(problem: Bandit) -> Bandit:
    given = {name: getattr(problem, name) for name in MINIMAL_NDIM if name != "rewards"}
    return Bandit(**given, name=problem.name)

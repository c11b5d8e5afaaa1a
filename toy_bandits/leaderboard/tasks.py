"""The unit of work: one objective at one strength over some diagnostics, one record each, so that work can be stopped and continued."""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import objectives
from analysis.records import is_complete, read_run, write_run
from objectives import Objective, ObjectiveError
from toy_bandits import diagnostics
from toy_bandits.diagnostics import DIAGNOSTICS
from toy_bandits.diagnostics.base import no_score
from toy_bandits.errors import BanditError
from toy_bandits.expectations import SUPPLIERS
from toy_bandits.leaderboard import selecting
from toy_bandits.leaderboard.selecting import RULE
from toy_bandits.profile.measuring import identity, slug
from toy_bandits.solution import UNSOLVED

SELECTION = "selection"
"""Stands for a diagnostic in the rows that the strength is chosen by."""
COLUMNS = ("name", "strength", "diagnostic", "score", "problems", "unsolved", "reason", "applies")


@dataclass(frozen=True)
class Task:
    """One objective at one strength.

    Attributes:
        name: as asked for, a label that `objectives.parse` reads.
        strength: the value of the hyper-parameter that is its strength; None: as the label has it.
        diagnostics: ids.
        candidates: strengths among which the best is to be chosen.
    """

    name: str
    strength: float | None
    diagnostics: tuple[str, ...]
    candidates: tuple[float, ...] = ()

    @property
    def objective(self) -> Objective:
        """The objective at the strength."""
        objective = objectives.parse(self.name)
        return objective if self.strength is None else objective.with_strength(self.strength)

    @property
    def config(self) -> dict[str, Any]:
        """What the scores depend on, the code included."""
        about = {"scores": self.name, "diagnostics": self.diagnostics, "candidates": self.candidates}
        return {**about, "rule": RULE, **identity(self.objective)}

    def folder(self, out: Path) -> Path:
        """Where its record lies."""
        return out / "scores" / slug(self.name) / ("as-named" if self.strength is None else f"{self.strength:.6g}")

    def done(self, out: Path) -> bool:
        """Whether its record is there, whole, and of this code."""
        return is_complete(self.folder(out), self.config)

    def make(self, out: Path) -> None:
        """Measure and record. An objective that breaks in a diagnostic has no score there, and the reason."""
        began = time.process_time()
        write_run(
            self.folder(out),
            kind="bandit",
            id=f"bandit/scores/{self.objective.label}",
            config=self.config,
            seeds={"data": 0},
            tables={"results": pd.DataFrame(self._rows(), columns=list(COLUMNS))},
            extra={"cpu_seconds": time.process_time() - began},
        )

    def _rows(self) -> Iterator[tuple[Any, ...]]:
        strength = math.nan if self.strength is None else self.strength
        for name in self.diagnostics:
            try:
                _, score = diagnostics.measure(DIAGNOSTICS[name], self.objective, interval=False)
            except (BanditError, ObjectiveError) as error:
                score = no_score(str(error))
            yield self.name, strength, name, score.value, score.problems, score.unsolved, score.reason, score.applies
        if self.candidates:
            yield from self._candidate_rows()

    def _candidate_rows(self) -> Iterator[tuple[Any, ...]]:
        """Of each candidate what it is chosen by, as "diagnostic" `SELECTION`."""
        try:
            missing = [term.source for term in self.objective.terms if term.source not in SUPPLIERS]
            if missing:
                raise BanditError(f"needs {' and '.join(missing)}, which a bandit does not have")
            frame = selecting.probe(self.objective, self.candidates)
        except (BanditError, ObjectiveError) as error:
            for strength in self.candidates:
                yield self.name, strength, SELECTION, math.nan, 0, 0, str(error), True
            return
        for strength in self.candidates:
            rows = frame[frame["strength"] == strength]
            unsolved = int((rows["status"] == UNSOLVED).sum())
            yield self.name, strength, SELECTION, float(rows["share"].mean()), len(rows), unsolved, "", True


def tasks_of(name: str, strengths: Sequence[float], only: Sequence[str]) -> list[Task]:
    """The tasks of one objective: what depends on the strength at each of them; what sweeps it by itself, and the choice, once.

    Args:
        name: a label.
        strengths: values; none where the objective has no strength.
        only: ids of diagnostics.
    """
    if not strengths:
        return [Task(name, None, tuple(only))]
    sweeping = tuple(one for one in only if DIAGNOSTICS[one].needs_strength)
    others = tuple(one for one in only if one not in sweeping)
    once = Task(name, None, sweeping, tuple(strengths))
    return [once, *(Task(name, strength, others) for strength in strengths if others)]


def run(
    tasks: Sequence[Task],
    out: Path,
    *,
    workers: int,
    again: bool = False,
    step: Callable[[Task], object] = lambda _: None,
) -> None:
    """Make the records that are missing, in ``workers`` processes of one thread each; ``step`` is called as each is there.

    Raises:
        RecordError: a record cannot be written.
    """
    missing = []
    for task in tasks:
        if not again and task.done(out):
            step(task)
        else:
            missing.append(task)
    if workers == 1 or len(missing) < 2:
        for task in missing:
            task.make(out)
            step(task)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        pending = {pool.submit(task.make, out): task for task in missing}
        try:
            for future in as_completed(pending):
                future.result()
                step(pending[future])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def read(tasks: Sequence[Task], out: Path) -> pd.DataFrame:
    """The rows of all tasks, with `COLUMNS`. Raises RecordError where a record is missing or damaged."""
    return pd.concat([read_run(task.folder(out)).table("results") for task in tasks], ignore_index=True)

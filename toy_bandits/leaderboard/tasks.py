"""The unit of work: one objective over all diagnostics, one record each, so that work can be stopped and continued."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

import objectives
from analysis.records import is_complete, read_run, write_run
from objectives import ObjectiveError
from toy_bandits import diagnostics
from toy_bandits.diagnostics import DIAGNOSTICS, Diagnostic, Score
from toy_bandits.diagnostics.base import no_score
from toy_bandits.errors import BanditError
from toy_bandits.expectations import SUPPLIERS
from toy_bandits.leaderboard import selecting
from toy_bandits.leaderboard.selecting import RULE
from toy_bandits.pool import pool
from toy_bandits.profile.measuring import identity, slug
from toy_bandits.solution import UNSOLVED

SELECTION = "selection"
"""Stands for a diagnostic in the rows that the strength is chosen by."""
BREAKS = (BanditError, ObjectiveError)
"""What an objective may do to one diagnostic without an end to the others."""
COLUMNS = ("name", "strength", "diagnostic", "score", "problems", "unsolved", "reason", "applies")


@dataclass(frozen=True)
class Task:
    """One objective at all its strengths over some diagnostics, solved together.

    Attributes:
        name: as asked for, a label that `objectives.parse` reads.
        diagnostics: ids.
        strengths: values of the hyper-parameter that is its strength; none: as the label has it.
    """

    name: str
    diagnostics: tuple[str, ...]
    strengths: tuple[float, ...] = ()

    @property
    def config(self) -> dict[str, Any]:
        """What the scores depend on, the code included."""
        about = {"scores": self.name, "diagnostics": self.diagnostics, "strengths": self.strengths}
        return {**about, "rule": RULE, **identity(objectives.parse(self.name))}

    def folder(self, out: Path) -> Path:
        """Where its record lies."""
        return out / "scores" / slug(self.name)

    def done(self, out: Path) -> bool:
        """Whether its record is there, whole, and of this code."""
        return is_complete(self.folder(out), self.config)

    def make(self, out: Path) -> None:
        """Measure and record. An objective that breaks in a diagnostic has no score there, and the reason."""
        began = time.process_time()
        write_run(
            self.folder(out),
            kind="bandit",
            id=f"bandit/scores/{self.name}",
            config=self.config,
            seeds={"data": 0},
            tables={"results": self.results()},
            extra={"cpu_seconds": time.process_time() - began},
        )

    def results(self) -> pd.DataFrame:
        """The rows of the record, with `COLUMNS`."""
        return pd.DataFrame([*self._scores(), *self._choices()], columns=list(COLUMNS))

    def _scores(self) -> Iterator[tuple[Any, ...]]:
        chosen = [DIAGNOSTICS[name] for name in self.diagnostics]
        for diagnostic, scores in zip(chosen, self._measured(chosen), strict=True):
            at = self.strengths if len(scores) == len(self.strengths) else (math.nan,)
            for strength, score in zip(at, scores, strict=True):
                yield (
                    *(self.name, strength, diagnostic.id, score.value),
                    *(score.problems, score.unsolved, score.reason, score.applies),
                )

    def _measured(self, chosen: Sequence[Diagnostic]) -> list[list[Score]]:
        """Of each diagnostic its scores, one per strength or one for all; if together they break, each by itself."""
        objective = objectives.parse(self.name)
        try:
            found = diagnostics.measure_at(chosen, objective, self.strengths or None, interval=False)
        except BREAKS as error:
            if len(chosen) > 1:
                return [scores for diagnostic in chosen for scores in self._measured([diagnostic])]
            return [[no_score(str(error))]]
        return [[score for _, score in of] for of in found]

    def _choices(self) -> Iterator[tuple[Any, ...]]:
        """Of each strength what it is chosen by, as "diagnostic" `SELECTION`."""
        if not self.strengths:
            return
        objective = objectives.parse(self.name)
        try:
            missing = [term.source for term in objective.terms if term.source not in SUPPLIERS]
            if missing:
                raise BanditError(f"needs {' and '.join(missing)}, which a bandit does not have")
            frame = selecting.probe(objective, self.strengths)
        except BREAKS as error:
            for strength in self.strengths:
                yield self.name, strength, SELECTION, math.nan, 0, 0, str(error), True
            return
        for strength in self.strengths:
            rows = frame[frame["strength"] == strength]
            unsolved = int((rows["status"] == UNSOLVED).sum())
            yield self.name, strength, SELECTION, float(rows["share"].mean()), len(rows), unsolved, "", True


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
    with pool(workers) as processes:
        pending = {processes.submit(task.make, out): task for task in missing}
        try:
            for future in as_completed(pending):
                future.result()
                step(pending[future])
        except BaseException:
            processes.shutdown(wait=False, cancel_futures=True)
            raise


def read(tasks: Sequence[Task], out: Path) -> pd.DataFrame:
    """The rows of all tasks, with `COLUMNS`. Raises RecordError where a record is missing or damaged."""
    return pd.concat([read_run(task.folder(out)).table("results") for task in tasks], ignore_index=True)

"""Which tasks one job does: chains of stages together, and runs in small groups, so that starting a process costs little."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby

from llm_runs.sweeps.states import Task

_WAVES = 4  # jobs for each that runs at a time: enough to even out, few enough to make starting cheap
_MOST = 50  # runs in one job


@dataclass(frozen=True)
class Batch:
    """Tasks of one job in their order, and the task of another job that must be done before."""

    tasks: tuple[str, ...]
    after: str | None

    def __len__(self) -> int:
        return len(self.tasks)


def runs_per_job(asked: int | None, runs: int, jobs: int) -> int:
    """How many runs one local job does, where the sweep does not say."""
    return asked or max(1, min(_MOST, -(-runs // (_WAVES * jobs))))


def batches(tasks: Sequence[Task], done: Collection[str], size: int) -> list[Batch]:
    """Jobs for the tasks that are not done, prerequisites first; `size` runs in each.

    A stage that is the only one to follow another is done in the same job.
    """
    followers = Counter(task.after for task in tasks if task.stage is not None)
    found: list[list[str]] = []
    after: dict[str, str | None] = {}  # by the first task of a job
    end: dict[str, list[str]] = {}  # by the last
    for task in tasks:
        if task.stage is None or task.id in done:
            continue
        chain = end.pop(task.after) if task.after in end and followers[task.after] == 1 else None
        if chain is None:
            found.append(chain := [])
            after[task.id] = task.after
        chain.append(task.id)
        end[task.id] = chain
    runs = [task for task in tasks if task.stage is None and task.id not in done]
    for before, group in groupby(sorted(runs, key=lambda task: str(task.after)), key=lambda task: task.after):
        waiting = list(group)
        for first in range(0, len(waiting), size):
            found.append([task.id for task in waiting[first : first + size]])
            after[waiting[first].id] = before
    return [Batch(tuple(chain), None if after[chain[0]] in done else after[chain[0]]) for chain in found]

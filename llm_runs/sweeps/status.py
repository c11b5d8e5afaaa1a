"""What a sweep has done, is doing, waits for, and what failed and why: `python -m llm_runs sweep-status DIR`. Reads small files only."""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from analysis.records.locks import locked
from llm_runs.account import duration
from llm_runs.sweeps import queue
from llm_runs.sweeps.states import Folder, State, Task, alive

KINDS = ("done", "running", "waiting", "stopped", "failed")


@dataclass(frozen=True)
class Line:
    """One task, in the words that the status has for it."""

    task: Task
    kind: str  # one of KINDS
    said: str
    seconds: float = 0.0


def lines(out: Path) -> list[Line]:
    """Every task of the sweep in `out`, in the order of the plan. Raises InputError where there is no sweep."""
    folder = Folder(out)
    plan = folder.plan()
    queued = queue.queued(folder)
    found: dict[str, Line] = {}
    for task in plan["tasks"].values():
        found[task.id] = _line(folder, task, found, queued.get(task.id), locks=plan["locks"])
    return list(found.values())


def report(out: Path, *, everything: bool = False) -> str:
    """The status as text: counts, then what runs and what failed and why; `everything`: a line for every task."""
    found = lines(out)
    counts = Counter(line.kind for line in found)
    runs = [line for line in found if line.task.stage is None]
    done = [line.seconds for line in runs if line.kind == "done"]
    text = [", ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind]) + f" of {len(found)} tasks"]
    text.append(f"{len(done)} of {len(runs)} runs done" + (f", {duration(sum(done) / len(done))} each" if done else ""))
    for kind in KINDS if everything else ("running", "stopped", "failed"):
        shown = [line for line in found if line.kind == kind]
        text += ["", kind] if shown else []
        text += [f"  {line.task.id}{': ' + line.said if line.said else ''}" for line in shown]
    reasons = Counter(re.sub(r"job \S+ ", "", line.said) for line in found if line.kind == "waiting")
    if reasons and not everything:
        text += ["", "waiting", *(f"  {count} {reason}" for reason, count in reasons.most_common())]
    if counts["stopped"] or counts["failed"]:
        text += ["", "The same sweep command goes on with what stopped, and tries again what failed."]
    return "\n".join(text)


def _line(folder: Folder, task: Task, earlier: dict[str, Line], job: str | None, *, locks: bool) -> Line:
    state, log = folder.state(task.id), folder.log(task.id)
    if folder.done(task):
        assert state is not None
        return Line(task, "done", state.said, state.seconds)
    if state is not None and state.key == task.key and state.state != "done":
        if state.state == "running" and _runs(folder, task, state, locks=locks):
            where = f"process {state.pid} on {state.host}" + (f", job {state.job}" if state.job else "")
            return Line(task, "running", f"for {duration(time.time() - state.began)}, {where} (log: {log})")
        if state.state == "failed" and (job is None or "running" in job):
            return Line(task, "failed", f"{state.said} (log: {log})")
        if job is None:
            return Line(task, "stopped", f"its process ended before it was done (log: {log})")
    if job is not None:
        return Line(task, "waiting", f"in the queue: {job}")
    before = earlier.get(task.after or "")
    if before is not None and before.kind != "done":
        return Line(task, "waiting", f"for {before.task.id}, which is {before.kind}")
    return Line(task, "waiting", "for a free job")


def _runs(folder: Folder, task: Task, state: State, *, locks: bool) -> bool:
    """Whether a task that is noted as running is really being done: its lock is held, or its process is there."""
    if not locks:
        return alive(state)
    if not folder.lock(task.id).is_file():
        return False
    with locked(folder.lock(task.id), wait=False) as free:
        return not free

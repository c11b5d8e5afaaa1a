"""Jobs on this machine, a bounded number at a time."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import submitit
import torch

from llm_runs.account import duration
from llm_runs.errors import InputError
from llm_runs.sweeps.batches import Batch, batches, runs_per_job
from llm_runs.sweeps.spec import SweepConfig
from llm_runs.sweeps.states import Folder, State, Task, only_command
from llm_runs.sweeps.work import Job, output_in

_POLL = 0.1  # seconds between looks at the jobs
_FOREVER = 60 * 24 * 365  # minutes; a local job has no limit


def carry_out(sweep: SweepConfig, out: Path, tasks: list[Task], say: Callable[[str], None], *, locks: bool) -> None:
    """Do all tasks that are not done; returns when nothing is left that can be done.

    Raises InputError: some tasks failed (which ones is said), another command is at work in the folder, or locks do not work.
    """
    folder = Folder(out)
    with only_command(folder, sweep.name, tasks, locks=locks):
        _Local(sweep, folder, tasks, say).run()


class _Local:
    def __init__(self, sweep: SweepConfig, folder: Folder, tasks: list[Task], say: Callable[[str], None]) -> None:
        self.folder, self.say = folder, say
        self.tasks = {task.id: task for task in tasks}
        self.done = {task.id for task in tasks if folder.done(task)}
        self.failed: set[str] = set()
        gpus = torch.cuda.device_count()
        self.slots = sweep.jobs or max(1, gpus)
        self.devices = [[slot % gpus] if gpus else [] for slot in range(self.slots)]
        runs = sum(task.stage is None and task.id not in self.done for task in tasks)
        self.waiting = batches(tasks, self.done, runs_per_job(sweep.runs_per_job, runs, self.slots))
        self.running: dict[int, tuple[submitit.Job[None], Batch]] = {}
        self.started_at = time.time()
        self.seconds: list[float] = []  # of runs that were done by this command

    def run(self) -> None:
        total = len(self.tasks)
        if self.done:
            self.say(f"{len(self.done)} of {total} tasks are done already")
        if self.slots > 1:  # share the cores instead of fighting for them
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.slots)))
        with _ended_by_signals():
            try:
                while self.waiting or self.running:
                    self._start()
                    time.sleep(_POLL)
                    self._look()
            except BaseException:
                for job, _ in self.running.values():
                    job.cancel(check=False)
                raise
        if self.failed:
            first = min(self.failed, key=list(self.tasks).index)
            blocked = total - len(self.done) - len(self.failed)
            raise InputError(
                f"{len(self.failed)} of {total} tasks failed"
                + (f", {blocked} more wait for them" if blocked else "")
                + f"; the first: {first}: {self._state(first).said} (log: {self.folder.log(first)}); the same command tries them again"
            )

    def _start(self) -> None:
        """Fill free slots with jobs whose prerequisite is done; drop those whose prerequisite cannot be."""
        coming = {task for batch in self.waiting for task in batch.tasks}
        coming |= {task for _, batch in self.running.values() for task in batch.tasks}
        for batch in list(self.waiting):
            if batch.after and batch.after not in self.done and batch.after not in coming:
                self.waiting.remove(batch)  # it failed
        for slot in range(self.slots):
            ready = next((batch for batch in self.waiting if not batch.after or batch.after in self.done), None)
            if slot in self.running or ready is None:
                continue
            self.waiting.remove(ready)
            executor = submitit.LocalExecutor(self.folder.jobs, max_num_timeout=1000)
            devices = self.devices[slot]
            executor.update_parameters(
                timeout_min=_FOREVER, gpus_per_node=len(devices), visible_gpus=devices, stderr_to_stdout=True
            )
            with output_in(
                self.folder.jobs / "controllers.log"
            ):  # theirs is ours, and full of traces when they are ended
                self.running[slot] = executor.submit(Job(self.folder.out, ready.tasks)), ready

    def _look(self) -> None:
        """See what became of the running jobs."""
        for slot, (job, batch) in list(self.running.items()):
            ended = job.done()
            for name in batch.tasks:  # one after the other
                if name not in self.done | self.failed and not self._account(name):
                    break
            if ended:
                del self.running[slot]
                self._finish(job, batch)

    def _account(self, name: str) -> bool:
        """Whether the task has ended, which is then said."""
        state, task = self.folder.state(name), self.tasks[name]
        if state is None or state.key != task.key:
            return False
        if state.state == "done" and self.folder.done(task):
            self.done.add(name)
            if task.stage is None:
                self.seconds.append(state.seconds)
            words = [f"done in {duration(state.seconds)}", *([state.said] if state.said else []), self._left()]
            self.say(f"[{len(self.done)}/{len(self.tasks)}] {task.title}: {'; '.join(filter(None, words))}")
        elif state.state == "failed" and state.began >= self.started_at:
            self.failed.add(name)
            self.say(f"FAILED {task.title}: {state.said} (log: {self.folder.log(name)})")
        return name in self.done | self.failed

    def _finish(self, job: submitit.Job[None], batch: Batch) -> None:
        """What a job that ended has left undone: the task it died in failed; runs after it go to a new job."""
        left = [name for name in batch.tasks if name not in self.done | self.failed]
        if not left or any(name in self.failed and self.tasks[name].stage is not None for name in batch.tasks):
            return
        said = f"its process ended without a word (killed, or out of memory?); see {job.paths.stdout}"
        state = self.folder.state(left[0])
        if state is not None and state.state == "stopped":
            said = state.said
        self.folder.set_state(left[0], _ended(state, self.tasks[left[0]].key, said))
        self.failed.add(left[0])
        self.say(f"FAILED {self.tasks[left[0]].title}: {said}")
        if left[1:] and self.tasks[left[1]].stage is None:
            self.waiting.insert(0, Batch(tuple(left[1:]), batch.after))

    def _state(self, name: str) -> State:
        state = self.folder.state(name)
        assert state is not None
        return state

    def _left(self) -> str:
        """The time that is left, by the runs so far."""
        left = sum(name not in self.done | self.failed for name, task in self.tasks.items() if task.stage is None)
        if not self.seconds or not left:
            return ""
        return f"about {duration(sum(self.seconds) / len(self.seconds) * left / self.slots)} left"


def _ended(state: State | None, key: str, said: str) -> State:
    """A task whose process is gone, as failed."""
    return State("failed", key, said) if state is None else replace(state, state="failed", key=key, said=said)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let a request to end (SIGTERM) do what Ctrl-C does: the jobs are told to stop, too.

    They are told by SIGINT, which a command that was started in the background ignores, and its jobs with it, unless it is taken up here.
    """

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

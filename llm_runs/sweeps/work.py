"""What a job does: its tasks one after the other, each under its lock, with its own log and its state kept."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import submitit

from analysis.records.files import clear_unfinished
from analysis.records.locks import SWITCH, locked
from llm_runs.errors import InputError
from llm_runs.sweeps.states import Folder, State, Task, alive


class Job:
    """Tasks of a sweep for one process; submitit pickles it, and queues it again where a job is preempted or runs out of time.

    A task that is done is skipped, and one that was interrupted continues where it can: so a job may be given at any time again.
    """

    def __init__(self, out: Path, tasks: Sequence[str]) -> None:
        self.out, self.tasks = out, tuple(tasks)

    def __call__(self) -> None:
        """Do the tasks. A run that fails is noted, and the next one begun.

        Raises InputError: a stage failed, so that what waits for it need not start.
        """
        worker = _Worker(self.out)
        for task in self.tasks:
            if not worker.run(task) and worker.tasks[task].stage is not None:
                raise InputError(f"{task} failed; see {worker.folder.log(task)}")

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What submitit queues when the job is told to go: the same again."""
        return submitit.helpers.DelayedSubmission(self)


class _Worker:
    """Does tasks in this process. Experiments are kept between them, with what they have loaded."""

    def __init__(self, out: Path) -> None:
        # Loaded here and not with this module, which the command needs too; the seconds that it takes are no task's.
        from llm_runs import pipeline, progress  # noqa: F401

        gc.freeze()  # what is loaded stays: each run looks for garbage three times, and would go through all of it for half a second
        progress.quiet()
        self.folder = Folder(out)
        plan = self.folder.plan()
        self.tasks: dict[str, Task] = plan["tasks"]
        self.locks: bool = plan["locks"]
        if not self.locks:
            os.environ[SWITCH] = "1"  # for the folders of the runs, too
        self._experiments: dict[str, Any] = {}

    def run(self, name: str) -> bool:
        """Do a task; whether it is done."""
        task, folder = self.tasks[name], self.folder
        with locked(folder.lock(name), use=self.locks), output_in(folder.log(name)):
            if folder.done(task):
                return True
            before = folder.state(name)
            began, start, cpu = time.time(), time.monotonic(), time.process_time()
            attempts = before.attempts + 1 if before and before.key == task.key else 1

            def note(state: str, said: str) -> None:
                spent = time.monotonic() - start, time.process_time() - cpu  # whatever happens to the clock
                about = (socket.gethostname(), os.getpid(), _job_id(), began, *spent, attempts, task.parts)
                folder.set_state(name, State(state, task.key, said, *about))

            try:
                if before is not None and before.state == "running":
                    _check_gone(before, name, self.locks)
                note("running", "")
                note("done", self._do(task) or "")
            except Exception as error:
                traceback.print_exc()
                note("failed", _first_line(error))
                return False
            except BaseException:  # told to stop: the next job continues
                note("stopped", "it was told to stop")
                raise
        return True

    def _do(self, task: Task) -> str | None:
        print(f"-- {task.title}, {time.strftime('%F %T')}, process {os.getpid()} on {socket.gethostname()}", flush=True)
        from llm_runs import account, pipeline
        from llm_runs.sweeps import stages

        if task.after is not None:
            if not self.folder.done(self.tasks[task.after]):
                raise InputError(f"waits for {task.after}, which is not done")
            stages.link(self.folder.out / self.tasks[task.after].folder, self.folder.out / task.folder)
        experiment = self._experiment(task.folder)
        if task.stage is None:
            (one,) = [training for training in experiment.trainings() if training.slug == task.run]
            return pipeline.train(experiment, one)
        clear_unfinished(self.folder.out / task.folder)  # it has a folder of its own, and this process the stage's lock
        stage = next(stage for stage in stages.STAGES if stage.name == task.stage)
        account.carry_out([step for step in pipeline.plan(experiment, stage.goal) if step.kind not in stage.skips])
        return None

    def _experiment(self, folder: str) -> Any:
        from analysis.records import RecordError
        from llm_runs.experiment import Experiment, kept_config

        if folder not in self._experiments:
            path = self.folder.out / folder
            try:
                self._experiments[folder] = Experiment(kept_config(path), path, dry=True)
            except RecordError as error:
                raise InputError(str(error)) from error
        return self._experiments[folder]


def _check_gone(before: State, name: str, locks: bool) -> None:
    """InputError where a task is still being done although its lock is free (or locks are not used)."""
    if before.host == socket.gethostname() and before.pid != os.getpid() and alive(before):
        raise InputError(
            f"{name} is being done by process {before.pid} of this machine"
            + (", though its lock is free: locks do not work here; add --no-locks" if locks else "")
            + "; wait for it, or end it, and give the sweep's command again"
        )


def _first_line(error: BaseException) -> str:
    text = " ".join(str(error).split("\n", 1)[0].split()) or "no message"
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"


def _job_id() -> str:
    with contextlib.suppress(RuntimeError):  # outside of a job
        return str(submitit.JobEnvironment().job_id)
    return ""


@contextlib.contextmanager
def output_in(path: Path) -> Iterator[None]:
    """Everything that this process writes, whatever writes it, goes to the end of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with path.open("a") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, descriptor in zip((1, 2), kept, strict=True):
            os.dup2(descriptor, stream)
            os.close(descriptor)

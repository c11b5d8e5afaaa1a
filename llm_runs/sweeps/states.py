"""What is known of every task of a sweep, in small files; reading them loads nothing heavy.

DIR/sweep/plan.json        the tasks, what each waits for, and where it works
DIR/sweep/tasks/<id>.json  the state of a task that was begun
DIR/sweep/logs/<id>.log    what it said
DIR/sweep/locks/<id>.lock  held while it runs
DIR/sweep/jobs/            submitit's files; slurm.json: what was submitted there
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import psutil

from analysis.records import LockError, atomic_write
from analysis.records.files import clear_unfinished_of
from analysis.records.locks import check_locks, locked
from llm_runs.errors import InputError
from llm_runs.json_lines import read_object

FORMAT = 1


@dataclass(frozen=True)
class Task:
    """A piece of work that is done once: a stage that runs share, or a run."""

    id: str
    title: str
    folder: str  # of its experiment, in the sweep's folder
    key: str  # what it depends on, as a checksum: done with another key, it is done again
    after: str | None = None  # the stage whose results it uses
    stage: str | None = None  # None: a run
    run: str | None = None  # the name of the run's folder
    parts: tuple[str, ...] = ()  # of a stage: labels, seeds and objectives; done with more, it is done


@dataclass(frozen=True)
class State:
    """What became of a task.

    Attributes:
        state: "running", "done", "failed" or "stopped".
        key: of the task as it was then.
        said: the result in a few words, or the error's first line.
    """

    state: str
    key: str
    said: str = ""
    host: str = ""
    pid: int = 0
    job: str = ""
    began: float = 0.0  # seconds since the epoch
    seconds: float = 0.0  # that it took, of the last attempt
    cpu_seconds: float = 0.0
    attempts: int = 1
    parts: tuple[str, ...] = ()  # of the task as it was then


_KINDS: dict[Any, Any] = {"str": str, "str | None": str | None, "int": int, "float": int | float}
Made = TypeVar("Made", Task, State)


def _made(kind: type[Made], values: dict[str, Any]) -> Made:
    """What was kept. Raises TypeError where a value is of another kind. `strict.build` would load torch for it."""
    made = kind(**values)
    for each in fields(made):
        value = getattr(made, each.name)
        if each.name == "parts":
            right = isinstance(value, list | tuple) and all(isinstance(part, str) for part in value)
        else:
            right = isinstance(value, _KINDS[each.type])
        if not right:
            raise TypeError(f"{each.name} is wrong: {value!r:.40}")
    return made


class Folder:
    """The sweep's own files in its folder."""

    def __init__(self, out: Path) -> None:
        self.out, self.own = out, out / "sweep"

    def log(self, task: str) -> Path:
        """Where a task's output goes."""
        return self.own / "logs" / f"{task}.log"

    def lock(self, task: str) -> Path:
        """Held while a task runs."""
        return self.own / "locks" / f"{task}.lock"

    @property
    def jobs(self) -> Path:
        """submitit's files."""
        return self.own / "jobs"

    def make_private(self) -> None:
        """The folder of submitit's files, for its owner alone: jobs are read there as pickles, so whoever writes there runs code."""
        self.jobs.mkdir(parents=True, exist_ok=True)
        self.jobs.chmod(0o700)

    def write_plan(self, name: str, tasks: Sequence[Task], *, locks: bool) -> None:
        """Keep the plan, for jobs and for the status."""
        values = {"format": FORMAT, "name": name, "locks": locks, "tasks": [asdict(task) for task in tasks]}
        write(self.own / "plan.json", values)

    def plan(self) -> dict[str, Any]:
        """The plan: `name`, `locks`, and `tasks` by id. Raises InputError where there is none, or a damaged one."""
        path = self.own / "plan.json"
        try:
            values = read_object(path)
            if values["format"] != FORMAT:
                raise InputError(f"{path}: of format {values['format']!r:.20}, this version reads {FORMAT}")
            tasks = {entry["id"]: _made(Task, entry) for entry in values["tasks"]}
            return {"name": values["name"], "locks": values["locks"], "tasks": tasks}
        except FileNotFoundError:
            raise InputError(f"{self.out} is not the folder of a sweep: {path} is missing") from None
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: damaged ({error}); give the sweep's command again to write it anew") from error

    def state(self, task: str) -> State | None:
        """The state of a task; None where it was never begun. A damaged file counts as none: the task is looked at again."""
        try:
            return _made(State, read_object(self.own / "tasks" / f"{task}.json"))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def set_state(self, task: str, state: State) -> None:
        """Keep the state of a task."""
        write(self.own / "tasks" / f"{task}.json", asdict(state))

    def done(self, task: Task) -> bool:
        """Whether a task is complete as it is now asked for, and its record still there."""
        state = self.state(task.id)
        if state is None or state.state != "done" or state.key != task.key or not set(task.parts) <= set(state.parts):
            return False
        return task.run is None or (self.out / task.folder / "runs" / task.run / "run.json").is_file()


def write(path: Path, values: Any) -> None:
    """JSON, whole or not at all. Who writes a file of a sweep holds its lock, so what is left of it half-written is of a killed process."""
    clear_unfinished_of(path)
    atomic_write(path, (json.dumps(values, indent=1) + "\n").encode())


@contextlib.contextmanager
def only_command(folder: Folder, sweep: str, tasks: Sequence[Task], *, locks: bool) -> Iterator[None]:
    """Be the one command that does this sweep, its plan written. `locks`: False to do without them.

    Raises:
        LockError: another command does it, or locks do not work here.
    """
    if locks:
        check_locks(folder.own)
    with locked(folder.own / "sweep.lock", wait=False, use=locks) as free:
        if not free:
            raise LockError(
                folder.out, f"another command is doing this sweep: wait for it, or see `sweep-status {folder.out}`"
            )
        folder.write_plan(sweep, tasks, locks=locks)
        folder.make_private()
        yield


def alive(state: State) -> bool:
    """Whether the process of a running task is there, as far as this machine can tell: those of other machines count as alive."""
    if state.host != socket.gethostname():
        return True
    with contextlib.suppress(psutil.Error):
        return bool(psutil.Process(state.pid).create_time() <= state.began)  # else another process got its number
    return False

"""Jobs on a Slurm cluster: all are submitted at once, with what each waits for, and the command ends."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import submitit

from llm_runs.errors import InputError
from llm_runs.sweeps import queue
from llm_runs.sweeps.batches import Batch, batches
from llm_runs.sweeps.spec import SweepConfig
from llm_runs.sweeps.states import Folder, Task, only_command
from llm_runs.sweeps.work import Job

_PARALLEL = 256  # jobs of an array at a time, where the sweep does not say
_ARRAY = 1000  # jobs of an array, where Slurm does not say


def submit(sweep: SweepConfig, out: Path, tasks: list[Task], say: Callable[[str], None], *, locks: bool) -> None:
    """Submit a job for everything that is neither done nor in the queue.

    Raises InputError: no Slurm here, it refuses a job, another command is at work in the folder, or locks do not work.
    """
    if shutil.which("sbatch") is None:
        raise InputError(
            "--slurm: there is no sbatch on this machine; give the command on a login node, or without --slurm"
        )
    folder = Folder(out.resolve())
    with only_command(folder, sweep.name, tasks, locks=locks):
        done = {task.id for task in tasks if folder.done(task)}
        jobs = queue.submitted(folder)
        there = queue.queued(folder)  # by task
        job_of = {name: words.split()[1] for name, words in there.items()}
        left = [task for task in tasks if task.id not in done and task.id not in there]
        count = 0
        waves = groupby(batches(left, set(), sweep.runs_per_job or 1), key=lambda batch: batch.after)
        for after, wave in waves:  # jobs that wait for the same task, after the job that does it
            for job, batch in _submit(sweep, folder, list(wave), job_of.get(after or "")):
                jobs[job] = list(batch.tasks)
                job_of |= dict.fromkeys(batch.tasks, job)
                count += 1
            queue.keep(folder, jobs)  # what is in the queue is known, should the next submission fail
    say(f"{count} jobs submitted for {len(left)} tasks; {len(done)} done and {len(there)} in the queue before")
    say(f"see python -m llm_runs sweep-status {out}; logs: {folder.own / 'logs'}, and Slurm's: {folder.jobs}")


def _submit(sweep: SweepConfig, folder: Folder, group: list[Batch], before: str | None) -> Iterator[tuple[str, Batch]]:
    """The jobs with their ids; several at once are an array."""
    options = sweep.slurm
    executor = submitit.SlurmExecutor(folder.jobs, max_num_timeout=options.requeues)
    extra: dict[str, Any] = {"requeue": True, **options.options}
    if before is not None:
        extra |= {"dependency": f"afterok:{before}", "kill-on-invalid-dep": "yes"}
    named = {
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "constraint": options.constraint,
        "gpus_per_node": options.gpus or None,
        "cpus_per_task": options.cpus,
        "mem": f"{round(options.memory * 1024)}MB" if options.memory else None,
        "setup": list(options.setup) or None,
    }
    executor.update_parameters(
        **{name: value for name, value in named.items() if value is not None},
        job_name=re.sub(r"[^A-Za-z0-9._-]", "_", sweep.name),
        time=options.time,
        signal_delay_s=options.notice,
        array_parallelism=sweep.jobs or _PARALLEL,
        stderr_to_stdout=True,
        additional_parameters=extra,
    )
    size = _array_size()
    for first in range(0, len(group), size):
        part = group[first : first + size]
        try:
            with executor.batch():
                jobs = [executor.submit(Job(folder.out, batch.tasks)) for batch in part]
        except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
            raise InputError(
                f"Slurm refuses a job: {' '.join(str(error).split())[:300]}; look at slurm: in the sweep file"
            ) from error
        yield from zip((job.job_id for job in jobs), part, strict=True)


def _array_size() -> int:
    """The most jobs that Slurm takes as one array."""
    try:
        shown = subprocess.run(
            ["scontrol", "show", "config"], capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return _ARRAY
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", shown, re.MULTILINE)
    return max(1, int(found[1]) - 1) if found else _ARRAY

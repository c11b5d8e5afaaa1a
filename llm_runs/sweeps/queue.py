"""What was submitted to Slurm, and what of it is still in the queue. Loads nothing heavy."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

from llm_runs.json_lines import read_object
from llm_runs.sweeps.states import Folder, write

_PATIENCE = 10.0  # seconds for squeue


def submitted(folder: Folder) -> dict[str, list[str]]:
    """The tasks of every job that was submitted, by the job's id."""
    try:
        return read_object(folder.jobs / "slurm.json")
    except (FileNotFoundError, ValueError):
        return {}


def keep(folder: Folder, jobs: Mapping[str, list[str]]) -> None:
    """Keep what was submitted."""
    write(folder.jobs / "slurm.json", dict(jobs))


def queued(folder: Folder) -> dict[str, str]:
    """By task: the job that has it and is in the queue or running, and its state in Slurm's words."""
    jobs = submitted(folder)
    if not jobs or shutil.which("squeue") is None:
        return {}
    found = {}
    for job, words in _squeue().items():
        for task in jobs.get(job, []):
            found[task] = f"job {job} {words}"
    return found


def _squeue() -> dict[str, str]:
    """This user's jobs: state and reason, by id; those of arrays one by one. Empty where Slurm does not answer."""
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i|%T|%r"]
    try:
        done: Any = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    rows = (line.strip().split("|") for line in done.stdout.splitlines() if line.count("|") == 2)
    return {job: state.lower() + (f" ({reason})" if reason != "None" else "") for job, state, reason in rows}

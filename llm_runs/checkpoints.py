"""Checkpoints of a training: sealed when they are whole, and read only if their seal says so.

The Trainer writes a checkpoint file by file. The seal comes after all of them are on the disk: a list of the files with their checksums.
A checkpoint without it, or with a file that is not what it says, is passed over.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from analysis.records import atomic_write, fingerprint
from analysis.records.files import sync_file, sync_folder
from llm_runs.json_lines import read_object

SEAL = "checksums.json"


def seal(checkpoint: Path) -> None:
    """Say of a written checkpoint that it is whole, once it is on the disk."""
    found = {}
    for root, _, names in os.walk(checkpoint):
        for path in sorted(Path(root) / name for name in names):
            if path.name != SEAL:
                sync_file(path)
                found[str(path.relative_to(checkpoint))] = fingerprint(path)
        sync_folder(Path(root))
    atomic_write(checkpoint / SEAL, (json.dumps(found, indent=1) + "\n").encode())


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was sealed and is what it was then."""
    try:
        files = read_object(checkpoint / SEAL)
        return all(fingerprint(checkpoint / name) == digest for name, digest in files.items())
    except (OSError, ValueError):
        return False


def last_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=lambda path: -int(path.name.rpartition("-")[2])):
        if is_whole(checkpoint):
            return str(checkpoint)
    return None


def clear_checkpoints(folder: Path) -> None:
    """Delete what a training keeps to resume from, once its result is saved."""
    shutil.rmtree(folder, ignore_errors=True)


class KeepLastGood(TrainerCallback):  # type: ignore[misc]
    """Keeps one checkpoint, and the one before until a step has been made from the newer.

    A checkpoint is good once the next step's loss from its weights is sound; only then are older ones deleted. So
    there are at most two on the disk, as with the Trainer's own limit of one, which deletes the old after writing the new.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._last: str | None = None

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A checkpoint was written and sealed."""
        self._last = f"checkpoint-{state.global_step}"

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """All checkpoints there are were written before this step, whose loss was sound."""
        if self._last is None or not state.is_world_process_zero:
            return
        for path in self.folder.glob("checkpoint-*"):
            if path.is_dir() and path.name != self._last:
                shutil.rmtree(path, ignore_errors=True)
        self._last = None


def keep_good_checkpoint(folder: Path, failed_step: int) -> str:
    """After a failed step, drop the checkpoint that it started from, if an earlier one is there; says what is left.

    Args:
        folder: of the checkpoints.
        failed_step: the first, counted from 1, whose loss was not sound; it started from the weights after `failed_step - 1` steps.
    """
    suspect = folder / f"checkpoint-{failed_step - 1}"
    if any(is_whole(path) for path in folder.glob("checkpoint-*") if path != suspect):
        shutil.rmtree(suspect, ignore_errors=True)
        return f"The last good checkpoint is {last_checkpoint(folder)}"
    if suspect.is_dir():
        return f"The only checkpoint, {suspect}, has the weights that failed"
    return "There is no checkpoint yet (training.save_every)"

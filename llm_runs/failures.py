"""When training fails: the checkpoint that is still good."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from llm_runs.sft import last_checkpoint


class KeepLastGood(TrainerCallback):  # type: ignore[misc]
    """Keeps one checkpoint, and the one before until a step has been made from the newer.

    A checkpoint is good once the next step's loss from its weights is sound; only then are older ones deleted. So
    there are at most two on the disk, as with the Trainer's own limit of one, which deletes the old after writing the new.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """All checkpoints there are were written before this step, whose loss was sound."""
        newest = last_checkpoint(self.folder)
        if newest is None or not state.is_world_process_zero:
            return
        for path in self.folder.glob("checkpoint-*"):
            if path.is_dir() and path != Path(newest):
                shutil.rmtree(path, ignore_errors=True)


def keep_good_checkpoint(folder: Path, failed_step: int) -> str:
    """After a failed step, drop the checkpoint that it started from, if an earlier one is there; says what is left.

    Args:
        folder: of the checkpoints.
        failed_step: the first, counted from 1, whose loss was not sound; it started from the weights after `failed_step - 1` steps.
    """
    suspect = folder / f"checkpoint-{failed_step - 1}"
    others = [path for path in folder.glob("checkpoint-*/trainer_state.json") if path.parent != suspect]
    if others:
        shutil.rmtree(suspect, ignore_errors=True)
        return f"The last good checkpoint is {last_checkpoint(folder)}"
    if suspect.is_dir():
        return f"The only checkpoint, {suspect}, has the weights that failed"
    return "There is no checkpoint yet (training.save_every)"

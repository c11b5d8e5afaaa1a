"""When training fails: the batch for a person to read, and the checkpoint that is still good."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainerCallback

from analysis.records import atomic_write
from llm_runs.examples import TokenPair, TokenSample
from llm_runs.sft import last_checkpoint

TENSORS, READABLE = "failed_batch.safetensors", "failed_batch.json"


def save_batch(
    out: Path,
    inputs: Mapping[str, Tensor],
    examples: Mapping[str, Mapping[int, TokenPair | TokenSample | Sequence[int]]],
    about: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Path:
    """Write a batch twice: its tensors, and its examples by source and position with their ids and texts.

    Texts are those that the examples carry; else, with a `tokenizer`, the decoded tokens.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in inputs.items()}
    metadata = {name: str(value) for name, value in about.items()}
    atomic_write(out / TENSORS, safetensors.torch.save(tensors, metadata=metadata))

    def text(known: str, ids: Sequence[int]) -> str | None:
        return known or (str(tokenizer.decode(ids)) if tokenizer is not None else None)

    rows: list[dict[str, Any]] = []
    for source, chosen in examples.items():
        for position, example in chosen.items():
            row: dict[str, Any] = {"source": source, "position": position}
            if isinstance(example, TokenPair):
                row |= {"id": example.id, "prompt": text(example.prompt, example.prompt_ids)}
                row |= {"chosen": text(example.chosen, example.chosen_ids)}
                row |= {"rejected": text(example.rejected, example.rejected_ids)}
                row |= {"tokens": [len(example.prompt_ids), len(example.chosen_ids), len(example.rejected_ids)]}
            elif isinstance(example, TokenSample):
                row |= {"prompt": text(example.prompt, example.prompt_ids)}
                row |= {"completion": text(example.completion, example.completion_ids)}
                row |= {"tokens": [len(example.prompt_ids), len(example.completion_ids)]}
            else:
                row |= {"text": text("", example), "tokens": [len(example)]}
            rows.append(row)
    readable = json.dumps({**about, "examples": rows}, indent=1, ensure_ascii=False)
    atomic_write(out / READABLE, (readable + "\n").encode())
    return out / READABLE


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

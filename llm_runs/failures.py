"""When training fails: the batch for a person to read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from analysis.records import atomic_write
from llm_runs.examples import TokenPair, TokenSample

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

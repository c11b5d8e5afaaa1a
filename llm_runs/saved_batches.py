"""Batches that were saved because a guard stopped or warned: written for a person, shown by `python -m llm_runs batch`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from analysis.records import atomic_write
from llm_runs.errors import InputError
from llm_runs.examples import TokenPair, TokenSample

FAILED = "failed_batch"  # the name of what stopped a training: .json to read, .safetensors with the tensors


def save_batch(
    out: Path,
    inputs: Mapping[str, Tensor],
    examples: Mapping[str, Mapping[int, TokenPair | TokenSample | Sequence[int]]],
    about: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase | None = None,
    name: str = FAILED,
) -> Path:
    """Write a batch twice, as `out/name.safetensors` and .json: its tensors, and its examples by source and position with ids and texts.

    Texts are those that the examples carry; else, with a `tokenizer`, the decoded tokens. Returns the file for people.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in inputs.items()}
    metadata = {name: str(value) for name, value in about.items()}
    atomic_write(out / f"{name}.safetensors", safetensors.torch.save(tensors, metadata=metadata))

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
                row |= {key: value for key in ("reward", "logp") if (value := getattr(example, key)) is not None}
            else:
                row |= {"text": text("", example), "tokens": [len(example)]}
            rows.append(row)
    readable = json.dumps({**about, "examples": rows}, indent=1, ensure_ascii=False)
    return atomic_write(out / f"{name}.json", (readable + "\n").encode())


_SHOWN = 100  # characters of a text


def describe(path: Path, examples: int = 8) -> str:
    """A saved batch in words: what happened, its tensors by range with what is not finite, its first examples.

    Raises:
        InputError: no such file, or not a saved batch.
    """
    file = path / f"{FAILED}.json" if path.is_dir() else path.with_suffix(".json")
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        rows = [dict(row) for row in saved.pop("examples")]
        tensors = safetensors.torch.load(file.with_suffix(".safetensors").read_bytes())
    except OSError as error:
        raise InputError(f"no saved batch at {file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise InputError(f"{file}: not a saved batch ({error})") from error
    lines = [f"{name}: {value}" for name, value in saved.items()]
    lines += ["", "tensors (the whole of them: " + str(file.with_suffix(".safetensors")) + ")"]
    lines += [f"  {name} {_ranged(tensor)}" for name, tensor in sorted(tensors.items())]
    lines += ["", f"examples, {min(examples, len(rows))} of {len(rows)}"]
    for row in rows[:examples]:
        lines.append("  " + " ".join(f"{key}={_short(value)}" for key, value in row.items()))
    return "\n".join(lines)


def _ranged(tensor: Tensor) -> str:
    shape = "x".join(map(str, tensor.shape)) or "number"
    kind = str(tensor.dtype).removeprefix("torch.")
    if not tensor.numel() or tensor.dtype == torch.bool:
        return f"({shape}, {kind})"
    sound = tensor[torch.isfinite(tensor)]
    words = (
        f"({shape}, {kind}) {sound.min().item():.6g} to {sound.max().item():.6g}"
        if len(sound)
        else f"({shape}, {kind})"
    )
    bad = tensor.numel() - len(sound)
    return words + (f", {bad} NaN or infinite" if bad else "")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."

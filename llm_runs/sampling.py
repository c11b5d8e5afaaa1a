"""Sampling of completions from a policy: token ids and log-probabilities are kept, so nothing is tokenised again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from analysis.records import atomic_write, fingerprint
from llm_runs import engines
from llm_runs.config import SamplingConfig
from llm_runs.engines import Drawn
from llm_runs.errors import InputError
from llm_runs.examples import Prompt, TokenSample
from llm_runs.models import autocast


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int,
    seed: int,
    temperature: float = 1.0,
    batch_size: int = 64,
    engine: str = "transformers",
    description: str | None = None,
) -> list[TokenSample]:
    """One completion of each prompt, of at most `max_tokens` tokens, in the order of the prompts.

    A completion ends with the end-of-text token where the model ends by itself. The same arguments give the same samples
    on the same device. `engine` is one of `SamplingConfig`. `description` shows a progress bar under that name.
    """
    model.eval()
    batches = _batches(model, tokenizer, prompts, max_tokens, seed, temperature, batch_size, engine)
    with tqdm(total=len(prompts), desc=description, unit="sample", leave=False, disable=description is None) as bar:
        found = []
        for batch in batches:
            found += batch
            bar.update(len(batch))
    return found


def sample_to_file(
    path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int,
    seed: int,
    config: SamplingConfig,
    key: Any = None,
) -> list[TokenSample]:
    """Like `sample`, into a JSONL file, a batch at a time: when interrupted, the next call continues at the next batch.

    `key` is what the samples depend on besides the arguments (which model); unfinished samples of another key are redone. What they
    were drawn with is kept beside them, see `provenance`.
    """
    model.eval()
    engine = engines.resolve(config.engine, model.device)
    partial = path.with_name(f".{path.name}.partial")
    wanted = fingerprint([key, [list(prompt) for prompt in prompts], max_tokens, seed, asdict(config), engine])
    done = _read_partial(partial, wanted)
    size = engines.prompts_per_call(engine, config.batch_size, len(prompts))
    done = done[: len(done) // size * size] if len(done) < len(prompts) else done
    partial.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"key": wanted}), *(_to_line(entry) for entry in done)]
    atomic_write(partial, ("\n".join(lines) + "\n").encode())
    batches = _batches(
        model, tokenizer, prompts, max_tokens, seed, config.temperature, config.batch_size, engine, first=len(done)
    )
    with (
        partial.open("a", encoding="utf-8") as file,
        tqdm(total=len(prompts), initial=len(done), desc=f"sampling {path.stem}", unit="sample", leave=False) as bar,
    ):
        for batch in batches:
            file.write("".join(_to_line(entry) + "\n" for entry in batch))
            file.flush()
            os.fsync(file.fileno())
            done += batch
            bar.update(len(batch))
    about = {"engine": engine, "version": engines.version(engine), "seed": seed, "temperature": config.temperature}
    about |= {"batch_size": config.batch_size, "max_tokens": max_tokens, "samples": len(done)}
    atomic_write(path.with_suffix(".json"), (json.dumps(about, indent=1) + "\n").encode())
    write_samples(path, done)  # last, because it stands for both
    partial.unlink()
    return done


def provenance(path: Path) -> dict[str, Any]:
    """What a file of samples was drawn with: engine, version, seed, temperature, batch_size, max_tokens, samples; empty if unknown."""
    try:
        found: dict[str, Any] = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise InputError(f"{path.with_suffix('.json')}: damaged ({error}); delete it") from error
    return found


def write_samples(path: Path, samples: Sequence[TokenSample]) -> Path:
    """Samples as JSONL, whole or not at all."""
    return atomic_write(path, "".join(_to_line(entry) + "\n" for entry in samples).encode())


def read_samples(path: Path) -> list[TokenSample]:
    """Samples from JSONL. Raises InputError with file, line and reason."""
    samples = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                samples.append(_from_line(line))
            except (ValueError, TypeError, KeyError) as error:
                raise InputError(
                    f"{path}, line {number}: not a sample ({error}); delete the file to redo it"
                ) from error
    return samples


def derived_seed(*parts: object) -> int:
    """A seed made from a run's seed and what it is for, so that different uses never share random numbers."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:7])


def _batches(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    max_tokens: int,
    seed: int,
    temperature: float,
    batch_size: int,
    engine: str,
    first: int = 0,
) -> Iterator[list[TokenSample]]:
    ends = _end_tokens(model, tokenizer)
    name = engines.resolve(engine, model.device)
    draw = engines.ENGINES.get(name, _loop)
    size = engines.prompts_per_call(name, batch_size, len(prompts))
    for start in range(first, len(prompts), size):
        batch = prompts[start : start + size]
        drawn = draw(
            model,
            tokenizer,
            batch,
            max_tokens=max_tokens,
            temperature=temperature,
            ends=ends,
            # Each batch has its own seed, so that a resumed run draws what an uninterrupted one would have drawn.
            seed=derived_seed(seed, start),
            slots=batch_size,
        )
        yield [
            _finish(tokenizer, prompt, ids, token_logps, ends)
            for prompt, (ids, token_logps) in zip(batch, drawn, strict=True)
        ]


def _loop(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int,
    temperature: float,
    ends: Collection[int],
    seed: int,
    slots: int,
) -> list[Drawn]:
    """The plain engine: all prompts side by side until the last one ends."""
    generator = torch.Generator(model.device).manual_seed(seed)
    with autocast(model.device):
        tokens, logps = _decode(model, prompts, max_tokens, temperature, ends, generator)
    return list(zip(tokens.tolist(), logps.tolist(), strict=True))


@torch.no_grad()
def _decode(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    max_tokens: int,
    temperature: float,
    ends: Collection[int],
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Sampled tokens and their log-probabilities at temperature 1, (N, max_tokens) each; columns after an end are noise.

    A loop of our own, because `generate` mixes in whatever sampling settings a model's own generation config holds
    (top-k 50, for one), and the samples of the reference must be samples of its exact distribution.
    """
    width = max(map(len, prompts))
    device = model.device
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    end_ids = torch.tensor(sorted(ends), device=device)
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    past: Any = None
    tokens, logps = [], []
    for _ in range(max_tokens):
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=past,
            use_cache=True,
            logits_to_keep=1,
        )
        past = output.past_key_values
        logits = output.logits[:, -1].float()
        token = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
        tokens.append(token)
        logps.append(logits.log_softmax(-1).gather(-1, token))
        ended |= torch.isin(token[:, 0], end_ids)
        if ended.all():
            break
        ids, positions = token, positions[:, -1:] + 1
        mask = torch.cat([mask, torch.ones_like(token)], dim=1)
    return torch.cat(tokens, dim=1), torch.cat(logps, dim=1)


def _finish(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, ids: list[int], logps: list[float], ends: Collection[int]
) -> TokenSample:
    length = next((place + 1 for place, token in enumerate(ids) if token in ends), len(ids))
    return TokenSample(
        prompt_ids=prompt,
        completion_ids=tuple(ids[:length]),
        prompt=tokenizer.decode(prompt, skip_special_tokens=True),
        completion=tokenizer.decode(ids[:length], skip_special_tokens=True),
        logp=sum(logps[:length]),
    )


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    ends: int | list[int] | None = model.generation_config.eos_token_id
    return {tokenizer.eos_token_id, *([ends] if isinstance(ends, int) else ends or [])}


def _to_line(entry: TokenSample) -> str:
    return json.dumps(asdict(entry), ensure_ascii=False)


def _from_line(line: str) -> TokenSample:
    values = json.loads(line)
    values["prompt_ids"], values["completion_ids"] = tuple(values["prompt_ids"]), tuple(values["completion_ids"])
    return TokenSample(**values)


def _read_partial(path: Path, wanted: str) -> list[TokenSample]:
    """What an interrupted run of the same key left; a torn last line is dropped."""
    if not path.is_file():
        return []
    try:
        header, *lines = path.read_text(encoding="utf-8").splitlines()
        if json.loads(header) != {"key": wanted}:
            return []
    except ValueError:
        return []
    samples = []
    for line in lines:
        try:
            samples.append(_from_line(line))
        except (ValueError, TypeError, KeyError):
            break
    return samples

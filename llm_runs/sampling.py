"""Sampling of completions from a policy: token ids and log-probabilities are kept, so nothing is tokenised again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from analysis.records import atomic_write, fingerprint
from llm_runs import engines, json_lines, processes, sharding
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
    top_p: float = 1.0,
    batch_size: int = 64,
    engine: str = "transformers",
    description: str | None = None,
) -> list[TokenSample]:
    """One completion of each prompt, of at most `max_tokens` tokens, in the order of the prompts.

    A completion ends with the end-of-text token where the model ends by itself. The same arguments give the same samples
    on the same device. `engine` is one of `SamplingConfig`. `description` shows a progress bar under that name. Processes of a launch
    share the batches, and all have the samples.
    """
    model.eval()
    name = engines.resolve(engine, model.device)
    starts = range(0, len(prompts), engines.prompts_per_call(name, batch_size, len(prompts)))
    draw = _drawer(model, tokenizer, prompts, starts.step, max_tokens, seed, temperature, top_p, batch_size, name)
    with tqdm(total=len(prompts), desc=description, unit="sample", leave=False, disable=description is None) as bar:

        def one(start: int) -> list[TokenSample]:
            found = draw(start)
            bar.update(len(found) * processes.size())
            return found

        return [each for part in processes.spread(starts, one) for each in part]


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
    """Like `sample`, into a JSONL file, a batch at a time: when interrupted, the next call draws what is missing.

    `key` is what the samples depend on besides the arguments (which model); unfinished samples of another key are redone. What they
    were drawn with is kept beside them, see `provenance`. Each process of a launch keeps what it draws; the next call, with however
    many processes, finds it.
    """
    model.eval()
    engine = engines.resolve(config.engine, model.device)
    wanted = fingerprint([key, [list(prompt) for prompt in prompts], max_tokens, seed, asdict(config), engine])
    size = engines.prompts_per_call(engine, config.batch_size, len(prompts))
    partial = path.with_name(f".{path.name}.partial")  # see `clear_partial`
    own = partial.with_name(f"{partial.name}-{processes.rank()}") if processes.rank() else partial
    processes.by_first(lambda: _put_together(partial, wanted))
    done = _read_partial(partial, wanted)
    processes.barrier()  # nobody goes on writing before all have read
    if own != partial:
        _write_partial(own, wanted, {})
    starts = [
        start
        for start in range(0, len(prompts), size)
        if not all(index in done for index in range(start, min(start + size, len(prompts))))
    ]
    how = config.temperature, config.top_p, config.batch_size, engine
    draw = _drawer(model, tokenizer, prompts, size, max_tokens, seed, *how)
    with (
        own.open("a", encoding="utf-8") as file,
        tqdm(total=len(prompts), initial=len(done), desc=f"sampling {path.stem}", unit="sample", leave=False) as bar,
    ):
        for place, counts in processes.own_rounds(len(starts)):
            batch = draw(starts[place])
            if counts:
                file.write("".join(_to_line(entry, starts[place] + i) + "\n" for i, entry in enumerate(batch)))
                file.flush()
                os.fsync(file.fileno())
            bar.update(len(batch) * processes.size())
    processes.barrier()
    about = {"engine": engine, "version": engines.version(engine), "seed": seed, "temperature": config.temperature}
    about |= {"top_p": config.top_p, "batch_size": config.batch_size, "max_tokens": max_tokens, "samples": len(prompts)}

    def finish() -> None:
        _put_together(partial, wanted)
        found = _read_partial(partial, wanted)
        atomic_write(path.with_suffix(".json"), (json.dumps(about, indent=1) + "\n").encode())
        write_samples(path, [found[index] for index in range(len(prompts))])  # last, because it stands for both
        partial.unlink()

    processes.by_first(finish)
    return read_samples(path)


def clear_partial(path: Path) -> None:
    """Remove what was kept on the way to a file of samples that is there: its process was killed before it could."""
    for left in path.parent.glob(f".{path.name}.partial*"):
        left.unlink()


def provenance(path: Path) -> dict[str, Any]:
    """What a file of samples was drawn with; empty if unknown.

    Keys: engine, version, seed, temperature, top_p, batch_size, max_tokens, samples.
    """
    try:
        return json_lines.read_object(path.with_suffix(".json"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path.with_suffix('.json')}: damaged ({error}); delete it") from error


def write_samples(path: Path, samples: Sequence[TokenSample]) -> Path:
    """Samples as JSONL, whole or not at all."""
    return atomic_write(path, "".join(_to_line(entry) + "\n" for entry in samples).encode())


def read_samples(path: Path) -> list[TokenSample]:
    """Samples from JSONL. Raises InputError with file, line and reason."""
    samples = []
    for where, values in json_lines.read(path):
        try:
            samples.append(_sample(values))
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{where}: not a sample ({error}); delete the file to redo it") from error
    return samples


def derived_seed(*parts: object) -> int:
    """A seed made from a run's seed and what it is for, so that different uses never share random numbers."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:7])


def _drawer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    size: int,
    max_tokens: int,
    seed: int,
    temperature: float,
    top_p: float,
    batch_size: int,
    engine: str,
) -> Callable[[int], list[TokenSample]]:
    """What draws the completions of `size` prompts from a given place on."""
    ends = _end_tokens(model, tokenizer)
    draw = engines.ENGINES.get(engine, _loop)

    def batch(start: int) -> list[TokenSample]:
        some = prompts[start : start + size]
        drawn = draw(
            model,
            tokenizer,
            some,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            ends=ends,
            # Each batch has its own seed: whoever draws it, and whenever, draws the same.
            seed=derived_seed(seed, start),
            slots=batch_size,
        )
        return [
            _finish(tokenizer, prompt, ids, token_logps, ends)
            for prompt, (ids, token_logps) in zip(some, drawn, strict=True)
        ]

    return batch


def _loop(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int,
    temperature: float,
    top_p: float,
    ends: Collection[int],
    seed: int,
    slots: int,
) -> list[Drawn]:
    """The plain engine: all prompts side by side until the last one ends."""
    generator = torch.Generator(model.device).manual_seed(seed)
    with autocast(model.device):
        tokens, logps = _decode(model, prompts, max_tokens, temperature, top_p, ends, generator)
    return list(zip(tokens.tolist(), logps.tolist(), strict=True))


@torch.no_grad()
def _decode(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    max_tokens: int,
    temperature: float,
    top_p: float,
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
    sharded = sharding.is_sharded(model)
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
        token = _drawn(_nucleus((logits / temperature).softmax(-1), top_p), generator)
        tokens.append(token)
        logps.append(logits.log_softmax(-1).gather(-1, token))
        ended |= torch.isin(token[:, 0], end_ids)
        # Sharded weights are gathered by all processes at every step, until the last one's completions have ended.
        if processes.all_of(bool(ended.all()), device) if sharded else bool(ended.all()):
            break
        ids, positions = token, positions[:, -1:] + 1
        mask = torch.cat([mask, torch.ones_like(token)], dim=1)
    return torch.cat(tokens, dim=1), torch.cat(logps, dim=1)


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Without all but the most probable tokens that together have at least the mass `top_p`; not normalised (1904.09751)."""
    if top_p == 1:
        return probabilities
    ranked, order = probabilities.sort(-1, descending=True)
    ranked = ranked.masked_fill(ranked.cumsum(-1) - ranked >= top_p, 0)
    return torch.zeros_like(probabilities).scatter(-1, order, ranked)


def _drawn(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """A token a row, (N, 1). Raises InputError where the probabilities are none."""
    try:
        return torch.multinomial(probabilities, 1, generator=generator)
    except RuntimeError as error:
        if bool(torch.isfinite(probabilities).all()):
            raise
        raise InputError(
            "the model's next-token probabilities are NaN: its weights are broken, or overflow in this precision; look at its training's "
            "loss, or set model.dtype=float32"
        ) from error


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


def _to_line(entry: TokenSample, index: int | None = None) -> str:
    return json.dumps(asdict(entry) if index is None else {"index": index, **asdict(entry)}, ensure_ascii=False)


def _sample(values: dict[str, Any]) -> TokenSample:
    json_lines.check_types(values, ("prompt", "completion"), ("logp", "reward"))
    return TokenSample(**json_lines.token_ids(values, "prompt_ids", "completion_ids"))


def _put_together(partial: Path, wanted: str) -> None:
    """Into one file what processes left of interrupted calls of the same key, or nothing where there is none."""
    found: dict[int, TokenSample] = {}
    others = sorted(partial.parent.glob(f"{partial.name}-*"))
    for each in (partial, *others):
        found |= _read_partial(each, wanted)
    _write_partial(partial, wanted, found)
    for each in others:
        each.unlink()


def _write_partial(path: Path, wanted: str, samples: Mapping[int, TokenSample]) -> None:
    lines = [json.dumps({"key": wanted}), *(_to_line(entry, index) for index, entry in samples.items())]
    atomic_write(path, ("\n".join(lines) + "\n").encode())


def _read_partial(path: Path, wanted: str) -> dict[int, TokenSample]:
    """By their place: what an interrupted call of the same key left; a torn last line is dropped."""
    if not path.is_file():
        return {}
    try:
        header, *lines = path.read_text(encoding="utf-8").splitlines()
        if json.loads(header) != {"key": wanted}:
            return {}
    except (ValueError, RecursionError):
        return {}
    samples: dict[int, TokenSample] = {}
    for line in lines:
        try:
            values = json.loads(line)
            index = int(values.pop("index"))
            samples[index] = _sample(values)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            break
    return samples

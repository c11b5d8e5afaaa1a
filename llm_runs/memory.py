"""How much memory a training takes, estimated before it runs; and what to lower when it was too much.

    peak = weights (+ reference copy) + optimiser + max(activations + head + carried gradients, gradients)

Gradients appear while activations go, so without accumulation they do not add up; with it, those of the earlier forward passes
are carried. Bytes of tensors; the process itself and an allocator's fragmentation come on top.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch
from transformers import PreTrainedModel

from llm_runs import processes
from llm_runs.config import LoRAConfig, TrainingConfig
from llm_runs.errors import InputError
from llm_runs.examples import TokenPair, TokenSample
from llm_runs.microbatches import Microbatches, TrainingError, micro_batch_size
from llm_runs.vocabulary_head import CHUNK

GB = 1e9


@dataclass(frozen=True)
class Load:
    """Tokens of the largest forward pass, padding included."""

    body: int  # through the layers
    head: int  # through the vocabulary head, in chunks


@dataclass(frozen=True)
class Estimate:
    """Bytes of a training, by part."""

    weights: int
    reference: int  # a copy of the model, where it runs live
    gradients: int
    optimiser: int
    activations: int
    head: int
    accumulates: bool

    @property
    def total(self) -> int:
        """The most at any moment."""
        carried = self.gradients if self.accumulates else 0
        step = max(self.activations + self.head + carried, self.gradients)
        return self.weights + self.reference + self.optimiser + step

    def __str__(self) -> str:
        parts = ("weights", "reference", "gradients", "optimiser", "activations", "head")
        listed = ", ".join(f"{part} {_size(size)}" for part in parts if (size := getattr(self, part)))
        return f"{_size(self.total)} ({listed})"


@dataclass(frozen=True)
class Plan:
    """A training whose memory is asked for."""

    model: PreTrainedModel  # may be on the meta device: only shapes and dtypes are looked at
    config: TrainingConfig
    load: Load
    live_reference: bool = False
    mixed: bool | None = None  # as on a GPU: bf16 arithmetic on weights as loaded; None: where the model is on one

    def estimate(self) -> Estimate:
        """Bytes by part, from shapes alone."""
        model, config = self.model, self.config
        sizes = [(p.numel(), p.element_size(), p.requires_grad) for p in model.parameters()]
        weights = sum(count * size for count, size, _ in sizes)
        if config.lora and not hasattr(model, "peft_config"):
            added = _adapter_parameters(model, config.lora) * 4
            weights, trained = weights + added, added
        else:
            trained = sum(count * size for count, size, learns in sizes if learns)
        shape = model.config.get_text_config()
        mixed = model.device.type == "cuda" if self.mixed is None else self.mixed
        width = 2 if mixed else model.dtype.itemsize
        return Estimate(
            weights=weights + (weights // 2 if mixed and model.dtype == torch.float32 else 0),
            reference=weights if self.live_reference and not config.lora else 0,
            gradients=trained,
            optimiser=2 * trained,  # Adam's two moments
            activations=_activations(model, self.load.body, width, config.gradient_checkpointing),
            head=self._head(shape.vocab_size * max(4, model.dtype.itemsize)),
            accumulates=config.batch_size > micro_batch_size(config) * processes.size(),
        )

    def _head(self, size: int) -> int:
        """The softmaxes that are kept until the backward pass, of `size` bytes each, and one chunk's buffer."""
        kept = 0 if self.config.lora else min(self.load.head * size, self.config.logits_memory * 2**20)
        device = "cuda" if self.mixed else self.model.device.type
        return kept + min(self.load.head, CHUNK.get(device, CHUNK["cpu"])) * size

    def smaller(self) -> Iterator[tuple[str, Plan]]:
        """The same training with less memory, in the order in which one would try, each with the setting to change."""
        config, now = self.config, micro_batch_size(self.config)
        smallest, change = self, ""
        for micro in range(now - 1, 0, -1):
            passes = config.batch_size // micro
            sizes = (config.batch_size, config.reference_batch_size, config.pretraining_batch_size)
            if any(size % passes for size in sizes) or passes * micro != config.batch_size or passes % processes.size():
                continue
            load = Load(-(-self.load.body * micro // now), -(-self.load.head * micro // now))
            change = f"training.micro_batch_size={micro} (now {now})"
            smallest = replace(self, config=replace(config, micro_batch_size=micro), load=load)
            yield change, smallest
        for setting, values in (
            ("training.gradient_checkpointing=true", {"gradient_checkpointing": True}),
            ("training.lora.rank=16", {"lora": LoRAConfig()}),
        ):
            if not getattr(config, next(iter(values))):
                change = f"{change} and {setting}" if change else setting
                smallest = replace(smallest, config=replace(smallest.config, **values))
                yield change, smallest


def of_training(model: PreTrainedModel, data: Microbatches, config: TrainingConfig, live_reference: bool) -> Plan:
    """The plan of a training with its real data: the load is that of its widest forward pass (all have as many sequences)."""
    item = data[max(range(len(data)), key=lambda index: _width(data, index))]
    return Plan(model, config, Load(item["input_ids"].numel(), item["targets"].numel()), live_reference)


def _width(data: Microbatches, index: int) -> int:
    """Columns of a forward pass: its longest prompt and its longest completion."""
    prompts, completions = [0], [0]
    for examples in data.examples(index).values():
        for example in examples.values():
            if isinstance(example, TokenPair | TokenSample):
                prompts.append(len(example.prompt_ids))
                samples = example.samples if isinstance(example, TokenPair) else (example,)
                completions += [len(sample.completion_ids) for sample in samples]
            else:  # a text: its first token is the prompt
                prompts.append(1)
                completions.append(len(example) - 1)
    return max(prompts) + max(completions)


def available(device: torch.device) -> int:
    """Bytes that this process may use on `device`: of the GPU, or of the machine or its container."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) + torch.cuda.memory_reserved(device)
    free = int(psutil.virtual_memory().available + psutil.Process().memory_info().rss)
    with contextlib.suppress(OSError, ValueError):
        free = min(free, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return free


@contextlib.contextmanager
def explained(plan: Callable[[], Plan]) -> Iterator[None]:
    """Turn running out of memory in the block into a TrainingError that says what to change."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        failed = plan()
        raise TrainingError(
            f"out of memory while training: {advice(failed, available(failed.model.device))}"
        ) from error


@contextlib.contextmanager
def lower(setting: str, value: int, *, kept: bool = True) -> Iterator[None]:
    """Turn running out of memory in the block into an InputError that halves the batch size `setting`, which is `value` now.

    Beside the weights memory is about proportional to the batch, so half of it is the sensible next try. `kept`: whether a run's
    folder refuses another value.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        advice = f"set {setting}={value // 2} (now {value})" if value > 1 else "take a smaller model or shorter texts"
        where = "; a folder keeps this setting, so use another --out" if kept else ""
        raise InputError(f"out of memory: {advice}{where}") from error


def ran_out(error: BaseException) -> bool:
    """Whether an exception is about memory; the CPU's allocator raises a plain RuntimeError."""
    text = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in text or "not enough memory" in text)
    )


def advice(plan: Plan, limit: int) -> str:
    """What a training needs, what there is, and the first smaller one that fits into `limit` bytes.

    It has failed, so what is proposed needs at most 70 % of its estimate, whatever `limit` is.
    """
    now = plan.estimate()
    target = min(limit, 0.7 * now.total)
    need = f"it takes about {now} of the {_size(limit)} there are"
    last = ""
    for change, smaller in plan.smaller():
        size = smaller.estimate().total
        last = f"{change}, which takes about {_size(size)}"
        if size <= target:
            return f"{need}; set {last}"
    if last:
        return f"{need}; the least is {last}: if that fails too, take a smaller model or shorter texts"
    return f"{need}; take a smaller model or shorter texts"


def _activations(model: PreTrainedModel, tokens: int, width: int, checkpointing: bool) -> int:
    """Bytes that a decoder's layers keep for the backward pass, `width` bytes a number.

    A layer keeps, per token: of each of its two norms the input, the normalised and the scaled vector (hidden); query, attention
    output and its contiguous copy (heads), key and value (key-value heads); of a gated MLP gate, its activation, up and their
    product (intermediate). With checkpointing only the input of every layer stays, and one layer's activations at a time.
    """
    shape = model.config.get_text_config()
    hidden, layers, heads = shape.hidden_size, shape.num_hidden_layers, shape.num_attention_heads
    head = getattr(shape, "head_dim", None) or hidden // heads
    key_value = getattr(shape, "num_key_value_heads", None) or heads
    intermediate = getattr(shape, "intermediate_size", None) or 4 * hidden
    norms = 6 * hidden * max(4, width)  # kept in float32
    layer = norms + (3 * heads * head + 2 * key_value * head + 4 * intermediate) * width
    if checkpointing:
        return int(tokens * (layers * hidden * width + layer))
    return int(tokens * layers * layer)


def _adapter_parameters(model: PreTrainedModel, config: LoRAConfig) -> int:
    """Parameters of LoRA's two low-rank factors on the layers that it adapts: all linear ones but the head, or those named."""
    head = model.get_output_embeddings()
    named = None if config.targets == "all-linear" else tuple(config.targets.split(","))
    return sum(
        config.rank * (module.in_features + module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and module is not head
        and (named is None or name.rpartition(".")[2] in named)
    )


def _size(count: float) -> str:
    return f"{count / GB:.2g} GB" if count < 10 * GB else f"{count / GB:.0f} GB"

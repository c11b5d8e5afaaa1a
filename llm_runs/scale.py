"""What one training step takes of each device when several share it: memory, communication, time. Arithmetic, for a plan before a launch.

Numbers are kept as they are in training on GPUs: weights, gradients and Adam's moments in float32, arithmetic and what is sent in bfloat16
(with DDP, gradients in float32). N is the number of weights, W the number of devices.

    DDP      12 N + 4 N weights, once more 2 N for their bfloat16 copies     sends 2 x 4 N a step
    FSDP2    (4 N + 4 N + 8 N) / W, and what is gathered for the moment      sends 3 x 2 N a forward pass: weights, weights again, gradients
    ZeRO-2   2 N + (4 N + 2 N + 8 N) / W                                     sends 2 N a forward pass (gradients) and 2 N a step (weights)
    ZeRO-3   as FSDP2, with 2 N / W more for the bfloat16 weights            as FSDP2

each sent amount times (W - 1) / W. Gathered at the moment are the embeddings and head, one layer and the next, and the gradients of one
layer and of the embeddings and head, all in bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from llm_runs import memory
from llm_runs.config import TrainingConfig
from llm_runs.errors import InputError

GB = memory.GB


@dataclass(frozen=True)
class Machine:
    """What a plan reckons with: GPUs of the H100 SXM's kind, and what their links sustain (about two thirds and two fifths of the peak)."""

    devices: int = 8
    memory: float = 80e9  # bytes of a device
    inside: float = 300e9  # bytes a second, to each device from the others of its machine
    across: float = 150e9  # the same where devices of other machines take part, with 8 links of 400 Gbit/s a machine


@dataclass(frozen=True)
class Share:
    """Bytes on one device."""

    weights: float
    gradients: float
    optimiser: float
    gathered: float
    activations: float
    head: float

    @property
    def total(self) -> float:
        """All of it at once: gradients appear while activations go, so this is on the safe side."""
        return self.weights + self.gradients + self.optimiser + self.gathered + self.activations + self.head

    def __str__(self) -> str:
        parts = ("weights", "gradients", "optimiser", "gathered", "activations", "head")
        return f"{self.total / GB:.1f} GB ({', '.join(f'{part} {getattr(self, part) / GB:.1f}' for part in parts)})"


@dataclass(frozen=True)
class Step:
    """One training step of a model on `processes` devices.

    Args:
        model: on the meta device; only shapes are looked at.
        config: of the training.
        load: tokens of a forward pass of one process.
        passes: forward passes of one process in a step.
        processes: devices.
        flops: of the whole step, on all devices.
    """

    model: PreTrainedModel
    config: TrainingConfig
    load: memory.Load
    passes: int
    processes: int
    flops: float
    machine: Machine = Machine()

    @property
    def parameters(self) -> int:
        """N."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def share(self) -> Share:
        """Memory of one device."""
        count, size, kind = float(self.parameters), self.processes, self.config.sharding
        one = memory.Plan(self.model, self.config, self.load, mixed=True).estimate()
        sharded = kind in ("fsdp", "zero3")
        layers = self.model.config.get_text_config().num_hidden_layers
        tables = {id(each.weight): each.weight.numel() for each in self._tables()}
        layer = (count - sum(tables.values())) / layers
        spread = {"none": 1, "zero2": size, "zero3": size, "fsdp": size}[kind]
        return Share(
            weights={
                "none": 6 * count,
                "zero2": 2 * count + 4 * count / size,
                "zero3": 6 * count / size,
                "fsdp": 4 * count / size,
            }[kind],
            gradients=(2 if kind == "zero2" else 4) * count / spread,
            optimiser=8 * count / spread,
            gathered=2 * (2 * sum(tables.values()) + 3 * layer) if sharded else 0.0,
            activations=one.activations,
            head=one.head,
        )

    def sent(self) -> float:
        """Bytes that each device receives in a step, and sends."""
        count = float(self.parameters)
        whole = {
            "none": 8 * count,
            "zero2": 2 * count * (self.passes + 1),
            "zero3": 6 * count * self.passes,
            "fsdp": 6 * count * self.passes,
        }[self.config.sharding]
        return whole * (self.processes - 1) / self.processes

    def seconds(self, tflops: float) -> tuple[float, float]:
        """Of computing, at `tflops` sustained by each device, and of sending; they overlap as far as the network lets them."""
        rate = self.machine.inside if self.processes <= self.machine.devices else self.machine.across
        return self.flops / (self.processes * tflops * 1e12), self.sent() / rate

    def lines(self, tflops: float) -> Iterator[str]:
        """The plan in words."""
        share, (computing, sending) = self.share(), self.seconds(tflops)
        fits = "fits" if share.total <= 0.9 * self.machine.memory else "does not fit"
        yield f"a device: {share}; {fits} into {self.machine.memory / GB:.0f} GB with a tenth to spare"
        yield (
            f"a step: {self.passes} forward pass{'es' if self.passes > 1 else ''} of {self.load.body} tokens a device, "
            f"{self.flops:.3g} FLOP on all"
        )
        yield f"sent and received by each device in a step: {self.sent() / GB:.1f} GB, {sending:.2f} s"
        tokens = self.load.body * self.passes * self.processes
        fastest, slowest = tokens / max(computing, sending), tokens / (computing + sending)
        yield (
            f"computing {computing:.2f} s a step: {fastest:,.0f} tokens/s if sending hides behind it, {slowest:,.0f} if nothing does"
        )

    def _tables(self) -> list[Any]:
        return [each for each in (self.model.get_input_embeddings(), self.model.get_output_embeddings()) if each]


def cache_bytes(pairs: int, completion: int) -> int:
    """On disk, of the reference's numbers, which every process maps: two completions a pair, a number a token, digests and index."""
    return 2 * pairs * (4 * completion + 64)


def passes(config: TrainingConfig, size: int) -> int:
    """Forward passes of each of `size` processes in a step. InputError where they cannot share it evenly."""
    micro = config.micro_batch_size or max(1, config.batch_size // size)
    if config.batch_size % (micro * size):
        raise InputError(
            f"{size} processes cannot share training.batch_size ({config.batch_size}) in passes of {micro}: make it a multiple of "
            f"{micro * size}"
        )
    return config.batch_size // (micro * size)

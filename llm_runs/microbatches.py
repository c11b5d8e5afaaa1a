"""Which examples each forward pass of training sees, and their tensors. Only what the objective needs is put in.

One item of the dataset is one microbatch: its pairs, its own reference samples, its own pretraining texts. Items are read in
order, so gradient accumulation, data parallelism and resuming are the Trainer's own; the shuffling is drawn here from the
seed, so that every objective of a run sees the same pairs in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from llm_runs.config import TrainingConfig
from llm_runs.errors import InputError
from llm_runs.examples import TokenPair, TokenSample
from llm_runs.logprobs import CompletionBatch, TopTokens, collate
from llm_runs.reference import ReferenceLogps

SUPPLIED = frozenset(
    {
        "pairs",
        "reference_samples",
        "pretraining",
        "ref_logps",
        "lengths",
        "reference_token_kl",
        "token_logps",
        "log_collisions",
    }
)


class TrainingError(InputError):
    """Training cannot start or go on; the message says at which step or example, and what to do."""


@dataclass(frozen=True)
class Microbatch:
    """One forward pass: rows are the chosen completions, the rejected ones, the reference samples, then the pretraining texts."""

    sequences: CompletionBatch
    rows: dict[str, slice]  # "chosen", "rejected", "reference_samples", "pretraining"
    ref_chosen_logps: Tensor | None = None  # (pairs,)
    ref_rejected_logps: Tensor | None = None
    top: TopTokens | None = None  # reference distributions along the reference samples
    sample_ref_logps: Tensor | None = None  # (reference samples,) as noted when they were drawn


class Microbatches(Dataset[dict[str, Tensor]]):
    """`steps * per_step` microbatches of equal composition, as dictionaries of tensors; `unpack` makes a `Microbatch` of one.

    A step's mean is the mean of its microbatches' means, so accumulation gives the large batch's gradient.

    Raises TrainingError: the objective needs what is missing, or batch sizes do not divide.
    """

    def __init__(
        self,
        needs: frozenset[str],
        pairs: Sequence[TokenPair],
        samples: Sequence[TokenSample],
        texts: Sequence[Sequence[int]],
        reference: ReferenceLogps | None,
        config: TrainingConfig,
        seed: int,
    ) -> None:
        if unknown := needs - SUPPLIED:
            raise TrainingError(f"the objective needs {', '.join(sorted(unknown))}, which training does not supply")
        self.needs, self.pairs, self.samples, self.texts, self.reference = needs, pairs, samples, texts, reference
        self.live = config.reference == "live"
        self.noted = all(sample.logp is not None for sample in samples)
        micro = min(config.micro_batch_size or config.batch_size, config.batch_size)
        self.per_step = config.batch_size // micro
        if self.per_step * micro != config.batch_size:
            raise TrainingError(
                f"training.micro_batch_size ({micro}) must divide training.batch_size ({config.batch_size})"
            )
        generator = torch.Generator().manual_seed(seed)
        self.order: dict[str, Tensor] = {}  # (microbatches, examples) indices of each source that the objective needs
        self.passes: dict[str, float] = {}  # how often each source is seen; at most 1 keeps reference samples fresh
        # Pairs are drawn first: their order must not depend on what else the objective needs.
        for source, examples, key in (
            ("pairs", pairs, "batch_size"),
            ("reference_samples", samples, "reference_batch_size"),
            ("pretraining", texts, "pretraining_batch_size"),
        ):
            size = getattr(config, key)
            if source not in needs:
                continue
            if not examples:
                raise TrainingError(f"the objective needs {source.replace('_', ' ')}, but none are given")
            if size % self.per_step:
                raise TrainingError(
                    f"training.{key} ({size}) must be a multiple of the {self.per_step} forward passes of a step "
                    "(batch_size / micro_batch_size)"
                )
            count = config.steps * size
            self.order[source] = _cycled(len(examples), count, generator).reshape(config.steps * self.per_step, -1)
            self.passes[source] = count / len(examples)
        if "ref_logps" in needs and not self.live:
            self.ref_logps = self._reference("log-probabilities of the pairs").pair_logps(pairs)
        if "reference_token_kl" in needs:
            self._reference("token distributions along its samples")

    def __len__(self) -> int:
        return next(iter(self.order.values())).shape[0]

    def examples(self, index: int) -> dict[str, dict[int, Any]]:
        """By source: the examples of one microbatch, each under its position among all that were given."""
        given: dict[str, Sequence[Any]] = {
            "pairs": self.pairs,
            "reference_samples": self.samples,
            "pretraining": self.texts,
        }
        return {source: {i: given[source][i] for i in order[index].tolist()} for source, order in self.order.items()}

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        drawn = {source: order[index].tolist() for source, order in self.order.items()}
        pairs = [self.pairs[i] for i in drawn.get("pairs", [])]
        samples = [self.samples[i] for i in drawn.get("reference_samples", [])]
        texts = [self.texts[i] for i in drawn.get("pretraining", [])]
        batch = collate(
            [p.prompt_ids for p in pairs] * 2 + [s.prompt_ids for s in samples] + [text[:1] for text in texts],
            [p.chosen_ids for p in pairs]
            + [p.rejected_ids for p in pairs]
            + [s.completion_ids for s in samples]
            + [text[1:] for text in texts],
        )
        item = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "completion_mask": batch.completion_mask,
            "sizes": torch.tensor([len(pairs), len(pairs), len(samples), len(texts)]),
            "index": torch.tensor(index),
        }
        if samples and self.noted:
            item["sample_ref_logps"] = torch.tensor([sample.logp for sample in samples])
        if "ref_logps" in self.needs and not self.live:
            item["ref_chosen_logps"], item["ref_rejected_logps"] = (v[drawn["pairs"]] for v in self.ref_logps)
        if "reference_token_kl" in self.needs:
            width = batch.completion_mask.shape[1]
            stored = [self._reference("token distributions").distributions(sample) for sample in samples]
            item["top_ids"] = _padded([top.ids for top in stored], width, 0)
            item["top_logps"] = _padded([top.logps for top in stored], width, -torch.inf)
            item["top_log_tail"] = _padded([top.log_tail for top in stored], width, -torch.inf)
        return item

    def _reference(self, what: str) -> ReferenceLogps:
        if self.reference is None:
            raise TrainingError(f"the objective needs the reference's {what}; give the computed reference log-probs")
        return self.reference


def unpack(item: dict[str, Tensor]) -> Microbatch:
    """The microbatch of one item, on the device where its tensors are."""
    ends = item["sizes"].cumsum(0).tolist()
    names = ("chosen", "rejected", "reference_samples", "pretraining")
    rows = {name: slice(start, end) for name, start, end in zip(names, [0, *ends], ends, strict=False)}
    top = TopTokens(item["top_ids"], item["top_logps"], item["top_log_tail"]) if "top_ids" in item else None
    sequences = CompletionBatch(item["input_ids"], item["attention_mask"], item["completion_mask"])
    chosen, rejected = item.get("ref_chosen_logps"), item.get("ref_rejected_logps")
    return Microbatch(sequences, rows, chosen, rejected, top, item.get("sample_ref_logps"))


def _cycled(n: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` indices below `n`: one random permutation after the other, so that none is seen twice before all are seen once."""
    permutations = [torch.randperm(n, generator=generator) for _ in range(-(-count // n))]
    return torch.cat(permutations)[:count]


def _padded(rows: list[Tensor], width: int, value: float) -> Tensor:
    """(T_i, ...) tensors as one (N, width, ...), the rest filled with `value`."""
    first = rows[0].new_full((width, *rows[0].shape[1:]), value)  # fixes the width
    return pad_sequence([first, *rows], batch_first=True, padding_value=value)[1:]

"""Which examples each forward pass of training sees, and their tensors. Only what the objective needs is put in.

One item of the dataset is one microbatch: its pairs, its own reference samples, its own pretraining texts. Items are read in
order, so gradient accumulation, data parallelism and resuming are the Trainer's own; the shuffling is drawn here from the
seed, so that every objective of a run sees the same pairs in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from llm_runs.config import TrainingConfig
from llm_runs.errors import InputError
from llm_runs.examples import TokenPair, TokenSample
from llm_runs.logprobs import TopTokens
from llm_runs.packing import Rows, TokenSequence, pack
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
    """One forward pass: distinct sequences, and which of them play which role."""

    rows: Rows
    roles: dict[str, Tensor]  # "chosen", "rejected", "reference_samples", "pretraining" -> indices of sequences
    ref_chosen_logps: Tensor | None = None  # (pairs,)
    ref_rejected_logps: Tensor | None = None
    top: TopTokens | None = None  # reference distributions of the last T_k tokens, those of the reference samples
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
        share: bool = False,
    ) -> None:
        if unknown := needs - SUPPLIED:
            raise TrainingError(f"the objective needs {', '.join(sorted(unknown))}, which training does not supply")
        self.needs, self.pairs, self.samples, self.texts, self.reference = needs, pairs, samples, texts, reference
        self.live = config.reference == "live"
        self.share = share
        self.paired_samples = config.reference_samples == "pairs"  # the pairs' completions are the reference samples
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
            if source not in needs or (source == "reference_samples" and self.paired_samples):
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
        if "reference_samples" in needs and self.paired_samples:
            if "pairs" not in self.passes:
                raise TrainingError('training.reference_samples is "pairs", but the objective has no pairs')
            self.passes["reference_samples"] = self.passes["pairs"]
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
        roles: dict[str, list[TokenSequence]] = {}
        if pairs:
            roles["chosen"] = [(p.prompt_ids, p.chosen_ids) for p in pairs]
            roles["rejected"] = [(p.prompt_ids, p.rejected_ids) for p in pairs]
        samples = [self.samples[i] for i in drawn.get("reference_samples", [])]
        if "reference_samples" in self.needs:
            own = [(s.prompt_ids, s.completion_ids) for s in samples]
            roles["reference_samples"] = roles["chosen"] + roles["rejected"] if self.paired_samples else own
        if "pretraining" in drawn:
            texts = [tuple(self.texts[i]) for i in drawn["pretraining"]]
            roles["pretraining"] = [(text[:1], text[1:]) for text in texts]
        # What plays several roles is scored once; what has a reference distribution comes last.
        last = set(roles["reference_samples"] if "reference_token_kl" in self.needs else ())
        sequences = sorted(dict.fromkeys(chain.from_iterable(roles.values())), key=lambda sequence: sequence in last)
        place = {sequence: i for i, sequence in enumerate(sequences)}
        item = pack(sequences, self.share).tensors() | {"index": torch.tensor(index)}
        for role, played in roles.items():
            item[f"role/{role}"] = torch.tensor([place[sequence] for sequence in played])
        if samples and self.noted:
            item["sample_ref_logps"] = torch.tensor([sample.logp for sample in samples])
        if "ref_logps" in self.needs and not self.live:
            item["ref_chosen_logps"], item["ref_rejected_logps"] = (v[drawn["pairs"]] for v in self.ref_logps)
        if last:
            reference = self._reference("token distributions")
            stored = [reference.distributions(TokenSample(*sequence)) for sequence in sequences if sequence in last]
            item["top_ids"] = torch.cat([top.ids for top in stored])
            item["top_logps"] = torch.cat([top.logps for top in stored])
            item["top_log_tail"] = torch.cat([top.log_tail for top in stored])
        return item

    def sequences(self) -> list[TokenSequence]:
        """Every sequence that the objective may see, for checks and for trying the model out."""
        found: list[TokenSequence] = []
        if "pairs" in self.order:
            found += [(p.prompt_ids, c) for p in self.pairs for c in (p.chosen_ids, p.rejected_ids)]
        if "reference_samples" in self.order:
            found += [(s.prompt_ids, s.completion_ids) for s in self.samples]
        if "pretraining" in self.order:
            found += [(tuple(text[:1]), tuple(text[1:])) for text in self.texts]
        return found

    def _reference(self, what: str) -> ReferenceLogps:
        if self.reference is None:
            raise TrainingError(f"the objective needs the reference's {what}; give the computed reference log-probs")
        return self.reference


def unpack(item: dict[str, Tensor]) -> Microbatch:
    """The microbatch of one item, on the device where its tensors are."""
    rows = Rows(**{entry.name: item[entry.name] for entry in fields(Rows)})
    roles = {name.removeprefix("role/"): tensor for name, tensor in item.items() if name.startswith("role/")}
    top = TopTokens(item["top_ids"], item["top_logps"], item["top_log_tail"]) if "top_ids" in item else None
    chosen, rejected = item.get("ref_chosen_logps"), item.get("ref_rejected_logps")
    return Microbatch(rows, roles, chosen, rejected, top, item.get("sample_ref_logps"))


def _cycled(n: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` indices below `n`: one random permutation after the other, so that none is seen twice before all are seen once."""
    permutations = [torch.randperm(n, generator=generator) for _ in range(-(-count // n))]
    return torch.cat(permutations)[:count]

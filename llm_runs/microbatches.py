"""Which examples each forward pass of training sees, and their tensors. Only what the objective needs is put in.

One item of the dataset is one microbatch: its pairs, its own reference samples, its own pretraining texts. Items are read in
order, so gradient accumulation, data parallelism and resuming are the Trainer's own; the shuffling is drawn here from the
seed, so that every objective of a run sees the same pairs in the same order.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from llm_runs import processes
from llm_runs.config import TrainingConfig
from llm_runs.data.stored import StoredGroups, StoredPairs, StoredSamples
from llm_runs.errors import InputError
from llm_runs.examples import Sides, TokenPair, TokenSample
from llm_runs.logprobs import TopTokens
from llm_runs.mismatched import Mismatched
from llm_runs.packing import Rows, TokenSequence, pack
from llm_runs.reference import ReferenceLogps
from objectives import Objective

SUPPLIED = frozenset(
    {
        "pairs",
        "reference_samples",
        "pretraining",
        "ref_logps",
        "lengths",
        "reference_token_kl",
        "token_logps",
        "ref_token_logps",
        "token_kl",
        "log_collisions",
        "candidates",
        "rewards",
        "unpaired",
        "mismatched_logps",
        "references",
    }
)
# What of the reference is read off its stored log-probs of the batch's own completions.
FROM_LOGPS = frozenset({"ref_logps", "ref_token_logps", "mismatched_logps", "references"})
# What else must have been stored of it.
FROM_DISTRIBUTIONS = frozenset({"reference_token_kl", "token_kl"})


class TrainingError(InputError):
    """Training cannot start or go on; the message says at which step or example, and what to do."""


@dataclass(frozen=True)
class Microbatch:
    """One forward pass: distinct sequences, and which of them play which role."""

    rows: Rows
    roles: dict[str, Tensor]  # "chosen", "rejected", "reference_samples", "mismatched", ... -> indices of sequences
    ref_logps: Tensor | None = None  # (T,) the reference's of every token; 0 where the objective needs none
    other_ref_logps: Tensor | None = None  # (K - 1, T) of every token under each further reference
    top: TopTokens | None = None  # reference distributions of the last T_k tokens
    rewards: Tensor | None = None  # (groups, K) of the candidates
    desirable: Tensor | None = None  # (unpaired examples,)
    sample_ref_logps: Tensor | None = None  # (reference samples,) as noted when they were drawn


class Microbatches(Dataset[dict[str, Tensor]]):
    """`steps * per_step` microbatches of equal composition, as dictionaries of tensors; `unpack` makes a `Microbatch` of one.

    A step's mean is the mean of its microbatches' means, so accumulation gives the large batch's gradient. The processes of a launch take
    turns: microbatch k is for process k modulo their number. Which examples a step sees does not depend on how it is cut.

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
        *,
        candidates: Sequence[Sequence[TokenSample]] = (),
        unpaired: Sequence[TokenSample] = (),
        references: Sequence[ReferenceLogps] = (),
        context: int | None = None,
    ) -> None:
        if unknown := needs - SUPPLIED:
            raise TrainingError(f"the objective needs {', '.join(sorted(unknown))}, which training does not supply")
        self.needs, self.pairs, self.samples, self.texts, self.reference = needs, pairs, samples, texts, reference
        self.candidates, self.unpaired, self.references = candidates, unpaired, references
        # For checks of lengths and ids: of what stays on disk the few that bound all.
        self.bounding: Sequence[TokenPair] = pairs.extremes if isinstance(pairs, StoredPairs) else pairs
        self.bounding_candidates: Sequence[Sequence[TokenSample]] = (
            [candidates.samples.extremes] if isinstance(candidates, StoredGroups) else candidates
        )
        self.bounding_unpaired: Sequence[TokenSample] = (
            unpaired.extremes if isinstance(unpaired, StoredSamples) else unpaired
        )
        self.live = config.reference == "live"
        self.share = share
        self.paired_samples = config.reference_samples == "pairs"  # the pairs' completions are the reference samples
        self.noted = all(sample.logp is not None for sample in samples)
        self.per_step = config.batch_size // micro_batch_size(config)
        generator = torch.Generator().manual_seed(seed)
        self.order: dict[str, Tensor] = {}  # (microbatches, examples) indices of each source that the objective needs
        self.passes: dict[str, float] = {}  # how often each source is seen; at most 1 keeps reference samples fresh
        # Pairs are drawn first: their order must not depend on what else the objective needs.
        for source, examples, key in (
            ("pairs", pairs, "batch_size"),
            ("candidates", candidates, "batch_size"),
            ("unpaired", unpaired, "batch_size"),
            ("reference_samples", samples, "reference_batch_size"),
            ("pretraining", texts, "pretraining_batch_size"),
        ):
            size = getattr(config, key)
            if source not in needs or (source == "reference_samples" and self.paired_samples):
                continue
            if not examples:
                raise TrainingError(
                    f"the objective needs {source.replace('_', ' ')}{_WHAT.get(source, '')}, but none are given"
                )
            if problem := processes.uneven(f"training.{key}", size, self.per_step, "the forward passes of a step"):
                raise TrainingError(problem)
            count = config.steps * size
            self.order[source] = _cycled(len(examples), count, generator).reshape(config.steps * self.per_step, -1)
            self.passes[source] = count / len(examples)
        if "reference_samples" in needs and self.paired_samples:
            if "pairs" not in self.passes:
                raise TrainingError('training.reference_samples is "pairs", but the objective has no pairs')
            self.passes["reference_samples"] = self.passes["pairs"]
        if "candidates" in needs:
            _check_groups(candidates)
        self.mismatched: Mismatched | None = None
        if "mismatched_logps" in needs:
            self.mismatched = Mismatched(unpaired if "unpaired" in self.order else Sides(pairs), context)
        if needs & FROM_LOGPS and not self.live:
            reference = self._reference("log-probabilities")
            for sequence in self._scored():
                reference.logp(*sequence)  # an error now is better than one after hours
        if "references" in needs:
            if not references:
                raise TrainingError("the objective needs several references: name the others in reference.models")
            for reference in references:
                reference.pair_logps(self.bounding)
        if "token_kl" in needs:
            reference = self._reference("token distributions along the pairs")
            for sample in Sides(self.bounding):
                reference.distributions(sample)
        if "reference_token_kl" in needs:
            self._reference("token distributions along its samples")

    def __len__(self) -> int:
        return next(iter(self.order.values())).shape[0]

    def examples(self, index: int) -> dict[str, dict[int, Any]]:
        """By source: the examples of one microbatch, each under its position among all that were given."""
        given: dict[str, Sequence[Any]] = {
            "pairs": self.pairs,
            "candidates": self.candidates,
            "unpaired": self.unpaired,
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
        groups = [self.candidates[i] for i in drawn.get("candidates", [])]
        if groups:
            roles["candidates"] = [(s.prompt_ids, s.completion_ids) for group in groups for s in group]
        unpaired = [self.unpaired[i] for i in drawn.get("unpaired", [])]
        if unpaired:
            roles["unpaired"] = [(s.prompt_ids, s.completion_ids) for s in unpaired]
        if self.mismatched is not None:
            own = roles["unpaired"] if unpaired else roles["chosen"] + roles["rejected"]
            roles["mismatched"] = [self.mismatched.of(*sequence) for sequence in own]
        compared = set(chain.from_iterable(roles.values()))  # with the reference
        samples = [self.samples[i] for i in drawn.get("reference_samples", [])]
        if "reference_samples" in self.needs:
            own = [(s.prompt_ids, s.completion_ids) for s in samples]
            roles["reference_samples"] = roles["chosen"] + roles["rejected"] if self.paired_samples else own
        if "pretraining" in drawn:
            texts = [tuple(self.texts[i]) for i in drawn["pretraining"]]
            roles["pretraining"] = [(text[:1], text[1:]) for text in texts]
        # What plays several roles is scored once; what has a reference distribution comes last.
        last = set(roles["reference_samples"] if "reference_token_kl" in self.needs else ())
        if "token_kl" in self.needs:
            last |= {*roles["chosen"], *roles["rejected"]}
        sequences = sorted(dict.fromkeys(chain.from_iterable(roles.values())), key=lambda sequence: sequence in last)
        place = {sequence: i for i, sequence in enumerate(sequences)}
        item = pack(sequences, self.share).tensors() | {"index": torch.tensor(index)}
        for role, played in roles.items():
            item[f"role/{role}"] = torch.tensor([place[sequence] for sequence in played])
        if samples and self.noted:
            item["sample_ref_logps"] = torch.tensor([sample.logp for sample in samples])
        if groups:
            item["rewards"] = torch.tensor([[sample.reward for sample in group] for group in groups])
        if unpaired:
            item["desirable"] = torch.tensor([_is_desirable(sample) for sample in unpaired])
        if self.needs & FROM_LOGPS and not self.live:
            item["ref_logps"] = _token_logps(self._reference("log-probabilities"), sequences, compared)
        if "references" in self.needs:
            others = [_token_logps(reference, sequences, compared) for reference in self.references]
            item["other_ref_logps"] = torch.stack(others)
        if last:
            reference = self._reference("token distributions")
            stored = [reference.distributions(TokenSample(*sequence)) for sequence in sequences if sequence in last]
            item["top_ids"] = torch.cat([top.ids for top in stored])
            item["top_logps"] = torch.cat([top.logps for top in stored])
            item["top_log_tail"] = torch.cat([top.log_tail for top in stored])
        return item

    def sequences(self) -> list[TokenSequence]:
        """Every sequence that the objective may see (see `bounding`), for checks and for trying the model out."""
        found = self._scored()
        if "reference_samples" in self.order:
            found += [(s.prompt_ids, s.completion_ids) for s in self.samples]
        if "pretraining" in self.order:
            found += [(tuple(text[:1]), tuple(text[1:])) for text in self.texts]
        return found

    def _scored(self) -> list[TokenSequence]:
        """Prompts with completions of the pairs, candidates and unpaired examples that the objective sees (see `bounding`)."""
        found: list[TokenSequence] = []
        if "pairs" in self.order:
            found += [(s.prompt_ids, s.completion_ids) for s in Sides(self.bounding)]
        if "candidates" in self.order:
            found += [(s.prompt_ids, s.completion_ids) for group in self.bounding_candidates for s in group]
        if "unpaired" in self.order:
            found += [(s.prompt_ids, s.completion_ids) for s in self.bounding_unpaired]
        if self.mismatched is not None:
            found += [self.mismatched.of(*sequence) for sequence in found]
        return found

    def _reference(self, what: str) -> ReferenceLogps:
        if self.reference is None:
            raise TrainingError(f"the objective needs the reference's {what}; give the computed reference log-probs")
        return self.reference


def micro_batch_size(config: TrainingConfig) -> int:
    """Pairs of a forward pass: as configured, or all of a step that are this process's.

    Raises InputError where the step cannot be cut so, or not be shared evenly by the processes; it names the nearest values that can.
    """
    batch, size = config.batch_size, processes.size()
    if problem := processes.uneven("training.batch_size", batch, size, "the number of processes"):
        raise TrainingError(problem)
    micro = min(config.micro_batch_size or batch // size, batch)
    if batch % (micro * size):
        cuts = [number for number in range(1, batch + 1) if batch % (number * size) == 0]
        near = sorted(sorted(cuts, key=lambda number: abs(number - micro))[:2])
        shared = f" into passes that {size} processes can share evenly" if size > 1 else ""
        raise TrainingError(
            f"training.micro_batch_size ({micro}) must divide training.batch_size ({batch}){shared}: the nearest is "
            f"{' or '.join(map(str, near))}"
        )
    return micro


def unpack(item: dict[str, Tensor]) -> Microbatch:
    """The microbatch of one item, on the device where its tensors are."""
    rows = Rows(**{entry.name: item[entry.name] for entry in fields(Rows)})
    roles = {name.removeprefix("role/"): tensor for name, tensor in item.items() if name.startswith("role/")}
    top = TopTokens(item["top_ids"], item["top_logps"], item["top_log_tail"]) if "top_ids" in item else None
    values = {
        name: item.get(name) for name in ("ref_logps", "other_ref_logps", "rewards", "desirable", "sample_ref_logps")
    }
    return Microbatch(rows, roles, top=top, **values)


_WHAT = {
    "candidates": " (scored completions of each prompt: data of that kind, or sampled ones with a reward)",
    "unpaired": " (completions labelled desirable or not)",
}


def needs_in_training(objective: Objective, *, candidates: bool, unpaired: bool) -> frozenset[str]:
    """What `objective` needs where scored candidates and unpaired labels are given, or (False) where pairs stand for them if they can.

    The two sides of a pair are always unpaired labels, one desirable and one not, also where mismatched prompts are needed.
    """
    found: set[str] = set()
    for term in objective.terms:
        if term.source == "unpaired":
            found |= term.needs | {"unpaired" if unpaired else "pairs"}
        elif term.source == "candidates" and candidates:
            found |= term.needs | {"candidates"}
        else:
            found |= term.needs_on_pairs
    return frozenset(found)


def compares_pairs(needs: frozenset[str]) -> bool:
    """Whether a training with these needs takes the reference's log-probabilities of its pairs."""
    return "pairs" in needs and bool(needs & FROM_LOGPS)


def _token_logps(
    reference: ReferenceLogps, sequences: Sequence[TokenSequence], compared: Collection[TokenSequence]
) -> Tensor:
    """(T,): the reference's of every token of the sequences; 0 where they are not compared with it."""
    kept = [reference.logps_of_tokens(*s) if s in compared else None for s in sequences]
    kind = next((each.dtype for each in kept if each is not None), torch.float32)
    return torch.cat(
        [torch.zeros(len(s[1]), dtype=kind) if each is None else each for s, each in zip(sequences, kept, strict=True)]
    )


def _check_groups(groups: Sequence[Sequence[TokenSample]]) -> None:
    stored = isinstance(groups, StoredGroups)  # whose completions all have rewards
    sizes = sorted({*groups.sizes.tolist()} if isinstance(groups, StoredGroups) else {len(group) for group in groups})
    if len(sizes) > 1 or sizes[0] < 2:
        raise TrainingError(
            f"the prompts have {sizes[0]} to {sizes[-1]} candidates each; every prompt must have equally many, at least 2: "
            "keep as many of each"
        )
    for index, group in enumerate(() if stored else groups):
        if any(sample.reward is None for sample in group):
            raise TrainingError(f"candidates {index}: a completion has no reward; score all, or leave the prompt out")


def _is_desirable(sample: TokenSample) -> bool:
    """A reward of 1 (else 0), as unpaired labels are kept."""
    return bool(sample.reward)


def _cycled(n: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` indices below `n`: one random permutation after the other, so that none is seen twice before all are seen once."""
    permutations = [torch.randperm(n, generator=generator) for _ in range(-(-count // n))]
    return torch.cat(permutations)[:count]

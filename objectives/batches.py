"""What a loss sees: log-probabilities, lengths and a probability weight per example. Never a model or a token id.

Shapes: ``N`` examples last; any leading dimensions ``...`` are a batch of independent problems, so that an exact bandit solves
a whole grid at once. Fields with one value per token, candidate or reference have that dimension after ``N``.
Log-probs are natural logarithms, **summed** over the response's tokens unless the field's name says token.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from objectives.errors import ObjectiveError

# Rounding may lift a log-probability of 0 a little above it; more than this is a mistake of the caller.
POSITIVE_LOGP_TOLERANCE = 1e-3

# Who can fill a field that an objective needs, for the error that names what is missing.
SUPPLIERS = {
    "ref_logps": "the reference policy's log-probs of the responses, computed once before training",
    "ref_chosen_logps": "the reference policy's log-probs of the chosen responses, computed once before training",
    "ref_rejected_logps": "the reference policy's log-probs of the rejected responses, computed once before training",
    "chosen_lengths": "the number of response tokens of each chosen response",
    "rejected_lengths": "the number of response tokens of each rejected response",
    "lengths": "the number of tokens of each sample",
    "token_kl": "the sum over tokens of KL(pi_ref(.|prefix) || pi(.|prefix)), from stored reference token distributions",
    "policy_kl": "the sum over tokens of KL(pi(.|prefix) || pi_ref(.|prefix)) along a sample of the policy, from full token distributions",
    "chosen_token_kl": "sum_t KL(pi_ref(.|prefix) || pi(.|prefix)) along each chosen response, from full token distributions",
    "rejected_token_kl": "sum_t KL(pi_ref(.|prefix) || pi(.|prefix)) along each rejected response, from full token distributions",
    "chosen_token_logps": "the policy's log-prob of every token of the chosen responses (a trainer that keeps token log-probs)",
    "rejected_token_logps": "the policy's log-prob of every token of the rejected responses (a trainer that keeps token log-probs)",
    "ref_chosen_token_logps": "the reference policy's log-prob of every token of the chosen responses",
    "ref_rejected_token_logps": "the reference policy's log-prob of every token of the rejected responses",
    "chosen_mask": "which token positions belong to the chosen response (1) and which are padding (0)",
    "rejected_mask": "which token positions belong to the rejected response (1) and which are padding (0)",
    "chosen_log_collisions": "log sum_v pi(v|prefix)^2 at every token of the chosen responses, from full token distributions",
    "rejected_log_collisions": "log sum_v pi(v|prefix)^2 at every token of the rejected responses, from full token distributions",
    "chosen_reference_logps": "the log-probs of the chosen responses under each of the K references, the first being the main one",
    "rejected_reference_logps": "the log-probs of the rejected responses under each of the K references, the first being the main one",
    "win_rates": "the estimated probability that the chosen response beats the rejected one, from a preference model",
    "rewards": "a score of every candidate, from a reward model or the ground truth",
    "advantages": "how much better than expected each rollout was: its reward less a baseline, from the outer loop",
    "old_logps": "the log-probs of the rollouts under the policy that drew them",
    "token_logps": "the policy's log-prob of every token of the rollouts",
    "old_token_logps": "the log-prob of every token of the rollouts under the policy that drew them",
    "ref_token_logps": "the reference policy's log-prob of every token of the rollouts",
    "mask": "which token positions belong to the rollout (1) and which are padding (0)",
    "mismatched_logps": "the policy's log-probs of responses paired with other examples' prompts",
    "ref_mismatched_logps": "the reference policy's log-probs of responses paired with other examples' prompts",
}

# What an objective's `needs` mean: sources, and what their batches must carry.
NEEDS = {
    "pairs": "labelled pairs, a `PairBatch`",
    "candidates": "K scored responses to a prompt, a `CandidateBatch`",
    "unpaired": "single responses labelled desirable or not, an `UnpairedBatch`",
    "reference_samples": "completions of the reference policy, sampled in advance, a `SampleBatch`",
    "pretraining": "pretraining text, a `SampleBatch`",
    "rollouts": "samples of the policy itself, drawn while training, a `SampleBatch`",
    "ref_logps": "the reference's log-probs of the responses: `ref_chosen_logps` and `ref_rejected_logps`, or `ref_logps`",
    "lengths": "numbers of response tokens: `chosen_lengths`, `rejected_lengths`",
    "token_logps": "the policy's log-probs of single tokens, with masks: `chosen_token_logps`, `chosen_mask`, `rejected_token_logps`, ...",
    "ref_token_logps": "the reference's log-probs of single tokens: `ref_chosen_token_logps`, `ref_rejected_token_logps`",
    "log_collisions": "log sum_v pi(v|prefix)^2 at every token: `chosen_log_collisions`, `rejected_log_collisions`",
    "token_kl": "sum_t KL(pi_ref || pi) along each response of a pair: `chosen_token_kl`, `rejected_token_kl`",
    "reference_token_kl": "sum_t KL(pi_ref || pi) along each reference sample: `token_kl`",
    "policy_kl": "sum_t KL(pi || pi_ref) along each rollout: `policy_kl`",
    "references": "log-probs under each of K references: `chosen_reference_logps`, `rejected_reference_logps`",
    "win_rates": "estimated probability that the chosen response beats the rejected one: `win_rates`",
    "rewards": "a score of every candidate: `rewards` (or `targets`)",
    "mismatched_logps": "log-probs of responses under other prompts, policy's and reference's: `mismatched_logps`, `ref_mismatched_logps`",
}


@dataclass(frozen=True)
class Batch:
    """Fields and checks shared by the batches of every source. ``weights`` (..., N): probability of each example; none: 1/N each."""

    # Fields (..., N, M) that have a dimension of their own after the examples.
    wide: ClassVar[frozenset[str]] = frozenset()

    weights: Tensor | None = None

    def __post_init__(self) -> None:
        shapes: dict[str, torch.Size] = {}
        for name, tensor in self.tensors().items():
            if not isinstance(tensor, Tensor):
                raise ObjectiveError(
                    f"{type(self).__name__}.{name}: expected a torch tensor, got {type(tensor).__name__}"
                )
            if tensor.ndim <= (name in self.wide):
                expected = "(..., N, M)" if name in self.wide else "(..., N)"
                got = f"{tensor.ndim} dimension" if tensor.ndim else "a single number"
                raise ObjectiveError(f"{type(self).__name__}.{name}: expected shape {expected}, got {got}")
            if tensor.dtype in (torch.float16, torch.bfloat16):
                # Half precision cannot hold a difference of log-probs of hundreds of nats.
                object.__setattr__(self, name, tensor.float())
            shapes[name] = tensor.shape[:-1] if name in self.wide else tensor.shape
        try:
            shape = torch.broadcast_shapes(*shapes.values())  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            listed = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
            raise ObjectiveError(f"{type(self).__name__}: shapes do not broadcast: {listed}") from error
        object.__setattr__(self, "_shape", shape)
        if self.weights is not None and bool((self.weights < 0).any()):
            raise ObjectiveError(f"{type(self).__name__}.weights: a probability weight is negative")

    @property
    def shape(self) -> torch.Size:
        """(..., N), all fields broadcast together."""
        shape: torch.Size = self.__dict__["_shape"]
        return shape

    def tensors(self) -> dict[str, Tensor]:
        """The fields that are set, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}

    def require(self, name: str, objective: str) -> Tensor:
        """The field ``name``, or an error that says what is missing and who can supply it."""
        tensor: Tensor | None = getattr(self, name)
        if tensor is None:
            raise ObjectiveError(
                f"{objective} needs {type(self).__name__}.{name}: {SUPPLIERS.get(name, 'not given')}; it was not given"
            )
        return tensor

    def check(self, objective: str) -> None:
        """Raise if a log-prob is not finite, or positive beyond rounding (a density, a per-token mean of a loss, a wrong sign)."""
        for name, tensor in self.tensors().items():
            if not bool(torch.isfinite(tensor).all()):
                raise ObjectiveError(f"{objective}: {type(self).__name__}.{name} holds NaN or infinity")
            if name.endswith("logps") and bool((tensor > POSITIVE_LOGP_TOLERANCE).any()):
                raise ObjectiveError(
                    f"{objective}: {type(self).__name__}.{name} holds a positive log-probability "
                    f"({tensor.max().item():.4g}); log-probabilities of whole responses are at most 0"
                )

    def mean(self, values: Tensor) -> Tensor:
        """(..., N) -> (...): expectation under the batch's weights. The only reduction there is."""
        if self.weights is None:
            return values.mean(-1)
        return (self.weights * values).sum(-1)

    def normalized_weights(self, values: Tensor) -> Tensor:
        """(..., N) like ``values``: the weights scaled to sum 1, for the means that batch-coupled losses take."""
        weights = torch.ones_like(values) if self.weights is None else self.weights.expand_as(values).to(values)
        return weights / weights.sum(-1, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class PairBatch(Batch):
    """Labelled pairs. Fields (..., N) unless another shape is given; those after the first two only where the objective ``needs`` them.

    "ref_logps": ref_chosen_logps, ref_rejected_logps. "lengths": chosen_lengths, rejected_lengths.
    "token_logps": the policy's token_logps and both masks (..., N, T), T of chosen and rejected as they are; "ref_token_logps": the
    reference's.
    "token_kl": chosen_token_kl, rejected_token_kl. "log_collisions": both log_collisions (..., N, T).
    "references": chosen_reference_logps, rejected_reference_logps (..., N, K).
    "win_rates": win_rates.
    chosen_keep, rejected_keep (..., N, T), optional: the tokens that sampo's draw keeps; none: it draws with torch's generator.
    """

    wide: ClassVar[frozenset[str]] = frozenset(
        f"{prefix}_{field}"
        for prefix in ("chosen", "rejected", "ref_chosen", "ref_rejected")
        for field in ("token_logps", "mask", "log_collisions", "reference_logps", "keep")
    )

    chosen_logps: Tensor
    rejected_logps: Tensor
    ref_chosen_logps: Tensor | None = None
    ref_rejected_logps: Tensor | None = None
    chosen_lengths: Tensor | None = None
    rejected_lengths: Tensor | None = None
    chosen_token_logps: Tensor | None = None
    rejected_token_logps: Tensor | None = None
    ref_chosen_token_logps: Tensor | None = None
    ref_rejected_token_logps: Tensor | None = None
    chosen_mask: Tensor | None = None
    rejected_mask: Tensor | None = None
    chosen_log_collisions: Tensor | None = None
    rejected_log_collisions: Tensor | None = None
    chosen_token_kl: Tensor | None = None
    rejected_token_kl: Tensor | None = None
    chosen_reference_logps: Tensor | None = None
    rejected_reference_logps: Tensor | None = None
    win_rates: Tensor | None = None
    chosen_keep: Tensor | None = None
    rejected_keep: Tensor | None = None

    def as_candidates(self) -> CandidateBatch:
        """Each pair as two candidates, the chosen one first, whose target distribution is one-hot."""
        logps = _stack(self.chosen_logps, self.rejected_logps)
        given = self.ref_chosen_logps is not None and self.ref_rejected_logps is not None
        targets = torch.zeros_like(logps)
        targets[..., 0] = 1.0
        return CandidateBatch(
            logps=logps,
            ref_logps=_stack(self.ref_chosen_logps, self.ref_rejected_logps) if given else None,
            targets=targets,
            weights=self.weights,
        )

    def as_unpaired(self) -> UnpairedBatch:
        """Each pair as a desirable and an undesirable example, 2N in all: first every chosen, then every rejected response.

        Each carries its pair's whole weight, so that a mean is the expectation over pairs of the sum of both losses.
        """
        shape = self.shape
        weights = torch.ones_like(self.chosen_logps) / shape[-1] if self.weights is None else self.weights
        given = self.ref_chosen_logps is not None and self.ref_rejected_logps is not None

        def both(first: Tensor | None, second: Tensor | None) -> Tensor:
            assert first is not None
            assert second is not None
            return torch.cat([first.expand(shape), second.expand(shape)], dim=-1)

        desirable = torch.zeros(2 * shape[-1], dtype=torch.bool, device=self.chosen_logps.device)
        desirable[: shape[-1]] = True
        return UnpairedBatch(
            logps=both(self.chosen_logps, self.rejected_logps),
            ref_logps=both(self.ref_chosen_logps, self.ref_rejected_logps) if given else None,
            desirable=desirable,
            weights=both(weights, weights),
        )


def _stack(first: Tensor | None, second: Tensor | None) -> Tensor:
    assert first is not None
    assert second is not None
    return torch.stack(torch.broadcast_tensors(first, second), dim=-1)  # type: ignore[no-untyped-call]


@dataclass(frozen=True, kw_only=True)
class SampleBatch(Batch):
    """Samples without a label: completions of the reference policy or of the policy itself, or pretraining text. Every field (..., N)."""

    logps: Tensor
    lengths: Tensor | None = None
    token_kl: Tensor | None = None
    policy_kl: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class RolloutBatch(SampleBatch):
    """Samples of the policy before its update, with what an outer loop made of them; tokens (..., N, T), the rest (..., N).

    "advantages": advantages and old_logps, the policy's log-probs when it drew them. "token_logps": token_logps, old_token_logps, mask.
    "ref_token_logps": ref_token_logps.
    """

    wide: ClassVar[frozenset[str]] = frozenset({"token_logps", "old_token_logps", "ref_token_logps", "mask"})

    advantages: Tensor | None = None
    old_logps: Tensor | None = None
    token_logps: Tensor | None = None
    old_token_logps: Tensor | None = None
    ref_token_logps: Tensor | None = None
    mask: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class CandidateBatch(Batch):
    """K scored responses to one prompt per example: every field but ``weights`` (..., N, K).

    ``targets``, instead of ``rewards``, gives the target distribution over the candidates itself (one-hot for a labelled pair).
    """

    wide: ClassVar[frozenset[str]] = frozenset({"logps", "ref_logps", "rewards", "targets"})

    logps: Tensor
    ref_logps: Tensor | None = None
    rewards: Tensor | None = None
    targets: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, tensor in self.tensors().items():
            if name in self.wide and tensor.shape[-1] != self.logps.shape[-1]:
                raise ObjectiveError(
                    f"CandidateBatch: {name} has {tensor.shape[-1]} values per example where logps has {self.logps.shape[-1]}"
                )


@dataclass(frozen=True, kw_only=True)
class UnpairedBatch(Batch):
    """Single responses labelled desirable or not: every field (..., N), ``desirable`` boolean.

    mismatched_logps, ref_mismatched_logps: responses of other examples under this example's prompt, for kto's reference point.
    """

    logps: Tensor
    desirable: Tensor
    ref_logps: Tensor | None = None
    mismatched_logps: Tensor | None = None
    ref_mismatched_logps: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.desirable.dtype != torch.bool:
            raise ObjectiveError(
                f"UnpairedBatch.desirable: expected True or False per example, got {self.desirable.dtype}"
            )

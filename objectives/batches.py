"""What a loss sees: log-probabilities, lengths and a probability weight per example. Never a model or a token id.

Shapes: ``N`` examples last; any leading dimensions ``...`` are a batch of independent problems, so that an exact bandit solves
a whole grid at once. Log-probs are natural logarithms, **summed** over the response's tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from objectives.errors import ObjectiveError

# Rounding may lift a log-probability of 0 a little above it; more than this is a mistake of the caller.
POSITIVE_LOGP_TOLERANCE = 1e-3

# Who can fill a field that an objective needs, for the error that names what is missing.
SUPPLIERS = {
    "ref_chosen_logps": "the reference policy's log-probs of the chosen responses, computed once before training",
    "ref_rejected_logps": "the reference policy's log-probs of the rejected responses, computed once before training",
    "chosen_lengths": "the number of response tokens of each chosen response",
    "rejected_lengths": "the number of response tokens of each rejected response",
    "lengths": "the number of tokens of each sample",
    "token_kl": "the sum over tokens of KL(pi_ref(.|prefix) || pi(.|prefix)), from stored reference token distributions",
}


@dataclass(frozen=True)
class Batch:
    """Fields and checks shared by the batches of every source. ``weights`` (..., N): probability of each example; none: 1/N each."""

    weights: Tensor | None = None

    def __post_init__(self) -> None:
        tensors = self.tensors()
        for name, tensor in tensors.items():
            if not isinstance(tensor, Tensor):
                raise ObjectiveError(
                    f"{type(self).__name__}.{name}: expected a torch tensor, got {type(tensor).__name__}"
                )
            if tensor.ndim == 0:
                raise ObjectiveError(f"{type(self).__name__}.{name}: expected shape (..., N), got a single number")
            if tensor.dtype in (torch.float16, torch.bfloat16):
                # Half precision cannot hold a difference of log-probs of hundreds of nats.
                object.__setattr__(self, name, tensor.float())
        try:
            torch.broadcast_shapes(*(tensor.shape for tensor in tensors.values()))  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
            raise ObjectiveError(f"{type(self).__name__}: shapes do not broadcast: {shapes}") from error

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


@dataclass(frozen=True, kw_only=True)
class PairBatch(Batch):
    """Labelled pairs. Every field (..., N); those after the first two only where the objective ``needs`` them."""

    chosen_logps: Tensor
    rejected_logps: Tensor
    ref_chosen_logps: Tensor | None = None
    ref_rejected_logps: Tensor | None = None
    chosen_lengths: Tensor | None = None
    rejected_lengths: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class SampleBatch(Batch):
    """Samples without a label: completions of the reference policy, or pretraining text. Every field (..., N)."""

    logps: Tensor
    lengths: Tensor | None = None
    token_kl: Tensor | None = None

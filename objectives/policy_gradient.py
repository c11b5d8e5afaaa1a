"""Policy-gradient surrogates on rollouts: what PPO-like outer loops minimise between two draws of rollouts.

Not in the registry: an advantage is relative to what an outer loop has sampled and scored, so these are objects of a loop, which also
chooses the baseline and when to stop.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from objectives.batches import RolloutBatch
from objectives.errors import ObjectiveError
from objectives.regularisers import reverse_kl
from objectives.strength import Strength
from objectives.terms import Objective, Part, Term
from objectives.values import Value

Level = Literal["sequence", "token"]
Estimate = Literal["exact", "k3"]


def log_ratio(batch: RolloutBatch, level: Level) -> Tensor:
    """log pi - log pi_old: (..., N) of whole rollouts, or (..., N, T) of their tokens, 0 at padding."""
    if level == "sequence":
        return batch.logps - batch.require("old_logps", "surrogate")
    ratio = batch.require("token_logps", "surrogate") - batch.require("old_token_logps", "surrogate")
    return torch.where(_mask(batch), ratio, 0.0)


def is_clipped(batch: RolloutBatch, clip: float, level: Level) -> Tensor:
    """Shape of `log_ratio`: whether the ratio lies past 1 +- clip in the direction of its advantage, where it no longer counts."""
    ratio, advantage = log_ratio(batch, level).exp(), _advantages(batch, level)
    return torch.where(advantage > 0, ratio > 1.0 + clip, ratio < 1.0 - clip) & (advantage != 0)


def surrogate_term(clip: float | None, level: Level = "sequence") -> Term:
    """-min(ratio A, clip(ratio) A) of a rollout (arXiv 1707.06347, eq. 7), or -ratio A without a clip.

    With level "token" it is the sum over the rollout's tokens, each with its own ratio and the rollout's advantage. At pi = pi_old both
    levels have the gradient -A grad log pi(y|x), that of REINFORCE.
    """

    def loss(batch: RolloutBatch) -> Tensor:
        ratio, advantage = log_ratio(batch, level).exp(), _advantages(batch, level)
        gain = ratio * advantage
        if clip is not None:
            gain = torch.minimum(gain, ratio.clamp(1.0 - clip, 1.0 + clip) * advantage)
        return -gain if level == "sequence" else -torch.where(_mask(batch), gain, 0.0).sum(-1)

    return Term("surrogate", "rollouts", loss, needs=_needs(level))


def k3_term(weight: Value) -> Term:
    """weight * sum_t (e^-x - 1 + x), x = log pi - log pi_ref of a token (Schulman 2020; arXiv 2402.03300, eq. 4).

    An unbiased estimate of KL(pi || pi_ref) on the policy's own rollouts, but its gradient is that of KL(pi_ref || pi) along them.
    """

    def loss(batch: RolloutBatch) -> Tensor:
        x = batch.require("token_logps", "k3") - batch.require("ref_token_logps", "k3")
        x = torch.where(_mask(batch), x, 0.0)
        return (torch.expm1(-x) + x).sum(-1)

    return Term("k3", "rollouts", loss, weight, frozenset({"token_logps", "ref_token_logps"}))


def surrogate(clip: float | None = 0.2, level: Level = "sequence") -> Objective:
    """The surrogate of a loop: clipped (PPO) or not (ESPO), by whole rollouts or by their tokens. Raises ObjectiveError."""
    if clip is not None and not 0 < clip < 1:
        raise ObjectiveError(f"surrogate: clip must be None or in (0, 1); got {clip!r}")
    if level not in ("sequence", "token"):
        raise ObjectiveError(f"surrogate: level must be 'sequence' or 'token'; got {level!r}")
    return _alone("surrogate", surrogate, {"clip": clip, "level": level}, surrogate_term(clip, level), None)


def penalty(weight: Value = 0.1, estimate: Estimate = "exact") -> Objective:
    """KL to the reference, a loss beside `surrogate`: `reverse_kl`, exact at each token, or its estimate k3. Raises ObjectiveError."""
    if estimate == "exact":
        return reverse_kl(weight)
    if estimate != "k3":
        raise ObjectiveError(f"penalty: estimate must be 'exact' or 'k3'; got {estimate!r}")
    return _alone("k3", lambda weight: penalty(weight, "k3"), {"weight": weight}, k3_term(weight), Strength("weight"))


def _alone(name: str, rebuild: Any, values: dict[str, Any], term: Term, strength: Strength | None) -> Objective:
    label = f"{name}({', '.join(f'{key}={value!r}' for key, value in values.items())})"
    return Objective((Part(name, label, values, (term,), rebuild, strength),))


def _needs(level: Level) -> frozenset[str]:
    return frozenset({"advantages"}) | (frozenset({"token_logps"}) if level == "token" else frozenset())


def _mask(batch: RolloutBatch) -> Tensor:
    return batch.require("mask", "rollouts").bool()


def _advantages(batch: RolloutBatch, level: Level) -> Tensor:
    advantages = batch.require("advantages", "surrogate")
    return advantages if level == "sequence" else advantages.unsqueeze(-1)

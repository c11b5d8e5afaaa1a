"""Objectives on pairs that look at single tokens: their log-probs, masks and distributions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from objectives import links, margins
from objectives.batches import PairBatch
from objectives.domains import Fraction, NonNegative, Positive
from objectives.margins import Margin
from objectives.registry import register
from objectives.terms import Term, pair_term, weighted_pair_term
from objectives.values import per_example, stop_gradient

FAMILY = "token-level"
SIDES = ("chosen", "rejected")

# How much each token of a response counts: mask (..., N, T), common length (..., N, 1), drawn tokens or None -> (..., N, T).
Weigh = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def _over_tokens(name: str, symbol: str, weigh: Weigh) -> Margin:
    """The margin sum_t weight_t log-ratio_t of the chosen, less that of the rejected response."""

    def value(batch: PairBatch, objective: str) -> Tensor:
        masks = {side: batch.require(f"{side}_mask", objective).to(batch.chosen_logps.dtype) for side in SIDES}
        common = torch.minimum(*(mask.sum(-1, keepdim=True) for mask in masks.values()))
        chosen, rejected = (
            (weigh(masks[side], common, getattr(batch, f"{side}_keep")) * _ratios(batch, side, objective)).sum(-1)
            for side in SIDES
        )
        return chosen - rejected

    return Margin(name, symbol, value, None, frozenset({"token_logps", "ref_token_logps"}))


def _ratios(batch: PairBatch, side: str, objective: str) -> Tensor:
    policy = batch.require(f"{side}_token_logps", objective)
    return policy - batch.require(f"ref_{side}_token_logps", objective)


@register(
    "ld_dpo",
    family=FAMILY,
    formula="L(beta D'), D' the margin in which tokens past the shorter response's length count alpha",
    paper="arXiv 2409.06411",
    equation="its modified likelihood",
    defaults="beta as dpo; alpha 0.5, within the paper's range",
    optimum="dpo's where both responses are of one length, as in a bandit",
    watch="at alpha = 1 it is dpo; at alpha = 0 all that the longer response says past the shorter one is ignored",
    differences="trl: ld_alpha",
)
def ld_dpo(beta: Positive = 0.1, alpha: Fraction = 0.5) -> Term:
    """Length-desensitised DPO: the longer response's surplus tokens count less."""

    def weigh(mask: Tensor, common: Tensor, keep: Tensor | None) -> Tensor:
        return mask * (1.0 - (1.0 - alpha) * (mask.cumsum(-1) > common).to(mask.dtype))

    margin = _over_tokens("length_desensitized", "D'", weigh)
    return pair_term("ld_dpo", margin, links.logistic, scale=beta)


@register(
    "sampo",
    family=FAMILY,
    formula="L(beta D'), D' over as many tokens of each response as the shorter one has; selection='random': drawn uniformly, "
    "'expected': every token times shorter/own length",
    paper="arXiv 2406.10957",
    equation="its down-sampled margin",
    defaults="beta as dpo; selection 'random', the paper's",
    optimum="dpo's where both responses are of one length, as in a bandit",
    watch="the draw is torch's default generator's (seed it as for dropout), or the batch's chosen_keep and rejected_keep",
    differences="'expected' is this suite's deterministic form: the draw's mean margin",
)
def sampo(beta: Positive = 0.1, selection: Literal["random", "expected"] = "random") -> Term:
    """SamPO: the margin over equally many tokens of both responses."""

    def weigh(mask: Tensor, common: Tensor, keep: Tensor | None) -> Tensor:
        if selection == "expected":
            return mask * common / mask.sum(-1, keepdim=True).clamp(min=1.0)
        if keep is not None:
            return mask * keep.to(mask.dtype)
        keys = torch.rand_like(mask) + mask  # tokens before padding
        rank = keys.argsort(dim=-1, descending=True).argsort(dim=-1)
        return mask * (rank < common).to(mask.dtype)

    return pair_term("sampo", _over_tokens("down_sampled", "D'", weigh), links.logistic, scale=beta)


@register(
    "tdpo",
    family=FAMILY,
    formula="L(beta (D - alpha (K_l - sg K_w))), K = sum_t KL(pi_ref(.|prefix) || pi(.|prefix)) along the response",
    paper="arXiv 2404.11999",
    equation="the second method (TDPO2)",
    defaults="beta 0.1 and alpha 0.5, the paper's",
    optimum="not in closed form",
    watch="needs full token distributions of policy and reference; at alpha = 0 it is dpo",
    differences="the paper's first method is alpha = 1 without the stop-gradient",
)
def tdpo(beta: Positive = 0.1, alpha: NonNegative = 0.5) -> Term:
    """Token-level DPO: the rejected response's sequential KL counts against it."""

    def value(batch: PairBatch, objective: str) -> Tensor:
        drift = batch.require("rejected_token_kl", objective) - stop_gradient(
            batch.require("chosen_token_kl", objective)
        )
        return margins.reference_adjusted.value(batch, objective) - per_example(alpha) * drift

    margin = Margin(
        "token_kl_adjusted", "(D - alpha (K_l - sg K_w))", value, None, frozenset({"ref_logps", "token_kl"})
    )
    return pair_term("tdpo", margin, links.logistic, scale=beta)


@register(
    "wpo",
    family=FAMILY,
    formula="sg min(1, u_w u_l) L(beta D), u = exp of the mean over tokens of log pi(y_t) - log sum_v pi(v)^2; "
    "alignment='none': of log pi(y_t) alone",
    paper="arXiv 2406.11827",
    equation="eq. 2",
    defaults="beta 0.01 and sampled alignment, the paper's",
    optimum="dpo's with pairs reweighted by how likely the policy itself makes them",
    watch="the weight carries no gradient, so it is not the gradient of any one function of the policy",
    differences="trl: use_weighting (sampled alignment)",
)
def wpo(beta: Positive = 0.01, alignment: Literal["sampled", "none"] = "sampled") -> Term:
    """Weighted preference optimisation: pairs unlikely under the policy count less, as if sampled from it."""
    aligned = alignment == "sampled"

    def log_weight(batch: PairBatch) -> Tensor:
        chosen, rejected = (_mean_log_weight(batch, side, aligned) for side in SIDES)
        return (chosen + rejected).clamp(max=0.0)

    needs = {"token_logps"} | ({"log_collisions"} if aligned else set())
    pair = pair_term("wpo", margins.reference_adjusted, links.logistic, scale=beta)
    return weighted_pair_term(pair, log_weight, frozenset(needs))


def _mean_log_weight(batch: PairBatch, side: str, aligned: bool) -> Tensor:
    """(..., N): mean over the response's tokens of the policy's log-prob, relative to that of a token drawn from the policy."""
    mask = batch.require(f"{side}_mask", "wpo").to(batch.chosen_logps.dtype)
    logps = batch.require(f"{side}_token_logps", "wpo")
    if aligned:
        logps = logps - batch.require(f"{side}_log_collisions", "wpo")
    return (mask * logps).sum(-1) / mask.sum(-1).clamp(min=1.0)

"""Objectives on single responses labelled desirable or not. Their reference point is a mean over the batch."""

from __future__ import annotations

import torch
from torch import Tensor

from objectives import links
from objectives.batches import UnpairedBatch
from objectives.domains import NonNegative, Positive, Real
from objectives.registry import register
from objectives.terms import Term, UnpairedTerm
from objectives.values import Value, per_example, stop_gradient

FAMILY = "unpaired"


def _ratios(batch: UnpairedBatch, objective: str) -> Tensor:
    return batch.logps - batch.require("ref_logps", objective)


def _batch_mean(batch: UnpairedBatch, values: Tensor) -> Tensor:
    """(..., 1): the weighted mean as a constant: reference points are not trained through."""
    return stop_gradient((batch.normalized_weights(values) * values).sum(-1, keepdim=True))


@register(
    "kto",
    family=FAMILY,
    formula="desirable: lw (1 - s(beta (a - z0))); undesirable: lu (1 - s(beta (z0 - b))); "
    "z0 = sg max(0, mean log-ratio of mismatched prompts and responses)",
    paper="arXiv 2402.01306",
    equation="eq. 7, as trl cites it",
    defaults="beta as dpo; both weights 1, to be set so that the two classes weigh alike; z0 None: estimated from the batch",
    optimum="none finite on clean labels: desirable ratios -> +inf, undesirable -> -inf",
    watch="bounded: far from z0 gradients vanish. z0 is biased in small batches",
    differences="the paper's loss adds constants lw, lu only; a fixed z0 (0: trl's 'apo_zero_unpaired') needs no mismatched pairs",
)
def kto(
    beta: Positive = 0.1,
    desirable_weight: NonNegative = 1.0,
    undesirable_weight: NonNegative = 1.0,
    z0: NonNegative | None = None,
) -> Term:
    """Kahneman-Tversky optimisation: gains and losses against a reference point."""

    def loss(batch: UnpairedBatch) -> Tensor:
        gain = _ratios(batch, "kto")
        point: Value = _reference_point(batch) if z0 is None else per_example(z0)
        signed = torch.where(batch.desirable, gain - point, point - gain)
        weight = torch.where(
            batch.desirable,
            torch.as_tensor(per_example(desirable_weight), dtype=gain.dtype, device=gain.device),
            torch.as_tensor(per_example(undesirable_weight), dtype=gain.dtype, device=gain.device),
        )
        return weight * links.error_probability.value(per_example(beta) * signed)

    needs = {"ref_logps", "mismatched_logps"} if z0 is None else {"ref_logps"}
    return UnpairedTerm(
        "kto",
        "unpaired",
        loss,
        needs=frozenset(needs),
        coupled=z0 is None,
        accepts_pairs=z0 is not None,
        link=links.error_probability,
        desirable_weight=desirable_weight,
        undesirable_weight=undesirable_weight,
    )


def _reference_point(batch: UnpairedBatch) -> Tensor:
    mismatched = batch.require("mismatched_logps", "kto") - batch.require("ref_mismatched_logps", "kto")
    return _batch_mean(batch, mismatched).clamp(min=0.0)


@register(
    "bco",
    family=FAMILY,
    formula="desirable: L(beta a - delta); undesirable: L(-(beta b - delta)); delta = sg mean of all implicit rewards; on "
    "pairs their sum",
    paper="arXiv 2404.04656",
    equation="the BCO loss",
    defaults="beta as dpo; delta None: the batch's mean (the paper keeps a running one, to be passed as a number)",
    optimum="a binary classifier's: none finite on clean labels",
    watch="the reference point moves with the batch",
    differences="trl's loss_type 'bco_pair' has no delta: pass delta=0",
)
def bco(beta: Positive = 0.1, delta: Real | None = None) -> Term:
    """Binary classifier optimisation: is a response desirable, by its implicit reward against the mean one."""

    def loss(batch: UnpairedBatch) -> Tensor:
        rewards = per_example(beta) * _ratios(batch, "bco")
        point: Value = _batch_mean(batch, rewards) if delta is None else per_example(delta)
        return links.logistic.value(torch.where(batch.desirable, rewards - point, point - rewards))

    return UnpairedTerm(
        "bco",
        "unpaired",
        loss,
        needs=frozenset({"ref_logps"}),
        coupled=delta is None,
        accepts_pairs=True,
        link=links.logistic,
    )

"""Objectives on pairs whose loss of one pair depends on the others of the batch, through the batch's weights."""

from __future__ import annotations

import torch
from torch import Tensor

from objectives import links, margins
from objectives.batches import PairBatch
from objectives.domains import NonNegative, Positive, Real
from objectives.registry import register
from objectives.terms import Term
from objectives.values import Value, per_example, stop_gradient

FAMILY = "batch-coupled"
SMALLEST_BETA = 1e-3  # below it the adapted beta would lose its sign


@register(
    "beta_dpo",
    family=FAMILY,
    formula="L(sg(beta') D), beta' = max(1e-3, beta [1 + alpha (mean of D - threshold)]); with width, pairs weigh "
    "exp(-((D - threshold)/width)^2/2), scaled to mean 1, in the loss and in the mean",
    paper="arXiv 2407.08639",
    equation="its batch-level beta and its filter, the filter's draw replaced by its expectation",
    defaults="beta as dpo; alpha 0.6, the paper's; threshold 0, where its running mean starts; width None: no filter",
    optimum="dpo's with the beta' that it ends at",
    watch="threshold is the paper's running mean M_0 and width its running standard deviation: state of a trainer, passed as numbers",
    differences="D in nats as in the authors' code; their rewards elsewhere are beta D. They draw a share of the batch, here all "
    "pairs weigh",
)
def beta_dpo(
    beta: Positive = 0.1, alpha: NonNegative = 0.6, threshold: Real = 0.0, width: Positive | None = None
) -> Term:
    """DPO whose beta follows the batch's mean margin."""

    def loss(batch: PairBatch) -> Tensor:
        margin = margins.reference_adjusted.value(batch, "beta_dpo")
        fixed = stop_gradient(margin)
        weights = batch.normalized_weights(fixed)
        emphasis = torch.ones_like(fixed)
        if width is not None:
            emphasis = torch.softmax(-0.5 * ((fixed - per_example(threshold)) / per_example(width)) ** 2, dim=-1)
            emphasis = emphasis / (weights * emphasis).sum(-1, keepdim=True)
        mean = (weights * emphasis * fixed).sum(-1, keepdim=True)
        adapted: Tensor = per_example(beta) * (1.0 + per_example(alpha) * (mean - per_example(threshold)))
        return emphasis * links.logistic.value(adapted.clamp(min=SMALLEST_BETA) * margin)

    return Term("beta_dpo", "pairs", loss, needs=frozenset({"ref_logps"}), coupled=True)


@register(
    "aot",
    family=FAMILY,
    formula="L(beta (d_(i) - d_ref_(i))): the policy's margins and the reference's, each sorted, compared by rank",
    paper="arXiv 2406.05882",
    equation="the paired variant",
    defaults="beta 0.01, the paper's",
    optimum="not in closed form: only the distribution of margins over pairs counts",
    watch="a pair is compared with the reference's margin of the same rank, not with its own",
    differences="weights are respected by optimal transport between the two weighted distributions; with equal weights it is "
    "sorting. trl: 'aot'",
)
def aot(beta: Positive = 0.01) -> Term:
    """Alignment by optimal transport: the policy's margins are to dominate the reference's as a distribution."""

    def loss(batch: PairBatch) -> Tensor:
        policy = margins.plain.value(batch, "aot")
        chosen, rejected = batch.require("ref_chosen_logps", "aot"), batch.require("ref_rejected_logps", "aot")
        reference = (chosen - rejected).expand_as(policy)
        return _transport_loss(policy, reference, batch.normalized_weights(policy), beta)

    return Term("aot", "pairs", loss, needs=frozenset({"ref_logps"}), coupled=True)


def _transport_loss(policy: Tensor, reference: Tensor, weights: Tensor, beta: Value) -> Tensor:
    """(..., N): expected L(beta (policy margin - reference margin)) under the monotone coupling of the two weighted distributions.

    The coupling cuts the unit of mass at every step of either distribution function: on each of the 2N pieces one policy margin meets one
    reference margin. A piece's loss counts towards its policy margin's example, as its share of that example's weight.
    """
    order, reference_order = policy.argsort(dim=-1), reference.argsort(dim=-1)
    steps = weights.gather(-1, order).cumsum(-1).contiguous()
    reference_steps = weights.gather(-1, reference_order).cumsum(-1).contiguous()
    cuts = torch.cat([steps, reference_steps], dim=-1).sort(dim=-1).values
    mass = torch.diff(cuts, dim=-1, prepend=torch.zeros_like(cuts[..., :1])).clamp(min=0.0)
    middle = (cuts - 0.5 * mass).contiguous()
    last = policy.shape[-1] - 1
    example = order.gather(-1, torch.searchsorted(steps, middle).clamp(max=last))
    partner = reference_order.gather(-1, torch.searchsorted(reference_steps, middle).clamp(max=last))
    losses = links.logistic.value(per_example(beta) * (policy.gather(-1, example) - reference.gather(-1, partner)))
    per_pair = torch.zeros_like(policy).scatter_add(-1, example, mass * losses)
    return per_pair / weights.clamp(min=torch.finfo(weights.dtype).tiny)

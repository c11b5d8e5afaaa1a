"""DPO against several reference policies at once."""

from __future__ import annotations

import torch
from torch import Tensor

from objectives import links
from objectives.batches import PairBatch
from objectives.domains import Fraction, MixtureWeights, Positive
from objectives.errors import ObjectiveError
from objectives.margins import Margin
from objectives.registry import register
from objectives.terms import Term, pair_term


@register(
    "mrpo",
    family="several references",
    formula="L(beta D) with log pi_ref = -log sum_k w_k/pi_k over K references, each but the first clipped to log pi_1 (1 +- clip)",
    paper="arXiv 2405.16388",
    equation="its closed form and clipped trust region",
    defaults="beta as dpo; two references of equal weight; clip 0.1, the authors' code's",
    optimum="dpo's with the weighted harmonic mean of the references as reference",
    watch="the harmonic mean follows the reference that thinks least of a response; clip = 0 is dpo with the first "
    "reference, None no clip",
    differences="the authors' code swaps the weights between its branches, and scales the clip per response by default; here it "
    "is one number",
)
def mrpo(beta: Positive = 0.1, weights: MixtureWeights = (0.5, 0.5), clip: Fraction | None = 0.1) -> Term:
    """Multi-reference preference optimisation: DPO against the harmonic mixture of K references."""

    def mixture(logps: Tensor) -> Tensor:
        """(..., N, K) -> (..., N)."""
        if logps.shape[-1] != len(weights):
            raise ObjectiveError(
                f"mrpo: weights names {len(weights)} references, the batch has {logps.shape[-1]}; they must be as many"
            )
        if clip is not None:
            main = logps[..., :1]
            logps = torch.minimum(torch.maximum(logps, main * (1.0 + clip)), main * (1.0 - clip))
        return -torch.logsumexp(logps.new_tensor(weights).log() - logps, dim=-1)

    def value(batch: PairBatch, objective: str) -> Tensor:
        chosen = batch.chosen_logps - mixture(batch.require("chosen_reference_logps", objective))
        return chosen - (batch.rejected_logps - mixture(batch.require("rejected_reference_logps", objective)))

    margin = Margin("mixture_adjusted", "D", value, lambda batch: (1.0, 1.0), frozenset({"references"}))
    return pair_term("mrpo", margin, links.logistic, scale=beta)

"""Exact expectations: for each data source, the batch that enumerates it with probability weights.

The losses are those of `objectives`; only the batches differ between a bandit and a language model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from objectives import Batch, Objective, PairBatch, SampleBatch
from toy_bandits.errors import BanditError
from toy_bandits.problem import Bandit

Supplier = Callable[[Bandit, Tensor], Batch]


def pairs(problem: Bandit, log_policy: Tensor) -> PairBatch:
    """Every possible label "w beats l in x", with its probability. A response is one token long."""
    x, winner, loser = problem.shown
    chosen, rejected = log_policy[..., x, winner], log_policy[..., x, loser]
    return PairBatch(
        chosen_logps=chosen,
        rejected_logps=rejected,
        ref_chosen_logps=problem.log_reference[..., x, winner],
        ref_rejected_logps=problem.log_reference[..., x, loser],
        chosen_lengths=torch.ones_like(chosen),
        rejected_lengths=torch.ones_like(rejected),
        weights=problem.label_weights[..., x, winner, loser],
    )


def reference_samples(problem: Bandit, log_policy: Tensor) -> SampleBatch:
    """Every action with weight rho(x) times its share of the reference samples."""
    token_kl = (problem.reference * (problem.log_reference - log_policy)).sum(-1, keepdim=True)
    return SampleBatch(
        logps=log_policy.flatten(-2),
        lengths=torch.ones_like(log_policy).flatten(-2),
        token_kl=token_kl.expand_as(log_policy).flatten(-2),
        weights=(problem.contexts.unsqueeze(-1) * problem.reference_samples).flatten(-2),
    )


SUPPLIERS: dict[str, Supplier] = {"pairs": pairs, "reference_samples": reference_samples}


def batches(problem: Bandit, objective: Objective, log_policy: Tensor) -> dict[str, Batch]:
    """One batch for each source of the objective, at the policy ``log_policy`` (..., X, A).

    Raises:
        BanditError: the objective needs a source that a bandit does not have.
    """
    return {
        source: supplier(objective.name, source)(problem, log_policy)
        for source in dict.fromkeys(term.source for term in objective.terms)
    }


def supplier(objective: str, source: str) -> Supplier:
    """The function that enumerates ``source``. Raises BanditError where a bandit has none."""
    if source not in SUPPLIERS:
        what = "a bandit has no pretraining text" if source == "pretraining" else f"a bandit cannot supply {source!r}"
        raise BanditError(f"{objective}: {what}; it can supply: {', '.join(SUPPLIERS)}")
    return SUPPLIERS[source]

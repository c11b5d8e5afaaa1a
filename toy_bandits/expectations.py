"""Exact expectations: for each data source, the batch that enumerates it with probability weights.

The losses are those of `objectives`; only the batches differ between a bandit and a language model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from objectives import Batch, CandidateBatch, Objective, PairBatch, SampleBatch, UnpairedBatch
from toy_bandits.errors import BanditError
from toy_bandits.problem import Bandit

Supplier = Callable[[Bandit, Tensor], Batch]
WITHOUT_TOKENS = frozenset({"pairs", "ref_logps", "lengths", "references"})
"""What `pairs` has of all that a term can need."""


def lengths(problem: Bandit, log_policy: Tensor) -> Tensor:
    """(..., X, A) like ``log_policy``: tokens of each response, one where the problem gives no lengths."""
    return torch.ones_like(log_policy) if problem.lengths is None else problem.lengths.expand_as(log_policy)


def pairs(problem: Bandit, log_policy: Tensor) -> PairBatch:
    """Every possible label "w beats l in x", with its probability."""
    x, winner, loser = problem.shown
    flat = [x * problem.actions + action for action in (winner, loser)]

    def both(table: Tensor) -> list[Tensor]:
        """Winners' and losers' entries of a table (..., X, A)."""
        return [table.flatten(-2).index_select(-1, index) for index in flat]

    ref_chosen, ref_rejected = both(problem.log_reference)
    chosen, rejected = (ref_chosen, ref_rejected) if log_policy is problem.log_reference else both(log_policy)
    if problem.references is None:
        references = [ref_chosen.unsqueeze(-1), ref_rejected.unsqueeze(-1)]
    else:
        references = [labels.movedim(-2, -1) for labels in both(problem.log_references)]
    ones = torch.ones_like(chosen)
    tokens = [ones, ones] if problem.lengths is None else both(lengths(problem, log_policy))
    cells = flat[0] * problem.actions + loser
    return PairBatch(
        chosen_logps=chosen,
        rejected_logps=rejected,
        ref_chosen_logps=ref_chosen,
        ref_rejected_logps=ref_rejected,
        chosen_lengths=tokens[0],
        rejected_lengths=tokens[1],
        chosen_reference_logps=references[0],
        rejected_reference_logps=references[1],
        weights=problem.label_weights.flatten(-3).index_select(-1, cells),
    )


def reference_samples(problem: Bandit, log_policy: Tensor) -> SampleBatch:
    """Every action with weight rho(x) times its share of the reference samples."""
    token_kl = (problem.reference * (problem.log_reference - log_policy)).sum(-1, keepdim=True)
    return SampleBatch(
        logps=log_policy.flatten(-2),
        lengths=lengths(problem, log_policy).flatten(-2),
        token_kl=token_kl.expand_as(log_policy).flatten(-2),
        weights=(problem.contexts.unsqueeze(-1) * problem.reference_samples).flatten(-2),
    )


def pairs_with_tokens(problem: Bandit, log_policy: Tensor) -> PairBatch:
    """`pairs`, with what token-level losses look at, and the true win rates.

    A policy over whole responses has no single tokens: each response is one, whatever its length (see `policies.TokenTree`).
    """
    batch = pairs(problem, log_policy)
    x, winner, loser = problem.shown
    token_kl = (problem.reference * (problem.log_reference - log_policy)).sum(-1)[..., x]
    collisions = (2.0 * log_policy).logsumexp(-1)[..., x].unsqueeze(-1)
    ones = torch.ones_like(batch.chosen_logps).unsqueeze(-1)
    reference = problem.log_reference.expand_as(log_policy)
    ref_chosen, ref_rejected = (reference[..., x, action].unsqueeze(-1) for action in problem.shown[1:])
    return replace(
        batch,
        chosen_token_logps=batch.chosen_logps.unsqueeze(-1),
        rejected_token_logps=batch.rejected_logps.unsqueeze(-1),
        ref_chosen_token_logps=ref_chosen,
        ref_rejected_token_logps=ref_rejected,
        chosen_mask=ones,
        rejected_mask=ones,
        chosen_log_collisions=collisions,
        rejected_log_collisions=collisions,
        win_rates=problem.preferences[..., x, winner, loser].expand_as(batch.chosen_logps),
        chosen_token_kl=token_kl,
        rejected_token_kl=token_kl,
    )


def candidates(problem: Bandit, log_policy: Tensor) -> CandidateBatch:
    """All actions of a context as its candidates, scored by the problem's rewards; without rewards the labelled pairs, as two each."""
    if problem.rewards is None:
        return pairs(problem, log_policy).as_candidates()
    return CandidateBatch(
        logps=log_policy,
        ref_logps=problem.log_reference.expand_as(log_policy),
        rewards=problem.rewards.expand_as(log_policy),
        weights=problem.contexts,
    )


def unpaired(problem: Bandit, log_policy: Tensor) -> UnpairedBatch:
    """The chosen of every pair as desirable and the rejected as undesirable, each with the pair's probability.

    The mismatched log-ratios are means over the responses of all contexts, whatever their prompt.
    """
    batch = pairs(problem, log_policy).as_unpaired()
    x = problem.shown[0].repeat(2)
    shown = problem.label_weights.sum(-1) + problem.label_weights.sum(-2)
    responses = shown.sum(-2, keepdim=True) / shown.sum((-2, -1), keepdim=True)
    reference = problem.log_reference.expand_as(log_policy)
    return replace(
        batch,
        mismatched_logps=(responses * log_policy).sum(-1)[..., x],
        ref_mismatched_logps=(responses * reference).sum(-1)[..., x],
    )


def rollouts(problem: Bandit, log_policy: Tensor) -> SampleBatch:
    """Every action with weight rho(x) pi(a|x): what the policy itself would do, and its KL from the reference in that context."""
    policy = log_policy.exp()
    policy_kl = (policy * (log_policy - problem.log_reference)).sum(-1, keepdim=True)
    return SampleBatch(
        logps=log_policy.flatten(-2),
        lengths=lengths(problem, log_policy).flatten(-2),
        policy_kl=policy_kl.expand_as(log_policy).flatten(-2),
        weights=(problem.contexts.unsqueeze(-1) * policy).detach().flatten(-2),
    )


SUPPLIERS: dict[str, Supplier] = {
    "pairs": pairs_with_tokens,
    "reference_samples": reference_samples,
    "candidates": candidates,
    "unpaired": unpaired,
    "rollouts": rollouts,
}


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

"""What a token tree supplies to terms that look at single tokens: exact values, with autograd through the parameters."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations

import torch
from torch import Tensor

from objectives import Batch, Term
from objectives.batches import PairBatch, SampleBatch
from objectives.terms import Part
from toy_bandits import expectations
from toy_bandits.errors import BanditError
from toy_bandits.policies.softmaxes import Softmaxes
from toy_bandits.problem import Bandit

TOKEN_NEEDS = frozenset({"token_logps", "ref_token_logps", "log_collisions", "token_kl"})
MOST_DRAWS = 1_000_000
"""Labels times ways of drawing tokens that are enumerated."""


def looks_at_tokens(problem: Bandit, term: Term) -> bool:
    """Whether a term's value is not a function of the responses' log-probs alone.

    sum_t KL(pi_ref || pi) along samples is one in expectation, KL(pi_ref || pi) of whole responses, unless the samples are finitely many.
    """
    sampled = not torch.equal(problem.reference_samples, problem.reference)
    return bool(term.needs & TOKEN_NEEDS) or (sampled and "reference_token_kl" in term.needs)


def value(problem: Bandit, name: str, part: Part, term: Term, policy: Softmaxes, theta: Tensor) -> Tensor:
    """(B,): weight * E[loss] of one term, differentiable in ``theta`` (B, P)."""
    log_edges = policy.log_edges(theta)
    batch = expectations.supplier(name, term.source)(problem, log_edges @ policy.on_path.T)
    along = _Along(problem, policy, log_edges)
    if isinstance(batch, PairBatch):
        batch = along.pairs(batch)
        if part.hyperparameters.get("selection") == "random":
            batch = every_draw(batch, name)
    elif isinstance(batch, SampleBatch) and term.source == "reference_samples":
        batch = replace(batch, token_kl=along.token_kl.flatten(-2))
    return (term.weight * _mean(batch, term)).expand(len(theta))


def _mean(batch: Batch, term: Term) -> Tensor:
    return batch.mean(term.loss(batch))


class _Along:
    """Quantities along each response, from the edges' log-probs (B, X, E) of policy and reference."""

    def __init__(self, problem: Bandit, policy: Softmaxes, log_edges: Tensor) -> None:
        self.problem, self.policy = problem, policy
        self.here = policy.paths >= 0
        self.log_edges = log_edges
        self.reference = policy.conditionals(problem.log_reference)

    def _tokens(self, values: Tensor) -> Tensor:
        """(B, X, A, T): values (B, X, E) of edges along each response, 0 after its end."""
        return torch.where(self.here, values[..., self.policy.paths.clamp(min=0)], 0.0)

    @property
    def token_kl(self) -> Tensor:
        """(B, X, A): sum_t KL(pi_ref(.|prefix) || pi(.|prefix))."""
        each = self.reference.exp() * (self.reference - self.log_edges)
        return self._tokens(self.policy.at_nodes(each, "sum")).sum(-1)

    def pairs(self, batch: PairBatch) -> PairBatch:
        """The batch with its tokens."""
        x, *sides = self.problem.shown
        policy, reference = self._tokens(self.log_edges), self._tokens(self.reference)
        doubled = self.policy.normalised(2.0 * self.log_edges)  # 2 log q less its log-sum-exp, which is log sum q^2
        collisions = self._tokens(2.0 * self.log_edges - doubled)
        token_kl = self.token_kl
        fields: dict[str, Tensor] = {}
        for side, action in zip(("chosen", "rejected"), sides, strict=True):
            fields |= {
                f"{side}_token_logps": policy[..., x, action, :],
                f"ref_{side}_token_logps": reference[..., x, action, :],
                f"{side}_mask": self.here[action].to(policy.dtype).expand(*policy.shape[:-3], -1, -1),
                f"{side}_log_collisions": collisions[..., x, action, :],
                f"{side}_token_kl": token_kl[..., x, action],
            }
        return replace(batch, **fields)


def every_draw(batch: PairBatch, name: str) -> PairBatch:
    """Each label with every way to keep as many tokens of the longer response as the shorter has, all equally likely."""
    assert batch.chosen_mask is not None
    assert batch.rejected_mask is not None
    assert batch.weights is not None
    masks = [mask.reshape(-1, *mask.shape[-2:])[0] > 0 for mask in (batch.chosen_mask, batch.rejected_mask)]
    lengths = [mask.sum(-1).tolist() for mask in masks]
    ways = [math.comb(max(pair), min(pair)) for pair in zip(*lengths, strict=True)]
    if sum(ways) > MOST_DRAWS:
        raise BanditError(
            f"{name}: {sum(ways)} ways to draw tokens are too many to enumerate (at most {MOST_DRAWS}); use selection='expected'"
        )
    repeat = torch.tensor(ways, device=batch.weights.device)
    index = torch.repeat_interleave(torch.arange(len(ways), device=repeat.device), repeat)
    kept = []
    for mask, own, other in zip(masks, lengths, reversed(lengths), strict=True):
        rows = [
            subset if mine > theirs else tuple(range(mine))
            for mine, theirs, count in zip(own, other, ways, strict=True)
            for subset in (combinations(range(mine), theirs) if mine > theirs else [()] * count)
        ]
        keep = torch.zeros(len(rows), mask.shape[-1], dtype=batch.weights.dtype, device=repeat.device)
        for row, positions in zip(keep, rows, strict=True):
            row[list(positions)] = 1.0
        kept.append(keep)
    taken = {
        field: tensor[..., index, :] if field in batch.wide else tensor[..., index]
        for field, tensor in batch.tensors().items()
    }
    lead = batch.shape[:-1]
    taken["weights"] = taken["weights"] / repeat[index]
    taken["chosen_keep"], taken["rejected_keep"] = (keep.expand(*lead, -1, -1) for keep in kept)
    return PairBatch(**taken)

"""Losses of single labels: value, slopes and curvatures of each in the log-probs of its own two responses, by autograd.

The batch that a loss is given is made once where nothing but these log-probs changes from policy to policy: an iteration asks for
thousands of them, and in a small world making a batch takes longer than differentiating a loss.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from objectives import Batch, CandidateBatch, Objective, PairBatch, PairTerm, Term, UnpairedBatch
from objectives.values import watched
from toy_bandits import expectations
from toy_bandits.problem import Bandit

SOURCES = ("pairs", "unpaired", "candidates")
SAME_SLOPE = 1e-9
ROUNDING = 1e-12
PLACES, DEEPEST = 8, -6.0
"""How many log-probs of each response, and down to where, a margin is tried at."""

B = TypeVar("B", bound=Batch)


@dataclass(frozen=True)
class Labels:
    """The labels of a term in a flattened batch of problems.

    Attributes:
        chosen, rejected: (N,): where a label's responses lie among the X A log-probs of a problem.
        weights: (B, N): of the term times the label's probability.
        batch: the term's, where it is the same at all policies but for the labels' own log-probs; else None.
    """

    chosen: Tensor
    rejected: Tensor
    weights: Tensor
    batch: Batch | None

    @staticmethod
    def of(problem: Bandit, objective: Objective, term: Term, *, fixed: bool) -> Labels:
        """Those of a term; ``fixed``: its batch is the same at all policies (`is_fixed`)."""
        x, winner, loser = problem.shown
        first = x * problem.actions
        weight = torch.as_tensor(term.weight, dtype=torch.float64, device=problem.reference.device).reshape(-1, 1)
        batch = _supplied(problem, objective, term, problem.log_reference) if fixed else None
        return Labels(first + winner, first + loser, weight * problem.label_weights[:, x, winner, loser], batch)

    def take(self, index: Tensor) -> Labels:
        """Those of the problems ``index``."""
        batch = None if self.batch is None else _taken(self.batch, index)
        return Labels(self.chosen, self.rejected, self.weights[index], batch)

    def slopes(self, problem: Bandit, objective: Objective, term: Term, log_policy: Tensor) -> Tensor:
        """(B, X, A): the term's first derivatives in the log-probs."""
        losses, leaves = self._losses(problem, objective, term, log_policy)
        first = [each.detach() for each in _grad(losses.sum(), leaves)]
        up, down = torch.where(self.weights > 0, self.weights * torch.stack(first), 0.0)
        total = torch.zeros_like(log_policy).flatten(1)
        return total.index_add(1, self.chosen, up).index_add(1, self.rejected, down).reshape(log_policy.shape)

    def differentiated(
        self, problem: Bandit, objective: Objective, term: Term, log_policy: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The term's value (B,), and its first (B, X, A) and second derivatives (B, X, A, A) in the log-probs."""
        losses, (chosen, rejected) = self._losses(problem, objective, term, log_policy)
        values = losses.detach().reshape(len(log_policy), -1, len(self.chosen)).sum(1)
        first = _grad(losses.sum(), (chosen, rejected))
        by_chosen = _grad(first[0].sum(), (chosen, rejected))
        by_rejected = _grad(first[1].sum(), (rejected,))
        stacked = torch.stack([values, *(part.detach() for part in (*first, *by_chosen, *by_rejected))])
        # A label that is impossible in some problem may lie anywhere there, at infinity too.
        value, *slopes = torch.where(self.weights > 0, self.weights * stacked, 0.0)
        up, down, chosen_twice, mixed, rejected_twice = self._tables(torch.stack(slopes), *log_policy.shape[1:])
        second = mixed + mixed.transpose(-1, -2) + torch.diag_embed(chosen_twice.sum(-1) + rejected_twice.sum(-2))
        return value.sum(-1), up.sum(-1) + down.sum(-2), second

    def _losses(
        self, problem: Bandit, objective: Objective, term: Term, log_policy: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The losses (B, N), or (B, 2N) of unpaired labels, as a function of fresh leaves: the labels' log-probs, (B, N) each."""
        batch = self.batch
        if batch is None:
            batch = _supplied(problem, objective, term, log_policy.detach())
        flat = log_policy.detach().flatten(1)
        chosen, rejected = flat[:, self.chosen].requires_grad_(), flat[:, self.rejected].requires_grad_()
        return term.losses(_with(batch, chosen, rejected)).expand(batch.shape), (chosen, rejected)

    def _tables(self, values: Tensor, contexts: int, actions: int) -> Tensor:
        """(K, B, N) values of the labels as tables (K, B, X, A, A) over [winner, loser]."""
        count, problems, size = values.shape
        cells = self.chosen * actions + self.rejected % actions
        tables = values.new_zeros(count * problems, contexts * actions * actions)
        tables.index_copy_(1, cells, values.reshape(-1, size))
        return tables.reshape(count, problems, contexts, actions, actions)


def is_by_label(problem: Bandit, objective: Objective, term: Term, log_policy: Tensor) -> bool:
    """Whether autograd shows at a policy that each label's loss depends on no other log-prob than those of its two responses.

    A loss that looked at other labels would mix up the weights of a weighted sum of the losses.
    """
    if term.source not in SOURCES or not _has_labels(problem, term):
        return False
    generator = torch.Generator().manual_seed(0)
    leaf = log_policy.detach().clone().requires_grad_()
    batch = _supplied(problem, objective, term, leaf)
    chosen, rejected = _own(problem, leaf)
    losses = term.losses(_with(batch, chosen, rejected)).expand(batch.shape)
    if not losses.requires_grad:
        return False
    weights = torch.rand(losses.shape, generator=generator, dtype=losses.dtype).to(losses)
    plain = torch.autograd.grad(losses.sum(), (chosen, rejected, leaf), retain_graph=True, allow_unused=True)
    weighted = torch.autograd.grad((weights * losses).sum(), (chosen, rejected), allow_unused=True)
    if plain[2] is not None:
        return False
    weights = weights.unflatten(-1, (-1, chosen.shape[-1])).unbind(-2)
    for slope, mixed, weight in zip(plain, weighted, (weights[0], weights[-1]), strict=False):
        if slope is not None and not torch.allclose(mixed, weight * slope, rtol=SAME_SLOPE, atol=1e-300):
            return False
    return True


def is_fixed(problem: Bandit, objective: Objective, term: Term) -> bool:
    """Whether the losses read nothing that changes with the policy but the labels' own log-probs."""
    losses = term.losses(_with(_poisoned(problem, objective, term), *_own(problem, problem.log_reference)))
    return bool(torch.isfinite(losses).all())


def is_difference(problem: Bandit, objective: Objective, term: PairTerm) -> bool:
    """Whether autograd shows that the term's margin is the difference of its label's log-probs plus a constant, wherever it is tried: over
    responses of one token each, margins that look at tokens are."""
    margin = term.margin
    assert margin is not None
    batch, generator = _poisoned(problem, objective, term), torch.Generator().manual_seed(0)
    shape, constants = _own(problem, problem.log_reference)[0].shape, []
    for _ in range(PLACES):
        chosen, rejected = (
            (DEEPEST * torch.rand(shape, generator=generator, dtype=torch.float64))
            .to(problem.reference)
            .requires_grad_()
            for _ in range(2)
        )
        with watched() as used:
            value = margin.value(_changed_pairs(batch, chosen, rejected), term.name)
        if used or not value.requires_grad:
            return False
        slopes = torch.autograd.grad(value.sum(), (chosen, rejected), create_graph=True, allow_unused=True)
        for slope, unit in zip(slopes, (1.0, -1.0), strict=True):
            if slope is None or slope.requires_grad or not bool((slope == unit).all()):
                return False
        constants.append((value - (chosen - rejected)).detach())
    return all(torch.allclose(constants[0], other, rtol=0.0, atol=ROUNDING) for other in constants)


def _poisoned(problem: Bandit, objective: Objective, term: Term) -> Batch:
    """The term's batch with NaN in every field that is not the same at another policy: a loss that reads one shows it."""
    generator = torch.Generator().manual_seed(0)
    moved = torch.randn(problem.reference.shape, generator=generator, dtype=torch.float64).to(problem.reference)
    batch, other = (
        _supplied(problem, objective, term, at.detach())
        for at in (problem.log_reference, (problem.log_reference + moved).log_softmax(-1))
    )
    elsewhere = other.tensors()
    spoilt = {
        name: torch.full_like(tensor, torch.nan)
        for name, tensor in batch.tensors().items()
        if not torch.equal(tensor, elsewhere[name])
    }
    return _changed(batch, **spoilt)


def _has_labels(problem: Bandit, term: Term) -> bool:
    """Candidates are labels only where there are no rewards to score all actions by."""
    return term.source != "candidates" or problem.rewards is None


def _supplied(problem: Bandit, objective: Objective, term: Term, log_policy: Tensor) -> Batch:
    return expectations.supplier(objective.name, term.source)(problem, log_policy)


def _own(problem: Bandit, log_policy: Tensor) -> tuple[Tensor, Tensor]:
    """(B, N) each: the log-probs of the labels' chosen and rejected responses, as fresh leaves."""
    x, winner, loser = problem.shown
    detached = log_policy.detach()
    return detached[:, x, winner].requires_grad_(), detached[:, x, loser].requires_grad_()


def _with(batch: Batch, chosen: Tensor, rejected: Tensor) -> Batch:
    """A batch made of labels with these log-probs (B, N)."""
    if isinstance(batch, PairBatch):
        return _changed_pairs(batch, chosen, rejected)
    if isinstance(batch, UnpairedBatch):
        return _changed(batch, logps=torch.cat([chosen, rejected], dim=-1))
    assert isinstance(batch, CandidateBatch)
    return _changed(batch, logps=torch.stack([chosen, rejected], dim=-1))


def _changed_pairs(batch: Batch, chosen: Tensor, rejected: Tensor) -> PairBatch:
    """Pairs of single tokens."""
    assert isinstance(batch, PairBatch)
    tokens = {"chosen_token_logps": chosen.unsqueeze(-1), "rejected_token_logps": rejected.unsqueeze(-1)}
    return _changed(batch, chosen_logps=chosen, rejected_logps=rejected, **tokens)


def _changed(batch: B, **tensors: Tensor) -> B:
    """The batch with other tensors of the same shapes; `dataclasses.replace` would check all of them again, at every step."""
    made = object.__new__(type(batch))
    made.__dict__.update(batch.__dict__, **tensors)
    return made


def _taken(batch: B, index: Tensor) -> B:
    """The problems ``index`` of a batch; fields without a dimension of problems are the same for all."""
    parts = {name: tensor[index] for name, tensor in batch.tensors().items() if tensor.ndim > 1 + (name in batch.wide)}
    return replace(batch, **parts)  # type: ignore[arg-type]


def _grad(value: Tensor, leaves: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Gradients that can be differentiated again; zeros where nothing depends on a leaf."""
    if not value.requires_grad:
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    found = torch.autograd.grad(value, leaves, create_graph=True, allow_unused=True)
    return tuple(torch.zeros_like(leaf) if one is None else one for one, leaf in zip(found, leaves, strict=True))

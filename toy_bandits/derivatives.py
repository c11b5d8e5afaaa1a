"""Value, gradient and Hessian of an objective in the logits of a tabular softmax policy, exact and for a batch of problems.

An objective is first taken apart into `Piece`s by what can be known of each term:

- `PairPiece`: link(scale * margin - offset) with a margin that depends on the difference of two logits only. Derivatives come from the
  link, and no normaliser enters, so that gradients of 1e-30 keep their relative precision.
- `CrossEntropyPiece`: a term affine in the log-probs with coefficients -c, c >= 0 (autograd shows that its gradient is a constant):
  -sum_y c_y log pi(y), such as the forward KL on reference samples or the likelihood of the chosen response.
- `OpaquePiece`: anything else; its derivatives come from autograd.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from objectives import Objective, PairTerm, Term
from objectives.links import Link
from objectives.terms import per_example
from toy_bandits import expectations
from toy_bandits.problem import Bandit


@dataclass
class Derivatives:
    """Of the objective in the logits: value (B,), gradient (B, G, n), hessian (B, G, n, n).

    The Hessian has one block per context (G = X, n = A) unless a batch-coupled term ties the contexts (G = 1, n = X A).
    """

    value: Tensor
    gradient: Tensor
    hessian: Tensor
    convex_hessian: Tensor
    """The Hessian with the negative curvature of each pair left out: positive semi-definite where the other pieces are."""

    def where(self, mask: Tensor, other: Derivatives) -> Derivatives:
        """These where the mask (B,) holds, else the other's."""
        return Derivatives(
            *(
                torch.where(mask.reshape(-1, *[1] * (mine.ndim - 1)), mine, others)
                for mine, others in zip(self.tensors(), other.tensors(), strict=True)
            )
        )

    def take(self, index: Tensor) -> Derivatives:
        """Those of the problems ``index``."""
        return Derivatives(*(tensor[index] for tensor in self.tensors()))

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All fields."""
        return self.value, self.gradient, self.hessian, self.convex_hessian


@dataclass(frozen=True)
class PairPiece:
    """A `PairTerm` whose margin is a plain difference of logits plus a constant."""

    term: PairTerm
    link: Link


@dataclass(frozen=True)
class CrossEntropyPiece:
    """constant - sum_{x,y} masses(x,y) log pi(y|x); masses (B, X, A) >= 0, constant (B,)."""

    masses: Tensor
    constant: Tensor


@dataclass(frozen=True)
class OpaquePiece:
    """A term of which only the code is known."""

    term: Term

    @property
    def coupled(self) -> bool:
        """Whether the loss of one example depends on the others, so that contexts interact."""
        return bool(getattr(self.term, "coupled", False))


Piece = PairPiece | CrossEntropyPiece | OpaquePiece


@dataclass
class Function:
    """The objective on a flattened batch of problems, ready to be evaluated."""

    problem: Bandit
    objective: Objective
    pieces: list[Piece] = field(init=False)

    def __post_init__(self) -> None:
        self.pieces = [_piece(self.problem, self.objective, term) for term in self.objective.terms]

    @property
    def coupled(self) -> bool:
        """Whether the Hessian ties the contexts together."""
        several = self.problem.contexts.shape[-1] > 1
        return several and any(isinstance(piece, OpaquePiece) and piece.coupled for piece in self.pieces)

    def __call__(self, logits: Tensor) -> Derivatives:
        """Derivatives at ``logits`` (B, X, A)."""
        log_policy = logits.log_softmax(-1)
        policy = log_policy.exp()
        value = torch.zeros_like(logits[:, 0, 0])
        gradient = torch.zeros_like(logits)
        hessian = torch.zeros_like(logits.unsqueeze(-1).expand(*logits.shape, logits.shape[-1]))
        negative = torch.zeros_like(hessian)
        full = None
        for piece in self.pieces:
            if isinstance(piece, PairPiece):
                v, g, h, n = _pairs(self.problem, piece, log_policy)
                negative += n
            elif isinstance(piece, CrossEntropyPiece):
                v, g, h = _cross_entropy(piece, log_policy, policy)
            else:
                v, g, h = _opaque(self.problem, self.objective, piece, log_policy, policy)
            value, gradient = value + v, gradient + g
            if h.shape == hessian.shape:
                hessian = hessian + h
            else:
                full = h if full is None else full + h
        if self.coupled:
            blocks, negative = _block_diagonal(hessian), _block_diagonal(negative)
            hessian = blocks if full is None else blocks + full
            gradient = gradient.flatten(1).unsqueeze(1)
        return Derivatives(value, gradient, hessian, hessian - negative)


def _piece(problem: Bandit, objective: Objective, term: Term) -> Piece:
    if isinstance(term, PairTerm) and term.margin is not None and term.link is not None:
        coefficients = term.margin.coefficients
        if coefficients is not None:
            batch = expectations.pairs(problem, problem.log_reference)
            chosen, rejected = (torch.as_tensor(c, dtype=torch.float64) for c in coefficients(batch))
            if bool((chosen == 1).all() and (rejected == 1).all()):
                return PairPiece(term, term.link)
    masses = [
        _constant_slope(problem, objective, term, log_policy)
        # A stopped gradient could hide that the slope depends on the policy: it must be the same at another one.
        for log_policy in (problem.log_reference, (2.0 * problem.log_reference).log_softmax(-1))
    ]
    if (
        masses[0] is not None
        and masses[1] is not None
        and torch.equal(masses[0], masses[1])
        and bool((masses[0] >= 0).all())
    ):
        value = _term_value(problem, objective, term, problem.log_reference)
        return CrossEntropyPiece(masses[0], value + (masses[0] * problem.log_reference).sum((-2, -1)))
    return OpaquePiece(term)


def _constant_slope(problem: Bandit, objective: Objective, term: Term, log_policy: Tensor) -> Tensor | None:
    """Minus the gradient of a term in the log-probs where autograd shows that it is a constant, else None."""
    leaf = log_policy.detach().clone().requires_grad_()
    value = _term_value(problem, objective, term, leaf)
    if not value.requires_grad:
        return None
    (slope,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
    return None if slope.requires_grad else -slope


def _term_value(problem: Bandit, objective: Objective, term: Term, log_policy: Tensor) -> Tensor:
    """weight * E[loss], (B,)."""
    batch = expectations.supplier(objective.name, term.source)(problem, log_policy)
    value = term.weight * batch.mean(term.losses(batch))
    return value.expand(problem.reference.shape[0])


def _dense(problem: Bandit, values: Tensor) -> Tensor:
    """(B, N) values of the labels as a table (B, X, A, A) over [winner, loser]."""
    x, winner, loser = problem.shown
    table = values.new_zeros(values.shape[0], *problem.label_weights.shape[-3:])
    table[:, x, winner, loser] = values
    return table


def _laplacian(weights: Tensor) -> Tensor:
    """The matrix sum_ab w_ab (e_a - e_b)(e_a - e_b)^T of a table (..., A, A)."""
    symmetric = weights + weights.transpose(-1, -2)
    return torch.diag_embed(symmetric.sum(-1)) - symmetric


def _pairs(problem: Bandit, piece: PairPiece, log_policy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch = expectations.pairs(problem, log_policy)
    assert batch.weights is not None
    weights = per_example(piece.term.weight) * batch.weights
    scale = per_example(piece.term.scale)
    argument = piece.term.argument(batch)
    value = (weights * piece.link.value(argument)).sum(-1)
    slopes = _dense(problem, weights * scale * piece.link.first(argument))
    curvatures = _dense(problem, weights * scale**2 * piece.link.second(argument))
    negative = torch.zeros_like(curvatures) if piece.link.convex else curvatures.clamp(max=0.0)
    return value, slopes.sum(-1) - slopes.sum(-2), _laplacian(curvatures), _laplacian(negative)


def _softmax_covariance(policy: Tensor) -> Tensor:
    """diag(pi) - pi pi^T, its diagonal by way of sums of the other probabilities: exact near a point mass too."""
    return _laplacian(0.5 * policy.unsqueeze(-1) * policy.unsqueeze(-2))


def _cross_entropy(piece: CrossEntropyPiece, log_policy: Tensor, policy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    total = piece.masses.sum(-1, keepdim=True)
    value = piece.constant - (piece.masses * log_policy).sum((-2, -1))
    return value, total * policy - piece.masses, total.unsqueeze(-1) * _softmax_covariance(policy)


def _opaque(
    problem: Bandit, objective: Objective, piece: OpaquePiece, log_policy: Tensor, policy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """By autograd in the log-probs, then the chain rule of log-softmax."""
    leaf = log_policy.detach().requires_grad_()
    value = _term_value(problem, objective, piece.term, leaf)
    (first,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
    contexts, actions = leaf.shape[-2:]
    full = piece.coupled and contexts > 1
    rows = []
    for index in range(contexts * actions if full else actions):
        # Contexts do not interact unless coupled: one backward pass then serves the same action of every context.
        target = first.flatten(1)[:, index] if full else first[..., index]
        (row,) = (
            torch.autograd.grad(target.sum(), leaf, retain_graph=True)
            if target.requires_grad
            else (torch.zeros_like(leaf),)
        )
        rows.append(row.flatten(1) if full else row)
    second = torch.stack(rows, dim=-2)
    gradient = first.detach()
    total = gradient.sum(-1, keepdim=True)
    curvature = total.unsqueeze(-1) * _softmax_covariance(policy)
    if full:
        jacobian = _block_diagonal(torch.eye(actions, dtype=policy.dtype, device=policy.device) - policy.unsqueeze(-2))
        hessian = jacobian.transpose(-1, -2) @ second.unsqueeze(1) @ jacobian - _block_diagonal(curvature)
    else:
        jacobian = torch.eye(actions, dtype=policy.dtype, device=policy.device) - policy.unsqueeze(-2)
        hessian = jacobian.transpose(-1, -2) @ second @ jacobian - curvature
    return value.detach(), gradient - policy * total, hessian


def _block_diagonal(blocks: Tensor) -> Tensor:
    """(B, X, A, A) -> (B, 1, X A, X A)."""
    problems, contexts, actions, _ = blocks.shape
    table = blocks.new_zeros(problems, contexts, actions, contexts, actions)
    index = torch.arange(contexts, device=blocks.device)
    table[:, index, :, index, :] = blocks.transpose(0, 1)
    return table.reshape(problems, 1, contexts * actions, contexts * actions)

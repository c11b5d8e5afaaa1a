"""Value, gradient and Hessian of an objective in the logits of a tabular softmax policy, exact and for a batch of problems.

An objective is first taken apart into `Piece`s by what can be known of each term:

- `PairPiece`: link(scale * margin - offset) with a margin that depends on the difference of two logits only. Derivatives come from the
  link, and no normaliser enters, so that gradients of 1e-30 keep their relative precision.
- `CrossEntropyPiece`: a term affine in the log-probs with coefficients -c, c >= 0 (autograd shows that its gradient is a constant):
  -sum_y c_y log pi(y), such as the forward KL on reference samples or the likelihood of the chosen response.
- `LabelPiece`: a loss of each label's two log-probs alone (autograd shows it): first and second derivatives come from three backward
  passes, label by label, whatever the number of actions.
- `OpaquePiece`: anything else; its derivatives come from autograd, one backward pass per action.

Tables (..., A, A) of pairs are laid out as [winner, loser].
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from objectives import Objective, PairBatch, PairTerm, Term
from objectives.links import Link
from objectives.values import Value
from toy_bandits import batching, expectations
from toy_bandits.errors import BanditError
from toy_bandits.labels import Labels, is_by_label, is_difference, is_fixed
from toy_bandits.problem import Bandit

SAMPLE = 4
"""Problems of a batch on which the structure of a term's code is found out: it is the same for all."""


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
    """A `PairTerm` whose margin is a plain difference of logits plus a constant: weights * link(scale * difference + constants)."""

    term: PairTerm
    link: Link
    scale: Tensor
    """(1,), or (B,) where problems differ."""
    weights: Tensor
    """(B, X, A, A): of the term times the label's probability."""
    constants: Tensor
    """(B, X, A, A): of the labels that are possible in some problem, 0 elsewhere."""

    def argument(self, log_policy: Tensor) -> Tensor:
        """(B, X, A, A): what the link is applied to; 0 where there is no label."""
        difference = log_policy.unsqueeze(-1) - log_policy.unsqueeze(-2)
        return torch.where(self.weights > 0, self.scale[:, None, None, None] * difference + self.constants, 0.0)

    def take(self, index: Tensor, term: Term) -> PairPiece:
        """That of the problems ``index``, whose term is given."""
        assert isinstance(term, PairTerm)
        scale = self.scale if len(self.scale) == 1 else self.scale[index]
        return PairPiece(term, self.link, scale, self.weights[index], self.constants[index])


@dataclass(frozen=True)
class CrossEntropyPiece:
    """constant - sum_{x,y} masses(x,y) log pi(y|x); masses (B, X, A) >= 0, constant (B,)."""

    masses: Tensor
    constant: Tensor

    def take(self, index: Tensor, term: Term) -> CrossEntropyPiece:
        """That of the problems ``index``."""
        return CrossEntropyPiece(self.masses[index], self.constant[index])


@dataclass(frozen=True)
class OpaquePiece:
    """A term of which only the code is known."""

    term: Term

    @property
    def coupled(self) -> bool:
        """Whether the loss of one example depends on the others, so that contexts interact."""
        return bool(getattr(self.term, "coupled", False))

    def take(self, index: Tensor, term: Term) -> OpaquePiece:
        """That of the problems ``index``, whose term is given."""
        return replace(self, term=term)


@dataclass(frozen=True)
class LabelPiece(OpaquePiece):
    """A term whose loss is known to depend, as far as autograd goes, on the two log-probs of its own label alone."""

    labels: Labels

    def take(self, index: Tensor, term: Term) -> LabelPiece:
        """That of the problems ``index``, whose term is given."""
        return LabelPiece(term, self.labels.take(index))


Piece = PairPiece | CrossEntropyPiece | OpaquePiece


@dataclass
class Function:
    """The objective on a flattened batch of problems, ready to be evaluated."""

    problem: Bandit
    objective: Objective
    pieces: list[Piece] = field(init=False)

    def __post_init__(self) -> None:
        few = torch.arange(min(SAMPLE, len(self.problem.reference)), device=self.problem.reference.device)
        sample = self.problem.take(few), batching.take(self.objective, few)
        self.pieces = [
            _piece(self.problem, self.objective, term, Probe(*sample, taken))
            for term, taken in zip(self.objective.terms, sample[1].terms, strict=True)
        ]

    def take(self, index: Tensor) -> Function:
        """That of the problems ``index``."""
        made = object.__new__(Function)
        made.problem, made.objective = self.problem.take(index), batching.take(self.objective, index)
        made.pieces = [piece.take(index, term) for piece, term in zip(self.pieces, made.objective.terms, strict=True)]
        return made

    def moved(self, device: torch.device) -> Function:
        """The same on another device."""
        return Function(self.problem.moved(device), batching.moved(self.objective, device))

    @property
    def convex(self) -> bool:
        """Whether every piece is known to be convex, so that one start is enough."""
        return all(
            isinstance(piece, CrossEntropyPiece) or (isinstance(piece, PairPiece) and piece.link.convex)
            for piece in self.pieces
        )

    @property
    def known(self) -> bool:
        """Whether every piece is one whose formula is known."""
        return not any(isinstance(piece, OpaquePiece) for piece in self.pieces)

    def require_finite(self, logits: Tensor) -> None:
        """Refuse values and gradients at ``logits`` that are not finite.

        Raises:
            BanditError: some are; `checks.check_losses` says which.
        """
        log_policy = logits.log_softmax(-1)
        leaf = log_policy.detach().requires_grad_()
        for piece in self.pieces:
            if isinstance(piece, PairPiece):
                argument = piece.argument(log_policy)
                ok = torch.isfinite(piece.link.value(argument)) & torch.isfinite(piece.link.first(argument))
            elif isinstance(piece, CrossEntropyPiece):
                ok = torch.isfinite(piece.masses) & torch.isfinite(piece.constant[:, None, None])
            else:
                value = _term_value(self.problem, self.objective, piece.term, leaf)
                (slope,) = torch.autograd.grad(value.sum(), leaf) if value.requires_grad else (value,)
                ok = torch.isfinite(torch.cat([value.detach().flatten(), slope.flatten()]))
            if not bool(ok.all()):
                raise BanditError(f"{self.objective.name}: the loss or its gradient is NaN or infinite at the start")

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
        negative = None
        full = None
        for piece in self.pieces:
            if isinstance(piece, PairPiece):
                v, g, h, n = _pairs(piece, log_policy)
                if n is not None:
                    negative = n if negative is None else negative + n
            elif isinstance(piece, CrossEntropyPiece):
                v, g, h = _cross_entropy(piece, log_policy, policy)
            elif isinstance(piece, LabelPiece):
                v, g, h = _labels(self.problem, self.objective, piece, log_policy, policy)
            else:
                v, g, h = _opaque(self.problem, self.objective, piece, log_policy, policy)
            value, gradient = value + v, gradient + g
            if h.shape == hessian.shape:
                hessian = hessian + h
            else:
                full = h if full is None else full + h
        if self.coupled:
            hessian = _block_diagonal(hessian)
            hessian = hessian if full is None else hessian + full
            negative = None if negative is None else _block_diagonal(negative)
            gradient = gradient.flatten(1).unsqueeze(1)
        return Derivatives(value, gradient, hessian, hessian if negative is None else hessian - negative)

    def gradient(self, logits: Tensor) -> Tensor:
        """(B, X, A): the gradient alone, as training sees it: parts of a loss that are held fixed stay so."""
        log_policy = logits.detach().log_softmax(-1)
        first = torch.zeros_like(log_policy)
        leaf = log_policy.clone().requires_grad_()
        for piece, term in zip(self.pieces, self.objective.terms, strict=True):
            if isinstance(piece, LabelPiece):
                first = first + piece.labels.slopes(self.problem, self.objective, term, log_policy)
            else:
                value = _term_value(self.problem, self.objective, term, leaf)
                if value.requires_grad:
                    first = first + torch.autograd.grad(value.sum(), leaf)[0]
        return first - log_policy.exp() * first.sum(-1, keepdim=True)


@dataclass(frozen=True)
class Probe:
    """A term on a few problems, by which the structure of its code is found out."""

    problem: Bandit
    objective: Objective
    term: Term

    @property
    def log_policies(self) -> tuple[Tensor, Tensor]:
        """Two policies to look at: a stopped gradient could hide at one of them that a slope depends on the policy."""
        return self.problem.log_reference, (2.0 * self.problem.log_reference).log_softmax(-1)

    @property
    def pair_term(self) -> PairTerm:
        """The term, where it is one of pairs."""
        assert isinstance(self.term, PairTerm)
        return self.term

    @property
    def linear(self) -> bool:
        """Whether autograd shows that the gradient in the log-probs is a constant."""
        slopes = [
            _constant_slope(self.problem, self.objective, self.term, log_policy) for log_policy in self.log_policies
        ]
        return slopes[0] is not None and slopes[1] is not None and torch.equal(slopes[0], slopes[1])

    @property
    def by_label(self) -> bool:
        """Whether autograd shows that each label's loss depends on no other log-prob than those of its two responses."""
        return all(is_by_label(self.problem, self.objective, self.term, each) for each in self.log_policies)


def _piece(problem: Bandit, objective: Objective, term: Term, probe: Probe) -> Piece:
    if isinstance(term, PairTerm) and term.margin is not None and term.link is not None:
        supply = expectations.pairs if term.needs <= expectations.WITHOUT_TOKENS else expectations.pairs_with_tokens
        batch = supply(problem, problem.log_reference)
        coefficients = term.margin.coefficients
        if coefficients is None:
            plain = is_difference(probe.problem, probe.objective, probe.pair_term)
        else:
            plain = all(bool((torch.as_tensor(c, dtype=torch.float64) == 1).all()) for c in coefficients(batch))
        if plain:
            return _pair_piece(problem, term, term.link, batch)
    if probe.linear:
        masses = _constant_slope(problem, objective, term, problem.log_reference)
        if masses is not None and bool((masses >= 0).all()):
            value = _term_value(problem, objective, term, problem.log_reference)
            return CrossEntropyPiece(masses, value + (masses * problem.log_reference).sum((-2, -1)))
    if not probe.by_label:
        return OpaquePiece(term)
    fixed = is_fixed(probe.problem, probe.objective, probe.term)
    return LabelPiece(term, Labels.of(problem, objective, term, fixed=fixed))


def _pair_piece(problem: Bandit, term: PairTerm, link: Link, batch: PairBatch) -> PairPiece:
    """From the batch at the reference policy."""
    scale, weight = (_per_problem(value, problem) for value in (term.scale, term.weight))
    difference = batch.chosen_logps - batch.rejected_logps
    constants = (term.argument(batch) - scale.unsqueeze(-1) * difference).expand(len(problem.reference), -1)
    weights = weight[:, None, None, None] * problem.label_weights
    return PairPiece(term, link, scale, weights, _dense(problem, constants))


def _per_problem(value: Value, problem: Bandit) -> Tensor:
    """A hyper-parameter as (1,) or (B,)."""
    return torch.as_tensor(value, dtype=torch.float64, device=problem.reference.device).reshape(-1)


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
    actions = problem.actions
    table = values.new_zeros(len(values), problem.reference.shape[-2] * actions * actions)
    table.index_copy_(1, (x * actions + winner) * actions + loser, values.contiguous())
    return table.reshape(len(values), -1, actions, actions)


def _laplacian(weights: Tensor) -> Tensor:
    """The matrix sum_ab w_ab (e_a - e_b)(e_a - e_b)^T of a table (..., A, A)."""
    return symmetric_laplacian(weights + weights.transpose(-1, -2))


def symmetric_laplacian(weights: Tensor) -> Tensor:
    """`_laplacian` of half a symmetric table."""
    laplacian = -weights
    laplacian.diagonal(dim1=-2, dim2=-1).add_(weights.sum(-1))
    return laplacian


def _pairs(piece: PairPiece, log_policy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    scale = piece.scale[:, None, None, None]
    loss, first, second = piece.link.at(piece.argument(log_policy))
    value = (piece.weights * loss).sum((-3, -2, -1))
    slopes = piece.weights * scale * first
    curvatures = piece.weights * scale.square() * second
    negative = None if piece.link.convex else _laplacian(curvatures.clamp(max=0.0))
    return value, slopes.sum(-1) - slopes.sum(-2), _laplacian(curvatures), negative


def _softmax_covariance(policy: Tensor) -> Tensor:
    """diag(pi) - pi pi^T, its diagonal by way of sums of the other probabilities: exact near a point mass too."""
    return symmetric_laplacian(policy.unsqueeze(-1) * policy.unsqueeze(-2))


def _cross_entropy(piece: CrossEntropyPiece, log_policy: Tensor, policy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    total = piece.masses.sum(-1, keepdim=True)
    value = piece.constant - (piece.masses * log_policy).sum((-2, -1))
    return value, total * policy - piece.masses, total.unsqueeze(-1) * _softmax_covariance(policy)


def _labels(
    problem: Bandit, objective: Objective, piece: LabelPiece, log_policy: Tensor, policy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """By autograd label by label, then the chain rule of log-softmax."""
    value, first, second = piece.labels.differentiated(problem, objective, piece.term, log_policy)
    return value, *_chain_rule(first, second, policy)


def _chain_rule(first: Tensor, second: Tensor, policy: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient (..., A) and Hessian (..., A, A) in the logits from those in the log-probs, whose Jacobian is 1 - 1 pi^T."""
    total = first.sum(-1, keepdim=True)
    rows = second.sum(-1)
    cross = policy.unsqueeze(-1) * (rows - 0.5 * policy * rows.sum(-1, keepdim=True)).unsqueeze(-2)
    hessian = second - cross - cross.transpose(-1, -2) - total.unsqueeze(-1) * _softmax_covariance(policy)
    return first - policy * total, hessian


def _opaque(
    problem: Bandit, objective: Objective, piece: OpaquePiece, log_policy: Tensor, policy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """By autograd in the log-probs, then the chain rule of log-softmax."""
    leaf = log_policy.detach().requires_grad_()
    value = _term_value(problem, objective, piece.term, leaf)
    (first,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
    contexts, actions = leaf.shape[-2:]
    full = piece.coupled and contexts > 1
    # Contexts do not interact unless coupled: one pass then serves the same action of every context.
    units = torch.eye(contexts * actions if full else actions, dtype=leaf.dtype, device=leaf.device)
    units = units.reshape(-1, 1, contexts if full else 1, actions).expand(-1, *leaf.shape)
    second = rows(first, leaf, units).movedim(0, 1)
    second = second.flatten(-2) if full else second.transpose(1, 2)
    gradient = first.detach()
    if not full:
        return value.detach(), *_chain_rule(gradient, second, policy)
    total = gradient.sum(-1, keepdim=True)
    curvature = total.unsqueeze(-1) * _softmax_covariance(policy)
    jacobian = _block_diagonal(torch.eye(actions, dtype=policy.dtype, device=policy.device) - policy.unsqueeze(-2))
    hessian = jacobian.transpose(-1, -2) @ second.unsqueeze(1) @ jacobian - _block_diagonal(curvature)
    return value.detach(), gradient - policy * total, hessian


def rows(first: Tensor, leaf: Tensor, units: Tensor) -> Tensor:
    """(K, *leaf.shape): the derivatives in ``leaf`` of the sums of ``first`` times each of K ``units``, in one backward pass; one by
    one where some operation of the loss knows no batches of them."""
    if not first.requires_grad:
        return torch.zeros_like(units)
    try:
        (rows,) = torch.autograd.grad(first, leaf, units, retain_graph=True, is_grads_batched=True)
    except RuntimeError:
        found = [torch.autograd.grad(first, leaf, unit, retain_graph=True)[0] for unit in units]
        return torch.stack(found)
    return rows


def _block_diagonal(blocks: Tensor) -> Tensor:
    """(B, X, A, A) -> (B, 1, X A, X A)."""
    problems, contexts, actions, _ = blocks.shape
    table = blocks.new_zeros(problems, contexts, actions, contexts, actions)
    index = torch.arange(contexts, device=blocks.device)
    table[:, index, :, index, :] = blocks.transpose(0, 1)
    return table.reshape(problems, 1, contexts * actions, contexts * actions)

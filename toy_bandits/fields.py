"""Losses that hold part of themselves fixed while they are differentiated: what training follows is a field, not a gradient.

The answer is a zero of that field: the gradient as training sees it, stop-gradients held. It is found by pseudo-transient
continuation (Kelley and Keyes 1998): implicit Euler steps of the flow d theta / dt = -G(theta), of a length that grows as G shrinks, so
that the iteration first follows training and ends as Newton's method with the field's true Jacobian, by central differences of G. A zero is
what training comes to rest at only where it is stable: all eigenvalues of the Jacobian have positive real parts.

Weights of the policy's own making can be e^-1000. They are taken out row by row: the row of an action is divided by the largest weight of
the pairs that it is in, as it is where an iteration stands. That changes neither zeros nor Newton's steps nor S^-1 J, S the Jacobian's
diagonal, whose eigenvalues are the measure of stability.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from objectives.terms import WeightedPairTerm
from objectives.values import per_example
from toy_bandits import expectations
from toy_bandits.derivatives import Function

TOLERANCE = 1e-10
STEPS = 150
LONGEST = 3.0
"""Longest step of a logit, in nats."""
DIFFERENCE = 1e-5
FAR = 1.0
"""A Newton step, in nats, that says that a field within `TOLERANCE` of 0 is on its way to infinity."""
LARGEST = 200
"""Logits of a problem beyond which the dense Jacobian by differences is not formed."""
BALANCE = 1e-9
"""Slopes of a pair's two orders that cancel to this precision do so exactly: they are known to about 1e-12."""
SINGULAR = 1e-6
"""Eigenvalues of the scaled Jacobian below this are 0: central differences give it to about 1e-9."""


@dataclass(frozen=True)
class Zero:
    """Where the iteration ended, of B problems."""

    logits: Tensor
    """(B, X, A)."""
    norm: Tensor
    """(B,): of the field there."""
    converged: Tensor
    """(B,)."""
    stability: Tensor
    """(B,): smallest real part of the eigenvalues of the Jacobian, its diagonal scaled to 1, without those that are 0."""
    dimension: Tensor
    """(B,): directions in which the field does not change, beyond the constant of every context."""


def field(function: Function, logits: Tensor, rows: Tensor | None = None) -> Tensor:
    """(B, X, A): the gradient as training sees it; of weighted pairs divided by e^``rows`` (B, X, A), see `log_rows`."""
    term = weighted(function)
    if term is not None and rows is not None:
        return _weighted_field(function, term, logits, rows)
    return function.gradient(logits)


def weighted(function: Function) -> WeightedPairTerm | None:
    """The only term, where that is a pair loss of differences of logits under weights of the policy's own making."""
    terms = function.objective.terms
    term = terms[0] if len(terms) == 1 else None
    return term if isinstance(term, WeightedPairTerm) else None


def log_rows(function: Function, logits: Tensor) -> Tensor | None:
    """(B, X, A): log of the largest weight of a pair that holds the action, 0 without such; None where weights are not known."""
    term = weighted(function)
    if term is None:
        return None
    batch = expectations.pairs_with_tokens(function.problem, logits.log_softmax(-1))
    assert term.log_weight is not None
    assert batch.weights is not None
    weight = torch.where(batch.weights > 0, term.log_weight(batch), -torch.inf)
    largest = torch.full_like(logits, -torch.inf).flatten(1)
    for place in _places(function):
        largest = largest.scatter_reduce(1, place.expand_as(weight), weight, "amax")
    largest = torch.where(torch.isfinite(largest), largest, 0.0)
    return largest.reshape(logits.shape)


def _places(function: Function) -> tuple[Tensor, Tensor]:
    """(N,) each: where a label's winner and loser lie among the X A logits of a problem."""
    x, winner, loser = function.problem.shown
    actions = function.problem.actions
    return x * actions + winner, x * actions + loser


def _weighted_field(function: Function, term: WeightedPairTerm, logits: Tensor, rows: Tensor) -> Tensor:
    batch = expectations.pairs_with_tokens(function.problem, logits.log_softmax(-1))
    pair, log_weight = term.pair, term.log_weight
    assert pair is not None
    assert pair.link is not None
    assert log_weight is not None
    assert batch.weights is not None
    slope = per_example(term.weight) * batch.weights * per_example(pair.scale) * pair.link.first(pair.argument(batch))
    held = log_weight(batch)
    total = torch.zeros_like(logits).flatten(1)
    for sign, place in zip((1.0, -1.0), _places(function), strict=True):
        own = torch.where(batch.weights > 0, sign * slope * (held - rows.flatten(1)[:, place]).exp(), 0.0)
        total = total.index_add(1, place, own)
    return total.reshape(logits.shape)


def balanced(function: Function, logits: Tensor) -> Tensor:
    """(B,): of weighted pairs: whether on every pair the slopes of its two orders cancel.

    Such a point is a zero of the field whatever the weights. Let F be the pair loss without weights, convex, and z its minimiser here:
    with u = logits - z the product <u, G> is a sum over pairs of weight * (slope of the pair at logits - slope at z) * difference of u
    >= 0, and 0 only where every pair's difference is z's. So there is no other zero up to what no pair shows, and |u| falls along
    training: it is stable.
    """
    term = weighted(function)
    assert term is not None
    assert term.pair is not None
    assert term.pair.link is not None
    problem = function.problem
    batch = expectations.pairs_with_tokens(problem, logits.log_softmax(-1))
    assert batch.weights is not None
    slope = batch.weights * term.pair.link.first(term.pair.argument(batch))
    x, winner, loser = problem.shown
    table = slope.new_zeros(len(logits), *problem.label_weights.shape[-3:])
    table[:, x, winner, loser] = slope
    net, gross = table - table.transpose(-1, -2), table.abs() + table.abs().transpose(-1, -2)
    convex = torch.full_like(logits[:, 0, 0], term.pair.link.convex, dtype=torch.bool)
    return convex & (net.abs() <= BALANCE * gross).flatten(1).all(-1)


def jacobian(function: Function, many: Function, logits: Tensor, rows: Tensor | None = None) -> Tensor:
    """(B, n, n): derivatives of the field, n = X A, by central differences; ``many`` holds every problem n times in a row."""
    count, size = len(logits), logits[0].numel()
    moves = DIFFERENCE * torch.eye(size, dtype=logits.dtype, device=logits.device).reshape(size, *logits.shape[1:])
    repeated = None if rows is None else rows.repeat_interleave(size, 0)
    up, down = (
        field(many, (logits.unsqueeze(1) + sign * moves).flatten(0, 1), repeated).reshape(count, size, size)
        for sign in (1.0, -1.0)
    )
    return ((up - down) / (2.0 * DIFFERENCE)).transpose(-1, -2)


def repeated(function: Function) -> Function:
    """Every problem n = X A times in a row."""
    count, size = function.problem.reference.shape[0], function.problem.reference[0].numel()
    return function.take(torch.arange(count, device=function.problem.reference.device).repeat_interleave(size))


def zero(function: Function, start: Tensor) -> Zero:
    """Follow the field of every problem from ``start`` (B, X, A); those that are done drop out."""
    ends, done = start.clone(), torch.zeros(len(start), dtype=torch.bool, device=start.device)
    active = torch.arange(len(start), device=start.device)
    own, many, logits = function, repeated(function), start.clone()
    rows = log_rows(own, logits)
    force = field(own, logits, rows)
    norm = force.flatten(1).norm(dim=-1)
    time, lost = 1.0 / norm.clamp(min=1e-30), torch.zeros_like(done)
    for _ in range(STEPS):
        matrix = jacobian(own, many, logits, rows)
        newton = _step(matrix, force, None).flatten(1).abs().amax(-1)
        here = (norm <= TOLERANCE) & (newton <= 1e-9)
        lost |= ~here & (norm <= TOLERANCE) & (newton > FAR)
        ends[active], done[active] = logits, here
        if bool((here | lost).all()):
            break
        if bool(here.any()):
            left = (~here).nonzero()[:, 0]
            active, own, lost = active[left], own.take(left), lost[left]
            many = repeated(own)
            logits, matrix, force, norm, time = logits[left], matrix[left], force[left], norm[left], time[left]
            rows = None if rows is None else rows[left]
        step = _step(matrix, force, time)
        longest = step.flatten(1).abs().amax(-1)
        shorter = (LONGEST / longest.clamp(min=1e-300)).clamp(max=1.0)
        trial = logits + shorter[:, None, None] * step
        then = field(own, trial, rows)
        size = then.flatten(1).norm(dim=-1)
        growth = (norm / size.clamp(min=1e-300)).clamp(0.2, 10.0)
        time = torch.where(
            size <= 2.0 * norm, time * torch.where(shorter < 1.0, growth.clamp(max=2.0), growth), 0.25 * time
        )
        moved = size <= 2.0 * norm
        logits = torch.where(moved[:, None, None], trial, logits)
        force = torch.where(moved[:, None, None], then, force)
        if rows is not None:
            rows = log_rows(own, logits)
            force = field(own, logits, rows)
        norm = force.flatten(1).norm(dim=-1)
    else:
        ends[active] = logits
    stability, dimension = spectrum(function, repeated(function), ends)
    return Zero(ends, field(function, ends).flatten(1).norm(dim=-1), done, stability, dimension)


def spectrum(function: Function, many: Function, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Stability and dimension, (B,) each, as in `Zero`."""
    return _spectrum(jacobian(function, many, logits, log_rows(function, logits)), logits.shape[1])


def _step(matrix: Tensor, force: Tensor, time: Tensor | None) -> Tensor:
    """-(J + 1 / time)^-1 G; without a time Newton's step, the shortest where J is singular."""
    flat = force.flatten(1)
    scale = matrix.diagonal(dim1=-2, dim2=-1).abs()
    scale = scale.clamp(min=1e-12 * scale.amax(-1, keepdim=True)).clamp(min=1e-300)
    if time is not None:
        matrix = matrix + torch.diag_embed((1.0 / time).unsqueeze(-1).expand_as(flat))
        step: Tensor = -torch.linalg.lstsq(matrix, flat.unsqueeze(-1), driver="gelsd").solution.reshape(force.shape)
        return step
    root = scale.sqrt()
    inverse = torch.linalg.pinv(matrix / root.unsqueeze(-1) / root.unsqueeze(-2), rtol=SINGULAR)
    newton: Tensor = -((inverse @ (flat / root).unsqueeze(-1)).squeeze(-1) / root).reshape(force.shape)
    return newton


def _spectrum(matrix: Tensor, contexts: int) -> tuple[Tensor, Tensor]:
    """Smallest real part of the eigenvalues that are not 0, and how many are 0 beyond one per context."""
    scale = matrix.diagonal(dim1=-2, dim2=-1).abs()
    root = torch.where(scale > 0, scale, 1.0).sqrt()
    values = torch.linalg.eigvals(matrix / root.unsqueeze(-1) / root.unsqueeze(-2))
    none = values.abs() <= SINGULAR
    lowest = torch.where(none, torch.inf, values.real).amin(-1)
    return lowest, (none.sum(-1) - contexts).clamp(min=0)

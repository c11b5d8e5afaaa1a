"""Losses that hold part of themselves fixed while they are differentiated: what training follows is a field, not a gradient.

The answer is a zero of that field: the gradient as training sees it, stop-gradients held. It is found by pseudo-transient
continuation (Kelley and Keyes 1998): implicit Euler steps of the flow d theta / dt = -G(theta), of a length that grows as G shrinks, so
that the iteration first follows training and ends as Newton's method with the field's true Jacobian, by central differences of G. A zero is
what training comes to rest at only where it is stable: all eigenvalues of the Jacobian have positive real parts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from toy_bandits import batching, expectations
from toy_bandits.derivatives import Function

TOLERANCE = 1e-10
STEPS = 150
LONGEST = 3.0
"""Longest step of a logit, in nats."""
DIFFERENCE = 1e-5
LARGEST = 200
"""Logits of a problem beyond which the dense Jacobian by differences is not formed."""
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


def field(function: Function, logits: Tensor) -> Tensor:
    """(B, X, A): the gradient as training sees it."""
    leaf = logits.detach().clone().requires_grad_()
    batches = expectations.batches(function.problem, function.objective, leaf.log_softmax(-1))
    (gradient,) = torch.autograd.grad(function.objective.value(batches).sum(), leaf)
    return gradient


def jacobian(function: Function, logits: Tensor) -> Tensor:
    """(B, n, n): derivatives of the field, n = X A, by central differences."""
    count, size = len(logits), logits[0].numel()
    moves = DIFFERENCE * torch.eye(size, dtype=logits.dtype).reshape(size, *logits.shape[1:])
    index = torch.arange(count).repeat_interleave(size)
    many = Function(function.problem.take(index), batching.take(function.objective, index))
    up, down = (
        field(many, (logits.unsqueeze(1) + sign * moves).flatten(0, 1)).reshape(count, size, size)
        for sign in (1.0, -1.0)
    )
    return ((up - down) / (2.0 * DIFFERENCE)).transpose(-1, -2)


def zero(function: Function, start: Tensor) -> Zero:
    """Follow the field of every problem from ``start`` (B, X, A)."""
    logits = start.clone()
    force = field(function, logits)
    norm = force.flatten(1).norm(dim=-1)
    time = 1.0 / norm.clamp(min=1e-30)
    done = torch.zeros_like(norm, dtype=torch.bool)
    for _ in range(STEPS):
        matrix = jacobian(function, logits)
        step = _step(matrix, force, time)
        longest = step.flatten(1).abs().amax(-1)
        done |= (norm <= TOLERANCE) & (_step(matrix, force, None).flatten(1).abs().amax(-1) <= 1e-9)
        if bool(done.all()):
            break
        shorter = (LONGEST / longest.clamp(min=1e-300)).clamp(max=1.0)
        trial = logits + torch.where(done, 0.0, shorter)[:, None, None] * step
        then = field(function, trial)
        size = then.flatten(1).norm(dim=-1)
        growth = (norm / size.clamp(min=1e-300)).clamp(0.2, 10.0)
        time = torch.where(
            size <= 2.0 * norm, time * torch.where(shorter < 1.0, growth.clamp(max=2.0), growth), 0.25 * time
        )
        moved = (size <= 2.0 * norm) & ~done
        logits = torch.where(moved[:, None, None], trial, logits)
        force, norm = torch.where(moved[:, None, None], then, force), torch.where(moved, size, norm)
    stability, dimension = _spectrum(jacobian(function, logits), logits.shape[1])
    return Zero(logits, norm, done, stability, dimension)


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

"""Damped Newton for a batch of problems, each going its own way; those that are done drop out.

Logits have directions in which nothing changes (one per tied set of actions). In each set the action with the largest curvature is held
still while the linear system is solved, which keeps the system well conditioned even where probabilities are 1e-12, and the step is then
centred: like gradient flow, the iteration never moves a set as a whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from toy_bandits.derivatives import Derivatives

GRADIENT_TOLERANCE = 1e-10
STEP_TOLERANCE = 1e-11
"""Largest Newton step at the end, relative to the spread of the logits."""
SMALL = 1e-6
"""A gradient norm from which on only escaping logits still move far."""
VANISHED = 1e-30
"""A gradient norm below which an iteration that still takes long steps is on its way to infinity."""
MAX_ITERATIONS = 400
PATIENCE = 200
"""Iterations with a gradient within tolerance after which steps that are still long count as going to infinity."""
MAX_SPREAD = 1e10
SMALLEST_CURVATURE = 1e-12
FLAT_CURVATURE = 1e-8

Evaluate = Callable[[Tensor], Derivatives]


@dataclass
class Minimum:
    """Where the iteration of each of B problems ended."""

    logits: Tensor
    value: Tensor
    gradient_norm: Tensor
    step: Tensor
    """(B, X, A): the next Newton step, had it gone on."""
    drift: Tensor
    """(B, X, A): how far the logits went after the gradient had become small (`SMALL`), or in all if it never did."""
    converged: Tensor
    """(B,): gradient and step within tolerance."""
    escaping: Tensor
    """(B,): the gradient is within tolerance, or the logits left every bound, while the steps stayed long."""
    curved: Tensor
    """(B,): proved that the smallest curvature, as `curvature` measures it, is above `FLAT_CURVATURE`."""
    iterations: Tensor

    def take(self, index: Tensor) -> Minimum:
        """Those of the problems ``index``."""
        return Minimum(*(tensor[index] for tensor in self.tensors()))

    def put(self, index: Tensor, part: Minimum) -> None:
        """Write the problems ``index``, given as a batch of their own."""
        for target, values in zip(self.tensors(), part.tensors(), strict=True):
            target[index] = values

    def tensors(self) -> tuple[Tensor, ...]:
        """All fields."""
        return tuple(getattr(self, field.name) for field in fields(self))


def minimise(evaluate: Callable[[Tensor], Evaluate], start: Tensor, groups: Tensor, bounded: Tensor) -> Minimum:
    """Minimise from ``start`` (B, X, A).

    Args:
        evaluate: gives for an index tensor of problems the function of their logits.
        start: the first logits.
        groups: (B, X, A) integer labels; the step keeps the mean of the logits of every group.
        bounded: (B,) problems known to have a minimiser, which are followed through gradients of any size.
    """
    count = start.shape[0]
    active = torch.arange(count, device=start.device)
    function = evaluate(active)
    logits, labels = start.clone(), groups
    now = function(logits)
    step = newton_step(now, labels)
    length = torch.ones_like(now.value)
    radius = torch.full_like(now.value, 10.0)
    best_step = torch.full_like(now.value, float("inf"))
    stalled = torch.zeros(count, dtype=torch.long, device=start.device)
    waited = torch.zeros_like(stalled)
    anchor, anchored = start.clone(), torch.zeros(count, dtype=torch.bool, device=start.device)
    end: Minimum | None = None
    for iteration in range(MAX_ITERATIONS + 1):
        size = step.flatten(1).abs().amax(-1)
        spread = 1.0 + centred(logits, labels).flatten(1).abs().amax(-1)
        gradient_norm = now.gradient.flatten(1).norm(dim=-1)
        small = gradient_norm <= GRADIENT_TOLERANCE
        waited = torch.where(small, waited + 1, 0)
        newly = ~anchored & (gradient_norm <= SMALL)
        anchor, anchored = torch.where(newly[:, None, None], logits, anchor), anchored | newly
        stalled = torch.where(size < 0.5 * best_step, 0, stalled + 1)
        best_step = torch.minimum(best_step, size)
        tiny = size <= STEP_TOLERANCE * spread
        # Rounding sets a floor to the step; what matters there is that the gradient is small and nothing improves any more.
        at_floor = (size <= 1e-13 * spread) | (small & (stalled > 8) & (size <= 1e-6 * spread))
        stuck = length * size <= 1e-16 * spread
        converged = (small & tiny) | at_floor | (small & stuck & (size <= 1e-6 * spread))
        escaping = (
            ~converged
            & ~bounded
            & ((((gradient_norm <= VANISHED) | (waited > PATIENCE)) & ~tiny) | (small & stuck) | (spread > MAX_SPREAD))
        )
        done = converged | escaping | stuck | (iteration == MAX_ITERATIONS)
        if bool(done.any()):
            which = active[done]
            part = Minimum(
                logits[done],
                now.value[done],
                gradient_norm[done],
                step[done],
                logits[done] - anchor[done],
                converged[done],
                escaping[done],
                torch.zeros_like(converged[done]),
                torch.full_like(which, iteration),
            )
            if end is None:
                end = Minimum(*(values.new_zeros(count, *values.shape[1:]) for values in part.tensors()))
            end.put(which, part)
            keep = ~done
            if not bool(keep.any()):
                break
            active, logits, labels, step = active[keep], logits[keep], labels[keep], step[keep]
            bounded, anchor, anchored = bounded[keep], anchor[keep], anchored[keep]
            now, length, radius = now.take(keep), length[keep], radius[keep]
            best_step, stalled, waited, size = best_step[keep], stalled[keep], waited[keep], size[keep]
            function = evaluate(active)
        length = torch.minimum(length, radius / size)
        trial = logits + length[:, None, None] * step
        then = function(trial)
        accepted = _descends(now, then, step, length)
        logits = torch.where(accepted[:, None, None], trial, logits)
        now = then.where(accepted, now)
        radius = torch.where(accepted, torch.maximum(radius, 4.0 * length * size), radius)
        step = torch.where(accepted[:, None, None], newton_step(now, labels), step)
        length = torch.where(accepted, 1.0, 0.25 * length)
        best_step = torch.where(accepted, best_step, float("inf"))
    assert end is not None
    return end


def _descends(now: Derivatives, then: Derivatives, step: Tensor, length: Tensor) -> Tensor:
    """Armijo's rule; or, where values agree to rounding, a slope along the step that has not grown (Hager and Zhang 2005)."""
    before = (now.gradient.flatten(1) * step.flatten(1)).sum(-1)
    after = (then.gradient.flatten(1) * step.flatten(1)).sum(-1)
    finite = torch.isfinite(then.value) & torch.isfinite(then.gradient.flatten(1)).all(-1)
    armijo = then.value <= now.value + 1e-4 * length * before
    rounding = 1e-15 * (1.0 + now.value.abs())
    flat = (then.value <= now.value + rounding) & (after.abs() <= 0.9 * before.abs())
    return finite & (armijo & (then.value < now.value) | flat)


def newton_step(derivatives: Derivatives, labels: Tensor) -> Tensor:
    """(B, X, A): minus inverse Hessian times gradient, with zero mean in every group; always a direction of descent.

    Where the Hessian is not positive definite, first without the negative curvature of the pairs, then by the absolute values of its
    eigenvalues.
    """
    gradient, hessian = derivatives.gradient, derivatives.hessian
    blocks = gradient.shape[1]
    shape = labels.shape
    labels = _blocked(labels, blocks)
    free = ~_grounded(hessian, labels)
    rhs = torch.where(free, -gradient, 0.0)
    step, failed = _solve(_restricted(hessian, free), rhs)
    if bool(failed.any()):
        index = failed.nonzero()[:, 0]
        restricted = _restricted(derivatives.convex_hessian[index], free[index])
        repaired, still = _solve(restricted, rhs[index])
        if bool(still.any()):
            rest = index[still]
            repaired[still] = _absolute(_restricted(hessian[rest], free[rest]), rhs[rest])
        step[index] = repaired
    return centred(torch.where(free, step, 0.0), labels).reshape(shape)


def _blocked(labels: Tensor, blocks: int) -> Tensor:
    """Labels in the Hessian's layout: where it ties contexts together (one block), labels must tell them apart."""
    problems, contexts, actions = labels.shape
    if blocks == contexts:
        return labels
    return (labels + actions * torch.arange(contexts, device=labels.device)[:, None]).reshape(problems, 1, -1)


def _grounded(hessian: Tensor, labels: Tensor) -> Tensor:
    """(B, G, n): one action per group, the one with the largest curvature."""
    curvature = hessian.diagonal(dim1=-2, dim2=-1).abs()
    largest = torch.zeros_like(curvature).scatter_reduce(-1, labels, curvature, "amax").gather(-1, labels)
    order = torch.arange(labels.shape[-1], device=labels.device).expand_as(labels)
    candidates = torch.where(curvature >= largest, order, labels.shape[-1])
    first = torch.full_like(labels, labels.shape[-1]).scatter_reduce(-1, labels, candidates, "amin").gather(-1, labels)
    return order == first


def _restricted(hessian: Tensor, free: Tensor) -> Tensor:
    """The Hessian among the free actions, the identity elsewhere."""
    both = free.unsqueeze(-1) & free.unsqueeze(-2)
    return torch.where(both, hessian, 0.0) + torch.diag_embed((~free).to(hessian.dtype))


def _scaled(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix with a diagonal of +-1 (so that curvatures of very different size do not drown each other), and the scale."""
    diagonal = matrix.diagonal(dim1=-2, dim2=-1).abs()
    scale = torch.where(diagonal > 0, diagonal, 1.0).sqrt()
    return matrix / scale.unsqueeze(-1) / scale.unsqueeze(-2), scale


def _solve(matrix: Tensor, rhs: Tensor) -> tuple[Tensor, Tensor]:
    """Solution (B, G, n), and which problems are not positive definite to working precision (B,)."""
    scaled, scale = _scaled(matrix)
    factor, info = torch.linalg.cholesky_ex(scaled)
    pivots = factor.diagonal(dim1=-2, dim2=-1)
    failed = (info != 0) | ~(pivots.square() > SMALLEST_CURVATURE * 1e-3).all(-1)
    factor = torch.where(
        failed[..., None, None], torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device), factor
    )
    solution = torch.cholesky_solve((rhs / scale).unsqueeze(-1), factor).squeeze(-1) / scale
    return solution, failed.any(-1)


def _absolute(matrix: Tensor, rhs: Tensor) -> Tensor:
    """|H|^-1 rhs; directions without curvature or slope are left alone."""
    scaled, scale = _scaled(matrix)
    values, vectors = torch.linalg.eigh(scaled)
    along = (vectors.transpose(-1, -2) @ (rhs / scale).unsqueeze(-1)).squeeze(-1)
    noise = 1e-15 * (rhs / scale).abs().amax(-1, keepdim=True)
    flat = (values.abs() <= SMALLEST_CURVATURE) & (along.abs() <= torch.maximum(noise, torch.full_like(noise, 1e-16)))
    along = torch.where(flat, 0.0, along / values.abs().clamp(min=SMALLEST_CURVATURE))
    step: Tensor = (vectors @ along.unsqueeze(-1)).squeeze(-1) / scale
    return step


def centred(values: Tensor, labels: Tensor) -> Tensor:
    """(..., n) minus the mean of each group."""
    if not bool(labels.any()):
        return values - values.mean(-1, keepdim=True)
    zeros = torch.zeros_like(values)
    total = zeros.scatter_add(-1, labels, values)
    size = zeros.scatter_add(-1, labels, torch.ones_like(values))
    return values - (total / size.clamp(min=1.0)).gather(-1, labels)


def curvature(derivatives: Derivatives, labels: Tensor) -> Tensor:
    """(B,): smallest eigenvalue of the Hessian among moves that keep the mean of every group, its diagonal scaled to 1."""
    labels = _blocked(labels, derivatives.gradient.shape[1])
    free = ~_grounded(derivatives.hessian, labels)
    scaled, _ = _scaled(_restricted(derivatives.hessian, free))
    lowest: Tensor = torch.linalg.eigvalsh(scaled).amin((-2, -1))
    return lowest


def flat_moves(derivatives: Derivatives, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Orthogonal moves (B, M, X, A), largest entry 1, that keep the mean of every group, and which have no curvature (B, M)."""
    blocks, size = derivatives.gradient.shape[1:]
    own = _blocked(labels, blocks)
    together = (own.unsqueeze(-1) == own.unsqueeze(-2)).to(derivatives.hessian.dtype)
    scale = derivatives.hessian.diagonal(dim1=-2, dim2=-1).abs().amax(-1).clamp(min=1e-300)[..., None, None]
    # Curvature along the groups' means, which are not asked about, keeps them out of the other eigenvectors.
    values, vectors = torch.linalg.eigh(derivatives.hessian / scale + together / together.sum(-1, keepdim=True))
    moves = torch.zeros(len(labels), blocks, size, blocks, size, dtype=values.dtype, device=values.device)
    block = torch.arange(blocks, device=values.device)
    moves[:, block, :, block, :] = vectors.transpose(-1, -2).transpose(0, 1)
    moves = moves / moves.abs().amax((-2, -1), keepdim=True)
    return moves.reshape(len(labels), blocks * size, *labels.shape[1:]), values.flatten(1).abs() <= FLAT_CURVATURE

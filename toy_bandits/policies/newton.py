"""Damped Newton in the parameters, for a batch of problems that each go their own way.

The search runs in orthonormal directions that change the objective (`Softmaxes.effective`, `Recession.basis`), so it never drifts where
nothing changes: for a log-linear policy it ends, as gradient flow does, at the minimiser nearest to the start. Negative curvature is
followed by its absolute value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from toy_bandits.derivatives import Derivatives

GRADIENT_TOLERANCE = 1e-10
STEP_TOLERANCE = 1e-11
SMALL = 1e-6
"""A gradient norm from which on only escaping parameters still move far."""
SMALLEST_CURVATURE = 1e-13
MAX_ITERATIONS = 1000
PATIENCE = 40
"""Iterations with a gradient within tolerance and a long step, after which an iteration counts as on its way to infinity."""

Evaluate = Callable[[Tensor], Derivatives]


@dataclass
class Minimum:
    """Where the iteration of each of B problems ended."""

    parameters: Tensor
    """(B, P)."""
    value: Tensor
    """(B,)."""
    gradient_norm: Tensor
    """(B,), along the directions of the search."""
    step: Tensor
    """(B, P): the next Newton step, had it gone on."""
    drift: Tensor
    """(B, P): how far the parameters went after the gradient had become small (`SMALL`), or in all if it never did."""
    converged: Tensor
    """(B,): gradient and step within tolerance."""
    escaping: Tensor
    """(B,): the gradient is within tolerance while the steps stay long."""
    iterations: Tensor
    """(B,)."""

    def tensors(self) -> tuple[Tensor, ...]:
        """All fields."""
        return tuple(vars(self).values())

    def take(self, index: Tensor) -> Minimum:
        """Those of the problems ``index``."""
        return Minimum(*(tensor[index] for tensor in self.tensors()))


def minimise(
    evaluate: Callable[[Tensor], Evaluate], start: Tensor, basis: Tensor, *, progress: bool = False
) -> Minimum:
    """Minimise from ``start`` (B, P) over start + basis @ z, with ``basis`` (P, R) orthonormal.

    Args:
        evaluate: gives for an index tensor of problems the function of their parameters.
        start: the first parameters.
        basis: the directions of the search.
        progress: show a bar of the problems done.
    """
    count = len(start)
    active = torch.arange(count, device=start.device)
    function = evaluate(active)
    theta = start.clone()
    now = _restricted(function(theta), basis)
    step = newton_step(now.gradient, now.hessian)
    length, radius = torch.ones_like(now.value), torch.full_like(now.value, 10.0)
    best = torch.full_like(now.value, torch.inf)
    stalled, idle = (torch.zeros(count, dtype=torch.long, device=start.device) for _ in range(2))
    anchor, anchored = start.clone(), torch.zeros(count, dtype=torch.bool, device=start.device)
    ends: list[tuple[Tensor, Minimum]] = []
    bar = tqdm(total=count, desc="solving", unit="problem", disable=not progress, leave=False)
    for iteration in range(MAX_ITERATIONS + 1):
        size = step.norm(dim=-1)
        spread = 1.0 + theta.norm(dim=-1)
        norm = now.gradient.norm(dim=-1)
        small = norm <= GRADIENT_TOLERANCE
        newly = ~anchored & (norm <= SMALL)
        anchor, anchored = torch.where(newly[:, None], theta, anchor), anchored | newly
        stalled = torch.where(size < 0.5 * best, 0, stalled + 1)
        idle = torch.where(small & (size > 1e-3), idle + 1, 0)
        best = torch.minimum(best, size)
        near = size <= 1e-6 * spread
        stuck = length * size <= 1e-16 * spread
        # Rounding sets a floor to the step; what matters there is that the gradient is small and nothing improves any more.
        converged = (
            (small & (size <= STEP_TOLERANCE * spread))
            | (size <= 1e-13 * spread)
            | (small & near & ((stalled > 8) | stuck))
        )
        escaping = ~converged & small & ((idle > PATIENCE) | stuck)
        done = converged | escaping | stuck | (iteration == MAX_ITERATIONS)
        if bool(done.any()):
            part = Minimum(
                theta,
                now.value,
                norm,
                step @ basis.T,
                theta - anchor,
                converged,
                escaping,
                torch.full_like(active, iteration),
            ).take(done)
            ends.append((active[done], part))
            bar.update(int(done.sum()))
            keep = ~done
            if not bool(keep.any()):
                break
            active, theta, step, now = active[keep], theta[keep], step[keep], now.take(keep)
            length, radius, best, stalled, idle = length[keep], radius[keep], best[keep], stalled[keep], idle[keep]
            anchor, anchored, size = anchor[keep], anchored[keep], size[keep]
            function = evaluate(active)
        length = torch.minimum(length, radius / size)
        trial = theta + length[:, None] * (step @ basis.T)
        then = _restricted(function(trial), basis)
        accepted = _descends(now, then, step, length)
        theta, now = torch.where(accepted[:, None], trial, theta), then.where(accepted, now)
        radius = torch.where(accepted, torch.maximum(radius, 4.0 * length * size), radius)
        step = torch.where(accepted[:, None], newton_step(now.gradient, now.hessian), step)
        length = torch.where(accepted, 1.0, 0.25 * length)
        best = torch.where(accepted, best, torch.inf)
    bar.close()
    order = torch.cat([which for which, _ in ends]).argsort()
    joined = (torch.cat(tensors)[order] for tensors in zip(*(part.tensors() for _, part in ends), strict=True))
    return Minimum(*joined)


def _restricted(derivatives: Derivatives, basis: Tensor) -> Derivatives:
    """In the coordinates of the basis."""
    value, gradient, hessian, convex = derivatives.tensors()
    return Derivatives(value, gradient @ basis, basis.T @ hessian @ basis, basis.T @ convex @ basis)


def newton_step(gradient: Tensor, hessian: Tensor) -> Tensor:
    """-|H|^-1 g, (B, R), with the Hessian's diagonal scaled to 1; directions with neither curvature nor slope are left alone."""
    scaled, scale = scaled_hessian(hessian)
    values, vectors = torch.linalg.eigh(scaled)
    along = torch.einsum("bij,bi->bj", vectors, gradient / scale)
    noise = (1e-15 * (gradient / scale).abs().amax(-1, keepdim=True)).clamp(min=1e-16) if gradient.shape[-1] else along
    flat = (values.abs() <= SMALLEST_CURVATURE) & (along.abs() <= noise)
    along = torch.where(flat, 0.0, along / values.abs().clamp(min=SMALLEST_CURVATURE))
    step: Tensor = -torch.einsum("bij,bj->bi", vectors, along) / scale
    return step


def scaled_hessian(hessian: Tensor) -> tuple[Tensor, Tensor]:
    """The Hessian with a diagonal of +-1 (so that curvatures of very different size do not drown each other), and the scale (B, R)."""
    diagonal = hessian.diagonal(dim1=-2, dim2=-1).abs()
    scale = torch.where(diagonal > 0, diagonal, 1.0).sqrt()
    return hessian / scale.unsqueeze(-1) / scale.unsqueeze(-2), scale


def _descends(now: Derivatives, then: Derivatives, step: Tensor, length: Tensor) -> Tensor:
    """Armijo's rule; or, where values agree to rounding, a slope along the step that has not grown (Hager and Zhang 2005)."""
    before, after = (now.gradient * step).sum(-1), (then.gradient * step).sum(-1)
    finite = torch.isfinite(then.value) & torch.isfinite(then.gradient).all(-1)
    armijo = then.value <= now.value + 1e-4 * length * before
    rounding = 1e-15 * (1.0 + now.value.abs())
    flat = (then.value <= now.value + rounding) & (after.abs() <= 0.9 * before.abs())
    return finite & ((armijo & (then.value < now.value)) | flat)

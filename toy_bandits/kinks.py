"""Minima at kinks: where the losses are max(0, .) of something smooth (`objectives.positive_part`) plus smooth terms.

First each max(0, x) is smoothed to mu log(1 + e^(x / mu)) and mu made small, which shows the kinks that the minimum lies on. Then the
conditions of optimality are solved to working precision by Newton's method: with max(0, x_k) = lambda_k x_k for the kinks k on which it
lies, the gradient is 0, x_k = 0, and lambda_k in [0, 1]. They say that 0 is in the subdifferential (Clarke's where the loss is not convex).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.functional import hessian, jacobian
from torch.nn.functional import softplus

from objectives.values import kinks_as
from toy_bandits import expectations
from toy_bandits.derivatives import Function

FIRST, LAST = 1e-2, 1e-7
"""Widths of the smoothed kinks."""
NEAR = 40.0
"""Within how many widths of its kink a max(0, x) may be on it."""
TOLERANCE = 1e-10
FLAT = 1e-8
UNKNOWNS = 1500
"""Logits and kinks at the minimum; with more of them the dense Newton system is not formed."""


@dataclass(frozen=True)
class Smooth:
    """max(0, x) as ``width`` log(1 + e^(x / width))."""

    width: float

    def value(self, x: Tensor) -> Tensor:
        """At most ``width`` log 2 above max(0, x)."""
        return self.width * softplus(x / self.width, threshold=700.0)

    def first(self, x: Tensor) -> Tensor:
        """From 0 to 1."""
        return torch.sigmoid(x / self.width)

    def second(self, x: Tensor) -> Tensor:
        """A bump of area 1."""
        return torch.sigmoid(x / self.width) * torch.sigmoid(-x / self.width) / self.width


class _Record(Smooth):
    """Smooth, and keeps the arguments."""

    def __init__(self, width: float, seen: list[Tensor]) -> None:
        super().__init__(width)
        object.__setattr__(self, "seen", seen)

    def value(self, x: Tensor) -> Tensor:
        self.seen.append(x)  # type: ignore[attr-defined]
        return super().value(x)


class _Linear(Smooth):
    """lambda x with given lambdas, one for every argument in the order in which they come; keeps the arguments."""

    def __init__(self, slopes: Tensor, seen: list[Tensor]) -> None:
        super().__init__(0.0)
        object.__setattr__(self, "slopes", slopes)
        object.__setattr__(self, "seen", seen)

    def value(self, x: Tensor) -> Tensor:
        done = sum(one.numel() for one in self.seen)  # type: ignore[attr-defined]
        self.seen.append(x)  # type: ignore[attr-defined]
        own: Tensor = self.slopes[done : done + x.numel()]  # type: ignore[attr-defined]
        return own.reshape(x.shape) * x


@dataclass(frozen=True)
class Kinked:
    """A point that meets the conditions of optimality, of one problem."""

    logits: Tensor
    """(X, A)."""
    value: float
    residual: float
    """Norm of the smallest subgradient that the multipliers show."""
    dimension: int
    """Of the directions without curvature that stay on the kinks."""
    local_minimum: bool
    """No negative curvature along the kinks."""


def polish(function: Function, logits: Tensor) -> Kinked | None:
    """From ``logits`` (1, X, A), the minimum of the smoothed losses of width `LAST`, to the exact one; None where that fails.

    Args:
        function: of a single problem, a batch of one.
        logits: where to begin.
    """
    shape, width = logits.shape, LAST

    def value(z: Tensor, kink: Smooth) -> Tensor:
        log_policy = z.reshape(shape).log_softmax(-1)
        with kinks_as(kink):
            return function.objective.value(
                expectations.batches(function.problem, function.objective, log_policy)
            ).sum()

    start = logits.flatten()
    seen: list[Tensor] = []
    value(start, _Record(width, seen))
    at = torch.cat([x.flatten() for x in seen])
    slopes = torch.sigmoid(at / width)
    on = at.abs() <= NEAR * width
    if len(start) + int(on.sum()) > UNKNOWNS:
        return None
    for _ in range(len(at) + 1):
        found = _newton(lambda z, s: _with_arguments(value, z, s), start, torch.where(on, slopes, (at > 0).to(at)), on)
        if found is None:
            return None
        point, slopes, arguments = found
        outside = on & ((slopes < -1e-9) | (slopes > 1 + 1e-9))
        wrong = ~on & (((at > 0) != (arguments > 0)) & (arguments.abs() > 1e-12))
        if not bool((outside | wrong).any()):
            break
        at = torch.where(outside, slopes - 0.5, at)
        on = (on & ~outside) | wrong
        slopes = slopes.clamp(0.0, 1.0)
    else:
        return None
    return _judged(value, point, slopes, on, shape)


def _with_arguments(value: Callable[[Tensor, Smooth], Tensor], z: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """The objective with linear pieces of given slopes, and the arguments of its kinks."""
    seen: list[Tensor] = []
    total = value(z, _Linear(slopes, seen))
    return total, torch.cat([x.flatten() for x in seen])


Pieces = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def _newton(pieces: Pieces, start: Tensor, slopes: Tensor, on: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Newton on gradient = 0, x_k = 0 in the logits and the slopes of the kinks ``on``; None where it does not come to rest."""
    size, index = len(start), on.nonzero()[:, 0]

    def residual(unknown: Tensor) -> Tensor:
        z, own = unknown[:size], slopes.index_copy(0, index, unknown[size:])
        if not z.requires_grad:
            z = z.detach().requires_grad_()
        total, arguments = pieces(z, own)
        (gradient,) = torch.autograd.grad(total, z, create_graph=True)
        return torch.cat([gradient, arguments[index]])

    unknown = torch.cat([start, slopes[index]])
    best, norm = unknown, float("inf")
    for _ in range(30):
        now = residual(unknown).detach()
        size_now = float(now.norm())
        if not size_now < norm:
            break
        best, norm = unknown, size_now
        matrix = jacobian(residual, unknown)  # type: ignore[no-untyped-call]
        unknown = unknown - torch.linalg.lstsq(matrix, now.unsqueeze(-1), driver="gelsd").solution.squeeze(-1)
    if norm > TOLERANCE:
        return None
    end = slopes.index_copy(0, index, best[size:])
    return best[:size], end, pieces(best[:size], end)[1].detach()


def _judged(
    value: Callable[[Tensor, Smooth], Tensor], point: Tensor, slopes: Tensor, on: Tensor, shape: torch.Size
) -> Kinked:
    leaf = point.detach().requires_grad_()
    total, arguments = _with_arguments(value, leaf, slopes)
    (gradient,) = torch.autograd.grad(total, leaf, retain_graph=True)
    index = on.nonzero()[:, 0].tolist()
    normals = [torch.autograd.grad(arguments[k], leaf, retain_graph=True)[0] for k in index]
    curvature = hessian(  # type: ignore[no-untyped-call]
        lambda z: _with_arguments(value, z, slopes)[0], point.detach()
    )
    constant = torch.zeros(shape[-2], *shape[-2:], dtype=point.dtype, device=point.device)
    constant[torch.arange(shape[-2]), torch.arange(shape[-2])] = 1.0
    rows = torch.cat([constant.flatten(1), *(normal.unsqueeze(0) for normal in normals)])
    _, singular, vectors = torch.linalg.svd(rows, full_matrices=True)
    rank = int((singular > FLAT * singular.amax()).sum())
    along = vectors[rank:]
    eigenvalues = torch.linalg.eigvalsh(along @ curvature @ along.T) if len(along) else point.new_ones(1)
    scale = max(float(curvature.diagonal().abs().amax()), 1e-300)
    return Kinked(
        logits=point.detach().reshape(shape[-2:]),
        value=float(total.detach()),
        residual=float(gradient.detach().norm()),
        dimension=int((eigenvalues.abs() <= FLAT * scale).sum()) if len(along) else 0,
        local_minimum=bool((eigenvalues > -FLAT * scale).all()),
    )

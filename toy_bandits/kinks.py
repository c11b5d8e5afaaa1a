"""Minima at kinks: where the losses are max(0, .) of something smooth (`objectives.positive_part`) plus smooth terms.

First each max(0, x) is smoothed to mu log(1 + e^(x / mu)) and mu made small, which shows the kinks that the minimum lies on. Then the
conditions of optimality are solved to working precision by Newton's method: with max(0, x_k) = lambda_k x_k for the kinks k on which it
lies, the gradient is 0, x_k = 0, and lambda_k in [0, 1]. They say that 0 is in the subdifferential (Clarke's where the loss is not convex).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from objectives.values import kinks_as
from toy_bandits import expectations
from toy_bandits.derivatives import Function, rows

FIRST, LAST = 1e-2, 1e-7
"""Widths of the smoothed kinks."""
NEAR = 40.0
"""Within how many widths of its kink a max(0, x) may be on it."""
TOLERANCE = 1e-10
FLAT = 1e-8
STEPS = 30
CELLS = 4_000_000
"""Size of the tables held at a time."""
UNKNOWNS = 1500
"""Logits and kinks at the minimum; with more of them the dense Newton system is not formed."""


@dataclass(frozen=True)
class Smooth:
    """max(0, x) as ``width`` log(1 + e^(x / width))."""

    width: float

    def value(self, x: Tensor) -> Tensor:
        """At most ``width`` log 2 above max(0, x); autograd squares e^x up to the threshold."""
        return self.width * softplus(x / self.width, threshold=100.0)

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
    """lambda x with given lambdas (B, K), one for every argument in the order in which they come; keeps the arguments."""

    def __init__(self, slopes: Tensor, seen: list[Tensor]) -> None:
        super().__init__(0.0)
        object.__setattr__(self, "slopes", slopes)
        object.__setattr__(self, "seen", seen)

    def value(self, x: Tensor) -> Tensor:
        done = sum(one.shape[-1] for one in self.seen)  # type: ignore[attr-defined]
        self.seen.append(x)  # type: ignore[attr-defined]
        own: Tensor = self.slopes[:, done : done + x.shape[-1]]  # type: ignore[attr-defined]
        return own * x


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


def polish(function: Function, logits: Tensor) -> list[Kinked | None]:
    """From ``logits`` (B, X, A), minima of the smoothed losses of width `LAST`, to the exact ones; None where that fails."""
    found: list[Kinked | None] = []
    for index in torch.split(torch.arange(len(logits)), _together(function)):
        found += _polish(function.take(index), logits[index])
    return found


def _together(function: Function) -> int:
    """How many problems to take at a time."""
    labels = sum(len(function.problem.shown[0]) for _ in function.objective.terms)
    return max(1, CELLS // (labels * (labels + function.problem.reference[0].numel())))


def _polish(function: Function, logits: Tensor) -> list[Kinked | None]:
    found: list[Kinked | None] = [None] * len(logits)
    seen: list[Tensor] = []
    with kinks_as(_Record(LAST, seen)):
        _value(function, logits)
    at = torch.cat([x.expand(len(logits), -1) for x in seen], dim=-1).detach()
    slopes = torch.sigmoid(at / LAST)
    on = at.abs() <= NEAR * LAST
    left = torch.arange(len(logits))
    for _ in range(at.shape[-1] + 1):
        start = torch.where(on, slopes, (at > 0).to(at))
        point = _newton(function.take(left), logits[left], start, on)
        if point is None:
            break
        on = point.on
        outside = on & ((point.slopes < -1e-9) | (point.slopes > 1 + 1e-9))
        wrong = ~on & (((at > 0) != (point.arguments > 0)) & (point.arguments.abs() > 1e-12))
        settled = ~(outside | wrong).any(-1)
        solved = point.norm <= TOLERANCE
        for row in (settled & solved).nonzero()[:, 0].tolist():
            found[int(left[row])] = point.judged(row, on[row])
        keep = ~settled & solved
        at = torch.where(outside, point.slopes - 0.5, at)[keep]
        on = ((on & ~outside) | wrong)[keep]
        slopes, left = point.slopes.clamp(0.0, 1.0)[keep], left[keep]
        if len(left) == 0:
            break
    return found


def _value(function: Function, logits: Tensor) -> Tensor:
    """(B,), with whatever stands for max(0, x)."""
    batches = expectations.batches(function.problem, function.objective, logits.log_softmax(-1))
    return function.objective.value(batches).expand(len(logits))


@dataclass(frozen=True)
class _Point:
    """Where Newton's iteration ended, of B problems with n = X A logits and K arguments, of which k are on their kinks in some problem."""

    logits: Tensor
    """(B, X, A)."""
    value: Tensor
    """(B,)."""
    slopes: Tensor
    """(B, K), and `arguments` likewise."""
    on: Tensor
    """(B, K): the kinks that were held: those asked for, but for those of labels that are impossible in their problem."""
    arguments: Tensor
    norm: Tensor
    """(B,): of the residual."""
    gradient: Tensor
    """(B, n)."""
    hessian: Tensor
    """(B, n, n), the slopes held."""
    normals: Tensor
    """(B, k, n): derivatives of the arguments ``index``."""
    index: Tensor
    """(k,)."""

    def judged(self, row: int, on: Tensor) -> Kinked:
        """One problem's point; ``on`` (K,): its kinks."""
        contexts, actions = self.logits.shape[1:]
        constant = torch.eye(contexts, dtype=self.value.dtype).repeat_interleave(actions, 1)
        rows = torch.cat([constant, self.normals[row][on[self.index]]])
        _, singular, vectors = torch.linalg.svd(rows, full_matrices=True)
        along = vectors[int((singular > FLAT * singular.amax()).sum()) :]
        curvature = self.hessian[row]
        eigenvalues = torch.linalg.eigvalsh(along @ curvature @ along.T) if len(along) else singular.new_ones(1)
        scale = max(float(curvature.diagonal().abs().amax()), 1e-300)
        return Kinked(
            logits=self.logits[row],
            value=float(self.value[row]),
            residual=float(self.gradient[row].norm()),
            dimension=int((eigenvalues.abs() <= FLAT * scale).sum()) if len(along) else 0,
            local_minimum=bool((eigenvalues > -FLAT * scale).all()),
        )


def _newton(function: Function, start: Tensor, slopes: Tensor, on: Tensor) -> _Point | None:
    """Newton on gradient = 0, x_k = 0 in the logits (B, X, A) and the slopes of the kinks ``on``, each problem until its residual grows;
    None where there are too many unknowns."""
    size, index = start[0].numel(), on.any(0).nonzero()[:, 0]
    unknowns = size + len(index)
    if unknowns > UNKNOWNS:
        return None
    held = on[:, index]
    units = torch.eye(unknowns, dtype=start.dtype).unsqueeze(1).expand(-1, len(start), -1)

    def evaluate(unknown: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Value, arguments, residual (B, n + k) and its Jacobian; a slope that is not on its kink stays as it is."""
        leaf = unknown.detach().requires_grad_()
        z, own = leaf[:, :size], slopes.index_copy(1, index, leaf[:, size:])
        seen: list[Tensor] = []
        with kinks_as(_Linear(own, seen)):
            total = _value(function, z.reshape(start.shape))
        arguments = torch.cat([x.expand(len(z), -1) for x in seen], dim=-1)
        (gradient,) = torch.autograd.grad(total.sum(), z, create_graph=True)
        kept = leaf[:, size:] - slopes[:, index]
        residual = torch.cat([gradient, torch.where(held, arguments[:, index], kept)], dim=-1)
        return total.detach(), arguments.detach(), residual.detach(), rows(residual, leaf, units).transpose(0, 1)

    unknown = torch.cat([start.flatten(1), slopes[:, index]], dim=-1)
    held = held & (evaluate(unknown)[3][:, :size, size:] != 0).any(1)  # the gradient depends on the slope
    best = unknown
    norm = torch.full_like(unknown[:, 0], torch.inf)
    for _ in range(STEPS):
        _, _, residual, matrix = evaluate(unknown)
        now = residual.norm(dim=-1)
        better = now < norm
        if not bool(better.any()):
            break
        best, norm = torch.where(better[:, None], unknown, best), torch.where(better, now, norm)
        moved = unknown - torch.linalg.lstsq(matrix, residual.unsqueeze(-1), driver="gelsd").solution.squeeze(-1)
        unknown = torch.where(better[:, None], moved, best)
    value, arguments, residual, matrix = evaluate(best)
    end = slopes.index_copy(1, index, best[:, size:])
    return _Point(
        logits=best[:, :size].reshape(start.shape),
        value=value,
        slopes=end,
        on=torch.zeros_like(on).index_copy(1, index, held),
        arguments=arguments,
        norm=norm,
        gradient=residual[:, :size],
        hessian=matrix[:, :size, :size],
        normals=matrix[:, size:, :size],
        index=index,
    )

"""What a certificate computes only when asked: smallest curvature, rate of a divergence, range of KL over the set of minimisers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from objectives import Objective
from toy_bandits import batching, expectations, linear, metrics
from toy_bandits.derivatives import CrossEntropyPiece, Function, PairPiece
from toy_bandits.newton import curvature, minimise
from toy_bandits.problem import Bandit
from toy_bandits.ratio_sets import RatioSet
from toy_bandits.recession import known_rates, observed_rates
from toy_bandits.structure import analyse

CONVERGED, DIVERGES, NOT_UNIQUE = range(3)
FURTHER_STARTS = 32
CELLS = 400_000
"""Size of the tables held at a time."""
SAME_VALUE = 1e-10
OBSERVED = 300.0
"""How many nats of the losses' arguments are looked at for a rate that is not known from their tails."""


@dataclass(frozen=True)
class Details:
    """The flattened batch of problems with its answers; fields as in `solution.Answer`, the objective's hyper-parameters (B,)."""

    problem: Bandit
    objective: Objective
    logits: Tensor
    log_policy: Tensor
    status: Tensor
    direction: Tensor
    dimension: Tensor
    tie: Tensor
    groups: Tensor
    shape: torch.Size

    @cached_property
    def curvature(self) -> Any:
        """Smallest eigenvalue of the scaled Hessian, (...)."""
        index = torch.arange(len(self.logits), device=self.logits.device)
        few = max(1, CELLS // self.problem.label_weights[0].numel())
        return self._plain(
            torch.cat([curvature(self._function(i)(self.logits[i]), self.groups[i]) for i in torch.split(index, few)])
        )

    @cached_property
    def rate(self) -> tuple[Any, Any]:
        """Rate and slope of the divergence, each (...)."""
        rate, slope = (torch.full_like(self.logits[:, 0, 0], math.nan) for _ in range(2))
        for index in torch.split((self.status == DIVERGES).nonzero()[:, 0], 1024):
            if len(index) == 0:
                break
            function, direction = self._function(index), self.direction[index]
            known, slopes = known_rates(function, direction)
            if bool(torch.isnan(slopes).all()):
                end = self._anchor(index)
                far = torch.full_like(known, OBSERVED) / self._scale(function)
                known, slopes = observed_rates(function, end + far[:, None, None] * direction, direction, far)
            rate[index], slope[index] = known, slopes
        return self._plain(rate), self._plain(slope)

    @cached_property
    def kl_range(self) -> tuple[Any, Any]:
        """Infimum and supremum of KL(pi || pi_ref) over the minimisers, each (...)."""
        own = metrics.kl_policy_reference(self.problem, self.log_policy)
        unknown = torch.full_like(own, math.nan)
        sure = (self.status == CONVERGED) | (self.status == DIVERGES)
        low, high = torch.where(sure, own, unknown), torch.where(sure, own, unknown)
        for index in (self.status == NOT_UNIQUE).nonzero()[:, 0]:
            low[index], high[index] = self._range(index.reshape(1))
        return self._plain(low), self._plain(high)

    def _range(self, index: Tensor) -> tuple[float, float]:
        function, logits = self._function(index), self.logits[index]
        found = [logits] if not bool(self.tie[index]) else self._ties(function, index)
        ranges = []
        for minimum in found:
            sets = minimisers(function, minimum, int(self.dimension[index]))
            if sets is None:
                return math.nan, math.nan
            log_reference = function.problem.log_reference[0].cpu().numpy()
            parts = [one.kl_range(minimum[0, x].cpu().numpy(), log_reference[x]) for x, one in enumerate(sets)]
            share = function.problem.contexts[0].tolist()
            ranges.append(
                [sum(rho * part[side] for rho, part in zip(share, parts, strict=True) if rho) for side in (0, 1)]
            )
        return min(r[0] for r in ranges), max(r[1] for r in ranges)

    def _ties(self, function: Function, index: Tensor) -> list[Tensor]:
        """Minima as good as the answer, from further starts."""
        generator = torch.Generator().manual_seed(0)
        logits, tied = self.logits[index], analyse(function).tied
        noise = torch.randn((FURTHER_STARTS, *logits.shape[1:]), generator=generator, dtype=logits.dtype).to(logits)
        starts = torch.cat([logits, logits + 2.0 * noise])
        many = torch.zeros(len(starts), dtype=torch.long, device=starts.device)
        whole = self._function(index[many])
        bounded = torch.zeros_like(many, dtype=torch.bool)
        end = minimise(whole.take, starts, tied.expand_as(starts), bounded)
        value = whole(end.logits).value
        good = end.converged & (value <= value[0] + SAME_VALUE * (1.0 + value[0].abs()))
        return [logits, *end.logits[good].unsqueeze(1)]

    def _anchor(self, index: Tensor) -> Tensor:
        """The answer's logits without how far it was followed along its direction."""
        logits, direction = self.logits[index], self.direction[index]
        along = (logits * direction).sum((-2, -1)) / direction.square().sum((-2, -1))
        return logits - along[:, None, None] * direction

    def _scale(self, function: Function) -> Tensor:
        """(B,): the smallest factor from nats to a loss's argument, at most 1."""
        scale = torch.ones_like(function.problem.contexts[:, 0])
        for term in function.objective.terms:
            scale = torch.minimum(scale, torch.as_tensor(getattr(term, "scale", 1.0)).to(scale))
        return scale

    def _function(self, index: Tensor) -> Function:
        return Function(self.problem.take(index), batching.take(self.objective, index))

    def _plain(self, values: Tensor) -> Any:
        return values.reshape(self.shape) if self.shape else values.item()


def minimisers(function: Function, logits: Tensor, dimension: int) -> list[RatioSet] | None:
    """The set of minimisers of one problem, one set of log-ratios per context, as far as convexity or the tied sets show it.

    Args:
        function: of a single problem, a batch of one.
        logits: (1, X, A), a minimiser.
        dimension: of the set; where tied sets do not account for it and the objective is not convex, the set is not known (None).
    """
    if linear.is_linear(function):
        found = linear.face(function)
        return None if found is None else found.sets
    problem = function.problem
    structure = analyse(function)
    policy = logits[0].log_softmax(-1)
    ratios = (policy.unsqueeze(-1) - policy.unsqueeze(-2)).cpu().numpy()
    if dimension == int(structure.free):
        tied = structure.tied[0]
        bounds = np.where((tied.unsqueeze(-1) == tied.unsqueeze(-2)).cpu().numpy(), ratios, -np.inf)
        return [RatioSet.of(one) for one in bounds]
    bounds = np.full_like(ratios, -np.inf)
    for piece in function.pieces:
        if isinstance(piece, CrossEntropyPiece):  # strictly convex in the logits of every context in which it has mass
            held = (piece.masses[0].sum(-1) > 0).cpu().numpy()
            bounds[held] = ratios[held]
        elif isinstance(piece, PairPiece) and piece.link.convex and not piece.link.attains_minus:
            _bound(bounds, ratios, function, piece, policy)
        else:
            return None
    never = (problem.contexts[0] == 0).cpu().numpy()
    bounds[never] = ratios[never]
    return [RatioSet.of(one) for one in bounds]


def _bound(bounds: np.ndarray, ratios: np.ndarray, function: Function, piece: PairPiece, policy: Tensor) -> None:
    """What one convex pair loss asks of every minimiser: the ratio that one of them has, or to stay where the loss is constant."""
    problem = function.problem
    weights = problem.label_weights[0].cpu().numpy()
    argument = piece.term.argument(expectations.pairs_with_tokens(problem, policy.unsqueeze(0)))[0].cpu().numpy()
    scale = float(torch.as_tensor(piece.term.scale, dtype=torch.float64).flatten()[0])
    for (x, winner, loser), z in zip(zip(*(i.tolist() for i in problem.shown), strict=True), argument, strict=True):
        if weights[x, winner, loser] == 0:
            continue
        ratio = ratios[x, winner, loser]
        if piece.link.attains_plus and z >= piece.link.flat_after - 1e-9:
            bound = ratio - (z - piece.link.flat_after) / scale
            bounds[x, winner, loser] = max(bounds[x, winner, loser], min(bound, ratio))
        else:
            bounds[x, winner, loser] = max(bounds[x, winner, loser], ratio)
            bounds[x, loser, winner] = max(bounds[x, loser, winner], -ratio)

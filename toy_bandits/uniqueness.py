"""Proof, by intervals, that sigmoids of margins and a cross entropy have no stationary point but the one found: their only minimum.

With q the cross entropy's masses divided by their sum, and t = r (1 - r) the slope of the sigmoid r of a pair's margin, a policy is
stationary where, for every action a,

    pi_a = q_a + sum_b pull_ab t_ab,

pull_ab being by how much a is preferred to b. Bounds of pi bound each r, hence each t, hence pi again: every stationary policy lies in
the box that is left when this is repeated, and where no policy in a slice of the box can fulfil an action's equation the slice is cut
off.

A segment between the logits of two policies of the box stays above its lower bounds, as a geometric mean over its sum, which is at most
1, is at least the smaller of the two; and its ratios pi_a / pi_b stay within those of the box. So no weight of the Hessian's graph falls
there below a known number: of the cross entropy's, because

    Var_pi(v) = min_c sum_a pi_a (v_a - c)^2 >= min_c sum_a low_a (v_a - c)^2 = sum_{a<b} low_a low_b (v_a - v_b)^2 / sum_a low_a,

and of a pair's because its curvature is -pull_ab r (1 - r) (1 - 2 r). Where the Laplacian of these numbers is positive definite, the
gradient grows along every such segment and cannot be zero at both ends.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from objectives import links
from toy_bandits.derivatives import Function
from toy_bandits.packed import CELLS, Packed, PackedPairs, Point

SIGMOIDS = (links.negative_sigmoid, links.error_probability)
CHECKS = (2, 2, 3, 5, 8)
"""Rounds after which the box is looked at; columns that are proved then drop out."""
EMPTY = 1e-2
"""Where an action's lower bound is still 0, the first slice to be cut off, relative to the found policy."""
FIRST_CUT, LONGEST_CUT, LONGER, SHORTER = 0.5, 0.8, 1.3, 0.5
"""Which share of the way from a bound to the found policy a slice has, in logarithms: at first, at most; after success, after failure."""
ROUNDING = 1e-14
STEEPEST = (3.0 - math.sqrt(3.0)) / 6.0
"""Where r (1 - r) (1 - 2 r) is largest."""


def only_stationary(packed: Packed, policy: Tensor) -> Tensor:
    """(N,): of which columns it is proved that they have no stationary point but one near ``policy`` (A, N), if that is near one."""
    proved = torch.zeros_like(policy[0], dtype=torch.bool)
    if packed.masses is None or len(packed.pairs) != 1:
        return proved
    (part,) = packed.pairs
    if part.link not in SIGMOIDS or part.back is not None:
        return proved
    everywhere = ((packed.masses > 0) & (policy > 0)).all(0).nonzero()[:, 0]
    for columns in torch.split(everywhere, max(64, CELLS // len(packed.first))):
        box = _Box(packed.take(columns), part.take(columns), policy[:, columns])
        for rounds in CHECKS:
            for _ in range(rounds):
                box.shrink()
            convex = box.convex()
            proved[columns[convex]] = True
            left = (~convex).nonzero()[:, 0]
            if len(left) == 0:
                break
            columns, box = columns[left], box.take(left)
    return proved


def only_minimum(function: Function, policy: Tensor) -> Tensor:
    """(B,): of which problems `only_stationary` proves that ``policy`` (B, X, A) is the only stationary one, if it is one."""
    packed = Packed.of(function)
    if packed is None:
        return torch.zeros_like(policy[:, 0, 0], dtype=torch.bool)
    actions = policy.shape[-1]
    proved = only_stationary(packed, policy.reshape(-1, actions).T.contiguous()).reshape(policy.shape[:2])
    return (proved | (function.problem.contexts == 0)).all(-1)


class _Box:
    """Bounds ``low`` and ``high`` (A, N) of every stationary policy."""

    def __init__(self, packed: Packed, part: PackedPairs, policy: Tensor) -> None:
        assert packed.masses is not None
        total = packed.masses.sum(0)
        self.packed, self.scale, self.policy = packed, part.scale, policy
        self.target = packed.masses / total
        self.pull = part.scale * (part.forward - part.backward) / total
        self.skew = torch.exp(-part.shift)
        self.slack = ROUNDING * (1.0 + self.pull.abs().sum(0))
        self.low = torch.zeros_like(policy)
        none = torch.zeros_like(self.pull)
        self.high = self._right_sides(none, none + 0.25)[1].clamp(max=1.0)
        self.cuts = torch.full_like(policy, FIRST_CUT), torch.full_like(policy, FIRST_CUT)

    def take(self, index: Tensor) -> _Box:
        """That of some columns."""
        made = object.__new__(_Box)
        made.packed = self.packed.take(index)
        made.scale = self.scale if len(self.scale) == 1 else self.scale[index]
        made.slack = self.slack[index]
        for name in ("policy", "target", "pull", "skew", "low", "high"):
            setattr(made, name, getattr(self, name)[:, index])
        made.cuts = self.cuts[0][:, index], self.cuts[1][:, index]
        return made

    def shrink(self) -> None:
        """One round: a slice of every action from below and one from above, then the box as a whole."""
        below = torch.where(self.low > 0, self.low, EMPTY * self.policy)
        edge = below * (self.policy / below).pow(self.cuts[0])
        least, _ = self._slices(self.low, edge)
        cut = least > edge
        self.low = torch.where(cut, edge, self.low)
        above = self.high * (self.policy / self.high).pow(self.cuts[1])
        _, most = self._slices(above, self.high)
        cut_above = most < above
        self.high = torch.where(cut_above, above, self.high)
        self.cuts = _adapted(self.cuts[0], cut), _adapted(self.cuts[1], cut_above)
        least, most = self._right_sides(*_slopes(*self._ratios()))
        self.low, self.high = torch.maximum(self.low, least), torch.minimum(self.high, most)
        self.high = torch.minimum(self.high, 1.0 - self.low.sum(0) + self.low + self.slack)

    def _slices(self, bottom: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
        """(A, N): least and most that the right side of each action's equation can be while that action lies in a slice of its own."""
        first, second = self.packed.first, self.packed.second
        low, high, bottom, top = (self._powers(bound) for bound in (self.low, self.high, bottom, top))
        of_first = _slopes(self._share(bottom[first], high[second]), self._share(top[first], low[second]))
        of_second = _slopes(self._share(low[first], top[second]), self._share(high[first], bottom[second]))
        return self._right_sides(*of_first, *of_second)

    def _ratios(self) -> tuple[Tensor, Tensor]:
        """(P, N): bounds of r, the sigmoid of each pair's margin."""
        first, second = self.packed.first, self.packed.second
        low, high = self._powers(self.low), self._powers(self.high)
        return self._share(low[first], high[second]), self._share(high[first], low[second])

    def _powers(self, bound: Tensor) -> Tensor:
        return bound if len(self.scale) == 1 and float(self.scale) == 1.0 else bound.pow(self.scale)

    def _share(self, one: Tensor, other: Tensor) -> Tensor:
        return one / (one + self.skew * other)

    def _right_sides(
        self, small: Tensor, large: Tensor, small_second: Tensor | None = None, large_second: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(A, N): bounds of q_a + sum_b pull_ab t_ab, from those (P, N) of t, which may be others for the second of each pair."""
        up, down = self.pull.clamp(min=0.0), self.pull.clamp(max=0.0)
        least, most = up * small + down * large, up * large + down * small
        if small_second is None or large_second is None:
            least_second, most_second = least, most
        else:
            least_second, most_second = (
                up * small_second + down * large_second,
                up * large_second + down * small_second,
            )
        target = self.target
        return (
            target + self.packed.ends(least, most_second) - self.slack,
            target + self.packed.ends(most, least_second) + self.slack,
        )

    def convex(self) -> Tensor:
        """(N,): proved that the Hessian is positive definite along all segments between policies of the box."""
        first, second = self.packed.first, self.packed.second
        low, high = self._ratios()
        bend = torch.where(
            self.pull > 0, self.pull * _steepest(low, high), -self.pull * _steepest(1.0 - high, 1.0 - low)
        )
        weights = self.low[first] * self.low[second] / self.low.sum(0) - self.scale * bend
        bounds = Point(weights[0], self.low, weights, weights)
        whole = torch.zeros_like(self.low, dtype=torch.long)
        return self.packed.curved(bounds, whole) & torch.isfinite(weights).all(0)


def _adapted(share: Tensor, success: Tensor) -> Tensor:
    return torch.where(success, (LONGER * share).clamp(max=LONGEST_CUT), SHORTER * share)


def _slopes(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds of r (1 - r) for r between ``low`` and ``high``."""
    one, other = low * (1.0 - low), high * (1.0 - high)
    most = torch.where((low < 0.5) & (high > 0.5), 0.25, torch.maximum(one, other))
    return torch.minimum(one, other), most


def _steepest(low: Tensor, high: Tensor) -> Tensor:
    """The largest r (1 - r) (1 - 2 r) for r between ``low`` and ``high``."""
    r = torch.maximum(low, high.clamp(max=STEEPEST))
    return r * (1.0 - r) * (1.0 - 2.0 * r)

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
CHECKS = (3, 2, 3, 4, 5, 6, 8, 10)
"""Rounds after which the box is looked at; columns that are proved then drop out, and those that do not get on."""
STALLED = 0.95
"""How much narrower a box must have become to go on."""
EMPTY = 0.01
"""Where an action's lower bound is still 0, the first slice to be cut off, relative to the found policy."""
FIRST_CUT, LONGEST_CUT, LONGER, SHORTER = 0.8, 0.95, 1.2, 0.6
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
        width = box.width
        for rounds in CHECKS:
            for _ in range(rounds):
                box.shrink()
            convex, narrower = box.convex(), box.width
            proved[columns[convex]] = True
            left = (~convex & (narrower < STALLED * width)).nonzero()[:, 0]
            if len(left) == 0:
                break
            columns, box, width = columns[left], box.take(left), narrower[left]
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
        pull = part.scale * (part.forward - part.backward) / total
        self.up, self.down = pull.clamp(min=0.0), pull.clamp(max=0.0)
        self.skew = torch.exp(-part.shift)
        self.slack = ROUNDING * (1.0 + pull.abs().sum(0))
        self.low = torch.zeros_like(policy)
        steepest, flattest = 0.25 * self.up, 0.25 * self.down
        self.high = (self.target + packed.ends(steepest, flattest) + self.slack).clamp(max=1.0)
        self.cut_low = self.cut_high = torch.full_like(policy, FIRST_CUT)

    def take(self, index: Tensor) -> _Box:
        """That of some columns."""
        made = object.__new__(_Box)
        made.packed = self.packed.take(index)
        made.scale = self.scale if len(self.scale) == 1 else self.scale[index]
        made.slack = self.slack[index]
        for name in ("policy", "target", "up", "down", "skew", "low", "high", "cut_low", "cut_high"):
            setattr(made, name, getattr(self, name)[:, index])
        return made

    @property
    def width(self) -> Tensor:
        """(N,): the sum of the widths in nats, where bounds that are 0 count as `EMPTY`."""
        return (self.high / torch.maximum(self.low, EMPTY * self.policy)).log().sum(0)

    def shrink(self) -> None:
        """One round: the box as a whole, and of every action a slice from below and one from above."""
        below = torch.where(self.low > 0, self.low, EMPTY * self.policy)
        bottom = below * (self.policy / below).pow(self.cut_low)
        top = self.high * (self.policy / self.high).pow(self.cut_high)
        # What bounds the sigmoids r of the pairs, and their slopes there: each end of the first action against each of the second.
        (low, low_too), (high, high_too), (bottom_first, bottom_second), (top_first, top_second) = (
            self._sides(bound) for bound in (self.low, self.high, bottom, top)
        )
        least, most = self._share(low, high_too), self._share(high, low_too)
        whole = self._pulls(least, most)
        lower = (
            self._pulls(least, self._share(bottom_first, low_too))[0],
            self._pulls(self._share(low, bottom_second), most)[1],
        )
        upper = (
            self._pulls(self._share(top_first, high_too), most)[1],
            self._pulls(least, self._share(high, top_second))[0],
        )
        ends = self.packed.ends
        cut = self.target + ends(*lower) - self.slack > bottom
        cut_too = self.target + ends(*upper) + self.slack < top
        self.low = torch.maximum(torch.where(cut, bottom, self.low), self.target + ends(*whole) - self.slack)
        self.high = torch.minimum(torch.where(cut_too, top, self.high), self.target + ends(*whole[::-1]) + self.slack)
        self.high = torch.minimum(self.high, 1.0 + self.slack - self.low.sum(0) + self.low)
        self.cut_low, self.cut_high = _adapted(self.cut_low, cut), _adapted(self.cut_high, cut_too)

    def _sides(self, bound: Tensor) -> tuple[Tensor, Tensor]:
        """(P, N) each: a bound of the first and of the second action of every pair, to the power of the margin's scale."""
        power = bound if len(self.scale) == 1 and float(self.scale) == 1.0 else bound.pow(self.scale)
        return power.index_select(0, self.packed.first), power.index_select(0, self.packed.second)

    def _share(self, one: Tensor, other: Tensor) -> Tensor:
        """(P, N): the sigmoid of the margin between actions of these probabilities."""
        return one / torch.addcmul(one, self.skew, other)

    def _pulls(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """(P, N) each: least and most of pull r (1 - r) for r between ``low`` and ``high``."""
        middle = torch.minimum(low.clamp(min=0.5), high)
        small, large = torch.minimum(_slope(low), _slope(high)), _slope(middle)
        return (self.up * small).addcmul_(self.down, large), (self.up * large).addcmul_(self.down, small)

    def convex(self) -> Tensor:
        """(N,): proved that the Hessian is positive definite along all segments between policies of the box."""
        (low, low_too), (high, high_too) = (self._sides(bound) for bound in (self.low, self.high))
        least, most = self._share(low, high_too), self._share(high, low_too)
        bend = self.up * _steepest(least, most) - self.down * _steepest(1.0 - most, 1.0 - least)
        first, second = self.packed.first, self.packed.second
        weights = self.low[first] * self.low[second] / self.low.sum(0) - self.scale * bend
        bounds = Point(self.low, weights[0], self.low, weights)
        whole = torch.zeros_like(self.low, dtype=torch.long)
        return self.packed.curved(bounds, whole) & torch.isfinite(weights).all(0)


def _adapted(share: Tensor, success: Tensor) -> Tensor:
    return torch.where(success, (LONGER * share).clamp(max=LONGEST_CUT), SHORTER * share)


def _slope(r: Tensor) -> Tensor:
    return r * (1.0 - r)


def _steepest(low: Tensor, high: Tensor) -> Tensor:
    """The largest r (1 - r) (1 - 2 r) for r between ``low`` and ``high``: it rises, falls from `STEEPEST` on, and rises again."""
    inner = torch.maximum(low, high.clamp(max=STEEPEST))
    bends = (r * (1.0 - r) * (1.0 - 2.0 * r) for r in (inner, high))
    return torch.maximum(*bends)

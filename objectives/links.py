"""Links: the scalar function that turns a scaled margin into a loss, with its derivatives and its behaviour at infinity.

The derivatives let an exact solver take Newton steps; the slopes at infinity let it *prove* that a loss has no finite minimiser
instead of inferring that from an iteration cap.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Scalar = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Link:
    """``value(z)`` with ``first(z)`` and ``second(z)`` its derivatives; all elementwise.

    ``slope_plus``, ``slope_minus``: lim value(z) / |z| for z -> +inf, -inf (``inf`` where it grows faster than linearly).
    ``attains_plus``, ``attains_minus``: where that slope is 0, whether the link is constant from some point on (it then attains its limit).
    ``convex``: whether the link is convex; an exact solver then needs one start only.
    """

    name: str
    value: Scalar
    first: Scalar
    second: Scalar
    slope_plus: float
    slope_minus: float
    attains_plus: bool = False
    attains_minus: bool = False
    convex: bool = True


def _sigmoid_slope(z: Tensor) -> Tensor:
    return torch.sigmoid(z) * torch.sigmoid(-z)


logistic = Link(
    name="logistic",
    value=lambda z: -logsigmoid(z),
    first=lambda z: -torch.sigmoid(-z),
    second=_sigmoid_slope,
    slope_plus=0.0,
    slope_minus=1.0,
)
"""L(z) = -log s(z): falls for ever, so a pair that always wins pulls its margin to infinity."""

square = Link(
    name="square",
    value=lambda z: z.square(),
    first=lambda z: 2.0 * z,
    second=lambda z: torch.full_like(z, 2.0),
    slope_plus=float("inf"),
    slope_minus=float("inf"),
)

negative_sigmoid = Link(
    name="negative_sigmoid",
    value=lambda z: -torch.sigmoid(z),
    first=lambda z: -_sigmoid_slope(z),
    second=lambda z: _sigmoid_slope(z) * (2.0 * torch.sigmoid(z) - 1.0),
    slope_plus=0.0,
    slope_minus=0.0,
    convex=False,
)
"""-s(z): bounded, so any coercive regulariser, however weak, keeps the minimiser finite; not convex for z < 0."""

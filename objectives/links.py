"""Links: the scalar function that turns a scaled margin into a loss, with its derivatives and its behaviour at infinity.

The derivatives let an exact solver take Newton steps; the slopes at infinity let it *prove* that a loss has no finite minimiser
instead of inferring that from an iteration cap.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from objectives.values import positive_part, positive_part_derivatives

Scalar = Callable[[Tensor], Tensor]
Side = tuple[Tensor, Tensor, Tensor]
"""Value, first and second derivative of a link at one argument."""

# Beyond this exponent exp is continued along its tangent: losses and gradients then stay finite in float32 for any log-probs.
LARGEST_EXPONENT = 64.0


def bounded_exp(x: Tensor) -> Tensor:
    """exp(x) up to x = 64 and its tangent beyond: increasing, convex, and with finite gradient however large x is."""
    return torch.exp(x.clamp(max=LARGEST_EXPONENT)) * (1.0 + (x - LARGEST_EXPONENT).clamp(min=0.0))


@dataclass(frozen=True)
class Link:
    """``value(z)`` with ``first(z)`` and ``second(z)`` its derivatives; all elementwise.

    ``slope_plus``, ``slope_minus``: lim value(z) / |z| for z -> +inf, -inf (``inf`` where it grows faster than linearly).
    ``attains_plus``, ``attains_minus``: where that slope is 0, whether the link is constant from some point on (it then attains its limit).
    ``tail_plus``, ``tail_minus``: the rate kappa at which value(z) - its asymptote ~ C e^(-kappa |z|); NaN where it is unknown or none.
    ``flat_after``: with ``attains_plus``, from which z on the link is constant.
    ``convex``: whether the link is known to be convex; an exact solver then needs one start only.
    ``falling``: whether the link falls for ever, so that its infimum is the limit at +inf and no argument attains it.
    ``even_slope``: whether first(-z) = first(z) < 0 everywhere.
    ``logistic_shares``: (agree, disagree) where the link is agree L(z) + disagree L(-z), L the logistic one.
    ``shared``: `both` where it is cheaper than one function after the other.
    """

    name: str
    value: Scalar
    first: Scalar
    second: Scalar
    slope_plus: float
    slope_minus: float
    attains_plus: bool = False
    attains_minus: bool = False
    tail_plus: float = math.nan
    tail_minus: float = math.nan
    flat_after: float = math.inf
    convex: bool = True
    falling: bool = False
    even_slope: bool = False
    logistic_shares: tuple[float, float] | None = None
    shared: Callable[[Tensor], tuple[Side, Side]] | None = None

    def at(self, z: Tensor) -> Side:
        """Value, first and second derivative at ``z``."""
        return self.value(z), self.first(z), self.second(z)

    def both(self, z: Tensor) -> tuple[Side, Side]:
        """`at` z and `at` -z: a pair's two labels."""
        return (self.at(z), self.at(-z)) if self.shared is None else self.shared(z)


def _sigmoid_slope(z: Tensor) -> Tensor:
    return torch.sigmoid(z) * torch.sigmoid(-z)


def _logistic_both(z: Tensor) -> tuple[Side, Side]:
    right, wrong = torch.sigmoid(z), torch.sigmoid(-z)
    slope = right * wrong
    rest = z.abs().neg_().exp_().log1p_()
    return (rest - z.clamp(max=0.0), -wrong, slope), (rest + z.clamp(min=0.0), -right, slope)


logistic = Link(
    name="logistic",
    value=lambda z: -logsigmoid(z),
    first=lambda z: -torch.sigmoid(-z),
    second=_sigmoid_slope,
    slope_plus=0.0,
    slope_minus=1.0,
    tail_plus=1.0,
    tail_minus=1.0,
    falling=True,
    logistic_shares=(1.0, 0.0),
    shared=_logistic_both,
)
"""L(z) = -log s(z): falls for ever, so a pair that always wins pulls its margin to infinity."""


def _square_both(z: Tensor) -> tuple[Side, Side]:
    value, slope, bend = z.square(), 2.0 * z, torch.full_like(z, 2.0)
    return (value, slope, bend), (value, -slope, bend)


square = Link(
    name="square",
    value=lambda z: z.square(),
    first=lambda z: 2.0 * z,
    second=lambda z: torch.full_like(z, 2.0),
    slope_plus=math.inf,
    slope_minus=math.inf,
    shared=_square_both,
)


def _error_both(z: Tensor) -> tuple[Side, Side]:
    right, wrong = torch.sigmoid(z), torch.sigmoid(-z)
    slope = right * wrong
    bend = slope * (right - wrong)
    return (wrong, -slope, bend), (right, -slope, -bend)


def _negative_sigmoid_both(z: Tensor) -> tuple[Side, Side]:
    (wrong, one, bend), (right, other, back) = _error_both(z)
    return (-right, one, bend), (-wrong, other, back)


negative_sigmoid = Link(
    name="negative_sigmoid",
    value=lambda z: -torch.sigmoid(z),
    first=lambda z: -_sigmoid_slope(z),
    second=lambda z: _sigmoid_slope(z) * (2.0 * torch.sigmoid(z) - 1.0),
    slope_plus=0.0,
    slope_minus=0.0,
    tail_plus=1.0,
    tail_minus=1.0,
    convex=False,
    falling=True,
    even_slope=True,
    shared=_negative_sigmoid_both,
)
"""-s(z): bounded, so any coercive regulariser, however weak, keeps the minimiser finite; not convex for z < 0."""

error_probability = Link(
    name="error_probability",
    value=lambda z: torch.sigmoid(-z),
    first=negative_sigmoid.first,
    second=negative_sigmoid.second,
    slope_plus=0.0,
    slope_minus=0.0,
    tail_plus=1.0,
    tail_minus=1.0,
    convex=False,
    falling=True,
    even_slope=True,
    shared=_error_both,
)
"""1 - s(z): `negative_sigmoid` lifted to start at 0."""

hinge = Link(
    name="hinge",
    value=lambda z: positive_part(1.0 - z),
    first=lambda z: -positive_part_derivatives(1.0 - z)[0],
    second=lambda z: positive_part_derivatives(1.0 - z)[1],
    slope_plus=0.0,
    slope_minus=1.0,
    flat_after=1.0,
    attains_plus=True,
)

truncated_square = Link(
    name="truncated_square",
    value=lambda z: (1.0 - z).clamp(min=0.0).square(),
    first=lambda z: -2.0 * (1.0 - z).clamp(min=0.0),
    second=lambda z: 2.0 * (z < 1.0).to(z.dtype),
    slope_plus=0.0,
    slope_minus=math.inf,
    flat_after=1.0,
    attains_plus=True,
)

exponential = Link(
    name="exponential",
    value=lambda z: bounded_exp(-z),
    first=lambda z: -torch.exp((-z).clamp(max=LARGEST_EXPONENT)),
    second=lambda z: torch.exp((-z).clamp(max=LARGEST_EXPONENT)) * (-z < LARGEST_EXPONENT),
    slope_plus=0.0,
    slope_minus=math.inf,
    tail_plus=1.0,
    falling=True,
)
"""e^-z, continued along its tangent below z = -64."""


def _savage_second(z: Tensor) -> Tensor:
    error = torch.sigmoid(-z)
    return error.square() * torch.sigmoid(z) * (4.0 - 6.0 * error)


savage = Link(
    name="savage",
    value=lambda z: torch.sigmoid(-z).square(),
    first=lambda z: -2.0 * torch.sigmoid(-z).square() * torch.sigmoid(z),
    second=_savage_second,
    slope_plus=0.0,
    slope_minus=0.0,
    tail_plus=2.0,
    tail_minus=1.0,
    convex=False,
    falling=True,
)
"""1/(1 + e^z)^2: bounded, so a badly wrong pair teaches nothing."""


def two_sided(link: Link, agree: float, disagree: float, *, name: str, convex: bool) -> Link:
    """``agree * f(z) + disagree * f(-z)``: what becomes of a link when labels may be wrong, or pull both ways."""

    def slope(weight: float, value: float) -> float:
        return weight * value if weight else 0.0  # 0 * inf is 0: that side does not occur

    def slowest(one: float, other: float) -> float:
        tails = [tail for weight, tail in ((agree, one), (disagree, other)) if weight]
        return math.nan if any(map(math.isnan, tails)) else min(tails, default=math.nan)

    def shared(z: Tensor) -> tuple[Side, Side]:
        (v, f, s), (w, g, t) = link.both(z)
        return (
            (agree * v + disagree * w, agree * f - disagree * g, agree * s + disagree * t),
            (agree * w + disagree * v, agree * g - disagree * f, agree * t + disagree * s),
        )

    return Link(
        name=name,
        value=lambda z: agree * link.value(z) + disagree * link.value(-z),
        first=lambda z: agree * link.first(z) - disagree * link.first(-z),
        second=lambda z: agree * link.second(z) + disagree * link.second(-z),
        slope_plus=slope(agree, link.slope_plus) + slope(disagree, link.slope_minus),
        slope_minus=slope(agree, link.slope_minus) + slope(disagree, link.slope_plus),
        attains_plus=(link.attains_plus or not agree) and (link.attains_minus or not disagree),
        attains_minus=(link.attains_minus or not agree) and (link.attains_plus or not disagree),
        tail_plus=slowest(link.tail_plus, link.tail_minus),
        tail_minus=slowest(link.tail_minus, link.tail_plus),
        convex=convex,
        logistic_shares=(agree, disagree) if link is logistic else None,
        shared=None if link.shared is None else shared,
    )


def smoothed_logistic(label_smoothing: float) -> Link:
    """(1 - e) L(z) + e L(-z): labels are wrong with probability e. Minimum at z = logit(1 - e)."""
    return two_sided(logistic, 1.0 - label_smoothing, label_smoothing, name="smoothed_logistic", convex=True)


def robust_logistic(label_smoothing: float) -> Link:
    """[(1 - e) L(z) - e L(-z)] / (1 - 2e) = L(z) - z e/(1 - 2e): convex, and unbounded below for e > 0."""
    scale = 1.0 / (1.0 - 2.0 * label_smoothing)
    return two_sided(
        logistic, scale * (1.0 - label_smoothing), -scale * label_smoothing, name="robust_logistic", convex=True
    )


def reverse_kl(label_smoothing: float) -> Link:
    """KL(q || p) of the labels q = (s(z), s(-z)) from p = (1 - e, e): bounded, minimum 0 at z = logit(1 - e)."""
    log_right, log_wrong = math.log1p(-label_smoothing), math.log(label_smoothing)
    target = log_right - log_wrong

    def value(z: Tensor) -> Tensor:
        return torch.sigmoid(z) * (logsigmoid(z) - log_right) + torch.sigmoid(-z) * (logsigmoid(-z) - log_wrong)

    def second(z: Tensor) -> Tensor:
        return _sigmoid_slope(z) * (1.0 + (1.0 - 2.0 * torch.sigmoid(z)) * (z - target))

    return Link(
        name="reverse_kl",
        value=value,
        first=lambda z: _sigmoid_slope(z) * (z - target),
        second=second,
        slope_plus=0.0,
        slope_minus=0.0,
        convex=False,
    )


def blended_exponential(temperature: float) -> Link:
    """(1 - m) L(z) + m e^-z with m = s(z/temperature) (DiscoPOP): not monotone and not convex."""

    def mix(z: Tensor) -> tuple[Tensor, Tensor]:
        """m, and m e^-z as one exponential: apart they would be 0 * inf."""
        return torch.sigmoid(z / temperature), bounded_exp(logsigmoid(z / temperature) - z)

    def value(z: Tensor) -> Tensor:
        m, mixed = mix(z)
        return (1.0 - m) * logistic.value(z) + mixed

    def first(z: Tensor) -> Tensor:
        m, mixed = mix(z)
        rest = 1.0 - m
        return -m * rest / temperature * logistic.value(z) + rest * logistic.first(z) + mixed * (rest / temperature - 1)

    def second(z: Tensor) -> Tensor:
        m, mixed = mix(z)
        rest = 1.0 - m
        slope = m * rest / temperature
        curvature = slope * (rest - m) / temperature
        logarithmic = -curvature * logistic.value(z) - 2.0 * slope * logistic.first(z) + rest * logistic.second(z)
        return logarithmic + mixed * ((rest / temperature - 1.0) ** 2 - slope / temperature)

    return Link(
        name="blended_exponential",
        value=value,
        first=first,
        second=second,
        slope_plus=0.0,
        slope_minus=1.0 if temperature <= 1 else math.inf,
        convex=False,
    )


def clipped(link: Link, bound: float) -> Link:
    """f(z clipped to +-bound): constant, with zero gradient, outside."""

    def inside(z: Tensor) -> Tensor:
        return (z.abs() < bound).to(z.dtype)

    return Link(
        name=f"clipped_{link.name}",
        value=lambda z: link.value(z.clamp(-bound, bound)),
        first=lambda z: link.first(z.clamp(-bound, bound)) * inside(z),
        second=lambda z: link.second(z.clamp(-bound, bound)) * inside(z),
        slope_plus=0.0,
        slope_minus=0.0,
        attains_plus=True,
        attains_minus=True,
        convex=False,
    )

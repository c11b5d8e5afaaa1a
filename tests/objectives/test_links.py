"""Closed-form derivatives of every link against autograd, and what it claims at infinity and of its shape against numbers."""

from __future__ import annotations

import math

import pytest
import torch

from objectives import links
from objectives.links import Link

LINKS: list[Link] = [
    links.logistic,
    links.square,
    links.negative_sigmoid,
    links.error_probability,
    links.hinge,
    links.truncated_square,
    links.exponential,
    links.savage,
    links.smoothed_logistic(0.0),
    links.smoothed_logistic(0.2),
    links.robust_logistic(0.0),
    links.robust_logistic(0.2),
    links.reverse_kl(1e-3),
    links.reverse_kl(0.3),
    links.blended_exponential(0.05),
    links.blended_exponential(1.0),
    links.blended_exponential(2.0),
    links.clipped(links.logistic, 2.5),
    links.two_sided(links.error_probability, 0.0, 1.0, name="sigmoid", convex=False),
    links.two_sided(links.hinge, 0.7, 0.3, name="two-sided hinge", convex=True),
]
EVERY_LINK = pytest.mark.parametrize("link", LINKS, ids=[f"{i}-{link.name}" for i, link in enumerate(LINKS)])
GRID = torch.linspace(-12.0, 12.0, 4001, dtype=torch.float64) + 1.7e-4  # off the kinks


@EVERY_LINK
def test_derivatives(link: Link) -> None:
    z = GRID.clone().requires_grad_()
    (first,) = torch.autograd.grad(link.value(z).sum(), z, create_graph=True)
    torch.testing.assert_close(link.first(GRID), first.detach(), rtol=1e-10, atol=1e-12)
    if first.requires_grad:
        (second,) = torch.autograd.grad(first.sum(), z)
        torch.testing.assert_close(link.second(GRID), second, rtol=1e-9, atol=1e-11)
    else:
        assert not link.second(GRID).any()


@EVERY_LINK
@pytest.mark.parametrize("side", [1.0, -1.0])
def test_slopes_at_infinity(link: Link, side: float) -> None:
    claimed = link.slope_plus if side > 0 else link.slope_minus
    # Below -64 the exponential is continued along its tangent: its growth is looked at before.
    near, far = (20.0, 40.0) if math.isinf(claimed) else (1e4, 2e4)
    at_near, at_far = (link.value(torch.tensor([side * x], dtype=torch.float64)).item() for x in (near, far))
    slope = (at_far - at_near) / (far - near)
    if math.isinf(claimed):
        assert slope > 10.0
        assert at_far / at_near > 3.0  # more than linear
    else:
        assert slope == pytest.approx(claimed, abs=1e-3)
        if claimed == 0:
            attains = link.attains_plus if side > 0 else link.attains_minus
            beyond = link.value(side * torch.linspace(20.0, 30.0, 11, dtype=torch.float64))
            assert bool((beyond == beyond[0]).all()) == attains


@EVERY_LINK
def test_claim_of_convexity(link: Link) -> None:
    values = link.value(GRID)
    bend = values[2:] - 2 * values[1:-1] + values[:-2]
    convex = bool((bend > -1e-12 * (1 + values[1:-1].abs())).all())
    if link.name == "blended_exponential":  # the claim is for every temperature; high ones happen to be convex
        assert not link.convex
    else:
        assert convex == link.convex


def test_where_smoothed_links_have_their_minimum() -> None:
    """At logit(1 - e), for e = .2 log 4: there the label probability is right."""
    at = torch.tensor([math.log(4.0)], dtype=torch.float64)
    for link in (links.smoothed_logistic(0.2), links.reverse_kl(0.2)):
        assert abs(link.first(at).item()) < 1e-15
        assert link.second(at).item() > 0.1
    assert abs(links.reverse_kl(0.2).value(at).item()) < 1e-15


def test_robust_logistic_is_unbiased_under_flips() -> None:
    """Flipping each label with probability e gives back the logistic loss in expectation: what the correction is for."""
    link, e = links.robust_logistic(0.3), 0.3
    expected = (1 - e) * link.value(GRID) + e * link.value(-GRID)
    torch.testing.assert_close(expected, torch.log1p(torch.exp(-GRID)), rtol=1e-9, atol=1e-12)


def test_bounded_exp_is_exp_until_it_must_not_be() -> None:
    ordinary = torch.linspace(-50.0, 64.0, 200, dtype=torch.float64)
    torch.testing.assert_close(links.bounded_exp(ordinary), ordinary.exp(), rtol=1e-15, atol=0)
    huge = torch.tensor([64.0, 65.0, 200.0, 1e4], dtype=torch.float32, requires_grad=True)
    values = links.bounded_exp(huge)
    (gradient,) = torch.autograd.grad(values.sum(), huge)
    assert bool(torch.isfinite(values).all())
    assert bool(torch.isfinite(gradient).all())
    assert bool((values.diff() > 0).all())

"""The interval proof that a minimum is the only one: its bounds against grids and samples, its verdicts against many starts."""

from __future__ import annotations

import pytest
import torch

import objectives
from toy_bandits import Bandit, solve, uniqueness
from toy_bandits.derivatives import Function
from toy_bandits.packed import Packed, minimise
from toy_bandits.search import further_starts


def worlds(count: int, actions: int, spread: float, seed: int = 0) -> Bandit:
    """Random references and preferences of any kind, cycles among them."""
    generator = torch.Generator().manual_seed(seed)
    reference = (spread * torch.randn(count, 1, actions, generator=generator, dtype=torch.float64)).softmax(-1)
    odds = (spread * torch.randn(count, 1, actions, actions, generator=generator, dtype=torch.float64)).triu(1)
    return Bandit(reference, (odds - odds.mT).sigmoid())


def packed_at(problem: Bandit, label: str) -> tuple[Packed, torch.Tensor]:
    """The columns and their policies (A, N), from one start."""
    objective = objectives.parse(label)
    packed = Packed.of(Function(problem, objective))
    assert packed is not None
    return packed, solve(problem, objective, starts=0).policy[:, 0].T.contiguous()


def test_bounds_of_the_sigmoids_derivatives_hold_on_intervals() -> None:
    ends = torch.linspace(0.0, 1.0, 41, dtype=torch.float64)
    for low in ends:
        for high in ends[ends >= low]:
            r = torch.linspace(low.item(), high.item(), 201, dtype=torch.float64)
            bend = (r * (1 - r) * (1 - 2 * r)).max()
            found = uniqueness._steepest(low, high)
            assert bend <= found + 1e-15
            assert found - bend <= 1e-4  # and is attained, up to the grid


@pytest.mark.parametrize(
    "label",
    [
        "maxpo(beta=0.1)",
        "maxpo(beta=0.05)",
        "maxpo(beta=0.1, temperature=0.5)",
        "maxpo(beta=0.1, reference_adjusted=True)",
    ],
)
def test_the_box_holds_every_stationary_policy(label: str) -> None:
    problem = worlds(60, 4, 2.0)
    packed, policy = packed_at(problem, label)
    box = uniqueness._Box(packed, packed.pairs[0], policy)
    for _ in range(12):
        box.shrink()
    assert float((box.high - box.low).mean()) < 0.5  # it says something
    begin = problem.log_reference
    found = 0
    for start in further_starts(problem, begin, torch.zeros_like(begin, dtype=torch.long), 24, seed=1):
        end = minimise(packed, start[:, 0].T.contiguous(), torch.zeros_like(policy, dtype=torch.long))
        at = end.logits.softmax(0)
        inside = ((at >= box.low * (1 - 1e-9)) & (at <= box.high * (1 + 1e-9))).all(0)
        assert bool(inside[end.converged].all())
        found += int(((at - policy).abs().amax(0) > 1e-3)[end.converged].sum())
    assert found > 0  # among them others than the first


@pytest.mark.parametrize("label", ["maxpo(beta=0.2)", "maxpo(beta=0.05)", "maxpo(beta=0.1, temperature=0.5)"])
def test_what_is_proved_has_one_minimum_from_every_start_and_what_has_several_is_not_proved(
    label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, objective = worlds(200, 4, 1.5, seed=2), objectives.parse(label)
    quick = solve(problem, objective)
    monkeypatch.setattr("toy_bandits.search.only_stationary", lambda packed, policy: policy[0] < 0)
    full = solve(problem, objective, starts=48)
    proved, several = quick.certificate.proved, full.certificate.minima > 1
    assert not bool((proved & several).any())
    assert int(proved.sum()) > 20 and int(several.sum()) >= 1
    torch.testing.assert_close(quick.value[proved], full.value[proved], rtol=0, atol=1e-12)
    assert not bool(full.certificate.proved.any())


def test_along_segments_in_the_box_the_hessian_is_positive_definite_where_that_is_proved() -> None:
    problem = worlds(100, 4, 1.0, seed=3)
    packed, policy = packed_at(problem, "maxpo(beta=0.1)")
    box = uniqueness._Box(packed, packed.pairs[0], policy)
    for _ in range(8):
        box.shrink()
    proved = box.convex()
    assert 10 < int(proved.sum()) < 100
    function = Function(problem, objectives.parse("maxpo(beta=0.1)"))
    generator = torch.Generator().manual_seed(0)
    looked = 0
    for _ in range(50):
        (one, fits), (other, fits_too) = (policy_in(box, generator) for _ in range(2))
        share = torch.rand(1, generator=generator, dtype=torch.float64)
        hessian = function((share * one.log() + (1 - share) * other.log()).T.unsqueeze(1)).hessian[:, 0]
        lowest = torch.linalg.eigvalsh(hessian)[:, 1]  # the first belongs to the constant
        which = proved & fits & fits_too
        looked += int(which.sum())
        assert bool((lowest[which] > 0).all())
    assert looked > 100


def policy_in(box: uniqueness._Box, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """(A, N): random policies above the lower bounds, and which of them are below the upper ones, too."""
    share = torch.rand(box.low.shape, generator=generator, dtype=torch.float64)
    above = share * (box.high - box.low)
    policy = box.low + above * (1.0 - box.low.sum(0)) / above.sum(0)
    return policy, (policy <= box.high).all(0)

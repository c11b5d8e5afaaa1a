"""The RLHF optimum as a bound: tight to rounding from the reference to a point mass, and a policy above it an error."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

from toy_bandits import BanditError, worlds
from toy_bandits.metrics import expected_reward, kl_policy_reference, win_rate
from toy_bandits.optimum import ROUNDING, regret_to_bound, reward_bound, rlhf_log_policy, win_rate_as_reward
from toy_bandits.problem import Bandit

WORLDS = (
    "bradley_terry/1",
    "bradley_terry/6",
    "determinism/6",
    "neglected_best/4",
    "partial_support/6",
    "sequences/5",
    "intransitive/4",
)


def policies(problem: Bandit, seed: int) -> Tensor:
    """From as good as the reference (1e-16 nats away) to point masses."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(41, 30, *problem.reference.shape, generator=generator, dtype=torch.float64)
    size = torch.logspace(-16, 4, 41, dtype=torch.float64)[:, None, None, None]
    return (problem.log_reference + size * noise).flatten(0, 1).log_softmax(-1)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("measure", ["reward", "win_rate"])
def test_random_policies_stay_below_and_optima_lie_on_the_bound(world: str, measure: str) -> None:
    truth = worlds.get(world).truth
    problem = truth if measure == "reward" else win_rate_as_reward(truth)
    assert problem.rewards is not None
    _, regret = regret_to_bound(problem, policies(problem, 0), str)
    scale = problem.rewards.abs().max().item()
    assert regret.min().item() >= -ROUNDING * scale
    assert regret.max().item() > 0.1 * scale  # the bound is not above nothing
    optima = rlhf_log_policy(problem, torch.logspace(-6, 6, 61, dtype=torch.float64))
    assert regret_to_bound(problem, optima, str)[1].abs().max().item() <= ROUNDING * scale


def test_the_win_rate_is_the_expected_reward_of_the_problem_that_it_is_the_reward_of() -> None:
    truth = worlds.get("intransitive/3").truth
    drawn = policies(truth, 1)
    np.testing.assert_allclose(expected_reward(win_rate_as_reward(truth), drawn), win_rate(truth, drawn), rtol=1e-13)


def test_a_policy_that_is_no_distribution_is_an_error_with_its_place() -> None:
    truth = worlds.get("bradley_terry/1").truth
    proper = rlhf_log_policy(truth, torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64))
    too_much = proper + torch.tensor([0.0, 0.0, 1e-10], dtype=torch.float64)[:, None, None]
    with pytest.raises(BanditError, match=r"^my world: dpo, \(2,\): an expected reward of .* lies above the RLHF"):
        regret_to_bound(truth, too_much, lambda at: f"my world: dpo, {at}")
    with pytest.raises(BanditError, match="expected reward of nan"):
        regret_to_bound(truth, torch.full_like(proper[0], float("nan")), str)


@pytest.mark.parametrize("size", [1e-10, 1e-6, 1e-2, 3.0])
def test_divergence_from_the_reference_has_all_its_digits_however_small(size: float) -> None:
    """Against 60-digit arithmetic; the plain sum of pi log(pi/pi_ref) has an error of 1e-16, that is all of 1e-20."""
    problem = worlds.get("bradley_terry/6").truth
    noise = torch.randn(4, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    log_policy = (problem.log_reference + size * noise).log_softmax(-1)
    with mpmath.workdps(60):
        total = mpmath.mpf(0)
        for x in range(4):
            logs = [mpmath.mpf(value) for value in log_policy[x].tolist()]
            constant = mpmath.log(sum(mpmath.exp(value) for value in logs))  # float64 log-probs sum to 1 up to 1e-16
            reference = [mpmath.mpf(value) for value in problem.reference[x].tolist()]
            mass = sum(reference)
            total += mpmath.mpf(problem.contexts[x].item()) * sum(
                mpmath.exp(lp - constant) * (lp - constant - mpmath.log(r / mass))
                for lp, r in zip(logs, reference, strict=True)
            )
    # log-probs near -4 carry errors of 1e-15: relative to log-ratios of `size` that is what can be asked for.
    assert kl_policy_reference(problem, log_policy).item() == pytest.approx(float(total), rel=1e-14 + 1e-14 / size)


def test_a_point_mass_on_the_best_action_has_the_best_reward() -> None:
    truth = worlds.get("determinism/6").truth
    point = torch.tensor([[0.0, -torch.inf, -torch.inf, -torch.inf]], dtype=torch.float64)
    assert reward_bound(truth, point).item() == pytest.approx(1.0, rel=1e-12)
    assert kl_policy_reference(truth, point).item() == pytest.approx(-np.log(0.1), rel=1e-14)

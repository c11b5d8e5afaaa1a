"""Metrics against sums worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from toy_bandits import Bandit, BanditError, metrics

WIN = [[0.5, 0.9, 0.6], [0.1, 0.5, 0.5], [0.4, 0.5, 0.5]]
PAIRS = [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
POLICY = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64)


@pytest.fixture
def problem() -> Bandit:
    return Bandit([0.25, 0.5, 0.25], WIN, PAIRS, rewards=[1.0, 2.0, 4.0])


def test_values_worked_by_hand(problem: Bandit) -> None:
    values = metrics.all_metrics(problem, POLICY.log())
    assert float(values["kl_policy_reference"]) == pytest.approx(0.25 * math.log(2))  # .5 ln 2 - .25 ln 2
    assert float(values["kl_reference_policy"]) == pytest.approx(0.25 * math.log(2))  # -.25 ln 2 + .5 ln 2
    assert float(values["expected_reward"]) == pytest.approx(0.5 + 0.5 + 1.0)
    # against the reference: action 0 wins .125 + .45 + .15, action 1 .025 + .25 + .125, action 2 .1 + .25 + .125
    assert float(values["win_rate"]) == pytest.approx(0.5 * 0.725 + 0.25 * 0.4 + 0.25 * 0.475)
    assert float(values["off_support_mass"]) == 0.25
    assert metrics.component_masses(problem, POLICY.log()).tolist() == [[0.75, 0.75, 0.25]]


def test_a_point_mass_is_at_finite_reverse_and_infinite_forward_distance(problem: Bandit) -> None:
    point = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64).log()
    assert float(metrics.kl_policy_reference(problem, point)) == pytest.approx(math.log(4))
    assert float(metrics.kl_reference_policy(problem, point)) == math.inf


def test_forward_kl_is_right_where_probabilities_underflow(problem: Bandit) -> None:
    logits = torch.tensor([[0.0, -5000.0, -5000.0]], dtype=torch.float64)
    forward = float(metrics.kl_reference_policy(problem, logits))
    assert forward == pytest.approx(0.75 * 5000 + 0.5 * math.log(0.25) + 0.5 * math.log(0.5), rel=1e-12)


def test_contexts_are_averaged_and_impossible_ones_ignored() -> None:
    problem = Bandit([[0.5, 0.5]] * 3, [[0.5, 0.8], [0.2, 0.5]], contexts=[0.25, 0.75, 0.0], rewards=[0.0, 1.0])
    log_policy = torch.tensor([[0.5, 0.5], [0.2, 0.8], [1.0, 0.0]], dtype=torch.float64).log()
    assert float(metrics.expected_reward(problem, log_policy)) == pytest.approx(0.25 * 0.5 + 0.75 * 0.8)
    assert math.isfinite(float(metrics.kl_reference_policy(problem, log_policy)))


def test_the_reference_wins_half_of_the_time(problem: Bandit) -> None:
    values = metrics.all_metrics(problem, problem.log_reference)
    assert float(values["win_rate"]) == pytest.approx(0.5)
    assert float(values["kl_policy_reference"]) == 0.0


def test_rewards_must_be_given() -> None:
    bare = Bandit([0.5, 0.5], [[0.5, 0.8], [0.2, 0.5]])
    assert "expected_reward" not in metrics.all_metrics(bare, bare.log_reference)
    with pytest.raises(BanditError, match="no rewards"):
        metrics.expected_reward(bare, bare.log_reference)

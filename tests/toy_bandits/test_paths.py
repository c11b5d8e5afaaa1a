"""Gradient flow and Adam: where they end, what they keep on the way, and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import objectives
from toy_bandits import Bandit, BanditError, solve
from toy_bandits.paths import adam_path, gradient_flow, table
from toy_bandits.policies import LogLinear, TokenTree

WIN = [[0.5, 1.0, 0.5], [0.0, 0.5, 0.5], [0.5, 0.5, 0.5]]
UNSEEN = Bandit([0.2, 0.5, 0.3], WIN, [[0, 1, 0], [1, 0, 0], [0, 0, 0]])


def test_gradient_flow_of_ipo_follows_its_closed_form() -> None:
    # Logits u, loss (D - 1/(2 tau))^2: dD/dt = -4 (D - 1/(2 tau)), so D = (1 - e^(-4t))/(2 tau) from D = 0.
    times = [0.0, 0.1, 0.5, 2.0]
    for (time, log_policy), expected in zip(
        gradient_flow(UNSEEN, objectives.get("ipo", tau=0.25), times), times, strict=True
    ):
        ratio = log_policy[0] - UNSEEN.log_reference[0]
        assert time == expected
        assert float(ratio[0] - ratio[1]) == pytest.approx(2.0 * (1 - np.exp(-4 * time)), abs=1e-7)


@pytest.mark.parametrize("start", [None, [0.0, 0.0, 3.0]])
@pytest.mark.parametrize("features", [None, torch.eye(3), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1]])])
def test_gradient_flow_ends_where_solve_says(start: list[float] | None, features: torch.Tensor | None) -> None:
    policy = None if features is None else LogLinear(features)
    if start is not None and features is not None:
        start = start[: features.shape[-1]]
    objective = objectives.get("ipo", tau=0.1)
    (_, end), found = (
        *gradient_flow(UNSEEN, objective, [20.0], start, policy=policy),
        solve(UNSEEN, objective, start, policy=policy),
    )
    torch.testing.assert_close(end[0].exp(), found.policy, rtol=1e-6, atol=1e-8)
    assert found.status == "not_unique" or features is not None


def test_gradient_flow_turns_to_the_direction_of_largest_margin() -> None:
    features = np.array([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    win, pairs = np.full((4, 4), 0.5), np.zeros((4, 4))
    win[0, 1], win[1, 0], win[2, 3], win[3, 2] = 1.0, 0.0, 1.0, 0.0
    pairs[0, 1] = pairs[1, 0] = pairs[2, 3] = pairs[3, 2] = 1.0
    problem, objective = Bandit(np.full(4, 0.25), win, pairs), objectives.get("dpo", beta=1.0)
    found = solve(problem, objective, policy=LogLinear(features))
    (_, early), (_, late) = gradient_flow(problem, objective, [1e6, 1e12], policy=LogLinear(features))
    moved = (late - early)[0]
    fall = moved - moved.max()
    torch.testing.assert_close(fall / fall.abs().max(), found.certificate.direction, rtol=0, atol=0.02)


def test_adam_and_gradient_flow_reach_the_minimum_of_a_shared_tree() -> None:
    problem = Bandit([0.3, 0.3, 0.4], [[0.5, 0.8, 0.6], [0.2, 0.5, 0.7], [0.4, 0.3, 0.5]])
    policy, objective = TokenTree(["a", "b a", "b b"], 1), objectives.get("maxpo", beta=0.5)
    best = solve(problem, objective, policy=policy)
    *_, (_, flowed) = gradient_flow(problem, objective, [0.0, 300.0], policy=policy)
    *_, (_, stepped) = adam_path(problem, objective, [0, 600], 0.05, policy=policy)
    torch.testing.assert_close(flowed[0].exp(), best.policy, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(stepped[0].exp(), best.policy, rtol=1e-4, atol=1e-5)


def test_a_batch_of_problems_and_strengths_becomes_a_tidy_table() -> None:
    objective = objectives.get("ipo", tau=torch.tensor([0.1, 1.0]))
    rows = table(UNSEEN, gradient_flow(UNSEEN, objective, [0.0, 1.0]), clock="time")
    assert list(rows.columns[:2]) == ["time", "problem"]
    assert rows[["time", "problem"]].to_numpy().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    at_start = rows[rows.time == 0]
    np.testing.assert_allclose(at_start.kl_policy_reference, 0, atol=1e-12)
    alone = table(UNSEEN, gradient_flow(UNSEEN, objectives.get("ipo", tau=1.0), [1.0]), clock="time")
    assert alone.win_rate[0] == pytest.approx(rows.win_rate[3], rel=1e-7)


def test_an_adam_path_may_start_anywhere() -> None:
    (step, log_policy), *_ = adam_path(UNSEEN, objectives.get("dpo"), [0, 1], start=[0.0, 1.0, 2.0])
    assert step == 0
    torch.testing.assert_close(log_policy[0], torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64).log_softmax(-1))


@pytest.mark.parametrize("times", [[], [-1.0], [float("inf")]])
def test_moments_that_are_none_are_refused(times: list[float]) -> None:
    with pytest.raises(BanditError, match="times: expected numbers >= 0, at least one"):
        list(gradient_flow(UNSEEN, objectives.get("dpo"), times))

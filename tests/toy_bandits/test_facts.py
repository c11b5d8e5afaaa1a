"""The theory's facts F1-F7, F9 and F11 in the solver, against closed forms and independent solvers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles import bandit_closed_forms as oracle

import objectives
from objectives import links, margins
from objectives.terms import Objective, Part, pair_term
from toy_bandits import Bandit, solve
from toy_bandits.expectations import batches
from toy_bandits.metrics import component_masses
from toy_bandits.optimum import rlhf_log_policy

REFERENCE = np.array([0.2, 0.5, 0.3])
REWARDS = np.array([1.0, -0.5, 0.3])
ONE_PAIR = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
F5_STARTS = {
    "reference": (None, (0.877, 0.015, 0.108)),
    "up": ([0.0, 0.0, 3.0], (0.276, 0.005, 0.719)),
    "down": ([0.0, 0.0, -3.0], (0.977, 0.017, 0.006)),
}


def one_pair(p: float) -> Bandit:
    win = np.array([[0.5, p, 0.5], [1 - p, 0.5, 0.5], [0.5, 0.5, 0.5]])
    return Bandit(REFERENCE, win, ONE_PAIR)


def two_actions(q: float, p: float) -> Bandit:
    return Bandit([q, 1 - q], [[0.5, p], [1 - p, 0.5]])


@pytest.mark.parametrize("beta", [0.1, 1.0, 7.0])
def test_f1_rlhf_optimum_is_the_gibbs_policy_and_nothing_beats_it(beta: float) -> None:
    problem = Bandit.from_rewards(REFERENCE, REWARDS)
    policy = rlhf_log_policy(problem, beta).exp().squeeze(-2)
    np.testing.assert_allclose(policy, oracle.gibbs(REFERENCE, REWARDS, beta), rtol=1e-12)
    grid = oracle.simplex_grid(100)
    value = grid @ REWARDS - beta * (grid * np.log(grid / REFERENCE)).sum(1)
    own = float(policy.numpy() @ REWARDS - beta * (policy.numpy() * np.log(policy.numpy() / REFERENCE)).sum())
    assert own >= value.max()
    assert own - value.max() < 0.01 * (1 + abs(own))


@pytest.mark.parametrize("beta", [0.05, 1.0, 20.0])
@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_f2_dpo_under_bradley_terry_is_the_rlhf_optimum(beta: float, scale: float) -> None:
    solution = solve(Bandit.from_rewards(REFERENCE, REWARDS, scale), objectives.get("dpo", beta=beta))
    assert solution.status == "converged"
    assert solution.certificate.proved
    assert solution.gradient_norm <= 1e-10
    np.testing.assert_allclose(solution.policy, oracle.gibbs(REFERENCE, REWARDS / scale, beta), rtol=1e-8, atol=1e-300)


@pytest.mark.parametrize("beta", ["1e-3", "0.1", "10"])
@pytest.mark.parametrize("complement", ["0.4", "1e-2", "1e-8", "1e-12", "1e-200"])
def test_f2_dpo_margin_stays_exact_when_preferences_are_nearly_certain(beta: str, complement: str) -> None:
    p = float(complement)
    problem = Bandit([0.3, 0.7], [[0.5, 1 - p], [p, 0.5]])
    solution = solve(problem, objectives.get("dpo", beta=float(beta)))
    log_ratio = solution.log_policy - torch.tensor([0.3, 0.7], dtype=torch.float64).log()
    assert solution.status == "converged"
    assert float(log_ratio[0] - log_ratio[1]) == pytest.approx(oracle.dpo_margin(complement, beta), rel=1e-9)


@pytest.mark.parametrize("beta", [1e-3, 0.1, 10.0])
def test_f2_certain_preferences_leave_dpo_without_a_minimiser_whatever_beta(beta: float) -> None:
    win = np.array([[0.5, 1, 1], [0, 0.5, 1], [0, 0, 0.5]])
    solution = solve(Bandit(REFERENCE, win), objectives.get("dpo", beta=beta))
    assert solution.status == "diverges"
    assert solution.certificate.proved
    direction = solution.certificate.direction
    assert direction[0] > direction[1] > direction[2]
    np.testing.assert_array_equal(solution.policy, [1.0, 0.0, 0.0])
    assert float(solution.value) == 0.0
    assert solution.metrics["kl_reference_policy"] == float("inf")
    assert float(solution.metrics["kl_policy_reference"]) == pytest.approx(-np.log(0.2), rel=1e-12)


def test_f2_the_objective_falls_for_ever_along_the_direction() -> None:
    win = np.array([[0.5, 1, 0.3], [0, 0.5, 0.0], [0.7, 1.0, 0.5]])  # 0 and 2 beat 1 for certain and share wins
    solution = solve(Bandit(REFERENCE, win), objectives.get("dpo", beta=0.5))
    assert solution.status == "diverges"
    weight = (np.ones((3, 3)) - np.eye(3)) / 3
    begin = np.log(REFERENCE)
    values = [
        oracle.objective(
            "dpo",
            0.5,
            oracle.log_softmax(begin + t * solution.certificate.direction.numpy()),
            REFERENCE,
            win,
            weight,
        )
        for t in (0, 1, 5, 20, 60)
    ]
    assert np.all(np.diff(values) < 0)
    # what is left is the loss between 0 and 2, at its own optimum: entropy of (.3, .7) nats, with that pair's weight
    infimum = -(0.3 * np.log(0.3) + 0.7 * np.log(0.7)) / 3
    assert float(solution.value) == pytest.approx(infimum, rel=1e-10)
    ratio = (0.7 / 0.3) ** (1 / 0.5) * REFERENCE[2] / REFERENCE[0]
    np.testing.assert_allclose(solution.policy, np.array([1, 0, ratio]) / (1 + ratio), rtol=1e-8)


def test_f2_fords_criterion_agrees_with_linear_programming_on_random_graphs() -> None:
    generator = np.random.default_rng(0)
    worlds = [oracle.random_world(generator, 5, density, 0.6) for density in (0.3, 0.5, 0.8, 1.0) for _ in range(60)]
    problem = Bandit(*(np.stack([world[i] for world in worlds])[:, None] for i in range(3)))
    solution = solve(problem, objectives.get("dpo", beta=0.3))
    exists = np.array([oracle.has_finite_dpo_minimiser(win, weight) for _, win, weight in worlds])
    assert 40 < exists.sum() < 200  # both answers are really tried
    np.testing.assert_array_equal(solution.status != "diverges", exists)
    assert float(solution.gradient_norm.max()) <= 1e-10
    assert (solution.status != "unsolved").all()


@pytest.mark.parametrize("smoothing", ["0.1", "0.3"])
@pytest.mark.parametrize("complement", ["0.2", "1e-3", "0"])
def test_f3_smoothed_labels_shift_the_margin(smoothing: str, complement: str) -> None:
    e = float(smoothing)
    link = links.Link(
        name="test_smoothed",
        value=lambda z: (1 - e) * links.logistic.value(z) + e * links.logistic.value(-z),
        first=lambda z: (1 - e) * links.logistic.first(z) - e * links.logistic.first(-z),
        second=lambda z: (1 - e) * links.logistic.second(z) + e * links.logistic.second(-z),
        slope_plus=e,
        slope_minus=1 - e,
    )
    term = pair_term("test_cdpo", margins.reference_adjusted, link, scale=0.5)
    objective = Objective((Part("test_cdpo", "test_cdpo()", {}, (term,), lambda: objective),))
    p = 1 - float(complement)
    solution = solve(two_actions(0.3, p), objective)
    adjusted = solution.log_policy - torch.tensor([0.3, 0.7], dtype=torch.float64).log()
    assert solution.status == "converged"
    assert float(adjusted[0] - adjusted[1]) == pytest.approx(oracle.dpo_margin(complement, "0.5", smoothing), rel=1e-9)


@pytest.mark.parametrize("density", [0.4, 1.0])
@pytest.mark.parametrize("tau", [0.05, 1.0])
def test_f4_ipo_is_weighted_least_squares_on_the_pair_graph(tau: float, density: float) -> None:
    generator = np.random.default_rng(1)
    for _ in range(10):
        reference, win, weight = oracle.random_world(generator, 6, density, 0.3)
        start = generator.normal(size=6)
        solution = solve(Bandit(reference, win, weight), objectives.get("ipo", tau=tau), start)
        expected = oracle.log_softmax(oracle.ipo_logits(reference, win, weight, tau, start))
        np.testing.assert_allclose(solution.log_policy, expected, rtol=1e-9, atol=1e-9)


def test_f4_a_chain_of_certain_wins_carries_ipo_past_its_target() -> None:
    chain = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    win = np.array([[0.5, 1, 0.5], [0, 0.5, 1], [0.5, 0, 0.5]])
    solution = solve(Bandit(REFERENCE, win, chain), objectives.get("ipo", tau=0.1))
    adjusted = (solution.log_policy - torch.from_numpy(REFERENCE).log()).numpy()
    np.testing.assert_allclose(adjusted[:2] - adjusted[1:], [5.0, 5.0], rtol=1e-10)  # 1 / (2 tau) each, 10 over both


@pytest.mark.parametrize("start", F5_STARTS)
def test_f5_ipo_on_partial_support_stops_where_the_start_says(start: str) -> None:
    logits, expected = F5_STARTS[start]
    solution = solve(one_pair(1.0), objectives.get("ipo", tau=0.1), logits)
    np.testing.assert_allclose(solution.policy, expected, atol=6e-4)  # the theory prints three digits
    begin = np.log(REFERENCE) if logits is None else np.array(logits)
    exact = oracle.ipo_logits(REFERENCE, one_pair(1.0).preferences[0].numpy(), ONE_PAIR, 0.1, begin)
    np.testing.assert_allclose(solution.log_policy, oracle.log_softmax(exact), rtol=1e-12, atol=1e-12)
    assert solution.status == "not_unique"
    assert solution.certificate.dimension == 1
    assert solution.certificate.proved


@pytest.mark.parametrize("name", ["dpo", "ipo"])
def test_f5_moving_mass_between_components_costs_nothing(name: str) -> None:
    problem = one_pair(0.9)
    objective = objectives.get(name)
    solution = solve(problem, objective)
    assert solution.status == "not_unique"
    for shift in (-30.0, 4.0, 30.0):
        moved = solution.logits + torch.tensor([0.0, 0.0, shift], dtype=torch.float64)
        value = objective.value(batches(problem, objective, moved.log_softmax(-1).unsqueeze(-2)))
        assert float(value) == pytest.approx(float(solution.value), rel=1e-12)


def test_f5_gradient_flow_ends_where_the_solver_says() -> None:
    """Plain gradient descent with small steps, written out here, from the same start."""
    start, tau = np.array([0.0, 0.0, 3.0]), 0.5
    logits = start.copy()
    for _ in range(4000):
        margin = logits[0] - logits[1] - np.log(0.2 / 0.5)
        force = 2 * (margin - 1 / (2 * tau))
        logits -= 0.01 * np.array([force, -force, 0.0])
    solution = solve(one_pair(1.0), objectives.get("ipo", tau=tau), start)
    np.testing.assert_allclose(solution.log_policy, oracle.log_softmax(logits), atol=1e-8)


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("q", [0.03, 0.5, 0.8])
def test_f6_iii_maxpo_with_two_actions_has_a_closed_form(q: float, p: float, beta: float) -> None:
    solution = solve(two_actions(q, p), objectives.get("maxpo", beta=beta))
    assert solution.status == "converged"
    assert float(solution.policy[0]) == pytest.approx(oracle.maxpo_two_actions(q, p, beta), rel=1e-8)


@pytest.mark.parametrize(
    "start", [None, *([0.0, 0.0, x] for x in (3.0, -3.0, 40.0)), [9.0, -9.0, 0.0], [-20.0, 20.0, 0.0]]
)
def test_f6_ii_maxpo_gives_the_same_policy_from_every_start_and_keeps_unseen_mass(start: list[float] | None) -> None:
    """Inside the seen pair it is F6 (iii) with q = 2/7 and beta times the pair's share .7 of the mass.

    The theory prints (.633, .067, .300) for beta = .1. That is the answer at beta = .2, or with the pair's weight halved; with weights
    that sum to 1 over unordered pairs beta = .1 gives (.666, .034, .300).
    """
    for beta, printed in ((0.1, (0.666, 0.034, 0.300)), (0.2, (0.633, 0.067, 0.300))):
        solution = solve(one_pair(1.0), objectives.get("maxpo", beta=beta), start)
        first = 0.7 * oracle.maxpo_two_actions(2 / 7, 1.0, 0.7 * beta)
        np.testing.assert_allclose(solution.policy, [first, 0.7 - first, 0.3], atol=1e-10)
        np.testing.assert_allclose(solution.policy, printed, atol=6e-4)
        assert solution.status == "converged"


def test_f6_i_ii_maxpo_on_random_graphs() -> None:
    generator = np.random.default_rng(2)
    worlds = [oracle.random_world(generator, 5, 0.3, 0.5) for _ in range(40)]
    problem = Bandit(*(np.stack([world[i] for world in worlds])[:, None] for i in range(3)))
    for beta in (0.05, 0.5):
        solution = solve(problem, objectives.get("maxpo", beta=beta))
        assert (solution.status == "converged").all()
        assert float(solution.metrics["kl_reference_policy"].max()) <= 1 / beta
        torch.testing.assert_close(
            component_masses(problem, solution.log_policy),
            component_masses(problem, problem.log_reference.expand_as(solution.log_policy)),
            atol=1e-9,
            rtol=0,
        )


def test_f6_iv_a_strong_maxpo_regulariser_gives_the_reference() -> None:
    errors = [
        float(
            (solve(one_pair(1.0), objectives.get("maxpo", beta=beta)).policy - torch.from_numpy(REFERENCE)).abs().max()
        )
        for beta in (1e2, 1e4, 1e6)
    ]
    assert errors[0] < 1e-2
    np.testing.assert_allclose([errors[1] / errors[0], errors[2] / errors[1]], 0.01, rtol=0.05)  # of order 1 / beta


@pytest.mark.parametrize("beta", [0.03, 0.3])
@pytest.mark.parametrize("cyclic", [False, True])
def test_f6_no_policy_on_a_grid_beats_the_maxpo_minimum(beta: float, cyclic: bool) -> None:
    """Its pair term is not convex; intransitive preferences make several minima likely."""
    generator = np.random.default_rng(3)
    grid = oracle.logit_grid(12.0, 0.1)
    for _ in range(5):
        reference, win, weight = oracle.random_world(generator, 3)
        if cyclic:
            for a, b in ((0, 1), (1, 2), (2, 0)):
                win[a, b], win[b, a] = 0.95, 0.05
        solution = solve(Bandit(reference, win, weight), objectives.get("maxpo", beta=beta))
        lowest = oracle.objective("maxpo", beta, grid, reference, win, weight).min()
        assert float(solution.value) <= lowest
        assert lowest - float(solution.value) < 1e-3


@pytest.mark.parametrize("name", ["dpo", "ipo", "maxpo"])
@pytest.mark.parametrize("p", [0.8, 1.0])
def test_f7_any_pair_loss_with_forward_kl_is_finite_and_keeps_component_masses(name: str, p: float) -> None:
    pairs = objectives.get(name, beta=0) if name == "maxpo" else objectives.get(name)
    objective = pairs + objectives.forward_kl(weight=0.2)
    for start in (None, [0.0, 0.0, 3.0], [0.0, 5.0, -3.0]):
        solution = solve(one_pair(p), objective, start)
        assert solution.status == "converged"
        assert float(solution.policy[2]) == pytest.approx(0.3, abs=1e-9)
        value, policy = oracle.scipy_minimum(
            lambda log_policy: oracle.objective(
                name,
                0.2 if name == "maxpo" else 0.1,
                log_policy,
                REFERENCE,
                one_pair(p).preferences[0].numpy(),
                ONE_PAIR,
                forward_kl=0.2,
            ),
            3,
            4,
            0,
        )
        np.testing.assert_allclose(solution.policy, policy, atol=2e-5)
        assert float(solution.value) <= value + 1e-9


@pytest.mark.parametrize("name", ["dpo", "ipo"])
def test_f9_at_the_reference_every_adjusted_margin_is_zero(name: str) -> None:
    problem = one_pair(0.9)
    objective = objectives.get(name)
    batch = batches(problem, objective, problem.log_reference)["pairs"]
    (term,) = objective.terms
    assert (term.margin.value(batch, name) == 0).all()


def test_f11_forward_kl_keeps_the_sampled_masses_not_the_references() -> None:
    samples = np.array([0.25, 0.25, 0.5])
    win = one_pair(0.9).preferences[0]
    solution = solve(Bandit(REFERENCE, win, ONE_PAIR, reference_samples=samples), objectives.get("maxpo", beta=0.1))
    assert solution.status == "converged"
    first = 0.5 * oracle.maxpo_two_actions(0.5, 0.9, 0.5 * 0.1)
    np.testing.assert_allclose(solution.policy, [first, 0.5 - first, 0.5], atol=1e-10)


@pytest.mark.parametrize("name", ["maxpo", "dpo+forward_kl", "ipo+forward_kl"])
def test_f11_an_action_never_sampled_and_never_shown_loses_all_its_mass(name: str) -> None:
    problem = Bandit(REFERENCE, one_pair(0.9).preferences[0], ONE_PAIR, reference_samples=[0.4, 0.6, 0.0])
    solution = solve(problem, objectives.parse(name))
    assert solution.status == "diverges"
    assert solution.certificate.proved
    assert solution.policy[2] == 0.0
    assert solution.metrics["kl_reference_policy"] == float("inf")
    assert float(solution.policy.sum()) == pytest.approx(1.0, rel=1e-12)
    # the other two are at the optimum of their own world of two actions
    own = solve(Bandit([2 / 7, 5 / 7], [[0.5, 0.9], [0.1, 0.5]], reference_samples=[0.4, 0.6]), objectives.parse(name))
    np.testing.assert_allclose(solution.policy[:2], own.policy, rtol=1e-8)
    assert float(solution.value) == pytest.approx(float(own.value), rel=1e-12)


def test_f11_an_action_never_sampled_but_beaten_in_pairs_loses_its_mass_too() -> None:
    """Numerical: the pair term is bounded and not convex, so that nothing is proved; one that wins its pair keeps mass."""
    loses = solve(
        Bandit([0.5, 0.5], [[0.5, 0.9], [0.1, 0.5]], reference_samples=[1.0, 0.0]), objectives.get("maxpo", beta=0.1)
    )
    assert loses.status == "diverges"
    assert not loses.certificate.proved
    np.testing.assert_array_equal(loses.policy, [1.0, 0.0])
    wins = solve(
        Bandit([0.5, 0.5], [[0.5, 0.9], [0.1, 0.5]], reference_samples=[0.0, 1.0]), objectives.get("maxpo", beta=0.1)
    )
    assert wins.status == "converged"
    assert float(wins.policy[0]) == pytest.approx(1 - 0.1 / 0.8, rel=1e-9)  # minimises -.8 x - .1 log(1 - x)

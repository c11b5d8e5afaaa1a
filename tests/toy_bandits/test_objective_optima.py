"""The exact optimum of every objective that has one, against closed forms and scalar search that share no code with the solver."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from oracles import objective_optima as oracle

import objectives
from toy_bandits import Bandit, solve

REFERENCE = (0.3, 0.7)

# Objectives of a single pair of actions: one number decides, so a scalar search over the 60-digit losses is an independent solver.
TWO_ACTIONS = [
    "dpo(beta=0.5)",
    "cdpo(beta=0.5, label_smoothing=0.1)",
    "robust_dpo(beta=0.5, label_smoothing=0.1)",
    "ipo(tau=0.5)",
    "exo_pref(beta=0.5, label_smoothing=0.001)",
    "infonca(beta=0.5)",
    "nca(beta=0.5)",
    "bco(beta=0.5, delta=0.3)",
    "sppo(beta=0.5)",
    "simpo(beta=2, gamma=1)",
    "orpo(lam=0.1)",
    "cpo(beta=0.1, alpha=1)",
    "chipo(beta=0.5)",
    "rpo(beta=0.5, eta=0.005)",
    "dpop(beta=0.5, lam=5)",
    "minor_dpo(beta=0.5)",
    "fdpo(beta=0.5, divergence='forward_kl')",
    "fdpo(beta=0.5, divergence='js')",
    "fdpo(beta=0.5, divergence='alpha', alpha=0.3)",
    "gpo(beta=0.5, link='exponential')",
    "gpo(beta=0.5, link='truncated_square')",
    "gpo(beta=0.5, link='savage')",
    "alphapo(beta=2, gamma=1, alpha=0.25)",
]


@pytest.mark.parametrize("p", [0.65, 0.8])
@pytest.mark.parametrize("label", TWO_ACTIONS)
def test_two_actions(label: str, p: float) -> None:
    problem = Bandit(reference=list(REFERENCE), preferences=[[0.5, p], [1 - p, 0.5]])
    solution = solve(problem, objectives.parse(label))
    expected = oracle.two_actions(label, REFERENCE, p)
    assert 1e-6 < expected < 1 - 1e-6
    assert solution.policy[0].item() == pytest.approx(expected, abs=2e-7)


def margin(label: str, p: float, reference: tuple[float, float] = REFERENCE) -> float:
    """D at the solution of a two-action world."""
    problem = Bandit(reference=list(reference), preferences=[[0.5, p], [1 - p, 0.5]])
    solution = solve(problem, objectives.parse(label))
    assert solution.status == "converged"
    log_policy, log_reference = solution.log_policy.tolist(), np.log(reference)
    return (log_policy[0] - log_reference[0]) - (log_policy[1] - log_reference[1])


def logit(p: float) -> float:
    return math.log(p / (1 - p))


@pytest.mark.parametrize(
    ("label", "p", "expected"),
    [
        ("cdpo(beta=0.5, label_smoothing=0.1)", 0.8, 2 * logit(0.9 * 0.8 + 0.1 * 0.2)),
        ("cdpo(beta=0.5, label_smoothing=0.1)", 1.0, 2 * logit(0.9)),
        ("robust_dpo(beta=0.5, label_smoothing=0.1)", 0.8, 2 * logit(0.7 / 0.8)),
        ("exo_pref(beta=0.5, label_smoothing=0.01)", 0.8, 2 * 0.6 * logit(0.99)),
        ("exo_pref(beta=0.5, label_smoothing=0.01)", 1.0, 2 * logit(0.99)),
        ("gpo(beta=0.5, link='square')", 1.0, 2.0),
        ("gpo(beta=0.5, link='truncated_square')", 0.8, 2 * 0.6),
        ("gpo(beta=0.5, link='exponential')", 0.8, logit(0.8)),
        ("gpo(beta=0.5, link='savage')", 0.8, 2 * logit(0.8)),
        ("rdpo(beta=0.5, alpha=3)", 0.8, 2 * logit(0.8)),  # all lengths are 1
        ("mrpo(beta=0.5, weights=(1.0,))", 0.8, 2 * logit(0.8)),
        ("tdpo(beta=0.5, alpha=0)", 0.8, 2 * logit(0.8)),
        ("ld_dpo(beta=0.5)", 0.8, 2 * logit(0.8)),
        ("sampo(beta=0.5)", 0.8, 2 * logit(0.8)),
    ],
)
def test_margins_in_closed_form(label: str, p: float, expected: float) -> None:
    assert margin(label, p) == pytest.approx(expected, abs=1e-8)


REWARDS = np.array([1.0, 0.2, -0.5, 0.4])
WIDE = np.array([0.1, 0.4, 0.3, 0.2])


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("dpo(beta=0.7)", oracle.gibbs(WIDE, REWARDS / 0.7)),
        ("chipo(beta=0.7)", oracle.chi_squared(WIDE, REWARDS, 0.7)),
        ("fdpo(beta=0.7, divergence='forward_kl')", oracle.forward_kl_divergence(WIDE, REWARDS, 0.7)),
        ("fdpo(beta=0.7, divergence='js')", oracle.jensen_shannon(WIDE, REWARDS, 0.7)),
        ("fdpo(beta=0.7, divergence='alpha', alpha=0.4)", oracle.alpha_divergence(WIDE, REWARDS, 0.7, 0.4)),
    ],
)
def test_bradley_terry_world(label: str, expected: np.ndarray) -> None:
    """Four actions, every pair compared by its rewards: f'(pi/pi_ref) = r/beta + const, normalised."""
    problem = Bandit.from_rewards(WIDE, REWARDS)
    solution = solve(problem, objectives.parse(label))
    assert solution.status == "converged"
    np.testing.assert_allclose(solution.policy.numpy(), expected, atol=1e-8)


@pytest.mark.parametrize("label", ["exo_rw(beta_policy=0.5, beta_reward=0.8)", "infonca(beta=0.5, alpha=0.8)"])
def test_scored_candidates(label: str) -> None:
    """All actions as candidates: the optimum is pi_ref exp(R/(the product of both strengths))."""
    problem = Bandit.from_rewards(WIDE, REWARDS)
    solution = solve(problem, objectives.parse(label))
    assert solution.status == "converged"
    np.testing.assert_allclose(solution.policy.numpy(), oracle.gibbs(WIDE, REWARDS / 0.4), atol=1e-8)


def test_reverse_kl_against_a_scalar_search() -> None:
    """maxpo's bounded pair loss with the reverse KL, two actions: minimise -s(d) p - s(-d) (1-p) + .2 KL(pi || pi_ref) by scanning."""
    p, q, weight = 0.9, 0.3, 0.2
    problem = Bandit(reference=[q, 1 - q], preferences=[[0.5, p], [1 - p, 0.5]])
    solution = solve(problem, objectives.get("maxpo", beta=0) + objectives.reverse_kl(weight=weight))
    x = np.linspace(1e-6, 1 - 1e-6, 2_000_001)  # s(log x - log(1 - x)) is x itself
    values = -p * x - (1 - p) * (1 - x) + weight * (x * np.log(x / q) + (1 - x) * np.log((1 - x) / (1 - q)))
    assert solution.policy[0].item() == pytest.approx(x[values.argmin()], abs=1e-6)
    assert solution.value.item() == pytest.approx(values.min(), abs=1e-10)
    # The derivative vanishes at logit x = logit q + (2p - 1)/weight.
    assert logit(solution.policy[0].item()) == pytest.approx(logit(q) + (2 * p - 1) / weight, abs=1e-8)
    alone = solve(problem, objectives.reverse_kl(weight=1.0))
    assert alone.policy.tolist() == pytest.approx([q, 1 - q], abs=1e-9)


def test_sppo_with_true_win_rates_is_least_squares_towards_them() -> None:
    """Ratios (P - 1/2)/beta where they go with probabilities that sum to 1: .2 e^t + .8 e^-t = 1 at t = ln 4, beta = .3/ln 4."""
    beta = 0.3 / math.log(4.0)
    problem = Bandit(reference=[0.2, 0.8], preferences=[[0.5, 0.8], [0.2, 0.5]])
    solution = solve(problem, objectives.get("sppo", beta=beta, target="estimated"))
    assert solution.policy.tolist() == pytest.approx([0.8, 0.2], abs=1e-9)
    assert solution.value.item() == pytest.approx(0.0, abs=1e-15)


def test_nca_holds_the_winners_ratio() -> None:
    """A clear winner: r = ln 2 for it, while the other response may fall: s(r_i) = t_i/(t_i + 1/K), where mass allows it.

    With reference (.2, .8) the winner's ratio 2^(1/beta) at beta = 1 takes .4 of the mass, the loser must keep .6.
    """
    problem = Bandit(
        reference=[0.2, 0.6, 0.2],
        preferences=[[0.5, 1.0, 0.5], [0.0, 0.5, 0.5], [0.5, 0.5, 0.5]],
        pairs=[[0, 1, 0], [1, 0, 0], [0, 0, 0]],
    )
    solution = solve(problem, objectives.get("nca", beta=1.0))
    # The action that no pair shows takes what the other two do not need: the winner's ratio can be 2 exactly.
    assert solution.policy[0].item() == pytest.approx(0.4, abs=1e-6)
    assert solution.policy[1].item() < 1e-6


@pytest.mark.parametrize("label", ["simpo(beta=2, gamma=1)", "alphapo(beta=2, gamma=1)", "orpo", "cpo"])
def test_objectives_without_a_reference_do_not_see_it(label: str) -> None:
    policies = []
    for reference in ([0.2, 0.5, 0.3], [0.6, 0.1, 0.3]):
        problem = Bandit(reference=reference, preferences=[[0.5, 0.8, 0.7], [0.2, 0.5, 0.4], [0.3, 0.6, 0.5]])
        solution = solve(problem, objectives.parse(label))
        assert solution.status == "converged"
        policies.append(solution.policy)
    torch.testing.assert_close(policies[0], policies[1], rtol=0, atol=1e-8)


def test_simpo_passes_logit_p() -> None:
    """y = e^z solves (1-p) e^-gamma y^2 - (2p-1) y - p e^-gamma = 0."""
    p, beta, gamma = 0.8, 2.0, 1.0
    shrink = math.exp(-gamma)
    y = ((2 * p - 1) + math.sqrt((2 * p - 1) ** 2 + 4 * p * (1 - p) * shrink**2)) / (2 * (1 - p) * shrink)
    problem = Bandit(reference=[0.3, 0.7], preferences=[[0.5, p], [1 - p, 0.5]])
    log_policy = solve(problem, objectives.get("simpo", beta=beta, gamma=gamma)).log_policy
    assert (beta * (log_policy[0] - log_policy[1])).item() == pytest.approx(math.log(y), abs=1e-9)
    assert math.log(y) > logit(p)


@pytest.mark.parametrize("label", ["dpo", "simpo", "robust_dpo", "gpo(link='exponential')", "rdpo", "cpo", "sft"])
def test_no_finite_minimiser_where_a_response_always_wins(label: str) -> None:
    problem = Bandit(reference=[0.3, 0.7], preferences=[[0.5, 1.0], [0.0, 0.5]])
    solution = solve(problem, objectives.parse(label))
    assert solution.status == "diverges"
    assert solution.policy.tolist() == pytest.approx([1.0, 0.0], abs=1e-9)


@pytest.mark.parametrize("label", ["cdpo", "ipo", "exo_pref", "gpo(link='square')", "sppo(beta=0.1)", "maxpo"])
def test_finite_minimiser_though_a_response_always_wins(label: str) -> None:
    problem = Bandit(reference=[0.3, 0.7], preferences=[[0.5, 1.0], [0.0, 0.5]])
    solution = solve(problem, objectives.parse(label))
    assert solution.policy[1].item() > 0
    assert solution.status in ("converged", "not_unique")


@pytest.mark.parametrize(
    "label",
    [
        "chipo(beta=0.5)",
        "chipo",
        "fdpo(beta=0.5, divergence='js')",
        "fdpo(divergence='forward_kl')",
        "fdpo(divergence='alpha')",
        "dpop(beta=0.5)",
        "alphapo",
        "orpo",
        "kto(beta=0.5, z0=0)",
        "kto(beta=0.01)",
        "wpo",
    ],
)
def test_divergence_that_separation_or_signs_prove(label: str) -> None:
    """Two actions, the first always wins: the value keeps falling far out, and so does the field (kto, wpo) at every policy."""
    problem = Bandit(reference=[0.3, 0.7], preferences=[[0.5, 1.0], [0.0, 0.5]])
    solution = solve(problem, objectives.parse(label))
    assert (solution.status, solution.certificate.proved) == ("diverges", True)
    assert solution.policy.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    "label",
    ["minor_dpo(beta=0.5)", "apo_zero(beta=0.5)", "apo_down(beta=0.5)", "infonca(beta=0.5)", "nca(beta=1)"],
)
def test_divergence_that_is_only_seen_in_numbers(label: str) -> None:
    """Losses that are not a link of an affine margin: no proof from structure, but the iteration runs away and the value keeps falling."""
    problem = Bandit(reference=[0.3, 0.7], preferences=[[0.5, 1.0], [0.0, 0.5]])
    solution = solve(problem, objectives.parse(label))
    assert (solution.status, solution.certificate.proved) == ("diverges", False)
    assert solution.policy.tolist() == [1.0, 0.0]


def test_slic_stops_at_the_kink_of_its_hinge() -> None:
    """d = delta: the reference term is too weak to leave it."""
    problem = Bandit(reference=[0.3, 0.7], preferences=[[0.5, 1.0], [0.0, 0.5]])
    policy = solve(problem, objectives.get("slic_hf", delta=1.0, lam=0.1)).policy
    assert (policy[0] / policy[1]).item() == pytest.approx(math.e, rel=1e-8)


def test_a_batch_of_strengths_is_solved_at_once_for_candidates_and_unpaired_labels_too() -> None:
    beta = torch.tensor([0.3, 0.7, 1.5], dtype=torch.float64)
    problem = Bandit.from_rewards(WIDE, REWARDS)
    for name in ("infonca", "nca", "chipo"):
        together = solve(problem, objectives.get(name, beta=beta)).policy
        for i in range(3):
            alone = solve(problem, objectives.get(name, beta=beta[i].item())).policy
            torch.testing.assert_close(together[i], alone, rtol=0, atol=1e-9)


def test_kto_reference_point_in_a_bandit_is_the_mean_over_all_prompts() -> None:
    """Two contexts, each with its own pair; a response of the other context counts under this one's prompt."""
    from toy_bandits import expectations

    pairs = torch.zeros(2, 3, 3)
    pairs[0, 0, 1] = pairs[0, 1, 0] = pairs[1, 1, 2] = pairs[1, 2, 1] = 1.0
    problem = Bandit(
        reference=[[0.2, 0.5, 0.3], [0.4, 0.4, 0.2]],
        preferences=torch.full((2, 3, 3), 0.5),
        pairs=pairs,
        contexts=[0.25, 0.75],
    )
    policy = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.3, 0.5]], dtype=torch.float64)
    batch = expectations.unpaired(problem, policy.log())
    responses = [0.125, 0.5, 0.375]  # half of .25, half of each, half of .75
    ratios = (policy / problem.reference).log()
    expected = sum(rho * q * ratios[x, y].item() for x, rho in enumerate([0.25, 0.75]) for y, q in enumerate(responses))
    mismatched = batch.require("mismatched_logps", "test") - batch.require("ref_mismatched_logps", "test")
    assert (batch.normalized_weights(mismatched) * mismatched).sum().item() == pytest.approx(expected, abs=1e-12)

"""Proofs without numbers: separation of certain wins, cuts of negative growth, and DPO's closed form at extreme odds."""

from __future__ import annotations

import itertools

import mpmath
import numpy as np
import pytest
import torch

import objectives
from toy_bandits import Bandit, expectations, solve
from toy_bandits.derivatives import Function
from toy_bandits.separation import separated
from toy_bandits.structure import analyse

ORDER = np.array([[0.5, 1.0, 1.0], [0.0, 0.5, 0.0], [0.0, 1.0, 0.5]])  # 0 beats 2 beats 1, always
SHAPED = [
    "fdpo(divergence='forward_kl')",
    "fdpo(divergence='js')",
    "fdpo(divergence='alpha')",
    "chipo",
    "alphapo",
    "dpop",
    "simpo",
    "gpo(link='savage')",
]


@pytest.mark.parametrize("label", SHAPED)
def test_margins_grow_without_end_along_the_separating_direction(label: str) -> None:
    """Every label's loss itself, far out and farther out: falling, positive, and towards 0."""
    problem = Bandit([0.2, 0.5, 0.3], ORDER, lengths=[5.0, 2.0, 3.0])
    objective = objectives.parse(label)
    proved, direction = separated(Function(problem.flattened(torch.Size()), objective))
    assert bool(proved)
    largest = []
    for distance in (3.0, 30.0, 100.0):
        log_policy = (problem.log_reference + distance * direction[0]).log_softmax(-1)
        batch = expectations.pairs_with_tokens(problem, log_policy)
        possible = batch.weights > 0 if batch.weights is not None else torch.ones(1, dtype=torch.bool)
        largest.append(float(objective.terms[0].losses(batch)[possible].max()))
    assert largest[0] > largest[1] > largest[2] > 0 or largest[-1] == 0.0
    assert largest[2] < 0.2 * largest[0]


@pytest.mark.parametrize(
    "label", ["cdpo", "ipo", "exo_pref", "chipo(clip=1.0)", "maxpo", "alphapo(alpha=-0.5)", "discopop"]
)
def test_no_separation_is_claimed_of_losses_with_a_minimum_or_margins_with_a_bound(label: str) -> None:
    problem = Bandit([0.2, 0.5, 0.3], ORDER).flattened(torch.Size())
    assert not bool(separated(Function(problem, objectives.parse(label)))[0])


def test_no_separation_where_wins_close_a_cycle() -> None:
    cycle = np.array([[0.5, 1.0, 0.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5]])
    problem = Bandit([0.2, 0.5, 0.3], cycle).flattened(torch.Size())
    assert not bool(separated(Function(problem, objectives.get("chipo")))[0])


@pytest.mark.parametrize("seed", range(6))
def test_lower_bound_of_losses_that_assume_noisier_labels(seed: int) -> None:
    """robust_dpo against its own value far along 2,000 random directions: below any bound where one falls, nowhere where none is found."""
    generator = np.random.default_rng(seed)
    upper = generator.choice([0.7, 0.85, 0.95], size=(4, 4))
    win = np.triu(upper, 1)
    win = win + np.tril(1 - win.T, -1) + 0.5 * np.eye(4) - np.diag(np.diag(win))
    problem = Bandit(generator.dirichlet(np.ones(4)), win)
    objective = objectives.get("robust_dpo", beta=1.0, label_smoothing=0.1)
    structure = analyse(Function(problem.flattened(torch.Size()), objective))
    directions = np.vstack([generator.normal(size=(2000, 4)), list(itertools.product([0.0, 1.0], repeat=4))])
    gaps = directions[:, :, None] - directions[:, None, :]
    margins = 1e4 * gaps
    losses = (0.9 * np.logaddexp(0, -margins) - 0.1 * np.logaddexp(0, margins)) / 0.8
    lowest = (win * losses * (1 - np.eye(4))).sum((-2, -1)).min()
    assert bool(structure.bottomless) == bool(lowest < -1.0)
    assert bool(structure.bottomless) != bool(structure.exists)
    solution = solve(problem, objective)
    assert solution.certificate.proved
    assert solution.status == ("diverges" if lowest < -1.0 else "converged")
    if solution.status == "diverges":
        assert solution.certificate.slope < 0
        assert solution.value.item() == -np.inf


@pytest.mark.parametrize("seed", range(8))
def test_f2_at_odds_of_e_to_the_100(seed: int) -> None:
    """Rewards in [0, 4], scale .04: pi_ref exp(r / (scale beta)) with 60 digits."""
    generator = np.random.default_rng(seed)
    actions = int(generator.integers(3, 9))
    reference, rewards = generator.dirichlet(np.ones(actions)), generator.uniform(0, 4, actions)
    beta = float(generator.choice([0.05, 0.1, 1.0]))
    solution = solve(Bandit.from_rewards(reference, rewards, 0.04), objectives.get("dpo", beta=beta))
    assert (solution.status, solution.certificate.proved) == ("converged", True)
    with mpmath.workdps(60):
        scale = mpmath.mpf("0.04") * mpmath.mpf(beta)
        worlds = zip(reference.tolist(), rewards.tolist(), strict=True)
        logits = [mpmath.log(mpmath.mpf(q)) + mpmath.mpf(r) / scale for q, r in worlds]
        normaliser = max(logits) + mpmath.log(sum(mpmath.exp(z - max(logits)) for z in logits))
        expected = [float(z - normaliser) for z in logits]
    np.testing.assert_allclose(solution.log_policy, expected, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("smoothing", [0.05, 0.1, 0.3])
def test_robust_dpo_diverges_where_labels_are_as_sure_as_its_noise(smoothing: float) -> None:
    # beta D* = logit((p - e) / (1 - 2 e)) is infinite at p = 1 - e, although the slopes of both orders cancel only up to rounding.
    def status(p: float) -> str:
        bandit = Bandit(
            [0.2, 0.5, 0.3], [[0.5, p, 0.5], [1 - p, 0.5, 0.5], [0.5, 0.5, 0.5]], [[0, 1, 0], [1, 0, 0], [0, 0, 0]]
        )
        solution = solve(bandit, objectives.get("robust_dpo", label_smoothing=smoothing))
        assert solution.certificate.proved
        return str(solution.status)

    assert status(1 - smoothing) == "diverges"
    assert status(1 - smoothing - 1e-3) == "not_unique"

"""Outer loops against what theory says of them: the RLHF optimum, closed forms of every step, simulation, enumeration."""

from __future__ import annotations

import math
from collections import Counter
from itertools import product

import mpmath
import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from objectives import ObjectiveError
from toy_bandits import Bandit, BanditError, loops, worlds
from toy_bandits.loops.policy_gradient import Espo, RlhfPpo, advantages, batch_weights
from toy_bandits.loops.references import mixture
from toy_bandits.loops.rejection import accepted, best_of
from toy_bandits.metrics import expected_reward, kl_policy_reference
from toy_bandits.optimum import reward_bound, shortfall

REFERENCE = np.array([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]])
REWARDS = np.array([[1.0, 0.2, 0.5, -0.4], [0.0, 0.9, 0.3, 0.3]])
CONTEXTS = np.array([0.7, 0.3])


def two_contexts() -> Bandit:
    return Bandit.from_rewards(REFERENCE, REWARDS, contexts=CONTEXTS)


def gibbs(beta: float) -> np.ndarray:
    """F1, by numpy."""
    tilted = REFERENCE * np.exp(REWARDS / beta)
    return tilted / tilted.sum(-1, keepdims=True)


def last(loop: loops.Loop, problem: Bandit) -> np.ndarray:
    """The policy that the loop ends at."""
    for step in loop.steps(problem):
        policy = step.log_policy.exp()
    return policy.numpy()


def random_policies(count: int, seed: int) -> Tensor:
    return torch.from_numpy(np.log(np.random.default_rng(seed).dirichlet([0.5] * 4, size=(count, 2))))


# The yardstick


def test_the_shortfall_is_beta_times_the_divergence_from_the_optimum() -> None:
    policies, beta = random_policies(50, 0), 0.7
    divergence = (policies.exp() * (policies - torch.from_numpy(gibbs(beta)).log())).sum(-1) @ torch.from_numpy(
        CONTEXTS
    )
    np.testing.assert_allclose(shortfall(two_contexts(), policies, beta), beta * divergence, rtol=1e-10)


def test_no_policy_crosses_the_bound_and_the_optimum_lies_on_it() -> None:
    problem, policies = two_contexts(), random_policies(2000, 1)
    assert bool((reward_bound(problem, policies) - expected_reward(problem, policies) > -1e-12).all())
    for beta in (0.01, 0.1, 1.0, 10.0, 1000.0):
        optimum = torch.from_numpy(gibbs(beta)).log()
        gap = reward_bound(problem, optimum) - expected_reward(problem, optimum)
        assert abs(gap.item()) < 2e-9, beta


def test_the_bound_is_what_constrained_search_finds() -> None:
    problem, policy = two_contexts(), random_policies(1, 2)

    def log_policy(flat: np.ndarray) -> Tensor:
        return torch.from_numpy(flat.reshape(1, 2, 4)).log_softmax(-1)

    budget = kl_policy_reference(problem, policy).item()
    found = minimize(
        lambda x: -expected_reward(problem, log_policy(x)).item(),
        np.log(REFERENCE).ravel(),
        method="SLSQP",
        constraints={"type": "ineq", "fun": lambda x: budget - kl_policy_reference(problem, log_policy(x)).item()},
        options={"maxiter": 500, "ftol": 1e-12},
    )
    assert reward_bound(problem, policy).item() == pytest.approx(-found.fun, abs=1e-6)


# rlhf_ppo and espo


@pytest.mark.parametrize("natural", [True, False])
@pytest.mark.parametrize("name", ["rlhf_ppo", "espo"])
def test_exact_advantages_lead_to_the_rlhf_optimum(name: str, natural: bool) -> None:
    steps = {"rlhf_ppo": 4, "espo": 20}[name]  # rate * steps * beta < 2, or batches overshoot
    rate, iterations = (2.0 / steps, 60) if natural else (4.0 / steps, 500)
    loop = loops.get(name, beta=0.5, natural=natural, learning_rate=rate, iterations=iterations)
    np.testing.assert_allclose(last(loop, two_contexts()), gibbs(0.5), rtol=1e-6)


@pytest.mark.parametrize(("rate", "converges"), [(0.18, True), (0.22, False)])
def test_a_batch_overshoots_where_its_steps_sum_to_more_than_two_over_beta(rate: float, converges: bool) -> None:
    # Near the optimum a batch of n steps multiplies the distance to it by 1 - n rate beta, as its penalty is that of the old policy.
    beta, start = 0.5, torch.from_numpy(gibbs(0.5)).log()
    problem = Bandit(REFERENCE, np.full((2, 4, 4), 0.5), contexts=CONTEXTS, rewards=REWARDS)
    policy = (start + 1e-4 * torch.from_numpy(REWARDS)).log_softmax(-1)
    loop = Espo(beta=beta, learning_rate=rate, most_epochs=20)
    distance = [shortfall(problem, policy, beta).item()]
    for _ in range(5):
        weights = batch_weights(problem, policy, None, np.random.default_rng(0))
        policy, _ = loop.improve(problem, policy, advantages(problem, policy, beta), weights)
        distance.append(shortfall(problem, policy, beta).item())
    assert distance[5] / distance[0] == pytest.approx((1 - 20 * rate * beta) ** 10, rel=0.01)
    assert (distance[5] < distance[0]) == converges


def test_one_natural_step_per_batch_approaches_the_optimum_geometrically() -> None:
    # log pi_{t+1} = log pi_t + rate * A, so the log-ratio to pi_ref is (1 - (1 - rate beta)^t) r/beta + const.
    beta, rate = 0.5, 0.3
    loop = Espo(beta=beta, learning_rate=rate, most_epochs=1, iterations=7)
    for t, step in enumerate(loop.steps(two_contexts())):
        tilted = REFERENCE * np.exp((1 - (1 - rate * beta) ** t) * REWARDS / beta)
        np.testing.assert_allclose(step.log_policy.exp(), tilted / tilted.sum(-1, keepdims=True), rtol=1e-12)


def test_the_clipped_surrogate_is_that_of_ppo() -> None:
    """One batch of several steps, with autograd on the formula min(ratio A, clip(ratio) A)."""
    problem, clip, rate, beta = two_contexts(), 0.1, 2.0, 0.2
    old = random_policies(1, 3)[0]
    advantage = advantages(problem, old, beta)
    weights = torch.from_numpy(CONTEXTS)[:, None] * old.exp()
    logits = old.clone()
    for _ in range(5):
        leaf = logits.requires_grad_()
        ratio = (leaf.log_softmax(-1) - old).exp()
        surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
        (gradient,) = torch.autograd.grad((weights * surrogate).sum(), leaf)
        logits = (leaf + rate * gradient).detach()
    loop = RlhfPpo(beta=beta, clip=clip, learning_rate=rate, natural=False, epochs=5)
    new, _ = loop.improve(problem, old, advantage, weights)
    np.testing.assert_allclose(new, logits.log_softmax(-1), rtol=1e-12)
    ratio = (new - old).exp()
    assert bool(((ratio > 1 + clip) | (ratio < 1 - clip)).any())  # the clip was at work
    assert bool((advantage * (ratio - 1) > 0).any())


def test_espo_stops_a_batch_as_soon_as_ratios_have_moved_by_delta() -> None:
    """Its rule in a loop by hand, on each of several problems alone; in a batch of problems each stops on its own."""
    beta, rate, delta = 0.05, 0.2, 0.25
    scales = np.array([0.1, 1.0, 3.0])
    stopped = []
    for scale in scales:
        policy, epochs = REFERENCE.copy(), 0
        reward = scale * REWARDS
        advantage = reward - (REFERENCE * reward).sum(-1, keepdims=True)
        while epochs < 20 and CONTEXTS @ (REFERENCE * np.abs(policy / REFERENCE - 1)).sum(-1) <= delta:
            slope = policy * advantage
            logits = np.log(policy) + rate * (slope - policy * slope.sum(-1, keepdims=True)) / policy
            policy = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
            epochs += 1
        stopped.append((epochs, policy))
    assert (
        len({epochs for epochs, _ in stopped}) == 3 and stopped[0][0] == 20
    )  # the first problem moves too slowly to be stopped
    problem = Bandit(REFERENCE, np.full((2, 4, 4), 0.5), contexts=CONTEXTS, rewards=scales[:, None, None] * REWARDS)
    step = list(Espo(beta=beta, learning_rate=rate, delta=delta, iterations=1).steps(problem))[1]
    assert step.numbers["epochs"].tolist() == [epochs for epochs, _ in stopped]
    np.testing.assert_allclose(step.log_policy.exp(), np.stack([policy for _, policy in stopped]), rtol=1e-10)
    assert bool((step.numbers["deviation"][1:] > delta).all())


def test_sampled_batches_have_the_exact_batch_as_their_mean() -> None:
    problem = two_contexts()
    old = random_policies(1, 4)[0]
    exact = batch_weights(problem, old, None, np.random.default_rng(0))
    many = problem.expand((4000,))
    drawn = batch_weights(many, old.expand(4000, 2, 4), 10, np.random.default_rng(0))
    np.testing.assert_allclose(drawn.sum((-2, -1)), 1, rtol=1e-12)
    assert bool(((drawn * 10).round() - drawn * 10).abs().max() < 1e-9)
    error = (exact * (1 - exact) / (4000 * 10)).sqrt()
    assert bool(((drawn.mean(0) - exact).abs() <= 5 * error).all())


@pytest.mark.parametrize("name", ["rlhf_ppo", "espo"])
def test_sampled_loops_end_nearer_to_the_optimum_the_larger_the_batch(name: str) -> None:
    problem = two_contexts().expand((64,))
    ends = []
    for samples in (16, 1024):
        loop = loops.get(name, beta=0.5, learning_rate=0.1, samples=samples, iterations=60, seed=5)
        *_, step = loop.steps(problem)
        ends.append(shortfall(problem, step.log_policy, 0.5).mean().item())
    begin = shortfall(two_contexts(), two_contexts().log_reference, 0.5).item()
    assert ends[1] < 0.1 * ends[0]
    assert ends[1] < 0.01 * begin


def test_seeds_make_the_samples() -> None:
    def path(seed: int) -> Tensor:
        loop = RlhfPpo(samples=20, iterations=3, seed=seed)
        return torch.stack([step.log_policy for step in loop.steps(two_contexts())])

    assert torch.equal(path(1), path(1)) and not torch.equal(path(1), path(2))


# rso and best-of-n


@pytest.mark.parametrize("beta", [0.05, 0.5, 5.0])
def test_accepted_responses_are_distributed_as_the_rlhf_optimum(beta: float) -> None:
    log_policy, share = accepted(two_contexts(), beta)
    np.testing.assert_allclose(log_policy.exp(), gibbs(beta), rtol=1e-12)
    best = REWARDS.max(-1, keepdims=True)
    np.testing.assert_allclose(share, (REFERENCE * np.exp((REWARDS - best) / beta)).sum(-1), rtol=1e-12)


@pytest.mark.parametrize("candidates", [1, 2, 5])
def test_the_sampler_with_an_estimated_largest_reward_against_simulation(candidates: int) -> None:
    beta, draws = 0.4, 200_000
    problem = two_contexts()
    log_policy, share = accepted(problem, beta, candidates)
    generator = np.random.default_rng(6)
    for x in (0, 1):  # context 1 has a tie
        drawn = generator.choice(4, p=REFERENCE[x], size=(draws, candidates))
        rewards = REWARDS[x][drawn]
        taken = generator.random(drawn.shape) < np.exp((rewards - rewards.max(1, keepdims=True)) / beta)
        counts = np.array([((drawn == y) & taken).sum(1) for y in range(4)])  # (4, draws), draws independent
        total = counts.sum(0)
        expected = log_policy[x].exp().numpy()
        # ratio of means: its error by the delta method
        error = (counts - expected[:, None] * total).std(1) / total.mean() / math.sqrt(draws)
        assert (np.abs(counts.sum(1) / total.sum() - expected) <= 4.5 * error).all()
        assert share[x].item() == pytest.approx(
            total.mean() / candidates, abs=4.5 * total.std() / math.sqrt(draws) + 1e-12
        )


def test_the_sampler_goes_from_the_reference_to_the_optimum_with_its_candidates() -> None:
    one, many = (accepted(two_contexts(), 0.3, n)[0].exp() for n in (1, 3000))
    np.testing.assert_allclose(one, REFERENCE, rtol=1e-12)
    np.testing.assert_allclose(many, gibbs(0.3), rtol=1e-12)


def test_dpo_on_accepted_pairs_is_dpo_whatever_the_sampler() -> None:
    for beta in (0.2, 2.0):
        policy = last(loops.get("rso", beta=beta, objective="dpo(beta=0.5)"), two_contexts())
        np.testing.assert_allclose(policy, gibbs(0.5), rtol=1e-7)
    # An objective that weighs pairs differently does see the sampler.
    ends = [last(loops.get("rso", beta=beta, objective="maxpo(beta=0.5)"), two_contexts()) for beta in (0.2, 2.0)]
    assert np.abs(ends[0] - ends[1]).max() > 0.01


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_best_of_n_by_enumeration(n: int) -> None:
    policy = best_of(two_contexts(), n).exp().numpy()
    for x in (0, 1):
        expected = Counter[int]()
        for drawn in product(range(4), repeat=n):
            chance = math.prod(REFERENCE[x][y] for y in drawn)
            top = max(REWARDS[x][y] for y in drawn)
            winners = [y for y in drawn if REWARDS[x][y] == top]
            for y in winners:
                expected[y] += chance / len(winners)
        np.testing.assert_allclose(policy[x], [expected[y] for y in range(4)], rtol=1e-12)


def test_the_divergence_of_the_best_of_n() -> None:
    # Many responses, none with much mass: the bound log n - (n - 1)/n is nearly reached; with few it is far off, and never crossed.
    count = 1000
    fine = Bandit(np.full(count, 1 / count), np.full((count, count), 0.5), rewards=np.arange(count) / count)
    coarse = two_contexts()
    for n in (2, 4, 16):
        bound = math.log(n) - (n - 1) / n
        nearly = kl_policy_reference(fine, best_of(fine, n)).item()
        assert bound - 1e-3 * n < nearly <= bound
        assert kl_policy_reference(coarse, best_of(coarse, n)).item() < bound - 0.01
    # Exactly, by 50-digit arithmetic, where a response is so rare that F^n - S^n cancels.
    rare = Bandit([1e-14, 0.5, 0.5 - 1e-14], np.full((3, 3), 0.5), rewards=[1.0, 0.5, 0.0])
    with mpmath.workdps(50):
        p = mpmath.mpf(1e-14)
        exact = -mpmath.expm1(8 * mpmath.log1p(-p))
    assert best_of(rare, 8).exp()[0, 0].item() == pytest.approx(float(exact), rel=1e-10)


# iterated optimisation


def test_rounds_of_dpo_with_a_moving_reference_divide_beta() -> None:
    loop = loops.get("iterative_dpo", objective="dpo(beta=2.0)", iterations=6)
    for t, step in enumerate(loop.steps(two_contexts())):
        expected = gibbs(2.0 / t) if t else REFERENCE
        np.testing.assert_allclose(step.log_policy.exp(), expected, rtol=1e-6)


def test_rounds_of_dpo_with_a_fixed_reference_stay_at_the_optimum() -> None:
    loop = loops.get("iterative_dpo", objective="dpo(beta=0.4)", iterations=3, reference="fixed")
    for step in list(loop.steps(two_contexts()))[1:]:
        np.testing.assert_allclose(step.log_policy.exp(), gibbs(0.4), rtol=1e-6)


def test_own_responses_matter_where_no_reward_explains_the_labels() -> None:
    world = worlds.get("intransitive/2")
    ends = [
        last(loops.get("iterative_dpo", objective="ipo(tau=1.0)", iterations=3, on_policy=own), world.problem)
        for own in (True, False)
    ]
    assert np.abs(ends[0] - ends[1]).max() > 0.01


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.7])
def test_extrapolated_rounds_follow_their_recurrence(alpha: float) -> None:
    beta = 4.0
    own = before = extrapolated = np.zeros_like(REWARDS)  # log-ratios to pi_ref, up to constants
    loop = loops.get("accelerated", objective=f"dpo(beta={beta})", extrapolation=alpha, iterations=6)
    for t, step in enumerate(loop.steps(two_contexts())):
        if t:
            before, own = own, extrapolated + REWARDS / beta
            extrapolated = own + alpha * (own - before)
        tilted = REFERENCE * np.exp(own)
        np.testing.assert_allclose(step.log_policy.exp(), tilted / tilted.sum(-1, keepdims=True), rtol=1e-6)


def test_acceleration_multiplies_the_rate_by_one_over_one_less_alpha() -> None:
    reference, rewards = [0.2, 0.3, 0.5], [1.0, 0.5, 0.0]
    problem = Bandit.from_rewards(reference, rewards)
    rates = {}
    for alpha in (0.0, 0.5):
        loop = loops.get("accelerated", objective="dpo(beta=1.0)", extrapolation=alpha, iterations=24)
        missing = [1.0 - expected_reward(problem, step.log_policy).item() for step in loop.steps(problem)]
        rates[alpha] = math.log(missing[18] / missing[22]) / 4
    assert rates[0.0] == pytest.approx(0.5, rel=1e-3)  # the geometric factor exp(-gap/beta), gap = .5
    assert rates[0.5] / rates[0.0] == pytest.approx(2.0, rel=1e-3)


def test_rounds_end_where_a_policy_can_be_no_reference_any_more() -> None:
    loop = loops.get("iterative_dpo", objective="dpo(beta=0.005)", iterations=50)
    policies = [step.log_policy for step in loop.steps(two_contexts())]
    assert 3 <= len(policies) < 20
    assert all(bool(torch.isfinite(policy).all()) for policy in policies)


# mrpo


def test_the_mixture_is_the_harmonic_mean_and_its_optimum_is_tilted_from_it() -> None:
    world = worlds.get("several_references/3")
    assert world.references is not None
    references = world.references.numpy()
    weights = (0.2, 0.3, 0.5)
    harmonic = 1 / sum(w / pi for w, pi in zip(weights, references, strict=True))
    harmonic /= harmonic.sum(-1, keepdims=True)
    np.testing.assert_allclose(mixture(world.references, weights, None).exp(), harmonic, rtol=1e-12)
    loop = loops.get("mrpo", beta=0.5, weights=weights, clip=None)
    steps = list(loop.steps(world.problem))
    assert [step.stage for step in steps][1:4] == [f"dpo against reference {k}" for k in range(3)]
    for step, reference in zip(steps[1:], [*references, None, harmonic], strict=True):
        if reference is not None:
            tilted = reference * np.exp(world.truth.rewards.numpy() / 0.5)
            np.testing.assert_allclose(step.log_policy.exp(), tilted / tilted.sum(-1, keepdims=True), rtol=1e-6)


def test_clipped_to_nothing_the_mixture_is_the_first_reference() -> None:
    world = worlds.get("several_references/1")
    assert world.references is not None
    np.testing.assert_allclose(mixture(world.references, (0.5, 0.5), 0.0).exp(), world.references[0], rtol=1e-12)


# records, bad input


@pytest.mark.parametrize("name", [name for name in loops.names() if name != "mrpo"])
def test_records_of_a_batch_are_those_of_its_problems(name: str) -> None:
    rewards = np.stack([REWARDS, 0.5 * REWARDS])
    settings = {"iterations": 4} if "iterations" in loops.get(name).config() else {}
    loop = loops.get(name, **settings)
    both = loops.record(loop, Bandit.from_rewards(REFERENCE, rewards, contexts=CONTEXTS))
    for i in range(2):
        alone = loops.record(loop, Bandit.from_rewards(REFERENCE, rewards[i], contexts=CONTEXTS))
        mine = both.iloc[i::2]
        for column in ("kl_policy_reference", "expected_reward", "win_rate", "reward_bound"):
            np.testing.assert_allclose(mine[column], alone[column], rtol=1e-9, atol=1e-12)
    assert (both["regret"] >= -1e-9).all()
    assert ("shortfall" in both) == hasattr(loop, "beta")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("ppo", {}, "unknown loop 'ppo'.*Known: rlhf_ppo"),
        ("espo", {"clip": 0.2}, "espo: unknown setting 'clip'"),
        ("espo", {"delta": -1.0}, "espo: delta must be > 0; got -1"),
        ("rlhf_ppo", {"epochs": 0}, "rlhf_ppo: epochs must be at least 1; got 0"),
        ("rlhf_ppo", {"samples": 2.5}, "rlhf_ppo: samples must be a whole number or None; got 2.5"),
        ("accelerated", {"extrapolation": 1.0}, r"accelerated: extrapolation must be in \[0, 1\); got 1"),
        ("iterative_dpo", {"reference": "first"}, "iterative_dpo: reference must be 'moving', 'fixed'"),
        ("mrpo", {"weights": (0.5, 0.6)}, "mrpo: weights must be a tuple of numbers >= 0 that sum to 1"),
    ],
)
def test_settings_are_checked(name: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises((BanditError, ObjectiveError), match=message):
        loops.get(name, **settings)


def test_worlds_that_a_loop_cannot_run_in() -> None:
    with pytest.raises(BanditError, match=r"iterative_dpo, round 1: dpo\(beta=1\) has no minimiser in this world"):
        list(loops.get("iterative_dpo").steps(worlds.get("determinism/6").problem))
    with pytest.raises(BanditError, match="mrpo: needs a world with several references, such as several_references/0"):
        list(loops.get("mrpo").steps(two_contexts()))
    world = worlds.get("several_references/0")
    with pytest.raises(BanditError, match="mrpo: 3 weights for 2 references"):
        list(loops.get("mrpo", weights=(0.2, 0.3, 0.5)).steps(world.problem))
    without = Bandit([0.5, 0.5], [[0.5, 0.9], [0.1, 0.5]])
    with pytest.raises(BanditError, match="best_of_n: needs a world with rewards"):
        loops.record(loops.get("best_of_n"), without)

"""Certificates: the set of minimisers and its KL against dense samples, rates of divergence against 600 digits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import mpmath
import numpy as np
import pytest
import torch
from mpmath import mpf
from scipy.optimize import minimize

import objectives
from toy_bandits import Bandit, solve, worlds
from toy_bandits.expectations import batches
from toy_bandits.ratio_sets import RatioSet

REFERENCE = [0.2, 0.5, 0.3]
ONE_PAIR = [[0, 1.0, 0], [1.0, 0, 0], [0, 0, 0]]
ORDER = [[0.5, 1.0, 1.0], [0.0, 0.5, 0.0], [0.0, 1.0, 0.5]]  # 0 beats 2 beats 1, always


def kl(log_policies: np.ndarray, reference: np.ndarray) -> np.ndarray:
    return np.where(log_policies > -np.inf, np.exp(log_policies) * (log_policies - np.log(reference)), 0.0).sum(-1)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def test_f5_range_of_kl_over_the_continuum() -> None:
    """D = 5 on the pair, the third action's mass m free: sample m densely."""
    solution = solve(
        Bandit(REFERENCE, [[0.5, 1, 0.5], [0, 0.5, 0.5], [0.5, 0.5, 0.5]], ONE_PAIR), objectives.get("ipo", tau=0.1)
    )
    assert (solution.status, solution.certificate.dimension) == ("not_unique", 1)
    within = np.array([0.2 * math.exp(5.0), 0.5])
    within /= within.sum()
    m = 1 / (1 + np.exp(-np.linspace(-40, 40, 200001)))
    policies = np.log(np.stack([(1 - m) * within[0], (1 - m) * within[1], m], -1).clip(1e-300))
    sampled = kl(policies, np.array(REFERENCE))
    low, high = solution.certificate.kl_range
    assert low == pytest.approx(sampled.min(), abs=1e-7)
    assert low <= sampled.min()
    assert high == pytest.approx(sampled.max(), abs=1e-7)


def test_contexts_add_their_ranges_by_weight() -> None:
    win = np.array([[0.5, 0.8, 0.5], [0.2, 0.5, 0.5], [0.5, 0.5, 0.5]])
    alone = [
        solve(Bandit(reference, win, ONE_PAIR), objectives.get("dpo")) for reference in (REFERENCE, [0.6, 0.3, 0.1])
    ]
    both = solve(Bandit([REFERENCE, [0.6, 0.3, 0.1]], win, ONE_PAIR, contexts=[0.25, 0.75]), objectives.get("dpo"))
    assert both.certificate.dimension == 2
    for side in (0, 1):
        parts = [one.certificate.kl_range[side] for one in alone]
        assert both.certificate.kl_range[side] == pytest.approx(0.25 * parts[0] + 0.75 * parts[1], rel=1e-12)


def test_a_unique_minimiser_has_one_kl_and_a_divergence_its_limits() -> None:
    problem = Bandit.from_rewards(REFERENCE, [1.0, 0.0, 0.4])
    solution = solve(problem, objectives.get("dpo", beta=torch.tensor([0.5, 1.0])))
    for side in solution.certificate.kl_range:
        torch.testing.assert_close(side, solution.metrics["kl_policy_reference"])
    limit = solve(Bandit(REFERENCE, ORDER), objectives.get("dpo")).certificate.kl_range
    assert limit == pytest.approx((-math.log(0.2),) * 2)


def test_a_loss_that_is_constant_beyond_a_margin_leaves_a_polytope() -> None:
    """max(0, 1 - z)^2, z = D / 2, p = 1 on one pair: every policy with D >= 2, whatever the third action."""
    world = Bandit(REFERENCE, [[0.5, 1, 0.5], [0, 0.5, 0.5], [0.5, 0.5, 0.5]], ONE_PAIR)
    certificate = solve(world, objectives.get("gpo", beta=0.5, link="truncated_square")).certificate
    assert certificate.dimension == 2
    beyond, third = (axis.ravel() for axis in np.meshgrid(np.linspace(0, 40, 801), np.linspace(-30, 30, 1201)))
    adjusted = np.stack([2.0 + beyond, np.zeros_like(third), third], -1)  # log(pi / pi_ref) up to a constant
    sampled = kl(log_softmax(adjusted + np.log(REFERENCE)), np.array(REFERENCE))
    low, high = certificate.kl_range
    assert sampled.min() - 1e-4 <= low <= sampled.min() + 1e-12
    assert sampled.max() - 1e-6 <= high <= sampled.max() + 1e-6


def random_set(generator: np.random.Generator, actions: int) -> tuple[RatioSet, np.ndarray]:
    """Bounds that hold at random logits, some with equality."""
    logits = 1.5 * generator.normal(size=actions)
    lower = np.full((actions, actions), -np.inf)
    for a, b in itertools.permutations(range(actions), 2):
        if generator.uniform() < 0.4:
            lower[a, b] = logits[a] - logits[b] - generator.choice([0.0, generator.uniform(0.1, 2.0)])
    return RatioSet.of(lower), logits


@pytest.mark.parametrize("seed", range(8))
def test_range_over_a_polytope_against_samples(seed: int) -> None:
    generator = np.random.default_rng(seed)
    actions = 3 + seed % 2
    members, logits = random_set(generator, actions)
    reference = generator.dirichlet(np.ones(actions))
    labels = members.labels()
    low, high = members.kl_range(logits, np.log(reference))
    noise = generator.normal(size=(200_000, members.dimension + 1)) * generator.choice(
        [0.3, 1.0, 3.0, 10.0], size=(200_000, 1)
    )
    sampled = logits + noise[:, labels]
    loose = labels[:, None] != labels[None, :]
    gaps = sampled[:, :, None] - sampled[:, None, :]
    sampled = sampled[((gaps >= members.lower) | ~loose).all((-2, -1))]
    assert len(sampled) > 100
    found = kl(log_softmax(sampled), reference)
    assert low <= found.min() + 1e-12
    assert found.max() <= high + 1e-12
    assert found.min() - low < 2e-2
    assert high - found.max() < 0.1


@pytest.mark.parametrize("seed", range(5))
def test_the_nearest_member_is_no_farther_than_any_other(seed: int) -> None:
    generator = np.random.default_rng(100 + seed)
    members, logits = random_set(generator, 4)
    away = logits + 3.0 * generator.normal(size=4)
    nearest = members.nearest(away)
    gaps = nearest[:, None] - nearest[None, :]
    assert (gaps >= members.lower - 1e-10).all()
    others = logits + generator.normal(size=(100_000, members.dimension + 1))[:, members.labels()] * 2.0
    others = others[((others[:, :, None] - others[:, None, :]) >= members.lower - 1e-9).all((-2, -1))]
    others += np.mean(away - others, axis=-1, keepdims=True)
    assert (np.linalg.norm(others - away, axis=-1) >= np.linalg.norm(nearest - away) - 1e-9).all()


def test_too_many_bounded_sets_are_not_guessed() -> None:
    lower = np.where(np.eye(6), 0.0, -1.0)
    assert all(map(math.isnan, RatioSet.of(lower).kl_range(np.zeros(6), np.log(np.full(6, 1 / 6)))))


Loss = Callable[[list[mpf], list[mpf], int, int], mpf]  # log-policy, log-reference, winner, loser


def margin(p: list[mpf], r: list[mpf], w: int, k: int) -> mpf:
    return p[w] - r[w] - p[k] + r[k]


def logistic(z: mpf) -> mpf:
    return mpmath.log(1 + mpmath.exp(-z))


LOSSES: dict[str, Loss] = {
    "dpo(beta=0.2)": lambda p, r, w, k: logistic(mpf("0.2") * margin(p, r, w, k)),
    "gpo(beta=0.2,link='savage')": lambda p, r, w, k: 1 / (1 + mpmath.exp(mpf("0.2") * margin(p, r, w, k))) ** 2,
    "gpo(beta=0.2,link='exponential')": lambda p, r, w, k: mpmath.exp(-mpf("0.2") * margin(p, r, w, k)),
    "simpo(beta=2,gamma=1)": lambda p, r, w, k: logistic(2 * (p[w] - p[k]) - 1),
    "sft": lambda p, r, w, k: -p[w],
    "cpo(beta=0.1,alpha=1)": lambda p, r, w, k: logistic(mpf("0.1") * (p[w] - p[k])) - p[w],
    "rpo(beta=0.2,eta=0.5)": lambda p, r, w, k: logistic(mpf("0.2") * margin(p, r, w, k)) - mpf("0.1") * p[w],
    "chipo(beta=0.5)": lambda p, r, w, k: logistic(
        (margin(p, r, w, k) + mpmath.exp(p[w] - r[w]) - mpmath.exp(p[k] - r[k])) / 2
    ),
    "fdpo(beta=0.5,divergence='js')": lambda p, r, w, k: logistic((logistic(p[k] - r[k]) - logistic(p[w] - r[w])) / 2),
}


def expected(loss: Loss, logits: list[mpf]) -> mpf:
    normaliser = mpmath.log(sum(mpmath.exp(z) for z in logits))
    policy, reference = [z - normaliser for z in logits], [mpmath.log(mpf(str(q))) for q in REFERENCE]
    return sum(loss(policy, reference, w, k) for w, k in ((0, 1), (0, 2), (2, 1))) / 3


@pytest.mark.parametrize("label", LOSSES)
def test_rate_of_divergence(label: str) -> None:
    """F(t) - F(infinity) ~ C exp(-rate t), along the certificate's direction, e^-100 to e^-200 from the limit."""
    solution = solve(Bandit(REFERENCE, ORDER), objectives.parse(label))
    certificate = solution.certificate
    assert (solution.status, certificate.slope) == ("diverges", 0.0)
    assert certificate.proved
    direction = certificate.direction
    assert float(direction.max() - direction.min()) == 1.0
    with mpmath.workdps(800):
        begin = [mpf(str(q)) for q in np.log(REFERENCE)]

        def value(folds: int) -> mpf:
            t = folds / certificate.rate
            return expected(LOSSES[label], [z + t * mpf(float(d)) for z, d in zip(begin, direction, strict=True)])

        limit = value(1600)
        near, far = (mpmath.log(value(folds) - limit) for folds in (100, 200))
        measured = float((near - far) * certificate.rate / 100)
    tails_known = not label.startswith(("chipo", "fdpo"))  # else the rate is read off the slopes
    assert certificate.rate == pytest.approx(measured, rel=1e-6 if tails_known else 1e-2)


def test_an_objective_without_lower_bound_falls_linearly() -> None:
    """robust_dpo at p = 1: labels cleaner than assumed."""
    solution = solve(Bandit(REFERENCE, ORDER), objectives.get("robust_dpo", beta=0.2, label_smoothing=0.1))
    assert solution.status == "diverges"
    assert math.isnan(solution.certificate.rate)
    begin, direction = np.log(REFERENCE), solution.certificate.direction.numpy()

    def value(t: float) -> float:
        z = begin + t * direction
        margins = np.array([z[w] - begin[w] - z[k] + begin[k] for w, k in ((0, 1), (0, 2), (2, 1))])
        losses = (0.9 * np.logaddexp(0, -0.2 * margins) - 0.1 * np.logaddexp(0, 0.2 * margins)) / 0.8
        return float(losses.mean())

    assert solution.certificate.slope == pytest.approx((value(4000.0) - value(2000.0)) / 2000.0, rel=1e-9)


def test_certificates_of_a_batch() -> None:
    problem = Bandit(REFERENCE, np.stack([ORDER, [[0.5, 0.7, 0.6], [0.3, 0.5, 0.4], [0.4, 0.6, 0.5]]])[:, None])
    certificate = solve(problem, objectives.get("dpo")).certificate
    assert certificate.rate.shape == certificate.slope.shape == certificate.kl_range[0].shape == (2,)
    assert certificate.rate[0].item() == pytest.approx(0.05)
    assert bool(certificate.rate[1].isnan())


def test_several_equally_good_minima_span_their_kls() -> None:
    """A symmetric double well in the margin of two actions, minima at d = +-1, written as a link."""
    link = objectives.Link(
        name="test_well",
        value=lambda z: (z**2 - 1) ** 2,
        first=lambda z: 4 * z**3 - 4 * z,
        second=lambda z: 12 * z**2 - 4,
        slope_plus=math.inf,
        slope_minus=math.inf,
        convex=False,
    )
    term = objectives.pair_term("test_well", objectives.margins.plain, link)
    part = objectives.terms.Part("test_well", "test_well()", {}, (term,), lambda: objective)
    objective = objectives.Objective((part,))
    solution = solve(Bandit([0.3, 0.7], [[0.5, 0.6], [0.4, 0.5]]), objective)
    assert (solution.status, solution.certificate.dimension) == ("not_unique", 0)
    ends = [float(kl(log_softmax(np.array([d, 0.0])), np.array([0.3, 0.7]))) for d in (-1.0, 1.0)]
    assert solution.certificate.kl_range == pytest.approx((min(ends), max(ends)), rel=1e-8)


def test_ranges_in_the_worlds_of_partial_support() -> None:
    for world_id in worlds.names("partial_support"):
        problem = worlds.get(world_id).problem
        solution = solve(problem, objectives.get("ipo"))
        low, high = solution.certificate.kl_range
        own = solution.metrics["kl_policy_reference"]
        assert bool(torch.all((torch.as_tensor(low) <= own + 1e-12) & (own <= torch.as_tensor(high) + 1e-12)))


@pytest.mark.parametrize(
    "label", ["fdpo(divergence='forward_kl')", "fdpo(divergence='alpha')", "chipo(beta=0.5)", "alphapo"]
)
def test_minimisers_of_shaped_margins_form_a_curve_under_partial_support(label: str) -> None:
    """One equation for two free logits. Minimisers from other starts lie elsewhere, and are as good."""
    problem = Bandit(REFERENCE, [[0.5, 0.9, 0.5], [0.1, 0.5, 0.5], [0.5, 0.5, 0.5]], ONE_PAIR)
    solution = solve(problem, objectives.parse(label), starts=2)
    assert (solution.status, solution.certificate.dimension, solution.certificate.minima) == ("not_unique", 1, 1)
    assert math.isnan(solution.certificate.kl_range[0])
    objective = objectives.parse(label)

    def value(logits: np.ndarray) -> float:
        log_policy = torch.as_tensor(log_softmax(np.append(logits, 0.0))).unsqueeze(0)
        return float(objective.value(batches(problem.flattened(torch.Size()), objective, log_policy.unsqueeze(0))))

    ends = [
        minimize(value, start, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-14, "maxiter": 4000})
        for start in ([2.0, -1.0], [0.0, -4.0])
    ]
    for end in ends:
        assert end.fun == pytest.approx(float(solution.value), abs=1e-8)
    assert np.abs(log_softmax(np.append(ends[0].x, 0)) - log_softmax(np.append(ends[1].x, 0))).max() > 0.05

"""Policies over token trees: against the tabular solver, walks token by token, finite differences, and examples by hand."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import pytest
import torch
from oracles import token_trees as oracle
from scipy.optimize import minimize
from torch import Tensor

import objectives
from toy_bandits import Bandit, BanditError, solve
from toy_bandits.expectations import batches
from toy_bandits.policies import TokenTree
from toy_bandits.policies.derivatives import PolicyFunction
from toy_bandits.worlds import get

RESPONSES = [("a", "e"), ("b", "a", "e"), ("b", "b"), ("c",), ("b", "a", "b", "e")]
TOKEN_LEVEL = ["ld_dpo(beta=0.7)", "sampo(beta=0.7)", "sampo(beta=0.7, selection='expected')"]
WHOLE = ["dpo(beta=0.7)", "simpo", "maxpo(beta=0.3)", "orpo", "ipo(aggregation='mean')", "dpo+reverse_kl"]


def world(contexts: int = 2, batch: int = 2, seed: int = 0, **others: object) -> Bandit:
    generator = np.random.default_rng(seed)
    size = len(RESPONSES)
    win = generator.uniform(0.1, 0.9, (batch, contexts, size, size))
    win = np.triu(win, 1) + np.tril(1 - win.swapaxes(-1, -2), -1)
    return Bandit(generator.dirichlet(np.ones(size), (batch, contexts)), win, **others)


def function(label: str, context: object, problem: Bandit) -> tuple[PolicyFunction, TokenTree]:
    policy = TokenTree(RESPONSES, context)
    measured = policy.measured(problem)
    return PolicyFunction(measured, objectives.parse(label), policy.softmaxes(measured)), policy


@pytest.mark.parametrize("context", ["prefix", 0, 1, 2])
def test_log_probs_are_those_of_a_walk_token_by_token(context: object) -> None:
    problem = world()
    made, policy = function("dpo", context, problem)
    theta = torch.randn(2, made.policy.parameters, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    log_policy = made.policy.log_policy(theta)
    np.testing.assert_allclose(log_policy.exp().sum(-1), 1.0, rtol=1e-12)
    if context == "prefix":  # theta = 0 is the reference
        torch.testing.assert_close(made.policy.log_policy(torch.zeros_like(theta)), problem.log_reference)
        return
    for row, found in zip(theta, log_policy, strict=True):
        weight = dict(zip(policy.grams, row.tolist(), strict=True))
        logps = oracle.token_logps(RESPONSES, oracle.ngram_steps(RESPONSES, context, weight))
        for x in range(2):
            np.testing.assert_allclose(found[x], [sum(own) for own in logps], rtol=1e-12)


@pytest.mark.parametrize("context", ["prefix", 1])
@pytest.mark.parametrize("label", [*WHOLE, *TOKEN_LEVEL, "maxpo(beta=0.3, tokens='full')"])
def test_gradient_and_hessian_agree_with_finite_differences(label: str, context: object) -> None:
    samples = np.random.default_rng(5).multinomial(7, np.full(5, 0.2), (2, 2)) / 7
    made, _ = function(label, context, world(reference_samples=samples))
    theta = 0.7 * torch.randn(
        2, made.policy.parameters, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    at = made(theta)
    for i in range(made.policy.parameters):
        step = torch.zeros_like(theta)
        step[:, i] = 1e-5
        after, before = made(theta + step), made(theta - step)
        slope, bend = (after.value - before.value) / 2e-5, (after.gradient - before.gradient) / 2e-5
        torch.testing.assert_close(at.gradient[:, i], slope, rtol=1e-6, atol=2e-9)
        torch.testing.assert_close(at.hessian[:, i], bend, rtol=1e-6, atol=2e-8)


def test_the_chain_rule_gives_what_autograd_gives_through_the_whole_tree() -> None:
    made, _ = function("dpo(beta=0.7)+forward_kl", 1, world())
    theta = torch.randn(2, made.policy.parameters, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def value(leaf: Tensor) -> Tensor:
        return made.objective.value(batches(made.problem, made.objective, made.policy.log_policy(leaf))).sum()

    hessian = torch.autograd.functional.hessian(value, theta)
    for i in range(2):
        torch.testing.assert_close(made(theta).hessian[i], hessian[i, :, i], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("label", ["dpo", "ipo", "maxpo", "simpo", "dpo+forward_kl", "orpo"])
def test_logits_for_every_prefix_are_the_tabular_policy_in_other_coordinates(label: str) -> None:
    problem, objective = world(lengths=[len(r) for r in RESPONSES]), objectives.parse(label)
    tabular, found = solve(problem, objective), solve(problem, objective, policy=TokenTree(RESPONSES))
    assert (found.status == tabular.status).all()
    torch.testing.assert_close(found.policy, tabular.policy, rtol=1e-9, atol=1e-12)
    assert float(found.gradient_norm.max()) <= 1e-9
    form = TokenTree(RESPONSES).softmaxes(problem)
    torch.testing.assert_close(form.log_policy(found.parameters), found.log_policy, rtol=1e-9, atol=1e-9)


def test_a_full_tree_diverges_where_the_table_does_and_says_in_which_direction() -> None:
    problem = Bandit(np.full(3, 1 / 3), [[0.5, 1.0, 1.0], [0.0, 0.5, 0.7], [0.0, 0.3, 0.5]])
    policy = TokenTree(["a", "b a", "b b"])
    found = solve(problem, objectives.get("dpo", beta=1.0), policy=policy)
    assert (found.status, found.certificate.proved) == ("diverges", True)
    np.testing.assert_array_equal(found.policy, [1.0, 0.0, 0.0])
    # edges: a, b at the root, then a, b after b; b loses to a for ever, and what follows b stays as it is
    assert found.parameter_direction[0] == 0 and found.parameter_direction[1] < 0
    np.testing.assert_array_equal(found.parameter_direction[2:], [0.0, 0.0])
    assert found.parameters[2] - found.parameters[3] == pytest.approx(np.log(7 / 3), rel=1e-9)


def test_a_length_mean_favours_the_short_response_by_the_golden_ratio() -> None:
    # Neither response is better. simpo's margin log pi(a) - log pi(b b)/2 is then 0: pi(a)^2 = pi(b b) = 1 - pi(a).
    problem = Bandit([0.5, 0.5], [[0.5, 0.5], [0.5, 0.5]])
    found = solve(problem, objectives.get("simpo"), policy=TokenTree(["a", "b b"]))
    assert found.policy[0].item() == pytest.approx((np.sqrt(5) - 1) / 2, rel=1e-9)
    flat = solve(problem, objectives.get("dpo"), policy=TokenTree(["a", "b b"]))
    assert flat.policy[0].item() == pytest.approx(0.5, rel=1e-9)


def test_ipo_with_token_means_by_hand() -> None:
    # log 2 pi - log(2 (1 - pi))/2 = (2p - 1)/(2 tau) =: log c, so 2 pi^2 = c^2 (1 - pi).
    p, tau = 0.9, 0.5
    c2 = np.exp((2 * p - 1) / tau)
    problem = Bandit([0.5, 0.5], [[0.5, p], [1 - p, 0.5]])
    found = solve(problem, objectives.get("ipo", tau=tau, aggregation="mean"), policy=TokenTree(["a", "b b"]))
    assert found.policy[0].item() == pytest.approx((-c2 + np.sqrt(c2 * c2 + 8 * c2)) / 4, rel=1e-9)


def by_hand(name: str, theta: Tensor, problem: Bandit, policy: TokenTree) -> float:
    """A token-level objective in the first problem of a batch, with loops over labels and tokens."""
    weight = dict(zip(policy.grams, theta.tolist(), strict=True))
    steps = oracle.ngram_steps(RESPONSES, 1, weight)
    total = 0.0
    for x in range(problem.contexts.shape[-1]):
        refs = oracle.reference_steps(RESPONSES, problem.reference[0, x].tolist())
        ratios = [
            np.subtract(own, ref)
            for own, ref in zip(oracle.token_logps(RESPONSES, steps), oracle.token_logps(RESPONSES, refs), strict=True)
        ]
        kl = oracle.token_kl(refs, steps)
        for w, k in ((w, k) for w in range(5) for k in range(5) if w != k):
            share = float(problem.label_weights[0, x, w, k])
            common = min(len(RESPONSES[w]), len(RESPONSES[k]))
            draws = [1.0]
            if name == "ld_dpo":
                margins = [
                    sum(
                        np.where(np.arange(len(r)) < common, r, 0.5 * r) @ np.ones(len(r)) * s
                        for r, s in ((ratios[w], 1), (ratios[k], -1))
                    )
                ]
            elif name == "tdpo":
                margins = [ratios[w].sum() - ratios[k].sum() - 0.5 * (kl[k] - kl[w])]
            else:
                margins = [
                    ratios[w][list(s)].sum() - ratios[k][list(t)].sum()
                    for s in combinations(range(len(RESPONSES[w])), common)
                    for t in combinations(range(len(RESPONSES[k])), common)
                ]
                draws = [1 / (comb(len(RESPONSES[w]), common) * comb(len(RESPONSES[k]), common))] * len(margins)
            total += share * sum(d * np.logaddexp(0.0, -0.7 * m) for d, m in zip(draws, margins, strict=True))
    return total


@pytest.mark.parametrize("name", ["ld_dpo", "sampo", "tdpo"])
def test_token_level_values_are_those_of_loops_over_tokens(name: str) -> None:
    problem = world()
    made, policy = function(f"{name}(beta=0.7)", 1, problem)
    theta = torch.randn(2, made.policy.parameters, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    assert made(theta).value[0].item() == pytest.approx(by_hand(name, theta[0], problem, policy), rel=1e-12)


def test_ld_dpo_is_minimal_where_scipy_finds_it() -> None:
    problem = world(contexts=1, batch=1)
    made, policy = function("ld_dpo(beta=0.7)", 1, problem)
    found = solve(problem, objectives.get("ld_dpo", beta=0.7), policy=policy)
    assert found.status.item() == "converged"
    other = minimize(
        lambda theta: by_hand("ld_dpo", torch.tensor(theta), problem, policy),
        np.zeros(made.policy.parameters),
        method="BFGS",
        options={"gtol": 1e-7},
    )
    assert found.value.item() == pytest.approx(other.fun, abs=1e-9)


def test_forward_kl_over_tokens_sees_the_prefixes_of_the_samples() -> None:
    samples = np.array([0.0, 1.0, 0.0, 0.0, 0.0])
    problem = world(contexts=1, batch=1, reference_samples=samples)
    made, policy = function("forward_kl(weight=1.0, tokens='full')", 1, problem)
    theta = torch.randn(1, made.policy.parameters, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    steps = oracle.ngram_steps(RESPONSES, 1, dict(zip(policy.grams, theta[0].tolist(), strict=True)))
    along = oracle.token_kl(oracle.reference_steps(RESPONSES, problem.reference[0, 0].tolist()), steps)
    assert made(theta).value.item() == pytest.approx(along[1], rel=1e-12)


def test_a_shared_model_starts_from_the_maximum_likelihood_fit() -> None:
    problem, policy = world(contexts=1, batch=1), TokenTree(RESPONSES, 1)
    measured = policy.measured(problem)
    form = policy.softmaxes(measured)
    start = policy.first(measured, form)

    def cross_entropy(theta: np.ndarray) -> float:
        weight = dict(zip(policy.grams, theta.tolist(), strict=True))
        logps = oracle.token_logps(RESPONSES, oracle.ngram_steps(RESPONSES, 1, weight))
        return -float(problem.reference[0, 0].numpy() @ [sum(own) for own in logps])

    other = minimize(cross_entropy, np.zeros(form.parameters), method="BFGS", options={"gtol": 1e-7})
    assert cross_entropy(start[0].numpy()) <= other.fun + 1e-9
    found = solve(problem, objectives.forward_kl(weight=1.0), policy=policy)
    assert found.value.item() == pytest.approx(other.fun, abs=1e-9)


def test_shared_logits_leak_to_responses_never_compared() -> None:
    # Only "a x" and "b y" are compared; with logits of the last token alone, "a y" and "b x" share theirs.
    problem = Bandit(
        np.full(4, 0.25),
        np.array([[0.5, 0.95, 0.5, 0.5], [0.05, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]]),
        np.array([[0, 1.0, 0, 0], [1.0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]),
    )
    responses = ["a x", "b y", "a y", "b x"]
    objective = objectives.get("dpo", beta=1.0)
    own, shared = (solve(problem, objective, policy=TokenTree(responses, n)) for n in ("prefix", 0))
    assert own.policy[2].item() == pytest.approx(own.policy[3].item(), rel=1e-9)
    # dpo asks for log-odds of 19 on the pair; the shared model splits it over its two softmaxes, sqrt(19) each.
    p = np.sqrt(19) / (1 + np.sqrt(19))
    np.testing.assert_allclose(shared.policy, [p * p, (1 - p) ** 2, p * (1 - p), p * (1 - p)], rtol=1e-6)


def test_flat_directions_of_a_shared_model_are_found_by_numbers() -> None:
    # One pair of five responses: its margin is one number, the model has more parameters that matter.
    win, pairs = np.full((4, 4), 0.5), np.zeros((4, 4))
    win[0, 1], win[1, 0], pairs[0, 1], pairs[1, 0] = 0.8, 0.2, 1.0, 1.0
    found = solve(
        Bandit(np.full(4, 0.25), win, pairs),
        objectives.get("ipo", tau=0.5),
        policy=TokenTree(["a x", "b y", "a y", "b x"], 0),
    )
    assert (found.status, found.certificate.dimension, found.certificate.proved) == ("not_unique", 1, False)


def test_worlds_of_sequences_take_their_trees() -> None:
    made = get("sequences/1")
    assert made.responses is not None
    found = solve(made.problem, objectives.get("simpo"), policy=TokenTree(made.responses))
    assert found.policy.shape == made.problem.reference.shape


@pytest.mark.parametrize(
    ("responses", "context", "message"),
    [
        (["a", "a b"], "prefix", "response 'a b' begins with 'a'; end the shorter with a token of its own"),
        (["a", "a"], "prefix", "response 'a' begins with 'a'"),
        (["a", ""], "prefix", "response 1 has no tokens"),
        (["a"], "prefix", "needs at least two responses, got 1"),
        (["a", "b"], -1, "context must be 'prefix' or a number of tokens >= 0, got -1"),
        (["a", "b"], "token", "context must be 'prefix' or a number of tokens >= 0, got 'token'"),
    ],
)
def test_responses_that_are_no_tree_are_refused(responses: list[str], context: object, message: str) -> None:
    with pytest.raises(BanditError, match=message):
        TokenTree(responses, context)


def test_a_tree_of_another_size_or_other_lengths_is_refused() -> None:
    win = np.full((2, 2), 0.5)
    with pytest.raises(BanditError, match="TokenTree: 3 responses do not fit a problem of 2 actions"):
        solve(Bandit([0.5, 0.5], win), objectives.get("dpo"), policy=TokenTree(["a", "b", "c"]))
    with pytest.raises(
        BanditError, match=r"TokenTree: the problem states other lengths than the responses have, \[1, 2\]"
    ):
        solve(Bandit([0.5, 0.5], win, lengths=[1, 3]), objectives.get("dpo"), policy=TokenTree(["a", "b c"]))


def test_too_many_draws_are_refused() -> None:
    responses = ["a " * 1 + "e", "b " * 40, "c " * 20]
    with pytest.raises(BanditError, match="ways to draw tokens are too many to enumerate"):
        solve(Bandit(np.full(3, 1 / 3), np.full((3, 3), 0.5)), objectives.get("sampo"), policy=TokenTree(responses))

"""Log-linear policies: against the tabular solver, closed forms, numpy's least squares, and separations made by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles import bandit_closed_forms as oracle

import objectives
from toy_bandits import Bandit, BanditError, solve
from toy_bandits.policies import LogLinear
from toy_bandits.policies.derivatives import PolicyFunction
from toy_bandits.policies.solver import prepared
from toy_bandits.worlds import draws

EYE = torch.eye(3, dtype=torch.float64)
UNSEEN = {"pairs": [[0, 1, 0], [1, 0, 0], [0, 0, 0]]}


def random_world(contexts: int, actions: int, batch: int = 2, seed: int = 0) -> Bandit:
    generator = np.random.default_rng(seed)
    win = generator.uniform(0.1, 0.9, (batch, contexts, actions, actions))
    win = np.triu(win, 1) + np.tril(1 - win.swapaxes(-1, -2), -1)
    return Bandit(generator.dirichlet(np.ones(actions), (batch, contexts)), win)


@pytest.mark.parametrize("label", ["dpo(beta=0.5)", "ipo", "maxpo", "dpo+forward_kl", "exo_pref", "robust_dpo", "orpo"])
def test_one_feature_per_action_and_context_is_the_tabular_policy(label: str) -> None:
    problem, objective = random_world(2, 3), objectives.parse(label)
    tabular = solve(problem, objective)
    found = solve(problem, objective, policy=LogLinear(torch.eye(6).reshape(2, 3, 6)))
    assert found.parameters.shape == (2, 6)
    assert (found.status == tabular.status).all()
    assert (found.certificate.dimension == tabular.certificate.dimension).all()
    assert (found.certificate.proved == tabular.certificate.proved).all()
    torch.testing.assert_close(found.policy, tabular.policy, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.value, tabular.value, rtol=1e-12, atol=1e-12)
    assert float(found.gradient_norm.max()) <= 1e-10


@pytest.mark.parametrize(
    "label", ["ipo", "dpo", "maxpo", "rso_hinge", "dpo+forward_kl", "dpo+chosen_nll", "cdpo", "kto"]
)
def test_statuses_on_partial_support_are_the_tabular_ones(label: str) -> None:
    problem = Bandit([0.2, 0.5, 0.3], [[0.5, 1, 0.5], [0, 0.5, 0.5], [0.5, 0.5, 0.5]], **UNSEEN)
    tabular = solve(problem, objectives.parse(label))
    found = solve(problem, objectives.parse(label), policy=LogLinear(EYE))
    assert found.status == tabular.status
    assert found.certificate.dimension == tabular.certificate.dimension
    assert found.certificate.proved == tabular.certificate.proved
    torch.testing.assert_close(found.value, tabular.value, rtol=1e-9, atol=1e-9)
    if label != "rso_hinge":  # a hinge's minimisers are many even on its pairs
        torch.testing.assert_close(found.policy, tabular.policy, rtol=0, atol=1e-9)


@pytest.mark.parametrize("start", [[0.0, 0.0, 3.0], [0.0, 0.0, -3.0]])
def test_f5_where_minimisers_are_many_the_answer_is_the_nearest_to_the_start(start: list[float]) -> None:
    problem = Bandit([0.2, 0.5, 0.3], [[0.5, 1, 0.5], [0, 0.5, 0.5], [0.5, 0.5, 0.5]], **UNSEEN)
    theta = torch.tensor(start) - problem.log_reference[0]
    found = solve(problem, objectives.get("ipo", tau=0.1), theta, policy=LogLinear(EYE))
    # theory.md, F5
    expected = [0.276, 0.005, 0.719] if start[2] > 0 else [0.977, 0.017, 0.006]
    np.testing.assert_allclose(found.policy, expected, atol=6e-4)
    assert (found.status, found.certificate.dimension) == ("not_unique", 1)


def test_f1_dpo_with_linear_rewards_finds_their_weights_over_beta() -> None:
    generator = np.random.default_rng(4)
    features, weights = generator.normal(size=(3, 5, 2)), np.array([1.3, -0.7])
    reference = generator.dirichlet(np.ones(5), 3)
    problem = Bandit.from_rewards(reference, features @ weights)
    betas = torch.tensor([0.2, 1.0, 3.0])
    found = solve(problem, objectives.get("dpo", beta=betas), policy=LogLinear(features))
    assert list(found.status) == ["converged"] * 3
    assert found.certificate.proved.all()
    np.testing.assert_allclose(found.parameters, weights / betas[:, None].numpy(), rtol=1e-9)
    for policy, beta in zip(found.policy, betas.tolist(), strict=True):
        for x in range(3):
            np.testing.assert_allclose(policy[x], oracle.gibbs(reference[x], features[x] @ weights, beta), rtol=1e-8)


def test_f4_ipo_is_weighted_least_squares_and_keeps_what_no_margin_sees() -> None:
    generator = np.random.default_rng(1)
    features = generator.normal(size=(4, 5))  # four actions in five dimensions, two pairs: three directions see nothing
    reference, win, _ = oracle.random_world(generator, 4)
    pairs = np.zeros((4, 4))
    pairs[0, 1] = pairs[1, 0] = 0.7
    pairs[2, 3] = pairs[3, 2] = 0.3
    start, tau = generator.normal(size=5), 0.4
    found = solve(Bandit(reference, win, pairs), objectives.get("ipo", tau=tau), start, policy=LogLinear(features))
    rows = np.stack([features[0] - features[1], features[2] - features[3]])
    target = np.array([win[0, 1] - win[1, 0], win[2, 3] - win[3, 2]]) / (2 * tau)
    change = np.linalg.lstsq(rows, target - rows @ start, rcond=None)[0]
    np.testing.assert_allclose(found.parameters, start + change, rtol=1e-9)
    # Four free log-ratios less the common one are three; two margins fix two of them.
    assert (found.status, found.certificate.dimension, found.certificate.proved) == ("not_unique", 1, True)


def test_forward_kl_alone_matches_the_moments_of_the_samples() -> None:
    generator = np.random.default_rng(2)
    features, reference = generator.normal(size=(2, 6, 3)), generator.dirichlet(np.ones(6), 2)
    samples = generator.multinomial(40, reference) / 40
    problem = Bandit(reference, np.full((6, 6), 0.5), reference_samples=samples)
    found = solve(problem, objectives.forward_kl(weight=0.3), policy=LogLinear(features))
    moments = [np.einsum("xa,xaf->f", share, features) for share in (found.policy.numpy(), samples)]
    np.testing.assert_allclose(moments[0], moments[1], atol=1e-9)
    assert found.status == "converged"
    exact = solve(
        Bandit(reference, np.full((6, 6), 0.5)), objectives.forward_kl(weight=0.3), policy=LogLinear(features)
    )
    np.testing.assert_allclose(exact.policy, reference, atol=1e-12)


def test_certain_labels_that_a_feature_separates_diverge_in_the_direction_of_largest_margin() -> None:
    # 0 beats 1 and 2 beats 3, surely. phi_0 - phi_1 = (3, 4), phi_2 - phi_3 = (1, 0): the shortest direction with both
    # margins >= 1 is (1, 0), where the second holds with equality and the first is 3.
    features = np.array([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    win = np.full((4, 4), 0.5)
    win[0, 1], win[1, 0], win[2, 3], win[3, 2] = 1.0, 0.0, 1.0, 0.0
    pairs = np.zeros((4, 4))
    pairs[0, 1] = pairs[1, 0] = pairs[2, 3] = pairs[3, 2] = 1.0
    found = solve(Bandit(np.full(4, 0.25), win, pairs), objectives.get("dpo", beta=0.5), policy=LogLinear(features))
    assert (found.status, found.certificate.proved, float(found.value)) == ("diverges", True, 0.0)
    np.testing.assert_allclose(found.parameter_direction, [1.0, 0.0], atol=1e-9)
    np.testing.assert_allclose(found.certificate.direction, [0.0, -1.0, -2 / 3, -1.0], atol=1e-9)  # 3 nats, as one
    # the slower of the two margins, 1, in nats of the faster, 3, times beta
    assert found.certificate.rate == pytest.approx(0.5 / 3, rel=1e-9)
    np.testing.assert_array_equal(found.policy, [1.0, 0.0, 0.0, 0.0])


def test_labels_that_contradict_each_other_in_the_features_have_a_minimiser_where_the_table_has_none() -> None:
    features = np.array([[1.0], [0.0], [0.0], [1.0]])
    win = np.full((4, 4), 0.5)
    win[0, 1], win[1, 0], win[2, 3], win[3, 2] = 1.0, 0.0, 1.0, 0.0
    pairs = np.zeros((4, 4))
    pairs[0, 1] = pairs[1, 0] = 3.0
    pairs[2, 3] = pairs[3, 2] = 1.0
    problem = Bandit(np.full(4, 0.25), win, pairs)
    objective = objectives.get("dpo", beta=2.0)
    assert solve(problem, objective).status == "diverges"
    found = solve(problem, objective, policy=LogLinear(features))
    # 3/4 of the labels say theta > 0, 1/4 the contrary: sigmoid(beta theta) = 3/4
    assert (found.status, found.certificate.proved) == ("converged", True)
    assert found.parameters.item() == pytest.approx(np.log(3) / 2, rel=1e-9)


def test_part_of_the_labels_diverges_and_the_rest_is_solved() -> None:
    # Feature 0 is certain; feature 1 is not: its parameter has a finite value, logit(.8) / beta.
    features = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    win = np.full((4, 4), 0.5)
    win[0, 1], win[1, 0], win[2, 3], win[3, 2] = 1.0, 0.0, 0.8, 0.2
    pairs = np.zeros((4, 4))
    pairs[0, 1] = pairs[1, 0] = pairs[2, 3] = pairs[3, 2] = 1.0
    found = solve(Bandit(np.full(4, 0.25), win, pairs), objectives.get("dpo", beta=0.5), policy=LogLinear(features))
    assert (found.status, found.certificate.proved) == ("diverges", True)
    np.testing.assert_allclose(found.parameter_direction, [1.0, 0.0], atol=1e-9)
    assert found.parameters[1].item() == pytest.approx(np.log(4) / 0.5, rel=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_finite_labels_diverge_exactly_where_a_linear_program_separates_them(seed: int) -> None:
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(6, 2))
    win, pairs = np.full((6, 6), 0.5), np.zeros((6, 6))
    for first in range(6):
        for second in range(first):
            if generator.uniform() < 0.5:
                better = float(generator.uniform() < 1 / (1 + np.exp(-4 * (features[first] - features[second])[0])))
                win[first, second], win[second, first] = better, 1 - better
                pairs[first, second] = pairs[second, first] = 1.0
    rows = np.stack([features[a] - features[b] for a in range(6) for b in range(6) if pairs[a, b] and win[a, b]])
    # In the plane: some angle at which no label is wrong, on a grid much finer than the gaps of the data
    angles = np.linspace(0, 2 * np.pi, 200_001)
    separable = bool(((rows @ np.stack([np.cos(angles), np.sin(angles)])) > 0).all(0).any())
    found = solve(Bandit(np.full(6, 1 / 6), win, pairs), objectives.get("dpo", beta=1.0), policy=LogLinear(features))
    assert (found.status == "diverges") == separable
    assert found.certificate.proved


def test_mass_leaks_to_an_action_never_compared_where_features_are_shared() -> None:
    features = np.array([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1]])  # the unseen action resembles the winner
    problem = Bandit([0.2, 0.5, 0.3], [[0.5, 0.9, 0.5], [0.1, 0.5, 0.5], [0.5, 0.5, 0.5]], **UNSEEN)
    objective = objectives.get("dpo", beta=1.0)
    tabular, shared = solve(problem, objective), solve(problem, objective, policy=LogLinear(features))
    margin = np.log(9)  # logit .9 on the pair, by either policy
    for found in (tabular, shared):
        ratios = np.log(found.policy.numpy()) - np.log([0.2, 0.5, 0.3])
        assert ratios[0] - ratios[1] == pytest.approx(margin, rel=1e-9)
        # theta moves along phi_0 - phi_1 = (1, -1) alone: theta = margin/2 (1, -1), so the unseen action gets .8 margin/2
        expected = 0.4 * margin if found is shared else 0.0
        middle = (ratios[0] + ratios[1]) / 2
        assert ratios[2] - middle == pytest.approx(expected, abs=1e-9)
    assert shared.policy[2] > 0.3
    kept = solve(problem, objective + objectives.forward_kl(weight=100.0), policy=LogLinear(features))
    assert abs(kept.policy[2].item() - 0.3) < 0.02 * abs(shared.policy[2].item() - 0.3)


def test_a_loss_without_lower_bound_reaches_minus_infinity() -> None:
    problem = Bandit([0.5, 0.5], [[0.5, 1.0], [0.0, 0.5]])
    found = solve(problem, objectives.get("robust_dpo"), policy=LogLinear([[1.0], [0.0]]))
    assert (found.status, found.certificate.proved, float(found.value)) == ("diverges", True, -np.inf)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([[1.0], [0.0]], r"LogLinear: features \(1, 2, 1\) do not fit a problem of 1 contexts and 3 actions"),
        ([1.0, 0.0, 0.0], r"LogLinear: features must have shape \(X, A, F\) or \(A, F\), got \(3,\)"),
        ([[1.0], [float("nan")], [0.0]], "LogLinear: features hold NaN or infinity"),
        ("abc", "LogLinear: features are not an array of numbers"),
    ],
)
def test_features_that_do_not_fit_are_refused(features: object, message: str) -> None:
    problem = Bandit([0.2, 0.5, 0.3], np.full((3, 3), 0.5))
    with pytest.raises(BanditError, match=message):
        solve(problem, objectives.get("dpo"), policy=LogLinear(features))


def test_a_start_of_another_size_is_refused() -> None:
    problem = Bandit([0.2, 0.5, 0.3], np.full((3, 3), 0.5))
    with pytest.raises(BanditError, match=r"start: expected parameters of shape \(..., 3\), got \(2,\)"):
        solve(problem, objectives.get("dpo"), [0.0, 1.0], policy=LogLinear(EYE))


@pytest.mark.parametrize("label", ["dpo", "maxpo", "ipo"])
def test_data_sets_with_different_labels_are_solved_in_one_batch_as_alone(label: str) -> None:
    generator = np.random.default_rng(3)
    features = generator.normal(size=(5, 2))
    truth = Bandit.from_rewards(np.full(5, 0.2), features @ [2.0, -1.0])
    preferences, pairs = draws.labels(truth, 16, 12, 0)
    problem, policy, objective = (
        Bandit(np.full(5, 0.2), preferences, pairs),
        LogLinear(features),
        objectives.parse(label),
    )
    together = solve(problem, objective, policy=policy)
    assert label != "dpo" or set(together.status) == {"converged", "diverges"}
    for i in range(12):
        alone = solve(Bandit(np.full(5, 0.2), preferences[i], pairs[i]), objective, policy=policy)
        assert alone.status == together.status[i]
        torch.testing.assert_close(alone.policy, together.policy[i], rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(alone.parameter_direction, together.parameter_direction[i], rtol=1e-7, atol=1e-9)


def test_kto_moves_on_for_ever_where_features_separate_the_desirable_from_the_undesirable() -> None:
    features = torch.tensor([[1.0, 0.0], [0.5, 1.0], [0.0, 1.0]], dtype=torch.float64)
    problem = Bandit([0.2, 0.5, 0.3], [[0.5, 1, 0.5], [0, 0.5, 0.5], [0.5, 0.5, 0.5]], **UNSEEN)
    objective = objectives.get("kto")
    found = solve(problem, objective, policy=LogLinear(features))
    assert (found.status, found.certificate.proved) == ("diverges", True)
    # The proof's claim, at policies near and far: training moves along the direction.
    function = PolicyFunction(*prepared(LogLinear(features), problem, objective, None)[1:4])
    for theta in torch.randn(20, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 5.0:
        assert float(function(theta).gradient[0] @ found.parameter_direction) < 0
    # Winner and loser alike: no parameter tells them apart, so the field is 0 everywhere.
    same = solve(problem, objective, policy=LogLinear([[1.0], [1.0], [0.0]]))
    assert (same.status, same.certificate.proved) == ("not_unique", False)

"""`solve`: against SciPy, batches against single problems, statuses and certificates, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles import bandit_closed_forms as oracle
from torch import Tensor

import objectives
from objectives import PairBatch, links, margins
from objectives.terms import Objective, Part, Term, pair_term
from toy_bandits import Bandit, BanditError, solve
from toy_bandits.expectations import batches

ALL = ["dpo", "ipo", "maxpo", "dpo+forward_kl", "maxpo(beta=0)+chosen_nll"]


def worlds(count: int, actions: int = 4, seed: int = 0, **density: float) -> Bandit:
    generator = np.random.default_rng(seed)
    made = [oracle.random_world(generator, actions, **density) for _ in range(count)]
    return Bandit(*(np.stack([world[i] for world in made])[:, None] for i in range(3)))


def custom(loss: object, name: str = "test_custom") -> Objective:
    term = Term(name, "pairs", loss)
    return Objective((Part(name, f"{name}()", {}, (term,), lambda: custom(loss, name)),))


@pytest.mark.parametrize("strength", [0.1, 1.0])
@pytest.mark.parametrize("name", ["dpo", "ipo", "maxpo"])
def test_an_independent_solver_finds_the_same_optimum(name: str, strength: float) -> None:
    generator = np.random.default_rng(5)
    for seed in range(3):
        reference, win, weight = oracle.random_world(generator, 4)
        solution = solve(
            Bandit(reference, win, weight), objectives.get(name, **{"tau" if name == "ipo" else "beta": strength})
        )
        value, policy = oracle.scipy_minimum(
            lambda log_policy, world=(reference, win, weight): oracle.objective(name, strength, log_policy, *world),
            4,
            6,
            seed,
        )
        assert solution.status == "converged"
        assert float(solution.value) == pytest.approx(value, rel=1e-9, abs=1e-9)
        np.testing.assert_allclose(solution.policy, policy, atol=3e-5)


@pytest.mark.parametrize("label", ALL)
def test_a_batch_gives_what_its_problems_give_alone(label: str) -> None:
    problem, objective = worlds(12, density=0.6, certain=0.4), objectives.parse(label)
    together = solve(problem, objective)
    for i in range(12):
        one = solve(Bandit(problem.reference[i], problem.preferences[i], problem.pairs[i]), objective)
        assert one.status == together.status[i]
        torch.testing.assert_close(one.policy, together.policy[i], rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(one.value, together.value[i], rtol=1e-10, atol=1e-12)
        assert one.certificate.dimension == together.certificate.dimension[i]
        assert one.certificate.minima == together.certificate.minima[i]


def test_hyper_parameters_may_be_a_grid_that_broadcasts_with_the_problems() -> None:
    problem = worlds(3)
    beta, weight = torch.tensor([[0.1], [1.0]]), torch.tensor([0.0, 0.1, 3.0])
    grid = solve(problem, objectives.get("dpo", beta=beta) + objectives.forward_kl(weight=weight))
    assert grid.policy.shape == (2, 3, 1, 4)
    assert grid.status.shape == grid.value.shape == grid.metrics["win_rate"].shape == (2, 3)
    for i in range(2):
        for j in range(3):
            one = objectives.get("dpo", beta=beta[i, 0].item()) + objectives.forward_kl(weight=weight[j].item())
            alone = solve(Bandit(problem.reference[j], problem.preferences[j], problem.pairs[j]), one)
            torch.testing.assert_close(grid.policy[i, j], alone.policy, rtol=1e-7, atol=1e-9)


def test_a_grid_over_one_problem_without_contexts() -> None:
    solution = solve(
        Bandit([0.3, 0.7], [[0.5, 0.8], [0.2, 0.5]]), objectives.get("maxpo", beta=torch.tensor([0.1, 1.0, 5.0]))
    )
    assert solution.policy.shape == (3, 2)
    expected = [oracle.maxpo_two_actions(0.3, 0.8, beta) for beta in (0.1, 1.0, 5.0)]
    np.testing.assert_allclose(solution.policy[:, 0], expected, rtol=1e-7)


def test_several_starts_in_one_call() -> None:
    problem = Bandit([0.2, 0.5, 0.3], np.full((3, 3), 0.5), [[0, 1.0, 0], [1.0, 0, 0], [0, 0, 0]])
    starts = torch.tensor([[0.0, 0.0, 3.0], [1.0, 0.0, -3.0]])
    solution = solve(problem, objectives.get("ipo"), starts)
    assert solution.policy.shape == (2, 3)
    for start, policy in zip(starts, solution.policy, strict=True):
        torch.testing.assert_close(solve(problem, objectives.get("ipo"), start).policy, policy)


def test_contexts_are_solved_side_by_side() -> None:
    generator = np.random.default_rng(3)
    one, two = oracle.random_world(generator, 3), oracle.random_world(generator, 3)
    rho = 0.2
    both = Bandit(*(np.stack(pair) for pair in zip(one, two, strict=True)), contexts=[rho, 1 - rho])
    for label in ("dpo", "ipo"):  # a context's weight scales its loss as a whole
        solution = solve(both, objectives.parse(label))
        for world, policy in zip((one, two), solution.policy, strict=True):
            torch.testing.assert_close(
                solve(Bandit(*world), objectives.parse(label)).policy, policy, rtol=1e-7, atol=1e-9
            )


def test_one_divergent_context_makes_the_whole_divergent_and_leaves_the_other_alone() -> None:
    win = np.array([[[0.5, 1.0], [0.0, 0.5]], [[0.5, 0.7], [0.3, 0.5]]])
    solution = solve(Bandit([[0.5, 0.5], [0.4, 0.6]], win), objectives.get("dpo", beta=1.0))
    assert solution.status == "diverges"
    np.testing.assert_array_equal(solution.certificate.direction[1], [0.0, 0.0])
    odds = (0.7 / 0.3) * (0.4 / 0.6)
    np.testing.assert_allclose(solution.policy, [[1.0, 0.0], [odds / (1 + odds), 1 / (1 + odds)]], rtol=1e-9)


@pytest.mark.parametrize("label", ALL)
def test_value_and_gradient_norm_are_those_of_the_objective_at_the_answer(label: str) -> None:
    problem, objective = worlds(5, seed=4), objectives.parse(label)
    solution = solve(problem, objective)
    logits = solution.logits.clone().requires_grad_()
    value = objective.value(batches(problem, objective, logits.log_softmax(-1)))
    torch.testing.assert_close(value.detach(), solution.value, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert float(gradient.flatten(1).norm(dim=-1).max()) <= 1e-10
    assert float(solution.gradient_norm.max()) <= 1e-10
    torch.testing.assert_close(solution.policy.sum(-1), torch.ones(5, 1, dtype=torch.float64))


@pytest.mark.parametrize("name", ["dpo", "ipo"])
def test_a_long_chain_of_nearly_certain_wins_is_solved_to_working_precision(name: str) -> None:
    """Curvatures from 1 down to 1e-60 in one system."""
    rewards = np.arange(6) * 27.6
    problem = Bandit.from_rewards(np.full(6, 1 / 6), rewards)
    solution = solve(problem, objectives.get(name, **{"tau" if name == "ipo" else "beta": 0.1}))
    assert solution.status == "converged"
    win, weight = problem.preferences[0].numpy(), problem.pairs[0].numpy()
    begin = np.log(np.full(6, 1 / 6))
    exact = rewards / 0.1 if name == "dpo" else oracle.ipo_logits(np.full(6, 1 / 6), win, weight, 0.1, begin)
    np.testing.assert_allclose(solution.log_policy, oracle.log_softmax(exact), rtol=1e-8)


def test_from_a_start_far_on_the_wrong_side() -> None:
    problem = Bandit([0.5, 0.5], [[0.5, 0.9], [0.1, 0.5]])
    for objective in (objectives.get("dpo", beta=10.0), objectives.get("maxpo", beta=0.05)):
        expected = solve(problem, objective).policy
        for start in ([-100.0, 100.0], [300.0, 0.0]):
            solution = solve(problem, objective, start)
            assert solution.status == "converged"
            torch.testing.assert_close(solution.policy, expected, rtol=1e-8, atol=1e-12)


def test_two_equally_good_minima_are_not_called_unique() -> None:
    """A double well in the margin, written in the log-probs of a symmetric world."""

    def loss(batch: PairBatch) -> Tensor:
        margin = batch.chosen_logps - batch.rejected_logps
        return (margin**2 - 1.0) ** 2

    solution = solve(Bandit([0.5, 0.5], [[0.5, 0.5], [0.5, 0.5]]), custom(loss))
    assert solution.status == "not_unique"
    assert solution.certificate.minima == 2
    assert solution.certificate.dimension == 0
    assert abs(float(solution.logits[0] - solution.logits[1])) == pytest.approx(1.0, abs=1e-8)


def test_the_better_of_two_minima_is_found_from_the_worse_ones_valley() -> None:
    def loss(batch: PairBatch) -> Tensor:
        margin = batch.chosen_logps - batch.rejected_logps
        return (margin**2 - 1.0) ** 2 - 0.2 * margin

    problem = Bandit([0.5, 0.5], [[0.5, 1.0], [0.0, 0.5]])
    solution = solve(problem, custom(loss), [-1.0, 0.0])
    assert solution.status == "converged"
    assert solution.certificate.minima == 2
    roots = np.roots([4.0, 0.0, -4.0, -0.2]).real  # d/dm of (m^2 - 1)^2 - .2 m
    assert float(solution.logits[0] - solution.logits[1]) == pytest.approx(roots.max(), rel=1e-9)


def test_an_unknown_loss_that_falls_for_ever_is_seen_to_diverge() -> None:
    def loss(batch: PairBatch) -> Tensor:
        return torch.exp(-(batch.chosen_logps - batch.rejected_logps))

    solution = solve(Bandit([0.5, 0.5], [[0.5, 1.0], [0.0, 0.5]]), custom(loss))
    assert solution.status == "diverges"
    assert not solution.certificate.proved
    np.testing.assert_array_equal(solution.policy, [1.0, 0.0])
    finite = solve(Bandit([0.5, 0.5], [[0.5, 1 - 1e-9], [1e-9, 0.5]]), custom(loss))
    assert finite.status == "converged"  # nearly the same world has a minimiser, at half the log-odds
    odds = 0.5 * (np.log1p(-1e-9) - np.log(1e-9))
    assert float(finite.logits[0] - finite.logits[1]) == pytest.approx(odds, rel=1e-9)


def test_a_loss_without_lower_bound_diverges() -> None:
    def loss(batch: PairBatch) -> Tensor:
        return -(batch.chosen_logps - batch.rejected_logps)

    solution = solve(Bandit([0.5, 0.5], [[0.5, 0.8], [0.2, 0.5]]), custom(loss))
    assert solution.status == "diverges"
    np.testing.assert_array_equal(solution.policy, [1.0, 0.0])


def test_maxpo_with_temperature_auto_is_temperature_one_in_a_bandit() -> None:
    problem = worlds(2)
    auto = solve(problem, objectives.get("maxpo", temperature="auto"))
    torch.testing.assert_close(auto.policy, solve(problem, objectives.get("maxpo", temperature=1.0)).policy)


def test_large_batches_are_solved_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = worlds(9)
    objective = objectives.get("dpo", beta=torch.linspace(0.1, 1.0, 9))
    whole = solve(problem, objective)
    monkeypatch.setattr("toy_bandits.solver.CELLS", 4 * 16)
    torch.testing.assert_close(solve(problem, objective).policy, whole.policy, rtol=1e-9, atol=1e-12)


def nan_loss(batch: PairBatch) -> Tensor:
    return batch.chosen_logps * float("nan")


def reduced_loss(batch: PairBatch) -> Tensor:
    return batch.chosen_logps.mean()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objective": "dpo"}, "expected an objective such as"),
        ({"objective": objectives.get("dpo") + objectives.pretraining(weight=0.1)}, "no pretraining text"),
        ({"objective": objectives.get("pretraining", weight=0)}, "every term has weight 0"),
        ({"objective": objectives.get("dpo", beta=torch.tensor([0.1, 0.2]))}, r"do not broadcast: .*\(2,\)"),
        ({"start": [0.0, 0.0]}, r"start: expected logits of shape \(\.\.\., 1, 4\), got \(2,\)"),
        ({"start": [[0.0, float("inf"), 0.0, 0.0]]}, "start: logits must be finite"),
        (
            {"objective": custom(nan_loss)},
            r"loss test_custom is nan at the start, context 0, pair \(0, 1\) \(problem 0 of the batch\)",
        ),
        ({"objective": custom(reduced_loss)}, "one value per example"),
    ],
)
def test_bad_input_is_named(arguments: dict[str, object], message: str) -> None:
    given = {"objective": objectives.get("dpo"), **arguments}
    with pytest.raises((BanditError, objectives.ObjectiveError), match=message):
        solve(worlds(3), given.pop("objective"), **given)


@pytest.mark.parametrize(("p", "status"), [(1.0, "not_unique"), (0.8, "converged")])
def test_a_loss_that_is_constant_beyond_a_margin_attains_its_minimum_on_a_ray(p: float, status: str) -> None:
    """max(0, 1 - z)^2 with z = D / 2: at p = 1 every D >= 2 is a minimiser; below, the slopes balance at z = 2 p - 1."""
    problem = Bandit([0.3, 0.7], [[0.5, p], [1 - p, 0.5]])
    solution = solve(problem, objectives.get("gpo", beta=0.5, link="truncated_square"))
    adjusted = solution.log_policy - problem.log_reference[0]
    assert solution.status == status
    assert solution.certificate.dimension == (1 if p == 1.0 else 0)
    if p == 1.0:
        assert solution.certificate.proved
        assert float(adjusted[0] - adjusted[1]) >= 2.0 - 1e-12
        assert float(solution.value) == 0.0
    else:
        assert float(adjusted[0] - adjusted[1]) == pytest.approx(2 * (2 * p - 1), rel=1e-9)


def test_a_fall_that_rounding_hides_is_still_called_divergence() -> None:
    """Smooth, bounded, unknown to the solver: 1 - s(x) where curvature underflows long before the slope does not matter any more."""

    def loss(batch: PairBatch) -> Tensor:
        return 1.0 - torch.sigmoid(batch.chosen_logps - batch.rejected_logps)

    solution = solve(Bandit([0.3, 0.7], [[0.5, 1.0], [0.0, 0.5]]), custom(loss))
    assert solution.status == "diverges"
    np.testing.assert_array_equal(solution.policy, [1.0, 0.0])


def test_further_starts_never_move_tied_sets_against_each_other() -> None:
    """The better valley of the margin is found from another start; the third action, in no pair, stays where the given one put it."""
    link = links.Link(
        name="test_double_well",
        value=lambda z: (z**2 - 1) ** 2 - 0.2 * z,
        first=lambda z: 4 * z**3 - 4 * z - 0.2,
        second=lambda z: 12 * z**2 - 4,
        slope_plus=float("inf"),
        slope_minus=float("inf"),
        convex=False,
    )
    term = pair_term("test_double_well", margins.plain, link)
    objective = Objective((Part("test_double_well", "test_double_well()", {}, (term,), lambda: objective),))
    win = [[0.5, 1.0, 0.5], [0.0, 0.5, 0.5], [0.5, 0.5, 0.5]]
    problem = Bandit([0.2, 0.5, 0.3], win, [[0, 1.0, 0], [1.0, 0, 0], [0, 0, 0]])
    solution = solve(problem, objective, [-0.5, 0.5, 3.0])
    assert solution.status == "not_unique"
    assert solution.certificate.minima == 2
    best = np.roots([4.0, 0.0, -4.0, -0.2]).real.max()
    np.testing.assert_allclose(solution.log_policy, oracle.log_softmax(np.array([best / 2, -best / 2, 3.0])), atol=1e-9)


def test_a_plateau_that_ends_in_a_rise_is_not_called_divergence() -> None:
    def loss(batch: PairBatch) -> Tensor:
        margin = batch.chosen_logps - batch.rejected_logps
        return torch.sigmoid(-margin) + 1e-3 * torch.relu(margin - 300.0)

    solution = solve(Bandit([0.5, 0.5], [[0.5, 1.0], [0.0, 0.5]]), custom(loss))
    assert solution.status not in ("diverges", "converged")

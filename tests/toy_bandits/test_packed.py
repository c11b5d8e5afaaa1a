"""Problems packed side by side: derivatives, steps and minima against autograd, closed forms, and the path that takes any loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import objectives
from toy_bandits import expectations, search, structure
from toy_bandits.derivatives import Function
from toy_bandits.errors import BanditError
from toy_bandits.packed import Packed
from toy_bandits.problem import Bandit
from toy_bandits.solver import solve

OBJECTIVES = (
    "dpo(beta=0.1)",
    "ipo(tau=0.1)",
    "cdpo(beta=0.1)",
    "dpo(beta=0.1) + forward_kl(weight=0.1)",
    "maxpo(beta=0.5)",
)


def random_worlds(count: int, contexts: int, actions: int, seed: int = 0) -> Bandit:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    margins = normal(count, contexts, actions, actions).triu(1)
    return Bandit(normal(count, contexts, actions).softmax(-1), (margins - margins.mT).sigmoid())


def value(problem: Bandit, objective: objectives.Objective, logits: Tensor) -> Tensor:
    """(B,): the expectation of the losses themselves."""
    batches = expectations.batches(problem, objective, logits.log_softmax(-1))
    terms = [term.weight * batches[term.source].mean(term.losses(batches[term.source])) for term in objective.terms]
    return torch.stack([term.expand(len(logits)) for term in terms]).sum(0)


@pytest.mark.parametrize("label", OBJECTIVES)
@pytest.mark.parametrize("actions", [2, 5, 40])
def test_derivatives_are_those_of_the_losses(label: str, actions: int) -> None:
    problem, objective = random_worlds(1, 2, actions), objectives.parse(label)
    packed = Packed.of(Function(problem, objective))
    assert packed is not None
    logits = torch.randn(1, 2, actions, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    point = packed(logits[0].T.contiguous())
    gradient = torch.autograd.functional.jacobian(lambda u: value(problem, objective, u)[0], logits)[0]
    hessian = torch.autograd.functional.hessian(lambda u: value(problem, objective, u)[0], logits)[0, :, :, 0]
    torch.testing.assert_close(point.gradient.T, gradient, rtol=1e-10, atol=1e-14)
    own = packed._dense(point.weights)[:, 0]
    for context in range(2):
        torch.testing.assert_close(own[context], hessian[context, :, context], rtol=1e-9, atol=1e-13)
    labels = torch.zeros(actions, 2, dtype=torch.long)
    step, failed = packed.step(point, labels)
    if label.startswith("maxpo"):
        return  # not convex: the step need not be Newton's own
    assert not failed.any()
    for context in range(2):
        wanted = -torch.linalg.pinv(hessian[context, :, context]) @ gradient[context]
        mine = step[:, context] - step[:, context].mean()
        torch.testing.assert_close(mine, wanted, rtol=1e-7, atol=1e-9 * wanted.abs().max().item())


def hard_worlds() -> Bandit:
    """Of 4 actions in 2 contexts: random, nearly certain, certain, a chain of pairs, weights of 1e-9, a context of probability 0."""
    base = random_worlds(6, 2, 4, seed=1)
    preferences, pairs = base.preferences.clone(), base.pairs.clone()
    contexts = base.contexts.clone()
    above = torch.ones(4, 4, dtype=torch.float64).triu(1)
    preferences[1] = (1 - 1e-12) * above + 1e-12 * above.T
    preferences[2, 0] = above
    chain = torch.diag_embed(torch.ones(3, dtype=torch.float64), 1)
    pairs[3] = chain + chain.T
    pairs[4, :, 0, 1:] *= 1e-9
    pairs[4, :, 1:, 0] *= 1e-9
    contexts[5] = torch.tensor([1.0, 0.0])
    return Bandit(base.reference, preferences, pairs, contexts)


@pytest.mark.parametrize("label", OBJECTIVES)
def test_minima_are_those_of_the_path_that_takes_any_loss(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, objective = hard_worlds(), objectives.parse(label)
    mine = solve(problem, objective)
    alone = [solve(problem.take(torch.tensor([index])), objective) for index in range(6)]
    monkeypatch.setattr(search.Packed, "of", staticmethod(lambda function: None))
    other = solve(problem, objective)
    assert list(mine.status) == list(other.status) == [one.status[0] for one in alone]
    assert "unsolved" not in mine.status
    assert mine.gradient_norm.max() <= 1e-10
    shown = problem.contexts > 0
    torch.testing.assert_close(mine.value, other.value, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(mine.policy[shown], other.policy[shown], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(
        mine.policy[shown], torch.cat([one.policy for one in alone])[shown], rtol=1e-6, atol=1e-9
    )


def test_two_actions_of_nearly_certain_preference_have_dpo_s_closed_form() -> None:
    p = torch.tensor([0.5, 0.9, 1 - 1e-6, 1e-12], dtype=torch.float64)
    other = torch.tensor([0.5, 0.1, 1e-6, 1 - 1e-12], dtype=torch.float64)
    zero = torch.zeros_like(p)
    preferences = torch.stack([torch.stack([zero, p], -1), torch.stack([other, zero], -1)], -2)
    reference = torch.tensor([0.3, 0.7], dtype=torch.float64)
    found = solve(Bandit(reference.expand(4, 2), preferences), objectives.get("dpo", beta=0.5)).logits.diff(dim=-1)[
        :, 0
    ]
    wanted = reference.log().diff() - (p / other).log() / 0.5
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("actions", "contexts"), [(10, 3), (40, 2)])
def test_transitive_preferences_give_back_dpo_s_rewards(actions: int, contexts: int) -> None:
    """Under Bradley-Terry the optimum is pi_ref e^(r / beta) (Rafailov et al. 2023, eq. 4), whatever the number of actions."""
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(2, contexts, actions, generator=generator, dtype=torch.float64)
    reference = torch.randn(2, contexts, actions, generator=generator, dtype=torch.float64).softmax(-1)
    found = solve(Bandit.from_rewards(reference, rewards), objectives.get("dpo", beta=0.5))
    torch.testing.assert_close(
        found.log_policy, (reference.log() + rewards / 0.5).log_softmax(-1), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("label", [*OBJECTIVES, "robust_dpo(label_smoothing=0.3)", "rso_hinge", "maxpo(beta=0)"])
def test_what_one_look_proves_is_what_the_graph_says(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = objectives.parse(label)
    for problem in (random_worlds(3, 2, 5), hard_worlds()):
        quick = structure.analyse(Function(problem, objective))
        with monkeypatch.context() as patch:
            patch.setattr(structure, "_held_together", lambda function: False)
            whole = structure.analyse(Function(problem, objective))
        for name, wanted in vars(whole).items():
            torch.testing.assert_close(vars(quick)[name], wanted, rtol=0, atol=0, msg=name)


def test_one_look_is_enough_where_every_pair_is_compared() -> None:
    problem = random_worlds(3, 2, 5)
    assert structure._held_together(Function(problem, objectives.get("dpo")))
    assert structure._held_together(Function(problem, objectives.get("maxpo")))
    assert not structure._held_together(Function(hard_worlds(), objectives.get("dpo")))
    assert not structure._held_together(Function(problem, objectives.parse("maxpo(beta=0)")))


def test_a_loss_that_overflows_in_one_problem_is_refused_by_its_cell() -> None:
    problem = random_worlds(3, 1, 3)
    reference = problem.reference.clone()
    reference[2, 0] = torch.tensor([1e-250, 1e-60, 1.0], dtype=torch.float64)
    huge = Bandit(reference, problem.preferences)
    with pytest.raises(BanditError, match=r"problem 2 of the batch"):
        solve(huge, objectives.get("ipo", tau=torch.tensor([0.1, 0.1, 1e-300], dtype=torch.float64)))


def test_what_problems_share_is_held_once() -> None:
    problem = random_worlds(50, 1, 10)
    assert problem.pairs.untyped_storage().nbytes() == 8 * 10 * 10
    given = torch.rand(50, 1, 10, 10, dtype=torch.float64)
    given = (given + given.mT) * (1 - torch.eye(10, dtype=torch.float64))
    own = Bandit(problem.reference, problem.preferences, given).pairs
    torch.testing.assert_close(own.sum((-2, -1)), torch.full((50, 1), 2.0, dtype=torch.float64))


@pytest.mark.slow
@pytest.mark.parametrize("label", ["dpo(beta=0.1)", "ipo(tau=0.1)", "maxpo(beta=0.1)"])
def test_a_thousand_actions(label: str) -> None:
    found = solve(random_worlds(1, 1, 1024), objectives.parse(label), starts=0)
    assert found.status[0] == "converged"
    assert found.gradient_norm.item() <= 1e-10

"""Losses that break their contract are refused with world, objective and cell; several references reach the losses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import objectives
from objectives import Batch, ObjectiveError, PairBatch, SampleBatch
from objectives.terms import Objective, Part, Term
from toy_bandits import Bandit, BanditError, solve, worlds
from toy_bandits.expectations import batches

WIN = [[0.5, 0.7, 0.6], [0.3, 0.5, 0.9], [0.4, 0.1, 0.5]]


def custom(loss: Callable[..., Tensor], source: str = "pairs") -> Objective:
    term = Term("mine", source, loss)
    return Objective((Part("mine", "mine()", {}, (term,), lambda: custom(loss, source)),))


def nan_at(index: int) -> Callable[[PairBatch], Tensor]:
    def loss(batch: PairBatch) -> Tensor:
        return torch.where(torch.arange(batch.shape[-1]) == index, float("nan"), batch.rejected_logps)

    return loss


def test_a_nan_is_named_by_world_objective_and_pair() -> None:
    problem = Bandit([[0.2, 0.5, 0.3]] * 2, WIN, name="world mine/3")
    with pytest.raises(
        BanditError, match=r"^world mine/3: mine: the loss mine is nan at the start, context 1, pair \(0, 2\)$"
    ):
        solve(problem, custom(nan_at(6 + 1)))
    many = Bandit(np.full((4, 1, 3), 1 / 3), WIN, name="world mine/3")

    def third(batch: PairBatch) -> Tensor:
        spoil = (torch.arange(batch.shape[0])[:, None] == 2) & (torch.arange(batch.shape[1]) == 0)
        return torch.where(spoil, float("inf"), batch.rejected_logps)

    with pytest.raises(BanditError, match=r"is inf at the start, context 0, pair \(0, 1\) \(problem 2 of the batch\)"):
        solve(many, custom(third))


@pytest.mark.parametrize(
    ("source", "index", "where"),
    [
        ("reference_samples", 4, "context 1, action 1$"),
        ("unpaired", 12 + 7, r"context 1, action 2 of the pair \(0, 2\)$"),
        ("candidates", 7, r"context 1, pair \(0, 2\)$"),
    ],
)
def test_cells_of_other_sources(source: str, index: int, where: str) -> None:
    problem = Bandit([[0.2, 0.5, 0.3]] * 2, WIN)

    def loss(batch: Batch) -> Tensor:
        return torch.where(torch.arange(batch.shape[-1]) == index, float("nan"), torch.zeros(batch.shape))

    with pytest.raises(BanditError, match=where):
        solve(problem, custom(loss, source))


def test_a_gradient_that_is_nan_is_named_by_action() -> None:
    def loss(batch: SampleBatch) -> Tensor:
        floor = batch.logps - batch.logps.amin(-1, keepdim=True)
        return floor.sqrt()  # finite everywhere, its slope infinite at the smallest log-prob

    with pytest.raises(BanditError, match=r"mine: the gradient of the loss mine is .* action 0 in context 0"):
        solve(Bandit([0.2, 0.5, 0.3], WIN), custom(loss, "reference_samples"))


@pytest.mark.parametrize(
    ("loss", "shape"),
    [
        (lambda batch: batch.chosen_logps.mean(), r"\(\)"),
        (lambda batch: batch.chosen_logps.mean(-1, keepdim=True), r"\(1, 1\)"),
        (lambda batch: batch.chosen_logps.unsqueeze(-1) - batch.rejected_logps.unsqueeze(-2), r"\(1, 6, 6\)"),
        (lambda batch: 1.0, "float"),
    ],
)
def test_a_loss_of_another_shape_is_refused(loss: Callable[..., Tensor], shape: str) -> None:
    with pytest.raises(
        ObjectiveError, match=rf"^world w/0: mine: .* one value per example, \(..., 6\), .* returned {shape}$"
    ):
        solve(Bandit([0.2, 0.5, 0.3], WIN, name="world w/0"), custom(loss))


def test_an_objective_of_several_references_sees_those_of_the_bandit() -> None:
    """mrpo's optimum is DPO's against the harmonic mean, solved here with numpy's mixture as the reference."""
    first, second = np.array([0.2, 0.5, 0.3]), np.array([0.6, 0.1, 0.3])
    weights = (0.3, 0.7)
    harmonic = 1 / sum(w / pi for w, pi in zip(weights, (first, second), strict=True))
    win = Bandit.from_rewards(first, [1.0, 0.0, 0.4]).preferences
    problem = Bandit(first, win, references=np.stack([first, second])).without_contexts()
    solution = solve(problem, objectives.get("mrpo", beta=0.5, weights=weights, clip=None))
    expected = harmonic * np.exp(np.array([1.0, 0.0, 0.4]) / 0.5)
    np.testing.assert_allclose(solution.policy, expected / expected.sum(), rtol=1e-9)
    assert solution.status == "converged"


def test_references_broadcast_like_everything_else() -> None:
    first = np.array([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]])
    references = np.stack([first, np.full((2, 3), 1 / 3)])  # (K, X, A)
    problem = Bandit(np.tile(first, (4, 1, 1)), WIN, references=references)
    assert problem.references is not None
    assert problem.references.shape == (4, 2, 2, 3)
    batch = batches(problem, objectives.get("mrpo"), problem.log_reference)["pairs"]
    assert isinstance(batch, PairBatch)
    x, winner, _ = problem.shown
    np.testing.assert_allclose(batch.require("chosen_reference_logps", "t")[1, :, 0].exp(), first[x, winner])
    np.testing.assert_allclose(batch.require("chosen_reference_logps", "t")[2, :, 1].exp(), 1 / 3)
    taken = problem.flattened((4,)).take(torch.tensor([3, 1]))
    assert taken.references is not None
    assert taken.references.shape == (2, 2, 2, 3)


@pytest.mark.parametrize(
    ("references", "message"),
    [
        (
            [[0.2, 0.3, 0.5], [0.3, 0.3, 0.4]],
            r"references: the first must be the reference itself; differs at \(0, 1\)",
        ),
        ([[0.2, 0.5, 0.3], [0.3, 0.3, 0.3]], "references: must sum to 1; sums to 0.9"),
        ([[0.2, 0.5, 0.3], [0.0, 0.6, 0.4]], "references: must be > 0 everywhere; got 0"),
        ([[0.2, 0.8], [0.3, 0.7]], "references: the reference has 3 actions"),
        ([0.2, 0.5, 0.3], "references: expected at least 2 dimensions"),
    ],
)
def test_bad_references_are_named(references: object, message: str) -> None:
    with pytest.raises(BanditError, match=message):
        Bandit([0.2, 0.5, 0.3], WIN, references=references)


def test_errors_inside_a_world_carry_its_id() -> None:
    world = worlds.get("several_references/0")
    with pytest.raises(
        ObjectiveError, match=r"^world several_references/0: mrpo: weights names 3 references, the batch has 2"
    ):
        solve(world.problem, objectives.get("mrpo", weights=(0.2, 0.3, 0.5)))
    with pytest.raises(
        BanditError, match=r"^world partial_support/0: dpo\+pretraining: a bandit has no pretraining text"
    ):
        solve(worlds.get("partial_support/0").problem, objectives.get("dpo") + objectives.pretraining())


def test_a_loss_that_does_not_depend_on_the_policy_is_refused() -> None:
    problem = worlds.get("partial_support/1").problem
    for loss in (lambda batch: batch.chosen_logps.detach(), lambda batch: torch.ones(batch.shape, dtype=torch.long)):
        for objective in (custom(loss), objectives.get("dpo") + custom(loss)):
            with pytest.raises(
                BanditError, match=r"^world partial_support/1: .*the loss mine does not depend on the policy"
            ):
                solve(problem, objective)


def test_a_loss_that_is_nan_away_from_the_start_is_one_line() -> None:
    def loss(batch: PairBatch) -> Tensor:
        spoilt = torch.where(batch.chosen_logps < -6.0, float("nan"), 1.0)
        return spoilt * (batch.rejected_logps - batch.chosen_logps)

    with pytest.raises(
        BanditError, match=r"^world partial_support/1: mine: .* NaN or infinite at a policy that the search"
    ):
        solve(worlds.get("partial_support/1").problem, custom(loss))

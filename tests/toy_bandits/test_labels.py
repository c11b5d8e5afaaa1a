"""What is found out of a loss by spoiling the batch it is given, and derivatives label by label."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import objectives
from objectives import PairBatch, links, margins, pair_term
from objectives.terms import Objective, Part, Term
from objectives.values import positive_part
from toy_bandits import solve, worlds
from toy_bandits.derivatives import Function, LabelPiece, OpaquePiece, PairPiece


def of_term(term: Term) -> Objective:
    return Objective((Part("mine", "mine()", {}, (term,), lambda: of_term(term)),))


def piece(loss: Callable[[PairBatch], Tensor]) -> object:
    """What the solver takes a loss on pairs for, where references are uniform and where not."""
    kinds = []
    for world in ("partial_support/1", "intransitive/0"):
        (found,) = Function(worlds.get(world).problem.flattened((3,)), of_term(Term("mine", "pairs", loss))).pieces
        fixed = isinstance(found, LabelPiece) and found.labels.batch is not None
        kinds.append((type(found), fixed))
    assert kinds[0] == kinds[1]
    return kinds[0]


def test_a_batch_is_kept_only_where_the_loss_reads_nothing_that_changes_with_the_policy() -> None:
    def own(batch: PairBatch) -> Tensor:
        return (batch.chosen_logps - batch.rejected_logps).cosh()

    def held_fixed(batch: PairBatch) -> Tensor:
        return own(batch) * (
            1.0 + batch.chosen_token_kl.detach().clamp(max=0.0)
        )  # 0 here: only NaN shows that it is read

    def others(batch: PairBatch) -> Tensor:
        return own(batch) * batch.chosen_token_kl

    assert piece(own) == (LabelPiece, True)
    assert piece(held_fixed) == (LabelPiece, False)
    assert piece(others) == (OpaquePiece, False)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sampo", PairPiece),
        ("ld_dpo", PairPiece),
        ("fdpo", PairPiece),
        ("tdpo", OpaquePiece),
        ("minor_dpo", LabelPiece),
        ("dpop", LabelPiece),
        ("chipo", LabelPiece),
        ("fdpo(divergence='js')", LabelPiece),
    ],
)
def test_margins_over_single_tokens_are_plain_differences_and_shaped_ones_are_not(name: str, kind: type) -> None:
    problem = worlds.get("partial_support/2").problem.flattened((2,))
    assert [type(one) for one in Function(problem, objectives.parse(name)).pieces] == [kind]


def test_a_margin_with_a_kink_is_no_difference_on_whichever_side_it_is_tried() -> None:
    def value(batch: PairBatch, objective: str) -> Tensor:
        return batch.chosen_logps - batch.rejected_logps - positive_part(batch.chosen_logps - 40.0)  # never positive

    term = pair_term("mine", margins.Margin("kinked", "k", value, None, frozenset()), links.logistic)
    (found,) = Function(worlds.get("partial_support/1").problem.flattened((1,)), of_term(term)).pieces
    assert isinstance(found, LabelPiece)


@pytest.mark.parametrize("name", ["sampo", "ld_dpo"])
def test_they_are_solved_as_dpo(name: str) -> None:
    problem = worlds.get("partial_support/5").problem
    mine, dpo = (solve(problem, objectives.get(each, beta=0.7)) for each in (name, "dpo"))
    assert (mine.status, mine.certificate.proved) == (dpo.status, dpo.certificate.proved)
    torch.testing.assert_close(mine.log_policy, dpo.log_policy, rtol=0, atol=1e-10)
    assert mine.certificate.kl_range == pytest.approx(dpo.certificate.kl_range)


@pytest.mark.parametrize("name", ["kto", "bco", "alphapo", "orpo+forward_kl", "reverse_kl+dpo", "exo_rw", "sppo"])
def test_the_gradient_alone_is_that_of_the_derivatives(name: str) -> None:
    problem = worlds.get("partial_support/7").problem.flattened((3,))
    function = Function(problem, objectives.parse(name))
    logits = torch.randn(problem.reference.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    whole = function(logits).gradient.reshape(logits.shape)
    torch.testing.assert_close(function.gradient(logits), whole, rtol=1e-10, atol=1e-13)
    few = torch.tensor([2, 0])
    torch.testing.assert_close(function.take(few).gradient(logits[few]), whole[few], rtol=1e-10, atol=1e-13)

"""Gradient and Hessian of whole bandit objectives against finite differences (F10)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor

import objectives
from objectives import PairBatch
from objectives.terms import Objective, Part, Term
from toy_bandits import Bandit, solve
from toy_bandits.derivatives import CrossEntropyPiece, Function, LabelPiece, OpaquePiece, PairPiece
from toy_bandits.expectations import batches

LABELS = [
    "dpo(beta=0.7)",
    "ipo(tau=0.3)",
    "ipo(tau=0.3, aggregation='mean')",
    "maxpo(beta=0.2, temperature=2.0)",
    "maxpo(beta=0.2, reference_adjusted=True)",
    "maxpo(beta=0.2, tokens='full')",
    "dpo(beta=0.7)+forward_kl(weight=0.5)+chosen_nll(weight=0.3)",
]


def random_problem(contexts: int, seed: int = 0) -> Bandit:
    generator = np.random.default_rng(seed)
    win = generator.uniform(0.1, 0.9, (3, contexts, 4, 4))
    win = np.triu(win, 1) + np.tril(1 - win.swapaxes(-1, -2), -1)
    pairs = np.triu(
        generator.uniform(0, 1, (3, contexts, 4, 4)) * (generator.uniform(size=(3, contexts, 4, 4)) < 0.7), 1
    )
    pairs[..., 0, 1] = 0.5
    return Bandit(
        generator.dirichlet(np.ones(4), (3, contexts)),
        win,
        pairs + pairs.swapaxes(-1, -2),
        generator.dirichlet(np.ones(contexts), 3),
    )


def coupled_objective() -> Objective:
    """A loss with batch means: contexts interact."""

    def loss(batch: PairBatch) -> Tensor:
        margin = batch.chosen_logps - batch.rejected_logps
        centre = batch.mean(margin).unsqueeze(-1)
        return (margin - centre - 1.0) ** 2 + 0.1 * margin**2

    term = Term("test_coupled", "pairs", loss)
    if "coupled" in Term.__dataclass_fields__:
        term = replace(term, coupled=True)
    else:
        object.__setattr__(term, "coupled", True)
    return Objective((Part("test_coupled", "test_coupled()", {}, (term,), coupled_objective),))


def opaque_objective() -> Objective:
    """A smooth loss that is neither a link of a margin nor linear."""

    def loss(batch: PairBatch) -> Tensor:
        return (batch.chosen_logps + 1.0) ** 2 * torch.exp(0.3 * batch.rejected_logps) - batch.chosen_logps

    term = Term("test_opaque", "pairs", loss)
    return Objective((Part("test_opaque", "test_opaque()", {}, (term,), opaque_objective),))


def value(problem: Bandit, objective: Objective, logits: Tensor) -> Tensor:
    return objective.value(batches(problem, objective, logits.log_softmax(-1)))


@pytest.mark.parametrize("contexts", [1, 2])
@pytest.mark.parametrize("label", [*LABELS, "coupled", "opaque"])
def test_f10_derivatives_agree_with_finite_differences_of_the_objectives_own_value(label: str, contexts: int) -> None:
    problem = random_problem(contexts)
    objective = {"coupled": coupled_objective, "opaque": opaque_objective}.get(label, lambda: objectives.parse(label))()
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, contexts, 4, generator=generator, dtype=torch.float64)
    function = Function(problem, objective)
    found = function(logits)
    torch.testing.assert_close(found.value, value(problem, objective, logits), rtol=1e-12, atol=1e-12)
    h = 1e-5
    size = contexts * 4
    gradient, hessian = torch.zeros(3, size, dtype=torch.float64), torch.zeros(3, size, size, dtype=torch.float64)
    for i in range(size):
        step = torch.zeros(size, dtype=torch.float64)
        step[i] = h
        up, down = (logits + sign * step.reshape(contexts, 4) for sign in (1, -1))
        gradient[:, i] = (value(problem, objective, up) - value(problem, objective, down)) / (2 * h)
        hessian[:, i] = (function(up).gradient - function(down).gradient).reshape(3, size) / (2 * h)
    torch.testing.assert_close(found.gradient.reshape(3, size), gradient, rtol=1e-6, atol=1e-8)
    for block in range(found.hessian.shape[1]):
        width = found.hessian.shape[-1]
        part = slice(block * width, (block + 1) * width)
        torch.testing.assert_close(found.hessian[:, block], hessian[:, part, part], rtol=1e-6, atol=1e-8)
        hessian[:, part, part] = 0.0
    assert hessian.abs().max() < 1e-8  # nothing couples contexts that the blocks leave out


@pytest.mark.parametrize("label", LABELS)
def test_f10_adding_a_constant_to_all_logits_of_a_context_changes_nothing(label: str) -> None:
    problem, objective = random_problem(2), objectives.parse(label)
    logits = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    shift = torch.tensor([[3.0], [-5.0]], dtype=torch.float64)
    one, other = (Function(problem, objective)(z) for z in (logits, logits + shift))
    torch.testing.assert_close(one.value, other.value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one.gradient, other.gradient, rtol=1e-9, atol=1e-12)
    assert one.gradient.sum(-1).abs().max() < 1e-12


def test_terms_are_recognised_by_their_structure() -> None:
    objective = objectives.parse(LABELS[-1]) + opaque_objective() + coupled_objective()
    kinds = [type(piece) for piece in Function(random_problem(1), objective).pieces]
    assert kinds == [PairPiece, CrossEntropyPiece, CrossEntropyPiece, LabelPiece, OpaquePiece]


def test_a_stopped_gradient_is_not_mistaken_for_a_linear_term() -> None:
    """-sg(pi) log pi looks linear to autograd at any one policy."""

    def loss(batch: PairBatch) -> Tensor:
        return -batch.chosen_logps.detach().exp() * batch.chosen_logps

    term = Term("test_stopped", "pairs", loss)
    objective = Objective((Part("test_stopped", "test_stopped()", {}, (term,), lambda: objective),))
    (piece,) = Function(random_problem(1), objective).pieces
    assert isinstance(piece, OpaquePiece)


def test_the_solver_uses_the_coupled_hessian_and_converges_quadratically() -> None:
    """Where a pair graph falls apart, the flat direction is found although nothing is known of the loss's structure."""
    problem = random_problem(2)
    solution = solve(problem, coupled_objective())
    pieces = [[connected_components(graph)[0] for graph in contexts] for contexts in (problem.pairs > 0).numpy()]
    assert solution.status.tolist() == ["converged" if max(one) == 1 else "not_unique" for one in pieces]
    assert solution.certificate.dimension.tolist() == [sum(one) - 2 for one in pieces]
    assert not solution.certificate.proved.any()
    assert float(solution.gradient_norm.max()) <= 1e-10
    assert int(solution.certificate.iterations.max()) <= 3  # the loss is quadratic in the logits

"""DPO where labels agree with a Bradley-Terry model (F2): every pair at its own optimum, scale * margin = log odds of its label.

Newton's method loses it where odds are extreme (e^100): gradients of such pairs vanish long before the margin is right. Whether a point
is this minimiser is seen without gradients: each pair's expected loss is least where its argument is the log of its odds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from objectives import links
from toy_bandits.derivatives import Function, PairPiece
from toy_bandits.newton import centred
from toy_bandits.solution import CONVERGED, NOT_UNIQUE, STATUSES, UNSOLVED, TabularAnswer
from toy_bandits.structure import Structure

EXTREME = 1e-8
"""Probability of a label below which the iteration's own answer is not relied upon."""
SAME = 1e-10
"""Arguments that agree with the log odds to this precision, relative to 1 + their size, are at the optimum."""


def settle(function: Function, structure: Structure, start: Tensor, answer: TabularAnswer) -> None:
    """Put the closed form where it holds and the iteration found nothing, or labels are extreme.

    Args:
        function: of B problems.
        structure: of them.
        start: (B, X, A), whose means over tied sets the answer keeps, as gradient flow does.
        answer: to be completed.
    """
    piece = function.pieces[0]
    if len(function.pieces) > 1 or not isinstance(piece, PairPiece) or piece.link is not links.logistic:
        return
    unsolved = answer.status == _index(UNSOLVED)
    both = piece.weights + piece.weights.transpose(-1, -2)
    extreme = ((piece.weights > 0) & (piece.weights < EXTREME * both)).flatten(1).any(-1)
    index = ((unsolved | extreme) & structure.exists).nonzero()[:, 0]
    if len(index) == 0:
        return
    own = function.take(index)
    logits, holds = bradley_terry(own, structure.tied[index], start[index])
    index, logits = index[holds], logits[holds]
    if len(index) == 0:
        return
    derivatives = function.take(index)(logits)
    free = structure.free[index]
    answer.logits[index], answer.log_policy[index] = logits, logits.log_softmax(-1)
    answer.value[index], answer.gradient_norm[index] = derivatives.value, derivatives.gradient.flatten(1).norm(dim=-1)
    answer.status[index] = torch.where(free > 0, _index(NOT_UNIQUE), _index(CONVERGED))
    answer.dimension[index], answer.minima[index] = free, 1
    answer.proved[index], answer.tie[index] = True, False
    answer.direction[index], answer.newton_step[index] = 0.0, 0.0


def bradley_terry(function: Function, tied: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, X, A) at which every pair's argument is its log odds, and for which problems (B,) there are such.

    Args:
        function: with a single pair piece, of the logistic link.
        tied: (B, X, A) labels of the sets of actions that are compared directly or through others.
        start: whose means over these sets are kept.
    """
    (piece,) = function.pieces
    assert isinstance(piece, PairPiece)
    against = piece.weights.transpose(-1, -2)
    compared = (piece.weights > 0) & (against > 0)
    one_way = ((piece.weights > 0) != (against > 0)).flatten(1).any(-1)
    odds = torch.where(compared, piece.weights, 1.0).log() - torch.where(compared, against, 1.0).log()
    gap = torch.where(compared, (odds - piece.constants) / piece.scale[:, None, None, None], 0.0)
    actions = start.shape[-1]
    known = tied == torch.arange(actions, device=tied.device)
    logits = torch.zeros_like(start)
    for _ in range(actions):  # from the first action of each set outwards
        near = compared & known.unsqueeze(-2) & ~known.unsqueeze(-1)
        reached = near.any(-1)
        if not bool(reached.any()):
            break
        through = near.to(torch.uint8).argmax(-1, keepdim=True)
        value = (gap.gather(-1, through).squeeze(-1)) + logits.gather(-1, through.squeeze(-1))
        logits, known = torch.where(reached, value, logits), known | reached
    logits = start + centred(logits - start, tied)
    missed = (piece.argument(logits) - odds).abs() > SAME * (1.0 + odds.abs())
    return logits, ~one_way & ~(missed & compared).flatten(1).any(-1)


def _index(status: str) -> int:
    index: int = STATUSES.tolist().index(status)
    return index

"""Margins: how far the policy prefers the chosen response, per pair, in nats.

A margin compares the *scores* of the two responses: log-probs, with or without the reference's, with or without division by the
length. Where it is affine in the policy's two log-probs, ``c_w p_w - c_l p_l + constant``, ``coefficients`` gives (c_w, c_l), from
which an exact solver has its chain rule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from objectives.batches import PairBatch
from objectives.values import Value, per_example

__all__ = [
    "Margin",
    "Value",
    "against_win_rate",
    "chosen_ratio",
    "length_normalized",
    "length_normalized_adjusted",
    "length_shifted",
    "plain",
    "reference_adjusted",
    "rejected_ratio",
    "scores",
    "select",
    "transformed",
]


@dataclass(frozen=True)
class Margin:
    """``value(batch, objective)`` (..., N); ``coefficients(batch)`` None where the margin is not affine; ``needs`` as in `Term`.

    ``separates``: a number k such that the margin tends to +inf whenever the rejected score falls for ever, more than k times as fast as
    the chosen one (which may stay). For phi(chosen) - phi(rejected), phi increasing with a slope bounded from below on every (-inf, c],
    k is 1: the margin is the integral of the slope between the two scores. None: not known.
    """

    name: str
    symbol: str
    value: Callable[[PairBatch, str], Tensor]
    coefficients: Callable[[PairBatch], tuple[Value, Value]] | None
    needs: frozenset[str]
    separates: Value | None = None
    normalized: bool = False
    """Whether the scores are divided by the responses' lengths."""


def scores(batch: PairBatch, objective: str, *, adjusted: bool, normalized: bool) -> tuple[Tensor, Tensor]:
    """(..., N) each: the chosen and the rejected response's log-prob, ``adjusted`` by the reference's, ``normalized`` by length."""
    chosen, rejected = batch.chosen_logps, batch.rejected_logps
    if adjusted:
        chosen = chosen - batch.require("ref_chosen_logps", objective)
        rejected = rejected - batch.require("ref_rejected_logps", objective)
    if normalized:
        chosen = chosen / batch.require("chosen_lengths", objective)
        rejected = rejected / batch.require("rejected_lengths", objective)
    return chosen, rejected


def _needs(adjusted: bool, normalized: bool) -> frozenset[str]:
    return frozenset({"ref_logps"} if adjusted else ()) | frozenset({"lengths"} if normalized else ())


def transformed(
    name: str,
    symbol: str,
    combine: Callable[[Tensor, Tensor], Tensor],
    *,
    adjusted: bool = True,
    normalized: bool = False,
    separates: Value | None = None,
) -> Margin:
    """The margin ``combine(score of the chosen, score of the rejected)``, not affine; ``separates`` as in `Margin`."""

    def value(batch: PairBatch, objective: str) -> Tensor:
        return combine(*scores(batch, objective, adjusted=adjusted, normalized=normalized))

    return Margin(name, symbol, value, None, _needs(adjusted, normalized), separates, normalized)


def _difference(name: str, symbol: str, *, adjusted: bool, normalized: bool) -> Margin:
    def value(batch: PairBatch, objective: str) -> Tensor:
        chosen, rejected = scores(batch, objective, adjusted=adjusted, normalized=normalized)
        return chosen - rejected

    coefficients = _inverse_lengths if normalized else _ones
    return Margin(name, symbol, value, coefficients, _needs(adjusted, normalized), 1.0, normalized)


def _ones(batch: PairBatch) -> tuple[Value, Value]:
    return 1.0, 1.0


def _inverse_lengths(batch: PairBatch) -> tuple[Value, Value]:
    return 1.0 / batch.require("chosen_lengths", "margin"), 1.0 / batch.require("rejected_lengths", "margin")


plain = _difference("plain", "d", adjusted=False, normalized=False)
reference_adjusted = _difference("reference_adjusted", "D", adjusted=True, normalized=False)
length_normalized = _difference("length_normalized", "(p_w/|w| - p_l/|l|)", adjusted=False, normalized=True)
length_normalized_adjusted = _difference(
    "length_normalized_adjusted", "(a/|w| - b/|l|)", adjusted=True, normalized=True
)


def select(*, adjusted: bool, normalized: bool) -> Margin:
    """The margin with or without the reference, with or without division by the responses' lengths."""
    if adjusted:
        return length_normalized_adjusted if normalized else reference_adjusted
    return length_normalized if normalized else plain


def _chosen_ratio(batch: PairBatch, objective: str) -> Tensor:
    return batch.chosen_logps - batch.require("ref_chosen_logps", objective)


def _rejected_ratio(batch: PairBatch, objective: str) -> Tensor:
    return batch.require("ref_rejected_logps", objective) - batch.rejected_logps


chosen_ratio = Margin("chosen_ratio", "a", _chosen_ratio, lambda batch: (1.0, 0.0), _needs(True, False))
"""How far the chosen response gained on the reference: one response's share of D = a - b."""
rejected_ratio = Margin("rejected_ratio", "-b", _rejected_ratio, lambda batch: (0.0, 1.0), _needs(True, False))
"""How far the rejected response lost on the reference: the other response's share of D = a - b."""


def length_shifted(weight: Value) -> Margin:
    """D + weight (|w| - |l|): a longer chosen response must not win for its length."""

    def value(batch: PairBatch, objective: str) -> Tensor:
        longer = batch.require("chosen_lengths", objective) - batch.require("rejected_lengths", objective)
        return reference_adjusted.value(batch, objective) + per_example(weight) * longer

    return Margin("length_shifted", "D + c (|w| - |l|)", value, _ones, _needs(True, True))


def against_win_rate(ratio: Margin, beta: Value) -> Margin:
    """One response's share of D, less what its estimated win rate P calls for: ratio - (P - 1/2)/beta."""

    def value(batch: PairBatch, objective: str) -> Tensor:
        target = (batch.require("win_rates", objective) - 0.5) / per_example(beta)
        return ratio.value(batch, objective) - target

    symbol = f"({ratio.symbol} - (P - 1/2)/beta)"
    return Margin(f"{ratio.name}_against_win_rate", symbol, value, ratio.coefficients, ratio.needs | {"win_rates"})

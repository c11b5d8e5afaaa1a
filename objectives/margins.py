"""Margins: how far the policy prefers the chosen response, per pair, in nats.

All margins here are affine in the policy's two log-probs, ``c_w p_w - c_l p_l + constant``; ``coefficients`` gives (c_w, c_l), from
which an exact solver has its chain rule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from objectives.batches import PairBatch

Value = float | Tensor


@dataclass(frozen=True)
class Margin:
    """``value(batch, objective)`` (..., N); ``coefficients(batch)`` None where the margin is not affine; ``needs`` as in `Term`."""

    name: str
    symbol: str
    value: Callable[[PairBatch, str], Tensor]
    coefficients: Callable[[PairBatch], tuple[Value, Value]] | None
    needs: frozenset[str]


def _plain(batch: PairBatch, objective: str) -> Tensor:
    return batch.chosen_logps - batch.rejected_logps


def _reference_adjusted(batch: PairBatch, objective: str) -> Tensor:
    chosen = batch.chosen_logps - batch.require("ref_chosen_logps", objective)
    return chosen - (batch.rejected_logps - batch.require("ref_rejected_logps", objective))


def _length_normalized(batch: PairBatch, objective: str) -> Tensor:
    chosen = batch.chosen_logps / batch.require("chosen_lengths", objective)
    return chosen - batch.rejected_logps / batch.require("rejected_lengths", objective)


def _length_normalized_adjusted(batch: PairBatch, objective: str) -> Tensor:
    chosen = (batch.chosen_logps - batch.require("ref_chosen_logps", objective)) / batch.require(
        "chosen_lengths", objective
    )
    rejected = batch.rejected_logps - batch.require("ref_rejected_logps", objective)
    return chosen - rejected / batch.require("rejected_lengths", objective)


def _ones(batch: PairBatch) -> tuple[Value, Value]:
    return 1.0, 1.0


def _inverse_lengths(batch: PairBatch) -> tuple[Value, Value]:
    return 1.0 / batch.require("chosen_lengths", "margin"), 1.0 / batch.require("rejected_lengths", "margin")


plain = Margin("plain", "d", _plain, _ones, frozenset())
reference_adjusted = Margin("reference_adjusted", "D", _reference_adjusted, _ones, frozenset({"ref_logps"}))
length_normalized = Margin(
    "length_normalized", "(p_w/|w| - p_l/|l|)", _length_normalized, _inverse_lengths, frozenset({"lengths"})
)
length_normalized_adjusted = Margin(
    "length_normalized_adjusted",
    "(a/|w| - b/|l|)",
    _length_normalized_adjusted,
    _inverse_lengths,
    frozenset({"ref_logps", "lengths"}),
)


def select(*, adjusted: bool, normalized: bool) -> Margin:
    """The margin with or without the reference, with or without division by the responses' lengths."""
    if adjusted:
        return length_normalized_adjusted if normalized else reference_adjusted
    return length_normalized if normalized else plain

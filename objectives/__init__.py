"""Preference objectives as sums of terms: the same object runs in exact bandits and in language-model training."""

from objectives import links, margins
from objectives.batches import Batch, CandidateBatch, PairBatch, RolloutBatch, SampleBatch, UnpairedBatch
from objectives.domains import NonNegative, Positive, Real
from objectives.errors import ObjectiveError
from objectives.factorial import Cell, factorial
from objectives.links import Link
from objectives.margins import Margin
from objectives.registry import Description, describe, get, names, parse, register
from objectives.strength import Strength
from objectives.terms import Objective, PairTerm, Term, pair_term
from objectives.values import frozen, positive_part, stop_gradient

# isort: split
# The built-in objectives register themselves on import.
from objectives import (  # noqa: F401
    candidates,
    coupled,
    maximum_preference,
    pairwise,
    references,
    shaped,
    tokens,
    unpaired,
)
from objectives.policy_gradient import is_clipped, log_ratio, penalty, surrogate
from objectives.regularisers import chosen_nll, forward_kl, pretraining, reverse_kl

__all__ = [
    "Batch",
    "CandidateBatch",
    "Cell",
    "Description",
    "Link",
    "Margin",
    "NonNegative",
    "Objective",
    "ObjectiveError",
    "PairBatch",
    "PairTerm",
    "Positive",
    "Real",
    "RolloutBatch",
    "SampleBatch",
    "Strength",
    "Term",
    "UnpairedBatch",
    "chosen_nll",
    "describe",
    "factorial",
    "forward_kl",
    "frozen",
    "get",
    "is_clipped",
    "links",
    "log_ratio",
    "margins",
    "names",
    "pair_term",
    "parse",
    "penalty",
    "positive_part",
    "pretraining",
    "register",
    "reverse_kl",
    "stop_gradient",
    "surrogate",
]

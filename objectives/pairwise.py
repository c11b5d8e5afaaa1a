"""Objectives on labelled pairs: link(scale * margin - offset)."""

from __future__ import annotations

from typing import Literal

from objectives import links, margins
from objectives.domains import Positive
from objectives.registry import register
from objectives.terms import Term, pair_term


@register(
    "dpo",
    formula="L(beta D), L(z) = -log s(z), D the reference-adjusted margin",
    paper="arXiv 2305.18290",
    equation="eq. 7",
    optimum="beta D = logit p on every pair; under Bradley-Terry pi_ref exp(r/beta)/Z. No finite minimiser where a response always wins",
    watch="as p -> 1 the optimum tends to a point mass for every beta; blind to mass moving between parts of the pair graph",
)
def dpo(beta: Positive = 0.1) -> Term:
    """Direct preference optimisation: logistic loss on the implicit reward margin."""
    return pair_term("dpo", margins.reference_adjusted, links.logistic, scale=beta)


@register(
    "ipo",
    formula="(D - 1/(2 tau))^2; aggregation='mean': each log-ratio divided by its response's length",
    paper="arXiv 2310.12036",
    equation="eq. 17",
    optimum="weighted least squares D_ab = (2 p_ab - 1)/(2 tau) on the pair graph: finite at p = 1 too",
    watch="margins add up along a chain of wins and pass 1/(2 tau); blind to mass moving between parts of the pair graph",
    differences="sum as printed in the paper; trl's DPOTrainer averages over tokens (aggregation='mean'), saying the authors confirmed it",
)
def ipo(tau: Positive = 0.1, aggregation: Literal["sum", "mean"] = "sum") -> Term:
    """Identity preference optimisation: squared distance of the margin to 1/(2 tau)."""
    margin = margins.select(adjusted=True, normalized=aggregation == "mean")
    return pair_term("ipo", margin, links.square, offset=0.5 / tau)

"""MaxPO: the preference itself as reward, by importance sampling, with an off-policy forward KL."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from objectives import links, margins
from objectives.batches import PairBatch
from objectives.domains import NonNegative, Positive
from objectives.errors import ObjectiveError
from objectives.registry import register
from objectives.regularisers import forward_kl_term, pretraining_term
from objectives.terms import Term, pair_term
from objectives.values import Value


@register(
    "maxpo",
    formula="-s(d / temperature) + beta * forward KL on reference samples + gamma * -log pi(pretraining text), d the plain margin",
    paper="arXiv 2312.16430",
    equation="derivation in its section 4; scaling of d for sequences by option",
    optimum="finite for every p with E_x KL(pi_ref || pi) <= 1/beta; each part of the pair graph keeps pi_ref's mass exactly; "
    "two actions, reference q: pi = (B + sqrt(B^2 + 4 c beta q))/(2 c), c = 2p - 1, B = c - beta",
    watch="s saturates when |d| is tens of nats: temperature='auto' (sequences) is the spread of d under the reference; "
    "the pair term is not convex",
    differences="reference_adjusted: D for d; length_normalized: log-probs divided by lengths; tokens='full': the low-variance "
    "forward KL",
)
def maxpo(
    beta: NonNegative = 0.1,
    gamma: NonNegative = 0.0,
    temperature: Positive | Literal["auto"] = 1.0,
    reference_adjusted: bool = False,
    length_normalized: bool = False,
    tokens: Literal["sampled", "full"] = "sampled",
) -> tuple[Term, ...]:
    """Maximum preference optimisation with importance sampling; needs no reference model while optimising."""
    if tokens == "full" and isinstance(beta, float) and beta == 0:
        raise ObjectiveError("maxpo: tokens='full' has no effect at beta=0; leave it out")
    margin = margins.select(adjusted=reference_adjusted, normalized=length_normalized)
    regularisers = (forward_kl_term(beta, tokens), pretraining_term(gamma))
    if isinstance(temperature, str):
        return (Term("maxpo", "pairs", _unresolved, needs=margin.needs), *regularisers)
    return (_pair_term(margin, temperature), *regularisers)


def _pair_term(margin: margins.Margin, temperature: Value) -> Term:
    return pair_term("maxpo", margin, links.negative_sigmoid, scale=1.0 / temperature)


def _unresolved(batch: PairBatch) -> Tensor:
    raise ObjectiveError(
        "maxpo: temperature='auto' must be replaced by a number first: objective.with_temperature(number)"
    )

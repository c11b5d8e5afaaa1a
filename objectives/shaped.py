"""Objectives on pairs whose margin is not affine in the log-probs: the reward has a shape of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from objectives import links, margins
from objectives.domains import NonNegative, Number, Positive, PositiveNumber
from objectives.errors import ObjectiveError
from objectives.links import bounded_exp
from objectives.registry import register
from objectives.regularisers import chosen_nll_term
from objectives.strength import Strength
from objectives.terms import Term, pair_term
from objectives.values import Value, per_example, positive_part

FAMILY = "shaped reward"


def _difference_of(shape: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda chosen, rejected: shape(chosen) - shape(rejected)


@register(
    "chipo",
    family=FAMILY,
    formula="L(clip[beta (phi(a) - phi(b))]) with phi(a) = e^a + a, clipped to +-clip",
    paper="arXiv 2407.13399",
    equation="algorithm 1",
    defaults="beta 0.05, a value in use; clip None: the paper clips at 2 R_max, which only the user knows",
    optimum="phi(pi/pi_ref) = r/beta + const with phi(z) = z + log z, so pi/pi_ref = W(e^(r/beta + const)), W Lambert's; "
    "no finite minimiser where a response always wins",
    watch="with a clip the gradient is zero where the scaled margin is past it; without one e^a grows fast once a is positive",
    differences="the chi^2 part bounds pi/pi_ref linearly in the reward where KL allows exponentially; e^a is continued along "
    "its tangent past a = 64",
)
def chipo(beta: Positive = 0.05, clip: PositiveNumber | None = None) -> Term:
    """chi^2 preference optimisation: DPO with chi^2 and KL regularisation together."""
    margin = margins.transformed(
        "chi_squared", "(phi(a) - phi(b))", _difference_of(lambda ratio: bounded_exp(ratio) + ratio), separates=1.0
    )
    link = links.logistic if clip is None else links.clipped(links.logistic, clip)
    return pair_term("chipo", margin, link, scale=beta)


def _alpha_shape(alpha: Value) -> Callable[[Tensor], Tensor]:
    return lambda ratio: -bounded_exp(-per_example(alpha) * ratio) / per_example(alpha)


@register(
    "fdpo",
    family=FAMILY,
    formula="L(beta (f'(e^a) - f'(e^b))); f'(e^a) up to a constant: reverse_kl a; forward_kl -e^-a; js log s(a); alpha "
    "-e^(-alpha a)/alpha",
    paper="arXiv 2309.16240",
    equation="its theorem on the reward under an f-divergence, with its table of divergences",
    defaults="beta as dpo; divergence 'reverse_kl', with which it is dpo; alpha 0.5 (of the alpha divergence only)",
    optimum="beta (f'(pi/pi_ref)(y) - f'(pi/pi_ref)(y')) = logit p on every pair; no finite minimiser at p = 1",
    watch="js and forward_kl are bounded above in a: a chosen response's gain saturates, its loss does not",
    differences="alpha here is the paper's; trl's f_alpha_divergence_coef is 1 - alpha",
)
def fdpo(
    beta: Positive = 0.1,
    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = "reverse_kl",
    alpha: Positive = 0.5,
) -> Term:
    """DPO with another f-divergence in place of the KL."""
    if divergence != "alpha" and not (isinstance(alpha, float) and alpha == 0.5):
        raise ObjectiveError(f"fdpo: alpha has no effect with divergence={divergence!r}; leave it out")
    if divergence == "reverse_kl":
        return pair_term("fdpo", margins.reference_adjusted, links.logistic, scale=beta)
    shapes = {"forward_kl": _alpha_shape(1.0), "js": logsigmoid, "alpha": _alpha_shape(alpha)}
    # Their slopes e^-a, s(-a) and e^(-alpha a) all fall in a: on (-inf, c] they are least at c.
    margin = margins.transformed(
        f"f_{divergence}", "(f'(e^a) - f'(e^b))", _difference_of(shapes[divergence]), separates=1.0
    )
    return pair_term("fdpo", margin, links.logistic, scale=beta)


@register(
    "dpop",
    family=FAMILY,
    formula="L(beta (D - lam max(0, -a)))",
    paper="arXiv 2402.13228",
    equation="the DPOP loss",
    defaults="beta as dpo; lam 5, a value in use (the paper's own experiments use larger ones too)",
    optimum="dpo's where the chosen response has not lost on the reference",
    watch="punishes a chosen response that falls below the reference; at lam = 0 it is dpo",
)
def dpop(beta: Positive = 0.1, lam: NonNegative = 5.0) -> Term:
    """DPO-positive: the chosen response may not fall below the reference."""

    def combine(chosen: Tensor, rejected: Tensor) -> Tensor:
        return chosen - rejected - per_example(lam) * positive_part(-chosen)

    margin = margins.transformed("positive", "(D - lam max(0, -a))", combine, separates=1.0 + lam)
    return pair_term("dpop", margin, links.logistic, scale=beta)


@register(
    "minor_dpo",
    family=FAMILY,
    formula="L(beta (a - max(0, b)))",
    paper="arXiv 2408.09834",
    defaults="beta as dpo",
    optimum="none finite on deterministic pairs: a -> +inf",
    watch="a rejected response already below the reference is left alone: its gradient is zero there",
)
def minor_dpo(beta: Positive = 0.1) -> Term:
    """Minor DPO: no further penalty on rejected responses that have fallen below the reference."""
    margin = margins.transformed("minor", "(a - max(0, b))", lambda chosen, rejected: chosen - positive_part(rejected))
    return pair_term("minor_dpo", margin, links.logistic, scale=beta)


def _log_odds(logp: Tensor) -> Tensor:
    """log(p/(1 - p)) of a log-prob, finite at p = 1: certainty counts as the smallest doubt that a number can hold."""
    certain = logp.clamp(max=-torch.finfo(logp.dtype).tiny)
    return certain - torch.log(-torch.expm1(certain))


@register(
    "orpo",
    family=FAMILY,
    formula="-p_w/|w| + lam L(logit e^(p_w/|w|) - logit e^(p_l/|l|))",
    paper="arXiv 2403.07691",
    equation="eqs. 4 and 7",
    defaults="lam 0.1, the paper's for 7B models",
    optimum="not in closed form; finite where every response is chosen sometimes",
    watch="no reference; the likelihood term is the whole of the regularisation",
    differences="NLL of the response only, as the paper means it: trl's ORPOTrainer takes the NLL over prompt and response",
    strength=Strength("lam", rising=False),
)
def orpo(lam: NonNegative = 0.1) -> tuple[Term, ...]:
    """Odds-ratio preference optimisation: likelihood of the chosen plus a penalty on the rejected's odds."""
    margin = margins.transformed(
        "log_odds",
        "(log odds ratio)",
        _difference_of(_log_odds),
        adjusted=False,
        normalized=True,
        separates=1.0,  # slope 1/(1 - e^m)
    )
    return chosen_nll_term(1.0, per_token=True), pair_term("orpo", margin, links.logistic, weight=lam)


@register(
    "alphapo",
    family=FAMILY,
    formula="L(beta (r(p_w/|w|) - r(p_l/|l|)) - gamma) with r(m) = (1 - e^(-alpha m))/alpha, r(m) = m at alpha = 0",
    paper="arXiv 2501.03884",
    defaults="beta and gamma as simpo; alpha 0.25, a value of the paper's experiments",
    optimum="simpo's, with r(m) for m; no finite minimiser at p = 1",
    watch="no reference and no KL; alpha > 0 punishes a likely rejected response less and an unlikely chosen one more",
    differences="at alpha = 0 it is simpo; trl: CPOTrainer with alpha, loss_type 'simpo' and cpo_alpha 0",
)
def alphapo(beta: Positive = 2.0, gamma: NonNegative = 1.0, alpha: Number = 0.25) -> Term:
    """AlphaPO: simpo with a reward of another shape."""
    if alpha == 0:
        return pair_term("alphapo", margins.length_normalized, links.logistic, scale=beta, offset=gamma)
    margin = margins.transformed(
        "alpha_shaped",
        "(r(p_w/|w|) - r(p_l/|l|))",
        _difference_of(_alpha_shape(alpha)),
        adjusted=False,
        normalized=True,
        separates=1.0 if not isinstance(alpha, Tensor) and alpha > 0 else None,  # slope e^(-alpha m), m <= 0
    )
    return pair_term("alphapo", margin, links.logistic, scale=beta, offset=gamma)

"""Objectives on labelled pairs: a link of the reference-adjusted or the plain margin."""

from __future__ import annotations

from typing import Literal

from objectives import links, margins
from objectives.domains import NonNegative, Positive, PositiveNumber, PositiveSmoothing, Smoothing
from objectives.links import Link
from objectives.registry import register
from objectives.regularisers import chosen_nll_term, forward_kl_term
from objectives.strength import Strength
from objectives.terms import Term, pair_term


@register(
    "dpo",
    formula="L(beta D), L(z) = -log s(z), D the reference-adjusted margin",
    paper="arXiv 2305.18290",
    equation="eq. 7",
    defaults="beta: 0.1, the paper's usual value (0.5 for summarisation)",
    optimum="beta D = logit p on every pair; under Bradley-Terry pi_ref exp(r/beta)/Z. No finite minimiser where a response always wins",
    watch="as p -> 1 the optimum tends to a point mass for every beta; blind to mass moving between parts of the pair graph",
    differences="cdpo and robust_dpo smooth the labels; ipo, rso_hinge, exo_pref and gpo change the link; simpo, cpo and rdpo the margin",
)
def dpo(beta: Positive = 0.1) -> Term:
    """Direct preference optimisation: logistic loss on the implicit reward margin."""
    return pair_term("dpo", margins.reference_adjusted, links.logistic, scale=beta)


@register(
    "cdpo",
    formula="(1 - e) L(beta D) + e L(-beta D), e the label smoothing",
    paper="note on noisy DPO labels, E. Mitchell 2023",
    defaults="beta as dpo; label_smoothing 0.1: one label in ten flipped, a value in use",
    optimum="beta D = logit((1 - e) p + e (1 - p)) on every pair: finite at p = 1 too",
    watch="at e = 0 it is dpo; the smoothing bounds every margin by logit(1 - e)/beta, along a chain of wins they still add up",
    differences="trl: loss_type 'sigmoid' with label_smoothing (where its version has one)",
)
def cdpo(beta: Positive = 0.1, label_smoothing: Smoothing = 0.1) -> Term:
    """Conservative DPO: labels are taken to be wrong with a known probability."""
    return pair_term("cdpo", margins.reference_adjusted, links.smoothed_logistic(label_smoothing), scale=beta)


@register(
    "robust_dpo",
    formula="[(1 - e) L(beta D) - e L(-beta D)] / (1 - 2 e), e the label smoothing",
    paper="arXiv 2403.00409",
    defaults="beta as dpo; label_smoothing 0.1",
    optimum="dpo's for the clean labels: beta D = logit((p - e)/(1 - 2 e)) for e < p < 1 - e; none where p lies outside",
    watch="unbounded below for e > 0: labels cleaner than e (p > 1 - e) send the margin to infinity faster than dpo does",
    differences="an unbiased estimate of dpo's loss under clean labels; cdpo is the biased, bounded form",
)
def robust_dpo(beta: Positive = 0.1, label_smoothing: Smoothing = 0.1) -> Term:
    """Robust DPO: the loss that equals DPO's on clean labels in expectation over flips."""
    return pair_term("robust_dpo", margins.reference_adjusted, links.robust_logistic(label_smoothing), scale=beta)


@register(
    "ipo",
    formula="(D - 1/(2 tau))^2; aggregation='mean': each log-ratio divided by its response's length",
    paper="arXiv 2310.12036",
    equation="eq. 17",
    defaults="tau: 0.1, one of the paper's values",
    optimum="weighted least squares D_ab = (2 p_ab - 1)/(2 tau) on the pair graph: finite at p = 1 too",
    watch="margins add up along a chain of wins and pass 1/(2 tau); blind to mass moving between parts of the pair graph",
    differences="sum as printed in the paper; trl's DPOTrainer averages over tokens (aggregation='mean'), saying the authors "
    "confirmed it",
    strength=Strength("tau"),
)
def ipo(tau: Positive = 0.1, aggregation: Literal["sum", "mean"] = "sum") -> Term:
    """Identity preference optimisation: squared distance of the margin to 1/(2 tau)."""
    margin = margins.select(adjusted=True, normalized=aggregation == "mean")
    return pair_term("ipo", margin, links.square, offset=0.5 / tau)


@register(
    "rso_hinge",
    formula="max(0, 1 - gamma D)",
    paper="arXiv 2309.06657",
    equation="the hinge-norm loss",
    defaults="gamma: 0.05, the paper's",
    optimum="gamma D = 1 on deterministic pairs where a ranking allows it; at p < 1 the sign of 2p - 1, not its size",
    watch="meant for pairs drawn by statistical rejection sampling (an outer loop, not part of the loss); flat beyond the margin",
    differences="'norm' in its name means divided by pi_ref, not by length; without the reference it is slic_hf's hinge; trl: "
    "loss_type 'hinge'",
    strength=Strength("gamma"),
)
def rso_hinge(gamma: Positive = 0.05) -> Term:
    """Hinge loss on the reference-adjusted margin."""
    return pair_term("rso_hinge", margins.reference_adjusted, links.hinge, scale=gamma)


@register(
    "exo_pref",
    formula="KL(q || p) with q = (s(beta D), s(-beta D)) and p = (1 - e, e), e the label smoothing",
    paper="arXiv 2402.00856",
    equation="eq. 16",
    defaults="beta as dpo; label_smoothing 1e-3, the paper's advice",
    optimum="beta D = (2 p - 1) logit(1 - e) on every pair: finite for every p",
    watch="not convex, and flat where the margin is badly wrong: a pair that starts far on the wrong side hardly moves",
    differences="trl: loss_type 'exo_pair'",
)
def exo_pref(beta: Positive = 0.1, label_smoothing: PositiveSmoothing = 1e-3) -> Term:
    """Efficient exact optimisation on pairs: reverse KL from the policy's label to the smoothed one."""
    return pair_term("exo_pref", margins.reference_adjusted, links.reverse_kl(label_smoothing), scale=beta)


@register(
    "discopop",
    formula="(1 - m) L(z) + m e^-z, z = beta D, m = s(z/temperature)",
    paper="arXiv 2406.08414",
    equation="eq. 5",
    defaults="beta and temperature: 0.05, the paper's",
    optimum="none in closed form: the loss has a local minimum at negative margins",
    watch="not monotone and not convex: at temperature < 1 a slightly wrong margin costs more than a badly wrong one",
    differences="trl: loss_type 'discopop', discopop_tau for temperature",
)
def discopop(beta: Positive = 0.05, temperature: PositiveNumber = 0.05) -> Term:
    """The loss that a language model discovered: a blend of logistic and exponential."""
    return pair_term("discopop", margins.reference_adjusted, links.blended_exponential(temperature), scale=beta)


GPO_LINKS: dict[str, tuple[Link, float]] = {
    "logistic": (links.logistic, 0.0),
    "hinge": (links.hinge, 0.0),
    "square": (links.square, 1.0),
    "exponential": (links.exponential, 0.0),
    "truncated_square": (links.truncated_square, 0.0),
    "savage": (links.savage, 0.0),
}


@register(
    "gpo",
    formula="f(beta D); f: logistic log(1 + e^-z), hinge max(0, 1 - z), square (z - 1)^2, exponential e^-z, "
    "truncated_square max(0, 1 - z)^2, savage 1/(1 + e^z)^2",
    paper="arXiv 2402.05749",
    equation="its table of losses",
    defaults="beta as dpo; link 'logistic', with which it is dpo",
    optimum="by link: logistic as dpo; square as ipo with tau = beta/2; exponential beta D = logit(p)/2; "
    "truncated_square beta D = 2p - 1; savage beta D = logit p",
    watch="all that fall for ever (logistic, exponential, savage) have no finite minimiser where a response always wins; "
    "savage is not convex",
    differences="one family: logistic is dpo, hinge is rso_hinge, square is 4 tau^2 ipo at beta = 2 tau",
)
def gpo(
    beta: Positive = 0.1,
    link: Literal["logistic", "hinge", "square", "exponential", "truncated_square", "savage"] = "logistic",
) -> Term:
    """Generalised preference optimisation: any convex-analysis classic as the link."""
    function, offset = GPO_LINKS[link]
    return pair_term("gpo", margins.reference_adjusted, function, scale=beta, offset=offset)


@register(
    "slic_hf",
    formula="max(0, delta - d) + lam * NLL of reference text (target='chosen': of the chosen response), d the plain margin",
    paper="arXiv 2305.10425",
    equation="its max-margin loss with the regularising term",
    defaults="delta 1 and lam 0.1: values in use; the paper tunes them",
    optimum="finite with the reference term: every response keeps mass",
    watch="d is a difference of whole log-probs, tens of nats for sequences: delta = 1 is then reached at once",
    differences="the paper's target is reference text, not the chosen response; many libraries take the chosen (target='chosen') "
    "or no such term",
    strength=Strength("lam"),
)
def slic_hf(
    delta: Positive = 1.0, lam: NonNegative = 0.1, target: Literal["reference", "chosen"] = "reference"
) -> tuple[Term, ...]:
    """Sequence likelihood calibration: a hinge on the plain margin, held by likelihood of reference text."""
    rank = pair_term("slic_hf", margins.plain, links.hinge, offset=delta - 1.0)
    regulariser = forward_kl_term(lam, "sampled") if target == "reference" else chosen_nll_term(lam, per_token=False)
    return rank, regulariser


@register(
    "cpo",
    formula="L(beta d) + alpha * (-p_w/|w|), d the plain margin",
    paper="arXiv 2401.08417",
    equation="eq. 3, as trl cites it, with its likelihood term",
    defaults="beta 0.1 and alpha 1, the paper's",
    optimum="not in closed form; the likelihood term alone keeps it finite where every response is chosen sometimes",
    watch="no reference: nothing but the chosen responses' likelihood holds the policy",
    differences="likelihood per token here and in trl's CPOTrainer (which averages over all tokens of the batch, cpo_alpha); the "
    "paper writes a sum",
    strength=Strength("alpha"),
)
def cpo(beta: Positive = 0.1, alpha: NonNegative = 1.0) -> tuple[Term, ...]:
    """Contrastive preference optimisation: DPO with a uniform reference, plus likelihood of the chosen."""
    return pair_term("cpo", margins.plain, links.logistic, scale=beta), chosen_nll_term(alpha, per_token=True)


@register(
    "simpo",
    formula="L(beta (p_w/|w| - p_l/|l|) - gamma)",
    paper="arXiv 2405.14734",
    equation="the SimPO objective",
    defaults="beta 2 and gamma 1 (ratio 0.5): within the paper's ranges",
    optimum="on a pair, with z = beta times the per-token margin: p s(gamma - z) = (1 - p) s(gamma + z), beyond logit p for gamma > 0; "
    "no finite minimiser at p = 1",
    watch="no reference and no KL: in a bandit the reference does not enter at all",
    differences="gamma is absolute; some libraries take the ratio gamma/beta (trl's simpo_gamma is absolute, Liger's gamma too)",
)
def simpo(beta: Positive = 2.0, gamma: NonNegative = 1.0) -> Term:
    """Simple preference optimisation: per-token log-probs as rewards, with a target margin."""
    return pair_term("simpo", margins.length_normalized, links.logistic, scale=beta, offset=gamma)


@register(
    "rdpo",
    formula="L(beta D + alpha (|w| - |l|))",
    paper="arXiv 2403.19159",
    equation="the length-regularised loss",
    defaults="beta as dpo; alpha 0.01 nats a token, a value in use",
    optimum="beta D = logit p - alpha (|w| - |l|): dpo's optimum with the reward r - alpha * length",
    watch="in a bandit all lengths are 1, so it is dpo there",
)
def rdpo(beta: Positive = 0.1, alpha: NonNegative = 0.01) -> Term:
    """Length-regularised DPO: a reward that charges for every token."""
    return pair_term("rdpo", margins.length_shifted(alpha / beta), links.logistic, scale=beta)


@register(
    "rpo",
    formula="L(beta D) - eta beta p_w; aggregation='mean': - eta p_w/|w|",
    paper="arXiv 2405.16436",
    equation="its practical objective: DPO plus an imitation loss",
    defaults="beta 0.01 and eta 0.005, the paper's",
    optimum="not in closed form; finite where every response is chosen sometimes",
    watch="at eta = 0 it is dpo; holds up the chosen responses only, not the reference's support",
    differences="sum with factor beta as in the paper; older trl's rpo_alpha takes the token mean without beta (aggregation='mean')",
)
def rpo(
    beta: Positive = 0.01, eta: NonNegative = 0.005, aggregation: Literal["sum", "mean"] = "sum"
) -> tuple[Term, ...]:
    """Regularised preference optimisation: DPO with an adversarial reward's imitation term."""
    per_token = aggregation == "mean"
    likelihood = chosen_nll_term(eta if per_token else eta * beta, per_token=per_token)
    return pair_term("rpo", margins.reference_adjusted, links.logistic, scale=beta), likelihood


RISING = links.two_sided(links.error_probability, 0.0, 1.0, name="sigmoid", convex=False)


@register(
    "apo_zero",
    formula="1 - s(beta a) + s(beta b)",
    paper="arXiv 2408.06266",
    equation="eq. 7",
    defaults="beta as dpo",
    optimum="none finite on deterministic pairs: a -> +inf, b -> -inf",
    watch="for chosen responses better than the model's own; bounded, so gradients vanish far from the reference",
    differences="anchored preference optimisation, not to be mixed up with the outer loop 'accelerated'; trl: loss_type 'apo_zero'",
)
def apo_zero(beta: Positive = 0.1) -> tuple[Term, ...]:
    """Anchored preference optimisation: chosen up, rejected down, each on its own."""
    return (
        pair_term("apo_zero", margins.chosen_ratio, links.error_probability, scale=beta),
        pair_term("apo_zero", margins.rejected_ratio, links.error_probability, scale=beta),
    )


@register(
    "apo_down",
    formula="s(beta a) + 1 - s(beta D)",
    paper="arXiv 2408.06266",
    equation="eq. 8",
    defaults="beta as dpo",
    optimum="none finite on deterministic pairs: both responses fall, the rejected one faster",
    watch="for chosen responses worse than the model's own; bounded, so gradients vanish far from the reference",
    differences="trl: loss_type 'apo_down'",
)
def apo_down(beta: Positive = 0.1) -> tuple[Term, ...]:
    """Anchored preference optimisation: both down, the rejected further."""
    return (
        pair_term("apo_down", margins.chosen_ratio, RISING, scale=beta),
        pair_term("apo_down", margins.reference_adjusted, links.error_probability, scale=beta),
    )


@register(
    "sppo",
    formula="(a - 1/(2 beta))^2 + (b + 1/(2 beta))^2; target='estimated': (a - (P - 1/2)/beta)^2 + (b - (1/2 - P)/beta)^2, "
    "P the estimated win rate",
    paper="arXiv 2405.00675",
    equation="eq. 4.7, with hard win rates by default",
    defaults="beta 1e-3, the paper's; target 'hard', as most libraries have it",
    optimum="least squares of log(pi/pi_ref) towards (P(y wins) - 1/2)/beta: finite for every p",
    watch="the squares are of whole log-ratios: at beta = 1e-3 the targets are +-500 nats",
    differences="the paper's targets come from an estimated win rate (target='estimated'), here 1 for the chosen, 0 for the rejected; trl: "
    "loss_type 'sppo_hard'",
)
def sppo(beta: Positive = 1e-3, target: Literal["hard", "estimated"] = "hard") -> tuple[Term, ...]:
    """Self-play preference optimisation: each log-ratio regressed on its win rate."""
    ratios = (margins.chosen_ratio, margins.rejected_ratio)
    if target == "estimated":
        return tuple(pair_term("sppo", margins.against_win_rate(ratio, beta), links.square) for ratio in ratios)
    return tuple(pair_term("sppo", ratio, links.square, offset=0.5 / beta) for ratio in ratios)

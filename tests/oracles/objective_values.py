"""Losses of single pairs in probabilities, at 60 digits: written from the papers' definitions, not from the code under test.

Where the code works with log-probs, margins and links, this works with policies' probabilities, odds and Bernoulli distributions,
so that a shared slip of sign or scale would show.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mpmath import exp, log, mp, mpf

mp.dps = 60


@dataclass(frozen=True)
class Pair:
    """Log-probs of a chosen (w) and a rejected (l) response under policy and reference, and their lengths in tokens."""

    w: float
    l: float  # noqa: E741 - the papers' name
    ref_w: float
    ref_l: float
    len_w: int
    len_l: int

    @property
    def ratio_w(self) -> mpf:
        """pi(w)/pi_ref(w)."""
        return exp(mpf(self.w)) / exp(mpf(self.ref_w))

    @property
    def ratio_l(self) -> mpf:
        """pi(l)/pi_ref(l)."""
        return exp(mpf(self.l)) / exp(mpf(self.ref_l))

    @property
    def token_w(self) -> mpf:
        """Geometric mean probability of a token of the chosen response."""
        return exp(mpf(self.w)) ** (mpf(1) / self.len_w)

    @property
    def token_l(self) -> mpf:
        """Geometric mean probability of a token of the rejected response."""
        return exp(mpf(self.l)) ** (mpf(1) / self.len_l)


WIN_RATE = 0.75
WORKED = Pair(-9.0, -14.5, -11.0, -13.8, 6, 9)


def win(strength_w: mpf, strength_l: mpf) -> mpf:
    """Bradley-Terry: the probability that the first of two strengths wins."""
    return strength_w / (strength_w + strength_l)


def implicit_win(pair: Pair, beta: float) -> mpf:
    """The label probability that DPO's implicit rewards give the chosen response."""
    return win(pair.ratio_w ** mpf(beta), pair.ratio_l ** mpf(beta))


def against_reference(ratio: mpf, beta: float) -> mpf:
    """Probability that a response is told apart from the reference's by odds ratio^beta."""
    return ratio ** mpf(beta) / (1 + ratio ** mpf(beta))


def chi_squared_win(pair: Pair, beta: float, clip: float | None) -> mpf:
    margin = mpf(beta) * ((pair.ratio_w + log(pair.ratio_w)) - (pair.ratio_l + log(pair.ratio_l)))
    if clip is not None:
        margin = min(max(margin, -mpf(clip)), mpf(clip))
    return 1 / (1 + exp(-margin))


def f_divergence_win(pair: Pair, beta: float, slope: Callable[[mpf], mpf]) -> mpf:
    """DPO's label probability with f' of the ratio for its logarithm; f' taken from f by mpmath's numerical derivative."""
    return win(exp(mpf(beta) * slope(pair.ratio_w)), exp(mpf(beta) * slope(pair.ratio_l)))


def derivative_of(f: Callable[[mpf], mpf]) -> Callable[[mpf], mpf]:
    return lambda u: mp.diff(f, u)


def alpha_divergence(alpha: float) -> Callable[[mpf], mpf]:
    """f(u) = (u^(1-alpha) - (1-alpha) u - alpha) / (alpha (alpha - 1))."""
    a = mpf(alpha)
    return lambda u: (u ** (1 - a) - (1 - a) * u - a) / (a * (a - 1))


def jensen_shannon(u: mpf) -> mpf:
    return u * log(u) - (u + 1) * log((u + 1) / 2)


def exo_pref(pair: Pair, beta: float, smoothing: float) -> mpf:
    q, p = implicit_win(pair, beta), 1 - mpf(smoothing)
    return q * log(q / p) + (1 - q) * log((1 - q) / (1 - p))


def discopop(pair: Pair, beta: float, temperature: float) -> mpf:
    odds = (pair.ratio_w / pair.ratio_l) ** mpf(beta)
    mix = against_reference(odds, 1 / mpf(temperature))
    return (1 - mix) * -log(implicit_win(pair, beta)) + mix / odds


def aligned_weight(tokens: Sequence[float], collisions: Sequence[float]) -> mpf:
    """WPO's weight of one response: geometric mean over tokens of pi(y_t) / sum_v pi(v)^2."""
    product = mpf(1)
    for token, collision in zip(tokens, collisions, strict=True):
        product *= exp(mpf(token)) / exp(mpf(collision))
    return product ** (mpf(1) / len(tokens))


def softmax(values: Sequence[mpf]) -> list[mpf]:
    strengths = [exp(value) for value in values]
    return [strength / sum(strengths) for strength in strengths]


def nca(ratios: Sequence[mpf], target: Sequence[mpf], beta: float) -> mpf:
    """Each candidate told apart from noise: data weighted by the target, noise uniformly."""
    right = [against_reference(ratio, beta) for ratio in ratios]
    data = sum(weight * log(probability) for weight, probability in zip(target, right, strict=True))
    noise = sum(log(1 - probability) for probability in right) / len(right)
    return -data - noise


# label -> loss of a pair. Every pair objective of the registry that looks at whole responses has its row here.
PAIR_LOSSES: dict[str, Callable[[Pair], mpf]] = {
    "dpo(beta=0.5)": lambda x: -log(implicit_win(x, 0.5)),
    "cdpo(beta=0.5, label_smoothing=0.1)": lambda x: (
        -mpf("0.9") * log(implicit_win(x, 0.5)) - mpf("0.1") * log(1 - implicit_win(x, 0.5))
    ),
    "robust_dpo(beta=0.5, label_smoothing=0.1)": lambda x: (
        (-mpf("0.9") * log(implicit_win(x, 0.5)) + mpf("0.1") * log(1 - implicit_win(x, 0.5))) / mpf("0.8")
    ),
    "ipo(tau=0.5)": lambda x: (log(x.ratio_w / x.ratio_l) - 1) ** 2,
    "ipo(tau=0.5, aggregation='mean')": lambda x: (
        (log(x.ratio_w ** (mpf(1) / x.len_w) / x.ratio_l ** (mpf(1) / x.len_l)) - 1) ** 2
    ),
    "maxpo(beta=0)": lambda x: -win(exp(mpf(x.w)), exp(mpf(x.l))),
    "maxpo(beta=0, reference_adjusted=True)": lambda x: -win(x.ratio_w, x.ratio_l),
    "maxpo(beta=0, temperature=4)": lambda x: -win(exp(mpf(x.w) / 4), exp(mpf(x.l) / 4)),
    "maxpo(beta=0, length_normalized=True)": lambda x: -win(x.token_w, x.token_l),
    "slic_hf(delta=6, lam=0.1, target='chosen')": lambda x: (
        max(mpf(0), 6 - log(exp(mpf(x.w)) / exp(mpf(x.l)))) - log(exp(mpf(x.w))) / 10
    ),
    "rso_hinge(gamma=0.05)": lambda x: max(mpf(0), 1 - log(x.ratio_w / x.ratio_l) * mpf("0.05")),
    "exo_pref(beta=0.5, label_smoothing=0.001)": lambda x: exo_pref(x, 0.5, 0.001),
    "infonca(beta=0.5)": lambda x: -log(softmax([mpf("0.5") * log(x.ratio_w), mpf("0.5") * log(x.ratio_l)])[0]),
    "nca(beta=0.5)": lambda x: nca([x.ratio_w, x.ratio_l], [mpf(1), mpf(0)], 0.5),
    "bco(beta=0.5, delta=0.3)": lambda x: (
        -log(against_reference(x.ratio_w * exp(mpf("-0.6")), 0.5))
        - log(1 - against_reference(x.ratio_l * exp(mpf("-0.6")), 0.5))
    ),
    "kto(beta=0.5, z0=0.3)": lambda x: (
        1 - against_reference(x.ratio_w * exp(mpf("-0.3")), 0.5) + against_reference(x.ratio_l * exp(mpf("-0.3")), 0.5)
    ),
    "sppo(beta=0.5)": lambda x: (log(x.ratio_w) - 1) ** 2 + (log(x.ratio_l) + 1) ** 2,
    "sppo(beta=0.5, target='estimated')": lambda x: (
        (log(x.ratio_w) - 2 * (mpf(WIN_RATE) - mpf("0.5"))) ** 2
        + (log(x.ratio_l) - 2 * (mpf("0.5") - mpf(WIN_RATE))) ** 2
    ),
    "apo_zero(beta=0.5)": lambda x: 1 - against_reference(x.ratio_w, 0.5) + against_reference(x.ratio_l, 0.5),
    "apo_down(beta=0.5)": lambda x: against_reference(x.ratio_w, 0.5) + 1 - implicit_win(x, 0.5),
    "discopop(beta=0.5, temperature=0.05)": lambda x: discopop(x, 0.5, 0.05),
    "simpo(beta=2, gamma=1)": lambda x: -log(win(x.token_w**2, x.token_l**2 * exp(mpf(1)))),
    "orpo(lam=0.1)": lambda x: (
        -log(x.token_w) - log(win(x.token_w / (1 - x.token_w), x.token_l / (1 - x.token_l))) / 10
    ),
    "cpo(beta=0.1, alpha=1)": lambda x: (
        -log(win(exp(mpf(x.w)) ** mpf("0.1"), exp(mpf(x.l)) ** mpf("0.1"))) - log(x.token_w)
    ),
    "chipo(beta=0.5)": lambda x: -log(chi_squared_win(x, 0.5, None)),
    "chipo(beta=0.5, clip=1)": lambda x: -log(chi_squared_win(x, 0.5, 1.0)),
    "rpo(beta=0.5, eta=0.005)": lambda x: -log(implicit_win(x, 0.5)) - mpf("0.0025") * mpf(x.w),
    "rpo(beta=0.5, eta=0.005, aggregation='mean')": lambda x: (
        -log(implicit_win(x, 0.5)) - mpf("0.005") * log(x.token_w)
    ),
    "minor_dpo(beta=0.5)": lambda x: -log(win(x.ratio_w ** mpf("0.5"), max(mpf(1), x.ratio_l) ** mpf("0.5"))),
    "dpop(beta=0.5, lam=5)": lambda x: (
        -log(win(x.ratio_w ** mpf("0.5") * min(mpf(1), x.ratio_w) ** mpf("2.5"), x.ratio_l ** mpf("0.5")))
    ),
    "fdpo(beta=0.5)": lambda x: -log(f_divergence_win(x, 0.5, derivative_of(lambda u: u * log(u)))),
    "fdpo(beta=0.5, divergence='forward_kl')": lambda x: (
        -log(f_divergence_win(x, 0.5, derivative_of(lambda u: -log(u))))
    ),
    "fdpo(beta=0.5, divergence='js')": lambda x: -log(f_divergence_win(x, 0.5, derivative_of(jensen_shannon))),
    "fdpo(beta=0.5, divergence='alpha', alpha=0.3)": lambda x: (
        -log(f_divergence_win(x, 0.5, derivative_of(alpha_divergence(0.3))))
    ),
    "gpo(beta=0.5)": lambda x: log(1 + (x.ratio_l / x.ratio_w) ** mpf("0.5")),
    "gpo(beta=0.5, link='hinge')": lambda x: max(mpf(0), 1 - log(x.ratio_w / x.ratio_l) / 2),
    "gpo(beta=0.5, link='square')": lambda x: (log(x.ratio_w / x.ratio_l) / 2 - 1) ** 2,
    "gpo(beta=0.5, link='exponential')": lambda x: (x.ratio_l / x.ratio_w) ** mpf("0.5"),
    "gpo(beta=0.5, link='truncated_square')": lambda x: max(mpf(0), 1 - log(x.ratio_w / x.ratio_l) / 2) ** 2,
    "gpo(beta=0.5, link='savage')": lambda x: (1 - implicit_win(x, 0.5)) ** 2,
    "rdpo(beta=0.5, alpha=0.01)": lambda x: (
        -log(win(x.ratio_w ** mpf("0.5") * exp(mpf(x.len_w) / 100), x.ratio_l ** mpf("0.5") * exp(mpf(x.len_l) / 100)))
    ),
    "alphapo(beta=2, gamma=1, alpha=0.25)": lambda x: (
        -log(win(exp(2 * (1 - x.token_w ** mpf("-0.25")) * 4 - 1), exp(2 * (1 - x.token_l ** mpf("-0.25")) * 4)))
    ),
    "alphapo(beta=2, gamma=1, alpha=0)": lambda x: -log(win(x.token_w**2, x.token_l**2 * exp(mpf(1)))),
    "beta_dpo(beta=0.5, alpha=0.6, threshold=1)": lambda x: (
        -log(
            implicit_win(x, float(max(mpf("0.001"), mpf("0.5") * (1 + mpf("0.6") * (log(x.ratio_w / x.ratio_l) - 1)))))
        )
    ),
    "aot(beta=0.5)": lambda x: -log(implicit_win(x, 0.5)),
    "sft": lambda x: -log(x.token_w),
    "chosen_nll(weight=0.5)": lambda x: -mpf(x.w) / 2,
}

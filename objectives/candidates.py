"""Objectives on K scored candidates per prompt. A labelled pair is two candidates whose target is one-hot."""

from __future__ import annotations

from torch import Tensor, log_softmax, softmax
from torch.nn.functional import logsigmoid

from objectives import links, margins
from objectives.batches import CandidateBatch
from objectives.domains import Positive
from objectives.registry import register
from objectives.strength import Strength
from objectives.terms import Term, pair_term
from objectives.values import Value, per_example

FAMILY = "candidates"
NEEDS = frozenset({"ref_logps", "rewards"})


def _per_candidate(value: Value) -> Value:
    """A hyper-parameter made to broadcast over examples and candidates, (..., N, K)."""
    return per_example(per_example(value))


def _implicit_rewards(batch: CandidateBatch, beta: Value, objective: str) -> Tensor:
    return _per_candidate(beta) * (batch.logps - batch.require("ref_logps", objective))


def _target(batch: CandidateBatch, temperature: Value, objective: str) -> Tensor:
    if batch.targets is not None:
        return batch.targets
    return softmax(batch.require("rewards", objective) / _per_candidate(temperature), dim=-1)


@register(
    "exo_rw",
    family=FAMILY,
    formula="sum_i q_i (log q_i - log p_i), q = softmax_i(beta_policy a_i), p = softmax_i(R_i/beta_reward)",
    paper="arXiv 2402.00856",
    equation="its reward-model form",
    defaults="0.5 and 0.5, values in use: their product is the KL strength",
    optimum="pi proportional to pi_ref exp(R/(beta_policy beta_reward)) on the candidates",
    watch="reverse KL: not convex, and candidates with no mass under the policy teach nothing",
    differences="needs rewards: a pair has none, its form on pairs is exo_pref",
    strength=Strength("beta_policy"),
)
def exo_rw(beta_policy: Positive = 0.5, beta_reward: Positive = 0.5) -> Term:
    """Efficient exact optimisation: reverse KL from the policy to the rewards' distribution over the candidates."""

    def loss(batch: CandidateBatch) -> Tensor:
        log_q = log_softmax(_implicit_rewards(batch, beta_policy, "exo_rw"), dim=-1)
        log_p = log_softmax(batch.require("rewards", "exo_rw") / _per_candidate(beta_reward), dim=-1)
        return (log_q.exp() * (log_q - log_p)).sum(-1)

    return Term("exo_rw", "candidates", loss, needs=NEEDS)


@register(
    "infonca",
    family=FAMILY,
    formula="-sum_i softmax(R/alpha)_i log softmax(beta a)_i; on pairs the target is one-hot",
    paper="arXiv 2402.05369",
    equation="the InfoNCA loss",
    defaults="0.01 and 0.01, the paper's",
    optimum="pi proportional to pi_ref exp(R/(alpha beta)) on the candidates",
    watch="only differences of log-ratios count: the chosen response's likelihood may fall as in dpo",
    differences="with two candidates and a one-hot target it is dpo",
    strength=Strength("beta", low=0.1, high=1e4),
)
def infonca(beta: Positive = 0.01, alpha: Positive = 0.01) -> Term:
    """Cross entropy of the policy's to the rewards' distribution over the candidates."""

    def loss(batch: CandidateBatch) -> Tensor:
        target = _target(batch, alpha, "infonca")
        return -(target * log_softmax(_implicit_rewards(batch, beta, "infonca"), dim=-1)).sum(-1)

    # Two candidates and a one-hot target: -log of the first one's share of e^(beta a) + e^(beta b).
    one_hot = pair_term("infonca", margins.reference_adjusted, links.logistic, scale=beta)
    return Term("infonca", "candidates", loss, needs=NEEDS, accepts_pairs=True, on_pairs=one_hot)


@register(
    "nca",
    family=FAMILY,
    formula="-sum_i softmax(R/alpha)_i log s(r_i) - (1/K) sum_i log s(-r_i), r = beta a; "
    "on pairs the target is one-hot: L(r_w) + L(-r_w)/2 + L(-r_l)/2",
    paper="arXiv 2402.05369",
    equation="the NCA loss",
    defaults="0.01 and 0.01, the paper's",
    optimum="s(r_i) = target_i/(target_i + 1/K): on a pair always won r_w = ln 2 and r_l -> -inf",
    watch="fixes each log-ratio, not their difference: the chosen response's likelihood does not fall",
    differences="trl: loss_type 'nca_pair'",
)
def nca(beta: Positive = 0.01, alpha: Positive = 0.01) -> Term:
    """Noise-contrastive alignment: each candidate against the reference as noise."""

    def loss(batch: CandidateBatch) -> Tensor:
        rewards = _implicit_rewards(batch, beta, "nca")
        data = (_target(batch, alpha, "nca") * logsigmoid(rewards)).sum(-1)
        return -data - logsigmoid(-rewards).mean(-1)

    return Term("nca", "candidates", loss, needs=NEEDS, accepts_pairs=True)

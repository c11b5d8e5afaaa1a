"""Regularisers: terms that hold the policy near the reference, its data or its pretraining; they compose with any objective by ``+``."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from objectives.batches import PairBatch, SampleBatch
from objectives.domains import NonNegative
from objectives.registry import get, register
from objectives.strength import Strength
from objectives.terms import Objective, Term
from objectives.values import Value

FAMILY = "regulariser"


def forward_kl_term(weight: Value, tokens: str) -> Term:
    """weight * E_{y ~ pi_ref}: the sampled form is the forward KL up to the reference's entropy, a constant; the full form is the KL."""

    def sampled(batch: SampleBatch) -> Tensor:
        return -batch.logps

    def full(batch: SampleBatch) -> Tensor:
        return batch.require("token_kl", "forward_kl(tokens='full')")

    is_full = tokens == "full"
    needs = frozenset({"reference_token_kl"}) if is_full else frozenset[str]()
    return Term("forward_kl", "reference_samples", full if is_full else sampled, weight, needs)


def pretraining_term(weight: Value) -> Term:
    """weight * E_{pretraining text}[-log pi(text)]."""

    def loss(batch: SampleBatch) -> Tensor:
        return -batch.logps

    return Term("pretraining", "pretraining", loss, weight)


def chosen_nll_term(weight: Value, *, per_token: bool) -> Term:
    """weight * E_pairs[-p_w], or of the mean over the chosen response's tokens."""

    def loss(batch: PairBatch) -> Tensor:
        return -batch.chosen_logps / batch.require("chosen_lengths", "chosen_nll") if per_token else -batch.chosen_logps

    return Term("chosen_nll", "pairs", loss, weight, frozenset({"lengths"}) if per_token else frozenset())


@register(
    "forward_kl",
    family=FAMILY,
    formula="tokens='sampled': -log pi(y|x); 'full': sum_t KL(pi_ref(.|prefix) || pi(.|prefix)); y ~ pi_ref in advance",
    paper="arXiv 2312.16430",
    optimum="pi_ref; with N samples, their empirical distribution (an action never sampled loses all its mass)",
    watch="use fresh samples: repeated passes of the sampled form memorise them. The full form has zero gradient at pi = pi_ref",
    strength=Strength("weight"),
)
def _forward_kl(weight: NonNegative = 0.1, tokens: Literal["sampled", "full"] = "sampled") -> Term:
    """Forward KL(pi_ref || pi) on samples of the reference: no reference model while optimising."""
    return forward_kl_term(weight, tokens)


@register(
    "chosen_nll",
    family=FAMILY,
    formula="-p_w; per_token=True: -p_w/|w|",
    paper="arXiv 2405.16436",
    watch="holds up the chosen response's likelihood, not the reference's support",
    differences="summed over the tokens, or their mean (per_token=True)",
    strength=Strength("weight"),
)
def _chosen_nll(weight: NonNegative = 0.1, per_token: bool = False) -> Term:
    """Negative log-likelihood of the chosen response."""

    return chosen_nll_term(weight, per_token=per_token)


@register(
    "sft",
    family=FAMILY,
    formula="-p_w/|w|",
    paper="standard",
    optimum="the distribution of the chosen responses",
    watch="takes no notice of the rejected responses",
    differences="the mean of per-response token means; trl's loss_type 'sft' is the mean over all tokens of the batch",
)
def _sft() -> Term:
    """Supervised fine-tuning: negative log-likelihood of the chosen response, per token."""
    return chosen_nll_term(1.0, per_token=True)


@register(
    "pretraining",
    family=FAMILY,
    formula="-log pi(text), text ~ pretraining data",
    paper="arXiv 2312.16430",
    watch="a bandit has no pretraining text and says so",
    strength=Strength("weight"),
)
def _pretraining(weight: NonNegative = 0.1) -> Term:
    """Negative log-likelihood of pretraining text."""
    return pretraining_term(weight)


@register(
    "reverse_kl",
    family=FAMILY,
    formula="sum_t KL(pi(.|prefix) || pi_ref(.|prefix)) along y ~ pi",
    paper="standard",
    equation="the KL term of RLHF, e.g. arXiv 2203.02155",
    defaults="weight 0.1, a usual strength",
    optimum="pi_ref; with expected reward r, pi_ref exp(r/weight)/Z",
    watch="needs samples of the policy while training (a bandit enumerates them). Bounded on finitely many actions, so it does not keep "
    "dpo with beta < 1 finite at p = 1. On sequences the gradient by way of the drawn prefixes is left out",
    strength=Strength("weight"),
)
def _reverse_kl(weight: NonNegative = 0.1) -> Term:
    """Reverse KL(pi || pi_ref) on samples of the policy, its expectation over each next token taken exactly."""

    def loss(batch: SampleBatch) -> Tensor:
        return batch.require("policy_kl", "reverse_kl")

    return Term("reverse_kl", "rollouts", loss, weight, frozenset({"policy_kl"}))


def forward_kl(weight: Value = 0.1, tokens: str = "sampled") -> Objective:
    """``get("forward_kl", ...)``: forward KL on reference samples, to be added to an objective. Raises ObjectiveError as `get` does."""
    return get("forward_kl", weight=weight, tokens=tokens)


def chosen_nll(weight: Value = 0.1, per_token: bool = False) -> Objective:
    """``get("chosen_nll", ...)``: likelihood of the chosen response, to be added to an objective. Raises ObjectiveError as `get` does."""
    return get("chosen_nll", weight=weight, per_token=per_token)


def pretraining(weight: Value = 0.1) -> Objective:
    """``get("pretraining", ...)``: likelihood of pretraining text, to be added to an objective. Raises ObjectiveError as `get` does."""
    return get("pretraining", weight=weight)


def reverse_kl(weight: Value = 0.1) -> Objective:
    """``get("reverse_kl", ...)``: reverse KL on rollouts, to be added to an objective. Raises ObjectiveError as `get` does."""
    return get("reverse_kl", weight=weight)


__all__: list[Any] = ["chosen_nll", "forward_kl", "pretraining", "reverse_kl"]

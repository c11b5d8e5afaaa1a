"""Which numbers of transformers' Trainer and of trl mean the same as ours. Every other one keeps its name behind its source's.

``loss``, ``grad_norm`` and ``learning_rate`` are the Trainer's in both. trl's ``rewards/*`` are beta times a log-ratio in its DPOTrainer,
but other things in its other trainers (CPO and SimPO have no reference; ORPO averages over tokens), and a log does not say which
trainer wrote it; so they become ours only where the user says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from analysis.quantities import KNOWN

Trainer = Literal["dpo"]
_SHARED = ("loss", "grad_norm", "learning_rate")
_TRL = ("rewards/", "logps/", "logits/", "objective/", "policy/", "val/", "completions/", "reward")
_TRL_NAMES = ("kl", "num_tokens", "entropy", "mean_token_accuracy", "nll_loss", "log_odds_ratio", "log_odds_chosen")

# Of trl's DPOTrainer: log-probs are summed over the completion's tokens; a mean over the batch.
_DPO = {"logps/chosen": "chosen_logps", "logps/rejected": "rejected_logps", "rewards/accuracies": "accuracy"}
_DPO_BY_BETA = {
    "rewards/chosen": "chosen_log_ratio",
    "rewards/rejected": "rejected_log_ratio",
    "rewards/margins": "margin",
}


@dataclass(frozen=True)
class Name:
    """Our name of a logged number, its unit where it is known, and what makes its value ours."""

    name: str
    unit: str | None = None
    convert: Callable[[float], float] = float


def is_trl(name: str) -> bool:
    """Whether a logged name is trl's."""
    bare = name.removeprefix("eval_")
    return bare.startswith(_TRL) or bare in _TRL_NAMES


def named(name: str, trainer: Trainer | None = None, beta: float | None = None) -> Name:
    """Our name of a number that transformers' Trainer or trl logged.

    Args:
        name: as logged, evaluation with ``eval_`` in front.
        trainer: "dpo" where the log is known to be of trl's DPOTrainer.
        beta: its beta, by which its rewards are divided to be log-ratios.
    """
    if name in _SHARED:
        return Name(name)
    if trainer == "dpo":
        if name in _DPO:
            return Name(_DPO[name], KNOWN[_DPO[name]][1])
        if name in _DPO_BY_BETA and beta is not None and math.isfinite(beta) and beta > 0:
            return Name(_DPO_BY_BETA[name], KNOWN[_DPO_BY_BETA[name]][1], lambda value: value / beta)
    return Name(f"{'trl' if is_trl(name) else 'trainer'}/{name}")

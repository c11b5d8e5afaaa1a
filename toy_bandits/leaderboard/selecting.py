"""Which strength is an objective's best: decided in worlds of their own, which no diagnostic scores.

The mean of the diagnostics' scores would choose badly: most of them reward a policy that never leaves the reference. Here a nat of KL has
a price, a fifth of the range of the rewards, and the best strength is the one that gains most at that price: the RLHF objective
J = E r - price * KL(pi || pi_ref), as a share of what its optimum pi_ref exp(r/price)/Z gains over the reference.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from objectives import Objective
from toy_bandits import worlds
from toy_bandits.diagnostics.base import Case, answers, joined
from toy_bandits.optimum import shortfall
from toy_bandits.problem import Bandit

PRICE = 0.2
"""Of a nat, times the range of the rewards: at it a point mass on the best action is worth about as little as the reference."""
ACTIONS, COMPARED = 8, 5
KINDS = {"noisy": (1.0, None), "near-deterministic": (0.1, None), "partly compared": (1.0, COMPARED)}
"""Bradley-Terry labels: their temperature, and how many of the actions are compared."""
SEEDS = (101, 102, 103, 104)
RULE = (
    f"in {len(KINDS) * len(SEEDS)} worlds of {ACTIONS} actions that no diagnostic scores ({', '.join(KINDS)}; {len(SEEDS)} of each), the "
    f"strength with the largest mean of (J(π) - J(π_ref))/(J(π*) - J(π_ref)), J = E r - {PRICE:g} (max r - min r) KL(π ‖ π_ref), π* being "
    "the RLHF optimum of J (of equals, the strength that holds the policy most)"
)


def selection_worlds() -> dict[str, Bandit]:
    """By name; random rewards and references, one context."""
    found = {}
    for kind, (scale, compared) in KINDS.items():
        for seed in SEEDS:
            made = worlds.bradley_terry(ACTIONS, scale, seed, compared=compared)
            found[f"{kind} {seed}"] = Bandit(made.reference, made.preferences, made.pairs, rewards=made.rewards)
    return found


def probe(objective: Objective, strengths: Sequence[float]) -> pd.DataFrame:
    """One row per (world, strength): ``share`` of the possible gain, at most 1; 0 for the reference, below 0 for what is worse than it.

    Raises:
        BanditError, ObjectiveError: the objective cannot be solved here, or a loss breaks its contract.
    """
    cases = [
        Case(name, problem.expand((len(strengths),)), problem, columns={"strength": strengths}, strength=strengths)
        for name, problem in selection_worlds().items()
    ]
    frames = []
    for answer in answers(objective, cases):
        problem = answer.case.truth
        assert problem.rewards is not None
        price = PRICE * float(problem.rewards.max() - problem.rewards.min())
        lost = shortfall(problem, answer.log_policy, price) / shortfall(problem, problem.log_reference, price)
        frames.append(answer.rows(share=1.0 - lost))
    return joined(frames)


def values(frame: pd.DataFrame) -> pd.Series:
    """Mean share over the worlds, by strength."""
    return frame.groupby("strength")["share"].mean()


def best(by_strength: pd.Series, *, rising: bool, tie: float) -> float:
    """The strength of the largest value; of those within ``tie`` of it, the one that holds the policy most. NaN where there is no value."""
    known = by_strength.dropna()
    if known.empty:
        return float(np.nan)
    equal = known.index[known >= known.max() - tie]
    return float(equal.max() if rising else equal.min())

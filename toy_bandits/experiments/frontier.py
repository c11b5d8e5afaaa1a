"""C7: reward against KL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pandas as pd

from toy_bandits import Bandit, solve, worlds
from toy_bandits.experiments.base import METHODS, Settings, decades, method, policy_rows, rows, vector
from toy_bandits.optimum import rlhf_log_policy


@dataclass(frozen=True)
class Frontier(Settings):
    """Three Bradley-Terry worlds (noisy, near-deterministic, partly compared), strengths over five decades, and the RLHF optimum."""

    name: ClassVar[str] = "frontier"
    claim: ClassVar[str] = "C7: KL-vs-reward frontier"

    actions: int = 8
    noisy_scale: float = 1.0
    near_deterministic_scale: float = 0.1
    compared: int = 5
    strengths: tuple[float, ...] = decades(-3, 2, 10)
    seed: int = 0

    def worlds(self) -> dict[str, Bandit]:
        """The worlds by name; the same rewards and reference in each."""
        return {
            "bradley_terry": worlds.bradley_terry(self.actions, self.noisy_scale, self.seed),
            "near_deterministic": worlds.bradley_terry(self.actions, self.near_deterministic_scale, self.seed),
            "partial_support": worlds.bradley_terry(self.actions, self.noisy_scale, self.seed, compared=self.compared),
        }

    def results(self) -> pd.DataFrame:
        """One row per (world, objective, strength); objective ``rlhf`` is the exact optimum pi_ref exp(r/beta)/Z."""
        strength = vector(self.strengths)
        frames = []
        for world, problem in self.worlds().items():
            for name in METHODS:
                solution = solve(problem, method(name, strength))
                frames.append(rows(solution, world=world, objective=name, strength=strength))
            columns = {"world": world, "objective": "rlhf", "strength": strength, "status": "converged"}
            frames.append(policy_rows(problem, rlhf_log_policy(problem, strength), **columns))
        return pd.concat(frames, ignore_index=True)

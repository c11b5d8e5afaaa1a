"""C1: preferences that become certain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pandas as pd

from toy_bandits import solve, worlds
from toy_bandits.experiments.base import METHODS, Settings, method, rows, vector


@dataclass(frozen=True)
class Determinism(Settings):
    """A Bradley-Terry chain whose neighbours are ordered with a probability p that tends to 1, every strength."""

    name: ClassVar[str] = "determinism"
    claim: ClassVar[str] = "C1: near-deterministic preferences"

    probabilities: tuple[float, ...] = (
        *(0.6, 0.7, 0.8, 0.9, 0.95, 0.99),
        *(1 - 10.0**-k for k in range(3, 9)),
        1.0,
    )
    strengths: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0)

    def results(self) -> pd.DataFrame:
        """One row per (objective, strength, probability)."""
        probability, strength = vector(self.probabilities).unsqueeze(-1), vector(self.strengths)
        problem = worlds.chain(probability)
        return pd.concat(
            [
                rows(solve(problem, method(name, strength)), objective=name, strength=strength, probability=probability)
                for name in METHODS
            ],
            ignore_index=True,
        )

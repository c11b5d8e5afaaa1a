"""C2: does the regularisation strength act?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pandas as pd

from toy_bandits.experiments.base import Settings, decades
from toy_bandits.experiments.determinism import Determinism


@dataclass(frozen=True)
class Strength(Settings):
    """The chain of `determinism` at certain and at noisy preferences, strengths over five decades."""

    name: ClassVar[str] = "strength"
    claim: ClassVar[str] = "C2: the strength of the KL term acts"

    probabilities: tuple[float, ...] = (0.7, 0.9, 1.0)
    strengths: tuple[float, ...] = decades(-3, 2, 8)

    def results(self) -> pd.DataFrame:
        """One row per (objective, strength, probability)."""
        return Determinism(self.probabilities, self.strengths).results()

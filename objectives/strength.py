"""The hyper-parameter that says how strongly an objective holds the policy back: what a sweep sweeps."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Strength:
    """Which hyper-parameter is the strength of regularisation, which way it acts, and the range worth sweeping.

    Attributes:
        parameter: its name; in a sum of objectives with the part's name in front, ``forward_kl.weight``.
        rising: larger values hold the policy closer to where it is held (the reference, for most); False: larger values let it go.
        low, high: ends of the range, five decades unless the objective says otherwise.
    """

    parameter: str = "beta"
    rising: bool = True
    low: float = 1e-3
    high: float = 1e2

    def grid(self, per_decade: int) -> tuple[float, ...]:
        """Values from low to high, evenly spaced by ratio, ``per_decade`` for each factor of ten."""
        first, last = math.log10(self.low), math.log10(self.high)
        count = round((last - first) * per_decade)
        return tuple(10.0 ** (first + (last - first) * i / count) for i in range(count + 1))

    @property
    def text(self) -> str:
        """In words."""
        acts = "larger values hold the policy closer" if self.rising else "larger values let the policy go further"
        return f"{self.parameter}, {self.low:g} to {self.high:g}: {acts}"

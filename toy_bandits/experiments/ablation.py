"""C8: which component does the work, pair loss or regulariser?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pandas as pd

import objectives
from objectives import Objective
from toy_bandits import solve, worlds
from toy_bandits.experiments.base import METHODS, Settings, method, rows


@dataclass(frozen=True)
class Ablation(Settings):
    """{pair loss of dpo, ipo, maxpo} x {no regulariser, forward KL, likelihood of the chosen}, in two worlds."""

    name: ClassVar[str] = "ablation"
    claim: ClassVar[str] = "C8: which component does the work"

    strength: float = 0.1
    weight: float = 0.1
    partial_support_probability: float = 0.9

    def cell(self, pair_loss: str, regulariser: str) -> Objective:
        """One composition. maxpo's own forward KL is taken away first (its beta is the weight of that term)."""
        pairs = method(pair_loss, 0.0 if pair_loss == "maxpo" else self.strength)
        return pairs if regulariser == "none" else pairs + objectives.get(regulariser, weight=self.weight)

    def results(self) -> pd.DataFrame:
        """One row per (pair_loss, regulariser, world); ``off_support_drift`` is the change of the mass of actions that no pair shows."""
        frames = []
        for world, problem in (
            ("determinism", worlds.chain(1.0)),
            ("partial_support", worlds.one_pair(self.partial_support_probability)),
        ):
            unseen = ~(problem.pairs > 0).any(-1)
            before = float((problem.reference * unseen).sum())
            for pair_loss in METHODS:
                for regulariser in ("none", "forward_kl", "chosen_nll"):
                    solution = solve(problem, self.cell(pair_loss, regulariser))
                    frame = rows(
                        solution, pair_loss=pair_loss, regulariser=regulariser, world=world, strength=self.strength
                    )
                    frames.append(frame.assign(off_support_drift=frame["off_support_mass"] - before))
        return pd.concat(frames, ignore_index=True)

"""C3: an action that no pair shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import torch
from torch import Tensor

from toy_bandits import solve, worlds
from toy_bandits.experiments.base import METHODS, Settings, method, table, vector

# Strengths at which the margin that each method asks for is of the same size: a few nats, and a fraction of one.
STRENGTHS = {"dpo": (0.5, 2.0), "ipo": (0.1, 1.0), "maxpo": (0.1, 1.0)}


@dataclass(frozen=True)
class PartialSupport(Settings):
    """Three actions, one compared pair: where the mass of the third ends, from many starts.

    Where an objective has no minimiser (dpo at probability 1) there is no final policy and no row: see `determinism`.
    """

    name: ClassVar[str] = "partial_support"
    claim: ClassVar[str] = "C3: partial support"

    probabilities: tuple[float, ...] = (0.9, 1.0)
    random_starts: int = 32
    start_scale: float = 2.0
    seed: int = 0

    def starts(self) -> tuple[list[str], Tensor]:
        """Names and logits (S, 3) of the starts."""
        generator = torch.Generator().manual_seed(self.seed)
        drawn = self.start_scale * torch.randn(self.random_starts, 3, generator=generator, dtype=torch.float64)
        fixed = torch.stack(
            [vector(worlds.ONE_PAIR_REFERENCE).log(), vector((0.0, 0.0, 3.0)), vector((0.0, 0.0, -3.0))]
        )
        names = ["reference", "0,0,3", "0,0,-3", *(f"random {i}" for i in range(self.random_starts))]
        return names, torch.cat([fixed, drawn])

    def results(self) -> pd.DataFrame:
        """One row per (objective, strength, probability, start, action)."""
        names, starts = self.starts()
        frames = []
        probability = vector(self.probabilities)[:, None]
        problem = worlds.one_pair(probability)
        for name in METHODS:
            for strength in STRENGTHS[name]:
                solution = solve(problem, method(name, strength), starts)
                frames.append(
                    table(
                        solution.policy.shape,
                        objective=name,
                        strength=strength,
                        probability=probability.unsqueeze(-1),
                        start=torch.arange(len(names))[:, None],
                        start_name=pd.array(names).to_numpy()[:, None],
                        action=torch.arange(3),
                        probability_mass=solution.policy,
                        reference_mass=problem.reference.squeeze(-2),
                        on_support=(problem.pairs > 0).any(-1).squeeze(-2),
                        status=solution.status[..., None],
                        kl_policy_reference=solution.metrics["kl_policy_reference"].unsqueeze(-1),
                        gradient_norm=solution.gradient_norm.unsqueeze(-1),
                    )
                )
        frame = pd.concat(frames, ignore_index=True)
        return frame[frame["status"] != "diverges"].reset_index(drop=True)

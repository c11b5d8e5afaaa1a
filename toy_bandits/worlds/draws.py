"""Finite data: empirical worlds, many data sets of one size in a batch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from toy_bandits.problem import Bandit


def labels(world: Bandit, count: int, data_sets: int, seed: int) -> tuple[Tensor, Tensor]:
    """Preferences and pairs (S, X, A, A) as ``count`` labels drawn in each context show them: shares of wins, counts of comparisons.

    Args:
        world: a single problem.
        count: labels per context, each drawn once with its pair.
        data_sets: S, how many independent data sets.
        seed: of the draw; data sets of different counts are independent.
    """
    weights = world.label_weights / world.label_weights.sum((-2, -1), keepdim=True)
    generator = np.random.default_rng([seed, count])
    drawn = [generator.multinomial(count, table.flatten().numpy(), size=data_sets) for table in weights]
    wins = torch.from_numpy(np.stack(drawn, axis=1)).reshape(data_sets, *weights.shape).to(torch.float64)
    compared = wins + wins.transpose(-1, -2)
    return torch.where(compared > 0, wins / compared.clamp(min=1.0), 0.5), compared


def reference_samples(world: Bandit, count: int, data_sets: int, seed: int) -> Tensor:
    """(S, X, A): shares of each action among ``count`` samples of the reference in each context."""
    generator = np.random.default_rng([seed, count])
    drawn = [generator.multinomial(count, masses.numpy(), size=data_sets) for masses in world.reference]
    return torch.from_numpy(np.stack(drawn, axis=1)).to(torch.float64) / count

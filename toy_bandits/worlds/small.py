"""Small worlds whose answers are known or can be read at a glance. ``probability`` may be a tensor: a batch of worlds."""

from __future__ import annotations

import torch
from torch import Tensor

from toy_bandits.problem import Bandit

ONE_PAIR_REFERENCE = (0.2, 0.5, 0.3)
CHAIN_REFERENCE = (0.1, 0.2, 0.3, 0.4)


def log_odds(probability: float | Tensor) -> Tensor:
    """log p - log(1 - p); infinite at p = 1."""
    p = torch.as_tensor(probability, dtype=torch.float64)
    return p.log() - torch.log1p(-p)


def chain(probability: float | Tensor) -> Bandit:
    """Bradley-Terry with equal steps: each action beats the next with ``probability``, (...); the best is the reference's rarest.

    All pairs are compared. At probability 1 the order is certain. Rewards fall from 1 to 0.
    """
    actions = len(CHAIN_REFERENCE)
    steps = torch.arange(actions, 0, -1, dtype=torch.float64)
    gaps = steps.unsqueeze(-1) - steps
    odds = log_odds(probability)[..., None, None]
    preferences = torch.where(gaps == 0, 0.5, torch.sigmoid(torch.where(gaps == 0, 0.0, gaps * odds)))
    rewards = (steps - 1.0) / (actions - 1.0)
    return _alone(CHAIN_REFERENCE, preferences, rewards=rewards)


def one_pair(probability: float | Tensor) -> Bandit:
    """Three actions of which only the first two are ever compared; the first wins with ``probability``, (...)."""
    p = torch.as_tensor(probability, dtype=torch.float64)
    preferences = torch.full((*p.shape, 3, 3), 0.5, dtype=torch.float64)
    preferences[..., 0, 1], preferences[..., 1, 0] = p, 1.0 - p
    pairs = torch.zeros(3, 3, dtype=torch.float64)
    pairs[0, 1] = pairs[1, 0] = 1.0
    return _alone(ONE_PAIR_REFERENCE, preferences, pairs=pairs, rewards=torch.tensor([1.0, 0.0, 0.5]))


def bradley_terry(actions: int, scale: float, seed: int, *, compared: int | None = None) -> Bandit:
    """Random rewards and reference; Bradley-Terry labels at temperature ``scale``, on pairs of the first ``compared`` actions."""
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(actions, generator=generator, dtype=torch.float64)
    reference = torch.randn(actions, generator=generator, dtype=torch.float64).softmax(-1)
    shown = torch.arange(actions) < (actions if compared is None else compared)
    pairs = (shown.unsqueeze(-1) & shown).to(torch.float64).fill_diagonal_(0.0)
    return Bandit.from_rewards(reference, rewards, scale, pairs=pairs)


def _alone(
    reference: tuple[float, ...], preferences: Tensor, *, rewards: Tensor, pairs: Tensor | None = None
) -> Bandit:
    """A bandit without contexts, its batch dimensions those of the preferences."""
    return Bandit(reference, preferences.unsqueeze(-3), pairs=pairs, rewards=rewards).without_contexts()

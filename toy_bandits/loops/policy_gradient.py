"""rlhf_ppo and espo: several steps on one batch of the old policy's responses, then a new batch.

Both maximise E_old[min(...)] of the ratio pi/pi_old times the advantage A(x, y) = R(x, y) - E_old R, where the reward carries the
penalty, R = r - beta log(pi_old/pi_ref) (arXiv 2203.02155, eq. 2). With a perfect critic, as here, A is exact; the batch is exact too, or
sampled. The only point at which all advantages vanish is the RLHF optimum pi_ref exp(r/beta)/Z.

The penalty is the old policy's throughout a batch, so near the optimum a batch of n natural steps multiplies the distance to it by
1 - n learning_rate beta: where n learning_rate beta > 2 the loop overshoots and never settles.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from objectives.domains import PositiveNumber
from toy_bandits.loops.base import Loop, Step
from toy_bandits.problem import Bandit


@dataclass(frozen=True)
class PolicyGradient(Loop):
    """What both share. ``steps`` yields one policy per batch.

    Attributes:
        beta: strength of the KL penalty.
        learning_rate: of gradient ascent on the logits.
        natural: divide the gradient by the probability that an action is drawn (natural gradient), so that rare actions learn as fast.
        iterations: batches.
        samples: responses per batch and problem; None: the exact expectation.
        seed: of the samples.
    """

    beta: PositiveNumber = 0.1
    learning_rate: PositiveNumber = 0.5
    natural: bool = True
    iterations: int = 100
    samples: int | None = None
    seed: int = 0

    def steps(self, problem: Bandit) -> Iterator[Step]:
        """See `Loop.steps`; ``epochs``: steps made on the batch, ``deviation``: mean |pi/pi_old - 1| after them."""
        generator = np.random.default_rng(self.seed)
        log_policy = problem.log_reference
        yield Step(log_policy, "reference", {"epochs": 0, "deviation": 0.0})
        for _ in range(self.iterations):
            weights = batch_weights(problem, log_policy, self.samples, generator)
            log_policy, numbers = self.improve(problem, log_policy, advantages(problem, log_policy, self.beta), weights)
            yield Step(log_policy, "update", numbers)

    @abstractmethod
    def improve(
        self, problem: Bandit, old: Tensor, advantage: Tensor, weights: Tensor
    ) -> tuple[Tensor, dict[str, Any]]:
        """The policy after one batch."""

    def ascend(self, problem: Bandit, log_policy: Tensor, slope: Tensor) -> Tensor:
        """One step on the logits, ``slope`` (..., X, A) being the surrogate's gradient in the log-probs."""
        policy = log_policy.exp()
        gradient: Tensor = slope - policy * slope.sum(-1, keepdim=True)
        if self.natural:
            chance = problem.contexts.unsqueeze(-1) * policy
            gradient = torch.where(chance > 0, gradient / chance, 0.0)
        return (log_policy + self.learning_rate * gradient).log_softmax(-1)


def advantages(problem: Bandit, log_policy: Tensor, beta: float) -> Tensor:
    """(..., X, A): penalised reward less its mean under the policy."""
    assert problem.rewards is not None
    reward = problem.rewards - beta * (log_policy - problem.log_reference)
    return reward - (log_policy.exp() * reward).sum(-1, keepdim=True)


def batch_weights(problem: Bandit, log_policy: Tensor, samples: int | None, generator: np.random.Generator) -> Tensor:
    """(..., X, A), summing to 1 over contexts and actions: the probability of each response, or its share of a drawn batch."""
    exact = problem.contexts.unsqueeze(-1) * log_policy.exp()
    if samples is None:
        return exact
    chances = exact.flatten(-2)
    drawn = generator.multinomial(samples, (chances / chances.sum(-1, keepdim=True)).numpy())
    return torch.from_numpy(drawn).to(exact).reshape(exact.shape) / samples


def mean_deviation(weights: Tensor, ratio: Tensor) -> Tensor:
    """(...): mean |ratio - 1| over the batch."""
    return (weights * (ratio - 1.0).abs()).sum((-2, -1))


@dataclass(frozen=True)
class RlhfPpo(PolicyGradient):
    """PPO: a ratio past 1 +- clip in the direction of its advantage no longer counts (arXiv 1707.06347, eq. 7).

    Attributes:
        clip: how far a ratio may go.
        epochs: steps per batch.
    """

    name: ClassVar[str] = "rlhf_ppo"
    summary: ClassVar[str] = "clipped ratio, KL penalty in the reward"
    source: ClassVar[str] = "arXiv 1707.06347, 2203.02155"

    clip: PositiveNumber = 0.2
    epochs: int = 4

    def improve(
        self, problem: Bandit, old: Tensor, advantage: Tensor, weights: Tensor
    ) -> tuple[Tensor, dict[str, Any]]:
        """``epochs`` steps on the clipped surrogate."""
        new = old
        for _ in range(self.epochs):
            ratio = (new - old).exp()
            counts = torch.where(advantage > 0, ratio < 1.0 + self.clip, ratio > 1.0 - self.clip)
            new = self.ascend(problem, new, weights * ratio * advantage * counts)
        return new, {"epochs": self.epochs, "deviation": mean_deviation(weights, (new - old).exp())}


@dataclass(frozen=True)
class Espo(PolicyGradient):
    """Early-stopped policy optimisation: no clip; steps on a batch end once mean |ratio - 1| > delta (arXiv 2202.00079).

    Attributes:
        delta: that threshold.
        most_epochs: end there at the latest.
    """

    name: ClassVar[str] = "espo"
    summary: ClassVar[str] = "unclipped ratio, stops a batch when ratios have moved by delta"
    source: ClassVar[str] = "arXiv 2202.00079"

    delta: PositiveNumber = 0.25
    most_epochs: int = 20

    def improve(
        self, problem: Bandit, old: Tensor, advantage: Tensor, weights: Tensor
    ) -> tuple[Tensor, dict[str, Any]]:
        """Steps on the plain surrogate; every problem of a batch of problems stops on its own."""
        new = old
        deviation = torch.zeros_like(old[..., 0, 0])
        epochs = torch.zeros_like(deviation)
        for _ in range(self.most_epochs):
            going = deviation <= self.delta
            if not bool(going.any()):
                break
            moved = self.ascend(problem, new, weights * (new - old).exp() * advantage)
            new = torch.where(going[..., None, None], moved, new)
            deviation = mean_deviation(weights, (new - old).exp())
            epochs += going
        return new, {"epochs": epochs, "deviation": deviation}

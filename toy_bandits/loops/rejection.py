"""rso: pairs from a sampler that turns responses of the reference into responses of the RLHF optimum."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

import objectives
from objectives.domains import PositiveNumber
from toy_bandits.errors import BanditError
from toy_bandits.loops.base import Loop, Step
from toy_bandits.loops.stages import optimum_of, pairs_of, seen_from
from toy_bandits.problem import Bandit


def accepted(problem: Bandit, beta: float, candidates: int | None = None) -> tuple[Tensor, Tensor]:
    """The sampler's distribution (arXiv 2309.06657): a response of pi_ref is accepted with probability exp((r - r_max)/beta).

    Args:
        problem: with rewards.
        beta: temperature, > 0.
        candidates: how many responses are drawn of which the largest reward is taken as r_max, each then accepted or not on its own;
            None: the true r_max, with which the accepted responses are distributed as pi_ref exp(r/beta)/Z exactly. With one
            candidate they are distributed as pi_ref.

    Returns:
        log-probs of an accepted response (..., X, A) (accepted responses pooled over many draws of the candidates), and the share of
        responses that are accepted, (..., X).
    """
    if problem.rewards is None:
        raise BanditError("rso: needs a world with rewards")
    rewards = problem.rewards
    if candidates is None:
        log_chance = (rewards - rewards.amax(-1, keepdim=True)) / beta
    else:
        # Given that a candidate is y, the largest reward among all of them is r(z) >= r(y), or r(y) itself.
        below, level = _ranks(problem)
        others = candidates - 1
        # P(max of the others = r(z)) for each distinct reward, shared among the actions that have it.
        at = ((below + level) ** others - below**others) * problem.reference / level
        top = rewards.unsqueeze(-2)  # [y, z]
        higher = torch.where(top > rewards.unsqueeze(-1), at.unsqueeze(-2), 0.0)
        chance = (higher * ((rewards.unsqueeze(-1) - top).clamp(max=0.0) / beta).exp()).sum(-1)
        log_chance = (chance + (below + level) ** others).log()
    joint = problem.log_reference + log_chance
    return joint.log_softmax(-1), joint.logsumexp(-1).exp()


def _ranks(problem: Bandit) -> tuple[Tensor, Tensor]:
    """(..., X, A) each: pi_ref's mass of the actions with a smaller reward, and of those with the same one."""
    assert problem.rewards is not None
    mine, other = problem.rewards.unsqueeze(-1), problem.rewards.unsqueeze(-2)
    masses = problem.reference.unsqueeze(-2)
    return torch.where(other < mine, masses, 0.0).sum(-1), torch.where(other == mine, masses, 0.0).sum(-1)


def best_of(problem: Bandit, count: int) -> Tensor:
    """(..., X, A): log-probs of the best of ``count`` responses of pi_ref, ties broken by chance.

    P(y) = pi_ref(y)/pi_ref(level) (P(r <= r(y))^n - P(r < r(y))^n), the level being all actions of the same reward.
    """
    if problem.rewards is None:
        raise BanditError("best_of_n: needs a world with rewards")
    below, level = _ranks(problem)
    reached = below + level
    # log(F^n - S^n) = n log F + log(1 - (1 - q)^n), q = level/F, without cancellation where q is tiny.
    log_share = torch.log(-torch.expm1(count * torch.log1p(-(level / reached).clamp(max=1.0))))
    return (problem.log_reference - level.log() + count * reached.log() + log_share).log_softmax(-1)


@dataclass(frozen=True)
class Rso(Loop):
    """Sample, accept, pair, label, optimise once.

    Attributes:
        beta: the sampler's temperature.
        candidates: responses per prompt that r_max is estimated from; None: the true one.
        objective: what is optimised on the pairs, labelled by the world; the default is the paper's sigmoid-norm with gamma = beta.
    """

    name: ClassVar[str] = "rso"
    summary: ClassVar[str] = "statistical rejection sampling, then one optimisation on pairs of accepted responses"
    source: ClassVar[str] = "arXiv 2309.06657"

    beta: PositiveNumber = 0.5
    candidates: int | None = None
    objective: str = "dpo(beta=0.5)"

    def steps(self, problem: Bandit) -> Iterator[Step]:
        """The reference, the accepted responses, and the policy trained on their pairs; ``acceptance``: share accepted."""
        yield Step(problem.log_reference, "reference", {"acceptance": 1.0})
        sampled, share = accepted(problem, self.beta, self.candidates)
        mean_share = (problem.contexts * share).sum(-1)
        yield Step(sampled, "accepted", {"acceptance": mean_share})
        stage = seen_from(problem, problem.log_reference, pairs_of(sampled))
        trained = optimum_of(stage, objectives.parse(self.objective), self.name)
        yield Step(trained, "trained", {"acceptance": mean_share})


@dataclass(frozen=True)
class BestOfN(Loop):
    """The best of n responses of the reference, n = 1, 2, 4, ... up to ``largest``."""

    name: ClassVar[str] = "best_of_n"
    summary: ClassVar[str] = "the best of n responses of the reference, exactly"
    source: ClassVar[str] = "KL <= log n - (n-1)/n: arXiv 2401.01879"

    largest: int = 128

    def steps(self, problem: Bandit) -> Iterator[Step]:
        """One policy per n; ``kl_bound`` is log n - (n - 1)/n, reached only where no two responses have one reward and none much mass."""
        count = 1
        while count <= self.largest:
            bound = torch.tensor(float(count), dtype=torch.float64).log() - (count - 1) / count
            yield Step(best_of(problem, count), f"best of {count}", {"n": count, "kl_bound": bound})
            count *= 2

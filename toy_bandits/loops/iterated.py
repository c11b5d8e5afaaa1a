"""Iterated optimisation: the policy of one round is the reference of the next. iterative_dpo and accelerated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import objectives
from objectives.domains import Domain
from toy_bandits.loops.base import Loop, Step
from toy_bandits.loops.stages import optimum_of, pairs_of, seen_from, usable
from toy_bandits.problem import Bandit

Momentum = Annotated[float, Domain("in [0, 1)", lambda x: 0 <= x < 1)]


@dataclass(frozen=True)
class IterativeDpo(Loop):
    """Rounds of DPO (or another objective) on pairs of the current policy's own responses, labelled by the world.

    In a Bradley-Terry world with full support, rounds with a moving reference give pi_ref exp(t r/beta)/Z after t of them, the RLHF optimum
    at beta/t, so in the end the best actions alone; with the reference fixed, the optimum at beta after one round and ever after.

    Attributes:
        objective: what each round minimises.
        iterations: rounds; fewer where the policy has given up an action to 250 decimal places.
        reference: "moving", the last policy, or "fixed", the first one.
        on_policy: pairs of the current policy's responses; False: the world's pairs in every round.
    """

    name: ClassVar[str] = "iterative_dpo"
    summary: ClassVar[str] = "rounds of DPO on the policy's own responses, from the last policy or the first"
    source: ClassVar[str] = "arXiv 2312.11456 (iterative DPO)"

    objective: str = "dpo(beta=1.0)"
    iterations: int = 10
    reference: Literal["moving", "fixed"] = "moving"
    on_policy: bool = True

    def steps(self, problem: Bandit) -> Iterator[Step]:
        """One policy per round."""
        loss = objectives.parse(self.objective)
        log_policy = problem.log_reference
        yield Step(log_policy, "reference")
        for t in range(1, self.iterations + 1):
            if not usable(log_policy):
                return
            reference = log_policy if self.reference == "moving" else problem.log_reference
            stage = seen_from(problem, reference, pairs_of(log_policy) if self.on_policy else None)
            log_policy = optimum_of(stage, loss, f"{self.name}, round {t}")
            yield Step(log_policy, "round")


@dataclass(frozen=True)
class Accelerated(Loop):
    """Accelerated preference optimisation: pi^_{t+1} minimises the objective with reference pi_t, and
    pi_{t+1} is proportional to pi^_{t+1} (pi^_{t+1}/pi^_t)^alpha (arXiv 2410.06293, algorithm 1); alpha = 0 is the plain iteration.

    With DPO in a Bradley-Terry world the log-ratios to pi_ref grow by r/beta (1 - alpha^t)/(1 - alpha) in round t, against r/beta in every
    round of the plain iteration: in the long run 1/(1 - alpha) times as fast (our derivation; the paper's abstract claims a faster rate
    than the plain iteration's, its theorem could not be read). So the regret's geometric factor falls from exp(-gap/beta) to
    exp(-gap/(beta (1 - alpha))), gap being the reward that the second-best action lacks.

    Attributes:
        objective: what each round minimises.
        extrapolation: alpha.
        iterations: rounds; fewer where the policy has given up an action to 250 decimal places.
    """

    name: ClassVar[str] = "accelerated"
    summary: ClassVar[str] = "iterated optimisation with Nesterov's extrapolation between rounds"
    source: ClassVar[str] = "arXiv 2410.06293"

    objective: str = "dpo(beta=1.0)"
    extrapolation: Momentum = 0.3
    iterations: int = 10

    def steps(self, problem: Bandit) -> Iterator[Step]:
        """One policy pi^ per round, the round's own, before extrapolation."""
        loss = objectives.parse(self.objective)
        own = extrapolated = problem.log_reference
        yield Step(own, "reference")
        for t in range(1, self.iterations + 1):
            if not usable(extrapolated):
                return
            before = own
            own = optimum_of(seen_from(problem, extrapolated), loss, f"{self.name}, round {t}")
            extrapolated = (own + self.extrapolation * (own - before)).log_softmax(-1)
            yield Step(own, "round")

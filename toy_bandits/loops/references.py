"""mrpo: one optimisation against several references at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

import objectives
from objectives import PairBatch, PairTerm
from objectives.domains import Fraction, MixtureWeights, PositiveNumber
from toy_bandits.errors import BanditError
from toy_bandits.loops.base import Loop, Step
from toy_bandits.loops.stages import optimum_of, seen_from
from toy_bandits.problem import Bandit


def mixture(references: Tensor, weights: tuple[float, ...], clip: float | None) -> Tensor:
    """(..., K, X, A) -> (..., X, A): log of the mixture that the objective ``mrpo`` takes as its reference, normalised.

    The constant that normalises it cancels in every margin.
    """
    term = objectives.get("mrpo", weights=weights, clip=clip).terms[0]
    assert isinstance(term, PairTerm)
    assert term.margin is not None
    logps = references.log().movedim(-3, -1)
    none = torch.zeros_like(logps[..., 0])
    # Against a response that every reference is sure of, the margin of policy log-probs 0 is minus the mixture's log-prob.
    batch = PairBatch(
        chosen_logps=none,
        rejected_logps=none,
        chosen_reference_logps=logps,
        rejected_reference_logps=torch.zeros_like(logps),
    )
    return (-term.margin.value(batch, "mrpo")).log_softmax(-1)


@dataclass(frozen=True)
class Mrpo(Loop):
    """DPO against each reference alone, the mixture of them all, and the optimum of mrpo, which is DPO against the mixture.

    Attributes:
        beta: DPO's.
        weights: of the references; None: alike.
        clip: how far, relatively, a reference's log-prob may differ from the first one's; None: any.
    """

    name: ClassVar[str] = "mrpo"
    summary: ClassVar[str] = "DPO against a mixture of references, and against each of them"
    source: ClassVar[str] = "arXiv 2405.16388"
    needs_references: ClassVar[bool] = True

    beta: PositiveNumber = 0.1
    weights: MixtureWeights | None = None
    clip: Fraction | None = 0.1

    def steps(self, problem: Bandit) -> Iterator[Step]:
        """The reference, DPO's optimum for each reference, the mixture, and DPO's optimum for it."""
        references = problem.references
        if references is None:
            raise BanditError("mrpo: needs a world with several references, such as several_references/0")
        count = references.shape[-3]
        weights = self.weights or tuple([1.0 / count] * count)
        if len(weights) != count:
            raise BanditError(f"mrpo: {len(weights)} weights for {count} references; they must be as many")
        dpo = objectives.get("dpo", beta=self.beta)
        yield Step(problem.log_reference, "reference")
        for k, reference in enumerate(references.unbind(-3)):
            yield Step(optimum_of(seen_from(problem, reference.log()), dpo, self.name), f"dpo against reference {k}")
        yield Step(mixture(references, weights, self.clip), "mixture")
        together = objectives.get("mrpo", beta=self.beta, weights=weights, clip=self.clip)
        yield Step(optimum_of(problem, together, self.name), "mrpo")

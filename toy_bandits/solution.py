"""What `solve` answers: a policy, its status, and the certificate that says why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toy_bandits import metrics
from toy_bandits.problem import Bandit

CONVERGED, DIVERGES, NOT_UNIQUE, UNSOLVED = "converged", "diverges", "not_unique", "unsolved"
STATUSES = np.array([CONVERGED, DIVERGES, NOT_UNIQUE, UNSOLVED])


@dataclass(frozen=True)
class Certificate:
    """Why a status is what it is. Shapes (...) over problems; plain values for a single problem.

    Attributes:
        proved: the status follows from the losses' behaviour at infinity (and convexity), not only from numbers.
        direction: (..., X, A) logits along which the objective falls for ever; 0 unless the status is "diverges".
        dimension: of the set of minimisers (logits, without the constant per context); 0 where the minimiser is unique.
        minima: distinct minima found from all starts; 1 where the objective is convex.
        curvature: smallest eigenvalue of the Hessian at the answer, its diagonal scaled to 1, without the
            directions that are known to be flat.
        newton_step: largest change of a logit that one more Newton step would make.
        iterations: Newton iterations.
    """

    proved: Any
    direction: Tensor
    dimension: Any
    minima: Any
    curvature: Any
    newton_step: Any
    iterations: Any


@dataclass(frozen=True)
class Solution:
    """The answer to one problem or a batch of problems (leading dimensions ``...``; X left out where the problem leaves it out).

    Attributes:
        policy: (..., X, A). Where the status is "diverges": the limit along `Certificate.direction`, with exact zeros. Where it is
            "not_unique" because tied sets of actions move freely: what gradient flow reaches from ``start``.
        log_policy: (..., X, A), its logarithm (-inf for zeros), exact where probabilities underflow.
        logits: (..., X, A), finite; for "diverges" a far point on the direction.
        status: "converged" (a minimiser, unique), "diverges" (the infimum is not attained), "not_unique" (minimisers form a continuum, or
            several minima are equally good), or "unsolved" (none of these could be shown, such as at
            the kink of a hinge; the policy is the best point found).
            A str for a single problem, else an array of str.
        gradient_norm: (...), of the objective in the logits.
        value: (...), of the objective; its infimum where it diverges.
        certificate: why.
        problem: what was solved, with the batch dimensions of the solution.
    """

    policy: Tensor
    log_policy: Tensor
    logits: Tensor
    status: Any
    gradient_norm: Tensor
    value: Tensor
    certificate: Certificate
    problem: Bandit

    @cached_property
    def metrics(self) -> dict[str, Tensor]:
        """Every metric of `toy_bandits.metrics`, by name, each (...)."""
        log_policy = self.log_policy if self.problem.has_contexts else self.log_policy.unsqueeze(-2)
        return metrics.all_metrics(self.problem, log_policy)


@dataclass
class Answer:
    """Solutions of a flattened batch."""

    logits: Tensor
    log_policy: Tensor
    status: Tensor  # index into STATUSES
    gradient_norm: Tensor
    value: Tensor
    proved: Tensor
    direction: Tensor
    dimension: Tensor
    minima: Tensor
    curvature: Tensor
    newton_step: Tensor
    iterations: Tensor


def assemble(problem: Bandit, answers: Sequence[Answer], shape: torch.Size) -> Solution:
    """Pieces joined and given the leading dimensions ``shape``."""

    def joined(name: str) -> Tensor:
        flat = torch.cat([getattr(answer, name) for answer in answers])
        tensor = flat.reshape([*shape, *flat.shape[1:]])
        return tensor.squeeze(-2) if flat.ndim == 3 and not problem.has_contexts else tensor

    def plain(name: str) -> Any:
        tensor = joined(name)
        return tensor if shape else tensor.item()

    status = STATUSES[joined("status").cpu().numpy()]
    log_policy = joined("log_policy")
    return Solution(
        policy=log_policy.exp(),
        log_policy=log_policy,
        logits=joined("logits"),
        status=status if shape else str(status),
        gradient_norm=joined("gradient_norm"),
        value=joined("value"),
        certificate=Certificate(
            proved=plain("proved"),
            direction=joined("direction"),
            dimension=plain("dimension"),
            minima=plain("minima"),
            curvature=plain("curvature"),
            newton_step=plain("newton_step"),
            iterations=plain("iterations"),
        ),
        problem=problem.expand(shape),
    )

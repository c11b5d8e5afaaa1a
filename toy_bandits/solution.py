"""What `solve` answers: a policy, its status, and the certificate that says why."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from objectives import Objective
from toy_bandits import metrics
from toy_bandits.details import Details
from toy_bandits.problem import Bandit

CONVERGED, DIVERGES, NOT_UNIQUE, UNSOLVED = "converged", "diverges", "not_unique", "unsolved"
REASONS = np.array(
    [
        "",
        "the iteration came to rest where the gradient is not 0: at a kink that the loss does not declare (objectives.positive_part), "
        "or where float64 resolves no further fall",
        "the gradient vanishes to rounding, but neither a minimum nor a fall without end could be shown",
        "hinges on so many labels that the linear program was not attempted",
        "the linear program's answer does not reach its bound",
        "at kinks of the losses; the conditions of optimality there could not be met to 1e-10",
        "stationary at kinks of the losses, but not a minimum along them",
        "the field that training follows (a gradient with parts held fixed) has no zero that could be found, nor a fall without end",
        "the field that training follows has a zero, but an unstable one, which training leaves",
        "the field that training follows vanishes to rounding on its way to infinity: whether it has a zero further on is not known",
        "the field that training follows has no zero (proved from the signs of its slopes), "
        "but that training goes to infinity could not be shown",
    ],
    dtype=object,  # else every entry of an array taken from it would be as long as the longest
)
"""Why a problem is unsolved."""
STATUSES = np.array([CONVERGED, DIVERGES, NOT_UNIQUE, UNSOLVED])


@dataclass(frozen=True)
class Certificate:
    """Why a status is what it is. Shapes (...) over problems; plain values for a single problem.

    Attributes:
        proved: the status follows from the losses' behaviour at infinity (and convexity, or an interval proof that there is no other
            stationary point), not only from numbers.
        direction: (..., X, A) logits along which the objective falls for ever, scaled so that the two actions that part fastest do so
            by one nat per nat; 0 unless the status is "diverges".
        dimension: of the set of minimisers (logits, without the constant per context); 0 where the minimiser is unique.
        minima: distinct minima found from all starts; 1 where the objective is convex, or where there is proved to be no other.
        newton_step: largest change of a logit that one more Newton step would make.
        iterations: Newton iterations.
        stability: of losses with stop-gradients: the smallest real part of the eigenvalues of the field's true Jacobian, its diagonal
            scaled to 1, without those that are 0: training comes to rest at the answer where it is positive. Else NaN.
        reason: why a problem is "unsolved", in words; else empty. A str for a single problem, else an array.
        details: computes what follows when it is first asked for.

    Further, each (...):
        curvature: smallest eigenvalue of the Hessian at the answer, its diagonal scaled to 1, without the
            directions that are known to be flat.
        rate: where the status is "diverges": kappa, with F(t) - inf F ~ C e^(-kappa t) at t nats along ``direction``, from the tails of
            the losses; or as the losses' slopes show it over many nats where their tails are not known (``proved`` is then False);
            inf where they fall faster than any exponential. NaN where unknown, and where the objective has no lower bound.
        slope: dF/dt far along ``direction``: negative where the objective has no lower bound, else 0; NaN where not known.
        kl_range: infimum and supremum of KL(pi || pi_ref) over the set of minimisers; the supremum need not be attained (masses may tend
            to 0). Both are the policy's KL where the minimiser is unique, and the limit's where the status is "diverges". Where
            several minima are equally good: the least and largest among those found. NaN: not known, as for continua that are
            curved in the logits (shaped margins such as chi-PO's on partial support), of which only the dimension is.
    """

    proved: Any
    direction: Tensor
    dimension: Any
    minima: Any
    newton_step: Any
    iterations: Any
    stability: Any
    reason: Any
    details: Details = field(repr=False)

    @property
    def curvature(self) -> Any:
        """See the class."""
        return self.details.curvature

    @property
    def rate(self) -> Any:
        """See the class."""
        return self.details.rate[0]

    @property
    def slope(self) -> Any:
        """See the class."""
        return self.details.rate[1]

    @property
    def kl_range(self) -> tuple[Any, Any]:
        """See the class."""
        return self.details.kl_range


@dataclass(frozen=True)
class Solution:
    """The answer to one problem or a batch of problems (leading dimensions ``...``; X left out where the problem leaves it out).

    Attributes:
        policy: (..., X, A). Where the status is "diverges": the limit along `Certificate.direction`, with exact zeros. Where it is
            "not_unique" because tied sets of actions move freely: what gradient flow reaches from ``start``; where hinges alone make the
            objective (a linear program): the minimiser whose logits are nearest to ``start``.
        log_policy: (..., X, A), its logarithm (-inf for zeros), exact where probabilities underflow.
        logits: (..., X, A), finite; for "diverges" a far point on the direction.
        status: "converged" (a minimiser, unique), "diverges" (the infimum is not attained), "not_unique" (minimisers form a continuum, or
            several minima are equally good), or "unsolved" (none of these could be shown, `Certificate.reason` says why; the
            policy is the best point found).
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
    tie: Tensor  # another minimum is as good
    newton_step: Tensor
    iterations: Tensor
    stability: Tensor
    reason: Tensor  # index into REASONS

    def moved(self, device: torch.device) -> Self:
        """The same on another device."""
        return replace(self, **{name: tensor.to(device) for name, tensor in vars(self).items()})

    def room(self, count: int) -> Self:
        """An answer of ``count`` problems of the same kind, to be filled in."""
        return replace(self, **{name: of.new_empty(count, *of.shape[1:]) for name, of in vars(self).items()})

    def put(self, begin: int, part: Self) -> None:
        """Write the problems from ``begin`` on, given as a batch of their own."""
        for name, of in vars(part).items():
            vars(self)[name][begin : begin + len(of)] = of


def in_words(reason: Tensor) -> Any:
    """`REASONS` by index: a str for a single problem, else an array."""
    words = REASONS[reason.cpu().numpy()]
    return words if reason.ndim else str(words)


@dataclass
class TabularAnswer(Answer):
    """Those of tabular policies."""

    groups: (
        Tensor  # (B, X, A) labels of the sets of actions that move freely, or stay together where the problem diverges
    )


def assemble(problem: Bandit, objective: Objective, answer: TabularAnswer, shape: torch.Size) -> Solution:
    """The answer given the leading dimensions ``shape``; the objective is the flattened batch's."""
    whole: dict[str, Tensor] = vars(answer)

    def joined(name: str) -> Tensor:
        flat = whole[name]
        tensor = flat.reshape([*shape, *flat.shape[1:]])
        return tensor.squeeze(-2) if flat.ndim == 3 and not problem.has_contexts else tensor

    def plain(name: str) -> Any:
        tensor = joined(name)
        return tensor if shape else tensor.item()

    details = Details(
        problem=problem.flattened(shape),
        objective=objective,
        logits=whole["logits"],
        log_policy=whole["log_policy"],
        status=whole["status"],
        direction=whole["direction"],
        dimension=whole["dimension"],
        tie=whole["tie"],
        groups=whole["groups"],
        shape=shape,
    )
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
            newton_step=plain("newton_step"),
            iterations=plain("iterations"),
            stability=plain("stability"),
            reason=in_words(joined("reason")),
            details=details,
        ),
        problem=problem.expand(shape),
    )

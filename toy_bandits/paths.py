"""What training does on its way: the policy along gradient steps or gradient flow, not only where they end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.integrate import solve_ivp
from torch import Tensor
from tqdm import tqdm

from objectives import Objective
from toy_bandits import batching, metrics
from toy_bandits.derivatives import Derivatives, Function
from toy_bandits.errors import BanditError
from toy_bandits.policies.base import Policy
from toy_bandits.policies.derivatives import PolicyFunction
from toy_bandits.policies.solver import prepared
from toy_bandits.problem import Array, Bandit
from toy_bandits.solver import start_logits

RELATIVE, ABSOLUTE = 1e-9, 1e-11
"""Tolerances of the parameters along gradient flow, per step of the integrator."""


@dataclass(frozen=True)
class _Descent:
    """What moves: first parameters (B, P), their derivatives, and the policy that they stand for."""

    shape: torch.Size
    first: Tensor
    function: Callable[[Tensor], Callable[[Tensor], Derivatives]]
    """For an index (K,) of problems, their derivatives at parameters (K, P)."""
    log_policy: Callable[[Tensor], Tensor]
    """(B, P) -> (B, X, A)."""

    @property
    def everything(self) -> Tensor:
        """The index of all problems."""
        return torch.arange(len(self.first))

    def shaped(self, problem: Bandit, theta: Tensor) -> Tensor:
        """The log-policies (..., X, A) at (B, P)."""
        log_policy = self.log_policy(theta)
        return log_policy.reshape(*self.shape, *log_policy.shape[1:])


def adam_path(
    problem: Bandit,
    objective: Objective,
    steps: Sequence[int],
    learning_rate: float = 0.05,
    start: Array | None = None,
    *,
    policy: Policy | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Adam on the parameters, on the exact objective.

    Args:
        problem, objective, start, policy: as for `toy_bandits.solve`.
        steps: when to look, in steps from 0.
        learning_rate: Adam's.

    Yields:
        (step, log-policy (..., X, A)) at each of ``steps``, in order. `table` makes a table of them.

    Raises:
        BanditError: as `solve`, or there is no step to look at.
    """
    wanted = set(_moments("steps", steps))
    descent = _descent(problem, objective, start, policy)
    theta, function = descent.first.clone(), descent.function(descent.everything)
    optimiser = torch.optim.Adam([theta], lr=learning_rate)
    for step in range(int(max(wanted)) + 1):
        if step in wanted:
            yield step, descent.shaped(problem, theta)
        theta.grad = function(theta).gradient.flatten(1)
        optimiser.step()


def gradient_flow(
    problem: Bandit,
    objective: Objective,
    times: Sequence[float],
    start: Array | None = None,
    *,
    policy: Policy | None = None,
    progress: bool = False,
) -> Iterator[tuple[float, Tensor]]:
    """d theta/dt = -gradient: training with steps so small that only their sum t matters. Integrated by LSODA, which turns to an
    implicit method, with the exact Hessian, where the problem is stiff.

    Args:
        problem, objective, start, policy: as for `toy_bandits.solve`.
        times: when to look, >= 0.
        progress: show a bar of the problems done.

    Yields:
        (time, log-policy (..., X, A)) at each of ``times``, in order. `table` makes a table of them.

    Raises:
        BanditError: as `solve`, there is no time to look at, or the integrator could not go on.
    """
    moments = _moments("times", times)
    descent = _descent(problem, objective, start, policy)
    thetas = torch.stack(
        [
            _flow(descent, index.reshape(1), moments)
            for index in tqdm(descent.everything, desc="flowing", unit="problem", disable=not progress, leave=False)
        ],
        dim=1,
    )
    for moment, theta in zip(moments, thetas, strict=True):
        yield moment, descent.shaped(problem, theta)


def table(problem: Bandit, path: Iterable[tuple[float, Tensor]], clock: str = "step") -> pd.DataFrame:
    """A tidy table of a path: a row for each moment and problem, with every metric of `toy_bandits.metrics`.

    Args:
        problem: the one that the path was made of.
        path: (moment, log-policy (..., X, A)), from `adam_path` or `gradient_flow`.
        clock: name of the moments' column.

    Returns:
        Columns ``clock``, "problem" (its place in the batch, counted along the leading dimensions) and one per metric.
    """
    rows = []
    for moment, log_policy in path:
        found = metrics.all_metrics(problem.expand(log_policy.shape[:-2]), log_policy)
        values = {name: value.reshape(-1).cpu().numpy() for name, value in found.items()}
        count = len(next(iter(values.values())))
        rows.append(pd.DataFrame({clock: moment, "problem": np.arange(count), **values}))
    return pd.concat(rows, ignore_index=True)


def _moments(name: str, given: Sequence[float]) -> list[float]:
    """In order, each once."""
    moments = sorted(set(given))
    if not moments or moments[0] < 0 or not np.isfinite(moments).all():
        raise BanditError(f"{name}: expected numbers >= 0, at least one; got {list(given)}")
    return moments


def _flow(descent: _Descent, index: Tensor, moments: list[float]) -> Tensor:
    """(T, P): one problem's parameters at each moment."""

    function = descent.function(index)

    def fall(time: float, theta: np.ndarray) -> np.ndarray:
        return -function(torch.from_numpy(theta).unsqueeze(0)).gradient.flatten().numpy()

    def bend(time: float, theta: np.ndarray) -> np.ndarray:
        hessian = function(torch.from_numpy(theta).unsqueeze(0)).hessian[0]
        return -(torch.block_diag(*hessian) if hessian.ndim == 3 else hessian).numpy()  # type: ignore[no-untyped-call]

    first = descent.first[index[0]].numpy()
    if moments[-1] == 0:
        return torch.from_numpy(first).reshape(1, -1)
    found = solve_ivp(fall, (0.0, moments[-1]), first, "LSODA", t_eval=moments, jac=bend, rtol=RELATIVE, atol=ABSOLUTE)
    if not found.success:
        raise BanditError(f"gradient_flow: the integrator stopped at time {found.t[-1]:g}: {found.message}")
    return torch.from_numpy(found.y.T.copy())


def _descent(problem: Bandit, objective: Objective, start: Array | None, policy: Policy | None) -> _Descent:
    if objective.needs_temperature:
        objective = objective.with_temperature(1.0)
    if policy is None:
        logits = start_logits(problem, start)
        shape = batching.common_shape(problem.batch_shape, objective, logits.shape[:-2])
        flat, spread = problem.flattened(shape), batching.flattened(objective, shape, problem.reference.device)
        begin = logits.expand(*shape, *flat.reference.shape[1:]).reshape(flat.reference.shape)

        def tabular(index: Tensor) -> Callable[[Tensor], Derivatives]:
            function = Function(flat.take(index), batching.take(spread, index))
            return lambda theta: function(theta.reshape(-1, *begin.shape[1:]))

        return _Descent(shape, begin.flatten(1), tabular, lambda theta: theta.reshape(begin.shape).log_softmax(-1))
    shape, flat, spread, form, begin = prepared(policy, problem, objective, start)

    def shared(index: Tensor) -> Callable[[Tensor], Derivatives]:
        return PolicyFunction(flat.take(index), batching.take(spread, index), form.take(index))

    return _Descent(shape, begin, shared, form.log_policy)

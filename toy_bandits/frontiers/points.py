"""Points of frontiers: policies of objectives, outer loops and training paths in a world, each held against the bound.

Every table has one row per policy: the metrics, ``reward_bound`` and ``win_rate_bound`` (the best that any policy of that KL reaches)
and ``reward_regret`` and ``win_rate_regret`` (what is missing to them). Policies are judged by the world's truth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from objectives import Objective
from toy_bandits.experiments.base import decades, policy_rows, vector
from toy_bandits.loops import Loop
from toy_bandits.optimum import regret_to_bound, rlhf_log_policy, win_rate_as_reward
from toy_bandits.paths import adam_path
from toy_bandits.solver import solve
from toy_bandits.worlds import World

OPTIMUM_STRENGTHS = decades(-4, 4, 16)
"""Of the bound's curve, times the range of the rewards."""
PATH_STEPS = (0, 1, 3, 10, 30, 100, 300)


def sweep(world: World, objective: Objective, per_decade: int = 5) -> pd.DataFrame:
    """One row per strength of ``objective.strength.grid(per_decade)`` (and data set, where data are finite), solved in one batch.

    Where no minimiser exists the row is that of the limit policy; ``status`` says so. An objective without a strength gives one point.

    Raises:
        BanditError: the world cannot give what the objective needs, or a policy lies above the bound.
    """
    values, swept = _swept(world, objective, per_decade)
    solution = solve(world.problem, swept)
    return _judged(
        world,
        solution.log_policy,
        lambda at: _at(world, objective, values, at),
        strength=values,
        held=_hold(objective, values),
        **_data_sets(world),
        status=solution.status,
        gradient_norm=solution.gradient_norm,
        value=solution.value,
    )


def along_path(
    world: World, objective: Objective, steps: tuple[int, ...] = PATH_STEPS, per_decade: int = 1
) -> pd.DataFrame:
    """What Adam goes through on its way from the reference: one row per step and strength."""
    values, swept = _swept(world, objective, per_decade)
    return pd.concat(
        [
            _judged(
                world,
                log_policy,
                _after(f"Adam's step {step}", lambda at: _at(world, objective, values, at)),
                strength=values,
                **_data_sets(world),
                step=step,
            )
            for step, log_policy in adam_path(world.problem, swept, steps)
        ],
        ignore_index=True,
    )


def along_loop(world: World, loop: Loop) -> pd.DataFrame:
    """One row per step of an outer loop, which must be one that can run in this world."""
    return pd.concat(
        [
            _judged(
                world,
                step.log_policy,
                _after(f"step {number}", lambda at: f"{world.id}: {loop.name}"),
                **_data_sets(world),
                step=number,
                stage=step.stage,
            )
            for number, step in enumerate(loop.steps(world.problem))
        ],
        ignore_index=True,
    )


def optima(world: World, measure: str) -> pd.DataFrame:
    """The curve of the bound: pi_ref exp(r/beta)/Z from nearly the reference to nearly the best actions alone.

    Args:
        world: the world.
        measure: "expected_reward", or "win_rate", whose r is the win rate against the reference.
    """
    problem = world.truth if measure == "expected_reward" else win_rate_as_reward(world.truth)
    assert problem.rewards is not None
    span = float(problem.rewards.amax() - problem.rewards.amin())
    strength = vector(OPTIMUM_STRENGTHS) * (span or 1.0)
    log_policy = rlhf_log_policy(problem, strength)
    return _judged(world, log_policy, lambda at: f"{world.id}: the optimum of {measure}", strength=strength)


def _swept(world: World, objective: Objective, per_decade: int) -> tuple[Tensor, Objective]:
    """The strengths, with a dimension to spare for each of the problem's, and the objective at all of them."""
    if objective.strength is None:
        return vector((np.nan,)).squeeze(0), objective
    values = vector(objective.strength.grid(per_decade)).reshape(-1, *[1] * len(world.problem.batch_shape))
    return values, objective.with_strength(values)


def _hold(objective: Objective, values: Tensor) -> Tensor:
    """From 0, where the policy is held least, to 1; NaN without a strength."""
    if objective.strength is None:
        return values
    low, high = np.log(objective.strength.low), np.log(objective.strength.high)
    share: Tensor = (values.log() - low) / (high - low)
    return share if objective.strength.rising else 1.0 - share


def _at(world: World, objective: Objective, values: Tensor, at: tuple[int, ...]) -> str:
    """World, objective and strength of the policy at an index."""
    if objective.strength is None:
        return f"{world.id}: {objective.label}"
    return f"{world.id}: {objective.name} at {objective.strength.parameter} = {values.flatten()[at[0]].item():.6g}"


def _after(step: str, where: Callable[[tuple[int, ...]], str]) -> Callable[[tuple[int, ...]], str]:
    return lambda at: f"{where(at)}, {step}"


def _data_sets(world: World) -> dict[str, Any]:
    return {"data_set": np.arange(world.problem.batch_shape[0])} if world.problem.batch_shape else {}


def _judged(world: World, log_policy: Tensor, where: Callable[[tuple[int, ...]], str], **columns: Any) -> pd.DataFrame:
    frame = policy_rows(world.truth, log_policy, **columns)
    for measure, problem in (("reward", world.truth), ("win_rate", win_rate_as_reward(world.truth))):
        if problem.rewards is not None:
            bound, regret = regret_to_bound(problem, log_policy, where)
            frame[f"{measure}_bound"], frame[f"{measure}_regret"] = bound.flatten().numpy(), regret.flatten().numpy()
    return frame

"""Where trained policies lie: KL to the reference and reward, by point, training seed and prompt.

A point is one checkpoint of one setting. All frontiers, matched comparisons and humps are functions of these values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.evidence import Setting
from analysis.seeds import seeds_by_items, shared_seeds
from analysis.statistics import matched

SPLIT = "held_out_prompts"
KL = "kl_policy_reference"
REWARD = "reward"
SECOND_REWARD = "second_reward"

Along = Literal["all", "strengths", "steps"]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Points:
    """Points of one method; arrays are (points, seeds, prompts), KL in nats. The reference comes first where it was evaluated."""

    kl_values: Array
    reward_values: Array
    where: pd.DataFrame  # one row a point: label, strength, step
    seeds: tuple[str, ...]
    prompts: NDArray[np.int64]

    @property
    def kl(self) -> Array:
        """KL by point and prompt, mean over the training seeds."""
        return np.asarray(self.kl_values.mean(axis=1))

    @property
    def reward(self) -> Array:
        """Reward by point and prompt, mean over the training seeds."""
        return np.asarray(self.reward_values.mean(axis=1))

    def restricted(self, seeds: Sequence[str], prompts: Sequence[int] | NDArray[np.int64]) -> Points:
        """The same points on these seeds and prompts, in their order; all must be there."""
        rows = [self.seeds.index(seed) for seed in seeds]
        columns = pd.Index(self.prompts).get_indexer(pd.Index(prompts))
        if (columns < 0).any():
            raise ValueError("a prompt was not measured")
        kl, reward = (array[:, rows][:, :, columns] for array in (self.kl_values, self.reward_values))
        return Points(kl, reward, self.where, tuple(seeds), self.prompts[columns])


def measured_points(settings: Sequence[Setting], *, along: Along = "all", reward: str = REWARD) -> Points:
    """Evaluated checkpoints of the settings, on the seeds and prompts that all of them share.

    Args:
        settings: of one method.
        along: "all" checkpoints, "strengths" (the last checkpoint of every setting: the path along which the strength falls) or "steps"
            (every checkpoint of the one setting given: its path through training). The reference is in all of them.
        reward: the metric on held-out prompts, `REWARD` or `SECOND_REWARD`.

    Raises:
        ValueError: KL or this reward was not evaluated, seeds or prompts are not shared, or ``along="steps"`` with several settings.
    """
    if along == "steps" and len(settings) != 1:
        raise ValueError(f"a path through training is of one setting, not of {len(settings)}")
    tables: list[pd.DataFrame] = []
    where: list[dict[str, object]] = []
    for setting in settings:
        steps = setting.steps_of(SPLIT, KL)
        for step in steps:
            if step == 0 and where and where[0]["step"] == 0:
                continue  # the reference, once
            if along == "strengths" and step not in (0, steps[-1]):
                continue
            found = [setting.values(SPLIT, metric, step) for metric in (KL, reward)]
            if all(len(table) for table in found):
                tables += found
                where.append({"label": setting.label, "strength": setting.strength, "step": step})
    if not tables:
        raise ValueError(f"{settings[0].objective} has no evaluations of {reward} and KL on held-out prompts")
    seeds = shared_seeds(*(list(table.index) for table in tables))
    (*columns,) = matched(*(pd.Series(0, index=table.columns) for table in tables))
    prompts = columns[0].index
    values = np.stack([seeds_by_items(table, seeds, prompts) for table in tables])
    if not np.isfinite(values).all():
        raise ValueError(
            f"{int((~np.isfinite(values)).sum())} of {values.size} values of KL and {reward} are not finite"
        )
    return Points(values[0::2], values[1::2], pd.DataFrame(where), tuple(seeds), prompts.to_numpy())


def paired(first: Points, second: Points) -> tuple[Points, Points]:
    """Both on the training seeds and prompts that they share, so that differences between them are paired.

    Raises:
        ValueError: they share no seed, or fewer than half of the prompts.
    """
    seeds = shared_seeds(first.seeds, second.seeds)
    one, _ = matched(*(pd.Series(0, index=points.prompts) for points in (first, second)))
    return first.restricted(seeds, one.index.to_numpy()), second.restricted(seeds, one.index.to_numpy())


def training_paths(settings: Sequence[Setting]) -> pd.DataFrame:
    """Every run's way through training, for the axes of a frontier.

    Returns:
        Rows (setting, seed, step): objective, label, strength, labels, support, seed, step, kl (nats), reward, and second_reward (NaN
        where it was not evaluated), means over held-out prompts.
    """
    rows = []
    for setting in settings:
        for step in setting.steps_of(SPLIT, KL):
            means = {
                name: setting.values(SPLIT, metric, step).mean(axis=1)
                for name, metric in (("kl", KL), ("reward", REWARD), ("second_reward", SECOND_REWARD))
            }
            for seed in setting.seeds:
                rows.append(
                    {
                        "objective": setting.objective,
                        "label": setting.label,
                        "strength": setting.strength,
                        "labels": setting.labels,
                        "support": setting.support,
                        "seed": seed,
                        "step": step,
                    }
                    | {name: float(column.get(seed, np.nan)) for name, column in means.items()}
                )
    return pd.DataFrame(rows)

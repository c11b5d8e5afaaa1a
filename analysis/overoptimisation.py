"""Over-optimisation: a second reward that training did not see rises with KL, peaks, and falls (Gao et al. 2023, arXiv 2210.10760).

The peak of noisy means is too high, and the fall after it too deep, on the prompts that show where it is. So the peak is looked for
on one half of the prompts, and the fall is measured on the other, both ways round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis import seeds
from analysis.evidence import Setting
from analysis.measured import SECOND_REWARD, Points, measured_points
from analysis.statistics import Interval
from analysis.tuning import halves

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Hump:
    """Where a reward peaks along a path of rising KL, and how far it has fallen at the path's end."""

    peak_kl: Interval  # nats; of the point with the largest mean reward, resampled with its place
    rise: Interval  # reward at the peak less the path's start
    fall: Interval  # reward at the peak less the path's end; above 0: over-optimised

    @property
    def over_optimised(self) -> bool:
        """Whether the reward certainly fell after a peak within the path, having risen to it."""
        return self.fall.above_zero and self.rise.above_zero


def hump(points: Points) -> Hump:
    """The hump of a path's reward along KL.

    Args:
        points: of one path, with the reward in question, see `analysis.measured.measured_points(..., reward="second_reward")`.

    Raises:
        ValueError: fewer than three points: a hump has a start, a peak and an end.
    """
    if len(points.kl) < 3:
        raise ValueError(f"a hump needs three points along KL, and there are {len(points.kl)}")
    kl, reward = points.kl_values, points.reward_values
    order = np.argsort(kl.mean(axis=(1, 2)), kind="stable")
    kl, reward = kl[order], reward[order]
    start, end = 0, len(kl) - 1
    rises, falls = [], []
    selection, report = (np.flatnonzero(half) for half in halves(points.prompts))
    for choosing, measuring in ((selection, report), (report, selection)):
        peak = int(reward[:, :, choosing].mean(axis=(1, 2)).argmax())
        rises.append((reward[peak] - reward[start])[:, measuring])
        falls.append((reward[peak] - reward[end])[:, measuring])

    def mean_of_two(means: Array) -> Array:
        return np.asarray(means.mean(axis=0))

    def place(means: Array) -> Array:
        split = len(kl)
        return np.asarray(np.take_along_axis(means[:split], means[split:].argmax(axis=0)[None], axis=0)[0])

    return Hump(
        peak_kl=seeds.interval(np.concatenate([kl, reward]), of=place, over="prompts"),
        rise=seeds.interval(*rises, of=mean_of_two, over="prompts"),
        fall=seeds.interval(*falls, of=mean_of_two, over="prompts"),
    )


def humps(settings: Sequence[Setting], reward: str = SECOND_REWARD) -> pd.DataFrame:
    """The hump of each setting's path through training.

    Returns:
        Rows (setting): objective, label, strength, labels, support, points, peak_kl, peak_low, peak_high, rise, rise_low, rise_high,
        fall, fall_low, fall_high, over_optimised, seeds. Settings evaluated at fewer than three steps are left out.
    """
    rows = []
    for setting in settings:
        try:
            points = measured_points([setting], along="steps", reward=reward)
            found = hump(points)
        except ValueError:
            continue
        row: dict[str, object] = {
            "objective": setting.objective,
            "label": setting.label,
            "strength": setting.strength,
            "labels": setting.labels,
            "support": setting.support,
            "points": len(points.kl),
        }
        for name, value in (("peak_kl", found.peak_kl), ("rise", found.rise), ("fall", found.fall)):
            short = name.removesuffix("_kl")
            row |= {name: value.estimate, f"{short}_low": value.low, f"{short}_high": value.high}
        rows.append(row | {"over_optimised": found.over_optimised, "seeds": len(points.seeds)})
    return pd.DataFrame(rows)

"""C7: KL-vs-reward frontiers, who dominates whom."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.claims.c1 import over
from analysis.claims.model import Claim, Domain, Judgement, above, exact
from analysis.evidence import METHODS, NEAR_DETERMINISTIC, NOISY, Evidence, MissingEvidence, Setting
from analysis.frontiers import compare
from analysis.statistics import Interval, matched, over_items

EQUAL = 1e-6  # exact rewards that differ by less are equal


def bandit(evidence: Evidence) -> Judgement:
    """In every world: MaxPO's reward less DPO's and IPO's at equal KL, and every method's distance from the exact optimum."""
    frame = evidence.bandit("frontier")
    parts, notes = [], []
    optimal = []
    for world, rows in frame.groupby("world", sort=True):
        points = {
            str(name): (group["kl_policy_reference"].to_numpy(), group["expected_reward"].to_numpy())
            for name, group in rows.groupby("objective")
        }
        for method in ("dpo", "ipo"):
            found = compare(points["maxpo"], points[method], EQUAL)
            if found is None:
                notes.append(f"{world}: maxpo and {method} share no range of KL")
                continue
            statement = f"{world}: maxpo's reward less {method}'s at equal KL"
            parts.append(exact(statement, found.difference >= -EQUAL, found.difference))
            notes.append(
                f"{world}: maxpo at least {method} on {found.share:.0%} of KL {found.low:.2g} to {found.high:.2g} nats"
            )
        for method in METHODS:
            if "rlhf" in points and (found := compare(points["rlhf"], points[method])) is not None:
                notes.append(f"{world}: {method} lies {found.difference:.3g} below the RLHF optimum at equal KL")
                if method == "dpo" and abs(found.difference) < EQUAL:
                    optimal.append(str(world))
    if optimal:
        notes.append(f"dpo's minimiser is the RLHF optimum in {', '.join(optimal)} (fact F2): nothing can lie above it")
    return Judgement(parts, notes)


@dataclass(frozen=True)
class Points:
    """Measured points of a frontier: KL and reward by point and prompt, (points, prompts); the reference comes first."""

    kl: NDArray[np.float64]
    reward: NDArray[np.float64]
    prompts: NDArray[np.int64]


def measured_points(settings: list[Setting]) -> Points:
    """Every evaluated checkpoint of the settings, on the prompts that all of them share."""
    columns: list[pd.Series] = []
    for setting in settings:
        for step in setting.steps:
            if step == 0 and columns:
                continue  # the reference, once
            kl = setting.items("held_out_prompts", "kl_policy_reference", step)
            reward = setting.items("held_out_prompts", "reward", step)
            if len(kl) and len(reward):
                columns += [kl, reward]
    if not columns:
        raise ValueError(f"{settings[0].objective} has no evaluations of reward and KL on held-out prompts")
    columns = list(matched(*columns))
    values = np.stack([column.to_numpy(dtype=float) for column in columns])
    return Points(values[0::2], values[1::2], columns[0].index.to_numpy())


def language_model(evidence: Evidence) -> Judgement:
    """Mean reward difference at equal KL between MaxPO's frontier and DPO's and IPO's, for each kind of labels."""
    parts, notes, every = [], [], []
    for labels in (NEAR_DETERMINISTIC, NOISY):
        try:
            found = {method: evidence.method(method, labels) for method in METHODS}
        except MissingEvidence:
            if labels == NEAR_DETERMINISTIC:
                raise
            continue
        every += [setting for settings in found.values() for setting in settings]
        points = {method: measured_points(settings) for method, settings in found.items()}
        for method in ("dpo", "ipo"):
            parts.append(
                above(
                    f"{labels}: maxpo's reward less {method}'s at equal KL", advantage(points["maxpo"], points[method])
                )
            )
        notes += [
            f"{labels}, {method}: KL up to {one.kl.mean(axis=1).max():.3g} nats, reward up to {one.reward.mean(axis=1).max():.3g}"
            for method, one in points.items()
        ]
    return Judgement(parts, [*notes, *over(every)])


def advantage(first: Points, second: Points) -> Interval:
    """Mean reward of ``first`` less ``second`` over their shared range of KL; bootstrap over the shared prompts."""
    prompts, one, two = np.intersect1d(first.prompts, second.prompts, return_indices=True)

    def difference(index: NDArray[np.intp]) -> float:
        sets = [
            (points.kl[:, where[index]].mean(axis=1), points.reward[:, where[index]].mean(axis=1))
            for points, where in ((first, one), (second, two))
        ]
        found = compare(sets[0], sets[1])
        return found.difference if found else float("nan")

    return over_items(difference, len(prompts), over="prompts")


CLAIM = Claim(
    id="C7",
    title="KL-vs-reward frontier",
    prediction="At equal KL to the reference, MaxPO reaches at least the reward of DPO and IPO.",
    data={
        Domain.BANDIT: "experiment frontier: exact KL and expected reward over five decades of strength, the RLHF optimum as bound",
        Domain.LANGUAGE_MODEL: "mean reward against per-token KL(policy||reference) on held-out prompts, every strength and checkpoint",
    },
    rule={
        Domain.BANDIT: "in every world, the area between MaxPO's frontier and DPO's (IPO's), over the KL range that both "
        "cover, divided by its width, is not below 0.",
        Domain.LANGUAGE_MODEL: "the same mean difference of reward at equal KL, for each kind of labels, is above 0; bootstrap "
        "over prompts, 95 % (a frontier takes the best measured point within a KL budget, so noise lifts "
        "every method alike).",
    },
    figures=("frontier_bandit", "frontier_llm"),
    bandit=bandit,
    language_model=language_model,
)

"""C1: near-deterministic preferences (theory facts F2, F4, F6)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.claims.model import Claim, Domain, Judgement, Part, above, exact
from analysis.evidence import METHODS, NEAR_DETERMINISTIC, NOISY, Evidence, Setting
from analysis.statistics import matched, mean

# p at least this near to 1 is where "near-deterministic" behaviour is read off: log-odds from 6.9 on.
NEAR = 0.999
# A curve levels off when its KL rises by less than this share of its value per unit of log-odds there.
LEVEL = 0.01


def bandit(evidence: Evidence) -> Judgement:
    """DPO's forward KL keeps rising with the log-odds of p and diverges at p = 1, for every strength; the others level off."""
    frame = evidence.bandit("determinism")
    slopes = {method: _slopes(frame[frame["objective"] == method]) for method in METHODS}
    certain = frame[frame["probability"] == 1.0]
    statuses = {method: certain.loc[certain["objective"] == method, "status"] for method in METHODS}
    rising = slopes["dpo"]["slope"] / slopes["dpo"]["level"]
    parts = [
        exact(
            "dpo: slowest rise of KL(ref||policy) over strengths, per unit of log-odds of p, near p = 1",
            bool((rising > LEVEL).all() and slopes["dpo"]["rises"].all()),
            float(slopes["dpo"]["slope"].min()),
            "nats",
        ),
        exact(
            "dpo: share of strengths for which the solver proves divergence at p = 1",
            bool(len(statuses["dpo"]) and (statuses["dpo"] == "diverges").all()),
            float((statuses["dpo"] == "diverges").mean()),
        ),
    ]
    for method in ("ipo", "maxpo"):
        finite = certain.loc[certain["objective"] == method, "kl_reference_policy"]
        parts += [
            exact(
                f"{method}: fastest rise of KL(ref||policy) over strengths, per unit of log-odds of p, near p = 1",
                bool((slopes[method]["slope"].abs() <= LEVEL * slopes[method]["level"]).all()),
                float(slopes[method]["slope"].max()),
                "nats",
            ),
            exact(
                f"{method}: largest KL(ref||policy) at p = 1 over strengths",
                bool(len(finite) and np.isfinite(finite).all() and (statuses[method] != "diverges").all()),
                float(finite.max()),
                "nats",
            ),
        ]
    nearest = (1 - frame.loc[frame["probability"] < 1, "probability"]).min()
    return Judgement(parts, [f"{frame['strength'].nunique()} strengths; p up to 1 - {nearest:.1g} and p = 1"])


def _slopes(frame: pd.DataFrame) -> pd.DataFrame:
    """By strength: rise of the forward KL per unit of log-odds near p = 1, its size there, and whether it rises throughout."""
    rows = []
    for strength, group in frame[frame["probability"] < 1].groupby("strength"):
        group = group.sort_values("probability")
        probability, kl = group["probability"].to_numpy(), group["kl_reference_policy"].to_numpy()
        near = probability >= NEAR
        if near.sum() < 2:
            raise ValueError(f"experiment determinism needs two probabilities from {NEAR} up")
        # log-odds; log1p keeps 1 - 1e-8 accurate
        odds = np.log(probability) - np.log1p(-probability)
        slope = (kl[near][-1] - kl[near][0]) / (odds[near][-1] - odds[near][0])
        rows.append(
            {"strength": strength, "slope": slope, "level": kl[near][0], "rises": bool((np.diff(kl) > 0).all())}
        )
    if not rows:
        raise ValueError("experiment determinism lacks one of dpo, ipo, maxpo")
    return pd.DataFrame(rows)


def language_model(evidence: Evidence) -> Judgement:
    """KL grows more from noisy to near-deterministic labels under DPO than under IPO and MaxPO (paired over prompts)."""
    growth = {method: _growth(evidence, method) for method in METHODS}
    parts: list[Part] = [
        above("dpo: growth of KL from noisy to near-deterministic labels", mean(growth["dpo"]), "nats")
    ]
    for method in ("ipo", "maxpo"):
        dpo, other = matched(growth["dpo"], growth[method])
        parts.append(above(f"dpo's growth of KL less {method}'s", mean(dpo - other), "nats"))
    notes = [f"{method}: growth {mean(values)} nats" for method, values in growth.items()]
    return Judgement(parts, [*notes, *over(evidence.language_model())])


def _growth(evidence: Evidence, method: str) -> pd.Series:
    """By prompt: KL(policy||reference) on near-deterministic less noisy labels, mean over the strengths run on both."""
    near, noisy = (
        {setting.label: setting.items("held_out_prompts", "kl_policy_reference") for setting in found}
        for found in (evidence.method(method, NEAR_DETERMINISTIC), evidence.method(method, NOISY))
    )
    shared = sorted(set(near) & set(noisy))
    if not shared:
        raise ValueError(f"{method} was not run at the same strength on both kinds of labels")
    differences = []
    for label in shared:
        first, second = matched(near[label], noisy[label])
        differences.append(first - second)
    columns = matched(*differences)
    return pd.concat(columns, axis=1).mean(axis=1, skipna=False)


def over(settings: list[Setting]) -> list[str]:
    """What the intervals cover, in one sentence."""
    seeds = min(len(setting.runs) for setting in settings)
    if seeds == 1:
        return ["one training seed: the intervals cover prompts and items only, not training noise"]
    return [f"{seeds} training seeds averaged: the intervals cover prompts and items, not the choice of seeds"]


CLAIM = Claim(
    id="C1",
    title="Near-deterministic preferences",
    prediction="DPO's KL grows without bound as p -> 1 whatever its strength; IPO's and MaxPO's do not.",
    data={
        Domain.BANDIT: "experiment determinism: p from .6 to 1 - 1e-8 and exactly 1, every strength",
        Domain.LANGUAGE_MODEL: "per-token KL(policy||reference) on held-out prompts, near-deterministic against noisy labels",
    },
    rule={
        Domain.BANDIT: f"DPO: for every strength KL(ref||policy) rises with p throughout, by more than {LEVEL:.0%} of its "
        f"value per unit of log-odds beyond p = {NEAR}, and the solver proves divergence at p = 1. IPO, "
        "MaxPO: it rises by no more than that, and is finite at p = 1.",
        Domain.LANGUAGE_MODEL: "KL on near-deterministic less noisy labels, by prompt: above 0 for DPO, and larger for DPO than "
        "for IPO and MaxPO; bootstrap over prompts, 95 %.",
    },
    figures=("determinism", "frontier_llm"),
    bandit=bandit,
    language_model=language_model,
)

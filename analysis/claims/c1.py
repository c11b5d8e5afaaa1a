"""C1: near-deterministic preferences (theory facts F2, F4, F6)."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from analysis.claims.measuring import ablation, bandit_ablation, contrast, gain, kl, level, logarithms, over
from analysis.claims.model import Claim, Domain, Judgement, Part, above, exact
from analysis.evidence import FULL, METHODS, NEAR_DETERMINISTIC, NOISY, Evidence, MissingEvidence, Setting
from analysis.seeds import aligned, interval, weighted
from analysis.statistics import Interval

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
    notes = [f"{frame['strength'].nunique()} strengths; p up to 1 - {nearest:.1g} and p = 1"]
    return Judgement(parts, notes, bandit_ablation(evidence))


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
    """KL grows more from noisy to near-deterministic labels under DPO than under IPO and MaxPO, paired by seed and prompt."""
    pairs = {method: _both(evidence, method) for method in METHODS}
    growth = {method: contrast(kl, *found) for method, found in pairs.items()}
    parts: list[Part] = [above("dpo: growth of KL from noisy to near-deterministic labels", growth["dpo"], "nats")]
    for method in ("ipo", "maxpo"):
        near, noisy = pairs[method]
        excess = contrast(kl, *pairs["dpo"], (near, -1.0), (noisy, 1.0))
        parts.append(above(f"dpo's growth of KL less {method}'s", excess, "nats"))
    notes = [f"{method}: growth {value} nats" for method, value in growth.items()]
    notes += [
        f"as a share, which a method that hardly moves cannot win: dpo's growth of log KL less {method}'s "
        f"{logarithms(kl, *pairs['dpo'], (pairs[method][0], -1.0), (pairs[method][1], 1.0))}"
        for method in ("ipo", "maxpo")
    ]
    notes += _conditions(growth, pairs)
    notes += _by_certainty(evidence)
    for support in sorted({one.support for one in evidence.language_model(support=None)} - {FULL}):
        for method in METHODS:
            try:
                notes.append(
                    f"{method}, pairs of {support}: growth {contrast(kl, *_both(evidence, method, support))} nats"
                )
            except (MissingEvidence, ValueError):
                continue
    for method in sorted({one.objective for one in evidence.language_model()} - set(METHODS)):
        try:
            notes.append(f"{method}: growth {contrast(kl, *_both(evidence, method))} nats")
        except (MissingEvidence, ValueError):
            continue
    why = ablation(evidence, NEAR_DETERMINISTIC, kl, "KL(policy||ref) on near-deterministic labels")
    return Judgement(parts, [*notes, *over(parts)], why)


def _conditions(growth: dict[str, Interval], pairs: dict[str, tuple[list[Setting], list[Setting]]]) -> list[str]:
    """What a reader must know beside the verdict: who grows all the same, and how far each method went at all."""
    notes = [
        f"condition: {method}'s KL grows too; finite at the minimiser is not flat after so few steps"
        for method in ("ipo", "maxpo")
        if growth[method].above_zero
    ]
    gained = {method: level(gain, near) for method, (near, _) in pairs.items()}
    return [
        *notes,
        "reward gained on near-deterministic labels: " + ", ".join(f"{m} {one}" for m, one in gained.items()),
    ]


def _both(evidence: Evidence, method: str, support: str = FULL) -> tuple[list[Setting], list[Setting]]:
    """Settings on near-deterministic and on noisy labels, the same strengths of both."""
    near, noisy = (
        {setting.label: setting for setting in evidence.method(method, labels, support)}
        for labels in (NEAR_DETERMINISTIC, NOISY)
    )
    shared = [label for label in near if label in noisy]
    if not shared:
        raise ValueError(f"{method} was not run at the same strength on both kinds of labels")
    return [near[label] for label in shared], [noisy[label] for label in shared]


def _by_certainty(evidence: Evidence) -> list[str]:
    """Where labels of three or more temperatures were run: KL at each, and its slope on the log-odds of the labels' certainty."""
    notes = []
    for method in METHODS:
        by_labels: dict[str, list[Setting]] = {}
        for setting in evidence.language_model(method):
            by_labels.setdefault(setting.labels, []).append(setting)
        labels = set.intersection(*({one.label for one in found} for found in by_labels.values()))
        kinds = sorted(
            ([one for one in found if one.label in labels] for found in by_labels.values()),
            key=lambda found: found[0].certainty if found else math.nan,
        )
        if len(kinds) < 3 or not labels or not all(0.5 < found[0].certainty < 1 for found in kinds):
            continue
        odds = np.array([math.log(found[0].certainty / (1 - found[0].certainty)) for found in kinds])
        centred = (odds - odds.mean()) / ((odds - odds.mean()) ** 2).sum()
        weights = [weight / len(found) for weight, found in zip(centred, kinds, strict=True) for _ in found]
        (block,) = aligned([kl(setting) for found in kinds for setting in found])
        slope = interval(block, of=weighted(*weights))
        shown = ", ".join(f"{level(kl, found).estimate:.3g} at {found[0].certainty:.3g}" for found in kinds)
        notes.append(
            f"{method}: KL rises by {slope} nats per unit of log-odds of the labels' mean certainty, "
            f"over {len(kinds)} temperatures ({shown})"
        )
    return notes


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
        Domain.LANGUAGE_MODEL: "KL on near-deterministic less noisy labels, mean over the strengths run on both: above 0 for DPO, "
        "and larger for DPO than for IPO and MaxPO; paired by seed and prompt, 95 %.",
    },
    figures=("finding", "determinism", "frontier_llm"),
    bandit=bandit,
    language_model=language_model,
)

"""C3: partial support (theory facts F5, F6 (ii))."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.claims.measuring import ablation, bandit_ablation, contrast, level, log_ratio, over, reward, rewards_note
from analysis.claims.model import Claim, Domain, Judgement, above, below, exact
from analysis.evidence import FULL, METHODS, NEAR_DETERMINISTIC, Evidence, comparable
from analysis.matching import difference_at_equal_reward
from analysis.tuning import budget_note

MOVES = 0.1  # spread of the final off-support mass over starts from which on a method "depends on the start"
KEPT = 1e-6  # deviation from the reference's off-support mass up to which it is "kept exactly"
KEPT_NATS = 1.0  # a completion's log-likelihood may fall by this much and still count as kept


def bandit(evidence: Evidence) -> Judgement:
    """From many starts: the final off-support mass spreads under DPO and IPO and equals the reference's under MaxPO."""
    masses = off_support_masses(evidence.bandit("partial_support"))
    parts = []
    for method in ("dpo", "ipo"):
        rows = masses[masses["objective"] == method]
        spread = rows.groupby(["strength", "probability"])["mass"].agg(np.ptp)
        parts.append(
            exact(
                f"{method}: smallest spread of the off-support mass over starts",
                bool(len(spread)) and spread.min() > MOVES,
                spread.min(),
            )
        )
    rows = masses[masses["objective"] == "maxpo"]
    deviation = (rows["mass"] - rows["reference_mass"]).abs().max()
    parts.append(
        exact("maxpo: largest deviation from the reference's off-support mass", bool(deviation <= KEPT), deviation)
    )
    return Judgement(parts, [f"{masses['start'].nunique()} starts"], bandit_ablation(evidence))


def off_support_masses(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows (objective, strength, probability, start): ``mass`` and ``reference_mass`` of all actions that no pair shows."""
    off = frame[~frame["on_support"].astype(bool)]
    keys = ["objective", "strength", "probability", "start"]
    sums = off.groupby(keys)[["probability_mass", "reference_mass"]].sum(min_count=1).reset_index()
    return sums.rename(columns={"probability_mass": "mass"})


def language_model(evidence: Evidence) -> Judgement:
    """Held-out samples of the reference: log pi - log pi_ref falls under DPO and IPO, and stays under MaxPO."""
    supports = sorted({one.support for one in evidence.language_model(None, NEAR_DETERMINISTIC, None)})
    partial = next((support for support in supports if support != FULL), FULL)
    chosen = comparable(evidence, NEAR_DETERMINISTIC, support=partial)
    parts = [
        below(
            f"{method}: change of the log-likelihood of a reference sample", level(log_ratio, [chosen[method]]), "nats"
        )
        for method in ("dpo", "ipo")
    ]
    parts += [
        above(f"maxpo's change less {method}'s", contrast(log_ratio, [chosen["maxpo"]], [chosen[method]]), "nats")
        for method in ("dpo", "ipo")
    ]
    parts.append(
        above(
            "maxpo: change of the log-likelihood of a reference sample",
            level(log_ratio, [chosen["maxpo"]]),
            "nats",
            bound=-KEPT_NATS,
        )
    )
    for method in ("dpo", "ipo"):
        matched = difference_at_equal_reward(chosen["maxpo"], chosen[method], "held_out_reference_samples", "log_ratio")
        parts.append(
            above(f"along training, where both have the same reward: maxpo's change less {method}'s", matched, "nats")
        )
    labels = ", ".join(setting.label for setting in chosen.values())
    notes = [f"{partial} support: {labels}", *rewards_note(chosen)]
    notes.append(
        "between evaluated steps the same reward is found on straight lines; likelihood is lost slowly at first, so where the first "
        "evaluation comes late, what the method with the higher reward has lost is overstated"
    )
    if partial == FULL:
        notes.append(
            "no runs with pairs of a part of the reference's samples: this tests what is off the pairs, not a smaller support"
        )
    else:
        notes += _narrowing(evidence, partial)
    notes += _by_strength(evidence, partial)
    notes.append(budget_note(evidence, NEAR_DETERMINISTIC, METHODS, partial))
    why = ablation(evidence, NEAR_DETERMINISTIC, log_ratio, "log-likelihood of a reference sample", support=partial)
    return Judgement(parts, [*notes, *over(parts)], why)


def _narrowing(evidence: Evidence, partial: str) -> list[str]:
    """What the smaller support itself does to each method, strength by strength."""
    notes = []
    for method in METHODS:
        narrow, wide = (
            {one.label: one for one in evidence.language_model(method, NEAR_DETERMINISTIC, support)}
            for support in (partial, FULL)
        )
        shared = [label for label in narrow if label in wide]
        if shared:
            change = contrast(log_ratio, [narrow[label] for label in shared], [wide[label] for label in shared])
            notes.append(f"{method}: change under {partial} less full support {change} nats")
    return notes


def _by_strength(evidence: Evidence, support: str) -> list[str]:
    """What each strength of a method costs, where several were run: a method that hardly moves keeps everything."""
    lines = []
    for method in METHODS:
        tried = evidence.method(method, NEAR_DETERMINISTIC, support)
        if len(tried) > 1:
            costs = (
                f"{level(log_ratio, [one])} nats at reward {level(reward, [one]).estimate:.2f} with {one.symbol} = {one.strength:g}"
                for one in tried
            )
            lines.append(f"{method}: change {'; '.join(costs)}")
    return lines


CLAIM = Claim(
    id="C3",
    title="Partial support",
    prediction="DPO and IPO move mass off the pairs' support arbitrarily and depend on the start; MaxPO keeps it "
    "exactly. In a language model held-out samples of the reference lose likelihood under DPO and IPO "
    "and keep it under MaxPO.",
    data={
        Domain.BANDIT: "experiment partial_support: final policies from many starts",
        Domain.LANGUAGE_MODEL: "log pi - log pi_ref of held-out samples of the reference, near-deterministic labels, at the end and at "
        "matched reward",
    },
    rule={
        Domain.BANDIT: f"DPO, IPO: for every strength the off-support mass differs by more than {MOVES} between starts. "
        f"MaxPO: it equals the reference's to {KEPT} from every start.",
        Domain.LANGUAGE_MODEL: f"mean change below 0 for DPO and IPO, above -{KEPT_NATS:g} nat for MaxPO, MaxPO's above both "
        "others' at the end and where both have the same reward; paired by seed and sample, 95 %. With pairs of a part of the support "
        "where such runs exist.",
    },
    figures=("partial_support", "off_support", "kept"),
    bandit=bandit,
    language_model=language_model,
)

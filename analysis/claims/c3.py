"""C3: partial support (theory facts F5, F6 (ii))."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.claims.c1 import over
from analysis.claims.model import Claim, Domain, Judgement, above, below, exact
from analysis.evidence import NEAR_DETERMINISTIC, Evidence, comparable
from analysis.statistics import mean, paired_difference

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
    return Judgement(parts, [f"{masses['start'].nunique()} starts"])


def off_support_masses(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows (objective, strength, probability, start): ``mass`` and ``reference_mass`` of all actions that no pair shows."""
    off = frame[~frame["on_support"].astype(bool)]
    keys = ["objective", "strength", "probability", "start"]
    sums = off.groupby(keys)[["probability_mass", "reference_mass"]].sum(min_count=1).reset_index()
    return sums.rename(columns={"probability_mass": "mass"})


def language_model(evidence: Evidence) -> Judgement:
    """Held-out samples of the reference: log pi - log pi_ref falls under DPO and IPO, and stays under MaxPO."""
    chosen = comparable(evidence, NEAR_DETERMINISTIC)
    ratios = {method: setting.items("held_out_reference_samples", "log_ratio") for method, setting in chosen.items()}
    parts = [
        below(f"{method}: change of the log-likelihood of a reference sample", mean(ratios[method]), "nats")
        for method in ("dpo", "ipo")
    ]
    parts += [
        above(f"maxpo's change less {method}'s", paired_difference(ratios["maxpo"], ratios[method]), "nats")
        for method in ("dpo", "ipo")
    ]
    parts.append(
        above(
            "maxpo: change of the log-likelihood of a reference sample", mean(ratios["maxpo"]), "nats", bound=-KEPT_NATS
        )
    )
    labels = ", ".join(setting.label for setting in chosen.values())
    return Judgement(parts, [f"at matched reward: {labels}", *over(list(chosen.values()))])


CLAIM = Claim(
    id="C3",
    title="Partial support",
    prediction="DPO and IPO move mass off the pairs' support arbitrarily and depend on the start; MaxPO keeps it "
    "exactly. In a language model held-out samples of the reference lose likelihood under DPO and IPO "
    "and keep it under MaxPO.",
    data={
        Domain.BANDIT: "experiment partial_support: final policies from many starts",
        Domain.LANGUAGE_MODEL: "log pi - log pi_ref of held-out samples of the reference, near-deterministic labels, matched reward",
    },
    rule={
        Domain.BANDIT: f"DPO, IPO: for every strength the off-support mass differs by more than {MOVES} between starts. "
        f"MaxPO: it equals the reference's to {KEPT} from every start.",
        Domain.LANGUAGE_MODEL: f"mean change below 0 for DPO and IPO, above -{KEPT_NATS:g} nat for MaxPO, and MaxPO's above both "
        "others'; paired bootstrap over samples, 95 %.",
    },
    figures=("partial_support", "off_support"),
    bandit=bandit,
    language_model=language_model,
)

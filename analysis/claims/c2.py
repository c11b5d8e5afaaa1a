"""C2: the regularisation strength acts (theory facts F2, F4, F6)."""

from __future__ import annotations

import math

import numpy as np

from analysis.claims.measuring import kl, level, over
from analysis.claims.model import Claim, Domain, Judgement, Verdict, above, below, exact
from analysis.evidence import METHODS, NEAR_DETERMINISTIC, SECOND_STRENGTH, Evidence, MissingEvidence, Setting
from analysis.seeds import aligned, interval
from analysis.statistics import Interval, trend

# Over the decades of the experiment KL must fall at least this much for the strength to be called effective.
EFFECTIVE = 0.1
# A fall of log KL per decade of strength up to this (10 %) counts as no response.
NO_RESPONSE = 0.1


def bandit(evidence: Evidence) -> Judgement:
    """At p = 1: KL falls as the strength rises under MaxPO and IPO; under DPO it is infinite at every strength."""
    frame = evidence.bandit("strength")
    frame = frame[frame["probability"] == 1.0]
    parts = []
    for method in ("maxpo", "ipo"):
        rows = frame[frame["objective"] == method].sort_values("strength")
        kl = rows["kl_policy_reference"].to_numpy(dtype=float)
        falls = bool(
            len(kl) > 1 and np.isfinite(kl).all() and trend(rows["strength"], kl) < 0 and (np.diff(kl) <= 1e-9).all()
        )
        fall = float(kl[0] - kl[-1]) if len(kl) else math.nan
        parts.append(
            exact(
                f"{method}: fall of KL(policy||ref) from the weakest to the strongest regularisation",
                falls and fall > EFFECTIVE,
                fall,
                "nats",
            )
        )
    dpo = frame.loc[frame["objective"] == "dpo", "status"]
    share = float((dpo == "diverges").mean())
    parts.append(exact("dpo: share of strengths without a finite minimiser", bool(len(dpo)) and share == 1.0, share))
    strengths = frame["strength"]
    decades = math.log10(strengths.max() / strengths.min())
    return Judgement(parts, [f"p = 1, strengths over {decades:.3g} decades"])


def language_model(evidence: Evidence) -> Judgement:
    """Fall of log KL per decade of strength on near-deterministic labels: above 0 for MaxPO and IPO, and larger for MaxPO than for DPO."""
    found = {method: _settings(evidence, method) for method in METHODS}
    parts = [
        above(f"{method}: fall of log KL per decade of strength", _fall(found[method])) for method in ("maxpo", "ipo")
    ]
    parts.append(above("maxpo's fall of log KL per decade less dpo's", _fall(found["maxpo"], found["dpo"])))
    dpo = below("dpo: fall of log KL per decade of strength", _fall(found["dpo"]), bound=NO_RESPONSE)
    parts.append(dpo)
    notes = []
    if dpo.verdict is Verdict.FAILS:
        notes.append(
            "condition: dpo's strength acts all the same after so few steps; that it does not is a property of the minimiser, which "
            "training is far from (bandits)"
        )
    for method, settings in found.items():
        shown = ", ".join(f"{level(kl, [one]).estimate:.3g} at {one.strength:g}" for one in settings)
        notes.append(f"{method}: KL (nats) {shown}")
    return Judgement(parts, notes + over(parts))


def _settings(evidence: Evidence, method: str) -> list[Setting]:
    settings = evidence.method(method, NEAR_DETERMINISTIC)
    if len({one.strength for one in settings}) < 2:
        raise MissingEvidence(f"{method} at two strengths or more", SECOND_STRENGTH)
    return settings


def _fall(first: list[Setting], second: list[Setting] | None = None) -> Interval:
    """Least-squares fall of log mean KL per decade of strength, or its excess over that of ``second``."""
    groups = [first] if second is None else [first, second]
    weights = []
    for sign, group in zip((-1.0, 1.0), groups, strict=False):
        decades = np.log10([one.strength for one in group])
        centred = decades - decades.mean()
        weights += list(sign * centred / (centred**2).sum())
    (block,) = aligned([kl(one) for group in groups for one in group])
    return interval(block, of=lambda means: np.asarray(np.array(weights) @ np.log(means)))


CLAIM = Claim(
    id="C2",
    title="The strength of the KL term acts",
    prediction="At p = 1 KL responds to the regularisation strength under MaxPO, under IPO on its support, and not under DPO.",
    data={
        Domain.BANDIT: "experiment strength: p = 1, strengths over five decades",
        Domain.LANGUAGE_MODEL: "per-token KL(policy||reference) on held-out prompts, near-deterministic labels, every strength",
    },
    rule={
        Domain.BANDIT: f"MaxPO, IPO: KL(policy||ref) never rises with the strength and falls by more than {EFFECTIVE} nats "
        "in all. DPO: no finite minimiser at any strength.",
        Domain.LANGUAGE_MODEL: "the least-squares fall of log mean KL per decade of strength is above 0 for MaxPO and IPO, larger for "
        f"MaxPO than for DPO, and below {NO_RESPONSE} for DPO; paired by seed and prompt, 95 %.",
    },
    figures=("strength",),
    bandit=bandit,
    language_model=language_model,
)

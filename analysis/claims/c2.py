"""C2: the regularisation strength acts (theory facts F2, F4, F6)."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.claims.c1 import over
from analysis.claims.model import Claim, Domain, Judgement, Part, above, exact
from analysis.evidence import METHODS, NEAR_DETERMINISTIC, SECOND_STRENGTH, Evidence, MissingEvidence, Setting
from analysis.statistics import Interval, matched, over_items, trend

# Over the decades of the experiment KL must fall at least this much for the strength to be called effective.
EFFECTIVE = 0.1


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
    """The response d log KL / d log strength on near-deterministic labels: negative for MaxPO and IPO, nearer 0 for DPO."""
    responses = {method: _response(evidence.method(method, NEAR_DETERMINISTIC)) for method in METHODS}
    parts = [
        _part(f"{method}: fall of log KL per decade of strength", responses[method]) for method in ("maxpo", "ipo")
    ]
    parts.append(_part("maxpo's fall of log KL per decade less dpo's", responses["maxpo"], responses["dpo"]))
    notes = [f"dpo: fall of log KL per decade {_interval(responses['dpo'])}"]
    return Judgement(parts, notes + over(evidence.language_model(None, NEAR_DETERMINISTIC)))


Response = tuple[pd.Series, pd.Series, float]  # KL by prompt at the weakest and the strongest, and the decades between


def _response(settings: list[Setting]) -> Response:
    weakest, strongest = settings[0], settings[-1]
    if not strongest.strength > weakest.strength:
        raise MissingEvidence(f"{weakest.objective} at two strengths or more", SECOND_STRENGTH)
    kl = [setting.items("held_out_prompts", "kl_policy_reference") for setting in (weakest, strongest)]
    first, second = matched(*kl)
    return first, second, math.log10(strongest.strength / weakest.strength)


def _interval(first: Response, second: Response | None = None) -> Interval:
    columns = [*first[:2], *(second[:2] if second else ())]
    values = [column.to_numpy() for column in matched(*columns)]

    def fall(index: NDArray[np.intp]) -> float:
        with np.errstate(all="ignore"):
            means = np.log([column[index].mean() for column in values])
        own = (means[0] - means[1]) / first[2]
        return float(own - (means[2] - means[3]) / second[2] if second else own)

    return over_items(fall, len(values[0]))


def _part(statement: str, first: Response, second: Response | None = None) -> Part:
    return above(statement, _interval(first, second))


CLAIM = Claim(
    id="C2",
    title="The strength of the KL term acts",
    prediction="At p = 1 KL responds to the regularisation strength under MaxPO, under IPO on its support, and not under DPO.",
    data={
        Domain.BANDIT: "experiment strength: p = 1, strengths over five decades",
        Domain.LANGUAGE_MODEL: "per-token KL(policy||reference) on held-out prompts, near-deterministic labels, weakest and "
        "strongest strength",
    },
    rule={
        Domain.BANDIT: f"MaxPO, IPO: KL(policy||ref) never rises with the strength and falls by more than {EFFECTIVE} nats "
        "in all. DPO: no finite minimiser at any strength.",
        Domain.LANGUAGE_MODEL: "log mean KL falls with log strength for MaxPO and IPO, and faster for MaxPO than for DPO; "
        "bootstrap over prompts, 95 %.",
    },
    figures=("strength",),
    bandit=bandit,
    language_model=language_model,
)

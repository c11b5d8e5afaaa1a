"""C8: which component carries the claims, pair loss or regulariser (theory fact F7)."""

from __future__ import annotations

import pandas as pd

from analysis.claims.c1 import over
from analysis.claims.c3 import KEPT
from analysis.claims.model import Claim, Domain, Judgement, above, exact
from analysis.evidence import METHODS, NEAR_DETERMINISTIC, WITH_FORWARD_KL, Evidence, MissingEvidence, Setting
from analysis.statistics import paired_difference

FORWARD_KL = "forward_kl"


def bandit(evidence: Evidence) -> Judgement:
    """With the forward-KL term every pair loss is finite and keeps off-support mass; without it no pair loss does both."""
    frame = evidence.bandit("ablation")
    cells = ablation_cells(frame)
    regularised = cells[cells["regulariser"] == FORWARD_KL]
    bare = cells[cells["regulariser"] == "none"]
    other = cells[~cells["regulariser"].isin([FORWARD_KL, "none"])]
    good = regularised["finite"] & regularised["kept"]
    parts = [
        exact(
            f"pair losses, of {len(good)}, that are finite and keep off-support mass with forward KL",
            bool(len(good)) and bool(good.all()),
            good.sum(),
        )
    ]
    kept = bare["finite"] & bare["kept"]
    parts.append(
        exact(
            f"pair losses, of {len(kept)}, that do both without a regulariser",
            bool(len(kept)) and not kept.any(),
            kept.sum(),
        )
    )
    if len(other):
        others = other["finite"] & other["kept"]
        names = ", ".join(sorted(other["regulariser"].unique()))
        parts.append(
            exact(f"pair losses, of {len(others)}, that do both with {names} instead", not others.any(), others.sum())
        )
    return Judgement(parts, [f"worlds: {', '.join(sorted(frame['world'].unique()))}"])


def ablation_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """By (pair_loss, regulariser): ``finite`` in every world, largest ``drift`` of off-support mass, and ``kept`` exactly."""
    rows = []
    for (pair_loss, regulariser), group in frame.groupby(["pair_loss", "regulariser"], sort=True):
        drift = float(group["off_support_drift"].abs().max())
        finite = bool((group["status"] != "diverges").all())
        unique = bool((group["status"] != "not_unique").all())
        rows.append(
            {
                "pair_loss": pair_loss,
                "regulariser": regulariser,
                "finite": finite,
                "unique": unique,
                "drift": drift,
                "kept": drift <= KEPT,
            }
        )
    return pd.DataFrame(rows)


def language_model(evidence: Evidence) -> Judgement:
    """The forward-KL term added to DPO or IPO: do held-out reference samples keep more of their likelihood?"""
    parts = []
    settings: list[Setting] = []
    for method in METHODS:
        try:
            bare, regularised = (
                evidence.language_model(name, NEAR_DETERMINISTIC) for name in (method, f"{method}+{FORWARD_KL}")
            )
        except MissingEvidence:
            continue
        pair = _same_strength(bare, regularised)
        if pair is None:
            continue
        settings += pair
        after, before = (setting.items("held_out_reference_samples", "log_ratio") for setting in reversed(pair))
        parts.append(
            above(
                f"{method}: log-likelihood of a reference sample with forward KL less without",
                paired_difference(after, before),
                "nats",
            )
        )
    if not parts:
        raise MissingEvidence(
            "a pair loss with and without forward KL at the same strength on a language model", WITH_FORWARD_KL
        )
    return Judgement(parts, over(settings))


def _same_strength(first: list[Setting], second: list[Setting]) -> tuple[Setting, Setting] | None:
    for one in first:
        for two in second:
            if one.strength == two.strength:
                return one, two
    return None


CLAIM = Claim(
    id="C8",
    title="Which component does the work",
    prediction="The forward-KL term, not the pair loss, makes the minimiser finite and keeps off-support mass: DPO"
    " with it is regularised too.",
    data={
        Domain.BANDIT: "experiment ablation: {pair loss} x {regulariser}, in worlds of near-deterministic preferences and partial support",
        Domain.LANGUAGE_MODEL: "held-out reference samples after DPO or IPO with and without forward KL, near-deterministic labels",
    },
    rule={
        Domain.BANDIT: f"finite (never 'diverges') and off-support mass kept to {KEPT} in every world: for every pair loss "
        "with forward KL, for none without a regulariser or with another one.",
        Domain.LANGUAGE_MODEL: "change of their log-likelihood with the term less without it, at the same strength, above 0; "
        "paired bootstrap over samples, 95 %.",
    },
    figures=("ablation",),
    bandit=bandit,
    language_model=language_model,
)

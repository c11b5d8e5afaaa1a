"""C8: which component carries the claims, pair loss or regulariser (theory fact F7)."""

from __future__ import annotations

import pandas as pd

from analysis.claims.c3 import KEPT
from analysis.claims.measuring import (
    FORWARD_KL,
    contrast,
    kl,
    log_ratio,
    over,
    own_parameters,
    reward,
    weight_of,
    with_and_without,
    with_term,
)
from analysis.claims.model import Claim, Domain, Judgement, above, exact
from analysis.evidence import METHODS, NEAR_DETERMINISTIC, WITH_FORWARD_KL, Evidence, MissingEvidence, Setting


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
    """The forward-KL term added to a pair loss: do held-out reference samples keep more of their likelihood?"""
    parts, notes = [], []
    for method in METHODS:
        regularised, bare = with_and_without(evidence, method, NEAR_DETERMINISTIC)
        if not bare:
            continue
        statement = f"{method}: log-likelihood of a reference sample with forward KL less without"
        parts.append(above(statement, contrast(log_ratio, regularised, bare), "nats"))
        notes.append(
            f"{method}: strengths {', '.join(f'{one.strength:g}' for one in bare)}, with {regularised[0].label}"
        )
        for name, read, unit in (("KL(policy||ref)", kl, "nats"), ("reward", reward, "")):
            notes.append(f"{method}: {name} with less without {contrast(read, regularised, bare)} {unit}".rstrip())
        notes += _by_weight(evidence, method, bare)
    if not parts:
        raise MissingEvidence(
            "a pair loss with and without forward KL at the same strength on a language model", WITH_FORWARD_KL
        )
    return Judgement(parts, [*notes, *over(parts)])


def _by_weight(evidence: Evidence, method: str, bare: list[Setting]) -> list[str]:
    """What each weight of the full-token term gives and takes, where more than one was run at a strength that was also run without it."""
    lines = []
    for one in sorted(with_term(evidence, method, NEAR_DETERMINISTIC), key=weight_of):
        for alone in bare:
            if one.tokens == "full" and own_parameters(one) == alone.hyperparameters:
                kept, gained = (contrast(read, [one], [alone]) for read in (log_ratio, reward))
                lines.append(
                    f"{alone.label}, weight {weight_of(one):g}: log-likelihood {kept} nats, reward {gained}, with less without"
                )
    return lines if len(lines) > 1 else []


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
        "of several weights the one nearest to the strength; paired by seed and sample, 95 %.",
    },
    figures=("ablation", "factorial_table", "off_support", "kept"),
    bandit=bandit,
    language_model=language_model,
)

"""Every claim with its verdict, effect size and interval, in bandits and on language models (claims C1 to C9)."""

from __future__ import annotations

from analysis.claims import CLAIMS as EVERY
from analysis.claims import Finding
from analysis.claims.table import parts_frame
from analysis.evidence import Evidence
from paper_figures.tables import Table

CLAIMS = tuple(claim.id for claim in EVERY)
CAPTION = (
    "Claims, verdicts and effect sizes, with 95 % intervals where a quantity was measured and 'exact' where it was computed. 'Parts' "
    "counts the predicted parts that hold; the effect is that of the first part, and of the first part that decided against the claim "
    "where one did. Rules and all parts: python -m analysis claims --explain C1, and so on."
)


def tabulate(evidence: Evidence) -> Table:
    """One row per claim and domain, a rule between claims."""
    findings = [claim.findings(evidence) for claim in EVERY]
    return Table(
        columns="lp{0.14\\textwidth}llrp{0.36\\textwidth}",
        heads=("", "Claim", "Where", "Verdict", "Parts", "Effect size [95 % interval]"),
        parts=[[_row(one, first=place == 0) for place, one in enumerate(found)] for found in findings],
        frame=parts_frame([one for found in findings for one in found]),
        runs=evidence.runs,
    )


def _row(one: Finding, *, first: bool) -> list[str]:
    name = (one.claim.id, one.claim.title) if first else ("", "")
    where = {"bandits (exact)": "bandit", "language model": "language model"}.get(one.domain.value, one.domain.value)
    return [*name, where, one.verdict.value, one.score, one.effect or "; ".join(one.notes)]

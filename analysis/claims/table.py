"""Findings as text, Markdown or CSV, and the reasoning behind one claim."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Sequence

import pandas as pd
from tabulate import tabulate

from analysis.claims.model import Claim, Domain, Finding, p_text
from analysis.evidence import Evidence

WIDTH = 120
_WIDTHS = (2, 17, 12, 10, 6, 7, 43)  # with the borders within WIDTH
_HEADERS = (
    "",
    "Claim",
    "Where",
    "Verdict",
    "Parts",
    "p, Holm",
    "Effect [95 % interval] (detectable effect)",
)


def render(findings: Sequence[Finding], style: str) -> str:
    """The table of verdicts; ``style`` is ``text`` (at most 120 columns), ``markdown`` or ``csv`` (one row per part)."""
    if style == "csv":
        return parts_frame(findings).to_csv(index=False).rstrip("\n")
    rows = [
        (
            one.claim.id,
            one.claim.title,
            one.domain.value,
            one.verdict.value,
            one.score,
            "" if math.isnan(one.adjusted_p) else p_text(one.adjusted_p).removeprefix("= "),
            one.effect or " ".join(one.notes),
        )
        for one in findings
    ]
    if style == "markdown":
        table = str(tabulate(rows, _HEADERS, tablefmt="github", disable_numparse=True))
    else:
        table = str(tabulate(rows, _HEADERS, tablefmt="simple_grid", maxcolwidths=list(_WIDTHS), disable_numparse=True))
    return "\n".join([table, *_commands(findings, style == "markdown")])


def _commands(findings: Sequence[Finding], markdown: bool) -> list[str]:
    """What would fill the gaps, one unbroken line a command, so that it can be copied."""
    needed: dict[str, list[str]] = {}
    for one in findings:
        if one.command:
            needed.setdefault(one.command, []).append(f"{one.claim.id} {one.domain.value}")
    if not needed:
        return []
    lines = ["", "Missing records, and the commands that make them:"]
    for command, which in needed.items():
        claims = ", ".join(which)
        lines += ["", f"{claims}:", "", f"    {command}"] if markdown else [f"# {claims}", command]
    return lines


def parts_frame(findings: Sequence[Finding]) -> pd.DataFrame:
    """One row per part, and one for each finding without parts: the table for other programs."""
    rows: list[dict[str, object]] = []
    for one in findings:
        base: dict[str, object] = {
            "claim": one.claim.id,
            "title": one.claim.title,
            "where": one.domain.value,
            "verdict": one.verdict.value,
            "adjusted_p": one.adjusted_p,
        }
        for part in one.parts:
            value = part.value
            rows.append(
                base
                | {
                    "part": part.statement,
                    "part_verdict": part.verdict.value,
                    "effect": value.estimate,
                    "unit": part.unit,
                    "low": value.low,
                    "high": value.high,
                    "bound": part.bound,
                    "p": part.p_value,
                    "detectable": part.detectable,
                    "n": None if part.exact else value.n,
                    "seeds": None if part.exact else value.seeds,
                    "over": "exact" if part.exact else value.over,
                    "notes": "; ".join(one.notes),
                }
            )
        if not one.parts:
            rows.append(base | {"notes": "; ".join(one.notes), "command": one.command})
    return pd.DataFrame(rows)


def explain(claim: Claim, findings: Sequence[Finding], evidence: Evidence) -> str:
    """The reasoning of one claim: prediction, data, rule, every part with verdict, p and power, notes, ablation, figures and records."""
    lines = [f"{claim.id}  {claim.title}", "", *_wrap("Prediction: " + claim.prediction)]
    for one in findings:
        lines += ["", f"{one.domain.value.upper()}: {one.verdict.value}"]
        lines += _wrap("Data: " + claim.data[one.domain], "  ") + _wrap("Rule: " + claim.rule[one.domain], "  ")
        for part in one.parts:
            tested = f", p {p_text(part.p_value)}, {part.power}" if part.power else ""
            lines += _wrap(f"- {part.verdict.value}: {part.statement}: {part.effect}{tested}", "  ", "    ")
        if not math.isnan(one.adjusted_p):
            lines += _wrap(
                f"p of the verdict {p_text(one.p_value)}, after Holm over all claims {p_text(one.adjusted_p)}",
                "  ",
                "    ",
            )
        lines += [line for note in one.notes for line in _wrap(f"* {note}", "  ", "    ")]
        if one.ablation:
            lines += ["  What makes the difference (ablation):"]
            lines += [line for note in one.ablation for line in _wrap(f"* {note}", "  ", "    ")]
        if one.command:
            lines += ["  Make them with:", f"    {one.command}"]
    if claim.figures:
        modules = ", ".join(f"paper_figures/{name}.py" for name in claim.figures)
        lines += ["", f"Figures: {modules}", f"  python -m paper_figures {' '.join(claim.figures)} --out figures"]
    folders = [str(run.folder) for run in evidence.runs if _concerns(claim, run.kind)]
    lines += ["", f"Records: {len(folders)} runs" + (f" below {os.path.commonpath(folders)}" if folders else "")]
    return "\n".join(lines)


def _concerns(claim: Claim, kind: str) -> bool:
    if kind == "bandit":
        return Domain.BANDIT in claim.data
    return Domain.LANGUAGE_MODEL in claim.data and (kind == "llm_cost") == (claim.id == "C5")


def _wrap(text: str, first: str = "", rest: str | None = None) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=first + "  " if rest is None else rest)

"""Profile cards of the exact bandits, from the records of ``python -m toy_bandits profile``: scores, and what they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from analysis.records import RecordError, Run
from analysis.report.numbers import short

_COLUMNS = {"objective", "diagnostic", "title", "score", "low", "high", "reason"}


def cards(runs: Sequence[Run]) -> tuple[list[dict[str, Any]], list[str]]:
    """One card a record: ``label``, ``objectives`` (its own first), ``rows`` of diagnostics with each one's score; and what was left out.

    A score is [value, low, high, note]: exact where low and high are None; where value is None there is none, and the note says why.
    """
    found, left_out = [], []
    for run in runs:
        if run.kind != "bandit" or "profile" not in run.config or "scores" not in run.tables:
            continue
        scores = run.table("scores")
        if missing := _COLUMNS - set(scores.columns):
            error = RecordError(run.folder, f"its table scores has no column {', '.join(sorted(missing))}")
            left_out.append(f"left out {error}")
            continue
        label = str(run.config["profile"])
        objectives = sorted(scores["objective"].unique(), key=lambda each: each != label)
        found.append(
            {
                "label": label,
                "objectives": [str(each) for each in objectives],
                "rows": [
                    {
                        "title": str(rows["title"].iloc[0]),
                        "scores": [_score(rows[rows["objective"] == each]) for each in objectives],
                    }
                    for _, rows in scores.groupby("diagnostic", sort=False)
                ],
            }
        )
    return sorted(found, key=lambda card: str(card["label"])), left_out


def _score(rows: pd.DataFrame) -> list[Any]:
    if rows.empty:
        return [None, None, None, "not measured"]
    row = rows.iloc[0]
    note = "" if pd.isna(row["reason"]) else str(row["reason"])
    if not note and row.get("unsolved", 0):
        note = f"{int(row['unsolved'])} of {int(row['problems'])} problems unsolved and left out"
    return [*(short(row[key], 3) for key in ("score", "low", "high")), note]

"""The benchmark table: scores before and after with paired tests where the same items were answered, else scores with intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from analysis.evaluations import BENCHMARK, MissingEvaluations
from analysis.evaluations import benchmarks as paired
from analysis.records import RecordError, Run
from analysis.report.numbers import interval, text
from analysis.report.runs import Shown
from analysis.statistics import Correction, adjusted, mean

SCORES = "benchmark_scores"  # of imported results without per-item scores: task, metric, value, standard_error, n
COLUMNS = ("run", "task", "metric", "before", "after", "difference", "items", "test", "p", "adjusted p")


def benchmarks(
    shown: Sequence[Shown], correction: Correction = "holm", step: Callable[[], object] = lambda: None
) -> tuple[list[list[Any]], int, list[str]]:
    """Rows of `COLUMNS` as texts, but the first, which is the run's index; how many tests they were adjusted for; and what was left out."""
    frames, single, left_out = [], [], []
    for index, one in enumerate(shown):
        if not has_benchmarks(one):
            continue
        try:
            frame = paired([one.run], correction)
            frames.append(frame.assign(index=index))
        except MissingEvaluations:
            pass
        except (RecordError, ValueError) as error:
            left_out.append(f"left out the benchmarks of {error}")
        try:
            single += [[index, *row] for row in _single(one.run)]
        except ValueError as error:
            left_out.append(f"left out the benchmarks of {one.run.folder}: {error}")
        step()
    if not frames:
        return single, 0, left_out
    table = pd.concat(frames, ignore_index=True)
    table["adjusted_p"] = adjusted(table["p"], correction)
    return [_row(row) for _, row in table.iterrows()] + single, len(table), left_out


def has_benchmarks(one: Shown) -> bool:
    """Whether a run has benchmark scores."""
    if SCORES in one.run.tables:
        return True
    if "evaluations" not in one.run.tables:
        return False
    return bool(one.run.table("evaluations")["split"].str.startswith(BENCHMARK).any())


def _row(row: pd.Series) -> list[Any]:
    return [
        int(row["index"]),
        row["task"],
        row["metric"],
        text(row["before"]),
        interval(row["after"], row["after_low"], row["after_high"]),
        interval(row["difference"], row["low"], row["high"]),
        str(int(row["n"])),
        row["test"],
        text(row["p"], 2),
        text(row["adjusted_p"], 2),
    ]


def _single(run: Run) -> list[list[Any]]:
    """Scores of tasks that were measured once: nothing to pair them with."""
    rows: list[list[Any]] = []
    if "evaluations" in run.tables:
        frame = run.table("evaluations")
        frame = frame[frame["split"].str.startswith(BENCHMARK)]
        for (split, metric), found in frame.groupby(["split", "metric"], sort=True):
            if found["step"].nunique() == 1:
                value = mean(found["value"])
                shown = interval(value.estimate, value.low, value.high)
                rows.append(
                    [str(split).removeprefix(BENCHMARK), str(metric), "–", shown, "–", str(value.n), "–", "–", "–"]
                )
    if SCORES in run.tables:
        for _, row in run.table(SCORES).iterrows():
            error = row["standard_error"]
            shown = text(row["value"]) + ("" if pd.isna(error) else f" ± {text(error, 2)} (standard error)")
            items = "–" if pd.isna(row["n"]) else str(int(row["n"]))
            rows.append([str(row["task"]), str(row["metric"]), "–", shown, "–", items, "–", "–", "–"])
    return rows

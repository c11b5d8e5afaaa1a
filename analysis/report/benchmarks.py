"""The benchmark table: scores before and after with paired tests where the same items were answered, else scores with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.evaluations import BENCHMARK, MissingEvaluations
from analysis.evaluations import benchmarks as paired
from analysis.evidence import Setting, settings
from analysis.recorded import recorded
from analysis.records import RecordError, Run
from analysis.report.numbers import interval, text
from analysis.report.runs import Shown, by_setting, families
from analysis.seeds import difference
from analysis.seeds import interval as interval_over_seeds
from analysis.statistics import Correction, adjusted, mean

SCORES = "benchmark_scores"  # of imported results without per-item scores: task, metric, value, standard_error, n
SEEDS_COLUMNS = (
    "objective, labels",
    "seeds",
    "task",
    "metric",
    "before",
    "after",
    "difference",
    "items",
    "p",
    "adjusted p",
)
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


def over_seeds(shown: Sequence[Shown], correction: Correction = "holm") -> tuple[list[list[str]], list[str]]:
    """Rows of `SEEDS_COLUMNS`: trainings under several seeds, with intervals over seeds and items; and what was left out."""
    rows, p_values, left_out = [], [], []
    for group in families([one for one in shown if one.is_training and has_benchmarks(one)]):
        for members in by_setting(group)[0]:
            if len(members) < 2:
                continue
            setting = settings([one.run for one in members])[0]
            for split, metric in _pairs_of(setting):
                try:
                    before, after = setting.values(split, metric, 0), setting.values(split, metric)
                    items = before.columns.intersection(after.columns)
                    block = np.stack([after[items].to_numpy(), before[items].to_numpy()])
                    level, gap = interval_over_seeds(block), interval_over_seeds(block, of=difference)
                except ValueError as error:
                    left_out.append(f"left out {split}, {metric} of {members[0].label} over seeds: {error}")
                    continue
                rows.append(
                    [
                        f"{members[0].label}, {members[0].labels}",
                        str(len(members)),
                        split.removeprefix(BENCHMARK),
                        metric,
                        text(block[1].mean()),
                        interval(level.estimate, level.low, level.high),
                        interval(gap.estimate, gap.low, gap.high),
                        str(len(items)),
                    ]
                )
                p_values.append(gap.p_value())
    known = np.array([p for p in p_values if np.isfinite(p)])
    corrected = iter(adjusted(known, correction))
    shown_p = [[text(p, 2), text(next(corrected) if np.isfinite(p) else math.nan, 2)] for p in p_values]
    return [row + p for row, p in zip(rows, shown_p, strict=True)], left_out


def _pairs_of(setting: Setting) -> list[tuple[str, str]]:
    """(split, metric) of the benchmarks that were measured before and after."""
    found = recorded(setting.runs[0])
    steps = {name: found.steps(*name) for name in found.names if name[0].startswith(BENCHMARK)}
    return [name for name, at in steps.items() if at[0] == 0 and len(at) > 1]


def has_benchmarks(one: Shown) -> bool:
    """Whether a run has benchmark scores."""
    if SCORES in one.run.tables:
        return True
    if "evaluations" not in one.run.tables:
        return False
    return any(split.startswith(BENCHMARK) for split, _ in recorded(one.run).names)


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
        found = recorded(run)
        for split, metric in found.names:
            steps = found.steps(split, metric)
            if split.startswith(BENCHMARK) and len(steps) == 1:
                value = mean(found.at(split, metric, steps[0]))
                shown = interval(value.estimate, value.low, value.high)
                rows.append([split.removeprefix(BENCHMARK), metric, "–", shown, "–", str(value.n), "–", "–", "–"])
    if SCORES in run.tables:
        for _, row in run.table(SCORES).iterrows():
            error = row["standard_error"]
            shown = text(row["value"]) + ("" if pd.isna(error) else f" ± {text(error, 2)} (standard error)")
            items = "–" if pd.isna(row["n"]) else str(int(row["n"]))
            rows.append([str(row["task"]), str(row["metric"]), "–", shown, "–", items, "–", "–", "–"])
    return rows

"""Evaluated models from their records: before and after on the same items, estimators of the KL, benchmarks with tests.

A run's record holds one value for each item, before training (step 0, the reference) and after it (the last step). Every
difference here is paired by item.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from analysis.recorded import recorded
from analysis.records import RecordError, Run
from analysis.statistics import Correction, Interval, adjusted, mean, paired_difference, paired_test

KINDS = ("llm", "llm_evaluation")
BENCHMARK = "benchmark/"

# quantity: (split, {estimator: (recorded metric, its sign)})
ESTIMATORS = {
    "KL(policy ‖ reference)": (
        "held_out_prompts",
        {
            "exact per token": ("kl_policy_reference", 1),
            "k1": ("k1", 1),
            "k3": ("k3", 1),
            "k3 by tokens": ("k3_tokens", 1),
        },
    ),
    "KL(reference ‖ policy)": (
        "held_out_reference_samples",
        {
            "exact per token": ("kl_reference_policy", 1),
            "k1": ("log_ratio", -1),
            "k3": ("k3", 1),
            "k3 by tokens": ("k3_tokens", 1),
        },
    ),
}
_ESTIMATED = {(split, metric) for split, found in ESTIMATORS.values() for metric, _ in found.values()}
_EXACT = {("held_out_prompts", "kl_policy_reference"), ("held_out_reference_samples", "kl_reference_policy")}


def measures(runs: Sequence[Run]) -> pd.DataFrame:
    """Every recorded quantity but benchmarks and estimators that have an exact form: one row for each run, split and metric.

    Columns: run, split, metric, before, after, after_low, after_high, difference, low, high (95 % bootstrap over items), n.

    Raises:
        RecordError: a run holds values that are not finite, or no two steps on the same items.
    """
    rows = []
    for run in runs:
        for split, metric, before, after in _before_and_after(run):
            if split.startswith(BENCHMARK) or (split, metric) in _ESTIMATED - _EXACT:
                continue
            rows.append(
                {"run": run.id, "split": split, "metric": metric} | _compared(run, f"{split}, {metric}", before, after)
            )
    return _frame(rows, "before and after")


def estimators(runs: Sequence[Run]) -> pd.DataFrame:
    """Estimators of both KLs side by side at every evaluated step but 0.

    Columns: run, step, quantity, estimator, mean, standard_error, variance (of one sample), overflows (samples whose value is infinite in
    float64; mean and variance are then infinite too), n.
    """
    rows = []
    for run in runs:
        found = recorded(run)
        for quantity, (split, names) in ESTIMATORS.items():
            for name, (metric, sign) in names.items():
                for step in found.steps(split, metric):
                    if step > 0:
                        values = found.at(split, metric, step).to_numpy()
                        rows.append(
                            {"run": run.id, "step": step, "quantity": quantity, "estimator": name}
                            | _moments(sign * values)
                        )
    return _frame(rows, "KL estimates").sort_values(["run", "step"], kind="stable", ignore_index=True)


def benchmarks(
    runs: Sequence[Run],
    correction: Correction = "holm",
    *,
    metric: str | None = None,
    against: Run | None = None,
) -> pd.DataFrame:
    """Benchmarks before and after: one row for each run, task and metric, with paired tests adjusted over all rows.

    Columns: run, task, metric, before, after, after_low, after_high, difference, low, high, n, test, p, adjusted_p.

    Args:
        runs: finished runs with benchmarks.
        correction: for the number of rows; see `analysis.statistics.adjusted`.
        metric: only this one, so that the family of tests is smaller.
        against: a run whose last step takes the place of each run's own step 0.

    Raises:
        RecordError: as `measures`, or `against` lacks a task.
    """
    other = {} if against is None else {(split, name): after for split, name, _, after in _before_and_after(against)}
    rows = []
    for run in runs:
        for split, name, before, after in _before_and_after(run):
            if not split.startswith(BENCHMARK) or metric not in (None, name):
                continue
            if against is not None:
                if (split, name) not in other:
                    raise RecordError(
                        against.folder, f"has no {name} of {split.removeprefix(BENCHMARK)}, which {run.id} has"
                    )
                before = other[split, name]
            where = f"{split}, {name}"
            row: dict[str, object] = {"run": run.id, "task": split.removeprefix(BENCHMARK), "metric": name}
            row |= _compared(run, where, before, after)
            row["p"], row["test"] = paired_test(before, after)
            rows.append(row)
    frame = _frame(rows, f"benchmarks{'' if metric is None else f' with the metric {metric}'}")
    return frame.assign(adjusted_p=adjusted(frame["p"], correction))


def _before_and_after(run: Run) -> Iterator[tuple[str, str, pd.Series, pd.Series]]:
    """(split, metric, values at step 0, values at the last step with that metric), the values by item."""
    found = recorded(run)
    for split, metric in found.names:
        steps = found.steps(split, metric)
        if steps[0] == 0 and len(steps) > 1:
            yield split, metric, found.at(split, metric, 0), found.at(split, metric, steps[-1])


def _compared(run: Run, where: str, before: pd.Series, after: pd.Series) -> dict[str, object]:
    try:
        level, difference = mean(after), paired_difference(after, before)
    except ValueError as error:
        raise RecordError(run.folder, f"{where}: {error}") from error
    return {
        "before": float(before.mean()),
        "after": level.estimate,
        "after_low": level.low,
        "after_high": level.high,
        "difference": difference.estimate,
        "low": difference.low,
        "high": difference.high,
        "n": difference.n,
    }


def _moments(values: np.ndarray) -> dict[str, float]:
    overflows = int(np.isinf(values).sum())
    variance = float("inf") if overflows else float(np.var(values, ddof=1)) if len(values) > 1 else float("nan")
    return {
        "mean": float(np.mean(values)),
        "standard_error": float(np.sqrt(variance / len(values))),
        "variance": variance,
        "overflows": overflows,
        "n": len(values),
    }


def _frame(rows: list[dict[str, object]], what: str) -> pd.DataFrame:
    if not rows:
        raise MissingEvaluations(f"no {what} in these records; they are made by: python -m llm_runs run, or evaluate")
    return pd.DataFrame(rows)


class MissingEvaluations(ValueError):
    """The records have nothing of what was asked for."""


def interval_text(row: pd.Series, estimate: str, low: str, high: str) -> str:
    """An estimate of a table's row with its interval, for people."""
    value = Interval(float(row[estimate]), float(row[low]), float(row[high]), int(row["n"]))
    return str(value) if value.known else f"{value.estimate:.3g}"

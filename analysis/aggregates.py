"""Many tasks, few runs: interquartile means, performance profiles, probability of improvement (Agarwal et al. 2021, arXiv 2108.13264).

A task is anything under which every method is run: a kind of labels, a support, a benchmark, a world. The bootstrap is
stratified: the runs of each task are resampled among themselves, the tasks stay. These are rliable's definitions. The library
itself cannot be had beside pandas 3 (it needs arch < 8, which fails to import there), and it draws from numpy's global generator,
so that no argument makes it repeat itself; scipy has all that it needs, and the tests hold the results to the library's own.

The interval covers runs of these tasks, nothing else. A percentile bootstrap of few runs is too narrow: by (R - 1)/R in variance
for R runs of a task (docs/statistics.md has its measured coverage). Verdicts therefore rest on `analysis.seeds`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from analysis.evidence import FULL, Setting
from analysis.statistics import LEVEL, RESAMPLES, SEED

Array = NDArray[np.float64]
Tasks = Sequence[Array]  # one array of runs for each task, runs on the last axis
COLUMNS = ("method", "task", "seed", "score")


def interquartile_mean(tasks: Tasks) -> Array:
    """Mean of the middle half of all runs of all tasks: less moved by outliers than the mean, more efficient than the median."""
    return np.asarray(stats.trim_mean(np.concatenate(tasks, axis=-1), 0.25, axis=-1))


def mean(tasks: Tasks) -> Array:
    """Mean over tasks of each task's mean."""
    return np.asarray(np.mean([task.mean(axis=-1) for task in tasks], axis=0))


def median(tasks: Tasks) -> Array:
    """Median over tasks of each task's mean."""
    return np.asarray(np.median([task.mean(axis=-1) for task in tasks], axis=0))


def optimality_gap(tasks: Tasks, target: float = 1.0) -> Array:
    """How far scores fall short of ``target``, those above it counting as reaching it."""
    return np.asarray(target - np.mean(np.minimum(np.concatenate(tasks, axis=-1), target), axis=-1))


STATISTICS: dict[str, Callable[[Tasks], Array]] = {
    "interquartile mean": interquartile_mean,
    "mean": mean,
    "median": median,
}


def aggregate(frame: pd.DataFrame, target: float | None = None) -> pd.DataFrame:
    """Each method's scores in one number, several ways.

    Args:
        frame: one row a run: method, task, seed, score.
        target: adds the optimality gap to this score.

    Returns:
        Rows (method, statistic): estimate, low, high (95 % stratified bootstrap over runs; NaN where a task has a single run), runs
        (fewest of a task), tasks.

    Raises:
        ValueError: a column is missing, a score is not finite, a run is there twice, or methods were run on different tasks.
    """
    chosen = dict(STATISTICS)
    if target is not None:
        chosen["optimality gap"] = lambda tasks: optimality_gap(tasks, target)
    rows = []
    for method, tasks in _by_method(frame).items():
        for name, statistic in chosen.items():
            estimate, low, high = _interval(tasks, statistic)
            rows.append(
                {
                    "method": method,
                    "statistic": name,
                    "estimate": float(estimate),
                    "low": float(low),
                    "high": float(high),
                }
                | {"runs": min(map(len, tasks)), "tasks": len(tasks)}
            )
    return pd.DataFrame(rows)


def performance_profiles(frame: pd.DataFrame, thresholds: ArrayLike | None = None) -> pd.DataFrame:
    """By method and threshold: the share of runs (over all tasks) whose score lies above it (Dolan and Moré 2002, for scores).

    Args:
        frame: as of `aggregate`.
        thresholds: (T,); default: 101 from the lowest to the highest score.

    Returns:
        Rows (method, threshold): share, low, high (95 %, pointwise, over runs).

    Raises:
        ValueError: as `aggregate`.
    """
    scores = _by_method(frame)
    every = np.concatenate([task for tasks in scores.values() for task in tasks])
    at = np.linspace(every.min(), every.max(), 101) if thresholds is None else np.sort(np.ravel(thresholds))
    rows = []
    for method, tasks in scores.items():

        def share(resampled: Tasks) -> Array:
            runs = np.concatenate(resampled, axis=-1)
            return np.stack([(runs > one).mean(axis=-1) for one in at])

        estimate, low, high = _interval(tasks, share)
        rows += [
            {"method": method, "threshold": float(x), "share": float(y), "low": float(a), "high": float(b)}
            for x, y, a, b in zip(
                at, estimate, np.broadcast_to(low, at.shape), np.broadcast_to(high, at.shape), strict=True
            )
        ]
    return pd.DataFrame(rows)


def probability_of_improvement(frame: pd.DataFrame, pairs: Iterable[tuple[str, str]] | None = None) -> pd.DataFrame:
    """How probable it is that a run of one method scores above a run of another, on a task drawn at random; ties count half.

    The mean over tasks of the Mann-Whitney statistic over the product of the runs.

    Args:
        frame: as of `aggregate`.
        pairs: (first, second) methods; default: all in their order.

    Returns:
        Rows (first, second): probability, low, high (95 % stratified bootstrap over the runs of both), runs, tasks.

    Raises:
        ValueError: as `aggregate`, or a method of ``pairs`` is not in the frame.
    """
    scores = _by_method(frame)
    rows = []
    for first, second in itertools.combinations(scores, 2) if pairs is None else pairs:
        for name in (first, second):
            if name not in scores:
                raise ValueError(f"there are no scores of {name!r}; there are {', '.join(scores)}")
        size = len(scores[first])

        def above(both: Tasks, size: int = size) -> Array:
            ahead = [
                np.sign(one[..., :, None] - two[..., None, :]).mean(axis=(-2, -1))
                for one, two in zip(both[:size], both[size:], strict=True)
            ]
            return np.asarray((1 + np.mean(ahead, axis=0)) / 2)

        both = [*scores[first], *scores[second]]
        estimate, low, high = _interval(both, above)
        rows.append(
            {"first": first, "second": second, "probability": float(estimate), "low": float(low), "high": float(high)}
            | {"runs": min(map(len, both)), "tasks": size}
        )
    return pd.DataFrame(rows)


def _by_method(frame: pd.DataFrame) -> dict[str, list[Array]]:
    """By method: one array of runs for each task, tasks in one order."""
    missing = [name for name in COLUMNS if name not in frame]
    if missing:
        raise ValueError(f"scores need the columns {', '.join(COLUMNS)}; {', '.join(missing)} is missing")
    if frame.empty:
        raise ValueError("there are no scores")
    if not np.isfinite(frame["score"].to_numpy(dtype=float)).all():
        raise ValueError(
            "a score is not finite: a run that diverged needs a score of its own, such as that of the reference"
        )
    repeated = frame[frame.duplicated(["method", "task", "seed"])]
    if len(repeated):
        one = repeated.iloc[0]
        raise ValueError(f"{one['method']} has two scores of {one['task']}, seed {one['seed']}")
    tasks = sorted(frame["task"].unique())
    found: dict[str, list[Array]] = {}
    for method, rows in frame.groupby("method", sort=True):
        by_task = {task: group["score"].to_numpy(dtype=float) for task, group in rows.groupby("task")}
        lacking = [str(task) for task in tasks if task not in by_task]
        if lacking:
            raise ValueError(
                f"{method} was not run on {', '.join(lacking)}: methods are aggregated over the same tasks"
            )
        found[str(method)] = [by_task[task] for task in tasks]
    return found


def _interval(tasks: Tasks, statistic: Callable[[Tasks], Array]) -> tuple[Any, Any, Any]:
    """The statistic and its percentile interval; one sample a task is what makes scipy's bootstrap stratified."""
    estimate = statistic(tasks)
    if min(map(len, tasks)) < 2:
        return estimate, np.nan, np.nan
    result = stats.bootstrap(
        tasks,
        lambda *drawn, axis: statistic(drawn),
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(SEED),
    )
    return estimate, result.confidence_interval.low, result.confidence_interval.high


def scores_of(settings: Iterable[Setting], split: str = "held_out_prompts", metric: str = "reward") -> pd.DataFrame:
    """Scores for the functions above: the mean over items at the last step, one row a run.

    Methods are labels with hyper-parameters; a task is a kind of labels with a support of the pairs. Only tasks under which every
    method was run are kept, as aggregates need.

    Raises:
        ValueError: no task was run by every method.
    """
    rows = []
    for setting in settings:
        for seed, score in setting.values(split, metric).mean(axis=1).items():
            task = setting.labels if setting.support == FULL else f"{setting.labels}, pairs of {setting.support}"
            rows.append({"method": setting.label, "task": task, "seed": str(seed), "score": float(score)})
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    methods = frame.groupby("task")["method"].nunique()
    kept = frame[frame["task"].isin(methods.index[methods == frame["method"].nunique()])]
    if kept.empty:
        raise ValueError("no kind of labels and support was run by every one of these methods")
    return kept.reset_index(drop=True)

"""Benchmarks before and after training, with intervals (language model, measured; claim C6)."""

from __future__ import annotations

import pandas as pd

from analysis.evaluations import BENCHMARK
from analysis.evidence import LLM_COMMAND, NEAR_DETERMINISTIC, Evidence, MissingEvidence, Setting
from analysis.statistics import Interval, adjusted, paired_test
from paper_figures import selection
from paper_figures.benchmarks import metric_of
from paper_figures.tables import Table

CLAIMS = ("C6",)
CAPTION = (
    "Benchmarks unrelated to the preferences, before and after training on near-deterministic labels: accuracy and its change on the "
    "same questions in percentage points, with 95 % intervals ('none' where no answer changed), and the p of no change, adjusted for "
    "all rows (Holm): of one training seed by a paired test (McNemar where scores are 0 or 1, else permutation), of several by the "
    "interval over seeds and questions. Of each objective the strength is shown whose reward is nearest to what DPO, IPO and MaxPO all "
    "reach."
)


def tabulate(evidence: Evidence) -> Table:
    """One row per benchmark and objective, a rule between benchmarks."""
    settings = selection.matched(evidence, NEAR_DETERMINISTIC)
    rows = [row for setting in settings for row in _rows(setting)]
    if not rows:
        raise MissingEvidence("benchmarks before and after training", LLM_COMMAND)
    frame = pd.DataFrame(rows)
    frame["adjusted_p"] = adjusted(frame["p"], "holm")
    names = selection.names(settings)
    parts = [
        [_cells(names, row, first=place == 0) for place, (_, row) in enumerate(group.iterrows())]
        for _, group in frame.groupby("task", sort=True)
    ]
    return Table(
        columns="llrrlr",
        heads=("Benchmark", "Objective", "Before", "After", "Change [95 % interval]", "Adj. p"),
        parts=parts,
        frame=frame.sort_values("task", kind="stable"),
        runs=[run for setting in settings for run in setting.runs],
        remarks=selection.rests_on(settings),
    )


def _rows(setting: Setting) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for split in setting.splits:
        task = split.removeprefix(BENCHMARK)
        if not split.startswith(BENCHMARK) or (metric := metric_of(setting, task)) is None:
            continue
        value = selection.change(setting, split, metric)
        before, after = setting.items(split, metric, 0), setting.items(split, metric)
        p, test = paired_test(before, after)
        if len(setting.runs) > 1:
            p, test = (value.p_value(), "interval") if value.known else (1.0, "no answer changed")
        found.append(
            {
                "task": task,
                "metric": metric,
                "objective": setting.label,
                "seeds": len(setting.runs),
                "before": float(before.mean()),
                "after": float(after.mean()),
                "change": value.estimate,
                "low": value.low,
                "high": value.high,
                "n": value.n,
                "test": test,
                "p": p,
            }
        )
    return found


def _cells(names: dict[str, str], row: pd.Series, *, first: bool) -> list[str]:
    estimate, low, high = (100 * float(row[key]) for key in ("change", "low", "high"))
    change = Interval(estimate, low, high, n=int(row["n"]))
    interval = f"[{_signed(change.low)}, {_signed(change.high)}]" if change.known else "[none]"
    return [
        f"{row['task']} (n = {row['n']})" if first else "",
        names[str(row["objective"])],
        f"{100 * float(row['before']):.1f}",
        f"{100 * float(row['after']):.1f}",
        f"{_signed(change.estimate)} {interval}",
        f"{float(row['adjusted_p']):.2g}",
    ]


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−") if round(value, 1) else "0.0"

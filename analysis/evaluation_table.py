"""The command ``python -m analysis evaluation``: evaluated models as tables for people, other programs, and a record."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from analysis.evaluations import KINDS, MissingEvaluations, benchmarks, estimators, interval_text, measures
from analysis.records import RecordError, Run, find_runs, write_run
from analysis.statistics import LEVEL, RESAMPLES, SEED

TABLES = ("measures", "estimators", "benchmarks")
EXAMPLES = """\
examples:
  python -m analysis evaluation out/language_model                        all tables of all runs there
  python -m analysis evaluation out/mine --table benchmarks --metric acc  one family of tests: accuracy of every task
  python -m analysis evaluation out/a/runs/dpo* --against out/a/runs/maxpo* --table benchmarks
  python -m analysis evaluation out/mine --format csv --table estimators > estimators.csv
  python -m analysis evaluation out/mine --out out/summary                the tables as a record too

measures: before (the reference) and after, the paired difference, 95 % bootstrap intervals over items.
estimators: of both KLs, with their variance. benchmarks: paired tests, adjusted for all rows of the table.
"""
_TITLES = {
    "measures": "Before and after",
    "estimators": "Estimators of the KL, nats per completion",
    "benchmarks": "Benchmarks before and after",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("folders", nargs="+", metavar="FOLDER", type=Path, help="runs, or folders of runs")
    parser.add_argument("--table", choices=TABLES, help="one table only (default: every one that the records fill)")
    parser.add_argument(
        "--correction",
        choices=("holm", "bh"),
        default="holm",
        help="for many tests: Holm (default) or Benjamini-Hochberg",
    )
    parser.add_argument("--metric", help="benchmarks: this metric only")
    parser.add_argument("--against", type=Path, metavar="RUN", help="benchmarks: compare with this run's last step")
    parser.add_argument("--format", choices=("text", "markdown", "csv"), default="text", help="default: text")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the tables as a record into DIR")


def command(options: argparse.Namespace) -> list[str]:
    """Print the tables; returns a line for each folder that was skipped.

    Raises:
        MissingEvaluations: the records have nothing of what was asked for.
        RecordError: a folder or record cannot be used.
    """
    runs, skipped = _runs(options.folders)
    against = None
    if options.against is not None:
        found, _ = _runs([options.against])
        if len(found) != 1:
            raise RecordError(options.against, f"--against needs one run, but there are {len(found)}")
        against = found[0]
        runs = [run for run in runs if run.folder.resolve() != against.folder.resolve()]
    if options.metric is not None:
        _check_metric(options.metric, runs)
    tables: dict[str, pd.DataFrame] = {}
    missing = []
    for name in TABLES if options.table is None else (options.table,):
        try:
            if name == "benchmarks":
                tables[name] = benchmarks(runs, options.correction, metric=options.metric, against=against)
            else:
                tables[name] = {"measures": measures, "estimators": estimators}[name](runs)
        except MissingEvaluations as error:
            missing.append(str(error))
    if not tables:
        raise MissingEvaluations(missing[0])
    if options.format == "csv" and len(tables) > 1:
        raise MissingEvaluations(f"--format csv is of one table; add --table with one of {', '.join(tables)}")
    print("\n\n".join(render(name, table, options.format, options.correction) for name, table in tables.items()))
    if options.out is not None:
        _write(options, runs, against, tables)
    return skipped


def render(name: str, table: pd.DataFrame, style: str, correction: str = "holm") -> str:
    """A table of `analysis.evaluations` as text, Markdown or CSV; only the last has every column."""
    if style == "csv":
        return table.to_csv(index=False).rstrip("\n")
    blocks = []
    for run, rows in table.groupby("run", sort=False):
        listed = [_cells(name, row) for _, row in rows.iterrows()]
        shown = tabulate(listed, "keys", tablefmt="github" if style == "markdown" else "simple", disable_numparse=True)
        blocks.append(f"{run}\n\n{shown}")
    return "\n\n".join(
        [f"{'## ' if style == 'markdown' else ''}{_TITLES[name]}", *blocks, _note(name, table, correction)]
    )


def _cells(name: str, row: pd.Series) -> dict[str, str]:
    if name == "estimators":
        return {
            "step": f"{row['step']}",
            "of": row["quantity"],
            "estimator": row["estimator"],
            "mean": f"{row['mean']:.4g}",
            "standard error": f"{row['standard_error']:.2g}",
            "variance": f"{row['variance']:.3g}",
            "overflows": f"{row['overflows']}",
            "n": f"{row['n']}",
        }
    cells = {"split": row["split"]} if name == "measures" else {"task": row["task"]}
    cells |= {
        "metric": row["metric"],
        "before": f"{row['before']:.3g}",
        "after": interval_text(row, "after", "after_low", "after_high"),
        "difference": interval_text(row, "difference", "low", "high"),
        "n": f"{row['n']}",
    }
    if name == "benchmarks":
        cells |= {"test": row["test"], "p": f"{row['p']:.2g}", "adjusted p": f"{row['adjusted_p']:.2g}"}
    return cells


def _note(name: str, table: pd.DataFrame, correction: str) -> str:
    if name == "measures":
        return (
            f"[..]: {100 * LEVEL:.0f} % bootstrap interval over items; none where nothing varies. A win rate's null is 0.5. "
            "Training noise is not in these intervals: that takes several training seeds."
        )
    if name == "estimators":
        return (
            "All are unbiased. 'exact per token' usually has the least variance; k3 of a whole completion has heavy tails, so that its "
            "mean and variance from few samples mean little."
        )
    method = {"holm": "Holm", "bh": "Benjamini-Hochberg"}[correction]
    return (
        f"Adjusted p: {method}, {len(table)} tests. [..]: {100 * LEVEL:.0f} % bootstrap interval over items, each on its own (not "
        "adjusted). McNemar: exact, of 0/1 scores; permutation: before and after swapped by item."
    )


def _runs(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    runs: dict[Path, Run] = {}
    skipped: list[str] = []
    for folder in folders:
        found, lines = find_runs(folder)
        skipped += lines
        runs |= {run.folder.resolve(): run for run in found if run.kind in KINDS and "evaluations" in run.tables}
    if not runs:
        shown = ", ".join(map(str, folders))
        raise MissingEvaluations(f"no evaluated models in {shown}; make some with: python -m llm_runs run, or evaluate")
    return list(runs.values()), skipped


def _check_metric(metric: str, runs: Sequence[Run]) -> None:
    known = sorted({str(name) for run in runs for name in run.table("evaluations")["metric"].unique()})
    if metric not in known:
        near = difflib.get_close_matches(metric, known, n=3) or known
        raise MissingEvaluations(f"no metric {metric!r}; nearest: {', '.join(near)}")


def _write(
    options: argparse.Namespace, runs: Sequence[Run], against: Run | None, tables: dict[str, pd.DataFrame]
) -> None:
    def source(run: Run) -> dict[str, Any]:
        return {"id": run.id, "sha256": run.manifest["tables"]["evaluations"]["sha256"]}

    config = {
        "runs": [source(run) for run in runs],
        "against": None if against is None else source(against),
        "correction": options.correction,
        "metric": options.metric,
        "level": LEVEL,
        "resamples": RESAMPLES,
    }
    write_run(
        options.out,
        kind="evaluation_summary",
        id="evaluation/summary",
        config=config,
        seeds={"resampling": SEED},
        tables=tables,
    )

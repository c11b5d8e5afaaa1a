"""All parts of a report, from the runs below some folders; a part that the records do not have is empty."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.claims import CLAIMS
from analysis.claims.model import Finding, adjusted_findings
from analysis.evidence import Evidence
from analysis.records import Run, find_runs
from analysis.report.benchmarks import benchmarks, has_benchmarks, over_seeds
from analysis.report.cards import cards
from analysis.report.curves import curves
from analysis.report.frontiers import has_points, panels
from analysis.report.runs import Shown, show
from analysis.report.samples import Pool, samples


@dataclass(frozen=True)
class Content:
    """What a page shows.

    Attributes:
        shown: the runs; other parts name them by their place here.
        findings: of all claims; empty where no record is of a kind that claims are about.
        panels, cards, curves, benchmarks, over_seeds, samples: see the modules of these names.
        tests: how many tests the benchmarks' p-values are adjusted for.
        texts: what `samples` points to.
        skipped: a line for each folder that was not read.
        left_out: a line for each thing that was read and could not be shown, or not beside the rest.
    """

    shown: list[Shown]
    findings: list[Finding]
    panels: list[dict[str, Any]]
    cards: list[dict[str, Any]]
    curves: list[dict[str, Any]]
    benchmarks: list[list[Any]]
    over_seeds: list[list[str]]
    tests: int
    samples: list[dict[str, Any]]
    texts: list[str]
    skipped: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def gather(
    folders: Sequence[str | os.PathLike[str]],
    most_samples: int,
    progress: Callable[[str, int], Callable[[], object]] = lambda what, total: lambda: None,
) -> Content:
    """Read the runs at or below the folders and make every part.

    Args:
        folders: runs, or folders of runs; what is found twice counts once.
        most_samples: prompts of a run whose texts are shown.
        progress: called with the name of a part and the number of its steps; returns what to call after each.

    Raises:
        RecordError: a folder does not exist.
    """
    runs, skipped = _runs(folders)
    shown = show(runs)
    findings, evidence_left_out = _findings(runs, progress)
    drawn, not_drawn = panels(shown, progress("frontiers", sum(map(has_points, shown))))
    card, no_card = cards([one.run for one in shown])
    lines, no_lines = curves(shown)
    with_scores = sum(map(has_benchmarks, shown))
    table, tests, no_row = benchmarks(shown, step=progress("benchmarks", with_scores))
    seeds, no_seeds = over_seeds(shown)
    pool = Pool()
    texts = samples(shown, most_samples, pool)
    left_out = [*evidence_left_out, *not_drawn, *no_card, *no_lines, *no_row, *no_seeds]
    return Content(
        shown,
        findings,
        drawn,
        card,
        lines,
        table,
        seeds,
        tests,
        texts,
        pool.texts,
        skipped,
        list(dict.fromkeys(left_out)),
    )


def _runs(folders: Sequence[str | os.PathLike[str]]) -> tuple[list[Run], list[str]]:
    runs: dict[Path, Run] = {}
    skipped: list[str] = []
    for folder in folders:
        found, lines = find_runs(folder)
        runs |= {run.folder.resolve(): run for run in found}
        skipped += lines
    return list(runs.values()), list(dict.fromkeys(skipped))


def _findings(
    runs: Sequence[Run], progress: Callable[[str, int], Callable[[], object]]
) -> tuple[list[Finding], list[str]]:
    if not any(run.kind in ("bandit", "llm", "llm_cost") for run in runs):
        return [], []
    evidence = Evidence(tuple(sorted(runs, key=lambda run: str(run.folder))))
    step = progress("claims", 1)
    found = adjusted_findings(CLAIMS, evidence)
    step()
    return found, evidence.left_out

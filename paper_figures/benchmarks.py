"""Benchmarks before and after training, item by item (language model, measured; claim C6)."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from analysis.claims.c6 import benchmark_changes
from analysis.evidence import LLM_COMMAND, NEAR_DETERMINISTIC, Evidence, MissingEvidence, Setting
from analysis.statistics import mean
from paper_figures import selection, style
from paper_figures.drawing import Drawing

CLAIMS = ("C6",)
CAPTION = (
    "Benchmarks unrelated to the preferences: change of accuracy by training on near-deterministic labels, by objective, on the same "
    "questions before and after. Of each objective the strength is shown whose reward is nearest to what DPO, IPO and MaxPO all "
    "reach. Bars: 95 % intervals over questions; none where no answer changed."
)
LEAST = 2.0  # percentage points to either side that are always shown: no change must not look like a large one


def draw(evidence: Evidence) -> Drawing:
    """One row per objective, one panel per benchmark."""
    settings = selection.matched(evidence, NEAR_DETERMINISTIC)
    changes = {setting.label: benchmark_changes(setting) for setting in settings}
    tasks = sorted({str(task) for found in changes.values() for task in found.index.get_level_values("task")})
    if not tasks:
        raise MissingEvidence("benchmarks before and after training", LLM_COMMAND)
    width = style.SINGLE if len(tasks) == 1 else style.DOUBLE
    figure, axes = style.panels(width, 0.85 + 0.24 * len(settings), 1, len(tasks), sharey=True, sharex=True)
    for axis, task in zip(axes, tasks, strict=True):
        for place, setting in enumerate(settings):
            _row(axis, 100 * _of_task(changes[setting.label], task), place, style.look(setting.objective))
        axis.axvline(0, color=style.BLACK, linewidth=0.8)
        before, n = _before(settings, task)
        axis.set_title(
            f"{task}\n{before:.0%} before, n = {n}" if len(tasks) > 1 else f"{task}: {before:.0%} before, n = {n}"
        )
        axis.set_xlabel("change of accuracy\n[percentage points]")
    low, high = axes[0].get_xlim()
    axes[0].set_xlim(min(low, -LEAST), max(high, LEAST))
    names = selection.names(settings, strength=False)
    axes[0].set_yticks(range(len(settings)), [names[setting.label] for setting in settings])
    axes[0].set_ylim(len(settings) - 0.5, -0.5)
    if len(tasks) > 1:
        style.letter(axes)
    return Drawing(figure, [run for setting in settings for run in setting.runs], selection.remark(settings))


def _of_task(changes: pd.Series, task: str) -> pd.Series:
    return changes[changes.index.get_level_values("task") == task]


def _before(settings: list[Setting], task: str) -> tuple[float, int]:
    """Accuracy of the reference, and the number of questions."""
    for setting in settings:
        frame = setting.evaluations
        rows = frame[(frame["split"] == f"benchmark/{task}") & (frame["step"] == 0)]
        if len(rows):
            first = rows[rows["metric"] == rows["metric"].iloc[0]]
            return float(first["value"].mean()), len(first)
    raise MissingEvidence(f"{task} before training", LLM_COMMAND)


def _row(axis: Axes, changes: pd.Series, place: int, look: style.Look) -> None:
    if changes.empty:
        return
    value = mean(changes)
    axis.errorbar(
        value.estimate,
        place,
        xerr=style.error_lengths([value]),
        color=look.colour,
        marker=look.marker,
        markersize=5,
        linestyle="none",
        elinewidth=1,
    )

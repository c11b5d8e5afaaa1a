"""Off-support likelihood and benchmarks before and after (language model, measured; claims C3 and C6)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.claims.c6 import benchmark_changes
from analysis.evidence import METHODS, NEAR_DETERMINISTIC, NOISY, Evidence, Setting, comparable
from analysis.statistics import Interval, mean
from paper_figures import style
from paper_figures.drawing import Drawing

CLAIMS = ("C3", "C6")
CAPTION = (
    "Off the support of the preferences (language model): (a) change of the log-likelihood of held-out samples"
    " of the reference; (b) accuracy on benchmarks unrelated to the preferences, of the reference (before) and"
    " after training on near-deterministic labels. Of each method the strength is shown whose reward is "
    "nearest to what all methods reach. Bars: 95 % bootstrap intervals over samples and questions."
)


def draw(evidence: Evidence) -> Drawing:
    """Two panels: likelihood of reference samples by labels, benchmarks before and after."""
    chosen = comparable(evidence, NEAR_DETERMINISTIC)
    used = list(chosen.values())
    figure, (left, right) = style.panels(style.DOUBLE, 2.6, 1, 2, width_ratios=(1, 1.3))
    groups = [("near-deterministic", chosen)]
    if {setting.labels for setting in evidence.settings} >= {NOISY} and _have(evidence, NOISY):
        noisy = comparable(evidence, NOISY)
        groups.append(("noisy", noisy))
        used += noisy.values()
    _likelihood(left, groups)
    _benchmarks(right, chosen)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    style.letter((left, right))
    remarks = (
        "Strengths: " + ", ".join(f"{setting.label} ({setting.labels.replace('_', '-')})" for setting in used) + "."
    )
    return Drawing(figure, [run for setting in used for run in setting.runs], remarks)


def _have(evidence: Evidence, labels: str) -> bool:
    return {setting.objective for setting in evidence.settings if setting.labels == labels} >= set(METHODS)


def _likelihood(axis: Axes, groups: list[tuple[str, dict[str, Setting]]]) -> None:
    axis.axhline(0, color=style.BLACK, linewidth=0.8)
    axis.plot([], [], color=style.BLACK, marker="*", markersize=7, linestyle="none", label="reference (before)")
    for index, method in enumerate(METHODS):
        look = style.look(method)
        for place, (_, settings) in enumerate(groups):
            value = mean(settings[method].items("held_out_reference_samples", "log_ratio"))
            _bar(axis, place + 0.2 * (index - 1), value, look, look.label if place == 0 else None)
    axis.set_xticks(range(len(groups)), [f"{name}\nlabels" for name, _ in groups])
    axis.set_xlim(-0.6, len(groups) - 0.4)
    axis.set_ylabel("$\\log\\pi-\\log\\pi_{\\mathrm{ref}}$ of a reference\nsample  [nats per completion]")
    axis.set_title("likelihood of reference samples")


def _benchmarks(axis: Axes, chosen: dict[str, Setting]) -> None:
    scores = {method: _scores(setting) for method, setting in chosen.items()}
    tasks = sorted({task for by_task in scores.values() for task in by_task})
    axis.set_title("benchmarks before and after")
    axis.set_ylabel("accuracy")
    if not tasks:
        axis.text(0.5, 0.5, "no benchmarks in these records", transform=axis.transAxes, ha="center", va="center")
        axis.set_xticks([])
        return
    for place, task in enumerate(tasks):
        before = next(by_task[task][0] for by_task in scores.values() if task in by_task)
        _bar(axis, place - 0.3, mean(before), style.Look("reference", style.BLACK, "*", "none"), None)
        for index, method in enumerate(METHODS):
            if task in scores[method]:
                _bar(axis, place - 0.1 + 0.2 * index, mean(scores[method][task][1]), style.look(method), None)
    axis.set_xticks(range(len(tasks)), [f"{task}\n(n = {len(next(iter(scores.values()))[task][0])})" for task in tasks])
    axis.set_xlim(-0.6, len(tasks) - 0.4)


def _scores(setting: Setting) -> dict[str, tuple[pd.Series, pd.Series]]:
    """By task: the items' scores before and after."""
    found = {}
    for task in benchmark_changes(setting).index.get_level_values("task").unique():
        frame = setting.evaluations
        metric = str(frame.loc[frame["split"] == f"benchmark/{task}", "metric"].iloc[0])
        found[str(task)] = (setting.items(f"benchmark/{task}", metric, 0), setting.items(f"benchmark/{task}", metric))
    return found


def _bar(axis: Axes, x: float, value: Interval, look: style.Look, label: str | None) -> None:
    error = np.array([[value.estimate - value.low], [value.high - value.estimate]]) if value.known else None
    size = 7 if look.marker == "*" else 5
    axis.errorbar(
        x,
        value.estimate,
        yerr=error,
        color=look.colour,
        marker=look.marker,
        markersize=size,
        linestyle="none",
        elinewidth=1,
        label=label,
    )

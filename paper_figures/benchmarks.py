"""Benchmarks before and after training, item by item (language model, measured; claim C6)."""

from __future__ import annotations

from matplotlib.axes import Axes

from analysis.evaluations import BENCHMARK
from analysis.evidence import LLM_COMMAND, NEAR_DETERMINISTIC, Evidence, MissingEvidence, Setting
from analysis.statistics import Interval
from paper_figures import selection, style
from paper_figures.drawing import Drawing

CLAIMS = ("C6",)
CAPTION = (
    "Benchmarks unrelated to the preferences: change of accuracy by training on near-deterministic labels, by objective, on the same "
    "questions before and after. Of each objective the strength is shown whose reward is nearest to what DPO, IPO and MaxPO all "
    "reach. Bars: 95 % intervals; none where no answer changed."
)
LEAST = 2.0  # percentage points to either side that are always shown: no change must not look like a large one


def draw(evidence: Evidence) -> Drawing:
    """One row per objective, one panel per benchmark."""
    settings = selection.matched(evidence, NEAR_DETERMINISTIC)
    tasks = sorted(
        {split.removeprefix(BENCHMARK) for one in settings for split in one.splits if split.startswith(BENCHMARK)}
    )
    if not tasks:
        raise MissingEvidence("benchmarks before and after training", LLM_COMMAND)
    width = style.SINGLE if len(tasks) == 1 else style.DOUBLE
    figure, axes = style.panels(width, 0.95 + 0.24 * len(settings), 1, len(tasks), sharey=True, sharex=True)
    for axis, task in zip(axes, tasks, strict=True):
        before = float("nan")
        n = 0
        for place, setting in enumerate(settings):
            metric = metric_of(setting, task)
            if metric is not None:
                value = selection.change(setting, f"{BENCHMARK}{task}", metric, scale=100)
                _row(axis, value, place, style.look(setting.objective))
                before, n = float(setting.items(f"{BENCHMARK}{task}", metric, 0).mean()), value.n
        axis.axvline(0, color=style.BLACK, linewidth=0.8)
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


def metric_of(setting: Setting, task: str) -> str | None:
    """The benchmark's metric: accuracy where it has one, else its first; None where it was not run."""
    frame = setting.evaluations
    found = sorted(str(name) for name in frame.loc[frame["split"] == f"{BENCHMARK}{task}", "metric"].unique())
    return "acc" if "acc" in found else next(iter(found), None)


def _row(axis: Axes, value: Interval, place: int, look: style.Look) -> None:
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

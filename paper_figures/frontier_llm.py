"""KL-vs-reward on the language model, with intervals over prompts (measured; claims C1 and C7)."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from analysis.claims.c7 import measured_points
from analysis.evidence import Evidence, Setting
from analysis.statistics import Interval, mean
from paper_figures import selection, style
from paper_figures.drawing import Drawing

CLAIMS = ("C1", "C7")
CAPTION = (
    "KL-vs-reward on the language model: ground-truth reward of the policy's own completions of held-out "
    "prompts, against their per-token KL to the reference, summed over the completion. Each line is one "
    "training run at one strength, from the reference (star) through its checkpoints; the large marker is its "
    "end. Bars: 95 % bootstrap intervals over prompts."
)


def draw(evidence: Evidence) -> Drawing:
    """One panel per kind of labels, near-deterministic first."""
    labels = selection.label_kinds(evidence)
    figure, axes = style.panels(
        style.SINGLE if len(labels) == 1 else style.DOUBLE, 2.9, 1, len(labels), sharex=True, sharey=True
    )
    for axis, name in zip(axes, labels, strict=True):
        settings = evidence.language_model(None, name)
        axis.set_title(selection.labels_title(settings))
        for objective in style.order(setting.objective for setting in settings):
            _lines(axis, [setting for setting in settings if setting.objective == objective], objective)
        axis.set_xlabel("KL(policy ‖ reference)  [nats per completion]")
    axes[0].set_ylabel("reward")
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2 if len(labels) == 1 else 3)
    if len(labels) > 1:
        style.letter(axes)
    used = evidence.language_model()
    return Drawing(figure, [run for setting in used for run in setting.runs], selection.seeds(used))


def _lines(axis: Axes, settings: list[Setting], objective: str) -> None:
    look = style.look(objective)
    names = selection.names(settings)
    for setting, colour in zip(settings, style.shades(look.colour, len(settings)), strict=True):
        points = measured_points([setting])
        kl = [_interval(values) for values in points.kl]
        reward = [_interval(values) for values in points.reward]
        x, y = [one.estimate for one in kl], [one.estimate for one in reward]
        axis.plot(x, y, color=colour, linestyle=look.line, linewidth=1.0)
        axis.errorbar(
            x[1:],
            y[1:],
            xerr=style.error_lengths(kl[1:]),
            yerr=style.error_lengths(reward[1:]),
            color=colour,
            linestyle="none",
            marker=look.marker,
            markersize=2.5,
            elinewidth=0.6,
        )
        axis.plot(
            x[-1],
            y[-1],
            color=colour,
            marker=look.marker,
            markersize=6,
            linestyle=look.line,
            label=names[setting.label],
        )
        axis.plot(x[0], y[0], color=style.BLACK, marker="*", markersize=8, zorder=4)


def _interval(values: np.ndarray) -> Interval:
    """Mean with its interval; a column that does not vary (the reference's own KL is 0) has none."""
    return mean(values, over="prompts")

"""KL-vs-reward on the language model, with bands and training paths (measured; claims C1 and C7)."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.evidence import Evidence, Setting
from analysis.frontiers import band
from analysis.measured import measured_points, training_paths
from paper_figures import selection, style
from paper_figures.drawing import Drawing

CLAIMS = ("C1", "C7")
CAPTION = (
    "KL-vs-reward on the language model: ground-truth reward of the policy's own completions of held-out prompts, against their "
    "per-token KL to the reference, summed over the completion. Thin lines: every training run from the reference (star) through its "
    "checkpoints; markers: its end. Strong lines with bands: the method's frontier over all its strengths and checkpoints (monotone "
    "fit) with 95 % intervals, pointwise."
)
MOST = (
    7  # objectives in one panel; of more, those that the claims are about are shown, and `off_support` has the others
)


def draw(evidence: Evidence) -> Drawing:
    """One panel per kind of labels, near-deterministic first."""
    kinds = selection.label_kinds(evidence)
    present = style.order(setting.objective for setting in evidence.language_model())
    shown = present if len(present) <= MOST else [name for name in present if name in style.LOOKS]
    columns = len(kinds) if len(kinds) <= 3 else 2
    rows = -(-len(kinds) // columns)
    width = style.SINGLE if len(kinds) == 1 else style.DOUBLE
    figure, axes = style.panels(width, 0.75 + 2.05 * rows, rows, columns, sharex=True, sharey=True)
    used: list[Setting] = []
    for place, (axis, kind) in enumerate(zip(axes, kinds, strict=False)):
        for name in shown:
            if any(one.objective == name for one in evidence.language_model(labels=kind)):
                settings = evidence.method(name, kind)
                used += settings
                _method(axis, settings, style.look(name))
        axis.set_title(selection.labels_title(evidence.language_model(labels=kind)))
        if place >= len(kinds) - columns:
            axis.set_xlabel("KL(policy ‖ reference)\n[nats per completion]")
            axis.tick_params(labelbottom=True)
        if place % columns == 0:
            axis.set_ylabel("reward")
    for axis in axes[len(kinds) :]:
        axis.remove()
    looks = [style.look(name) for name in style.order(setting.objective for setting in used)]
    handles = [
        Line2D([], [], color=one.colour, marker=one.marker, linestyle=one.line, label=one.label) for one in looks
    ]
    handles.append(Line2D([], [], color=style.BLACK, marker="*", markersize=8, linestyle="none", label="reference"))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=2 if len(kinds) == 1 else 5 if len(handles) == 5 else 4
    )
    if len(kinds) > 1:
        style.letter(axes[: len(kinds)])
    return Drawing(figure, [run for setting in used for run in setting.runs], selection.remark(used))


def _method(axis: Axes, settings: list[Setting], look: style.Look) -> None:
    paths = training_paths(settings)
    for _, path in paths.groupby(["label", "seed"], sort=True):
        path = path.sort_values("step")
        axis.plot(path["kl"], path["reward"], color=look.colour, linestyle=look.line, linewidth=0.6, alpha=0.5)
        axis.plot(path["kl"].iloc[-1], path["reward"].iloc[-1], look.marker, color=look.colour, markersize=4)
    points = measured_points(settings)
    fitted = band(points)
    axis.plot(fitted["kl"], fitted["reward"], color=look.colour, linestyle=look.line, linewidth=1.6)
    known = np.isfinite(fitted["low"]) & np.isfinite(fitted["high"])
    axis.fill_between(
        fitted["kl"], fitted["low"], fitted["high"], where=known, color=look.colour, alpha=0.15, linewidth=0
    )
    axis.plot(points.kl[0].mean(), points.reward[0].mean(), "*", color=style.BLACK, markersize=8, zorder=4)

"""Training curves on the language model (measured; claims C1 and C4)."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.evidence import METHODS, NEAR_DETERMINISTIC, NOISY, Evidence, Setting, comparable
from paper_figures import selection, style
from paper_figures.drawing import Drawing

CLAIMS = ("C1", "C4")
CAPTION = (
    "Training on the language model: preference accuracy on held-out pairs (filled) and on training pairs "
    "(open markers, dotted), per-token KL to the reference on held-out prompts, and the change of the "
    "log-likelihood of the chosen answers of held-out pairs. Rows: kind of labels. Bars: 95 % "
    "intervals. Of each method the strength is shown whose reward is nearest to what all"
    " methods reach."
)
_TRAINING: dict[str, Any] = {"linewidth": 0.8, "linestyle": ":", "fillstyle": "none"}
COLUMNS = (
    ("held_out_pairs", "preference_accuracy", "preference accuracy"),
    ("held_out_prompts", "kl_policy_reference", "KL(policy ‖ reference)\n[nats per completion]"),
    ("held_out_pairs", "chosen_log_ratio", "$\\log\\pi-\\log\\pi_{\\mathrm{ref}}$ of chosen\n[nats per completion]"),
)


def draw(evidence: Evidence) -> Drawing:
    """Three panels in a row for each kind of labels."""
    near = comparable(evidence, NEAR_DETERMINISTIC)
    groups = [(NEAR_DETERMINISTIC, near)]
    if {setting.objective for setting in evidence.settings if setting.labels == NOISY} >= set(METHODS):
        groups.append((NOISY, comparable(evidence, NOISY)))
    figure, axes = style.panels(style.DOUBLE, 0.5 + 1.75 * len(groups), len(groups), 3, sharex=True, sharey="col")
    for row, (labels, settings) in enumerate(groups):
        for axis, (split, metric, name) in zip(axes[3 * row : 3 * row + 3], COLUMNS, strict=True):
            for method, setting in settings.items():
                if metric == "preference_accuracy":
                    _on_training_pairs(axis, setting, style.look(method))
                _measured(axis, setting, split, metric, style.look(method))
            axis.set_ylabel(name)
            axis.set_title(f"{labels.replace('_', '-')} labels")
            if row == len(groups) - 1:
                axis.set_xlabel("training step")
    handles = {label: handle for handle, label in zip(*axes[0].get_legend_handles_labels(), strict=True)}
    handles["training pairs"] = Line2D([], [], color=style.GREY, marker="o", **_TRAINING)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
    style.letter(axes)
    used = [setting for _, settings in groups for setting in settings.values()]
    return Drawing(figure, [run for setting in used for run in setting.runs], selection.remark(used))


def _on_training_pairs(axis: Axes, setting: Setting, look: style.Look) -> None:
    """Accuracy on the training pairs: its distance from the held-out line is the overfitting gap."""
    values = {step: setting.items("training_pairs", "preference_accuracy", step).mean() for step in setting.steps}
    axis.plot(list(values), list(values.values()), color=look.colour, marker=look.marker, **_TRAINING)


def _measured(axis: Axes, setting: Setting, split: str, metric: str, look: style.Look) -> None:
    values = {step: selection.measured(setting, split, metric, step) for step in setting.steps}
    found = {step: value for step, value in values.items() if np.isfinite(value.estimate)}
    if not found:
        return
    estimates = np.array([value.estimate for value in found.values()])
    axis.errorbar(
        list(found),
        estimates,
        yerr=style.error_lengths(found.values()),
        color=look.colour,
        marker=look.marker,
        linestyle=look.line,
        elinewidth=0.7,
        label=look.label,
    )

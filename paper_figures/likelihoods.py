"""What becomes of the likelihood of chosen and rejected answers while training, and of the sigmoid's saturation (measured)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.evidence import METHODS, Evidence, MissingEvidence, Setting, comparable
from paper_figures import selection, style
from paper_figures.drawing import Drawing

CLAIMS = ("C1", "C4")
CAPTION = (
    "Likelihood of the answers of labelled pairs while training, against the reference, on the language model: "
    "held-out pairs (filled, 95 % intervals) and training pairs (open markers, dotted). A margin can grow while the "
    "chosen answers themselves become less likely. Right, where there are any: share of a step's pairs on the flat part of their loss "
    "(a sigmoid's argument beyond 5 on either side, a logistic's beyond 5), so that they hardly move the policy; the square has "
    "none. Rows: kind of labels. Of each method the strength is shown whose reward is nearest to what all methods reach (without "
    "rewards, the largest)."
)
_TRAINING: dict[str, Any] = {"linewidth": 0.8, "linestyle": ":", "fillstyle": "none"}
COLUMNS = (
    ("chosen_log_ratio", "chosen"),
    ("rejected_log_ratio", "rejected"),
)


def draw(evidence: Evidence) -> Drawing:
    """Three panels in a row for each kind of labels: chosen, rejected, saturation."""
    groups = [(labels, found) for labels in selection.label_kinds(evidence) if (found := _settings(evidence, labels))]
    used = [setting for _, settings in groups for setting in settings]
    if not groups:
        evidence.language_model()  # says which records are missing
    saturating = any((_saturated(setting)["value"] > 0).any() for setting in used)
    columns = 3 if saturating else 2
    figure, axes = style.panels(style.DOUBLE, 0.5 + 1.75 * len(groups), len(groups), columns, sharex=True)
    for row, (labels, settings) in enumerate(groups):
        panels = axes[columns * row : columns * (row + 1)]
        for axis, (metric, name) in zip(panels, COLUMNS, strict=False):
            for setting in settings:
                _likelihood(axis, setting, metric)
            axis.axhline(0, color=style.GREY, linewidth=0.6)
            axis.set_ylabel(f"$\\log\\pi-\\log\\pi_{{\\mathrm{{ref}}}}$ of {name}\n[nats per completion]")
        for axis in panels[2:]:
            for setting in settings:
                _saturation(axis, setting)
            axis.set_ylim(-0.04, 1.04)
            axis.set_ylabel("share of saturated pairs")
        for axis in panels:
            axis.set_title(f"{labels.replace('_', '-')} labels")
            if row == len(groups) - 1:
                axis.set_xlabel("training step")
    handles = {label: handle for handle, label in zip(*axes[0].get_legend_handles_labels(), strict=True)}
    handles["training pairs"] = Line2D([], [], color=style.GREY, label="training pairs", **_TRAINING, marker="o")
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
    style.letter(axes)
    remark = selection.remark(used) + ("" if saturating else " No pair is saturated at any step, so that is not drawn.")
    return Drawing(figure, [run for setting in used for run in setting.runs], remark)


def _settings(evidence: Evidence, labels: str) -> list[Setting]:
    """The compared methods where all are there with rewards; else every objective of the records, at its largest strength."""
    scored = {
        setting.objective
        for setting in evidence.settings
        if setting.labels == labels and len(setting.items("held_out_prompts", "reward"))
    }
    if scored >= set(METHODS):
        return list(comparable(evidence, labels).values())
    try:
        found = {setting.objective: setting for setting in evidence.language_model(labels=labels)}
    except MissingEvidence:
        return []
    return [found[name] for name in style.order(found)]


def _likelihood(axis: Axes, setting: Setting, metric: str) -> None:
    look = style.look(setting.objective)
    items = {step: setting.items("training_pairs", metric, step) for step in setting.steps}
    training = {step: values.mean() for step, values in items.items() if len(values)}
    axis.plot(list(training), list(training.values()), color=look.colour, marker=look.marker, **_TRAINING)
    values = {step: selection.measured(setting, "held_out_pairs", metric, step) for step in setting.steps}
    found = {step: value for step, value in values.items() if np.isfinite(value.estimate)}
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


def _saturated(setting: Setting) -> pd.DataFrame:
    return setting.metrics[setting.metrics["name"] == "saturated_share"]


def _saturation(axis: Axes, setting: Setting) -> None:
    rows = _saturated(setting)
    if len(rows):
        look = style.look(setting.objective)
        axis.plot(rows["step"], rows["value"], color=look.colour, linestyle=look.line)

"""Over-optimisation: the reward that made the labels, and a second one that nothing optimised (language model, measured)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.evidence import LLM_COMMAND, METHODS, NEAR_DETERMINISTIC, Evidence, MissingEvidence, Setting
from analysis.overoptimisation import humps
from analysis.statistics import Interval
from paper_figures import selection, style
from paper_figures.drawing import Drawing

CLAIMS = ("C7",)
CAPTION = (
    "Over-optimisation on the language model: gain over the reference, against the KL that it cost, of the reward that made the "
    "labels (filled, strong lines) and of a second reward that nothing optimised (open, thin lines), each in standard deviations of "
    "the reference's own reward over prompts. Each line is one training run at one strength through its checkpoints, on "
    "near-deterministic labels. Where the second falls while the first rises, the first is being over-optimised. Bars: 95 % intervals "
    "of the end's gain."
)
COLUMNS = 1 + len(METHODS)  # of the legend: what marks mean, then a method each
REWARDS = {"reward": "reward of the labels", "second_reward": "second reward"}


def draw(evidence: Evidence) -> Drawing:
    """One panel per method on shared axes."""
    settings = {method: evidence.method(method, NEAR_DETERMINISTIC) for method in METHODS}
    handles = _handles(settings)
    figure, axes = style.panels(
        style.DOUBLE, 2.3 + 0.16 * len(handles) / COLUMNS, 1, len(METHODS), sharex=True, sharey=True
    )
    for axis, (method, found) in zip(axes, settings.items(), strict=True):
        look = style.look(method)
        for setting, colour in zip(found, style.shades(look.colour, len(found)), strict=True):
            _paths(axis, setting, look, colour)
        axis.axhline(0, color=style.BLACK, linewidth=0.8)
        axis.plot(0, 0, color=style.BLACK, marker="*", markersize=8, zorder=4)
        axis.set_title(look.label)
        axis.set_xlabel("KL(policy ‖ reference)\n[nats per completion]")
    axes[0].set_ylabel("gain over the reference [s.d.]")
    figure.legend(handles=handles, loc="outside lower center", ncols=COLUMNS)
    style.letter(axes)
    used = [setting for found in settings.values() for setting in found]
    remarks = f"{_falls(used)} {selection.remark(used)}"
    return Drawing(figure, [run for setting in used for run in setting.runs], remarks)


def _falls(settings: list[Setting]) -> str:
    """For how many settings the second reward certainly rose, peaked and fell."""
    found = humps(settings)
    if found.empty:
        return "Too few checkpoints to look for a peak."
    return f"The second reward certainly rose and then fell in {int(found['over_optimised'].sum())} of {len(found)} settings."


def gain(setting: Setting, metric: str, step: int) -> Interval:
    """Gain of a reward over the reference's at ``step``, paired by prompt, in standard deviations of the reference's over prompts.

    Raises:
        MissingEvidence: the reward was not recorded, or does not vary.
    """
    before = setting.items("held_out_prompts", metric, 0)
    if not len(before) or not (spread := float(before.std(ddof=1))) > 0:
        raise MissingEvidence(f"{metric} of {setting.label} before training", LLM_COMMAND)
    return selection.change(setting, "held_out_prompts", metric, step, scale=1 / spread)


def _paths(axis: Axes, setting: Setting, look: style.Look, colour: tuple[float, float, float]) -> None:
    kl = {step: setting.items("held_out_prompts", "kl_policy_reference", step) for step in setting.steps}
    x = pd.Series({step: values.mean() for step, values in kl.items() if len(values)})
    for metric in REWARDS:
        second = metric == "second_reward"
        gains = [Interval(0.0) if step == 0 else gain(setting, metric, int(step)) for step in x.index]
        y = np.array([one.estimate for one in gains])
        fill = "none" if second else "full"
        axis.plot(x, y, color=colour, linestyle=look.line, linewidth=0.8 if second else 1.5)
        axis.plot(x[1:], y[1:], color=colour, linestyle="none", marker=look.marker, markersize=4, fillstyle=fill)
        axis.errorbar(
            x.iloc[-1:], y[-1:], yerr=style.error_lengths(gains[-1:]), color=colour, linestyle="none", elinewidth=0.7
        )


def _handles(settings: dict[str, list[Setting]]) -> list[Line2D]:
    """Column by column, each filled up to the length of the longest."""
    columns = [
        [
            Line2D([], [], color=style.GREY, marker="o", linewidth=1.5, label=REWARDS["reward"]),
            Line2D(
                [], [], color=style.GREY, marker="o", linewidth=0.8, fillstyle="none", label=REWARDS["second_reward"]
            ),
            Line2D([], [], color=style.BLACK, marker="*", linestyle="none", markersize=8, label="reference"),
        ]
    ]
    for method, found in settings.items():
        look, names = style.look(method), selection.names(found)
        shades = style.shades(look.colour, len(found))
        columns.append(
            [
                Line2D([], [], color=colour, marker=look.marker, linestyle=look.line, label=names[setting.label])
                for setting, colour in zip(found, shades, strict=True)
            ]
        )
    longest = max(map(len, columns))
    for column in columns:
        column += [Line2D([], [], linestyle="none", label=" ") for _ in range(longest - len(column))]
    return [handle for column in columns for handle in column]

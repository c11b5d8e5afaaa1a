"""KL-vs-reward on the language model, with intervals over prompts (measured; claims C1 and C7)."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from analysis.evidence import LLM_COMMAND, NEAR_DETERMINISTIC, NOISY, STRENGTHS, Evidence, MissingEvidence, Setting
from analysis.measured import measured_points
from analysis.statistics import Interval, mean
from paper_figures import style
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
    present = {setting.labels for setting in evidence.settings}
    labels = [name for name in (NEAR_DETERMINISTIC, NOISY) if name in present] + sorted(
        present - {NEAR_DETERMINISTIC, NOISY}
    )
    if not labels:
        raise MissingEvidence("language-model runs", LLM_COMMAND)
    figure, axes = style.panels(
        style.SINGLE if len(labels) == 1 else style.DOUBLE, 2.9, 1, len(labels), sharex=True, sharey=True
    )
    for axis, name in zip(axes, labels, strict=True):
        settings = evidence.language_model(None, name)
        temperature = settings[0].runs[0].config["labels"].get("temperature")
        axis.set_title(
            f"{name.replace('_', '-')} labels" + (f" (T = {temperature:g})" if temperature is not None else "")
        )
        for objective in style.order(setting.objective for setting in settings):
            _lines(axis, [setting for setting in settings if setting.objective == objective], objective)
        axis.set_xlabel("KL(policy ‖ reference)  [nats per completion]")
    axes[0].set_ylabel("reward")
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2 if len(labels) == 1 else 3)
    if len(labels) > 1:
        style.letter(axes)
    used = evidence.language_model()
    seeds = min(len(setting.runs) for setting in used)
    remarks = "One training seed." if seeds == 1 else f"Means over {seeds} training seeds."
    return Drawing(figure, [run for setting in used for run in setting.runs], remarks)


def _lines(axis: Axes, settings: list[Setting], objective: str) -> None:
    look = style.look(objective)
    names = _names(settings)
    for setting, colour in zip(settings, style.shades(look.colour, len(settings)), strict=True):
        points = measured_points([setting])
        kl = [_interval(values) for values in points.kl]
        reward = [_interval(values) for values in points.reward]
        x, y = [one.estimate for one in kl], [one.estimate for one in reward]
        axis.plot(x, y, color=colour, linestyle=look.line, linewidth=1.0)
        axis.errorbar(
            x[1:],
            y[1:],
            xerr=_bars(kl[1:]),
            yerr=_bars(reward[1:]),
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


def _names(settings: list[Setting]) -> dict[str, str]:
    """By label: method and strength, with the other hyper-parameters in which settings of one method differ."""
    keys = sorted({key for setting in settings for key in setting.hyperparameters})
    values = {key: {str(setting.hyperparameters.get(key)) for setting in settings} for key in keys}
    differing = [key for key in keys if len(values[key]) > 1 and key.rpartition(".")[2] not in STRENGTHS]
    names = {}
    for setting in settings:
        others = "".join(f", {key} = {setting.hyperparameters.get(key)}" for key in differing)
        strength = f", {setting.symbol} = {setting.strength:g}" if np.isfinite(setting.strength) else ""
        names[setting.label] = f"{style.look(setting.objective).label}{strength}{others}"
    return names


def _interval(values: np.ndarray) -> Interval:
    """Mean with its interval; a column that does not vary (the reference's own KL is 0) has none."""
    return mean(values, over="prompts")


def _bars(intervals: list[Interval]) -> np.ndarray:
    """(2, n): lengths of the bars below and above the estimates, 0 where there is no interval."""
    bars = [(one.estimate - one.low, one.high - one.estimate) if one.known else (0.0, 0.0) for one in intervals]
    return np.maximum(np.asarray(bars, dtype=np.float64).reshape(-1, 2), 0.0).T

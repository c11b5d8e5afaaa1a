"""Online and offline runs of a language model beside what the exact bandit predicts of them (measured and exact; claim C7)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.empirical_bandit import Curve, predicted_beta, reference_rewards, rlhf, whole
from analysis.evidence import Evidence, Setting
from analysis.measured import measured_points
from analysis.records import Run
from paper_figures import style
from paper_figures.drawing import Drawing

CLAIMS = ("C7",)
CAPTION = (
    "Methods on a language model, and what the exact bandit predicts. Left: mean reward against KL to the reference on held-out prompts, "
    "from the reference (star) through each run's checkpoints. Dotted black: the RLHF optima of the bandit whose actions are the "
    "reference's own scored completions of these prompts, the most reward at each KL; solid grey: the same from half of these "
    "completions, so that where the two part, their number limits the prediction. Open markers on it: where a method ends, or aims, "
    "in the exact bandit at its own strength. Right: reward gained as a share of what that optimum gains at the same KL, so that 1 "
    "is the best policy; thin lines: the same loops in exact bandits, against their exact optimum."
)
NEAR = 0.02  # nats: nearer to the reference a share of the gain is noise over noise


def draw(evidence: Evidence) -> Drawing:
    """Two panels: KL against reward with the bandit's optima, and shares of the possible gain."""
    source, rewards = reference_rewards(evidence)
    curve = whole(rewards)
    found = evidence.language_model(labels=source.config["labels"]["name"])
    order = style.order(setting.objective for setting in found)
    settings = sorted(found, key=lambda setting: order.index(setting.objective))
    figure, (left, right) = style.panels(style.DOUBLE, 3.3, 1, 2)
    _bound(left, rewards, curve)
    remarks, beyond = [], []
    for setting in settings:
        points = measured_points([setting])
        kl, reward = points.kl.mean(-1), points.reward.mean(-1)
        if setting.objective == "best_of_n":  # n = 1 is the reference, by more draws than its evaluation has
            kl, reward = kl[1:], reward[1:]
        look = style.look(setting.objective)
        plain: dict[str, Any] = {"color": look.colour, "linestyle": look.line, "marker": look.marker, "markersize": 3.5}
        left.plot(kl, reward, **plain, label=_name(setting))
        share = _share(kl, reward, curve)
        right.plot(kl[share.index], share, **plain)
        beta = predicted_beta(setting)
        if beta is None:
            continue
        optimum = rlhf(rewards, [beta])
        if not optimum.believed[0]:
            beyond.append(_name(setting))
            continue
        left.plot(optimum.kl, optimum.reward, look.marker, color=look.colour, fillstyle="none", markersize=7, zorder=5)
        predicted = f"KL {optimum.kl[0]:.2g}, reward {optimum.reward[0]:.2g}"
        remarks.append(f"{_name(setting)}: predicted {predicted}; last measured {kl[-1]:.2g}, {reward[-1]:.2g}.")
    left.plot(0, measured_points(settings).reward[0].mean(), "*", color=style.BLACK, markersize=8, zorder=6)
    loops = _loops(right, evidence)
    right.axhline(1, color=style.BLACK, linestyle=":")
    left.set_ylabel("reward")
    right.set_ylabel("share of the possible gain")
    for axis in (left, right):
        axis.set_xlabel("KL(policy ‖ reference)  [nats]")
    left.set_title("measured, and the bandit's optima")
    right.set_title("at equal KL")
    handles = [*left.get_legend_handles_labels()[0], Line2D([], [], color=style.GREY, linestyle="-", linewidth=0.8)]
    names = [*left.get_legend_handles_labels()[1], "the same, half the draws"]
    figure.legend(handles, names, loc="outside lower center", ncols=4)
    style.letter((left, right))
    if beyond:
        remarks.append(
            f"Predicted beyond what {rewards.shape[1]} completions of a prompt can show, the best of them alone: {', '.join(beyond)}."
        )
    if not loops:
        remarks.append("No records of exact loops (python -m toy_bandits loop NAME --out out/loops).")
    runs = [run for setting in settings for run in setting.runs]
    return Drawing(figure, [*runs, *loops], " ".join(remarks))


def _bound(axis: Axes, rewards: np.ndarray, curve: Curve) -> None:
    """The optima as far as their draws carry them, and those of half the draws."""
    half = whole(rewards[:, : rewards.shape[1] // 2])
    axis.plot(half.kl[half.believed], half.reward[half.believed], color=style.GREY, linestyle="-", linewidth=0.8)
    look = style.look("rlhf")
    shown = curve.believed
    axis.plot(curve.kl[shown], curve.reward[shown], color=look.colour, linestyle=look.line, label=look.label)


def _share(kl: np.ndarray, reward: np.ndarray, curve: Curve) -> pd.Series:
    """Gain over the first point as a share of the optimum's gain at the same KL, by the number of the point."""
    believed = curve.kl[curve.believed].max(initial=0.0)
    index = np.flatnonzero((kl > NEAR) & (kl <= believed))
    return pd.Series((reward[index] - reward[0]) / (curve.bound(kl[index]) - curve.reward[0]), index=index)


def _loops(axis: Axes, evidence: Evidence) -> list[Run]:
    """The exact loops of the records, where there are any: mean over their problems at each step."""
    shown = []
    for run in evidence.runs:
        name = str(run.config.get("loop", ""))
        if run.kind != "bandit" or name not in style.ONLINE:
            continue
        columns = ["kl_policy_reference", "expected_reward", "reward_bound"]
        kl, reward, bound = run.table("results").groupby("step")[columns].mean().to_numpy().T
        inside = np.isfinite(kl) & (kl > NEAR)
        look = style.look(name)
        axis.plot(
            kl[inside],
            (reward[inside] - reward[0]) / (bound[inside] - reward[0]),
            color=look.colour,
            linestyle=look.line,
            linewidth=0.6,
        )
        shown.append(run)
    return shown


def _name(setting: Setting) -> str:
    look = style.look(setting.objective)
    return f"{look.label}, {setting.symbol} = {setting.strength:g}" if np.isfinite(setting.strength) else look.label

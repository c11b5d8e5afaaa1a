"""What is kept off the pairs at the reward that was earned (language model, measured; claims C3 and C8)."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.evidence import FULL, LLM_COMMAND, Evidence, MissingEvidence, Setting
from paper_figures import selection, style
from paper_figures.drawing import Drawing

CLAIMS = ("C3", "C8")
CAPTION = (
    "What is kept at the reward that was earned, on the language model: change of the log-likelihood of held-out samples of the "
    "reference against the reward on held-out prompts, after training on the surest labels of the records; means over training seeds. A "
    "marker is the end of training at one strength, with 95 % intervals; lines join the strengths of a method. Left: pairs from all of "
    "the reference's samples; right, where the records have them: from a part of these only. Star: the reference."
)
_KEPT = ("held_out_reference_samples", "log_ratio")
MOST = 7  # objectives in a panel; of more, those that have a look of their own, and SFT


def draw(evidence: Evidence) -> Drawing:
    """One panel for each support of the pairs, all of it first."""
    kind = selection.label_kinds(evidence)[0]
    supports = sorted(
        {one.support for one in evidence.language_model(None, kind, None)}, key=lambda name: (name != FULL, name)
    )
    figure, axes = style.panels(style.DOUBLE, 3.0, 1, len(supports), sharey=True)
    used: list[Setting] = []
    for axis, support in zip(axes, supports, strict=True):
        present = style.order(one.objective for one in evidence.language_model(None, kind, support))
        shown = present if len(present) <= MOST else [name for name in present if name in style.LOOKS or name == "sft"]
        for name in shown:
            settings = evidence.method(name, kind, support)
            _method(axis, settings, style.look(name))
            used += settings
        start = selection.measured(used[-1], "held_out_prompts", "reward", 0)
        axis.plot(start.estimate, 0, "*", color=style.BLACK, markersize=8, zorder=4)
        axis.axhline(0, color=style.GREY, linewidth=0.6)
        axis.set_title(selection.support_words(support))
        axis.set_xlabel("reward")
    if not np.isfinite([selection.measured(one, *_KEPT).estimate for one in used]).any():
        raise MissingEvidence("the likelihood of held-out samples of the reference", LLM_COMMAND)
    axes[0].set_ylabel("$\\log\\pi-\\log\\pi_{\\mathrm{ref}}$ of a reference\nsample [nats per completion]")
    looks = [style.look(name) for name in style.order(one.objective for one in used)]
    handles = [
        Line2D([], [], color=one.colour, marker=one.marker, linestyle=one.line, label=one.label) for one in looks
    ]
    handles.append(Line2D([], [], color=style.BLACK, marker="*", markersize=8, linestyle="none", label="reference"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    if len(axes) > 1:
        style.letter(axes)
    return Drawing(figure, [run for one in used for run in one.runs], selection.remark(used))


def _method(axis: Axes, settings: list[Setting], look: style.Look) -> None:
    rewards = [selection.measured(one, "held_out_prompts", "reward") for one in settings]
    kept = [selection.measured(one, *_KEPT) for one in settings]
    places = [one.estimate for one in rewards]
    xerr = style.error_lengths(rewards)
    style.errorbars(axis, places, kept, look, xerr=xerr, linewidth=0.9, elinewidth=0.5)

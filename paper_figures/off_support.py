"""Off-support likelihood: held-out samples of the reference, by objective and support of the pairs (language model, measured; C3)."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.evidence import FULL, Evidence, Setting
from paper_figures import selection, style
from paper_figures.drawing import Drawing

CLAIMS = ("C3", "C8")
CAPTION = (
    "Off the support of the preferences, on a language model: change of the log-likelihood of held-out samples of the reference by "
    "training, by objective; 0 means that the policy still makes them as likely as the reference does. Filled: pairs from all of the "
    "reference's samples; open, where the records have them: from a part of these only. Of each objective the strength is shown whose "
    "reward is nearest to what DPO, IPO and MaxPO all reach. Bars: 95 % intervals."
)


def draw(evidence: Evidence) -> Drawing:
    """One row per objective; one panel for near-deterministic labels, one for the noisiest."""
    kinds = selection.label_kinds(evidence)
    shown = [kinds[0], kinds[-1]] if len(kinds) > 1 else kinds
    supports = sorted({setting.support for setting in evidence.settings}, key=lambda name: (name != FULL, name))
    groups = {kind: [one for support in supports for one in _group(evidence, kind, support)] for kind in shown}
    every = [setting for settings in groups.values() for setting in settings]
    rows = list(
        dict.fromkeys(
            selection.variant(setting) for setting in sorted(every, key=lambda one: supports.index(one.support))
        )
    )
    width = style.DOUBLE if len(groups) > 1 else style.SINGLE
    figure, axes = style.panels(width, 1.0 + 0.24 * len(rows), 1, len(groups), sharex=True, sharey=True)
    for axis, settings in zip(axes, groups.values(), strict=True):
        for setting in settings:
            _row(axis, setting, rows.index(selection.variant(setting)), supports)
        axis.axvline(0, color=style.BLACK, linewidth=0.8)
        axis.set_title(selection.labels_title(settings).replace(" labels", "\nlabels"))
        axis.set_xlabel("$\\log\\pi-\\log\\pi_{\\mathrm{ref}}$ of a reference\nsample [nats per completion]")
    by_label = selection.names(every, strength=False)
    by_variant = {selection.variant(setting): by_label[setting.label] for setting in every}
    axes[0].set_yticks(range(len(rows)), [by_variant[row] for row in rows])
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    if len(supports) > 1:
        figure.legend(handles=_handles(supports), loc="outside lower center", ncols=2)
    if len(axes) > 1:
        style.letter(axes)
    return Drawing(figure, [run for setting in every for run in setting.runs], selection.remark(every))


def _group(evidence: Evidence, kind: str, support: str) -> list[Setting]:
    if any(one.labels == kind and one.support == support for one in evidence.settings):
        return selection.matched(evidence, kind, support)
    return []


def _row(axis: Axes, setting: Setting, place: int, supports: list[str]) -> None:
    look = style.look(setting.objective)
    value = selection.measured(setting, "held_out_reference_samples", "log_ratio")
    shift = 0.2 * (supports.index(setting.support) - (len(supports) - 1) / 2)
    axis.errorbar(
        value.estimate,
        place + shift,
        xerr=style.error_lengths([value]),
        color=look.colour,
        marker=look.marker,
        markersize=5,
        fillstyle="full" if setting.support == FULL else "none",
        linestyle="none",
        elinewidth=1,
    )


def _handles(supports: list[str]) -> list[Line2D]:
    names = {name: selection.support_words(name) for name in supports}
    return [
        Line2D([], [], color=style.GREY, marker="o", linestyle="none", label=label)
        if name == FULL
        else Line2D([], [], color=style.GREY, marker="o", linestyle="none", fillstyle="none", label=label)
        for name, label in names.items()
    ]

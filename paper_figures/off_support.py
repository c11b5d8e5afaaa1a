"""Off-support likelihood: held-out samples of the reference, by objective (language model, measured; claim C3)."""

from __future__ import annotations

from matplotlib.axes import Axes

from analysis.evidence import Evidence, Setting
from paper_figures import selection, style
from paper_figures.drawing import Drawing

CLAIMS = ("C3", "C8")
CAPTION = (
    "Off the support of the preferences, on a language model: change of the log-likelihood of held-out samples of the reference by "
    "training, by objective; 0 means that the policy still makes them as likely as the reference does. Of each objective the strength "
    "is shown whose reward is nearest to what DPO, IPO and MaxPO all reach. Bars: 95 % intervals."
)


def draw(evidence: Evidence) -> Drawing:
    """One row per objective; one panel for near-deterministic labels, one for the noisiest."""
    kinds = selection.label_kinds(evidence)
    shown = [kinds[0], kinds[-1]] if len(kinds) > 1 else kinds
    groups = {kind: selection.matched(evidence, kind) for kind in shown}
    rows = list(dict.fromkeys(setting.variant for settings in groups.values() for setting in settings))
    figure, axes = style.panels(
        style.DOUBLE if len(groups) > 1 else style.SINGLE,
        0.85 + 0.24 * len(rows),
        1,
        len(groups),
        sharex=True,
        sharey=True,
    )
    for axis, settings in zip(axes, groups.values(), strict=True):
        for setting in settings:
            _row(axis, setting, rows.index(setting.variant))
        axis.axvline(0, color=style.BLACK, linewidth=0.8)
        axis.set_title(selection.labels_title(settings))
        axis.set_xlabel("$\\log\\pi-\\log\\pi_{\\mathrm{ref}}$ of a reference sample\n[nats per completion]")
    every = [setting for settings in groups.values() for setting in settings]
    by_label = selection.names(every, strength=False)
    by_variant = {setting.variant: by_label[setting.label] for setting in every}
    axes[0].set_yticks(range(len(rows)), [by_variant[row] for row in rows])
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    if len(axes) > 1:
        style.letter(axes)
    return Drawing(figure, [run for setting in every for run in setting.runs], selection.remark(every))


def _row(axis: Axes, setting: Setting, place: int) -> None:
    look = style.look(setting.objective)
    value = selection.measured(setting, "held_out_reference_samples", "log_ratio")
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

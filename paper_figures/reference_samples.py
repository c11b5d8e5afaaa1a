"""How many samples of the reference the off-policy KL needs (bandit, exact; language model, measured; claim C9)."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from analysis.evidence import NEAR_DETERMINISTIC, Evidence, MissingEvidence, Setting
from analysis.statistics import mean, proportion
from paper_figures import selection, style
from paper_figures.drawing import Drawing

CLAIMS = ("C9",)
CAPTION = (
    "Reference data, computed exactly in a bandit: MaxPO with N samples of the reference in its KL term. (a) "
    "KL from the true reference to the minimiser: median and middle half of the data sets in which every "
    "answer was sampled, levelling off at the KL that the exact reference gives; (b) share of the data sets in"
    " which some answer was never sampled, so that it loses all its mass and the KL is infinite, with 95 % "
    "Wilson intervals, and the reference's mass of such answers. (c), where the records have samples seen several times: change of the "
    "log-likelihood of a held-out reference sample on the language model, by the number of times that training saw each of its reference "
    "samples, with the KL on whole token distributions (filled) and on sampled tokens alone (open); 95 % intervals."
)


def draw(evidence: Evidence) -> Drawing:
    """Two panels over the number of samples."""
    run = evidence.bandit_run("reference_samples")
    frame = run.table("results")
    objectives = style.order(frame["objective"])
    passes = _passes(evidence)
    figure, (left, right, *rest) = style.panels(style.DOUBLE, 2.8, 1, 3 if passes else 2)
    for objective in objectives:
        look = style.look(objective)
        rows = frame[frame["objective"] == objective]
        finite = rows[np.isfinite(rows["kl_reference_policy"])].groupby("samples")["kl_reference_policy"]
        middle = finite.median()
        left.fill_between(
            middle.index, finite.quantile(0.25), finite.quantile(0.75), color=look.colour, alpha=0.2, linewidth=0
        )
        left.plot(middle.index, middle, color=look.colour, marker=look.marker, linestyle=look.line, label=look.label)
    look = style.look(objectives[0])
    rows = frame[frame["objective"] == objectives[0]]
    lost = [(size, group["unsampled_mass"]) for size, group in rows.groupby("samples")]
    sizes = np.array([size for size, _ in lost], dtype=float)
    shares = [proportion(int((mass > 0).sum()), len(mass)) for _, mass in lost]
    right.errorbar(
        sizes,
        [one.estimate for one in shares],
        yerr=style.error_lengths(shares),
        color=style.VERMILLION,
        marker="o",
        label="share of data sets",
    )
    masses = [mean(mass).estimate for _, mass in lost]
    right.plot(sizes, masses, color=style.BLUE, marker="s", linestyle="--", label="mean mass never sampled")
    for axis in (left, right):
        axis.set(xscale="log", xlabel="samples of the reference N")
    left.set(ylabel="KL(reference ‖ policy)  [nats]", title="distance from the reference")
    right.set(ylabel="share, mass", title="answers never sampled")
    for axis in rest:
        _language_model(axis, passes)
    handles = [
        (handle, f"({letter}) {label}")
        for letter, axis in zip("abc", (left, right, *rest), strict=False)
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    ]
    figure.legend(*zip(*handles, strict=True), loc="outside lower center", ncols=3)
    style.letter((left, right, *rest))
    remark = f"{frame['seed'].nunique()} data sets for each N."
    return Drawing(
        figure,
        [run, *(run for one in passes for run in one.runs)],
        f"{remark} (c): {', '.join(dict.fromkeys(one.label for one in passes))}. {selection.rests_on(passes)}"
        if passes
        else remark,
    )


def _passes(evidence: Evidence) -> list[Setting]:
    """Settings with the KL term that were run with samples seen once and several times; none where there are none."""
    try:
        settings = evidence.language_model(None, NEAR_DETERMINISTIC, repeated=True)
    except MissingEvidence:
        return []
    seen: dict[str, set[float]] = {}
    for one in settings:
        seen.setdefault(one.label, set()).add(one.passes)
    return [one for one in settings if len(seen[one.label]) > 1 and one.tokens]


def _language_model(axis: Axes, passes: list[Setting]) -> None:
    times = sorted({one.passes for one in passes})
    labels = list(dict.fromkeys(one.label for one in sorted(passes, key=lambda one: (one.objective, one.label))))
    for place, label in enumerate(labels):
        mine = sorted((one for one in passes if one.label == label), key=lambda one: one.passes)
        look, full = style.look(mine[0].objective), mine[0].tokens == "full"
        values = [selection.measured(one, "held_out_reference_samples", "log_ratio") for one in mine]
        style.errorbars(
            axis,
            [times.index(one.passes) + 0.04 * (place - (len(labels) - 1) / 2) for one in mine],
            values,
            look,
            linestyle=look.line if full else ":",
            fillstyle="full" if full else "none",
            label=f"{look.label.replace('forward KL', 'KL')}, {'distributions' if full else 'samples'}",
        )
    axis.set_xticks(range(len(times)), ["once" if one <= 1 else f"{one:.3g} times" for one in times])
    axis.set(xlim=(-0.4, len(times) - 0.6), xlabel="each sample is seen", title="language model")
    axis.set_ylabel("$\\log\\pi-\\log\\pi_{\\mathrm{ref}}$ of a reference\nsample [nats per completion]")

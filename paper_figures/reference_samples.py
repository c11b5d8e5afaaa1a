"""How many samples of the reference the off-policy KL needs (bandit, exact; claim C9)."""

from __future__ import annotations

import numpy as np

from analysis.evidence import Evidence
from analysis.statistics import mean, proportion
from paper_figures import style
from paper_figures.drawing import Drawing

CLAIMS = ("C9",)
CAPTION = (
    "Reference data, computed exactly in a bandit: MaxPO with N samples of the reference in its KL term. (a) "
    "KL from the true reference to the minimiser: median and middle half of the data sets in which every "
    "answer was sampled, levelling off at the KL that the exact reference gives; (b) share of the data sets in"
    " which some answer was never sampled, so that it loses all its mass and the KL is infinite, with 95 % "
    "Wilson intervals, and the reference's mass of such answers."
)


def draw(evidence: Evidence) -> Drawing:
    """Two panels over the number of samples."""
    run = evidence.bandit_run("reference_samples")
    frame = run.table("results")
    objectives = style.order(frame["objective"])
    figure, (left, right) = style.panels(style.DOUBLE, 2.4, 1, 2, sharex=True)
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
        axis.legend()
    left.set(ylabel="KL(reference ‖ policy)  [nats]", title="distance from the reference")
    right.set(ylabel="share, mass", title="answers never sampled")
    style.letter((left, right))
    return Drawing(figure, [run], f"{frame['seed'].nunique()} data sets for each N.")

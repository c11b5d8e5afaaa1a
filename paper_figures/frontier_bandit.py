"""KL-vs-reward in the bandits, with the RLHF optimum as bound (exact; claim C7)."""

from __future__ import annotations

import numpy as np

from analysis.evidence import Evidence
from paper_figures import style
from paper_figures.drawing import Drawing

CLAIMS = ("C7",)
CAPTION = (
    "KL-vs-reward frontiers, computed exactly in bandits: each line is one method over its whole range of"
    " strengths. No policy can lie above the"
    " RLHF optimum (dotted), which has the best reward at its KL."
)


def draw(evidence: Evidence) -> Drawing:
    """One panel per world."""
    run = evidence.bandit_run("frontier")
    frame = run.table("results")
    worlds = sorted(frame["world"].unique())
    width = style.SINGLE if len(worlds) == 1 else style.DOUBLE
    figure, axes = style.panels(width, 2.6, 1, len(worlds))
    for axis, world in zip(axes, worlds, strict=True):
        here = frame[frame["world"] == world]
        for index, objective in enumerate(style.order(here["objective"])):
            look = style.look(objective)
            rows = here[(here["objective"] == objective) & np.isfinite(here["kl_policy_reference"])]
            rows = rows.sort_values("kl_policy_reference")
            axis.plot(
                rows["kl_policy_reference"],
                rows["expected_reward"],
                color=look.colour,
                linestyle=look.line,
                marker=look.marker,
                markevery=(index * len(rows) // 24, max(len(rows) // 6, 1)),  # apart where curves coincide
                linewidth=2.0 if objective == "rlhf" else 1.2,
                label=look.label,
                zorder=3 if objective == "rlhf" else 2,
            )
        axis.set_xlabel("KL(policy ‖ reference)  [nats]")
        axis.set_title(str(world).replace("_", " "))
    axes[0].set_ylabel("expected reward")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 2 if len(worlds) == 1 else 4))
    if len(worlds) > 1:
        style.letter(axes)
    return Drawing(figure, [run])

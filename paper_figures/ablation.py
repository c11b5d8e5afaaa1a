"""The factorial {pair loss} x {regulariser}: what carries the result (bandit, exact; claim C8)."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import ListedColormap

from analysis.claims.c8 import ablation_cells
from analysis.evidence import Evidence
from paper_figures import style
from paper_figures.drawing import Drawing

CLAIMS = ("C8",)
CAPTION = (
    "Ablation, computed exactly in bandits: every pair loss with every regulariser, in worlds of certain "
    "preferences and of partial support. Each cell says whether the minimiser is finite in every world, and "
    "the largest change of the mass of answers that no pair shows. Dark: finite and kept; middle: one of the "
    "two; light: neither."
)
REGULARISERS = {
    "none": "none",
    "forward_kl": "forward KL",
    "chosen_nll": "NLL of chosen",
}


def draw(evidence: Evidence) -> Drawing:
    """A matrix of cells with text; the colour only repeats what the text says."""
    run = evidence.bandit_run("ablation")
    frame = run.table("results")
    cells = {(row["pair_loss"], row["regulariser"]): row for row in ablation_cells(frame).to_dict("records")}
    rows = style.order(pair_loss for pair_loss, _ in cells)
    columns = sorted({name for _, name in cells}, key=lambda name: ([*REGULARISERS, name].index(name), name))
    figure, (axis,) = style.panels(style.SINGLE, 0.6 + 0.6 * len(rows))
    score = np.full((len(rows), len(columns)), np.nan)
    for y, pair_loss in enumerate(rows):
        for x, regulariser in enumerate(columns):
            if (pair_loss, regulariser) not in cells:
                continue
            cell = cells[pair_loss, regulariser]
            score[y, x] = int(cell["finite"]) + int(cell["kept"])
            change = "mass kept" if cell["kept"] else f"mass moves\nby {cell['drift']:.2g}"
            text = f"{'finite' if cell['finite'] else 'diverges'}\n{change}"
            axis.text(x, y, text, ha="center", va="center", fontsize=7, color="white" if score[y, x] == 2 else "black")
    axis.imshow(score, cmap=ListedColormap(["#ffffff", "#cfe3f1", style.BLUE]), vmin=0, vmax=2, aspect="auto")
    axis.set_xticks(range(len(columns)), [REGULARISERS.get(name, name.replace("_", " ")) for name in columns])
    axis.set_yticks(range(len(rows)), [f"{style.look(name).label}" for name in rows])
    axis.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axis.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    axis.grid(visible=False)
    axis.grid(which="minor", color=style.GREY, linewidth=0.6)
    axis.tick_params(which="both", length=0)
    axis.xaxis.tick_top()
    axis.set_xlabel("regulariser")
    axis.xaxis.set_label_position("top")
    axis.set_ylabel("pair loss")
    axis.spines[:].set_visible(False)
    worlds = ", ".join(str(world).replace("_", " ") for world in sorted(frame["world"].unique()))
    return Drawing(figure, [run], f"Worlds: {worlds}.")

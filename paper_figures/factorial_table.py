"""The factorial {pair loss} x {regulariser} as numbers (bandit, exact; claim C8)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.claims.c8 import ablation_cells
from analysis.evidence import Evidence
from paper_figures import style
from paper_figures.tables import Table

CLAIMS = ("C8",)
CAPTION = (
    "The factorial of pair losses and regularisers, computed exactly in bandits: in each world the minimiser's KL(reference ‖ policy) "
    "in nats (∞: the minimiser is not finite; a star: it is not unique, and the value is the one reached from the reference), and the "
    "largest change of the mass of answers that no pair shows, over both worlds ('kept': none)."
)


def tabulate(evidence: Evidence) -> Table:
    """One row per pair loss and regulariser, a rule between pair losses."""
    run = evidence.bandit_run("ablation")
    frame = run.table("results")
    worlds = sorted(frame["world"].unique())
    cells = ablation_cells(frame).set_index(["pair_loss", "regulariser"])
    parts = []
    for pair_loss in style.order(frame["pair_loss"]):
        rows = frame[frame["pair_loss"] == pair_loss]
        regularisers = sorted(rows["regulariser"].unique(), key=lambda one: (one != "none", one != "forward_kl", one))
        parts.append(
            [
                [
                    style.name(pair_loss) if place == 0 else "",
                    style.name(regulariser),
                    *(_kl(rows[(rows["regulariser"] == regulariser) & (rows["world"] == world)]) for world in worlds),
                    _change(cells.loc[(pair_loss, regulariser)]),
                ]
                for place, regulariser in enumerate(regularisers)
            ]
        )
    return Table(
        columns="ll" + "r" * (len(worlds) + 1),
        heads=("Pair loss", "Regulariser", *(str(world).replace("_", " ") for world in worlds), "Mass off support"),
        parts=parts,
        frame=frame,
        runs=[run],
    )


def _kl(rows: pd.DataFrame) -> str:
    if rows.empty:
        return ""
    row = rows.iloc[0]
    kl = float(row["kl_reference_policy"])
    if row["status"] == "diverges" or not np.isfinite(kl):
        return "∞"
    return f"{kl:.3f}{'*' if row['status'] == 'not_unique' else ''}"


def _change(cell: pd.Series) -> str:
    return "kept" if bool(cell["kept"]) else f"moves by {float(cell['drift']):.2g}"

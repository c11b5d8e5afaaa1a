"""Which component does the work? A two-way table of scores taken apart into main effects and interaction, exactly: nothing is sampled.

For a table s_ij of pair loss i with regulariser j: s_ij = m + a_i + b_j + c_ij with a, b and the rows and columns of c summing to 0, and
sum (s_ij - m)^2 = J sum a_i^2 + I sum b_j^2 + sum c_ij^2. The shares of the three sums say how much of the variation each explains.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

NO_VARIATION = 1e-12
MOST = 0.5
"""From this share on a component does most of the work."""


@dataclass(frozen=True)
class Decomposition:
    """Of one complete table of scores.

    Attributes:
        mean: m.
        losses: a_i by pair loss.
        regularisers: b_j by regulariser.
        interaction: c_ij.
        shares: of the variation: ``pair loss``, ``regulariser``, ``interaction``; they sum to 1, or are 0 where nothing varies.
    """

    mean: float
    losses: pd.Series
    regularisers: pd.Series
    interaction: pd.DataFrame
    shares: dict[str, float]


def decompose(table: pd.DataFrame) -> Decomposition:
    """Take apart a table with one row per pair loss and one column per regulariser.

    Raises:
        ValueError: a score is missing.
    """
    if table.isna().any(axis=None):
        raise ValueError("a score is missing; drop its pair loss first")
    mean = float(table.to_numpy().mean())
    losses, regularisers = table.mean(axis=1) - mean, table.mean(axis=0) - mean
    interaction = table - mean - losses.to_numpy()[:, None] - regularisers.to_numpy()[None, :]
    sums = {
        "pair loss": table.shape[1] * float((losses**2).sum()),
        "regulariser": table.shape[0] * float((regularisers**2).sum()),
        "interaction": float((interaction.to_numpy() ** 2).sum()),
    }
    total = sum(sums.values())
    shares = {key: part / total if total > NO_VARIATION else 0.0 for key, part in sums.items()}
    return Decomposition(mean, losses, regularisers, interaction, shares)


def in_words(found: Decomposition, table: pd.DataFrame) -> str:
    """One or two sentences, from the numbers alone."""
    if not any(found.shares.values()):
        return f"Every combination scores {found.mean:.2f}: neither component matters."
    winner = max(found.shares, key=lambda key: found.shares[key])
    share = found.shares[winner]
    parts = [f"{name} {of:.0%}" for name, of in sorted(found.shares.items(), key=lambda item: -item[1])]
    explained = f"({', '.join(parts)} of the variation)"
    if share < MOST:
        head = f"No component does most of the work {explained}."
    elif winner == "interaction":
        head = f"It depends on the combination {explained}."
    else:
        head = f"The {winner} does most of the work {explained}."
    return f"{head} {_regularisers(table)} {_extremes(table)}".strip()


def _regularisers(table: pd.DataFrame) -> str:
    """What each regulariser changes against none."""
    if "none" not in table or table.shape[1] < 2:
        return ""
    changes = []
    for name in table.columns.drop("none"):
        change = (table[name] - table["none"]).round(2) + 0.0  # no -0.00
        if np.ptp(change) < 0.005:
            changes.append(f"{name} by {change.mean():+.2f}")
        else:
            changes.append(
                f"{name} by {change.mean():+.2f} ({change.min():+.2f} to {change.max():+.2f} over the pair losses)"
            )
    return f"Against no regulariser the score changes with {'; with '.join(changes)}."


def _extremes(table: pd.DataFrame) -> str:
    values = table.to_numpy()
    best, worst = (divmod(int(of), table.shape[1]) for of in (values.argmax(), values.argmin()))
    ties = int((values >= values.max() - 1e-9).sum())
    shared = f", shared by {ties}" if ties > 1 else ""
    return f"Best {_cell(table, *best)} with {values.max():.2f}{shared}, worst {_cell(table, *worst)} with {values.min():.2f}."


def _cell(table: pd.DataFrame, row: int, column: int) -> str:
    loss, regulariser = table.index[row], table.columns[column]
    return f"`{loss}`" if regulariser == "none" else f"`{loss}` + `{regulariser}`"


def complete(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The table without the pair losses that lack a score, and their names."""
    lost = table.index[table.isna().any(axis=1)]
    return table.drop(index=lost), [str(name) for name in lost]

"""The factorial {pair loss} x {regulariser}: which of the two does the work?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from objectives.errors import ObjectiveError
from objectives.registry import parse
from objectives.terms import Objective

NONE = "none"


@dataclass(frozen=True)
class Cell:
    """One combination; ``pair_loss`` and ``regulariser`` are labels, the latter "none" where there is none."""

    pair_loss: str
    regulariser: str
    objective: Objective


def factorial(
    pair_losses: Iterable[str] = ("dpo", "ipo", "maxpo(beta=0)"),
    regularisers: Iterable[str] = (NONE, "forward_kl", "chosen_nll"),
) -> list[Cell]:
    """Every pair loss with every regulariser, as composed objectives, pair losses outermost.

    Args:
        pair_losses: labels as `parse` reads them; a method that brings a regulariser is given without it, e.g. ``maxpo(beta=0)``.
        regularisers: labels, or "none".

    Raises:
        ObjectiveError: an unknown label, or a pair loss that carries a regulariser of the factorial already.
    """
    cells = []
    others = list(regularisers)
    for pair_loss in pair_losses:
        base = parse(pair_loss)
        for regulariser in others:
            added = None if regulariser == NONE else parse(regulariser)
            repeated = {t.name for t in base.terms} & {t.name for t in added.terms} if added else set()
            if repeated:
                raise ObjectiveError(
                    f"{pair_loss} has the term {', '.join(sorted(repeated))} already: give the pair loss without it"
                )
            objective = base if added is None else base + added
            cells.append(Cell(base.label, NONE if added is None else added.label, objective))
    return cells

"""A table of the paper: its cells as they are printed, and the same numbers in full for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.records import Run


@dataclass(frozen=True)
class Table:
    """What a table module's ``tabulate(evidence)`` returns."""

    columns: str  # LaTeX's column specification: one of l r c p{width} for each head
    heads: Sequence[str]
    parts: Sequence[Sequence[Sequence[str]]]  # rows of plain cells, in groups that a rule divides
    frame: pd.DataFrame  # unrounded, written as CSV
    runs: Sequence[Run]
    remarks: str = ""

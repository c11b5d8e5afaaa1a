"""The figures and tables of the paper: one module each, every one a function of run records alone.

A figure module has ``CAPTION``, ``CLAIMS`` and ``draw(evidence) -> Drawing``, a table module ``tabulate(evidence) -> Table`` in its place;
its name is the figure's name, its number the place in `catalogue`.
"""

from paper_figures.catalogue import FIGURES, PAPER, TABLES
from paper_figures.drawing import Drawing, collect, draw_one
from paper_figures.tables import Table

__all__ = ["FIGURES", "PAPER", "TABLES", "Drawing", "Table", "collect", "draw_one"]

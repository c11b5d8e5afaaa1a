"""The figures of the paper: one module each, every one a function of run records alone.

A figure module has ``CAPTION``, ``CLAIMS`` and ``draw(evidence) -> Drawing``; its name is the figure's name.
"""

from paper_figures.drawing import FIGURES, Drawing, draw_one

__all__ = ["FIGURES", "Drawing", "draw_one"]

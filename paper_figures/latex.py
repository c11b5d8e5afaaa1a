"""Figures and tables as LaTeX that compiles as it stands: ``\\input{figures}`` takes in all of a folder.

Needs the packages graphicx and booktabs, nothing else; texts come out in ASCII, so any engine and encoding will do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\ensuremath{<}",  # in LaTeX's default font encoding these three print as other characters
    ">": r"\ensuremath{>}",
    "|": r"\ensuremath{|}",
    '"': "''",
    "β": r"\ensuremath{\beta}",
    "γ": r"\ensuremath{\gamma}",
    "τ": r"\ensuremath{\tau}",
    "π": r"\ensuremath{\pi}",
    "χ": r"\ensuremath{\chi}",
    "ρ": r"\ensuremath{\rho}",
    "μ": r"\ensuremath{\mu}",
    "σ": r"\ensuremath{\sigma}",
    "‖": r"\ensuremath{\Vert}",
    "−": r"\ensuremath{-}",
    "×": r"\ensuremath{\times}",
    "±": r"\ensuremath{\pm}",
    "≤": r"\ensuremath{\leq}",
    "≥": r"\ensuremath{\geq}",
    "→": r"\ensuremath{\to}",
    "∞": r"\ensuremath{\infty}",
    "½": r"\ensuremath{\frac{1}{2}}",
    "·": r"\ensuremath{\cdot}",
    "–": "--",
    "—": "---",
    "…": r"\dots{}",
    "“": "``",
    "”": "''",
    "‘": "`",
    "’": "'",
    "\N{NO-BREAK SPACE}": "~",
}
"""Everything but ASCII letters, digits and plain punctuation that a caption or cell may hold."""


def escape(text: str) -> str:
    """Plain text as LaTeX in ASCII.

    Raises:
        ValueError: a character has no LaTeX form here; a LaTeX run would stop at it, or print nothing.
    """
    text = re.sub(r"(?<!\w)'([^']+)'(?!\w)", "‘\\1’", text.replace("||", "‖"))
    text = re.sub(r"(?<![\w-])-(?=[\d.])", "−", text)  # of a number
    found = "".join(_ESCAPES.get(character, character) for character in text)
    unknown = sorted({character for character in found if not (character.isascii() and character.isprintable())})
    if unknown:
        raise ValueError(f"no LaTeX for {', '.join(map(repr, unknown))}; add it to paper_figures/latex.py")
    return found


def figure(name: str, number: int, caption: str, *, wide: bool) -> str:
    """The environment that shows ``name.pdf``: across the page where ``wide``, else in a column."""
    kind, width = ("figure*", r"\textwidth") if wide else ("figure", r"\columnwidth")
    return _float(
        name,
        "figure",
        number,
        kind,
        [rf"\includegraphics[width={width}]{{{name}.pdf}}"],
        caption,
        caption_first=False,
    )


def table(
    name: str, number: int, caption: str, columns: str, heads: Sequence[str], parts: Iterable[Sequence[Sequence[str]]]
) -> str:
    """The environment of a table across the page.

    Args:
        name: for the label, ``tab:NAME``.
        number: the table's.
        caption: plain text, as all cells.
        columns: column specification of ``tabular``, one of ``l r c p{width}`` for each head.
        heads: of the columns.
        parts: rows of cells, in groups that a rule divides.
    """
    body = [_row(heads)]
    for rows in parts:
        body += [r"\midrule", *(_row(row) for row in rows)]
    lines = [
        r"\footnotesize",
        rf"\begin{{tabular}}{{@{{}}{columns}@{{}}}}",
        r"\toprule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return _float(name, "table", number, "table*", lines, caption, caption_first=True)


def collection(names: Sequence[str]) -> str:
    """The file that takes in the others."""
    lines = ["% Figures and tables in the order of their numbers; needs \\usepackage{graphicx,booktabs}."]
    return "\n".join([*lines, *(rf"\input{{{name}}}" for name in names)]) + "\n"


def _row(cells: Sequence[str]) -> str:
    line = " & ".join(map(escape, cells))
    # LaTeX would read a star or bracket after the row before as an argument of its \\.
    return ("{}" if line.startswith(("*", "[")) else "") + line + r" \\"


def _float(
    name: str, counter: str, number: int, kind: str, content: list[str], caption: str, *, caption_first: bool
) -> str:
    prefix = {"figure": "fig", "table": "tab"}[counter]
    named = [rf"\caption{{{escape(caption)}}}", rf"\label{{{prefix}:{name}}}"]
    lines = [
        f"% {counter.capitalize()} {number}, made by: python -m paper_figures {name}",
        rf"\setcounter{{{counter}}}{{{number - 1}}}% so that the number is the same whichever others are there",
        rf"\begin{{{kind}}}[tp]",
        r"\centering",
        *(named + content if caption_first else content + named),
        rf"\end{{{kind}}}",
    ]
    return "\n".join(lines) + "\n"

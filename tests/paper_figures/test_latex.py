"""Captions and tables as LaTeX: escapes, structure, and, where a LaTeX is installed, a document that compiles."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from paper_figures import FIGURES, TABLES, latex, style
from paper_figures.catalogue import number

HARD = r"100 % of $5 & #1_a {b} ~x^2 \ <y> β ‖ − ∞ 'so' ||"


def bare(text: str) -> str:
    """The source without comments and escaped characters."""
    text = "\n".join(re.sub(r"(?<!\\)%.*", "", line) for line in text.splitlines())
    return re.sub(r"\\[\\{}$&%#_]", "", text)


def check(text: str) -> None:
    """What would stop a LaTeX run: braces, environments, special characters, cells that do not fit the columns."""
    assert text.isascii()
    plain = bare(text)
    depth = 0
    for character in plain:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0, "a } without its {"
    assert depth == 0, "a { without its }"
    opened = []
    for kind, name in re.findall(r"\\(begin|end)\{([^}]*)\}", plain):
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert not opened
    assert not re.search(r"[$#^]", plain)
    assert "_" not in re.sub(r"\\(label|includegraphics\[[^]]*\]|input)\{[^}]*\}", "", plain)
    found = re.search(r"\\begin\{tabular\}\{@\{\}(.*)@\{\}\}\n(.*)\\end\{tabular\}", text, flags=re.DOTALL)
    if found:
        columns = len(re.sub(r"p\{[^}]*\}", "p", found[1]))
        rows = [line for line in found[2].splitlines() if line.endswith(r"\\")]
        assert len(rows) > 1
        for row in rows:
            assert len(re.findall(r"(?<!\\)&", row)) == columns - 1, row
            assert not row.startswith(("[", "*")), row


def test_every_hard_character_is_escaped() -> None:
    escaped = latex.escape(HARD)
    check(escaped)
    assert r"100 \% of \$5 \& \#1\_a \{b\}" in escaped
    assert escaped.count(r"\ensuremath{\Vert}") == 2
    assert "`so'" in escaped
    assert latex.escape("[-1.5, -.5] of gpt-2") == r"[\ensuremath{-}1.5, \ensuremath{-}.5] of gpt-2"
    with pytest.raises(ValueError, match="ж"):
        latex.escape("ж")


@pytest.mark.parametrize(
    "broken",
    [r"\caption{a", r"a}", r"a $ b", r"a_b", r"\begin{figure}", "ß"],
    ids=["open", "close", "dollar", "underscore", "environment", "not ASCII"],
)
def test_the_check_would_see_a_broken_source(broken: str) -> None:
    with pytest.raises(AssertionError):
        check(broken)


def test_a_row_that_begins_with_a_bracket_is_not_taken_for_an_argument() -> None:
    made = latex.table("t", 1, "A caption.", "lr", ("a", "b"), [[("[1, 2]", "x"), ("*", "50 %")]])
    check(made)
    with pytest.raises(AssertionError):
        check(latex.table("t", 1, "A caption.", "lr", ("a", "b"), [[("one", "two", "three")]]))


@pytest.mark.parametrize("name", [*FIGURES, *TABLES])
def test_every_fragment_is_sound_and_numbered(name: str, drawn: Path) -> None:
    text = (drawn / f"{name}.tex").read_text()
    check(text)
    kind, place = number(name)
    assert rf"\setcounter{{{kind.lower()}}}{{{place - 1}}}" in text
    assert text.count(r"\caption{") == text.count(r"\label{") == 1
    if name in FIGURES:
        assert f"{{{name}.pdf}}" in text
    assert rf"\input{{{name}}}" in (drawn / "figures.tex").read_text()


def test_the_numbers_are_one_after_the_other() -> None:
    assert [number(name)[1] for name in FIGURES] == list(range(1, len(FIGURES) + 1))
    assert [number(name) for name in TABLES] == [("Table", place) for place in range(1, len(TABLES) + 1)]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here; the structure is checked above")
def test_a_paper_with_all_of_them_compiles(drawn: Path, tmp_path: Path) -> None:
    shutil.copytree(drawn, tmp_path, dirs_exist_ok=True)
    paper = tmp_path / "paper.tex"
    paper.write_text(
        rf"\documentclass[twocolumn]{{article}}\usepackage{{graphicx,booktabs}}\textwidth={style.DOUBLE}in"
        r"\begin{document}\input{figures}\end{document}"
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", paper.name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout

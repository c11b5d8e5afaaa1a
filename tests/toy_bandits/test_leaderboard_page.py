"""The leaderboard that ships with the documentation: every objective of the registry, and its figures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import objectives
from toy_bandits.diagnostics import DIAGNOSTICS

DOCS = Path(__file__).parents[2] / "docs"


def page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def test_every_objective_of_the_registry_has_a_row_or_a_reason_why_not() -> None:
    text = page("leaderboard")
    rows = re.findall(r"^\| [^|]+ \| `([^`]+)` +\|", text.split("## ")[0], flags=re.MULTILINE)
    not_run = re.findall(r"^- `([^`]+)`: \S", text.split("## Not run")[1], flags=re.MULTILINE)
    assert sorted([*rows, *not_run]) == sorted(objectives.names())
    assert not_run == ["mrpo", "pretraining"]  # no world of a diagnostic has several references, none has text


def test_it_has_every_diagnostic_and_the_sensitivity() -> None:
    (head,) = re.findall(r"^\| place .*", page("leaderboard"), flags=re.MULTILINE)
    columns = [column.strip() for column in head.strip("| ").split("|")]
    assert columns[5:] == ["scores", "sensitivity", *(diagnostic.label for diagnostic in DIAGNOSTICS.values())]


@pytest.mark.parametrize("name", ["leaderboard", "factorial"])
def test_its_figures_are_there(name: str) -> None:
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page(name))
    assert pictures
    for picture in pictures:
        assert (DOCS / picture).read_bytes().startswith(b"\x89PNG")

"""The notebooks run from top to bottom on the shipped records, and what is committed of their output is small and complete."""

from __future__ import annotations

import ast
import base64
import io
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "analysis" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST = 300_000  # bytes of a notebook with its outputs


def pictures(notebook: nbformat.NotebookNode) -> list[np.ndarray]:
    """The pictures among the outputs, in grey."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    found = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one))).convert("L")) for one in found]


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_five() -> None:
    assert [path.name[0] for path in NOTEBOOKS] == list("12345")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_from_top_to_bottom(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))  # nobody's own start-up files
    monkeypatch.delenv("MPLBACKEND", raising=False)
    committed = nbformat.read(path, as_version=4)
    notebook = nbformat.read(path, as_version=4)
    for cell in code(notebook):
        cell.outputs, cell.execution_count = [], None
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    assert not list(tmp_path.glob("*.png")), "a notebook reads records; it writes nothing where it runs"
    made = pictures(notebook)
    assert len(made) == len(pictures(committed)) > 0
    for picture in made:
        assert 0.005 < (picture < 250).mean() < 0.9  # something is drawn


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_committed_is_small_complete_and_names_no_machine(path: Path) -> None:
    assert path.stat().st_size < LARGEST
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "run it again from the top"
    for cell in cells:
        assert not [output for output in cell.outputs if output.output_type == "error"]
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"(/work/|/home/|/root/|/tmp/|/Users/)", text)
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    assert prose[0].startswith("# ")
    assert len(" ".join(prose).split()) > 250  # written to be read
    assert all(len(cell.source.splitlines()) < 45 for cell in cells), "one idea per cell"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_imports_only_what_a_user_has(path: Path) -> None:
    """A notebook may use every room; what it imports from outside is a dependency of the project."""
    known = {
        "objectives",
        "toy_bandits",
        "analysis",
        "paper_figures",
        "pathlib",
        "matplotlib",
        "numpy",
        "pandas",
        "torch",
    }
    for cell in code(nbformat.read(path, as_version=4)):
        python = re.sub(r"^%.*$", "", cell.source, flags=re.MULTILINE)
        for node in ast.walk(ast.parse(python)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= known, names

"""The arrows between the rooms, read off the source: who may import whom."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("objectives", "toy_bandits", "llm_runs", "analysis", "paper_figures")
ALLOWED = {
    "objectives": set(),
    "toy_bandits": {"objectives", "analysis.records"},
    "llm_runs": {"objectives", "analysis.records"},
    "analysis": set(),
    "paper_figures": {"objectives", "analysis"},
}


def imported_modules(source: str) -> set[str]:
    """Full dotted names of everything a module imports, at any depth of its code."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def forbidden(package: str, modules: set[str]) -> set[str]:
    """The imports of another room that the arrows do not allow."""
    others = {module for module in modules if module.split(".")[0] in PACKAGES and module.split(".")[0] != package}
    return {m for m in others if not any(m == ok or m.startswith(f"{ok}.") for ok in ALLOWED[package])}


def test_the_reader_of_imports_sees_every_form() -> None:
    source = (
        "import toy_bandits.solver\ndef f():\n    from analysis import claims\n    from analysis.records import Run"
    )
    found = imported_modules(source)
    assert forbidden("llm_runs", found) == {"toy_bandits.solver", "analysis.claims"}
    assert forbidden("paper_figures", found) == {"toy_bandits.solver"}


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files, f"{package} has no source"
    for file in files:
        wrong = forbidden(package, imported_modules(file.read_text(encoding="utf-8")))
        assert not wrong, f"{file.relative_to(ROOT)} imports {', '.join(sorted(wrong))}"


def test_notebooks_lie_in_a_room_but_belong_to_no_package() -> None:
    """Notebooks are a user of all rooms: they may import any of them, and nothing can import a notebook."""
    folder = ROOT / "analysis" / "notebooks"
    assert list(folder.glob("*.ipynb"))
    assert not list(folder.rglob("*.py"))


def test_the_losses_know_nothing_of_models_files_or_trainers() -> None:
    outside = {"transformers", "tokenizers", "datasets", "peft", "accelerate", "trl", "lm_eval", "pandas"}
    for file in (ROOT / "objectives").rglob("*.py"):
        found = {module.split(".")[0] for module in imported_modules(file.read_text(encoding="utf-8"))} & outside
        assert not found, f"{file.relative_to(ROOT)} imports {', '.join(sorted(found))}"

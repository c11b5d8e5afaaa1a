"""The README's examples are run as a reader would run them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)


def block(language: str, containing: str) -> str:
    """The one code block of the README that has this text in it."""
    found = [code for kind, code in BLOCKS if kind == language and containing in code]
    assert len(found) == 1, f"{len(found)} {language} blocks contain {containing!r}"
    return found[0]


def run(arguments: list[str], folder: Path, **environment: str) -> str:
    """Standard output of a command, run from another folder with this checkout on the path."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **environment}
    done = subprocess.run(
        arguments, cwd=folder, env=variables, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("readme") / "my_loss.py"
    path.write_text(block("python", "tanh_po"), encoding="utf-8")
    return path


def test_no_page_holds_the_marks_of_an_unfinished_merge() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    assert len(pages) > 15
    assert not [page.name for page in pages if re.search(r"^(<{7} |={7}$|>{7} )", page.read_text(), flags=re.MULTILINE)]


def test_the_first_example_prints_what_the_page_says(tmp_path: Path) -> None:
    printed = run([sys.executable, "-c", block("python", "from toy_bandits import")], tmp_path)
    assert printed == block("text", "not_unique")


def test_your_own_objective_is_fifteen_lines_and_known_to_every_command(plugin: Path) -> None:
    assert len([line for line in plugin.read_text().splitlines() if line.strip()]) <= 15
    environment = {"PREFERENCE_OBJECTIVES_PLUGINS": str(plugin)}
    assert "tanh_po" in run([sys.executable, "-m", "objectives", "list"], plugin.parent, **environment)
    assert "all passed" in run([sys.executable, "-m", "objectives", "check", "tanh_po"], plugin.parent, **environment)
    one_liner = re.search(r'python -c "(.*)"', block("bash", "tanh_po"))
    assert one_liner is not None
    assert "converged" in run([sys.executable, "-c", one_liner[1]], plugin.parent, **environment)


def test_your_own_objective_has_a_profile(plugin: Path) -> None:
    """Its strength swept too: many values of beta at once."""
    command = [
        sys.executable,
        "-m",
        "toy_bandits",
        "profile",
        "tanh_po",
        "--only",
        "strength",
        "--compare",
        "--out",
        "card",
    ]
    printed = run([*command, "--workers", "1"], plugin.parent, PREFERENCE_OBJECTIVES_PLUGINS=str(plugin))
    assert "Response of KL to strength" in printed
    assert (plugin.parent / "card" / "card.png").exists()


def test_your_own_objective_trains_a_language_model(plugin: Path) -> None:
    command = ["-m", "llm_runs", "run", "tiny", "--out", "mine", "--set", "objectives=['tanh_po(beta=0.1)']"]
    small = ["training.steps=2", "evaluation.at=[]", "sft.steps=5"]
    run([sys.executable, *command, *small], plugin.parent, PREFERENCE_OBJECTIVES_PLUGINS=str(plugin))
    assert list((plugin.parent / "mine" / "runs").glob("tanh_po*/metrics.parquet"))


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no such file"), ("import nothing_of_that_name", "nothing_of_that_name")]
)
def test_a_file_of_objectives_that_cannot_be_loaded_is_one_clear_line(
    tmp_path: Path, content: str | None, message: str
) -> None:
    path = tmp_path / "broken.py"
    if content is not None:
        path.write_text(content)
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "PREFERENCE_OBJECTIVES_PLUGINS": str(path)}
    done = subprocess.run(
        [sys.executable, "-m", "objectives", "list"], env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_every_link_of_the_page_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target

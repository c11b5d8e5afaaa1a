"""What grows around the registry: the factorial, descriptions of sums, documentation pages, third parties."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import objectives
from objectives import ObjectiveError, documentation
from objectives.__main__ import main

ROOT = Path(__file__).parents[2]


def test_factorial_is_every_pair_loss_with_every_regulariser() -> None:
    cells = objectives.factorial(["dpo(beta=0.5)", "ipo"], ["none", "forward_kl(weight=0.2)", "chosen_nll"])
    assert [cell.objective.label for cell in cells] == [
        "dpo(beta=0.5)",
        "dpo(beta=0.5)+forward_kl(weight=0.2)",
        "dpo(beta=0.5)+chosen_nll(weight=0.1)",
        "ipo(tau=0.1)",
        "ipo(tau=0.1)+forward_kl(weight=0.2)",
        "ipo(tau=0.1)+chosen_nll(weight=0.1)",
    ]
    assert [(cell.pair_loss, cell.regulariser) for cell in cells[:2]] == [
        ("dpo(beta=0.5)", "none"),
        ("dpo(beta=0.5)", "forward_kl(weight=0.2)"),
    ]
    assert len(objectives.factorial()) == 9
    assert all(objectives.parse(cell.objective.label).label == cell.objective.label for cell in objectives.factorial())


def test_factorial_refuses_a_regulariser_twice() -> None:
    with pytest.raises(ObjectiveError, match="maxpo has the term forward_kl already"):
        objectives.factorial(["maxpo"], ["forward_kl"])


def test_every_pair_loss_composes_with_every_regulariser() -> None:
    losses = [
        n
        for n in objectives.names()
        if "pairs" in objectives.get(n).needs and objectives.describe(n).family != "regulariser"
    ]
    for cell in objectives.factorial([n for n in losses if n not in ("maxpo", "slic_hf", "rpo", "orpo", "cpo")]):
        assert cell.objective.needs >= objectives.parse(cell.pair_loss).needs


def test_a_sum_describes_itself() -> None:
    description = objectives.describe("dpo(beta=0.5)+forward_kl(weight=0.2, tokens='full')")
    assert description.name == "dpo+forward_kl"
    assert description.needs == ("pairs", "ref_logps", "reference_samples", "reference_token_kl")
    assert "dpo: L(beta D)" in description.formula
    assert any("forward_kl" in part and "weight 0.2" in part for part in description.composition)
    assert [h.name for h in description.hyperparameters] == ["dpo.beta", "forward_kl.weight", "forward_kl.tokens"]
    assert objectives.describe(objectives.get("dpo") + objectives.chosen_nll()).name == "dpo+chosen_nll"


def test_batch_coupled_objectives_say_so() -> None:
    coupled = {name for name in objectives.names() if objectives.describe(name).coupled}
    assert coupled == {"kto", "bco", "aot", "beta_dpo"}
    assert all("data parallelism" in str(objectives.describe(name)) for name in coupled)


def test_the_committed_pages_are_those_of_the_registry() -> None:
    """After a change to the registry: python -m objectives docs"""
    folder = ROOT / "docs" / "objectives"
    assert {path.stem for path in folder.glob("*.md")} == {"README", *documentation.built_in()}
    for name in documentation.built_in():
        assert (folder / f"{name}.md").read_text(encoding="utf-8") == documentation.page(name), name
    if set(objectives.names()) == set(documentation.built_in()):
        assert (folder / "README.md").read_text(encoding="utf-8") == documentation.index()


def test_pages_have_the_fixed_headings_filled_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["docs", "--out", str(tmp_path)]) == 0
    for name in documentation.built_in():
        text = (tmp_path / f"{name}.md").read_text(encoding="utf-8")
        headings = [line[3:] for line in text.splitlines() if line.startswith("## ")]
        assert headings == [
            "What it optimises",
            "Formula",
            "What it needs",
            "Hyper-parameters",
            "What its optimum is",
            "What to watch",
            "Where libraries differ",
            "Source",
        ]
    (tmp_path / "taken").write_text("")
    assert main(["docs", "--out", str(tmp_path / "taken")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


# --- a third party, installed ----------------------------------------------------------------------------------------

OUTSIDE = '''
import torch
from objectives import Positive, links, margins, pair_term, register

@register("outside", formula="log cosh(beta D - 1)", paper="arXiv 0000.00000")
def outside(beta: Positive = 0.5):
    """A smooth absolute distance, from elsewhere."""
    z = lambda x: torch.logaddexp(x, -x)
    link = links.Link("log_cosh", z, torch.tanh, lambda x: 1 - torch.tanh(x) ** 2, slope_plus=1.0, slope_minus=1.0)
    return pair_term("outside", margins.reference_adjusted, link, scale=beta, offset=1.0)
'''


def install(wheel_folder: Path, target: Path, source: str) -> None:
    """pip-install a one-module package with an entry point, without network or build backend."""
    info = "outside_objective-1.0.dist-info"
    files = {
        "outside_objective.py": source,
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: outside-objective\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[preference_objectives]\noutside = outside_objective\n",
    }
    record = "".join(
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()},{len(text.encode())}\n"
        for name, text in files.items()
    )
    wheel = wheel_folder / "outside_objective-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in {**files, f"{info}/RECORD": record + f"{info}/RECORD,,\n"}.items():
            archive.writestr(name, text)
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", str(target), str(wheel)],
        check=True,
        capture_output=True,
        text=True,
    )


def run(target: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Python in the repository, with what is installed in ``target``."""
    path = os.pathsep.join((str(target), str(ROOT)))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


IN_A_BANDIT = """
import math, objectives
from toy_bandits import Bandit, solve
problem = Bandit(reference=[0.2, 0.8], preferences=[[0.5, 1.0], [0.0, 0.5]])
solution = solve(problem, objectives.parse("outside(beta=0.5)"))
margin = math.log(solution.policy[0] / 0.2) - math.log(solution.policy[1] / 0.8)
print(solution.status, round(0.5 * margin, 8))  # always won: beta D = 1
"""


def test_an_installed_third_party_is_everywhere(tmp_path: Path) -> None:
    target = tmp_path / "site"
    install(tmp_path, target, OUTSIDE)
    listed = run(target, "-m", "objectives", "list")
    assert "outside" in listed.stdout
    assert "A smooth absolute distance, from elsewhere." in listed.stdout
    checked = run(target, "-m", "objectives", "check", "outside")
    assert (checked.returncode, checked.stdout.strip().splitlines()[-1]) == (0, "all passed")
    documented = run(target, "-m", "objectives", "docs", "--out", str(tmp_path / "pages"))
    assert documented.returncode == 0
    assert "log cosh(beta D - 1)" in (tmp_path / "pages" / "outside.md").read_text(encoding="utf-8")
    solved = run(target, "-c", IN_A_BANDIT)
    assert solved.stdout.split() == ["converged", "1.0"], solved.stderr


def test_a_broken_third_party_is_reported_and_harms_no_other(tmp_path: Path) -> None:
    target = tmp_path / "site"
    install(tmp_path, target, "import a_module_that_does_not_exist")
    listed = run(target, "-m", "objectives", "list")
    assert listed.returncode == 0
    assert "maxpo" in listed.stdout
    assert "objectives of 'outside' (outside_objective) are missing: No module named" in listed.stderr


PLUGIN = """
import objectives

@objectives.register("{name}", formula="d squared")
def made(beta: objectives.Positive = 1.0):
    \"\"\"From a file.\"\"\"
    return objectives.pair_term("{name}", objectives.margins.plain, objectives.links.square, scale=beta)
"""


def test_files_that_the_variable_names(tmp_path: Path) -> None:
    for folder in ("one", "two"):  # two files of one name
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(PLUGIN.format(name=f"from_{folder}"))
    files = os.pathsep.join(str(tmp_path / folder / "mine.py") for folder in ("one", "two"))
    listed = run(tmp_path, "-m", "objectives", "list", PREFERENCE_OBJECTIVES_PLUGINS=files)
    assert "from_one" in listed.stdout
    assert "from_two" in listed.stdout


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("import objectives\nobjectives.nothing", "AttributeError: module 'objectives' has no attribute 'nothing'"),
        (PLUGIN.format(name="dpo"), "ObjectiveError: an objective 'dpo' is already registered"),
        (PLUGIN.format(name="bad-name"), "an objective's name must be an identifier"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line_each_time(tmp_path: Path, content: str | None, message: str) -> None:
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text(PLUGIN.format(name="good"))
    if content is not None:
        bad.write_text(content)
    files = os.pathsep.join((str(good), str(bad)))
    listed = run(tmp_path, "-m", "objectives", "list", PREFERENCE_OBJECTIVES_PLUGINS=files)
    assert listed.returncode == 2
    assert listed.stderr.startswith(f"error: PREFERENCE_OBJECTIVES_PLUGINS: {bad}: ")
    assert message in listed.stderr
    assert listed.stderr.count("\n") == 1
    again = """
import objectives
for _ in range(2):
    try:
        objectives.names()
    except objectives.ObjectiveError as error:
        print(error)
"""
    lines = run(tmp_path, "-c", again, PREFERENCE_OBJECTIVES_PLUGINS=files).stdout.splitlines()
    assert len(lines) == 2
    assert lines[0] == lines[1]

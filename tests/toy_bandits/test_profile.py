"""``python -m toy_bandits profile``, end to end with cheap diagnostics; bad input; documentation."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path

import pandas as pd
import pytest

import objectives
from analysis.records import read_run
from objectives import registry
from toy_bandits import diagnostics
from toy_bandits.__main__ import main
from toy_bandits.diagnostics import page
from toy_bandits.profile import measuring

ROOT = Path(__file__).parents[2]
CHEAP = ["--only", "determinism", "off_support"]


def run(*arguments: str | Path) -> int:
    return main(["profile", *map(str, arguments), "--workers", "1"])


def test_card_tables_and_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "card"
    assert run("dpo", "--set", "beta=0.5", "--compare", "ipo", "dpo(beta=0.5)", *CHEAP, "--out", out) == 0
    printed = capsys.readouterr().out
    assert "dpo(beta=0.5)" in printed and "Off-support mass kept" in printed
    assert (out / "card.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "card.pdf").read_bytes().startswith(b"%PDF")
    text = (out / "card.md").read_text(encoding="utf-8")
    assert "](card.png)" in text and "`beta = 0.5`" in text and "**0.00**" in text
    record = read_run(out)
    assert record.config["compare"] == ["ipo(tau=0.1)"]  # compared with itself it is left out
    scores = record.table("scores").set_index(["objective", "diagnostic"])["score"]
    assert scores["dpo(beta=0.5)", "determinism"] == 0.0
    assert scores["ipo(tau=0.1)", "off_support"] == pytest.approx(0.355, abs=0.01)
    results = record.table("results")
    assert set(results["diagnostic"]) == {"determinism", "off_support"}
    rows = results[(results["objective"] == "ipo(tau=0.1)") & (results["diagnostic"] == "off_support")]
    assert diagnostics.get("off_support").score(rows) == scores["ipo(tau=0.1)", "off_support"]
    frontier = record.table("frontier")
    assert (frontier["expected_reward"] <= frontier["reward_bound"] + 1e-9).all()


@pytest.mark.slow  # two processes that each import torch
def test_two_workers_give_what_one_does(tmp_path: Path) -> None:
    arguments = ["profile", "ipo", "--set", "tau=0.2", "--compare", "dpo+forward_kl", *CHEAP]
    for count in ("1", "2"):
        assert main([*arguments, "--workers", count, "--out", str(tmp_path / count)]) == 0
    one, two = (read_run(tmp_path / count) for count in ("1", "2"))
    for table in ("results", "scores", "frontier"):
        pd.testing.assert_frame_equal(one.table(table), two.table(table))


def test_what_is_finished_is_not_solved_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run stopped between two diagnostics, then continued: only the second is solved, and the scores are those of a run in one go."""
    solved: list[str] = []
    measure = diagnostics.measure

    def counted(diagnostic: diagnostics.Diagnostic, objective: objectives.Objective) -> object:
        solved.append(diagnostic.id)
        return measure(diagnostic, objective)

    monkeypatch.setattr(measuring.diagnostics, "measure", counted)
    objective = objectives.get("ipo")

    def stop(name: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measuring.profile(objective, tmp_path, ["determinism", "off_support"], step=stop)
    assert solved == ["determinism"]
    continued = measuring.profile(objective, tmp_path, ["determinism", "off_support"])
    assert solved == ["determinism", "off_support"]
    again = measuring.profile(objective, tmp_path, ["determinism", "off_support"], again=True)
    assert solved == ["determinism", "off_support"] * 2
    pd.testing.assert_frame_equal(continued.rows, again.rows)
    pd.testing.assert_frame_equal(continued.results, again.results, check_dtype=False)
    measuring.profile(objectives.get("ipo", tau=0.2), tmp_path, ["determinism"])
    assert len(solved) == 5  # other settings are another objective
    (tmp_path / "probes/ipo-tau-0.1/determinism/results.parquet").write_bytes(b"damaged")
    measuring.profile(objective, tmp_path, ["determinism"])
    assert solved[5:] == ["determinism"]


PLUGIN = """
import torch
from objectives import Positive, Term, register
from objectives.values import per_example

@register("mine", formula="(D - 1)^2")
def mine(beta: Positive = 1.0):
    def loss(batch):
        margin = batch.chosen_logps - batch.rejected_logps
        {body}
    return Term("mine", "pairs", loss)
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Writes a third party's file and makes the registry load it."""
    monkeypatch.setattr(registry, "_specs", dict(registry._specs))

    def write(body: str) -> None:
        file = tmp_path / f"mine_{zlib.crc32(body.encode())}.py"  # a file that was imported is not imported again
        file.write_text(PLUGIN.format(body=body))
        registry._specs.pop("mine", None)
        monkeypatch.setenv("PREFERENCE_OBJECTIVES_PLUGINS", str(file))
        monkeypatch.setattr(registry, "_third_parties_loaded", False)

    return write


def test_a_third_partys_objective_and_its_edit(tmp_path: Path, plugin: object) -> None:
    out = tmp_path / "out"
    for body, expected in (
        ("return (margin - per_example(beta)) ** 2", True),
        ("return 4 * (margin - 2 * per_example(beta)) ** 2", False),
    ):
        plugin(body)  # type: ignore[operator]
        assert run("mine", "--only", "determinism", "--compare", "--out", out) == 0
        scores = read_run(out).table("scores").set_index("diagnostic")["score"]
        kl = read_run(out).table("results").set_index("world")["kl_reference_policy"]
        if expected:
            first = kl["determinism/6"]
        assert 0.0 < scores["determinism"] <= 1.0
    assert kl["determinism/6"] > first + 0.1  # measured anew: the margin asked for has doubled


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return margin.mean()", "world determinism/1: mine: a loss must return one value per example"),
        (
            "return margin / 0 * 0",
            "world determinism/1: mine: the loss mine is nan at the start, context 0, pair (0, 1)",
        ),
        (
            "return margin.unsqueeze(-1) - margin.unsqueeze(-2)",
            "one value per example, (..., 12), here (1, 12); it returned",
        ),
    ],
)
def test_a_broken_third_party_is_one_line_with_world_objective_and_cell(
    tmp_path: Path, plugin: object, capsys: pytest.CaptureFixture[str], body: str, message: str
) -> None:
    plugin(body)  # type: ignore[operator]
    assert run("mine", "--only", "determinism", "--compare", "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_a_loss_that_takes_numbers_only_is_told_how_to_take_one_per_problem(
    tmp_path: Path, plugin: object, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin("return (margin - beta) ** 2")  # type: ignore[operator]
    assert run("mine", "--only", "strength", "--compare", "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "mine: the loss mine raised RuntimeError" in error and "objectives.values.per_example" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dpp", "--out", "x"], "unknown objective 'dpp'; did you mean 'dpop' or 'dpo'"),
        (["dpo", "--set", "bet=1", "--out", "x"], "dpo: unknown hyper-parameter 'bet'; did you mean 'beta'"),
        (["dpo", "--set", "beta=-1", "--out", "x"], "dpo: beta must be > 0; got -1"),
        (["dpo", "--set", "beta", "--out", "x"], "--set: expected NAME=VALUE, got 'beta'"),
        (["dpo+forward_kl", "--set", "beta=1", "--out", "x"], "say which part of dpo+forward_kl 'beta' belongs to"),
        (["dpo", "--only", "regrett", "--out", "x"], "unknown diagnostic 'regrett'; did you mean 'regret'"),
        (["dpo", "--compare", "ipp", "--out", "x"], "unknown objective 'ipp'"),
        (["dpo("], "NAME and --out are needed"),
        (["dpo(", "--out", "x"], "not an objective: 'dpo('"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and message in error and "\n" not in error
    assert not Path("x").exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = tmp_path / "file"
    taken.write_text("")
    assert run("ipo", "--only", "determinism", "--compare", "--out", taken) == 2
    assert "cannot make the folder (File exists)" in capsys.readouterr().err


def test_settings_of_a_sums_part(tmp_path: Path) -> None:
    arguments = [
        "dpo+forward_kl",
        "--set",
        "forward_kl.weight=2",
        "--only",
        "determinism",
        "--compare",
        "--out",
        tmp_path,
    ]
    assert run(*arguments) == 0
    assert json.loads((tmp_path / "run.json").read_text())["config"]["profile"] == "dpo(beta=0.1)+forward_kl(weight=2)"


def test_what_a_bandit_cannot_run_has_a_card_without_scores(tmp_path: Path) -> None:
    assert run("dpo+pretraining", "--only", "determinism", "--compare", "ipo", "--out", tmp_path) == 0
    scores = read_run(tmp_path).table("scores").set_index("objective")
    assert math.isnan(scores.loc["dpo(beta=0.1)+pretraining(weight=0.1)", "score"])
    assert "needs pretraining, which a bandit does not have" in (tmp_path / "card.md").read_text(encoding="utf-8")


def test_the_documentation_is_that_of_the_modules(tmp_path: Path) -> None:
    """After a change: python -m toy_bandits profile --page docs/diagnostics.md"""
    assert run("--page", tmp_path / "page.md") == 0
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == page.page()
    assert (ROOT / "docs/diagnostics.md").read_text(encoding="utf-8") == page.page()

"""``python -m objectives``: list, describe, check, and what a wrong name gives."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import objectives
from objectives import registry
from objectives.__main__ import main
from objectives.checks import check


def test_list_names_every_objective_with_its_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines[0].index("name")
    assert {line[start:].split()[0] for line in lines[1:]} == set(objectives.names())
    assert any("maxpo" in line and "pairs, reference_samples" in line for line in lines)


def test_describe_prints_the_description(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "ipo"]) == 0
    assert capsys.readouterr().out.strip() == str(objectives.describe("ipo"))


@pytest.mark.parametrize("command", ["describe", "check"])
def test_a_wrong_name_is_one_line_and_status_two(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "dp0"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: unknown objective 'dp0'; did you mean")
    assert error.count("\n") == 1


def test_the_module_runs_and_shows_examples() -> None:
    ran = subprocess.run([sys.executable, "-m", "objectives", "--help"], capture_output=True, text=True, check=True)
    assert "python -m objectives describe maxpo" in ran.stdout


def test_check_passes_on_everything_registered(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 0
    out = capsys.readouterr().out
    assert "FAIL" not in out
    assert out.strip().endswith("all passed")


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, margin: torch.Tensor) -> torch.Tensor:
        return margin.square()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


def _margin(batch: objectives.PairBatch) -> torch.Tensor:
    return objectives.margins.reference_adjusted.value(batch, "broken")


BROKEN = {
    "gradient": lambda batch: WrongGradient.apply(_margin(batch)),
    "extremes": lambda batch: torch.log(torch.sigmoid(_margin(batch))),  # log of an underflow
    "per example": lambda batch: _margin(batch) * torch.arange(1.0, 1 + _margin(batch).shape[-1], dtype=torch.float64),
    "step-0 margin": lambda batch: batch.chosen_logps - 0.9 * batch.ref_chosen_logps - batch.rejected_logps,
}


@pytest.mark.parametrize("failing", BROKEN)
def test_check_finds_a_third_partys_mistake(
    failing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry, "_specs", dict(registry.specs()))

    @objectives.register("broken", formula="wrong on purpose")
    def broken(beta: objectives.Positive = 0.1) -> objectives.Term:
        return objectives.Term("broken", "pairs", BROKEN[failing], needs=frozenset({"ref_logps"}))

    assert {result.check for result in check("broken") if not result.passed} >= {failing}
    assert main(["check", "broken"]) == 1
    out = capsys.readouterr().out
    assert "FAIL  broken" in out
    assert "1 failed" in out


def test_cost_benchmark_measures_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The share itself depends on the machine and on what else runs there: the benchmark reports it, this test does not judge it."""
    script = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "objectives_cost.py"))
    small = ["--hidden", "64", "--layers", "1", "--vocabulary", "64", "--tokens", "8", "--pairs", "2", "--repeats", "2"]
    assert script["main"](["dpo", "maxpo", *small, "--out", str(tmp_path / "cost.json")]) in (0, 1)
    record = json.loads((tmp_path / "cost.json").read_text())
    assert {row["objective"] for row in record["losses"]} == {"dpo(beta=0.1)", "maxpo(beta=0.1)"}
    assert all(row["share"] == row["microseconds"] / 1e6 / record["step_seconds"] > 0 for row in record["losses"])
    assert script["main"](["dp", *small]) == 2
    assert "error: unknown objective 'dp'" in capsys.readouterr().err

"""``python -m toy_bandits loop``."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.records import read_run
from toy_bandits.__main__ import main


def test_without_a_name_it_lists_the_loops(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["loop"]) == 0
    out = capsys.readouterr().out
    assert "rlhf_ppo" in out and "clip=0.2" in out and "arXiv 2202.00079" in out


def test_a_record_is_written_and_the_next_time_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["loop", "rlhf_ppo", "--set", "iterations=5", "samples=64", "beta=0.5", "--out", str(tmp_path)]
    assert main(arguments) == 0
    assert "6 rows" in capsys.readouterr().out
    run = read_run(tmp_path / "rlhf_ppo" / "bradley_terry-1")
    assert (run.config["loop"], run.config["samples"], run.config["world"]) == ("rlhf_ppo", 64, "bradley_terry/1")
    table = run.table("results")
    assert table["step"].tolist() == list(range(6))
    assert table["shortfall"].iloc[-1] < 0.5 * table["shortfall"].iloc[0]
    assert main(arguments) == 0
    assert "already complete" in capsys.readouterr().out
    assert main([*arguments, "--again"]) == 0
    assert "6 rows" in capsys.readouterr().out
    assert main(["loop", "rlhf_ppo", "--set", "iterations=3", "--out", str(tmp_path)]) == 0
    assert "4 rows" in capsys.readouterr().out  # other settings: made anew


def test_mrpo_finds_a_world_with_references(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["loop", "mrpo", "--set", "clip=None"]) == 0
    assert "dpo against reference 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ppo"], "unknown loop 'ppo'"),
        (["espo", "--set", "delta"], "--set: expected NAME=VALUE, got 'delta'"),
        (["espo", "--set", "delta=small"], "espo: delta must be > 0; got 'small'"),
        (["espo", "--world", "bradley_terri/1"], "unknown world 'bradley_terri/1'; did you mean 'bradley_terry/1'"),
        (["rso", "--set", "objective=dppo(beta=1)"], "unknown objective 'dppo'"),
        (["iterative_dpo", "--world", "determinism/6"], "dpo(beta=1) has no minimiser in this world"),
        (["mrpo", "--world", "bradley_terry/1"], "mrpo: needs a world with several references"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["loop", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1

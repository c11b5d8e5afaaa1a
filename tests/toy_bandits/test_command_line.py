"""``python -m toy_bandits``: records, resuming, and errors without a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from analysis.records import read_run
from toy_bandits.__main__ import main


def test_run_writes_a_record_and_skips_it_the_next_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "ablation", "--out", str(tmp_path)]) == 0
    run = read_run(tmp_path / "ablation")
    assert (run.kind, run.id, run.config["experiment"]) == ("bandit", "bandit/ablation", "ablation")
    assert len(run.table("results")) == 18
    written = (tmp_path / "ablation" / "run.json").stat().st_mtime_ns
    capsys.readouterr()
    assert main(["run", "ablation", "--out", str(tmp_path)]) == 0
    assert "already complete" in capsys.readouterr().out
    assert (tmp_path / "ablation" / "run.json").stat().st_mtime_ns == written
    assert main(["run", "ablation", "--out", str(tmp_path), "--again"]) == 0
    assert (tmp_path / "ablation" / "run.json").stat().st_mtime_ns > written


def test_a_damaged_record_is_made_anew(tmp_path: Path) -> None:
    main(["run", "ablation", "--out", str(tmp_path)])
    table = tmp_path / "ablation" / "results.parquet"
    table.write_bytes(table.read_bytes()[:-20])
    assert main(["run", "ablation", "--out", str(tmp_path)]) == 0
    assert len(read_run(tmp_path / "ablation").table("results")) == 18


def test_an_unknown_experiment_is_named_with_its_neighbours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "determinsm", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: unknown experiment 'determinsm'; did you mean 'determinism'?")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_an_error_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text("in the way")
    assert main(["run", "ablation", "--out", str(file)]) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("error: ")


def test_help_and_list_from_a_shell() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "toy_bandits", "run", "--help"], capture_output=True, text=True, check=True
    )
    assert "examples:" in shown.stdout
    assert "--out" in shown.stdout
    listed = subprocess.run([sys.executable, "-m", "toy_bandits", "list"], capture_output=True, text=True, check=True)
    assert "partial_support" in listed.stdout
    assert "C3" in listed.stdout

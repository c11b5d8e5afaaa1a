"""Measurements that are kept: made once, and never mixed with those of something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.kept import Kept


def test_what_is_measured_is_not_measured_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made: list[str] = []

    def make(name: str) -> dict[str, float]:
        made.append(name)
        return {"seconds": 1.5}

    for _ in range(2):  # as in a second call
        kept = Kept(tmp_path / "unfinished", {"device": "cpu"})
        assert kept.get("steps, 128:128, dpo", lambda: make("dpo")) == {"seconds": 1.5}
        assert kept.get("steps, 128:128, ipo", lambda: make("ipo")) == {"seconds": 1.5}
    assert made == ["dpo", "ipo"]
    assert capsys.readouterr().err.count("steps, 128:128, dpo") == 1


def test_a_failure_keeps_the_others(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "unfinished", {})
    kept.get("first", lambda: 1)
    with pytest.raises(ZeroDivisionError):
        kept.get("second", lambda: 1 / 0)
    again = Kept(tmp_path / "unfinished", {})
    assert again.get("first", lambda: 2) == 1
    assert again.get("second", lambda: 3) == 3


def test_other_settings_are_refused(tmp_path: Path) -> None:
    Kept(tmp_path / "unfinished", {"device": "cpu"}).get("a", lambda: 1)
    with pytest.raises(SystemExit, match="unfinished holds measurements of other settings, code or another machine"):
        Kept(tmp_path / "unfinished", {"device": "H100"})


def test_a_complete_benchmark_leaves_none(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "unfinished", {})
    kept.get("a", lambda: 1)
    kept.clear()
    assert not (tmp_path / "unfinished").exists()

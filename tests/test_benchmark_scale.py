"""What the benchmarks of data and of sweeps make of their measurements, and that what they measure is what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pyarrow.parquet
import pytest
import yaml

from benchmarks import data, sweep
from llm_runs.data.stored import StoredPairs
from llm_runs.sweeps.spec import SweepConfig


def test_the_parts_work_on_one_another_s_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_READS", 50)
    monkeypatch.setattr(data, "_STEPS", 2)
    source = tmp_path / "300.jsonl"
    data.write_source(source, 300)
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    distinct = len({tuple(row.values()) for row in rows})
    assert distinct < len(rows) == 300
    assert data.prepare(source, tmp_path) == distinct
    assert len(StoredPairs.open(tmp_path / "training.json")) < distinct
    assert data.read(source, tmp_path) == 50
    assert data.train(source, tmp_path) == 32
    data.write_source(tmp_path / "300.parquet", 300)
    assert pyarrow.parquet.read_table(tmp_path / "300.parquet").to_pylist() == rows


def test_memory_is_compared_with_its_bound(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"pairs": 1000, "part": "prepare", "bound_bytes": 4e8, "added_bytes": 3e8, "seconds": 2.0, "count": 1000},
        {"pairs": 1000, "part": "train", "bound_bytes": 4e8, "added_bytes": 5e8, "seconds": 1.0, "count": 10},
    ]
    assert not data.report(pd.DataFrame(rows[:1]))
    assert data.report(pd.DataFrame(rows))
    printed = capsys.readouterr().out
    assert "1,000  prepare              300  400: met                500" in printed
    assert "1,000  train                500  400: MISSED              10" in printed


def test_a_watched_process_holds_what_it_holds() -> None:
    with data._Watch() as watch:
        held = bytearray(50_000_000)
        held[::4096] = b"x" * len(held[::4096])
    assert 45e6 < watch.peak - watch.before < 80e6


def test_the_sweep_is_as_large_as_asked_and_its_costs_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sweep.sweep_file(tmp_path / "sweep.yaml", 1000, 2)
    config = SweepConfig.load(path).configs["main"]
    assert len(config.objectives) * len(config.training_seeds) * len(config.labels) == 1000
    assert yaml.safe_load(path.read_text())["jobs"] == 2
    found = {"runs": 1000.0, "cost, CPU seconds a run": 0.5, "status, wall seconds": 1.0}
    assert not sweep.report(found)
    assert sweep.report(found | {"status, wall seconds": 2.5})
    printed = capsys.readouterr().out
    assert "cost, CPU seconds a run: 0.5 (under 1: met)" in printed
    assert "status, wall seconds: 2.5 (under 2: MISSED)" in printed
    assert sweep.main(["--out", str(tmp_path), "--runs", "15"]) == 2
    (tmp_path / "sweep" / "sweep").mkdir(parents=True)
    with pytest.raises(SystemExit, match="a sweep that was interrupted is not measured"):
        sweep.measure(tmp_path, 10, 1)

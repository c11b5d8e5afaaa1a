"""Run records: written whole or not at all, verified when read, damage named."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd
import pytest

from analysis import records
from analysis.__main__ import main

CONFIG = {"experiment": "determinism", "strengths": [0.1, 1.0]}


def frame(rows: int = 4) -> pd.DataFrame:
    return pd.DataFrame(
        {"step": range(rows), "name": ["loss"] * rows, "value": np.linspace(0.0, 1.0, rows) ** 2, "ok": [True] * rows}
    )


def write(folder: Path, rows: int = 4, **changes: object) -> Path:
    arguments: dict[str, object] = {"kind": "bandit", "id": "b/1", "config": CONFIG, "seeds": {"data": 3}}
    arguments |= {"tables": {"results": frame(rows)}} | changes
    return records.write_run(folder, **arguments)  # type: ignore[arg-type]


def test_a_run_comes_back_as_written(tmp_path: Path) -> None:
    table = frame()
    table.loc[1, "value"] = math.inf  # a diverged KL must survive
    table.loc[2, "value"] = math.nan
    run = records.read_run(
        write(tmp_path / "a", tables={"results": table, "metrics": frame(2)}, data_fingerprint="abc")
    )
    assert (run.kind, run.id, run.config, run.seeds) == ("bandit", "b/1", CONFIG, {"data": 3})
    pd.testing.assert_frame_equal(run.table("results"), table)
    pd.testing.assert_frame_equal(run.table("metrics"), frame(2))
    manifest = json.loads((tmp_path / "a" / "run.json").read_text())
    assert manifest["status"] == "complete"
    assert manifest["data_fingerprint"] == "abc"
    assert manifest["times"]["written"].endswith("+00:00")
    assert manifest["packages"]["pandas"] == pd.__version__
    digest = hashlib.sha256((tmp_path / "a" / "results.parquet").read_bytes()).hexdigest()
    assert manifest["tables"]["results"]["sha256"] == digest
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "metrics.parquet",
        "results.parquet",
        "run.json",
    ]


def test_the_code_version_names_the_commit_of_this_checkout() -> None:
    code = records.code_version()
    assert code["commit"] is None or len(str(code["commit"])) == 40
    assert (code["dirty"] is None) == (code["commit"] is None)


def test_a_flipped_bit_in_a_table_is_found_and_named(tmp_path: Path) -> None:
    folder = write(tmp_path)
    run = records.read_run(folder)
    path = folder / "results.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    for read in (lambda: records.read_run(folder), lambda: run.table("results")):
        with pytest.raises(records.RecordError, match=r"results\.parquet: is damaged: its sha256") as caught:
            read()
        assert caught.value.path == path


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text[: len(text) // 2], "not valid JSON"),
        (lambda text: "[]", "not a run record"),
        (lambda text: text.replace('"format_version": 1', '"format_version": 99'), "newer than the 1"),
        (lambda text: text.replace('"status": "complete"', '"status": "running"'), "did not finish"),
        (lambda text: text.replace('"kind"', '"sort"'), "'kind' is missing"),
        (lambda text: text.replace('"results": {', '"../results": {'), "not a table name"),
        (lambda text: text.replace('"sha256"', '"md5"'), "has no checksum"),
        (lambda text: text.replace('"data": 3', '"data": 4'), "not what was written"),
    ],
)
def test_a_damaged_manifest_is_refused_with_its_reason(
    tmp_path: Path, change: Callable[[str], str], reason: str
) -> None:
    path = write(tmp_path) / "run.json"
    changed = change(path.read_text())
    assert changed != path.read_text()
    path.write_text(changed)
    with pytest.raises(records.RecordError, match=reason) as caught:
        records.read_run(tmp_path)
    assert "run.json" in str(caught.value)


def test_missing_files_and_tables_are_named(tmp_path: Path) -> None:
    with pytest.raises(records.RecordError, match=r"nothing: there is no such folder"):
        records.read_run(tmp_path / "nothing")
    with pytest.raises(records.RecordError, match=r"run\.json: is missing"):
        records.read_run(tmp_path)
    run = records.read_run(write(tmp_path))
    with pytest.raises(records.RecordError, match=r"no table 'metrics'; it has results"):
        run.table("metrics")
    (tmp_path / "results.parquet").unlink()
    with pytest.raises(records.RecordError, match=r"results\.parquet: is missing"):
        records.read_run(tmp_path)


def test_find_runs_lists_good_runs_and_says_why_it_skipped_the_others(tmp_path: Path) -> None:
    write(tmp_path / "b" / "deep")
    write(tmp_path / "a")
    write(tmp_path / ".cache" / "hidden")
    (write(tmp_path / "damaged") / "results.parquet").write_bytes(b"PAR1")
    (write(tmp_path / "interrupted") / "run.json").unlink()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pairs.parquet").write_bytes(b"somebody's")
    runs, skipped = records.find_runs(tmp_path)
    assert [run.folder for run in runs] == [tmp_path / "a", tmp_path / "b" / "deep"]
    assert len(skipped) == 2
    assert "damaged" in skipped[0]
    assert "sha256" in skipped[0]
    assert "interrupted" in skipped[1]
    assert "no run.json" in skipped[1]
    with pytest.raises(records.RecordError, match="no such folder"):
        records.find_runs(tmp_path / "absent")


def _disk_full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("fail_at", [1, 2, 3])
def test_a_full_disk_leaves_the_earlier_run_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail_at: int
) -> None:
    """The disk fills up at the first table, at the second, or at the manifest; nothing of the earlier run is touched."""
    tables = {"results": frame(2), "metrics": frame(3)}
    write(tmp_path, tables=tables)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    real, calls = os.fsync, iter(range(1, 100))
    monkeypatch.setattr(os, "fsync", lambda fd: _disk_full() if next(calls) == fail_at else real(fd))
    with pytest.raises(records.RecordError, match=r"(results|metrics|run)\.\w+: cannot be written \(No space left"):
        write(tmp_path, tables={"results": frame(50), "metrics": frame(60)})
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert len(records.read_run(tmp_path).table("results")) == 2


def test_the_kernel_refusing_a_write_leaves_the_earlier_file_whole(tmp_path: Path) -> None:
    """A real refusal, not a patched one: the process's file size limit."""
    path = records.atomic_write(tmp_path / "sub" / "artefact.bin", b"earlier")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        with pytest.raises(records.RecordError, match=r"artefact\.bin: cannot be written"):
            records.atomic_write(path, bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"earlier"
    assert list(path.parent.iterdir()) == [path]


def test_an_interruption_while_writing_leaves_nothing_half_written(tmp_path: Path) -> None:
    path = records.atomic_write(tmp_path / "x", lambda handle: handle.write(b"one"))

    def interrupted(handle: BinaryIO) -> None:
        handle.write(b"tw")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        records.atomic_write(path, interrupted)
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_stored_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(records.RecordError, match=r"config\.strengths\[1\] is inf"):
        write(tmp_path / "a", config={"strengths": [1.0, math.inf]})
    with pytest.raises(records.RecordError, match="cannot be stored as Parquet"):
        write(tmp_path / "a", tables={"results": pd.DataFrame({"x": [object()]})})
    with pytest.raises(records.RecordError, match="not a table name"):
        write(tmp_path / "a", tables={"../results": frame()})
    assert list((tmp_path / "a").iterdir()) == []


def test_is_complete_compares_configs_and_trusts_nothing_damaged(tmp_path: Path) -> None:
    assert not records.is_complete(tmp_path, CONFIG)
    write(tmp_path, config={"strengths": (0.1, np.float64(1.0)), "experiment": "determinism"})
    assert records.is_complete(tmp_path, CONFIG)
    assert not records.is_complete(tmp_path, CONFIG | {"experiment": "strength"})
    manifest = (tmp_path / "run.json").read_text()
    (tmp_path / "run.json").write_text(manifest.replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(records.RecordError, match="newer"):
        records.is_complete(tmp_path, CONFIG)
    (tmp_path / "run.json").write_text(manifest)
    (tmp_path / "results.parquet").unlink()
    assert not records.is_complete(tmp_path, CONFIG)


@dataclass(frozen=True)
class _Settings:
    beta: float
    path: Path


def test_fingerprints_are_sha256_of_canonical_json_or_bytes(tmp_path: Path) -> None:
    assert (
        records.fingerprint(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )  # FIPS 180-2
    (tmp_path / "file").write_bytes(b"abc")
    assert records.fingerprint(tmp_path / "file") == records.fingerprint(b"abc")
    assert records.fingerprint({"b": 1, "a": [1, 2]}) == hashlib.sha256(b'{"a":[1,2],"b":1}').hexdigest()
    assert records.fingerprint(_Settings(0.5, Path("x"))) == records.fingerprint({"path": "x", "beta": np.float64(0.5)})
    with pytest.raises(records.RecordError, match="absent: cannot be read"):
        records.fingerprint(tmp_path / "absent")


def test_an_exported_record_is_the_same_without_its_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers, texts = pd.DataFrame({"value": [0.1, 1e-300]}), pd.DataFrame({"completion": ["somebody's text"]})
    records.write_run(
        tmp_path / "runs" / "a",
        kind="llm",
        id="a",
        config={"x": 1},
        seeds={},
        tables={"metrics": numbers, "samples": texts},
    )
    assert main(["export", str(tmp_path / "runs"), "--out", str(tmp_path / "public")]) == 0
    assert "1 records" in capsys.readouterr().out
    before, after = records.read_run(tmp_path / "runs" / "a"), records.read_run(tmp_path / "public" / "a")
    assert after.tables == ("metrics",)
    assert (after.folder / "metrics.parquet").read_bytes() == (before.folder / "metrics.parquet").read_bytes()
    ours = ("tables", "sha256")
    unchanged = {key: value for key, value in before.manifest.items() if key not in ours}
    assert unchanged == {key: value for key, value in after.manifest.items() if key not in ours}
    assert not any(b"somebody" in path.read_bytes() for path in after.folder.iterdir())

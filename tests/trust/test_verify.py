"""`python -m analysis verify`: a good run reproduces; what was changed in another is named."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import verify
from analysis.__main__ import main
from analysis.records import package_versions, read_run, write_run
from llm_runs import verify as llm_verify
from llm_runs.__main__ import main as llm
from llm_runs.labelling import read_pairs, write_pairs
from toy_bandits.__main__ import main as bandits
from toy_bandits.verify import compare
from trust.conftest import SLUG

Verify = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Verify:
    """The command's exit code and lines; the producer is called in this process."""
    producers = {"llm_runs": llm, "toy_bandits": bandits}

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, producers[command[2]](command[3:]))

    monkeypatch.setattr(verify.subprocess, "run", run)

    def called(folder: Path, *options: str) -> tuple[int, list[str]]:
        code = main(["verify", str(folder), *options])
        said = capsys.readouterr()
        errors = [line[line.index("error: ") :] for line in said.err.splitlines() if "error: " in line]
        return code, errors + said.out.splitlines()

    return called


def failures(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith(("FAIL", "error"))]


def rewrite(folder: Path, **changes: Any) -> None:
    """Write a record anew with something else in it, as whoever wanted to deceive would: all checksums are right."""
    run = read_run(folder)
    given: dict[str, Any] = {
        "config": run.config,
        "seeds": run.seeds,
        "tables": {name: run.table(name) for name in run.tables},
        "data_fingerprint": run.manifest["data_fingerprint"],
    }
    write_run(
        folder, kind=run.kind, id=run.id, device=run.manifest["device"], extra=run.manifest["extra"], **given | changes
    )


def test_a_good_run_reproduces(copy: Path, lines: Verify) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    code, said = lines(copy / "runs" / SLUG)
    assert (code, failures(said), said[-1]) == (0, [], "reproduces")
    assert "ok   record: metrics, evaluations, samples and run.json are what was written" in said
    assert "ok   labels: drawn again, noisy-seed0.jsonl is the same" in said
    assert any(line.startswith("ok   steps: 2 of them again") and line.endswith("the same bits") for line in said)
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before  # nothing is touched


def test_a_changed_table_is_named(copy: Path, lines: Verify) -> None:
    table = copy / "runs" / SLUG / "metrics.parquet"
    content = bytearray(table.read_bytes())
    content[len(content) // 2] ^= 1
    table.write_bytes(content)
    code, said = lines(copy / "runs" / SLUG)
    assert code == 1 and said[-1] == "does NOT reproduce"
    (failure,) = failures(said)
    assert failure.startswith(f"FAIL record: {table}: is damaged: its sha256 is")


def test_a_forged_number_is_named(copy: Path, lines: Verify) -> None:
    """Its checksums are right, but training again gives another number."""
    folder = copy / "runs" / SLUG
    metrics = read_run(folder).table("metrics")
    row = metrics[(metrics["name"] == "loss") & (metrics["step"] == 2)].index[0]
    metrics.loc[row, "value"] = np.nextafter(metrics.loc[row, "value"], 1.0)  # by one bit
    rewrite(folder, tables={"metrics": metrics, "evaluations": read_run(folder).table("evaluations")})
    code, said = lines(folder)
    (failure,) = failures(said)
    assert code == 1 and "they differ: loss at step 2 was" in failure
    assert lines(folder, "--steps", "1")[0] == 0  # the first step is right


def test_changed_data_are_named(copy: Path, lines: Verify) -> None:
    path = copy / "pairs" / "noisy-seed0.jsonl"
    pairs = read_pairs(path)
    write_pairs(path, [pairs[0].flip(), *pairs[1:]])
    code, said = lines(copy / "runs" / SLUG)
    (failure,) = failures(said)
    assert code == 1 and failure.startswith(f"FAIL data: {path} has changed: sha256 ")
    rewrite(copy / "runs" / SLUG, data_fingerprint=llm_verify.fingerprint(path))  # also in the record
    failed = failures(lines(copy / "runs" / SLUG)[1])
    assert failed[0].startswith("FAIL labels: drawn again, noisy-seed0.jsonl is another")


@pytest.mark.parametrize("name", ["order", "labels", "sampling"])
def test_a_changed_seed_is_named(copy: Path, lines: Verify, name: str) -> None:
    folder = copy / "runs" / SLUG
    rewrite(folder, seeds=read_run(folder).seeds | {name: 7})
    code, said = lines(folder)
    assert code == 1 and failures(said) == [f"FAIL seed {name}: 7 in the record, 0 in its experiment"]


def test_a_seed_or_setting_changed_in_the_record_alone_is_named(copy: Path, lines: Verify) -> None:
    folder = copy / "runs" / SLUG
    manifest = folder / "run.json"
    edited = manifest.read_text().replace('"training_seed": 0', '"training_seed": 1')
    manifest.write_text(edited)
    code, said = lines(folder)
    assert code == 1 and "run.json: is damaged: it is not what was written" in failures(said)[0]
    manifest.write_text(edited.replace('"training_seed": 1', '"training_seed": 0'))
    config = read_run(folder).config
    rewrite(folder, config=config | {"training": config["training"] | {"learning_rate": 0.5}})
    assert failures(lines(folder)[1]) == [
        "FAIL setting training.learning_rate: 0.5 in the record, 0.001 in its experiment"
    ]


def test_another_version_is_named_and_is_no_failure(copy: Path, lines: Verify) -> None:
    folder = copy / "runs" / SLUG
    manifest = json.loads((folder / "run.json").read_text())
    del manifest["sha256"]  # as records of earlier versions
    manifest["packages"]["torch"] = "1.0"
    manifest["code"]["commit"] = "0" * 40
    (folder / "run.json").write_text(json.dumps(manifest))
    code, said = lines(folder, "--steps", "0")
    assert code == 0
    assert f"note version: torch 1.0 then, {package_versions()['torch']} here" in said
    assert any(line.startswith("note version: code of commit 000000000000 then") for line in said)


def test_a_changed_reference_is_named(copy: Path, lines: Verify) -> None:
    """The model that training started from is not the one whose log-probabilities are kept."""
    import safetensors.torch

    path = copy / "reference" / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    weights["model.norm.weight"] *= 1.5
    path.unlink()
    safetensors.torch.save_file(weights, path, metadata={"format": "pt"})
    code, said = lines(copy / "runs" / SLUG)
    assert code == 1 and said[-1] == "does NOT reproduce"
    assert any("reference" in line and line.startswith("error:") for line in failures(said))


def test_a_bandit_record_is_solved_again(tmp_path: Path, lines: Verify) -> None:
    assert bandits(["run", "ablation", "--out", str(tmp_path)]) == 0
    folder = tmp_path / "ablation"
    code, said = lines(folder)
    assert code == 0 and "ok   rows: all 18 solved again: the same bits" in said
    table = read_run(folder).table("results")
    name = next(name for name in table if table[name].dtype.kind == "f" and np.isfinite(table[name]).all())
    table.loc[3, name] = np.nextafter(table.loc[3, name], np.inf)
    rewrite(folder, tables={"results": table})
    code, said = lines(folder)
    assert code == 1 and f"they differ: {name} of row 3 was" in failures(said)[0]
    rewrite(folder, config=read_run(folder).config | {"unheard_of": 1})
    assert "this version cannot make it: ablation has no setting unheard_of" in failures(lines(folder)[1])[0]


def test_tables_of_other_versions_may_differ_a_little() -> None:
    then, now = pd.DataFrame({"x": [1.0, np.inf]}), pd.DataFrame({"x": [1.0 + 1e-9, np.inf]})
    assert compare(then, now, exact=True)[0] is False
    right, words = compare(then, now, exact=False)
    assert right and "equal up to 1e-09" in words
    assert compare(then, now * 1.001, exact=False)[0] is False
    assert compare(then, pd.DataFrame({"x": [1.0, 5.0]}), exact=False)[0] is False
    assert compare(then, now[:1], exact=False)[0] is False


def test_what_is_no_run_is_said(tmp_path: Path, lines: Verify) -> None:
    assert lines(tmp_path / "absent") == (2, [f"error: {tmp_path / 'absent'}: there is no such folder"])
    assert "no run at or below it" in lines(tmp_path)[1][0]


def test_a_shipped_record_reproduces(lines: Verify) -> None:
    """It was made on another machine, so up to rounding."""
    code, said = lines(Path(__file__).parents[2] / "paper_figures" / "records" / "bandits" / "ablation")
    assert (code, failures(said)) == (0, [])
    assert any(line.startswith("ok   rows: all 18 solved again") for line in said)


@pytest.mark.slow  # two processes that each import torch
def test_the_command_works_from_a_shell() -> None:
    words = [sys.executable, "-m", "analysis", "verify", "paper_figures/records/bandits/ablation"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 0 and done.stdout.endswith("reproduces\n"), done.stdout + done.stderr

"""Sweeps on a real Slurm of one node, with preemption. Opt-in: tests/slurm/one_node.sh says how to set it up; then `pytest -m slurm`."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import test_sweeps

from analysis.records import find_runs
from llm_runs.__main__ import main
from llm_runs.sweeps import queue, status
from llm_runs.sweeps.states import Folder

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(shutil.which("sbatch") is None, reason="no Slurm here; see tests/slurm/one_node.sh"),
]

RUN = "main/dpo_beta=0.1-noisy-seed0"


def until(condition: Callable[[], object], seconds: float, out: Path) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, status.report(out, everything=True)
        time.sleep(0.5)


def kinds(out: Path) -> dict[str, str]:
    return {line.task.id: line.kind for line in status.lines(out)}


def finished(out: Path) -> Callable[[], bool]:
    return lambda: not {"running", "waiting", "stopped"} & set(kinds(out).values())


def submit(folder: Path, out: Path, **changes: Any) -> None:
    settings = {"slurm": {"partition": "low", "time": 30, "notice": 5, "cpus": 1}, "runs_per_job": None, "jobs": 2}
    assert main(["sweep", str(test_sweeps.write(folder, **settings | changes)), "--out", str(out), "--slurm"]) == 0


def test_a_sweep_on_slurm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stages, then an array of runs, of which those of one objective fail; given again, only these are submitted."""
    out = tmp_path / "out"
    submit(tmp_path, out)
    printed = capsys.readouterr().out
    assert "9 jobs submitted for 11 tasks; 0 done and 0 in the queue before" in printed
    submit(tmp_path, out)
    assert "0 jobs submitted for 0 tasks; 0 done and 11 in the queue before" in capsys.readouterr().out
    assert set(kinds(out).values()) <= {"waiting", "running"}
    until(finished(out), 500, out)
    assert status.report(out).startswith("7 done, 4 failed of 11 tasks")
    assert len(find_runs(out)[0]) == 4
    assert "rollouts" in status.report(out)
    submit(tmp_path, out, objectives=["dpo"])
    assert "0 jobs submitted for 0 tasks; 7 done" in capsys.readouterr().out


def test_a_preempted_run_continues_from_its_checkpoint(tmp_path: Path) -> None:
    """A job of a partition with priority takes the node from a run in the midst of its training; the run is queued again and goes on."""
    long = {
        **test_sweeps.SMALL,
        "training": {"steps": 3000, "batch_size": 4, "save_every": 100, "log_every": 100, "kl_limit": None},
    }
    out = tmp_path / "out"
    submit(tmp_path, out, set=long, objectives=["dpo"], seeds=[0], data={"main": {}})
    checkpoints = out / RUN.replace("/", "/runs/") / "checkpoints"
    until(lambda: list(checkpoints.glob("checkpoint-*/trainer_state.json")), 300, out)
    whole = ["sbatch", "--partition=high", "--exclusive", f"--output={tmp_path}/high.out", "--wrap=sleep 8"]
    subprocess.run(whole, check=True, capture_output=True)
    until(lambda: kinds(out)[RUN] == "waiting", 60, out)
    (line,) = [line for line in status.lines(out) if line.task.id == RUN]
    assert "in the queue: job" in line.said
    until(lambda: kinds(out)[RUN] == "running", 300, out)
    until(finished(out), 300, out)
    assert kinds(out)[RUN] == "done", status.report(out)
    state = Folder(out).state(RUN)
    assert state is not None
    assert state.attempts == 2
    log = Folder(out).log(RUN).read_text()
    assert log.count("-- main: dpo(beta=0.1) on noisy labels, seed 0") == 2
    (run,) = find_runs(out)[0]
    metrics = run.table("metrics")
    loss = metrics[metrics["name"] == "loss"]
    assert loss["step"].is_unique
    assert loss["step"].max() == 3000
    assert isinstance(loss, pd.DataFrame)


def test_what_slurm_refuses_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    source = test_sweeps.write(tmp_path, slurm={"partition": "nowhere"})
    assert main(["sweep", str(source), "--out", str(out), "--slurm"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "Slurm refuses a job" in line
    assert "invalid partition" in line
    assert "slurm:" in line
    assert queue.submitted(Folder(out)) == {}
    assert set(kinds(out).values()) == {"waiting"}


def test_a_cancelled_job_is_submitted_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    submit(tmp_path, out, objectives=["dpo"], seeds=[0], data={"main": {}})
    jobs = queue.submitted(Folder(out))
    subprocess.run(["scancel", *jobs], check=True)
    until(lambda: not queue.queued(Folder(out)), 60, out)
    assert set(kinds(out).values()) <= {"stopped", "waiting"}
    capsys.readouterr()
    submit(tmp_path, out, objectives=["dpo"], seeds=[0], data={"main": {}})
    assert "2 jobs submitted for 4 tasks" in capsys.readouterr().out
    until(finished(out), 300, out)
    assert set(kinds(out).values()) == {"done"}


def test_a_job_whose_time_is_up_is_queued_again(tmp_path: Path) -> None:
    """By submitit, on the signal that Slurm sends before the limit of two minutes; the run goes on from its last checkpoint."""
    long = {
        **test_sweeps.SMALL,
        "training": {"steps": 50_000, "batch_size": 4, "save_every": 50, "log_every": 50, "kl_limit": None},
    }
    out = tmp_path / "out"
    timed = {"partition": "low", "time": 2, "notice": 25, "cpus": 1, "requeues": 20}
    submit(tmp_path, out, set=long, objectives=["dpo"], seeds=[0], data={"main": {}}, slurm=timed)
    folder = out / RUN.replace("/", "/runs/") / "checkpoints"

    def attempts() -> int:
        state = Folder(out).state(RUN)
        return state.attempts if state is not None else 0

    def newest() -> int:
        return max((int(path.parent.name.partition("-")[2]) for path in folder.glob("*/trainer_state.json")), default=0)

    until(lambda: newest() > 0, 400, out)
    kept = 0
    while attempts() < 2:
        kept = max(kept, newest())
        assert kinds(out)[RUN] in ("running", "waiting", "stopped"), status.report(out)
        time.sleep(0.2)
    seen = set()
    until(lambda: seen.add(newest()) or newest() > kept + 50, 200, out)
    assert min(seen) >= kept > 0  # nothing began anew
    subprocess.run(["scancel", *queue.submitted(Folder(out))], check=True)
    said = Folder(out).log(RUN).read_text()  # which has what submitit says while the task is done
    assert "Job has timed out" in said
    assert "Requeued job" in said
    assert said.count("-- main: dpo(beta=0.1) on noisy labels, seed 0") >= 2

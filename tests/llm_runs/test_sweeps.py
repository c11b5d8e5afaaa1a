"""Sweeps: the grid, what runs share, jobs on this machine, runs that fail, are killed and continue, the status, bad input."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import submitit
import yaml

from analysis.records import LockError, find_runs
from analysis.records.locks import check_locks, locked
from llm_runs.__main__ import main
from llm_runs.config import RunConfig
from llm_runs.errors import InputError
from llm_runs.strict import ConfigError
from llm_runs.sweeps import estimate, local, stages, status, tasks
from llm_runs.sweeps.batches import Batch, batches, runs_per_job
from llm_runs.sweeps.spec import SweepConfig
from llm_runs.sweeps.states import Folder, State, Task
from llm_runs.sweeps.work import Job

# Smaller still than the tiny configuration.
SMALL = {
    "sft.steps": 10,
    "data": {"reward_texts": 200, "sft_texts": 200, "prompts": 16},
    "reference.samples": 16,
    "labels": [{"name": "noisy", "temperature": 4.0}],
    "training": {"steps": 4, "batch_size": 4, "save_every": 1},
    "evaluation": {"at": [], "prompts": 4, "held_out_samples": 4, "held_out_pairs": 4, "training_pairs": 4},
}
BROKEN = "dpo + reverse_kl(weight=0.1)"  # which needs samples of the policy: training stops with an error
SWEEP: dict[str, Any] = {
    "config": "tiny",
    "set": SMALL,
    "objectives": ["dpo", BROKEN],
    "seeds": [0, 1],
    "data": {"main": {}, "faster": {"training.learning_rate": 2e-3}},
    "jobs": 2,
    "runs_per_job": 8,
}


def write(folder: Path, **changes: Any) -> Path:
    values = {key: value for key, value in {**SWEEP, **changes}.items() if value is not None}
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def files(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*.json")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A sweep of eight runs, of which the four of one objective fail; what the command printed and its error."""
    folder = tmp_path_factory.mktemp("sweep")
    out, told = folder / "out", (io.StringIO(), io.StringIO())
    with contextlib.redirect_stdout(told[0]), contextlib.redirect_stderr(told[1]):
        assert main(["sweep", str(write(folder)), "--out", str(out)]) == 2
    return out, told[0].getvalue(), told[1].getvalue()


@pytest.fixture
def copy(finished: tuple[Path, str, str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished[0], tmp_path / "copy", symlinks=True))


def test_what_can_be_done_is_done_and_what_fails_is_said(finished: tuple[Path, str, str]) -> None:
    out, printed, error = finished
    runs, skipped = find_runs(out)
    assert skipped == []
    assert sorted(str(run.folder.relative_to(out)) for run in runs) == [
        f"{data}/runs/dpo_beta=0.1-noisy-seed{seed}" for data in ("faster", "main") for seed in (0, 1)
    ]
    assert {run.id.rpartition("/")[0] for run in runs} == {"sweep/main", "sweep/faster"}
    assert "[7/11]" in printed
    assert printed.count("FAILED ") == 4
    (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
    assert "4 of 11 tasks failed; the first: main/dpo_beta=0.1_+reverse_kl_weight=0.1-noisy-seed0" in line
    assert "rollouts" in line
    shown = status.report(out)
    assert shown.startswith("7 done, 4 failed of 11 tasks\n4 of 8 runs done")
    failed = [line for line in status.lines(out) if line.kind == "failed"]
    assert len(failed) == 4
    for each in failed:
        log = Path(each.said.rpartition("(log: ")[2].removesuffix(")"))
        assert "rollouts" in each.said
        assert "Traceback" in log.read_text()
        assert each.said in shown


def test_shared_steps_are_computed_once(finished: tuple[Path, str, str]) -> None:
    out = finished[0]
    shared = {path.name.partition("-")[0]: path for path in (out / "shared").iterdir()}
    assert sorted(path.name.partition("-")[0] for path in (out / "shared").iterdir()) == sorted(shared)
    assert set(shared) == {"reference", "samples", "prepared"}
    logs = "".join(path.read_text() for path in (out / "sweep" / "logs").rglob("*.log"))
    for step in ("fine-tune the reference", "sample completions", "label pairs", "log-probabilities", "fit the ground"):
        told = [line for line in logs.split("[") if step in line.partition("\n")[0]]
        assert sum("already done" not in line.partition("next")[0] for line in told) == 1, step
    for data in ("main", "faster"):
        for name in ("reference", "samples", "pairs", "reference_logps", "before", "reward.npz"):
            assert (out / data / name).is_symlink()
            assert (out / "shared").resolve() in (out / data / name).resolve().parents
    runs = {str(run.folder.relative_to(out)): run for run in find_runs(out)[0]}
    one, other = (runs[f"{data}/runs/dpo_beta=0.1-noisy-seed1"].table("evaluations") for data in ("main", "faster"))
    first, second = (frame[frame["step"] == 0].reset_index(drop=True) for frame in (one, other))
    pd.testing.assert_frame_equal(first, second)
    assert not one.equals(other)


def test_nothing_is_done_twice(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(copy)
    assert main(["sweep", str(write(tmp_path, objectives=["dpo"])), "--out", str(copy)]) == 0
    assert "7 of 7 tasks are done already" in capsys.readouterr().out
    changed = {name for name, at in files(copy).items() if before.get(name) != at}
    assert {Path(name).name for name in changed} == {"plan.json", "config.json"}


def plan(out: Path, folder: Path, **changes: Any) -> list[Task]:
    sweep = SweepConfig.load(write(folder, **changes))
    planned = tasks.plan(sweep, out, dry=False)
    Folder(out).write_plan(sweep.name, planned, locks=True)
    return planned


# Does one task of a sweep, and waits in its second step.
HELD = """
import sys, time
from pathlib import Path
from llm_runs import pipeline
from llm_runs.sweeps.work import Job
measure = pipeline.measure
def held(evaluator, model, step, *more):
    if step == 2:
        time.sleep(600)
    return measure(evaluator, model, step, *more)
pipeline.measure = held
Job(Path(sys.argv[1]), [sys.argv[2]])()
"""


def test_a_killed_run_continues_and_gives_the_same(copy: Path, tmp_path: Path) -> None:
    name = "main/dpo_beta=0.1-noisy-seed0"
    record = copy / "main" / "runs" / "dpo_beta=0.1-noisy-seed0"
    wanted = {run.folder.name: run for run in find_runs(copy / "main")[0]}[record.name].table("evaluations")
    metrics = pd.read_parquet(record / "metrics.parquet")
    shutil.rmtree(record)
    plan(copy, tmp_path, objectives=["dpo"])
    assert {line.task.id: line.kind for line in status.lines(copy)}[name] == "waiting"
    process = subprocess.Popen([sys.executable, "-c", HELD, str(copy), name])
    try:
        while not list((record / "checkpoints").glob("checkpoint-1/trainer_state.json")):
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.1)
        (line,) = [line for line in status.lines(copy) if line.task.id == name]
        assert (line.kind, f"process {process.pid} on" in line.said) == ("running", True)
    finally:
        process.kill()
        process.wait()
    (line,) = [line for line in status.lines(copy) if line.task.id == name]
    assert (line.kind, "its process ended before it was done" in line.said) == ("stopped", True)
    Job(copy, [name])()
    state = Folder(copy).state(name)
    assert state is not None
    assert (state.state, state.attempts) == ("done", 3)  # at first, killed, and again
    (again,) = [run for run in find_runs(copy / "main")[0] if run.folder.name == record.name]
    pd.testing.assert_frame_equal(again.table("evaluations"), wanted)
    resumed = again.table("metrics")
    same = ~metrics["name"].str.contains("seconds|memory")
    pd.testing.assert_frame_equal(resumed[~resumed["name"].str.contains("seconds|memory")], metrics[same])
    assert (resumed["step"] == 1).any()


def test_what_killed_processes_left_half_written_goes(copy: Path, tmp_path: Path) -> None:
    """Of a stage with the stage, of the sweep's own files with their next write; what another task may be writing stays."""
    planned = plan(copy, tmp_path, objectives=["dpo"])
    stage, run = planned[2], planned[3]
    assert (stage.stage, run.stage) == ("prepared", None)
    left = [
        copy / stage.folder / ".reward.npz.7.0123abcd.tmp",
        copy / stage.folder / "before" / ".reference.parquet.7.0123abcd.tmp",
        copy / "sweep" / "tasks" / f".{stage.id}.json.7.0123abcd.tmp",
        copy / "sweep" / ".plan.json.7.0123abcd.tmp",
        copy / "main" / ".config.json.7.0123abcd.tmp",
    ]
    others = copy / planned[0].folder / ".model.safetensors.7.0123abcd.tmp"
    for path in (*left, others):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    state = Folder(copy).state(stage.id)
    assert state is not None
    Folder(copy).set_state(stage.id, dataclasses.replace(state, state="stopped"))
    plan(copy, tmp_path, objectives=["dpo"])
    Job(copy, [stage.id])()
    assert [path for path in left if path.exists()] == []
    assert others.exists()


class Held(Job):
    """Waits in the second step of its first attempt, until it is told to go."""

    def __call__(self) -> None:
        from llm_runs import pipeline

        measure, mark = pipeline.measure, self.out / "held"

        def held(evaluator: Any, model: Any, step: int, *more: Any) -> Any:
            if step == 2 and not mark.exists():
                mark.touch()
                time.sleep(600)
            return measure(evaluator, model, step, *more)

        pipeline.measure = held
        super().__call__()


@pytest.mark.slow
def test_a_job_whose_time_is_up_is_queued_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By submitit, on the signal that comes before a job's time is up; the run goes on from its checkpoint and gives the same."""
    name, out = "main/dpo_beta=0.1-noisy-seed0", tmp_path / "out"
    planned = plan(out, tmp_path, objectives=["dpo"], seeds=[0], data={"main": {}})
    Job(out, [task.id for task in planned])()
    (run,) = find_runs(out)[0]
    wanted = run.table("evaluations")
    shutil.rmtree(run.folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    executor = submitit.LocalExecutor(tmp_path / "jobs", max_num_timeout=1)
    executor.update_parameters(timeout_min=3.0, signal_delay_s=90, stderr_to_stdout=True)
    job = executor.submit(Held(out, [name]))
    end = time.monotonic() + 90
    while not (out / "held").exists():
        assert time.monotonic() < end, "it did not come to its second step in time"
        time.sleep(0.1)
    (line,) = [line for line in status.lines(out) if line.task.id == name]
    assert line.kind == "running"
    job.wait()
    said = Folder(out).log(name).read_text()  # which has what submitit says while the task is done
    assert job.exception() is None, said
    assert "this job is timed-out" in said
    assert "Requeued job" in said
    state = Folder(out).state(name)
    assert state is not None
    assert (state.state, state.attempts) == ("done", 3)  # at first, told to go, and again
    (again,) = find_runs(out)[0]
    pd.testing.assert_frame_equal(again.table("evaluations"), wanted)
    loss = again.table("metrics").query("name == 'loss'")
    assert loss["step"].tolist() == [1, 2, 3, 4]  # none twice, none left out


def test_a_task_is_done_by_one_process_at_a_time(copy: Path, tmp_path: Path) -> None:
    planned = plan(copy, tmp_path)
    task = next(task for task in planned if task.run == "dpo_beta=0.1_+reverse_kl_weight=0.1-noisy-seed0")
    folder = Folder(copy)
    folder.set_state(task.id, State("running", task.key, host=os.uname().nodename, pid=os.getppid(), began=time.time()))
    Job(copy, [task.id])()
    state = folder.state(task.id)
    assert state is not None
    assert state.state == "failed"
    assert f"{task.id} is being done by process {os.getppid()} of this machine, though its lock is free" in state.said


def test_what_a_job_is_when_it_is_told_to_go() -> None:
    job = Job(Path("somewhere"), ["a", "b"])
    again = job.checkpoint()
    assert again.function is job
    assert (again.args, again.kwargs) == ((), {})


# -- the grid --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strenghts": [1]}, "unknown key 'strenghts' at the top level; nearest valid names: strengths"),
        ({"slurm": {"partitoin": "gpu"}}, "unknown key 'partitoin' in section 'slurm'; nearest valid names: partition"),
        ({"set": {"training.stesp": 3}}, "unknown key 'stesp' in section 'training'; nearest valid names: steps"),
        ({"objectives": []}, "the grid is empty: objectives is an empty list"),
        ({"strengths": []}, "the grid is empty: strengths is an empty list"),
        ({"seeds": []}, "the grid is empty: seeds is an empty list"),
        ({"data": {}}, "the grid is empty: data has no settings"),
        ({"config": "x" * 5000}, "no configuration file 'xxx"),
        ({"seeds": [3, 3]}, "two runs of the same identity: seeds names 3 twice"),
        (
            {"objectives": ["dpo", {"objective": "dpo", "strengths": [0.1]}]},
            "two runs of the same identity: objectives[0] and objectives[1] at strength 0.1 are both dpo(beta=0.1)",
        ),
        ({"objectives": ["dpo"], "strengths": [0.1, 0.10]}, "two runs of the same identity"),
        ({"data": {"a": {}, "b": {"seed": 0}}}, "data.a and data.b are the same runs"),
        (
            {"data": {"a": {"training_seeds": [3]}}},
            "data.a: training_seeds is for the whole sweep: give seeds at the top level",
        ),
        ({"data": {"a": {"objectives": []}}}, "the grid is empty: objectives"),
        ({"data": {"a": {"seeds": [-1]}}}, "seeds must be at least 0"),
        ({"data": {"sweep": {}}}, "data.sweep: this names a folder"),
        ({"data": {"a": 3}}, "data.a must be keys and values, not 3"),
        ({"objectives": ["dop"]}, "objectives[0]: unknown objective 'dop'"),
        ({"objectives": ["sft"], "strengths": [1]}, "objectives[0]: sft has no hyper-parameter that is its strength"),
        ({"config": "tyni"}, "no configuration file 'tyni'"),
        ({"config": None}, "config is missing"),
        ({"jobs": 0}, "jobs must be greater than 0"),
    ],
)
def test_a_sweep_that_cannot_be_is_one_line(
    tmp_path: Path, changes: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path, **changes)
    assert main(["sweep", str(source), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {source}: ")
    assert words in line
    assert not (tmp_path / "out").exists()


def test_missing_files_and_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", str(tmp_path / "nothing.yaml"), "--out", str(tmp_path / "out")]) == 2
    assert "nothing.yaml'; give a path or one of: evidence, evidence_cpu, strength, tiny" in capsys.readouterr().err
    assert main(["sweep-status", str(tmp_path)]) == 2
    assert f"{tmp_path} is not the folder of a sweep" in capsys.readouterr().err


def test_strengths_are_those_of_each_objective(tmp_path: Path) -> None:
    entry = {"objective": "simpo", "strengths": [2, 5]}
    sweep = SweepConfig.load(
        write(tmp_path, objectives=["dpo", "ipo + forward_kl(weight=1)", entry], strengths=[0.03, 0.3])
    )
    config = sweep.configs["main"]
    assert config.objectives == (
        *("dpo(beta=0.03)", "dpo(beta=0.3)"),
        *("ipo(tau=0.1)+forward_kl(weight=0.03)", "ipo(tau=0.1)+forward_kl(weight=0.3)"),
        *("simpo(beta=2)", "simpo(beta=5)"),
    )
    assert config.training_seeds == (0, 1)
    assert sweep.configs["faster"].training.learning_rate == 2e-3


def test_a_data_setting_may_have_objectives_and_seeds_of_its_own(tmp_path: Path) -> None:
    own = {"objectives": ["ipo", {"objective": "simpo", "strengths": [2]}], "seeds": [7], "training.steps": 3}
    sweep = SweepConfig.load(write(tmp_path, objectives=["dpo"], strengths=[0.3], data={"all": {}, "own": own}))
    assert sweep.configs["all"].objectives == ("dpo(beta=0.3)",)
    assert sweep.configs["own"].objectives == ("ipo(tau=0.3)", "simpo(beta=2)")
    assert sweep.configs["own"].training_seeds == (7,)
    assert sweep.configs["own"].training.steps == 3


def test_the_configuration_may_lie_beside_the_sweep(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(RunConfig.load("tiny", ["training.batch_size=6"]).to_dict()))
    sweep = SweepConfig.load(write(tmp_path, config="mine.yaml", set=None, objectives=["dpo"]))
    assert sweep.configs["faster"].training.batch_size == 6


def test_labels_of_one_name_and_two_temperatures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = {"a": {"labels": [{"name": "l", "temperature": 1}]}, "b": {"labels": [{"name": "l", "temperature": 2}]}}
    assert main(["sweep", str(write(tmp_path, data=data)), "--out", str(tmp_path / "out")]) == 2
    assert "labels 'l' have temperature 2 in sweep/b, 1 in another data setting" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "shared"),
    [
        ("training.steps=5", {"reference", "samples", "prepared"}),
        ("evaluation.at=[1]", {"reference", "samples", "prepared"}),
        ("labels=[{name: other, temperature: 1}]", {"reference", "samples", "prepared"}),
        ("training_seeds=[4]", {"reference", "samples", "prepared"}),
        ("reward.second=vader", {"reference", "samples"}),
        ("reference.top_k=3", {"reference", "samples"}),
        ("evaluation.other_texts=3", {"reference", "samples"}),
        ("data.prompts=9", {"reference"}),
        ("sampling.temperature=0.5", {"reference"}),
        ("reward.name=vader", set()),  # the texts that tfidf is fitted to are left to others
        ("sft.steps=3", set()),
        ("seed=1", set()),
        ("model.dtype=bfloat16", set()),
        ("data.reading.max_records=5", set()),
    ],
)
def test_what_runs_share(change: str, shared: set[str]) -> None:
    one, other = RunConfig.load("tiny"), RunConfig.load("tiny", [change])
    assert {stage.name for stage in stages.STAGES if stage.folder(one) == stage.folder(other)} == shared


def test_stages_are_valid_configurations() -> None:
    for name in ("tiny", "quick", "strength_zephyr", "paper_hh", "sentiment_gpt2"):
        for stage in stages.STAGES:
            assert stage.config(RunConfig.load(name)).to_dict()


# -- jobs ------------------------------------------------------------------------------------------------------------


def task(name: str, after: str | None = None, stage: str | None = None) -> Task:
    return Task(name, name, "folder", "key", after, stage)


def test_chains_of_stages_and_groups_of_runs() -> None:
    planned = [
        task("reference", None, "reference"),
        task("samples 1", "reference", "samples"),
        task("prepared 1", "samples 1", "prepared"),
        task("samples 2", "reference", "samples"),
        *(task(f"run {n}", "prepared 1") for n in range(5)),
    ]
    assert batches(planned, set(), 2) == [
        Batch(("reference",), None),
        Batch(("samples 1", "prepared 1"), "reference"),
        Batch(("samples 2",), "reference"),
        Batch(("run 0", "run 1"), "prepared 1"),
        Batch(("run 2", "run 3"), "prepared 1"),
        Batch(("run 4",), "prepared 1"),
    ]
    done = {"reference", "samples 1", "prepared 1", "run 1", "run 3"}
    assert batches(planned, done, 9) == [Batch(("samples 2",), None), Batch(("run 0", "run 2", "run 4"), None)]
    assert batches([each for each in planned if each.id != "samples 2"], set(), 9)[0].tasks == (
        "reference",
        "samples 1",
        "prepared 1",
    )


def test_small_sweeps_have_a_run_a_job_and_large_ones_many() -> None:
    assert runs_per_job(None, 4, 1) == 1
    assert runs_per_job(None, 1000, 2) == 50
    assert runs_per_job(None, 1000, 64) == 4
    assert runs_per_job(7, 1000, 2) == 7


class Jobs:
    """Stands for submitit on this machine: a job does one task at each look, and `deadly` ones end their process."""

    def __init__(self, out: Path, planned: dict[str, Task], failing: set[str], deadly: set[str]) -> None:
        self.folder, self.planned, self.failing, self.deadly = Folder(out), planned, failing, deadly
        self.at_once: list[int] = []
        self.order: list[str] = []
        self.running = 0

    def __call__(self, folder: Path, **_: object) -> Jobs:
        return self

    def update_parameters(self, **_: object) -> None:
        pass

    def submit(self, job: Job) -> Any:
        self.running += 1
        self.at_once.append(self.running)
        left = list(job.tasks)

        def done() -> bool:
            name = left.pop(0)
            task = self.planned[name]
            self.order.append(name)
            if name not in self.deadly:
                kind = "failed" if name in self.failing else "done"
                self.folder.set_state(name, State(kind, task.key, kind, began=time.time(), seconds=1))
            if name in self.deadly or not left or (kind == "failed" and task.stage):
                left.clear()
                self.running -= 1
                return True
            return False

        return SimpleNamespace(done=done, cancel=lambda check: None, paths=SimpleNamespace(stdout="job.out"))


@pytest.mark.parametrize(
    ("failing", "deadly", "words"),
    [
        (set(), set(), None),
        ({"run 2"}, set(), "1 of 9 tasks failed; the first: run 2: failed"),
        (set(), {"run 2"}, "1 of 9 tasks failed; the first: run 2: its process ended without a word"),
        ({"samples 2"}, set(), "1 of 9 tasks failed, 1 more wait for them; the first: samples 2: failed"),
        ({"reference"}, set(), "1 of 9 tasks failed, 8 more wait for them; the first: reference"),
        (set(), {"reference"}, "1 of 9 tasks failed, 8 more wait for them; the first: reference: its process ended"),
    ],
)
def test_jobs_are_bounded_and_outlive_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: set[str], deadly: set[str], words: str | None
) -> None:
    planned = [
        task("reference", None, "reference"),
        task("samples 1", "reference", "samples"),
        task("samples 2", "reference", "samples"),
        *(task(f"run {n}", "samples 1") for n in range(5)),
        task("run 5", "samples 2"),
    ]
    jobs = Jobs(tmp_path, {each.id: each for each in planned}, failing, deadly)
    monkeypatch.setattr(local.submitit, "LocalExecutor", jobs)
    monkeypatch.setattr(local, "_POLL", 0)
    sweep = SweepConfig(config="tiny", jobs=2, runs_per_job=2)
    said: list[str] = []
    if words is None:
        local.carry_out(sweep, tmp_path, planned, said.append, locks=True)
        assert sorted(jobs.order) == sorted(each.id for each in planned)
    else:
        with pytest.raises(InputError, match=re.escape(words)):
            local.carry_out(sweep, tmp_path, planned, said.append, locks=True)
    assert max(jobs.at_once) == (1 if "reference" in failing | deadly else 2)
    assert len(jobs.order) == len(set(jobs.order))  # nothing twice
    done = {line.task.id for line in status.lines(tmp_path) if line.kind == "done"}
    assert done == set(jobs.order) - failing - deadly
    jobs.failing, jobs.deadly, first = set(), set(), len(jobs.order)
    local.carry_out(sweep, tmp_path, planned, said.append, locks=True)
    assert sorted(jobs.order[first:]) == sorted(each.id for each in planned if each.id not in done)


def test_a_dry_run_writes_nothing_and_names_every_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["sweep", str(write(tmp_path)), "--out", str(out), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert not out.exists()
    assert "sweep: 8 runs and 3 stages that they share" in printed
    assert "main/dpo_beta=0.1-noisy-seed1" in printed
    assert "2 jobs on this machine, at most 2 at a time, 8 runs in each" in printed
    assert "by floating-point operations" in printed
    shipped = estimate.report(SweepConfig.load("strength"), out, slurm=True)
    assert "strength: 108 runs and 6 stages" in shipped


# -- status and locks ------------------------------------------------------------------------------------------------


def test_the_status_of_a_thousand_runs_takes_less_than_two_seconds(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    planned = [
        task("prepared", None, "prepared"),
        *(replace(task(f"d/r{n}", "prepared"), run=f"r{n}") for n in range(1000)),
    ]
    folder.write_plan("large", planned, locks=True)
    folder.set_state("prepared", State("done", "key"))
    for n in range(1000):
        if n % 3:
            path = folder.own / "tasks" / "d" / f"r{n}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            state = State("done", "key", seconds=2.0) if n % 3 == 1 else State("failed", "key", "no luck")
            path.write_text(json.dumps(vars(state)))
            if n % 3 == 1:
                record = tmp_path / "folder" / "runs" / f"r{n}" / "run.json"
                record.parent.mkdir(parents=True)
                record.write_text("{}")
    code = (
        "import sys, time; from llm_runs.__main__ import main; main(['sweep-status', sys.argv[1]]); "
        "assert not {'torch', 'pandas', 'transformers'} & set(sys.modules); print(time.process_time())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    first, second, *_, seconds = done.stdout.splitlines()
    assert first == "334 done, 334 waiting, 333 failed of 1001 tasks"
    assert second == "333 of 1000 runs done, 2s each"
    assert "  334 for a free job" in done.stdout
    assert float(seconds) < 2


def test_locks_that_do_not_work_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_locks(tmp_path)
    with locked(tmp_path / "a") as held, locked(tmp_path / "a", wait=False) as again:
        assert (held, again) == (True, False)
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", lambda *_: None)
        with pytest.raises(LockError, match=r"two processes got the same lock.*--no-locks"):
            check_locks(tmp_path)

    def missing(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", missing)
    with pytest.raises(
        LockError, match=r"locks do not work there .*No locks available.*another file system.*--no-locks"
    ):
        check_locks(tmp_path)
    with locked(tmp_path / "a", use=False) as held:
        assert held


def test_no_slurm_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "")
    assert main(["sweep", str(write(tmp_path)), "--out", str(tmp_path / "out"), "--slurm"]) == 2
    assert "--slurm: there is no sbatch on this machine" in capsys.readouterr().err


def test_another_command_on_the_same_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    with locked(out / "sweep" / "sweep.lock"):
        assert main(["sweep", str(write(tmp_path)), "--out", str(out)]) == 2
    assert "another command is doing this sweep" in capsys.readouterr().err


def test_ctrl_c_stops_the_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command is told to end while it fine-tunes; its job ends with it, and the status says so."""
    out, wait = tmp_path / "out", time.sleep

    def until_running(seconds: float) -> None:
        wait(seconds)
        if any(line.kind == "running" for line in status.lines(out)):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(local.time, "sleep", until_running)
    endless = {**SMALL, "sft.steps": 1_000_000}
    assert main(["sweep", str(write(tmp_path, set=endless)), "--out", str(out)]) == 130
    monkeypatch.undo()
    assert "interrupted; give the same command again to continue" in capsys.readouterr().err
    until = time.monotonic() + 30
    while (kinds := {line.kind for line in status.lines(out)}) != {"stopped", "waiting"} and time.monotonic() < until:
        time.sleep(0.1)
    assert kinds == {"stopped", "waiting"}


def test_a_configuration_error_names_the_place() -> None:
    with pytest.raises(ConfigError, match="no configuration file"):
        SweepConfig.load("nowhere.yaml")

"""The whole pipeline on the tiny configuration: from texts to records, continued, extended, refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from analysis.records import Run, find_runs
from llm_runs import account, dry_run, experiment, pipeline, training
from llm_runs.__main__ import main
from llm_runs.account import Step
from llm_runs.config import RunConfig, SamplingConfig
from llm_runs.data.stored import StoredPairs
from llm_runs.errors import InputError
from llm_runs.experiment import Experiment

# Two objectives on two kinds of labels, smaller still than the tiny configuration.
SMALL = [
    "objectives=[dpo(beta=0.1), \"maxpo(beta=0.1, temperature='auto', tokens='full')\"]",
    "sft.steps=25",
    "data.reward_texts=300",
    "data.sft_texts=300",
    "training.steps=4",
    "training.save_every=1",
    "evaluation.at=[2]",
]


def run(out: Path, *more: str, command: str = "run", options: tuple[str, ...] = ()) -> int:
    return main([command, "tiny", "--out", str(out), "--set", *SMALL, *more, *options])


def records(out: Path) -> dict[str, Run]:
    found, skipped = find_runs(out)
    assert skipped == []
    return {record.folder.name: record for record in found}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tiny"
    assert run(out) == 0
    return out


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def files(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_every_objective_is_recorded_on_every_kind_of_labels(finished: Path) -> None:
    found = records(finished)
    settings = {(r.config["objective"]["name"], r.config["labels"]["name"]) for r in found.values()}
    assert settings == {(o, label) for o in ("dpo", "maxpo") for label in ("near_deterministic", "noisy")}
    assert {record.kind for record in found.values()} == {"llm"}
    for record in found.values():
        assert set(record.tables) == {"metrics", "evaluations", "samples"}
        assert record.config["training"]["steps"] == 4
        assert set(record.seeds) == {"splits", "fine_tuning", "sampling", "labels", "order", "initialisation"}
        samples = record.manifest["extra"]["samples"]
        assert set(samples) == {"pairs", "reference", "held_out_reference", "held_out_pairs"}
        assert len({about["seed"] for about in samples.values()}) == 4
        assert {about["engine"] for about in samples.values()} == {"transformers"}
        metrics = record.table("metrics")
        assert sorted(metrics.loc[metrics["name"] == "loss", "step"]) == [1, 2, 3, 4]


def test_evaluations_begin_with_the_reference_and_have_one_row_an_item(finished: Path) -> None:
    for record in records(finished).values():
        frame = record.table("evaluations")
        assert not frame.duplicated(["step", "split", "metric", "item"]).any()
        assert np.isfinite(frame["value"]).all()
        whole = frame[frame["step"].isin((0, 2, 4))]
        sizes = whole.groupby(["step", "split", "metric"]).size().unstack("step")
        assert (sizes[0] == sizes[2]).all()
        assert (sizes[0] == sizes[4]).all()
        assert {
            "held_out_prompts",
            "held_out_reference_samples",
            "held_out_pairs",
            "training_pairs",
            "other_text",
        } == set(frame["split"])
        before = frame[frame["step"] == 0].set_index("metric")["value"]
        for metric in ("kl_policy_reference", "kl_reference_policy", "k1", "log_ratio", "margin"):
            assert np.abs(before[metric]).max() < 1e-4  # theory F9: it is the reference
        after = frame[frame["step"] == 4].set_index("metric")["value"]
        assert after["kl_policy_reference"].mean() > 1e-3  # and then it moves


def test_all_trainings_share_reference_prompts_and_pairs(finished: Path) -> None:
    near = [pd.DataFrame(r.table("evaluations")) for name, r in records(finished).items() if "near" in name]
    first, second = (frame[frame["step"] == 0].reset_index(drop=True) for frame in near)
    pd.testing.assert_frame_equal(first, second)
    dpo, maxpo = (
        record.table("metrics").query("name == 'plain_margin' and step == 1")["value"].item()
        for name, record in records(finished).items()
        if "near" in name
    )
    assert dpo == pytest.approx(maxpo, abs=1e-4)  # the same first batch


def test_a_dry_run_names_exactly_the_files_that_are_written(finished: Path) -> None:
    listed = list(dry_run.files(Experiment(RunConfig.load("tiny", SMALL), finished, dry=True)))
    announced = {file.path for file in listed}
    there = {path for path in finished.rglob("*") if path.is_file()}
    assert {path for path in there if not announced & {path, *path.parents}} == set()
    assert {path for path in announced if not path.exists()} == set()


def test_samples_are_disjoint_and_labels_follow_the_reward(finished: Path) -> None:
    def rows(name: str) -> list[dict[str, object]]:
        return [json.loads(line) for line in (finished / name).read_text().splitlines()]

    prompts = {
        name: {tuple(row["prompt_ids"]) for row in rows(f"samples/{name}.jsonl")}  # type: ignore[arg-type]
        for name in ("pairs", "reference", "held_out_reference", "held_out_pairs")
    }
    assert len(rows("samples/pairs.jsonl")) == 2 * 48
    assert not prompts["pairs"] & prompts["reference"]
    assert not (prompts["pairs"] | prompts["reference"]) & (prompts["held_out_reference"] | prompts["held_out_pairs"])
    near = rows("pairs/near_deterministic-seed0.jsonl")
    agree = [row["chosen_reward"] >= row["rejected_reward"] for row in near]  # type: ignore[operator]
    assert np.mean(agree) > 0.95
    noisy = rows("pairs/noisy-seed0.jsonl")
    assert {row["id"] for row in near} == {row["id"] for row in noisy}
    assert [row["flipped"] for row in near] != [row["flipped"] for row in noisy]


def test_the_automatic_temperature_is_recorded_as_a_number(finished: Path) -> None:
    samples = [json.loads(line) for line in (finished / "samples" / "pairs.jsonl").read_text().splitlines()]
    logps = np.array([sample["logp"] for sample in samples]).reshape(-1, 2)
    expected = np.sqrt(np.mean((logps[:, 0] - logps[:, 1]) ** 2))  # d has mean zero by symmetry
    for name, record in records(finished).items():
        if "maxpo" in name:
            assert record.config["objective"]["hyperparameters"]["temperature"] == pytest.approx(expected, rel=1e-4)
            assert "temperature='auto'" in record.config["objective"]["label"]


def test_a_second_call_does_nothing_again(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(finished)
    assert run(finished) == 0
    output = capsys.readouterr().out
    assert "[8/11] train dpo(beta=0.1) on near_deterministic labels, seed 0" in output
    assert output.count("already done") == 10  # all but looking for the model
    assert files(finished).keys() == before.keys()
    assert {name for name, time in files(finished).items() if time != before[name]} == {"config.json"}


def test_an_interrupted_training_is_done_again_and_gives_the_same(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = next(name for name in records(copy) if name.startswith("dpo") and "noisy" in name)
    wanted = records(copy)[name].table("evaluations")
    shutil.rmtree(copy / "runs" / name)
    train = training.train

    def interrupted(*arguments: object, evaluate: Callable[..., None], **more: object) -> pd.DataFrame:
        def stop(model: object, step: int) -> None:
            evaluate(model, step)
            raise KeyboardInterrupt

        return train(*arguments, evaluate=stop, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(training, "train", interrupted)
        assert run(copy) == 130
    assert "give the same command again" in capsys.readouterr().err
    assert name not in {record.folder.name for record in find_runs(copy)[0]}
    assert run(copy) == 0
    pd.testing.assert_frame_equal(records(copy)[name].table("evaluations"), wanted)
    assert sorted(path.name for path in (copy / "runs" / name).iterdir()) == sorted(
        ["run.json", "metrics.parquet", "evaluations.parquet", "samples.parquet"]
    )


def test_objectives_and_seeds_may_be_added_later(copy: Path) -> None:
    before = files(copy)
    more = ["objectives=[dpo(beta=0.1), ipo(tau=0.1) + forward_kl(weight=0.1)]", "training_seeds=[0, 1]"]
    assert run(copy, *more, options=("--only", "ipo"), command="train") == 0
    added = set(records(copy)) - {Path(name).parent.name for name in before}
    assert len(added) == 4
    assert all("ipo_tau=0.1_+forward_kl" in name for name in added)
    kept = {name: time for name, time in files(copy).items() if name in before and name != "config.json"}
    assert kept == {name: time for name, time in before.items() if name != "config.json"}
    one, two = ((copy / "pairs" / f"noisy-seed{seed}.jsonl").read_text() for seed in (0, 1))
    assert one != two


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("seed=5", "seed was 0, is 5"),
        ("training.steps=5", "training.steps was 4, is 5"),
        ("labels=[{name: noisy, temperature: 9}]", "temperature of labels 'noisy' was 4.0, is 9.0"),
    ],
)
def test_another_configuration_is_refused(
    finished: Path, change: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(finished)
    assert run(finished, change) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert words in error
    assert files(finished) == before


def test_commands_stop_where_they_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, command="label") == 0
    assert "[5/5] label pairs" in capsys.readouterr().out
    assert (tmp_path / "pairs" / "noisy-seed0.jsonl").is_file()
    assert not (tmp_path / "runs").exists()


def test_any_model_can_be_evaluated(copy: Path, finished: Path) -> None:
    model = str(finished / "reference")
    assert run(copy, command="evaluate", options=("--model", model)) == 0
    found = records(copy)["reference"]
    assert found.kind == "llm_evaluation"
    frame = found.table("evaluations").set_index(["metric", "step"])["value"]
    assert np.abs(frame["kl_policy_reference"]).max() < 1e-4  # the reference against itself
    pd.testing.assert_series_equal(frame["reward", 0], frame["reward", 1], check_index=False)  # the same random numbers
    assert set(found.table("samples")["step"]) == {0, 1}


def test_pairs_are_scored_along_the_training(finished: Path) -> None:
    """Of 4 steps the evaluated one (2) and those between: likelihoods at every step, rewards at 0, 2 and 4."""
    for record in records(finished).values():
        frame = record.table("evaluations")
        for split in ("held_out_pairs", "training_pairs"):
            chosen = frame[(frame["split"] == split) & (frame["metric"] == "chosen_log_ratio")]
            assert chosen.groupby("step").size().to_dict() == dict.fromkeys(range(5), 12)
        assert set(frame[frame["metric"] == "win_rate"]["step"]) == {0, 2, 4}
        assert set(record.table("samples")["step"]) == {0, 2, 4}


def test_samples_that_stand_for_the_reference_are_drawn_at_temperature_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temperatures = {}

    def drawn(path: Path, *arguments: object, config: SamplingConfig, **more: object) -> list[object]:
        temperatures[path.stem] = config.temperature
        return []

    monkeypatch.setattr("llm_runs.sampling.sample_to_file", drawn)
    made = Experiment(RunConfig.load("tiny", ["sampling.temperature=0.7", "sft.steps=0"]), tmp_path)
    made.draw_samples()
    assert temperatures == {"pairs": 0.7, "held_out_pairs": 0.7, "reference": 1.0, "held_out_reference": 1.0}


def test_cost_is_measured_in_processes_of_their_own(copy: Path) -> None:
    settings = RunConfig.load("tiny", [*SMALL, "cost_steps=2"])
    steps = [step for step in pipeline.plan(Experiment(settings, copy)) if step.kind == "cost"]
    assert len(steps) == 3
    assert steps[-1].run() is not None  # dpo with a live reference
    (found,) = (record for record in records(copy).values() if record.kind == "llm_cost")
    assert found.config["reference"] == "live"
    metrics = found.table("metrics").query("name == 'peak_memory_bytes'")["value"]
    assert 1e8 < metrics.max() < 1e11
    assert (found.table("metrics").query("name == 'step_cpu_seconds'")["value"] > 0).all()


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A preference file of one's own: answers with and without politeness."""
    path = tmp_path_factory.mktemp("own") / "mine.jsonl"
    rows = [
        {
            "prompt": [{"role": "user", "content": f"How was the {thing} of film {number}?"}],
            "chosen": [{"role": "assistant", "content": f"The {thing} was great."}],
            "rejected": [{"role": "assistant", "content": f"Bad {thing}."}],
        }
        for thing in ("plot", "music", "cast", "ending")
        for number in range(8)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_own_pairs_replace_sampling_and_labelling(own: Path, tmp_path: Path) -> None:
    assert run(tmp_path, f"data.preferences={own}", "reference.samples=32") == 0
    found = records(tmp_path)
    assert len(found) == 2
    for record in found.values():
        frame = record.table("evaluations")
        assert "reward" not in set(frame["metric"])  # nobody knows it
        assert {"kl_policy_reference", "kl_reference_policy", "preference_accuracy"} <= set(frame["metric"])
        assert record.config["labels"] == {"name": "given", "temperature": None, "mean_max_probability": None}
    pairs = StoredPairs.open(tmp_path / "pairs" / "given.json")
    held_out = StoredPairs.open(tmp_path / "pairs" / "given-held_out.json")
    assert len(pairs) + len(held_out) == 32
    assert held_out
    sampled = [json.loads(line) for line in (tmp_path / "samples" / "reference.jsonl").read_text().splitlines()]
    assert len(sampled) == 32
    assert {tuple(row["prompt_ids"]) for row in sampled} == {pair.prompt_ids for pair in pairs}


def test_a_malformed_own_file_stops_before_anything_is_written(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text(own.read_text() + '{"prompt": "a", "chosen": "b"}\n')
    assert run(tmp_path / "out", f"data.preferences={broken}") == 2
    assert f"error: {broken}, line 33: the key 'rejected' is missing" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {"config.json", "model"}


def test_a_changed_own_file_is_noticed(own: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.jsonl"
    shutil.copy(own, mine)
    config = RunConfig.load("tiny", [*SMALL, f"data.preferences={mine}"])
    assert Experiment(config, tmp_path / "out").own_pairs  # read; until then it may be corrected
    mine.write_text(mine.read_text() + "\n")
    with pytest.raises(InputError, match=r"content of .*mine\.jsonl changed"):
        Experiment(config, tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "tiny", "--out", "OUT", "--set", "objectives=[dop(beta=0.1)]"], "dpo"),
        (["run", "tiny", "--out", "OUT", "--set", "objectives=[dpo(beta=-0.1)]"], "beta"),
        (["run", "tiny", "--out", "OUT", "--set", "training.stepz=1"], "steps"),
        (["run", "nonsense", "--out", "OUT"], "quick"),
        (["train", "tiny", "--out", "OUT", "--only", "nonsense"], "no training has 'nonsense'"),
        (["run", "tiny", "--out", "OUT", "--set", "data.prompt_tokens=250"], "context of 256"),
        (["run", "tiny", "--out", "OUT", "--set", "sft.sequence_tokens=300"], "sft.sequence_tokens is 300"),
        (["run", "tiny", "--out", "OUT", "--set", "training.report_to=[tensorbord]"], "unknown 'tensorbord'"),
        (["run", "tiny", "--out", "OUT", "--set", "data.sft_texts=100000"], "make some part smaller"),
        (["run", "tiny", "--out", "OUT", "--set", "data.text=missing.jsonl"], "no such text file: missing.jsonl"),
        (["run", "tiny", "--out", "OUT", "--set", "evaluation.benchmarks=[hellaswagg_100]"], "hellaswag_100"),
        (["fetch", "nonsense"], "smollm2-135m-instruct"),
    ],
)
def test_bad_input_is_one_line_without_traceback(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([argument.replace("OUT", str(tmp_path / "out")) for argument in arguments]) == 2
    error = capsys.readouterr().err
    line = next(line for line in error.splitlines() if line.startswith("error: "))
    assert words in line
    assert "Traceback" not in error


def test_a_full_disk_leaves_earlier_results_whole(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {name: record.manifest for name, record in records(copy).items()}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    assert run(copy, "objectives=[ipo(tau=0.1)]") == 2
    assert "No space left" in capsys.readouterr().err
    monkeypatch.undo()
    assert {name: record.manifest for name, record in records(copy).items()} == before


def test_help_shows_examples() -> None:
    done = subprocess.run([sys.executable, "-m", "llm_runs", "--help"], capture_output=True, text=True, check=True)
    assert "python -m llm_runs run tiny --out" in done.stdout


def test_config_prints_what_can_be_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "quick", "--set", "seed=4"]) == 0
    path = tmp_path / "quick.yaml"
    path.write_text(capsys.readouterr().out)
    assert RunConfig.load(path) == RunConfig.load("quick", ["seed=4"])
    assert yaml.safe_load(path.read_text())["seed"] == 4


def test_the_account_tells_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0, 10, 10, 70, 70, 130, 130, 130])
    monkeypatch.setattr(account.time, "monotonic", lambda: next(clock))
    results = iter(["", "reward 1.0", "reward 2.0", None])
    kinds = ("prepare", "train", "train", "train")
    lines: list[str] = []
    account.carry_out([Step(f"step {i}", kind, lambda: next(results)) for i, kind in enumerate(kinds)], lines.append)
    assert lines == [
        "[1/4] step 0",
        "      done in 10s; next: step 1",
        "[2/4] step 1",
        "      done in 1m00s; reward 1.0; next: step 2; about 2m00s left",
        "[3/4] step 2",
        "      done in 1m00s; reward 2.0; next: step 3; about 1m00s left",
        "[4/4] step 3",
        "      already done",
    ]


def test_durations() -> None:
    assert [account.duration(seconds) for seconds in (0.4, 59.6, 130, 3900)] == ["0s", "1m00s", "2m10s", "1h05m"]


def test_names_of_trainings_are_names_of_files() -> None:
    labels = experiment.LabelSet("noisy", 2, 1.0)
    text = "maxpo(beta=0.1, temperature='auto')+chosen_nll(weight=0.5)"
    slug = experiment.Training(text, labels).slug
    assert slug == "maxpo_beta=0.1_temperature=auto_+chosen_nll_weight=0.5-noisy-seed2"

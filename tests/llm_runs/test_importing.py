"""Runs of trl, transformers, lm-eval and TensorBoard become records: from files that these programs write here."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments

from analysis.__main__ import main
from analysis.importing import event_files, lm_eval_results, trainer_state
from analysis.records import RecordError, Run, fingerprint, read_run
from analysis.report.content import gather
from llm_runs import models

BETA = 0.3
PAIRS = {
    "prompt": ["the film was", "this story is", "I found it", "the cast was"] * 2,
    "chosen": [" good and warm", " wonderful", " a delight to see", " fine"] * 2,
    "rejected": [" bad", " dull and slow", " poor", " a real mess of it"] * 2,
}
QUESTIONS = [
    {"query": "The film was so good that I", "choices": [" smiled", " cried in anger at it"], "gold": 0},
    {"query": "The cast was bad and the film", "choices": [" won every prize there is", " bored"], "gold": 1},
    {"query": "A wonderful story, and the end", "choices": [" was fine", " was the worst of all of it"], "gold": 0},
]


@pytest.fixture(scope="module")
def dpo(tiny_folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of trl's DPOTrainer: every step logged to its state and to TensorBoard, a checkpoint at each."""
    pytest.importorskip("trl")
    pytest.importorskip("tensorboard")
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    out = tmp_path_factory.mktemp("trl") / "my-dpo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORBOARD_LOGGING_DIR", str(out / "logs"))
        args = DPOConfig(
            output_dir=str(out),
            beta=BETA,
            max_steps=3,
            per_device_train_batch_size=8,
            learning_rate=1e-3,
            logging_steps=1,
            save_steps=1,
            save_only_model=True,
            report_to=["tensorboard"],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
            seed=0,
        )
        data = Dataset.from_dict(PAIRS)
        DPOTrainer(
            model=models.load_model(tiny_folder), args=args, train_dataset=data, processing_class=tokenizer
        ).train()
    return out


def imported(arguments: list[str], out: Path) -> list[Run]:
    assert main(["import", *arguments, "--out", str(out)]) == 0
    return [read_run(folder) for folder in sorted(out.iterdir())]


def values(run: Run, name: str) -> list[float]:
    frame = run.table("metrics")
    return list(frame[frame["name"] == name].sort_values("step")["value"])


def test_a_dpo_log_keeps_trls_names_unless_one_says_what_they_are(dpo: Path, tmp_path: Path) -> None:
    (run,) = imported([str(dpo / "checkpoint-3" / "trainer_state.json")], tmp_path)
    names = set(run.table("metrics")["name"])
    assert {"loss", "grad_norm", "learning_rate", "trl/rewards/margins", "trl/logps/chosen"} <= names
    assert not names & {"margin", "accuracy", "chosen_logps", "chosen_log_ratio"}
    assert values(run, "loss")[0] == pytest.approx(math.log(2), abs=1e-4)  # policy and reference are one
    assert (run.kind, run.id) == ("imported", "imported/my-dpo-checkpoint-3")


def test_with_trainer_and_beta_its_numbers_are_ours(
    dpo: Path, tiny_folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    state = dpo / "checkpoint-3" / "trainer_state.json"
    (run,) = imported([str(state), "--trainer", "dpo", "--beta", str(BETA)], tmp_path)
    theirs = [entry for entry in json.loads(state.read_text())["log_history"] if "rewards/margins" in entry]
    assert values(run, "margin") == pytest.approx([entry["rewards/margins"] / BETA for entry in theirs])
    assert abs(values(run, "margin")[0]) < 1e-4 < values(run, "margin")[-1]
    assert run.config["units"]["chosen_logps"] == "nats per completion"
    # The meaning, not only the name: log-probs summed over the completion's tokens, of the model before its first step.
    model = models.load_model(tiny_folder).eval()
    sums = []
    for prompt, chosen in zip(PAIRS["prompt"][:4], PAIRS["chosen"][:4], strict=True):
        start = tokenizer(prompt)["input_ids"]
        ids = torch.tensor([[*tokenizer(prompt + chosen)["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            logps = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None]).squeeze(-1)
        sums.append(float(logps[len(start) - 1 :].sum()))
    assert values(run, "chosen_logps")[0] == pytest.approx(sum(sums) / len(sums), rel=1e-3)


def test_a_folder_gives_the_last_checkpoint_and_the_event_files_with_the_same_numbers(
    dpo: Path, tmp_path: Path
) -> None:
    runs = {
        run.config["source"]["format"]: run
        for run in imported([str(dpo), "--trainer", "dpo", "--beta", "0.3"], tmp_path)
    }
    assert set(runs) == {"trainer_state", "tensorboard"}
    log, events = runs["trainer_state"], runs["tensorboard"]
    assert log.config["source"]["files"] == [
        {"name": "trainer_state.json", "sha256": fingerprint(dpo / "checkpoint-3" / "trainer_state.json")}
    ]
    for name in ("loss", "margin", "accuracy", "chosen_logps", "trl/entropy"):
        assert values(events, name) == pytest.approx(values(log, name), rel=1e-5), name
    assert len(values(log, "loss")) == 3
    text = (log.folder / "run.json").read_text() + (events.folder / "run.json").read_text()
    assert str(dpo) not in text and str(dpo.parent) not in text  # nothing of this machine


def test_they_stand_beside_the_suites_own_in_a_report(dpo: Path, tmp_path: Path) -> None:
    imported([str(dpo / "checkpoint-3"), "--trainer", "dpo", "--beta", "0.3"], tmp_path / "imported")
    found = gather([tmp_path], 4)
    (margin,) = [one for one in found.curves if one["name"] == "margin"]
    assert margin["unit"] == "nats per completion" and margin["lines"][0][1] == [1, 2, 3]
    assert found.shown[0].method.startswith("imported: ")


def test_transformers_own_trainer(tiny_folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    ids = [tokenizer("the film was good and warm")["input_ids"]] * 4
    data = [{"input_ids": one, "labels": one} for one in ids]
    args = TrainingArguments(
        output_dir=str(tmp_path / "sft"),
        max_steps=2,
        per_device_train_batch_size=2,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model=models.load_model(tiny_folder), args=args, train_dataset=data, eval_dataset=data)
    trainer.train()
    trainer.save_state()
    (run,) = imported([str(tmp_path / "sft")], tmp_path / "out")
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert values(run, "loss") == logged and len(logged) == 2
    assert "trainer/eval_loss" in set(run.table("metrics")["name"])
    assert run.config["about"]["global_step"] == 2 and run.config["about"]["totals"]["train_loss"] > 0


@pytest.fixture(scope="module")
def results(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two result folders of lm-eval with samples: of the tiny model, and of one with other weights."""
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.huggingface import HFLM

    from llm_runs.benchmarks import _load, _manager

    out = tmp_path_factory.mktemp("lm_eval")
    (out / "films.jsonl").write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    files = []
    for name in ("base", "tuned"):
        model = models.load_model(tiny_folder)
        if name == "tuned":
            torch.manual_seed(1)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.3 * torch.randn_like(parameter))
        tracker = EvaluationTracker(output_path=str(out / name))
        found: Any = simple_evaluate(
            HFLM(pretrained=model, tokenizer=models.load_tokenizer(tiny_folder), batch_size=2),
            tasks=_load([str(out / "films.jsonl")], None),
            task_manager=_manager(None),  # without lm-eval's thousands of tasks, which take seconds to list
            log_samples=True,
            bootstrap_iters=10,
            evaluation_tracker=tracker,
        )
        samples = found.pop("samples")
        tracker.save_results_aggregated(results=found, samples=samples)
        for task in found["configs"]:
            tracker.save_results_samples(task_name=task, samples=samples[task])
        files.append(next((out / name).rglob("results_*.json")))
    return files


def test_lm_evals_samples_become_items(results: list[Path], tmp_path: Path) -> None:
    base, tuned = results
    (run,) = imported([str(tuned), "--before", str(base), "--name", "tuned"], tmp_path)
    frame = run.table("evaluations")
    assert set(frame["split"]) == {"benchmark/films"} and set(frame["metric"]) == {"acc", "acc_norm"}
    for step, path in enumerate(results):
        stated = json.loads(path.read_text())["results"]["films"]["acc,none"]
        rows = frame[(frame["step"] == step) & (frame["metric"] == "acc")]
        assert rows["value"].mean() == pytest.approx(stated) and sorted(rows["item"]) == [0, 1, 2]
    assert len(run.config["source"]["files"]) == 4  # results and samples of both
    (row, _) = gather([tmp_path], 0).benchmarks
    assert row[1:3] == ["films", "acc"] and row[7] == "McNemar"


def test_results_without_samples_have_lm_evals_own_error(results: list[Path], tmp_path: Path) -> None:
    shutil.copy(results[0], tmp_path / "results_alone.json")
    run = imported([str(tmp_path / "results_alone.json")], tmp_path / "out")[0]
    assert run.tables == ("benchmark_scores",)
    stated = json.loads(results[0].read_text())["results"]["films"]
    row = run.table("benchmark_scores").set_index("metric").loc["acc"]
    assert (row["value"], row["standard_error"], row["n"]) == (stated["acc,none"], stated["acc_stderr,none"], 3)
    shown = gather([tmp_path / "out"], 0).benchmarks[0]
    assert "(standard error)" in shown[4] and shown[5] == "–"  # nothing to pair with, no interval invented


def test_samples_that_do_not_give_the_score_are_refused(results: list[Path], tmp_path: Path) -> None:
    shutil.copytree(results[0].parent, tmp_path / "changed")
    samples = next((tmp_path / "changed").glob("samples_*.jsonl"))
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    lines[0]["acc"] = 1.0 - lines[0]["acc"]
    samples.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(RecordError, match=r"does not belong to results_.*acc of its 3 items"):
        lm_eval_results.read(next((tmp_path / "changed").glob("results_*.json")))


@pytest.mark.parametrize(
    ("key", "words"), [("versions", "version of the task"), ("n-shot", "number of examples"), ("items", "items")]
)
def test_before_and_after_must_be_measured_alike(results: list[Path], tmp_path: Path, key: str, words: str) -> None:
    shutil.copytree(results[0].parent, tmp_path / "other")
    path = next((tmp_path / "other").glob("results_*.json"))
    if key == "items":
        samples = next((tmp_path / "other").glob("samples_*.jsonl"))
        samples.write_text(samples.read_text().replace('"doc_hash": "', '"doc_hash": "0'))
    else:
        found = json.loads(path.read_text())
        found[key]["films"] = 7
        path.write_text(json.dumps(found))
    with pytest.raises(RecordError, match=f"films: another {words} than in"):
        lm_eval_results.read(results[1], before=path)


def test_event_files_of_anyone(tmp_path: Path) -> None:
    writer_class = pytest.importorskip("torch.utils.tensorboard").SummaryWriter
    with writer_class(str(tmp_path / "mine")) as writer:
        for step in range(5):
            writer.add_scalar("objective/kl", 0.5 * step, step)
        writer.add_scalar("objective/kl", 9.0, 2)  # written again after a restart
        writer.add_text("note", "no number")
    run = imported([str(tmp_path / "mine")], tmp_path / "out")[0]
    assert set(run.table("metrics")["name"]) == {"tensorboard/objective/kl"}
    assert values(run, "tensorboard/objective/kl") == [0.0, 0.5, 9.0, 1.5, 2.0]
    assert "written again" in run.manifest["extra"]["notes"][0]


def test_the_end_of_a_broken_event_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer_class = pytest.importorskip("torch.utils.tensorboard").SummaryWriter
    with writer_class(str(tmp_path / "mine")) as writer:
        for step in range(5):
            writer.add_scalar("loss", 0.5 * step, step)
    (path,) = (tmp_path / "mine").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    run = imported([str(path)], tmp_path / "out")[0]
    assert values(run, "tensorboard/loss") == [0.0, 0.5, 1.0, 1.5]
    assert "bytes are unfinished or damaged and were left out" in capsys.readouterr().err
    path.write_bytes(whole[: len(whole) // 2] + b"?" + whole[len(whole) // 2 + 1 :])
    assert any("damaged" in note for note in event_files.read(path).notes)
    path.write_bytes(b"no event file at all, but some bytes" * 4)
    with pytest.raises(RecordError, match="has no scalars"):
        event_files.read(path)


def test_without_tensorboard_the_command_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorboard.backend.event_processing.event_file_loader", None)
    (tmp_path / "events.out.tfevents.1").write_bytes(b"x")
    assert main(["import", str(tmp_path / "events.out.tfevents.1"), "--out", str(tmp_path / "out")]) == 2
    assert "pip install tensorboard" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is damaged: not valid JSON"),
        ("[1]", "a JSON list instead of an object"),
        ('{"a": 1}', "is no Trainer's state: it has no log_history"),
        ('{"log_history": [{"loss": 1.0}]}', "entry 0 of log_history has no step"),
        ('{"log_history": []}', "holds no logged numbers"),
    ],
)
def test_bad_logs_are_one_line(content: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trainer_state.json"
    path.write_text(content)
    assert main(["import", str(path), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line and words in line
    assert not (tmp_path / "out").exists()


def test_one_bad_file_of_a_folder_is_skipped_with_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, content in (("good", '{"log_history": [{"step": 1, "loss": NaN}]}'), ("bad", "{")):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "trainer_state.json").write_text(content)
    (run,) = imported([str(tmp_path / "in")], tmp_path / "out")
    assert math.isnan(values(run, "loss")[0])  # what was logged, not what one would like
    assert "skipped" in (said := capsys.readouterr().err) and "bad/trainer_state.json: is damaged" in said


def test_another_source_never_replaces_a_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in ("one", "two"):
        (tmp_path / place / "output").mkdir(parents=True)
        path = tmp_path / place / "output" / "trainer_state.json"
        path.write_text(json.dumps({"log_history": [{"step": 1, "loss": float(len(place))}]}))
    first = str(tmp_path / "one" / "output")
    (run,) = imported([first], tmp_path / "out")
    assert main(["import", str(tmp_path / "two" / "output"), "--out", str(tmp_path / "out")]) == 2
    assert "holds the record of another source" in capsys.readouterr().err
    (tmp_path / "one" / "output" / "trainer_state.json").write_text(
        json.dumps({"log_history": [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}]})
    )
    assert len(values(imported([first], tmp_path / "out")[0], "loss")) == 2  # its own log, grown
    assert run.folder.name == "output"


def test_both_of_one_call_are_kept(tmp_path: Path) -> None:
    for place in ("one", "two"):
        (tmp_path / place / "output").mkdir(parents=True)
        (tmp_path / place / "output" / "trainer_state.json").write_text('{"log_history": [{"step": 1, "loss": 1}]}')
    assert [run.folder.name for run in imported([str(tmp_path)], tmp_path / "out")] == ["output", "output-2"]
    assert trainer_state.find(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "there is no such file or folder"),
        (["."], "holds no trainer_state.json, no results"),
        (["x.json", "--beta", "0.1"], "needs --trainer dpo"),
    ],
)
def test_bad_arguments(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["import", *arguments, "--out", "out"]) == 2
    assert words in capsys.readouterr().err


def test_frames_have_the_columns_of_a_run(dpo: Path) -> None:
    found = trainer_state.read(dpo / "checkpoint-2" / "trainer_state.json")
    assert list(found.tables["metrics"].columns) == ["step", "name", "value"]
    assert isinstance(found.tables["metrics"], pd.DataFrame) and found.tables["metrics"]["step"].max() == 2


def test_an_import_killed_between_its_tables_and_its_manifest_goes_on(tmp_path: Path) -> None:
    """A log has grown; of its record the table is the new one already, the manifest still the old one's."""
    source = tmp_path / "mine" / "trainer_state.json"
    source.parent.mkdir()
    records = {}
    for steps in (1, 2):
        history = [{"step": step, "loss": 1.0 / step} for step in range(1, steps + 1)]
        source.write_text(json.dumps({"log_history": history}))
        (run,) = imported([str(source)], tmp_path / "out")
        records[steps] = {path.name: path.read_bytes() for path in run.folder.iterdir()}
    (run.folder / "run.json").write_bytes(records[1]["run.json"])
    with pytest.raises(RecordError, match=r"metrics\.parquet"):
        read_run(run.folder)
    (run,) = imported([str(source)], tmp_path / "out")
    assert values(run, "loss") == [1.0, 0.5]


@pytest.mark.parametrize("command", ["import", "export"])
def test_what_a_killed_import_or_export_left_goes(command: str, tmp_path: Path) -> None:
    source = tmp_path / "in" / "mine"
    source.mkdir(parents=True)
    (source / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": 1, "loss": 1.0}]}))
    if command == "export":
        imported([str(source)], tmp_path / "in")
    left = tmp_path / "out" / "mine" / ".metrics.parquet.7.0123abcd.tmp"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    assert main([command, str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in left.parent.iterdir()) == ["metrics.parquet", "run.json"]

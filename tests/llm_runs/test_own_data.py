"""`python -m llm_runs run` on preference files in the forms in which they are published: read, reported, trained on, evaluated."""

from __future__ import annotations

import gzip
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import preference_samples
import pytest

from analysis.records import find_runs
from llm_runs import data, dry_run
from llm_runs.__main__ import main
from llm_runs.config import RunConfig
from llm_runs.data.stored import StoredPairs, StoredSamples
from llm_runs.experiment import Experiment

SMALL = (
    "objectives=[dpo(beta=0.1)]",
    "data.other_text=none",
    "data.completion_tokens=8",
    "sft.steps=5",
    "reference.samples=8",
    "training.steps=2",
    "training.batch_size=4",
    "evaluation.at=[]",
    "evaluation.prompts=4",
    "evaluation.held_out_samples=4",
)


def run(source: Path, out: Path, *more: str) -> int:
    return main(["run", "tiny", "--out", str(out), "--set", *SMALL, f"data.preferences={source}", *more])


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def stored(out: Path, name: str) -> list[dict[str, Any]]:
    return [asdict(pair) for pair in StoredPairs.open(out / "pairs" / f"{name}.json")]


def check_run(out: Path) -> dict[str, Any]:
    """The record of the one training: evaluated before and after, and what it says of its data."""
    (record,), skipped = find_runs(out)
    assert not skipped
    frame = record.table("evaluations")
    for metric, steps in {
        "preference_accuracy": {0, 1, 2},  # pairs are scored along training, too
        "kl_policy_reference": {0, 2},
        "kl_reference_policy": {0, 2},
    }.items():
        assert set(frame.loc[frame["metric"] == metric, "step"]) == steps, metric
    accuracy = frame[(frame["metric"] == "preference_accuracy") & (frame["step"] == 0)]["value"]
    assert (accuracy == 0.5).all()  # theory F9
    summary: dict[str, Any] = record.config["preferences"]
    return summary


def test_hh_rlhf_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "hh-rlhf" / "helpful-base"
    folder.mkdir(parents=True)
    lines = "".join(json.dumps(row) + "\n" for row in preference_samples.hh_rlhf())
    (folder / "train.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    preference_samples.write_jsonl(folder / "test.jsonl", preference_samples.hh_rlhf(28)[20:])
    out = tmp_path / "out"
    more = ("data.reading.subset=helpful-base", "data.reading.held_out_split=test")
    assert run(folder.parent, out, *more) == 0
    printed = capsys.readouterr().out
    assert "JSON lines, gzip; detected: hh_rlhf" in printed
    # The report comes before anything is trained.
    assert printed.index("# Data report") < printed.index("fine-tune the reference")
    assert "left out because their prompt is held out: 4" in printed
    training, held_out = stored(out, "given"), stored(out, "given-held_out")
    assert (len(training), len(held_out)) == (20, 8)
    assert training[1]["prompt"].endswith("Do you mean the music alone?\n\nHuman: Yes, only that.\n\nAssistant:")
    assert training[1]["chosen"] == " The music was great, I think."
    summary = check_run(out)
    assert summary["sources"][0]["format"] == "hh_rlhf"
    assert summary["rendering"] == {"records": {"plain text": 32}, "chat_template_sha256": None}


def test_ultrafeedback_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = preference_samples.write_jsonl(tmp_path / "ultrafeedback.jsonl", preference_samples.ultrafeedback())
    out = tmp_path / "out"
    assert run(source, out, "data.reading.pairing=all") == 0
    printed = capsys.readouterr().out
    assert "detected: ultrafeedback" in printed
    assert "pairs are every two completions of a prompt with different scores" in printed
    training, held_out = stored(out, "given"), stored(out, "given-held_out")
    assert len(training) + len(held_out) == 16 * 6
    assert all(row["chosen_reward"] > row["rejected_reward"] for row in training + held_out)
    assert training[0]["prompt"].startswith("<|im_start|>user\nReview the ")
    assert len(StoredSamples.open(out / "data" / "candidates.json")) == 64
    summary = check_run(out)
    assert len(summary["rendering"]["chat_template_sha256"]) == 64
    settings = [*SMALL, f"data.preferences={source}", "data.reading.pairing=all"]
    listed = dry_run.files(Experiment(RunConfig.load("tiny", settings), out, dry=True))
    assert {file.path for file in listed if not file.path.exists()} == {
        out / "data" / "unpaired.json",
        out / "data" / "unpaired.npy",
    }
    # Going on reads nothing again: the tokens are kept.
    monkeypatch.setattr(data, "load", None)
    assert run(source, out, "data.reading.pairing=all", "objectives=[dpo(beta=0.1), ipo]") == 0
    assert len(find_runs(out)[0]) == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            [*preference_samples.hh_rlhf(3), {"chosen": "\n\nHuman: a\n\nAssistant: b"}],
            "line 4: the key 'rejected' is missing",
        ),
        (
            [*preference_samples.ultrafeedback_binarized(2), {"prompt": "a", "chosen": "b"}],
            "line 3: the key 'rejected' is missing",
        ),
        ([{"question": "a", "better": "b", "worse": "c"}], "no known format"),
        (
            [{"prompt": "a", "completions": ["b", "c"], "scores": [1, "high"]}],
            "line 1: 'scores[2]' must be a number, not 'high'",
        ),
    ],
)
def test_what_is_wrong_is_one_line(
    tmp_path: Path, content: list[Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = preference_samples.write_jsonl(tmp_path / "mine.jsonl", content)
    assert run(source, tmp_path / "out") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert words in line
    assert str(source) in line


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (
            "data.preferences=nobody/nothing-like-this",
            "nobody/nothing-like-this: not in the local cache, and HF_HUB_OFFLINE",
        ),
        ("data.reading.formt=auto", "format"),
        ("data.reading.columns={chosen: good}", "wants the column 'good' for 'chosen', which is not there"),
        ("model.template=missing.jinja", "no such file 'missing.jinja'; give a Jinja file or one of: dialogue, chatml"),
    ],
)
def test_settings_that_match_nothing(
    tmp_path: Path, setting: str, words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    source = preference_samples.write_jsonl(tmp_path / "mine.jsonl", preference_samples.kto())
    assert run(source, tmp_path / "out", setting) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


def test_a_changed_file_in_a_folder_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mine"
    preference_samples.write_jsonl(folder / "train.jsonl", preference_samples.kto())
    assert main(["label", "tiny", "--out", str(tmp_path / "out"), "--set", *SMALL, f"data.preferences={folder}"]) == 0
    preference_samples.write_jsonl(folder / "train.jsonl", preference_samples.kto(14))
    shutil.rmtree(tmp_path / "out" / "data")
    assert main(["label", "tiny", "--out", str(tmp_path / "out"), "--set", *SMALL, f"data.preferences={folder}"]) == 2
    assert "train.jsonl changed" in capsys.readouterr().err


def test_what_an_error_names_can_be_corrected_in_the_same_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [{"prompt": f"Film {number} was", "chosen": " great.", "rejected": " bad."} for number in range(6)]
    bad = {"prompt": "Film 7 was", "chosen": "", "rejected": " bad."}
    source, out = preference_samples.write_jsonl(tmp_path / "mine.jsonl", [*good, bad]), tmp_path / "out"

    def label(*more: str) -> int:
        return main(["label", "tiny", "--out", str(out), "--set", *SMALL, f"data.preferences={source}", *more])

    assert label() == 2
    assert "line 7: 'chosen' is empty (data.reading.bad_records=drop" in capsys.readouterr().err
    assert label("training.steps=3") == 2  # other settings are kept as ever
    assert "training.steps was 2, is 3" in capsys.readouterr().err
    preference_samples.write_jsonl(source, [*good, bad | {"chosen": 3}])
    assert label() == 2
    assert "line 7: 'chosen' must be" in capsys.readouterr().err
    assert label("data.reading.bad_records=drop") == 0
    assert len(stored(out, "given") + stored(out, "given-held_out")) == 6
    assert label() == 2  # now they are read
    assert "data.reading.bad_records was 'drop', is 'error'" in capsys.readouterr().err

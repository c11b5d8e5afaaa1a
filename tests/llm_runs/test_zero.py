"""DeepSpeed's ZeRO on two CPU processes: training, going on after an interruption, and evaluation are those of one process.

Opt-in: DeepSpeed is an extra, and compiles what its processes talk through when it is first used. `make zero` installs it and runs this.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from launch import launch
from test_processes import LONGER, assert_close, interrupted, trained
from test_processes import stored as stored
from test_training import CONFIG, PAIRS, SAMPLES, TEXTS, llama
from transformers import PreTrainedModel

import objectives
from llm_runs import processes, training
from llm_runs.config import EvaluationConfig
from llm_runs.evaluation import Evaluator
from llm_runs.models import tiny_random
from llm_runs.reference import ReferenceLogps
from llm_runs.sft import last_checkpoint

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="needs DeepSpeed, an extra: make zero"
)
LABEL = "maxpo(beta=0.1, temperature=2.0)"
ZERO = {"single zero2": {"sharding": "zero2"}, "single zero3": {"sharding": "zero3", "micro_batch_size": 2}}
PROMPTS = [(3, 4), (5,), (6, 7, 8), (9, 10)]


def evaluated(changes: dict[str, Any], stored: Path, out: Path) -> list[pd.DataFrame]:
    """Evaluations while and after a training: likelihoods, KLs, and samples of the policy."""
    model, tokenizer, found = llama().float(), tiny_random(["a"], vocabulary=300)[1], []
    kept = ReferenceLogps.load(stored / "single")
    evaluator = Evaluator(
        tokenizer,
        lambda: llama().float(),
        kept,
        None,
        prompts=PROMPTS,
        reference_samples=SAMPLES,
        pairs=PAIRS[:4],
        training_pairs=PAIRS[4:],
        other_texts=TEXTS,
        max_tokens=5,
        config=EvaluationConfig(batch_size=2),
        seed=1,
    )

    def evaluate(model: PreTrainedModel, step: int) -> None:
        found.append(evaluator.evaluate(model, step))

    training.train(
        model,
        objectives.parse("dpo(beta=0.1)"),
        PAIRS,
        reference=kept,
        config=replace(CONFIG, steps=2, **changes),
        seed=0,
        out=out,
        evaluate=evaluate,
        evaluate_at=[1],
    )
    evaluate(model, 2)
    return found


def by_zero(stored: Path, out: Path) -> dict[str, Any]:
    processes.join()
    found: dict[str, Any] = {name: trained(LABEL, changes, stored, out / name) for name, changes in ZERO.items()}
    for name, changes in ZERO.items():
        place = out / f"{name} cut"
        longer = changes | ({"micro_batch_size": LONGER.batch_size // 2} if "micro_batch_size" in changes else {})
        interrupted(LABEL, longer, stored, place)
        found[f"{name} cut"] = trained(LABEL, longer, stored, place, LONGER)
        found[f"{name} evaluated"] = evaluated(changes, stored, out / f"{name} evaluated")
    return found


@pytest.fixture(scope="module")
def by_two(stored: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    out = tmp_path_factory.mktemp("zero")
    return out, launch(2, out / "launch", by_zero, stored, out, patience=500)


@pytest.mark.parametrize("name", ZERO)
def test_two_processes_train_as_one_does(name: str, by_two: tuple[Path, Any], stored: Path, tmp_path: Path) -> None:
    alone = trained(LABEL, {}, stored, tmp_path / "single")
    for each in by_two[1]:
        assert_close(each[name], alone, atol=1e-5)
    assert by_two[1][0][name]["weights"].keys() == alone["weights"].keys()


@pytest.mark.parametrize("name", ZERO)
def test_an_interrupted_training_goes_on(name: str, by_two: tuple[Path, Any], stored: Path, tmp_path: Path) -> None:
    alone = trained(LABEL, {}, stored, tmp_path / "single", LONGER)
    assert last_checkpoint(by_two[0] / f"{name} cut" / "checkpoints")
    for each in by_two[1]:
        assert_close(each[f"{name} cut"], alone, atol=1e-5)


@pytest.mark.parametrize("name", ZERO)
def test_evaluations_are_those_of_one_process(
    name: str, by_two: tuple[Path, Any], stored: Path, tmp_path: Path
) -> None:
    alone = evaluated({}, stored, tmp_path)
    assert [len(frame) > 0 for frame in alone] == [True, True]
    for each in by_two[1]:
        for frame, wanted in zip(each[f"{name} evaluated"], alone, strict=True):
            pd.testing.assert_frame_equal(frame, wanted, atol=1e-4, rtol=1e-4)

"""Guards: what is injected is detected, named, and stopped, warned of or ignored as configured, with the batch to look at."""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray
from test_online import bench
from test_training import CONFIG, DPO, PAIRS, SAMPLES, VOCABULARY, llama
from tokenizers import normalizers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import objectives
from llm_runs import data, guards, reference, rewards, saved_batches, sft
from llm_runs.__main__ import main
from llm_runs.config import ConfigError, DataConfig, GuardsConfig, ReadingConfig, ReferenceConfig, RunConfig, SFTConfig
from llm_runs.errors import InputError
from llm_runs.examples import TokenSample
from llm_runs.experiment import Experiment
from llm_runs.models import tiny_random
from llm_runs.online.policy_gradient import RlhfPpo
from llm_runs.reference import ReferenceLogps
from llm_runs.round_trip import read_back
from llm_runs.sampling import sample
from llm_runs.training import TrainingError, train
from llm_runs.watch import GuardWarning, Watch

SIMPO = objectives.get("simpo")


@pytest.fixture(scope="module")
def own_tokenizer() -> PreTrainedTokenizerBase:
    return tiny_random(["a"], vocabulary=300)[1]


@pytest.fixture(scope="module")
def stored(own_tokenizer: PreTrainedTokenizerBase) -> ReferenceLogps:
    return reference.compute(llama(), own_tokenizer, PAIRS, SAMPLES, ReferenceConfig(top_k=VOCABULARY))


def run(
    stored: ReferenceLogps | None,
    out: Path,
    actions: dict[str, Any],
    objective: objectives.Objective = DPO,
    model: PreTrainedModel | None = None,
    **arguments: Any,
) -> pd.DataFrame:
    """A training of four steps; columns are metrics, rows steps."""
    given = {"config": replace(CONFIG, steps=4, kl_limit=None), "seed": 0, "out": out, **arguments}
    metrics = train(model or llama(), objective, PAIRS, reference=stored, watch=GuardsConfig(**actions), **given)
    return metrics.pivot(index="step", columns="name", values="value")


def guarded(metrics: pd.DataFrame, guard: str) -> list[int]:
    """The steps at which a guard warned."""
    return [] if f"guard/{guard}" not in metrics else metrics.index[metrics[f"guard/{guard}"] == 1].tolist()


class Breaks:
    """Evaluations at every step: weights as they were, broken after step 2 and repaired after step 3."""

    def __init__(self, factor: float, repair: bool = True) -> None:
        self.factor, self.repair = factor, repair
        self.weights: dict[int, torch.Tensor] = {}

    def __call__(self, model: PreTrainedModel, step: int) -> None:
        weight = model.lm_head.weight.data
        self.weights[step] = weight.clone()
        if step == 2:
            weight.mul_(self.factor)
        if step == 3 and self.repair:
            weight.copy_(self.weights[2])


def words_of(path: Path) -> str:
    """What the command shows of a saved batch."""
    return saved_batches.describe(path)


# -- loss and gradients that are not finite ----------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_with_its_batch(stored: ReferenceLogps, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"step 3 of dpo.*NaN or infinity.*llm_runs batch .*failed_batch\.json"):
        run(stored, tmp_path, {}, evaluate=Breaks(math.nan), evaluate_at=(1, 2, 3))
    shown = words_of(tmp_path)
    assert "step: 3" in shown and "pairs/chosen_logps (8, float64), 8 NaN or infinite" in shown
    assert "pairs/ref_chosen_logps (8, float64) -" in shown and shown.count("source='pairs'") == 8
    assert safetensors.torch.load_file(tmp_path / "failed_batch.safetensors")["pairs/chosen_logps"].isnan().all()


def test_a_loss_that_is_no_number_may_be_left_out(stored: ReferenceLogps, tmp_path: Path) -> None:
    """Step 3's loss is NaN: its update is left out, Adam's moments too, and step 4 is that of a run that never had it."""
    breaks = Breaks(math.nan)
    with pytest.warns(GuardWarning, match=r"step 3 of dpo.*guards\.not_finite=stop.*warned_not_finite\.json") as said:
        metrics = run(stored, tmp_path, {"not_finite": "warn"}, evaluate=breaks, evaluate_at=(1, 2, 3, 4))
    assert len([one for one in said if one.category is GuardWarning]) == 1
    assert guarded(metrics, "not_finite") == [3] and math.isnan(metrics.loc[3, "loss"])
    assert math.isfinite(metrics.loc[4, "loss"]) and metrics.loc[4, "grad_norm"] > 0
    assert not torch.equal(breaks.weights[4], breaks.weights[2]) and bool(breaks.weights[4].isfinite().all())


def test_a_gradient_that_is_no_number_never_reaches_the_weights(stored: ReferenceLogps, tmp_path: Path) -> None:
    def broken_at(step: int) -> tuple[PreTrainedModel, Breaks]:
        model, calls = llama(), iter(range(1, 9))
        model.lm_head.weight.register_hook(lambda gradient: gradient / 0 if next(calls) == step else gradient)
        return model, Breaks(1.0)

    model, seen = broken_at(2)
    config = replace(CONFIG, steps=4, log_every=4, save_every=1)  # found at once, not at the next log
    with pytest.raises(
        TrainingError, match=r"step 2 of dpo.*gradient's norm is (nan|inf).*good checkpoint is .*point-1;"
    ):
        run(stored, tmp_path / "a", {}, model=model, config=config, evaluate=seen, evaluate_at=(1,))
    assert torch.equal(model.lm_head.weight.data, seen.weights[1])
    model, seen = broken_at(2)
    with pytest.warns(GuardWarning, match="gradient's norm"):
        metrics = run(
            stored, tmp_path / "b", {"not_finite": "warn"}, model=model, evaluate=seen, evaluate_at=(1, 2, 3, 4)
        )
    assert guarded(metrics, "not_finite") == [2]
    assert torch.equal(seen.weights[1], seen.weights[2]) and not torch.equal(seen.weights[2], seen.weights[3])


def test_fine_tuning_stops_too(fresh_model: Any, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    samples = sft.windows(_texts("one two three", "four five six"), tokenizer, 8)
    config = SFTConfig(steps=2, batch_size=2, sequence_tokens=8, save_every=0)
    model = fresh_model()
    model.lm_head.weight.data[:] = math.inf
    with pytest.raises(InputError, match=r"fine-tuning stopped at step 1: the loss is nan.*llm_runs batch"):
        sft.train(model, samples, config, seed=0, checkpoints=tmp_path, tokenizer=tokenizer)
    assert "one two three" in words_of(tmp_path)
    model = fresh_model()
    before = model.lm_head.weight.data.clone()
    model.lm_head.weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(InputError, match="gradient's norm is nan"):
        sft.train(model, samples, config, seed=0, checkpoints=tmp_path)
    assert torch.equal(model.lm_head.weight.data, before)


def _texts(*lines: str) -> list[Any]:
    from llm_runs.texts import Text

    return [Text(line) for line in lines]


def test_sampling_from_broken_weights_is_named(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    model.lm_head.weight.data[:] = math.nan
    with pytest.raises(InputError, match="next-token probabilities are NaN"):
        sample(model, tokenizer, [(1, 2)], max_tokens=3, seed=0, batch_size=1)


# -- distance, start, collapse -----------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["stop", "warn", "ignore"])
def test_a_policy_far_away(stored: ReferenceLogps, tmp_path: Path, action: str) -> None:
    arguments = {"config": replace(CONFIG, steps=4, kl_limit=1.0), "evaluate": Breaks(-100), "evaluate_at": (1, 2, 3)}
    actions = {"kl": action, "collapse": "ignore"}
    if action == "stop":
        with pytest.raises(TrainingError, match=r"step 3 of .* nats a token from the reference"):
            run(stored, tmp_path, actions, **arguments)
        assert (tmp_path / "failed_batch.json").is_file()
        return
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        metrics = run(stored, tmp_path, actions, **arguments)
    assert guarded(metrics, "kl") == ([3] if action == "warn" else [])
    assert [GuardWarning] * (action == "warn") == [one.category for one in said if one.category is GuardWarning]
    assert (tmp_path / "warned_kl.json").is_file() == (action == "warn")
    assert metrics.loc[3, "kl_per_token/pairs"] > 1 > metrics.loc[4, "kl_per_token/pairs"]


def test_a_reference_that_is_not_the_policy(stored: ReferenceLogps, tmp_path: Path) -> None:
    """Log-probs moved by half a nat under the right key, as another template or precision would move them."""
    rows = [replace(row, logps=row.logps - 0.5, logp=row.logp - 0.5 * len(row.logps)) for row in stored.rows]
    moved = ReferenceLogps.of(stored.key, rows)
    with pytest.raises(
        TrainingError, match=r"step 1 of dpo.*policy and reference differ by up to .*before the first step"
    ):
        run(moved, tmp_path, {})
    assert "pairs/ref_chosen_logps" in words_of(tmp_path)
    with pytest.warns(GuardWarning, match="policy and reference differ"):
        metrics = run(moved, tmp_path, {"start": "warn"})
    assert guarded(metrics, "start") == [1]
    with warnings.catch_warnings():
        warnings.simplefilter("error", GuardWarning)
        run(moved, tmp_path, {"start": "ignore"})


@pytest.mark.parametrize("objective", [DPO, SIMPO], ids=str)
def test_chosen_and_rejected_that_both_collapse(
    objective: objectives.Objective, stored: ReferenceLogps, tmp_path: Path
) -> None:
    """simpo has no reference: it is measured against its own first step."""
    arguments = {"objective": objective, "evaluate_at": (1, 2, 3)}
    of_reference = stored if objective is DPO else None
    actions = {"collapse": "stop", "collapse_limit": 2.0}
    with pytest.raises(TrainingError, match=r"chosen and rejected .* (\d\S*) and (\d\S*) nats a token below the"):
        run(of_reference, tmp_path / "a", actions, evaluate=Breaks(-20), **arguments)
    with pytest.warns(GuardWarning, match="below the " + ("reference" if objective is DPO else "first step")):
        metrics = run(of_reference, tmp_path, actions | {"collapse": "warn"}, evaluate=Breaks(-20), **arguments)
    assert guarded(metrics, "collapse") == [3]


def test_one_side_alone_is_no_collapse() -> None:
    def batch(chosen: float, rejected: float) -> dict[str, objectives.Batch]:
        numbers = [torch.tensor([value, value]) for value in (chosen, rejected, -10.0, -10.0, 4.0, 4.0)]
        names = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
        return {
            "pairs": objectives.PairBatch(
                **dict(zip((*names, "chosen_lengths", "rejected_lengths"), numbers, strict=True))
            )
        }

    watch = guards.Collapse(2.0)
    assert watch.found(batch(-10.0, -1000.0)) is None
    assert watch.found(batch(-17.9, -1000.0)) is None  # 1.975 nats a token
    assert "2.05 and 248 nats" in str(watch.found(batch(-18.2, -1000.0)))


# -- texts that tokens do not give back --------------------------------------------------------------------------


@pytest.fixture
def lowering(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A tokenizer that loses capitals."""
    changed = copy.deepcopy(tokenizer)
    changed.backend_tokenizer.normalizer = normalizers.Lowercase()
    return changed


def test_a_text_that_survives_and_one_that_does_not(
    tokenizer: PreTrainedTokenizerBase, lowering: PreTrainedTokenizerBase
) -> None:
    for text in ("The film", " leading and trailing \n", "emoji 🙂 and ü", "", "<|im_end|> inside"):
        assert read_back(tokenizer, text, tokenizer(text).input_ids) is None
        assert read_back(tokenizer, text, [*tokenizer(text).input_ids, tokenizer.eos_token_id]) is None
    assert read_back(lowering, "The film", lowering("The film").input_ids) == "the film"


@pytest.fixture
def shouting(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"say {i}", "chosen": " YES" if i == 2 else " yes", "rejected": " no"} for i in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("action", ["stop", "warn", "ignore"])
def test_own_data_that_the_tokenizer_changes(
    shouting: Path, lowering: PreTrainedTokenizerBase, tmp_path: Path, action: str
) -> None:
    config = DataConfig(preferences=str(shouting), held_out_fraction=0.5)
    arguments: dict[str, Any] = {"folder": tmp_path / "data", "seed": 0, "say": lambda line: None}
    arguments["watch"] = Watch(GuardsConfig(round_trip=action))
    if action == "stop":
        with pytest.raises(InputError, match=r"pairs\.jsonl, line 3: .*character 2 ' YES' comes back as ' yes'"):
            data.load(config, lowering, 64, **arguments)
        dropping = replace(config, reading=ReadingConfig(bad_records="drop"))
        loaded = data.load(dropping, lowering, 64, **arguments)
        assert loaded.accounts[0].left_out == {"round trip": 1}
        return
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        loaded = data.load(config, lowering, 64, **arguments)
    assert len(loaded.training) + len(loaded.held_out) == 6
    found = [str(one.message) for one in said if one.category is GuardWarning]
    assert len(found) == (action == "warn")
    if action == "warn":
        assert "the tokens of 1 texts do not give the text back; at character 2 ' YES' comes back as ' yes'" in found[0]
        assert "prompt=' YES' completion=' yes'" in words_of(tmp_path / "data" / "warned_round_trip.json")


def test_texts_of_a_run_that_the_tokenizer_changes(lowering: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    experiment = Experiment(RunConfig.load("tiny", ["guards.round_trip=stop"]), tmp_path)
    experiment.check()
    lowering.bos_token = None
    experiment.__dict__["tokenizer"] = lowering
    with pytest.raises(
        InputError, match=r"synthetic: the tokens of 1000 of 1000 texts do not give the text back; at char"
    ):
        experiment._check_round_trip()
    assert words_of(tmp_path / "guards").count("source='texts'") == 8


# -- rewards -----------------------------------------------------------------------------------------------------


class Same:
    """A reward that says nothing."""

    def score(self, prompts: Sequence[str], completions: Sequence[str]) -> NDArray[np.float64]:
        return np.full(len(completions), 0.5)


def test_what_counts_as_constant() -> None:
    def scored(*values: float) -> list[TokenSample]:
        return [TokenSample((1,), (i,), reward=value) for i, value in enumerate(values)]

    assert guards.constant(scored(0.5, 0.5, 0.5), "here") and guards.constant(scored(1e9, 1e9 + 1e-7), "here")
    assert guards.constant(scored(0.5, 0.5, 0.5001), "here") is None
    assert guards.constant(scored(0.5), "here") is None
    assert guards.constant([TokenSample((1,), (2,), reward=0.5)] * 3, "here") is None  # one text, drawn three times


TINY = ["sft.steps=0", "data.reward_texts=100", "data.prompts=8", "reference.samples=4", "training.steps=2"]
TINY += ["training.batch_size=4", "evaluation.at=[]", "objectives=['dpo(beta=0.1)']", "evaluation.likelihoods=0"]


@pytest.mark.parametrize("action", ["stop", "warn"])
def test_labels_of_a_constant_reward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], action: str
) -> None:
    monkeypatch.setattr(rewards.TfidfReward, "load", classmethod(lambda cls, path: Same()))
    out = tmp_path / "run"
    arguments = ["label", "tiny", "--out", str(out), "--set", *TINY]
    if action == "warn":
        with pytest.warns(GuardWarning, match=r"samples/pairs\.jsonl: all 16 completions have the reward 0\.5"):
            assert main([*arguments, "guards.constant_reward=warn"]) == 0
        return
    assert main(arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: samples/pairs.jsonl: all 16 completions have the reward 0.5")
    assert not list(out.glob("pairs/*"))
    assert main(["batch", str(out / "guards" / "failed_batch.json"), "--examples", "3"]) == 0
    shown = capsys.readouterr().out
    assert "rewards (16, float64) 0.5 to 0.5" in shown and "examples, 3 of 16" in shown and "reward=0.5" in shown
    monkeypatch.undo()  # with a reward that says something, the same folder goes on
    assert main(arguments) == 0


def test_rollouts_of_a_constant_reward(tmp_path: Path) -> None:
    one = bench(tmp_path)
    one.experiment.__dict__["reward"] = Same()
    with pytest.raises(InputError, match=r"completions of round 1: all 16 completions have the reward 0\.5"):
        RlhfPpo(one).advance(1, tmp_path / "round-1")


# -- online runs -------------------------------------------------------------------------------------------------


@pytest.fixture
def loop(tmp_path: Path) -> RlhfPpo:
    return RlhfPpo(bench(tmp_path, "training.kl_limit=1.0", "guards.constant_reward=ignore"))


def test_an_online_policy_that_is_not_its_reference(loop: RlhfPpo) -> None:
    loop.model.lm_head.weight.data *= 1.5
    with pytest.raises(TrainingError, match=r"rlhf_ppo at update 1: policy and reference differ by up to"):
        loop.advance(1, Path())
    assert "ref_token_logps" in words_of(loop.bench.experiment.out / "guards" / "rlhf_ppo")


def test_an_online_policy_far_away(loop: RlhfPpo) -> None:
    metrics = loop.advance(1, Path())
    assert metrics.loc[metrics["name"] == "kl_per_token/rollouts", "value"].tolist() == pytest.approx([0], abs=1e-5)
    loop.model.lm_head.weight.data *= -20
    with pytest.raises(TrainingError, match=r"nats a token from the reference on its rollouts, beyond .*=1 "):
        loop.advance(2, Path())


def test_an_online_gradient_that_is_no_number(loop: RlhfPpo) -> None:
    weight = loop.model.lm_head.weight
    before = weight.data.clone()
    handle = weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(TrainingError, match=r"rlhf_ppo at update 1: the loss is .* and the gradient's norm nan"):
        loop.advance(1, Path())
    loop.watch = Watch(GuardsConfig(not_finite="warn"))
    with pytest.warns(GuardWarning, match="gradient's norm nan"):
        metrics = loop.advance(1, Path())
    assert torch.equal(weight.data, before)
    handle.remove()
    assert metrics.loc[metrics["name"] == "guard/not_finite", "step"].tolist() == [1, 2, 3, 4]
    loop.advance(2, Path())
    assert not torch.equal(weight.data, before)


# -- configuration and the command -------------------------------------------------------------------------------


def test_guards_are_configured_strictly() -> None:
    assert RunConfig.load("tiny", ["guards.collapse=stop", "guards.collapse_limit=2"]).guards.collapse_limit == 2.0
    for wrong, words in (
        ("guards.kl=maybe", "must be one of stop, warn, ignore"),
        ("guards.not_finite=ignore", "stop"),
    ):
        with pytest.raises(ConfigError, match=words):
            RunConfig.load("tiny", [wrong])


def test_guards_may_change_between_calls(tmp_path: Path) -> None:
    Experiment(RunConfig.load("tiny"), tmp_path)
    Experiment(RunConfig.load("tiny", ["guards.kl=warn"]), tmp_path)


def test_what_is_no_saved_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "torn.json").write_text('{"step": 1, "examples": [')
    (tmp_path / "other.json").write_text('{"examples": [1]}')
    for name in ("missing.json", "torn.json", "other.json", ""):
        assert main(["batch", str(tmp_path / name)]) == 2
        assert capsys.readouterr().err.startswith("error: ")

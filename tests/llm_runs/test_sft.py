"""Supervised fine-tuning: its data, its loss, and that an interruption does not change its result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from llm_runs import sft
from llm_runs.config import SFTConfig
from llm_runs.texts import Text


def test_windows_end_where_the_text_does(tokenizer: PreTrainedTokenizerBase) -> None:
    long, short = sft.windows([Text("The movie was great. " * 9), Text("Great."), Text("")], tokenizer, 12)
    whole = tokenizer("The movie was great. " * 9).input_ids
    assert long.prompt_ids + long.completion_ids == tuple(whole[:12])
    assert short.prompt_ids + short.completion_ids == (*tokenizer("Great.").input_ids, tokenizer.eos_token_id)


def test_the_first_loss_is_the_models_own(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    samples = sft.windows(
        [Text("The movie was great."), Text("Awful from beginning to end, I thought.")], tokenizer, 20
    )
    rows = [list(entry.prompt_ids + entry.completion_ids) for entry in samples]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    with torch.no_grad():  # transformers' own loss: the mean over all predicted tokens, padding marked by -100
        expected = model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss.item()
    config = SFTConfig(steps=1, batch_size=2, save_every=0)
    ((step, loss),) = sft.train(model, samples, config, seed=0, checkpoints=tmp_path)
    assert step == 1
    assert loss == pytest.approx(expected, abs=1e-4)


def test_parts_of_a_batch_give_the_update_of_the_whole(
    fresh_model: Callable[[], PreTrainedModel], corpus: list[Text], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    samples = [entry for entry in sft.windows(corpus[:80], tokenizer, 12) if len(entry.completion_ids) == 11][:16]
    assert len(samples) == 16
    trained = []
    for changes in ({}, {"micro_batch_size": 2, "gradient_checkpointing": True}):
        model = fresh_model()
        config = SFTConfig(steps=3, batch_size=8, learning_rate=1e-3, warmup_steps=0, save_every=0, **changes)
        losses = sft.train(model, samples, config, seed=1, checkpoints=tmp_path / "none")
        trained.append((losses, model.state_dict()))
    (losses, whole), (others, parts) = trained
    assert [loss for _, loss in others] == pytest.approx([loss for _, loss in losses], abs=1e-4)
    start = fresh_model().state_dict()
    for name, weights in whole.items():
        moved = (weights - start[name]).abs().max()
        assert (
            parts[name] - weights
        ).abs().max() < 0.02 * moved + 1e-7  # Adam enlarges rounding where gradients vanish


def test_an_interruption_does_not_change_the_result(
    fresh_model: Callable[[], PreTrainedModel],
    corpus: list[Text],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    samples = sft.windows(corpus[:60], tokenizer, 16)
    config = SFTConfig(steps=12, batch_size=8, learning_rate=1e-3, save_every=4)
    whole = fresh_model()
    losses = sft.train(whole, samples, config, seed=1, checkpoints=tmp_path / "whole")
    assert losses[-1][1] < losses[0][1]
    ended = fresh_model()  # killed after its last step, before its weights were saved
    assert sft.train(ended, samples, config, seed=1, checkpoints=tmp_path / "whole") == losses
    assert all(torch.equal(ended.state_dict()[name], weight) for name, weight in whole.state_dict().items())

    step, seen = Trainer.training_step, []

    def interrupted(trainer: Trainer, *arguments: object, **more: object) -> object:
        seen.append(trainer.state.global_step)
        if len(seen) == 7:
            raise KeyboardInterrupt
        return step(trainer, *arguments, **more)

    monkeypatch.setattr(Trainer, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sft.train(fresh_model(), samples, config, seed=1, checkpoints=tmp_path / "cut")
    (tmp_path / "cut" / "checkpoint-8").mkdir()  # one that was being written: it has no state yet
    again = fresh_model()
    assert sft.train(again, samples, config, seed=1, checkpoints=tmp_path / "cut") == losses
    assert seen == [0, 1, 2, 3, 4, 5, 6, 4, 5, 6, 7, 8, 9, 10, 11]
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], weight, rtol=0, atol=1e-6, msg=name)

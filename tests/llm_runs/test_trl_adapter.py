"""trl's trainer with our objectives: same loss and same updates as trl's own dpo, and the others train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import objectives
from objectives import ObjectiveError

pytest.importorskip("trl")
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from llm_runs import models
from llm_runs.trl_adapter import ObjectiveTrainer

PAIRS = Dataset.from_dict(
    {
        "prompt": ["the film was", "this story is", "I found it", "the cast was"] * 2,
        "chosen": [" good and warm", " wonderful", " a delight to see", " fine"] * 2,
        "rejected": [" bad", " dull and slow", " poor", " a real mess of it"] * 2,
    }
)


def trained(
    trainer_class: type[DPOTrainer], folder: Path, tokenizer: PreTrainedTokenizerBase, out: Path, **named: Any
) -> tuple[DPOTrainer, dict[str, torch.Tensor]]:
    """The trainer after two steps, and the weights."""
    settings = {"beta": 0.3, **named.pop("settings", {})}
    args = DPOConfig(
        output_dir=str(out),
        max_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        seed=0,
        **settings,
    )
    model: PreTrainedModel = models.load_model(folder)
    trainer = trainer_class(model=model, args=args, train_dataset=PAIRS, processing_class=tokenizer, **named)
    trainer.train()
    return trainer, {name: tensor.clone() for name, tensor in model.state_dict().items()}


def losses(trainer: DPOTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_dpo_takes_trls_own_steps(tiny_folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    theirs, their_weights = trained(DPOTrainer, tiny_folder, tokenizer, tmp_path / "a")
    ours, our_weights = trained(ObjectiveTrainer, tiny_folder, tokenizer, tmp_path / "b", objective="dpo(beta=0.3)")
    assert losses(ours) == pytest.approx(losses(theirs), rel=1e-5)
    start = models.load_model(tiny_folder).state_dict()
    assert max(float((their_weights[k] - start[k]).abs().max()) for k in start) > 1e-4
    for name, weight in their_weights.items():
        torch.testing.assert_close(our_weights[name], weight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "label",
    [
        "ipo(aggregation='mean')",
        "simpo",
        "nca(beta=0.1)",
        "dpo(beta=0.1)+chosen_nll(weight=0.1)",
        "maxpo(beta=0, temperature=20)",
    ],
)
def test_other_objectives_train(
    label: str, tiny_folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    trainer, _ = trained(ObjectiveTrainer, tiny_folder, tokenizer, tmp_path, objective=objectives.parse(label))
    first, second = losses(trainer)
    assert first != second
    entry = trainer.state.log_history[0]
    assert {f"loss/{term.name}" for term in trainer.objective.terms} < set(entry)
    parts = sum(entry[f"loss/{term.name}"] for term in trainer.objective.terms)
    assert parts == pytest.approx(first, rel=1e-4)


def test_reference_log_probs_computed_in_advance(
    tiny_folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    settings = {"precompute_ref_log_probs": True}
    live, _ = trained(ObjectiveTrainer, tiny_folder, tokenizer, tmp_path / "a", objective="dpo(beta=0.3)")
    stored, _ = trained(
        ObjectiveTrainer, tiny_folder, tokenizer, tmp_path / "b", objective="dpo(beta=0.3)", settings=settings
    )
    assert losses(stored) == pytest.approx(losses(live), rel=1e-5)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("maxpo", r"maxpo\(beta=0\.1\) needs reference_samples, which trl's DPOTrainer does not supply"),
        ("tdpo", r"needs token_kl, which trl's DPOTrainer does not supply"),
        ("kto", r"needs mismatched_logps, unpaired"),
        ("maxpo(beta=0, temperature='auto')", r"temperature='auto' must be a number"),
        ("dqo", r"unknown objective 'dqo'"),
    ],
)
def test_what_trl_cannot_supply(label: str, message: str) -> None:
    with pytest.raises(ObjectiveError, match=message):
        ObjectiveTrainer(objective=label)


def test_settings_of_trls_own_loss_are_refused(
    tiny_folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    with pytest.raises(ObjectiveError, match=r"DPOConfig\.label_smoothing shapes trl's own loss"):
        trained(ObjectiveTrainer, tiny_folder, tokenizer, tmp_path, objective="dpo", settings={"label_smoothing": 0.1})

"""Supervised fine-tuning on the domain: its result is the reference policy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments

from llm_runs import processes, saved_batches, sharding
from llm_runs.checkpoints import KeepLastGood, last_checkpoint
from llm_runs.config import SFTConfig
from llm_runs.errors import InputError
from llm_runs.examples import TokenSample
from llm_runs.logprobs import CompletionBatch, collate, completion_logits, token_logps
from llm_runs.progress import show_progress
from llm_runs.texts import Text
from llm_runs.watch import Gradients, look


def windows(texts: Sequence[Text], tokenizer: PreTrainedTokenizerBase, tokens: int) -> list[TokenSample]:
    """The first `tokens` tokens of each text, ended by end-of-text where the text ends there; the first token is given.

    Texts of fewer than two tokens are left out.
    """
    found = []
    for text in texts:
        ids = tokenizer(text.text, truncation=True, max_length=tokens).input_ids
        if len(ids) < tokens:
            ids = [*ids, tokenizer.eos_token_id]
        if len(ids) > 1:
            found.append(TokenSample(tuple(ids[:1]), tuple(ids[1:])))
    return found


def train(
    model: PreTrainedModel,
    samples: Sequence[TokenSample],
    config: SFTConfig,
    *,
    seed: int,
    checkpoints: Path,
    shard: sharding.Sharding = "none",
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> list[tuple[int, float]]:
    """Fine-tune `model` in place on the completions; returns (step, mean loss per token in nats).

    Continues from the last whole checkpoint in the folder `checkpoints`. `shard`: as `TrainingConfig.sharding`; `tokenizer`: to make a
    failing batch readable.

    Raises:
        InputError: the processes cannot share the batch evenly; a loss or gradient is not finite: the batch is saved beside the
            checkpoints, and nothing of the step has reached the weights.
    """
    processes.join()
    size = processes.size()
    if problem := processes.uneven("sft.batch_size", config.batch_size, size, "the number of processes"):
        raise InputError(problem)
    micro = config.micro_batch_size or config.batch_size // size
    what = "sft.micro_batch_size times the number of processes"
    if problem := processes.uneven("sft.batch_size", config.batch_size, micro * size, what):
        raise InputError(problem)
    on_cuda = model.device.type == "cuda"
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=config.steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=config.batch_size // (micro * size),
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=config.warmup_steps,
        weight_decay=0.0,
        logging_steps=min(5, config.steps),
        logging_nan_inf_filter=False,
        save_strategy="steps" if config.save_every else "no",
        save_steps=config.save_every or config.steps,
        seed=seed,
        data_seed=seed,
        bf16=on_cuda,
        report_to=[],
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        use_cpu=model.device.type == "cpu",
        **sharding.arguments(shard),
    )
    trainer = _Trainer(
        model=model,
        args=arguments,
        train_dataset=list(samples),
        data_collator=_collate,
        callbacks=[KeepLastGood(checkpoints), _Saving()],
    )
    trainer.tokenizer, trainer.out = tokenizer, checkpoints
    trainer.add_callback(Gradients(trainer.stop))
    show_progress(trainer, "fine-tuning")
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    resume_from = processes.gather(last_checkpoint(checkpoints))[0]
    with resuming(resume_from):
        trainer.train(resume_from_checkpoint=resume_from)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_disable()
    model.eval()
    return [(int(entry["step"]), float(entry["loss"])) for entry in trainer.state.log_history if "loss" in entry]


class _Saving(TrainerCallback):  # type: ignore[misc]
    """Makes a training that goes on the same as one that was never interrupted.

    No checkpoint after the last step: the Trainer, going on from it, would make one step more than it was asked for. And a log at every
    checkpoint: the losses since the last log are not kept with it.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the Trainer's own rules."""
        control.should_save &= state.global_step < state.max_steps
        control.should_log |= control.should_save


@contextlib.contextmanager
def resuming(checkpoint: str | None) -> Iterator[None]:
    """What a checkpoint holds besides tensors and numbers is refused by torch, with a page of advice; say it in a line instead.

    Raises:
        InputError: the optimiser, schedule or random state of `checkpoint` is no plain data.
    """
    try:
        yield
    except Exception as error:
        if (
            checkpoint is None or type(error).__name__ != "UnpicklingError"
        ):  # its module is not imported here, on purpose
            raise
        raise InputError(
            f"{checkpoint}: its optimiser, schedule or random state holds something else than tensors and numbers, or is damaged; nothing "
            "of it was run. Delete the checkpoint to go on from an earlier one, or from the beginning"
        ) from error


class _Trainer(sharding.ShardedTrainer):
    """The loss is the negative log-likelihood per completion token of a step, however the step is cut into forward passes."""

    tokenizer: PreTrainedTokenizerBase | None
    out: Path
    _last: CompletionBatch

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.model_accepts_loss_kwargs = True  # the passes' losses add up: the Trainer divides them by nothing

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], int]:
        """The forward passes of a step, and the completion tokens of all of them, in all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batches, sum(processes.gather(sum(int(each["batch"].lengths.sum()) for each in batches)))

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        batch = inputs["batch"].to(self.args.device)
        # Data parallelism takes the mean of the processes' gradients where their sum is wanted.
        share = processes.size() / num_items_in_batch
        loss: Tensor = -token_logps(completion_logits(model, batch), batch).sum() * share
        self._last = batch
        if not processes.all_of(bool(torch.isfinite(loss)), self.args.device):
            self.stop(f"the loss is {loss.item()}")
        return loss

    def stop(self, reason: str) -> None:
        """Raise InputError; the last batch is saved."""
        batch, step = self._last, int(self.state.global_step) + 1
        number = processes.rank()
        samples = {
            place: TokenSample((), tuple(ids[mask].tolist()))
            for place, (ids, mask) in enumerate(zip(batch.input_ids, batch.attention_mask.bool(), strict=True))
        }
        path = saved_batches.save_batch(
            self.out / f"process-{number}" if number else self.out,
            {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask},
            {"texts": samples},
            {"step": step, "objective": "fine-tuning", "reason": reason},
            self.tokenizer,
        )
        raise InputError(f"fine-tuning stopped at step {step}: {reason}. Lower sft.learning_rate; {look(path)}")


def _collate(samples: Sequence[TokenSample]) -> dict[str, CompletionBatch]:
    return {"batch": collate([entry.prompt_ids for entry in samples], [entry.completion_ids for entry in samples])}

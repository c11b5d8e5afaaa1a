"""Preference training: a thin `transformers.Trainer` whose loss is an objective of the registry.

Each forward pass runs the model's body once over chosen and rejected completions, reference samples and pretraining text (and over
what they share once, see `packing`), and its head on completion tokens only. What is supplied follows from `objective.needs`: an
objective without reference log-probs never gets a reference. Everything else (schedule, accumulation, mixed precision, data
parallelism, checkpoints) is the Trainer's.
"""

from __future__ import annotations

import copy
import json
import math
import resource
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainingArguments,
)

import objectives
from analysis.records import atomic_write, fingerprint
from llm_runs import guards, kernels, memory, processes, reporting, saved_batches, sharding
from llm_runs.checkpoints import KeepLastGood, keep_good_checkpoint, last_checkpoint
from llm_runs.config import GuardsConfig, LoRAConfig, TrainingConfig
from llm_runs.examples import TokenPair, TokenSample
from llm_runs.global_batch import gathered, rows
from llm_runs.json_lines import read_object
from llm_runs.microbatches import (
    FROM_DISTRIBUTIONS,
    FROM_LOGPS,
    Microbatch,
    Microbatches,
    TrainingError,
    needs_in_training,
    unpack,
)
from llm_runs.models import autocast, context_length
from llm_runs.packing import Rows
from llm_runs.progress import show_progress
from llm_runs.reference import ReferenceLogps
from llm_runs.scoring import Scorer
from llm_runs.sft import resuming
from llm_runs.vocabulary_head import TokenScores
from llm_runs.watch import Gradients, Watch, look

Evaluate = Callable[[PreTrainedModel, int], None]
SATURATED = 5.0  # argument of a link beyond which a logistic or sigmoid has a slope below 0.0067 on its flat side


def train(
    model: PreTrainedModel,
    objective: objectives.Objective,
    pairs: Sequence[TokenPair],
    *,
    reference: ReferenceLogps | Callable[[], ReferenceLogps] | None = None,
    references: Sequence[ReferenceLogps] = (),
    reference_samples: Sequence[TokenSample] = (),
    pretraining: Sequence[Sequence[int]] = (),
    candidates: Sequence[Sequence[TokenSample]] = (),
    unpaired: Sequence[TokenSample] = (),
    config: TrainingConfig,
    seed: int,
    out: Path,
    evaluate: Evaluate | None = None,
    evaluate_at: Collection[int] = (),
    tokenizer: PreTrainedTokenizerBase | None = None,
    starts_as_reference: bool = True,
    watch: GuardsConfig | None = None,
    adapters_seed: int | None = None,
    stop_after: int | None = None,
) -> pd.DataFrame:
    """Train `model` in place and return the metrics, one number a row: columns step, name, value.

    Args:
        model: the policy. With `config.lora` its adapters are merged into it at the end.
        objective: from `objectives.get`; a `temperature="auto"` must have been resolved.
        pairs: labelled pairs in token ids.
        reference: the reference's stored numbers, or a function that loads them. Touched only if the objective needs them.
        references: further references' numbers on the pairs, for objectives with several.
        reference_samples: completions of the reference, made in advance; drawn only if the objective needs them.
        pretraining: token ids of texts; drawn only if the objective needs them.
        candidates: K completions of one prompt each, with rewards. Objectives on candidates use them where they are given; else
            pairs stand for them if they can.
        unpaired: completions with reward 1 (desirable) or 0. Objectives on these use them where given, else the sides of the pairs.
        config: steps, batch sizes, optimiser.
        seed: of the order of the examples (the same for every objective).
        out: folder for checkpoints (`checkpoints/`, from which an interrupted training goes on) and a failing batch.
        evaluate: called with the model, in evaluation mode, and the step, after each step in `evaluate_at`.
        tokenizer: kept with every checkpoint, and used to make a failing batch readable.
        starts_as_reference: refuse a policy that is not the reference at step 0; False where the policy has been trained before.
        watch: what to do about what the guards find; the defaults where it is not given.
        adapters_seed: of LoRA's initial weights; None: `seed`.
        stop_after: end after so many of the steps, all else being as with all of them.

    Metrics per logged step: loss, loss/<term>, plain_margin, plain_accuracy (of log pi(chosen) - log pi(rejected)), chosen_logps,
    rejected_logps, saturated_share, grad_norm, learning_rate, step_seconds, step_cpu_seconds (of all threads), peak_memory_bytes;
    margin, accuracy, chosen_log_ratio and rejected_log_ratio (against the reference) where the objective uses the reference;
    kl_per_token/<source> (`guards.kl_per_token`) where the batch says something of the reference; once, at the last step,
    passes/<source>: how often each source was seen; guard/<guard> = 1 at steps where a guard warned.

    Raises:
        InputError: unusable input; a reference of another model; what the guards stop for (`GuardsConfig`: policy and reference that
            differ at step 0, a loss or gradient that is not finite, a policy beyond `config.kl_limit`): the batch is saved in `out` and
            the last good checkpoint kept; too little memory; checkpoints in `out` that belong to another training.
    """
    processes.join()
    reporting.check(config.report_to)
    if config.sharding != "none" and (config.lora or config.reference == "live"):
        raise TrainingError(
            f"training.sharding={config.sharding} is for full fine-tuning with stored reference log-probs: with training.lora or "
            "training.reference=live set it to none, a copy of the model in every process"
        )
    if objective.needs_temperature:
        raise TrainingError(f"{objective.label}: resolve temperature='auto' first (objective.with_temperature(number))")
    watch = watch or GuardsConfig()
    if watch.not_finite == "warn" and config.sharding.startswith("zero"):
        raise TrainingError(
            f"guards.not_finite=warn leaves an update out, which is not possible with training.sharding={config.sharding}: let it be stop"
        )
    needs = needs_in_training(objective, candidates=bool(candidates), unpaired=bool(unpaired))
    from_reference = FROM_DISTRIBUTIONS | (FROM_LOGPS if config.reference == "precomputed" else frozenset())
    stored: ReferenceLogps | None = None
    if from_reference & needs:
        stored = reference() if callable(reference) else reference
    data = Microbatches(
        needs,
        pairs,
        reference_samples,
        pretraining,
        stored,
        config,
        seed,
        candidates=candidates,
        unpaired=unpaired,
        references=references,
        context=context_length(model),
    )
    _check_lengths(model, data)
    if stored is not None and starts_as_reference:
        guards.check_same_weights(stored.key, model)
    if data.passes.get("reference_samples", 0) > 1:
        warnings.warn(
            f"each reference sample is used {data.passes['reference_samples']:.1f} times; more than one pass memorises them: "
            "raise reference.samples, or lower training.steps or training.reference_batch_size",
            stacklevel=2,
        )
    if any(term.coupled for term in objective.terms) and (passes := data.per_step // processes.size()) > 1:
        raise TrainingError(
            f"{objective.label} takes means over its batch, so a step in {passes} forward passes would be another objective: "
            f"let training.micro_batch_size be {config.batch_size // processes.size()}, all of a step's pairs"
            f"{' of a process' if processes.size() > 1 else f' (training.batch_size, {config.batch_size})'}"
        )
    checkpoints = out / "checkpoints"
    resume_from = None
    if config.save_every:  # all from the same, also where a shared folder shows new files late
        resume_from = processes.gather(
            _resumable(checkpoints, _identity(objective, data, config, [seed, adapters_seed]))
        )[0]

    live = _LiveReference(model, config) if FROM_LOGPS & needs and config.reference == "live" else None
    disable_dropout(model)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    adapters_seed = seed if adapters_seed is None else adapters_seed
    trained = with_adapters(model, config.lora, adapters_seed) if config.lora else model
    size = partial(memory.of_training, trained, data, config, live is not None)
    kernels.check(config.kernels, model.device)
    with memory.explained(size):  # trying the model out already takes activations
        scorer = Scorer(trained, data.sequences(), config.share_prompt, config.logits_memory * 2**20)
    data.share = scorer.share
    trainer = _PreferenceTrainer(
        model=trained,
        args=_arguments(model, config, data.per_step, seed, checkpoints),
        train_dataset=data,
        data_collator=lambda items: items[0],
        processing_class=tokenizer,
        callbacks=[
            KeepLastGood(checkpoints),
            steps := _Steps(evaluate, evaluate_at, scorer, stop_after),
            *(reporting.callbacks(config.report_to, out) if processes.is_first() else ()),
        ],
    )
    trainer.add_callback(Gradients(partial(trainer.meet, "not_finite"), lambda: trainer.leaves_out))
    show_progress(trainer, objective.label)
    trainer.objective, trainer.scorer, trainer.live, trainer.steps, trainer.out = objective, scorer, live, steps, out
    trainer.kl_limit, trainer.starts_as_reference = config.kl_limit, starts_as_reference
    trainer.watch = Watch(watch)
    trainer.collapse = guards.Collapse(watch.collapse_limit)
    reset_peak_memory(model.device)
    with ExitStack() as stack:
        stack.enter_context(memory.explained(size))
        if config.kernels == "compile":
            stack.enter_context(kernels.compiled(*(each for each in (model, live and live.model) if each is not None)))
        with resuming(resume_from):
            trainer.train(resume_from_checkpoint=resume_from)
    scorer.release(trained)
    if isinstance(trained, PeftModel):
        trained.merge_and_unload()
    model.eval()
    return _metrics(trainer.state.log_history, data.passes)


def clear_checkpoints(out: Path) -> None:
    """Delete what `train` keeps to resume from; to be called once the run's record is written."""
    shutil.rmtree(out / "checkpoints", ignore_errors=True)


class _PreferenceTrainer(sharding.ShardedTrainer):
    """The Trainer with an objective's loss, and its parts in the log. With several processes all see the loss of the whole batch."""

    objective: objectives.Objective
    scorer: Scorer
    live: _LiveReference | None
    steps: _Steps
    out: Path
    kl_limit: float | None
    starts_as_reference: bool
    watch: Watch
    collapse: guards.Collapse

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.model_accepts_loss_kwargs = False  # the loss is a mean: the Trainer divides it by the accumulation steps
        self._parts: list[dict[str, Tensor]] = []
        self._met: set[str] = set()  # guards that have warned since the last log
        self._lost = False  # whether a loss since the last log was none
        self._step = -1
        self.leaves_out = False  # whether this step's update is left out

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        microbatch = unpack(inputs)
        batches = gathered(self._batches(model, microbatch))
        self._last = inputs, _numbers(batches)
        if self.state.global_step != self._step:
            self._step, self.leaves_out = self.state.global_step, False
        noted = microbatch.sample_ref_logps
        if int(self.state.global_step) == 0 and self.starts_as_reference:
            reduced = self.accelerator.mixed_precision != "no" or self.model.dtype == torch.bfloat16
            self.meet("start", guards.differs_at_start(batches, reduced))
        try:
            terms = self.objective.term_values(batches)
        except objectives.ObjectiveError as error:
            if all(bool(torch.isfinite(tensor).all()) for tensor in self._last[1].values()):
                raise self._failure(str(error), inputs) from error
            return self._left_out(batches, str(error))
        loss = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(loss):
            return self._left_out(batches, f"the loss is {loss.item()}")
        kl = guards.kl_per_token(batches, None if noted is None else rows(noted))
        self.meet("kl", guards.beyond(kl, self.kl_limit))
        self.meet("collapse", self.collapse.found(batches))
        with torch.no_grad():
            parts = _statistics(self.objective, terms, batches)
            self._parts.append(parts | {f"kl_per_token/{source}": value for source, value in kl.items()})
        return loss

    def meet(self, guard: str, reason: str | None) -> None:
        """Stop, warn or do nothing about what was found in the last batch. Raises TrainingError."""
        if reason is None:
            return
        step, inputs = int(self.state.global_step) + 1, self._last[0]
        if self.watch.action(guard) == "stop":
            raise self._failure(reason, inputs, weights_are_good=guard == "not_finite" and "gradient" in reason)
        where = f"step {step} of {self.objective.label}: {reason}"
        if self.watch.meet(guard, where, lambda name: self._write_batch(name, reason)):
            self._met.add(guard)

    def _left_out(self, batches: Mapping[str, objectives.Batch], reason: str) -> Tensor:
        """Where an update is left out: a loss of 0 that hangs together with all weights, as a backward pass expects."""
        self.meet("not_finite", reason)
        self.leaves_out = self._lost = True
        connected = [
            tensor for batch in batches.values() for tensor in batch.tensors().values() if tensor.requires_grad
        ]
        return torch.stack([tensor.nan_to_num(0.0, 0.0, 0.0).sum() for tensor in connected]).sum() * 0

    def _batches(self, model: Any, microbatch: Microbatch) -> dict[str, objectives.Batch]:
        rows, roles = microbatch.rows, microbatch.roles
        needs = self.train_dataset.needs
        scores = self.scorer.score(model, rows, microbatch.top, collisions="log_collisions" in needs)
        ref_tokens = microbatch.ref_logps if self.live is None else self.live.logps(self.scorer, model, rows)
        logps, lengths = rows.by_sequence(scores.logps).sum(-1), rows.lengths
        ref_logps = None if ref_tokens is None else rows.by_sequence(ref_tokens).sum(-1)

        def reference(role: str) -> Tensor | None:
            return None if ref_logps is None else ref_logps[roles[role]]

        batches: dict[str, objectives.Batch] = {}
        if "pairs" in needs:
            chosen, rejected = roles["chosen"], roles["rejected"]
            pairs = batches["pairs"] = objectives.PairBatch(
                chosen_logps=logps[chosen],
                rejected_logps=logps[rejected],
                ref_chosen_logps=reference("chosen"),
                ref_rejected_logps=reference("rejected"),
                chosen_lengths=lengths[chosen],
                rejected_lengths=lengths[rejected],
                **_token_fields(needs, microbatch, scores, ref_tokens),
                **_reference_fields(microbatch, ref_logps),
            )
            if "mismatched" in roles and "unpaired" not in needs:
                batches["unpaired"] = replace(
                    pairs.as_unpaired(),
                    mismatched_logps=logps[roles["mismatched"]],
                    ref_mismatched_logps=reference("mismatched"),
                )
        if "candidates" in needs:
            assert microbatch.rewards is not None
            groups, shape = roles["candidates"], microbatch.rewards.shape
            ref_groups = reference("candidates")
            batches["candidates"] = objectives.CandidateBatch(
                logps=logps[groups].view(shape),
                ref_logps=None if ref_groups is None else ref_groups.view(shape),
                rewards=microbatch.rewards,
            )
        if "unpaired" in needs:
            assert microbatch.desirable is not None
            batches["unpaired"] = objectives.UnpairedBatch(
                logps=logps[roles["unpaired"]],
                desirable=microbatch.desirable,
                ref_logps=reference("unpaired"),
                mismatched_logps=logps[roles["mismatched"]] if "mismatched" in roles else None,
                ref_mismatched_logps=reference("mismatched") if "mismatched" in roles else None,
            )
        if "reference_samples" in needs:
            samples = roles["reference_samples"]
            batches["reference_samples"] = objectives.SampleBatch(
                logps=logps[samples],
                lengths=lengths[samples],
                token_kl=_summed_kl(microbatch, scores)[samples] if "reference_token_kl" in needs else None,
            )
        if "pretraining" in needs:
            texts = roles["pretraining"]
            batches["pretraining"] = objectives.SampleBatch(logps=logps[texts], lengths=lengths[texts])
        return batches

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._parts:
            names = list(self._parts[0])
            values = torch.stack([torch.stack([part[name].float() for name in names]) for part in self._parts]).mean(0)
            logs |= dict(zip(names, values.tolist(), strict=True))
            used = processes.gather((self.steps.cpu_seconds, float(peak_memory_bytes(self.args.device))))
            logs |= {
                "step_seconds": self.steps.seconds,
                "step_cpu_seconds": sum(seconds for seconds, _ in used),
                "peak_memory_bytes": max(size for _, size in used),
            }
            self._parts.clear()
        if "loss" in logs:
            logs |= {f"guard/{guard}": 1.0 for guard in sorted(self._met)}
            if self._lost:
                logs["loss"] = math.nan
            elif (
                "not_finite" not in self._met
                and not math.isfinite(logs.get("grad_norm", 0.0))
                and self.watch.action("not_finite") == "stop"
            ):
                reason = (
                    f"the gradient's norm is {logs['grad_norm']}"  # known only now where DeepSpeed has the gradients
                )
                raise self._failure(reason, self._last[0], weights_are_good=True, step=int(self.state.global_step))
            self._met.clear()
            self._lost = False
        super().log(logs, start_time)

    def _failure(
        self, reason: str, inputs: Mapping[str, Tensor], weights_are_good: bool = False, step: int | None = None
    ) -> TrainingError:
        """The error for a failed step; its batch is written, and of the checkpoints the last good one kept."""
        step = int(self.state.global_step) + 1 if step is None else step
        path = self._write_batch(saved_batches.FAILED, reason, step)
        processes.barrier()
        kept = keep_good_checkpoint(Path(self.args.output_dir), step + 1 if weights_are_good else step)
        return TrainingError(
            f"training stopped at step {step} of {self.objective.label}: {reason}. {kept}; {look(path)}. "
            "Lower training.learning_rate, or look at the objective's hyper-parameters"
        )

    def _write_batch(self, name: str, reason: str, step: int | None = None) -> Path:
        """Write the last batch: its ids and texts, and what policy and reference say of it."""
        inputs, numbers = self._last
        examples = self.train_dataset.examples(int(inputs["index"]))
        step = int(self.state.global_step) + 1 if step is None else step
        about = {"step": step, "objective": self.objective.label, "reason": reason}
        number = processes.rank()  # all processes see what was found, and each writes its own part of the batch
        out = self.out / f"process-{number}" if number else self.out
        return saved_batches.save_batch(out, {**inputs, **numbers}, examples, about, self.processing_class, name)


class _LiveReference:
    """A reference model kept beside the policy and run at every step: only to measure what precomputing saves."""

    def __init__(self, model: PreTrainedModel, config: TrainingConfig) -> None:
        self.model = None if config.lora else copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def logps(self, scorer: Scorer, policy: Any, rows: Rows) -> Tensor:
        """Log-probs of all completion tokens, (T,): of the copy, or of the policy with its adapters off."""
        with ExitStack() as stack:
            if self.model is None:
                stack.enter_context(policy.disable_adapter())
            stack.enter_context(autocast(rows.input_ids.device))
            return scorer.score(self.model or policy, rows).logps


class _Steps(TrainerCallback):  # type: ignore[misc]
    """Measures each step's time, without what happens between steps, and evaluates where asked."""

    def __init__(
        self, evaluate: Evaluate | None, at: Collection[int], scorer: Scorer, stop_after: int | None = None
    ) -> None:
        self.evaluate, self.at, self.scorer, self.stop_after = evaluate, frozenset(at), scorer, stop_after
        self.seconds = self.cpu_seconds = 0.0
        self._start = self._cpu_start = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._start, self._cpu_start = time.perf_counter(), time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if args.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds, self.cpu_seconds = time.perf_counter() - self._start, time.process_time() - self._cpu_start
        step = int(state.global_step)
        control.should_log |= control.should_save or step == state.max_steps  # a checkpoint's log must be whole
        control.should_training_stop |= step == self.stop_after
        if self.evaluate is not None and step in self.at:
            model.eval()  # the Trainer turns training mode on again at its next step
            self.scorer.release(model)
            with torch.random.fork_rng(), torch.compiler.set_stance("force_eager"):
                self.evaluate(model, step)


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory used so far, or since `reset_peak_memory`: of the GPU where there is one, else of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:  # ru_maxrss may hold the parent's peak from before this process was started, and cannot be reset
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError, ValueError):
        unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory_bytes` count from now on, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _arguments(
    model: PreTrainedModel, config: TrainingConfig, per_step: int, seed: int, folder: Path
) -> TrainingArguments:
    device = model.device.type
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=config.steps,
        per_device_train_batch_size=1,  # one item is one microbatch
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant_with_warmup" if config.schedule == "constant" else config.schedule,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim="adamw_torch_fused",
        bf16=device == "cuda",
        train_sampling_strategy="sequential",  # the data set is already in its order
        remove_unused_columns=False,
        dataloader_pin_memory=device == "cuda",
        logging_steps=config.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="steps" if config.save_every else "no",
        save_steps=config.save_every or 500,
        ddp_find_unused_parameters=False,  # every weight has a part in every loss
        report_to=reporting.passed_on(config.report_to) or "none",
        use_liger_kernel=config.kernels == "liger",
        liger_kernel_config=kernels.LIGER,
        seed=seed,
        gradient_accumulation_steps=per_step // processes.size(),
        use_cpu=device == "cpu",
        **sharding.arguments(config.sharding),
    )


def _check_lengths(model: PreTrainedModel, data: Microbatches) -> None:
    """Every example must fit into the model's context and have tokens to predict."""
    limit, vocabulary = context_length(model), int(model.config.vocab_size)
    examples = [
        *((f"pair {i}", p.prompt_ids, c) for i, p in enumerate(data.bounding) for c in (p.chosen_ids, p.rejected_ids)),
        *(
            (f"candidates {i}", s.prompt_ids, s.completion_ids)
            for i, group in enumerate(data.bounding_candidates)
            for s in group
        ),
        *((f"unpaired example {i}", s.prompt_ids, s.completion_ids) for i, s in enumerate(data.bounding_unpaired)),
        *((f"reference sample {i}", s.prompt_ids, s.completion_ids) for i, s in enumerate(data.samples)),
        *((f"pretraining text {i}", text[:1], text[1:]) for i, text in enumerate(data.texts)),
    ]
    for name, prompt, completion in examples:
        if not len(prompt) or not len(completion):
            raise TrainingError(f"{name} has an empty {'completion' if len(prompt) else 'prompt'}: remove it")
        if len(prompt) + len(completion) > limit:
            raise TrainingError(
                f"{name} has {len(prompt)} prompt and {len(completion)} completion tokens, but the model's context is {limit}: "
                "shorten it or remove it"
            )
        if max(*prompt, *completion) >= vocabulary:
            raise TrainingError(
                f"{name} has a token id beyond the model's vocabulary of {vocabulary}: another tokenizer's?"
            )


def _numbers(batches: Mapping[str, objectives.Batch]) -> dict[str, Tensor]:
    """What losses see, by source and field, without gradients."""
    return {
        f"{source}/{name}": tensor.detach()
        for source, batch in batches.items()
        for name, tensor in batch.tensors().items()
    }


def _token_fields(
    needs: frozenset[str], microbatch: Microbatch, scores: TokenScores, ref_tokens: Tensor | None
) -> dict[str, Tensor]:
    """What objectives on single tokens look at, by field of the pairs' batch."""
    rows = microbatch.rows
    fields: dict[str, Tensor] = {}
    for side in ("chosen", "rejected"):
        role = microbatch.roles[side]
        if "token_logps" in needs:
            fields |= {f"{side}_token_logps": rows.by_sequence(scores.logps)[role], f"{side}_mask": rows.mask[role]}
        if "ref_token_logps" in needs:
            assert ref_tokens is not None
            fields[f"ref_{side}_token_logps"] = rows.by_sequence(ref_tokens)[role]
        if "token_kl" in needs:
            fields[f"{side}_token_kl"] = _summed_kl(microbatch, scores)[role]
        if scores.log_collisions is not None:
            fields[f"{side}_log_collisions"] = rows.by_sequence(scores.log_collisions)[role]
    return fields


def _reference_fields(microbatch: Microbatch, ref_logps: Tensor | None) -> dict[str, Tensor]:
    """Log-probs of the pairs under every reference, (N, K), the first being the main one; nothing where there is but one."""
    if microbatch.other_ref_logps is None:
        return {}
    others = [microbatch.rows.by_sequence(tokens).sum(-1) for tokens in microbatch.other_ref_logps]
    assert ref_logps is not None
    every = torch.stack([ref_logps, *others], dim=-1)
    return {f"{side}_reference_logps": every[microbatch.roles[side]] for side in ("chosen", "rejected")}


def _summed_kl(microbatch: Microbatch, scores: TokenScores) -> Tensor:
    """Each sequence's sum of KLs along its tokens; 0 where no reference distributions are stored."""
    without = scores.kl.new_zeros(len(scores.logps) - len(scores.kl))
    return microbatch.rows.by_sequence(torch.cat([without, scores.kl])).sum(-1)


def _statistics(
    objective: objectives.Objective, terms: Mapping[str, Tensor], batches: Mapping[str, objectives.Batch]
) -> dict[str, Tensor]:
    """What is logged of one microbatch besides its loss."""
    values = {f"loss/{name}": value.detach() for name, value in terms.items()}
    pairs = batches.get("pairs")
    if isinstance(pairs, objectives.PairBatch):
        plain = pairs.chosen_logps - pairs.rejected_logps
        values |= {
            "plain_margin": plain.mean(),
            "plain_accuracy": (plain > 0).float().mean(),
            "chosen_logps": pairs.chosen_logps.mean(),
            "rejected_logps": pairs.rejected_logps.mean(),
        }
        if pairs.ref_chosen_logps is not None and pairs.ref_rejected_logps is not None:
            margin = plain - (pairs.ref_chosen_logps - pairs.ref_rejected_logps)
            values |= {
                "margin": margin.mean(),
                "accuracy": (margin > 0).float().mean(),
                "chosen_log_ratio": (pairs.chosen_logps - pairs.ref_chosen_logps).mean(),
                "rejected_log_ratio": (pairs.rejected_logps - pairs.ref_rejected_logps).mean(),
            }
        for term in objective.terms:
            if isinstance(term, objectives.PairTerm) and term.link is not None and term.link.slope_plus == 0:
                argument = term.argument(pairs)
                flat = argument.abs() if term.link.slope_minus == 0 else argument  # a logistic is flat on one side only
                values["saturated_share"] = (flat > SATURATED).float().mean()
    return values


def _metrics(history: Sequence[Mapping[str, float]], passes: Mapping[str, float]) -> pd.DataFrame:
    rows = [
        (int(entry["step"]), name, float(value))
        for entry in history
        if "loss" in entry
        for name, value in sorted(entry.items())
        if name not in ("step", "epoch")
    ]
    last = max((step for step, _, _ in rows), default=0)
    rows += [(last, f"passes/{source}", value) for source, value in passes.items()]
    return pd.DataFrame(rows, columns=["step", "name", "value"])


def disable_dropout(model: PreTrainedModel) -> None:
    """Policy and reference must be the same function at the start, so the model's own dropout is off."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout", "hidden_dropout", "resid_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def with_adapters(model: PreTrainedModel, config: LoRAConfig, seed: int) -> PeftModel:
    """The model with fresh adapters, which alone are trained; with them off it is what it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(
            model,
            LoraConfig(
                r=config.rank,
                lora_alpha=config.alpha,
                lora_dropout=config.dropout,
                target_modules=config.targets if config.targets == "all-linear" else config.targets.split(","),
                task_type="CAUSAL_LM",
            ),
        )


def _identity(
    objective: objectives.Objective, data: Microbatches, config: TrainingConfig, seeds: Sequence[int | None]
) -> str:
    """What a checkpoint belongs to: objective, data in their order, settings, seed."""
    sources: dict[str, Callable[[], Any]] = {
        "pairs": lambda: [(p.prompt_ids, p.chosen_ids, p.rejected_ids) for p in data.pairs],
        "candidates": lambda: [
            [(s.prompt_ids, s.completion_ids, s.reward) for s in group] for group in data.candidates
        ],
        "unpaired": lambda: [(s.prompt_ids, s.completion_ids, s.reward) for s in data.unpaired],
        "reference_samples": lambda: [(s.prompt_ids, s.completion_ids) for s in data.samples],
        "pretraining": lambda: [tuple(text) for text in data.texts],
    }
    stored = {name: getattr(getattr(data, name, None), "fingerprint", None) for name in sources}
    used = {source: stored[source] or sources[source]() for source in sorted(data.order)}
    keys = [reference.key for reference in (data.reference, *data.references) if reference is not None]
    return fingerprint([objective.label, used, config.decisive, list(seeds), keys])


def _resumable(folder: Path, identity: str) -> str | None:
    """The newest whole checkpoint in `folder`; its mark is written if there is none yet."""
    mark = folder / "training.json"
    if mark.is_file() and last_checkpoint(folder):
        try:
            found = read_object(mark).get("identity")
        except (OSError, ValueError) as error:
            raise TrainingError(f"{mark}: damaged ({error}); delete {folder} to train from the beginning") from error
        if found != identity:
            raise TrainingError(
                f"{folder} holds checkpoints of another training (other objective, data, settings or seed): "
                "delete it, or choose another folder"
            )
    else:
        atomic_write(mark, json.dumps({"identity": identity}).encode())
    return last_checkpoint(folder)

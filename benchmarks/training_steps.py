"""One training of a few steps, by this project or by trl: same model, same pairs, same loss. See `training` for what is made of it."""

from __future__ import annotations

import gc
import os
import tempfile
import time
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, TrainerCallback
from transformers.utils import is_liger_kernel_available

import objectives
from benchmarks.own_process import EndedEarly, in_a_process
from llm_runs.config import ReferenceConfig, TrainingConfig
from llm_runs.errors import InputError
from llm_runs.examples import TokenPair, TokenSample
from llm_runs.models import tiny_random
from llm_runs.reference import ReferenceLogps, compute
from llm_runs.training import peak_memory_bytes, reset_peak_memory, train

# 28.3M parameters on a CPU, of which the tied vocabulary head is two thirds; 1.24B (Llama 3.2 1B's shape) on a GPU.
MODELS = {
    "cpu": {
        "vocab_size": 49152,
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
    },
    "cuda": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}
PAIRS = {"cpu": 4, "cuda": 8}

TRL = {  # trl's three baselines: settings of DPOConfig
    "trl dpo, its default": {"gradient_checkpointing": True},
    "trl dpo, no recomputation": {"gradient_checkpointing": False},
    "trl dpo, no recomputation, precomputed reference": {
        "gradient_checkpointing": False,
        "precompute_ref_log_probs": True,
    },
}
BASELINE = "trl dpo, no recomputation"
OURS: dict[str, dict[str, Any]] = {  # objective, and settings of the training
    "dpo, precomputed reference": {"objective": "dpo(beta=0.1)"},
    "dpo, precomputed reference, prompts not shared": {"objective": "dpo(beta=0.1)", "share_prompt": False},
    "dpo, live reference": {"objective": "dpo(beta=0.1)", "reference": "live"},
    "maxpo, pairs as reference samples": {"objective": "maxpo(beta=0.1, temperature=20)", "reference_samples": "pairs"},
    "maxpo, reference samples of its own": {"objective": "maxpo(beta=0.1, temperature=20)"},
}
MAXPO = "maxpo, pairs as reference samples"
COMPILED = f"{MAXPO}, compiled layers"
FUSED = f"{MAXPO}, Liger-Kernel's layers"
ON_GPU = {
    COMPILED: {**OURS[MAXPO], "kernels": "compile"},
    FUSED: {**OURS[MAXPO], "kernels": "liger"},  # last: it stays in transformers' functions
}
LEARNING_RATE = {"cpu": 1e-4, "cuda": 1e-7}  # the loss must move, but not to zero


@dataclass(frozen=True)
class Case:
    """One measurement's shape."""

    device: str
    prompt: int
    completion: int
    pairs: int
    hidden: int | None = None  # None: the device's model

    def model(self) -> PreTrainedModel:
        """The model, the same at every call."""
        shape = dict(MODELS[self.device])
        if self.hidden is not None:
            heads = max(1, self.hidden // 64)
            shape |= {
                "hidden_size": self.hidden,
                "intermediate_size": 8 * self.hidden // 3,
                "num_attention_heads": heads,
            }
            shape |= {"num_key_value_heads": heads}
        torch.manual_seed(0)
        config = LlamaConfig(
            **shape, tie_word_embeddings=True, max_position_embeddings=2**17, bos_token_id=1, eos_token_id=2
        )
        with torch.device(self.device):
            return LlamaForCausalLM(config)

    def data(self) -> tuple[list[TokenPair], list[TokenSample]]:
        """Pairs of random tokens, and as many completions for the KL term, each of a prompt of its own."""
        generator = torch.Generator().manual_seed(1)
        vocabulary = MODELS[self.device]["vocab_size"]

        def tokens(count: int) -> tuple[int, ...]:
            return tuple(torch.randint(3, vocabulary, (count,), generator=generator).tolist())

        pairs = [
            TokenPair(*(tokens(n) for n in (self.prompt, self.completion, self.completion))) for _ in range(self.pairs)
        ]
        return pairs, [TokenSample(tokens(self.prompt), tokens(self.completion)) for _ in range(self.pairs)]


@dataclass(frozen=True)
class Measured:
    """Steps of one variant: the first, which warms up, is left out of `seconds`."""

    seconds: list[float]  # CPU time of the process, or wall time on a GPU
    losses: list[float]
    added_bytes: int  # peak memory of training, above the loaded model's
    peak_bytes: int


def measure_ours(case: Case, variant: str, steps: int, **settings: Any) -> Measured:
    """Train with this project."""
    options = {**OURS, **ON_GPU}[variant] | settings
    objective = objectives.parse(options.pop("objective"))
    model, (pairs, samples) = case.model(), case.data()
    stored: ReferenceLogps | None = None
    if "ref_logps" in objective.needs and options.get("reference") != "live":
        with torch.no_grad():
            stored = compute(model, tiny_random(["a"], vocabulary=300)[1], pairs, [], ReferenceConfig(batch_size=2))
    config = TrainingConfig(
        steps=steps,
        batch_size=case.pairs,
        reference_batch_size=case.pairs,
        learning_rate=LEARNING_RATE[case.device],
        warmup_steps=0,
        **options,
    )
    before = _loaded(model)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="each reference sample is used")
        metrics = train(
            model,
            objective,
            pairs,
            reference=stored,
            reference_samples=samples,
            config=config,
            seed=0,
            out=Path(folder),
        )
    table = metrics.pivot(index="step", columns="name", values="value")
    clock = "step_cpu_seconds" if case.device == "cpu" else "step_seconds"
    peak = peak_memory_bytes(model.device)
    return Measured(table[clock].tolist()[1:], table["loss"].tolist(), peak - before, peak)


def measure_trl(case: Case, variant: str, steps: int) -> Measured:
    """Train with trl on the same pairs, already in token ids."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    model, (pairs, _) = case.model(), case.data()
    texts = {"prompt": ["a"] * len(pairs), "chosen": ["b"] * len(pairs), "rejected": ["c"] * len(pairs)}
    watch = _Watch(case.device)
    with tempfile.TemporaryDirectory() as folder:
        arguments = DPOConfig(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=case.pairs,
            learning_rate=LEARNING_RATE[case.device],
            lr_scheduler_type="constant",
            beta=0.1,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            use_cpu=case.device == "cpu",
            bf16=case.device == "cuda",
            optim="adamw_torch_fused",
            max_length=None,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            seed=0,
            **TRL[variant],
        )
        tokenizer = tiny_random(["a b c"], vocabulary=300)[1]
        before = _loaded(model)
        trainer = _prepared(DPOTrainer, pairs)(
            model=model,
            ref_model=None if arguments.precompute_ref_log_probs else case.model(),
            args=arguments,
            train_dataset=Dataset.from_dict(texts),
            processing_class=tokenizer,
            callbacks=[watch],
        )
        trainer.train()
    peak = peak_memory_bytes(model.device)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return Measured(watch.seconds[1:], losses, peak - before, peak)


def _prepared(trainer: type[Any], pairs: Sequence[TokenPair]) -> type[Any]:
    """trl's trainer with its tokenisation left out: its data are these ids."""
    from datasets import Dataset

    class Prepared(trainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *arguments: Any, **named: Any) -> Any:
            columns = {"prompt_ids": "prompt_ids", "chosen_ids": "chosen_ids", "rejected_ids": "rejected_ids"}
            return Dataset.from_dict(
                {name: [list(getattr(p, field)) for p in pairs] for name, field in columns.items()}
            )

    return Prepared


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Times steps as `llm_runs.training` does."""

    def __init__(self, device: str) -> None:
        self.device, self.seconds, self._start = device, [], 0.0

    def _now(self) -> float:
        if self.device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def on_step_begin(self, *arguments: Any, **named: Any) -> None:
        self._start = self._now()

    def on_step_end(self, *arguments: Any, **named: Any) -> None:
        self.seconds.append(self._now() - self._start)


def _loaded(model: PreTrainedModel) -> int:
    """Bytes in use now; peaks count from here."""
    if model.device.type == "cuda":
        gc.collect()  # trainers hold themselves: what the last measurement left is in use until then
        torch.cuda.empty_cache()
    reset_peak_memory(model.device)
    return peak_memory_bytes(model.device)


def variants_on(device: str) -> list[str]:
    """All that can be measured there."""
    extra = [name for name in ON_GPU if name != FUSED or is_liger_kernel_available()] if device == "cuda" else []
    return [*TRL, *OURS, *extra]


def measure(case: Case, variant: str, steps: int) -> Measured:
    """One variant, of trl or of this project."""
    return (measure_trl if variant in TRL else measure_ours)(case, variant, steps)


def measure_or_fail(case: Case, variant: str, steps: int) -> Measured | str:
    """`measure`, or why it failed: on a CPU in a process of its own, so that memory is its own (a GPU's is counted by torch)."""
    return _in_a_process(case, variant, steps) if case.device == "cpu" else _measured(case, variant, steps)


def _measured(case: Case, variant: str, steps: int) -> Measured | str:
    try:
        return measure(case, variant, steps)
    except (RuntimeError, InputError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _in_a_process(case: Case, variant: str, steps: int) -> Measured | str:
    try:
        found: Measured | str = in_a_process(
            _silently, case, variant, steps, libraries=["benchmarks.training_steps", "datasets", "trl"]
        )
    except EndedEarly as error:
        return str(error)
    return found


def _silently(case: Case, variant: str, steps: int) -> Measured | str:
    """Without what the trainers print."""
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        return _measured(case, variant, steps)

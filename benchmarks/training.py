"""What a training step costs, against trl's DPOTrainer: same model, same pairs, same loss, in one run.

    python -m benchmarks training --out results/                all of the CPU part (about 15 minutes of two quiet cores)
    python -m benchmarks training --out results/ --parts steps  only the ratios with their targets
    python -m benchmarks training --out results/ --device cuda  the same on a GPU, with a Llama of the 1B class in bfloat16

Steps are whole steps of both trainers (forward, backward, AdamW), in turn within one process; the cost is CPU time of the process on a CPU
(shared cores make wall times useless), wall time on a GPU, and each ratio is that of the medians. Peak memory is
measured in a process of its own for each variant on a CPU, by torch's allocator on a GPU: what a step adds to the loaded model, and in
total. On a GPU the longest sequences are tried out too. Needs the extra `peer`.
"""

from __future__ import annotations

import argparse
import gc
import json
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import pandas as pd
import torch
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, TrainerCallback
from transformers.utils import is_liger_kernel_available

import objectives
from analysis.records import write_run
from llm_runs.config import ReferenceConfig, TrainingConfig
from llm_runs.errors import InputError
from llm_runs.examples import TokenPair, TokenSample
from llm_runs.logprobs import exact_kl
from llm_runs.models import tiny_random
from llm_runs.packing import pack
from llm_runs.reference import ReferenceLogps, compute
from llm_runs.training import peak_memory_bytes, reset_peak_memory, train
from llm_runs.vocabulary_head import Head

T = TypeVar("T", bound=tuple[Any, ...])

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
SIZES = {"cpu": (192, 384, 576), "cuda": (1024, 2048)}  # hidden units, for the cost against model size
LENGTHS = (256, 512, 1024, 2048, 4096)
PAIRS = {"cpu": 4, "cuda": 8}
SHAPES = ((128, 128), (204, 52))  # prompt and completion tokens
GPU_SCALE = 4  # the same shapes, so many times longer, on a GPU
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # dense bfloat16, from the vendor's data sheets

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
# (variant, least ratio of the baseline's time to its own, for each shape)
TARGETS = {
    "cpu": {MAXPO: (4.0, 6.5), "dpo, precomputed reference": (3.8, 5.5)},
    "cuda": {MAXPO: (1.6, 2.0), COMPILED: (1.6, 2.0)},
}
MEMORY_TARGET = 0.5  # of the baseline's
FLOOR_TARGET, MFU_TARGET = 0.9, 0.45
# Of losses of about 0.7. In bfloat16 the log-probs of a thousand tokens are rounded by half a nat, differently in each kernel.
AGREEMENT = {"cpu": 1e-4, "cuda": 0.1}
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


def measure(case: Case, variant: str, steps: int) -> Measured:
    """One variant, of trl or of this project."""
    return (measure_trl if variant in TRL else measure_ours)(case, variant, steps)


def measure_or_fail(case: Case, variant: str, steps: int) -> Measured | str:
    """`measure`, or why it failed: on a CPU in a fresh process, so that memory is its own (a GPU's is counted by torch)."""
    if case.device == "cpu":
        return in_a_process(case, variant, steps)
    try:
        return measure(case, variant, steps)
    except (RuntimeError, InputError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def in_a_process(case: Case, variant: str, steps: int) -> Measured | str:
    """`measure` in a fresh process, so that memory is its own; the error's last line where it fails."""
    call = [sys.executable, "-m", "benchmarks.training", "--worker", json.dumps([asdict(case), variant, steps])]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return Measured(**json.loads(done.stdout.strip().splitlines()[-1]))


# -- the parts ---------------------------------------------------------------------------------------------------


def steps_table(device: str, rounds: int, steps: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Seconds of every step: variants take turns within this process. Columns shape, variant, round, step, seconds, loss.

    Second table: peak memory of the same trainings, as in `memory_table`; it means something on a GPU only.
    """
    rows: list[tuple[Any, ...]] = []
    peaks = []
    cases = _cases(device)
    variants = [name for name in variants_on(device) if name != FUSED]
    todo = [(case, turn, variant) for case in cases for turn in range(rounds) for variant in variants]
    todo.sort(key=lambda each: each[2] in ON_GPU)  # compiling takes a minute
    if FUSED in variants_on(device):
        todo += [(case, turn, FUSED) for case in cases for turn in range(rounds)]
    for case, turn, variant in _until_interrupted(todo, "steps", "training"):
        measured = measure(case, variant, steps)
        _check_agreement(case, variant, measured, rows)
        times = [float("nan"), *measured.seconds]
        rows += [
            (_shape(case), variant, turn, step, seconds, loss)
            for step, (seconds, loss) in enumerate(zip(times, measured.losses, strict=True), start=1)
        ]
        peaks.append((_shape(case), variant, measured.added_bytes, measured.peak_bytes))
    memory = pd.DataFrame(peaks, columns=["shape", "variant", "added_bytes", "peak_bytes"])
    memory = memory.groupby(["shape", "variant"], sort=False, as_index=False).max()
    return pd.DataFrame(rows, columns=["shape", "variant", "round", "step", "seconds", "loss"]), memory


def _until_interrupted(todo: Sequence[T], what: str, unit: str) -> Iterator[T]:
    """The measurements to make, with a progress bar. Interrupted, those made so far are all there are."""
    began = time.monotonic()
    for place, each in enumerate(tqdm(todo, desc=what, unit=unit, disable=None)):
        if _Stop.asked:
            print(f"{what}: interrupted; {place} of {len(todo)} are measured", file=sys.stderr)
            return
        yield each
        print(f"{time.monotonic() - began:7.1f} s  {each[-1]}", file=sys.stderr)


class _Stop:
    """Whether this process was asked to end: it does so after the measurement under way, and keeps what it has."""

    asked = False

    @classmethod
    def listen(cls) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, cls.ask)

    @classmethod
    def ask(cls, number: int, _: Any) -> None:
        if cls.asked:  # the second time at once
            raise KeyboardInterrupt
        cls.asked = True


def _check_agreement(case: Case, variant: str, measured: Measured, rows: Sequence[tuple[Any, ...]]) -> None:
    """All of dpo's variants, trl's and ours, must have the same losses at every step; so must maxpo's be those of one computation."""
    for shape, other, _, step, _, loss in rows:
        same = "dpo" in variant and "dpo" in other
        if shape == _shape(case) and (same or other == variant) and step <= len(measured.losses):
            found = measured.losses[step - 1]
            if abs(found - loss) > AGREEMENT[case.device]:
                raise SystemExit(f"error: {variant} has loss {found} at step {step} of {shape}, but {other} has {loss}")


def variants_on(device: str) -> list[str]:
    """All that can be measured there."""
    extra = [name for name in ON_GPU if name != FUSED or is_liger_kernel_available()] if device == "cuda" else []
    return [*TRL, *OURS, *extra]


def memory_table(device: str) -> pd.DataFrame:
    """Peak memory of two steps, each variant in a process of its own. Columns shape, variant, added_bytes, peak_bytes."""
    rows = []
    pairs = [(case, variant) for case in _cases(device) for variant in (*TRL, *OURS)]
    for case, variant in tqdm(pairs, desc="memory", unit="process", disable=None):
        measured = in_a_process(case, variant, 2)
        if isinstance(measured, str):
            raise SystemExit(f"error: {variant} at {_shape(case)}: {measured}")
        rows.append((_shape(case), variant, measured.added_bytes, measured.peak_bytes))
    return pd.DataFrame(rows, columns=["shape", "variant", "added_bytes", "peak_bytes"])


def cost_table(device: str, lengths: Sequence[int]) -> pd.DataFrame:
    """Cost of a step (median of all but the first) against length, pairs and hidden units; where a variant fails, its error.

    Columns against, at, variant, seconds, added_bytes, error.
    """
    cases = [("length", n, Case(device, n // 2, n // 2, 1)) for n in lengths]
    cases += [("pairs", n, Case(device, 128, 128, n)) for n in (1, 2, 4, 8)]
    cases += [("hidden", n, Case(device, 128, 128, 2, n)) for n in SIZES[device]]
    variants = [BASELINE, MAXPO]
    if device == "cpu":
        variants[1:1] = ["dpo, precomputed reference", "dpo, live reference"]
    rows: list[tuple[Any, ...]] = []
    todo = [(against, at, case, variant) for against, at, case in cases for variant in variants]
    for against, at, case, variant in _until_interrupted(todo, "cost", "training"):
        measured = measure_or_fail(case, variant, 2 if device == "cpu" else 4)
        if isinstance(measured, str):
            rows.append((against, at, variant, float("nan"), float("nan"), measured))
        else:
            rows.append((against, at, variant, median(measured.seconds), measured.added_bytes, ""))
    return pd.DataFrame(rows, columns=["against", "at", "variant", "seconds", "added_bytes", "error"])


def longest_table(cost: pd.DataFrame, limit: float) -> pd.DataFrame:
    """Tokens of prompt and completion (one pair, half and half) whose step adds `limit` bytes, between or beyond the measured lengths.

    An estimate: added memory is interpolated linearly in the length, with the last slope beyond the longest. Columns variant, tokens.
    """
    rows = []
    for variant, group in cost[cost["against"] == "length"].dropna(subset="added_bytes").groupby("variant"):
        points = group.sort_values("at")
        lengths, sizes = points["at"].tolist(), points["added_bytes"].tolist()
        upper = next((i for i, size in enumerate(sizes) if size > limit), len(sizes) - 1)
        upper = max(upper, 1)
        slope = (sizes[upper] - sizes[upper - 1]) / (lengths[upper] - lengths[upper - 1])
        rows.append((variant, lengths[upper - 1] + (limit - sizes[upper - 1]) / slope))
    return pd.DataFrame(rows, columns=["variant", "tokens"])


def fits_table(longest: pd.DataFrame) -> pd.DataFrame:
    """Whether lengths a tenth below and above the estimates of `longest_table` do fit. Columns variant, tokens, fits, added_bytes."""
    rows = []
    for variant, tokens in longest.itertuples(index=False):
        for share in (0.9, 1.1):
            half = int(share * tokens / 2)
            measured = measure_or_fail(Case("cuda", half, half, 1), variant, 2)
            failed = isinstance(measured, str)
            if failed and "memory" not in measured:
                raise SystemExit(f"error: {variant} at {2 * half} tokens: {measured}")
            rows.append((variant, 2 * half, not failed, float("nan") if failed else measured.added_bytes))
    return pd.DataFrame(rows, columns=["variant", "tokens", "fits", "added_bytes"])


def kl_table() -> pd.DataFrame:
    """Error of the full-token KL from K stored tokens against the exact sum. Columns k, exact, stored, relative_error.

    Next-token distributions over the vocabulary with normal logits of deviation 4 (entropy about 3 nats), the policy's with noise added.
    """
    generator = torch.Generator().manual_seed(0)
    vocabulary, width, tokens = MODELS["cpu"]["vocab_size"], 64, 64
    weight = torch.randn(vocabulary, width, generator=generator)
    states = torch.randn(2, tokens, width, generator=generator) * 4 / width**0.5
    states[1] = states[0] + 0.1 * states[1]
    linear = torch.nn.Linear(width, vocabulary, bias=False)
    linear.weight.data = weight
    head = Head(linear)
    with torch.no_grad():
        p, q = (linear(each)[None] for each in states)
        exact = float(exact_kl(p, q, torch.ones(1, tokens, dtype=torch.bool)))
        rows = []
        for k in (1, 4, 16, 64, 256, 1024, 4096):
            top = head.top_tokens(states[0], k)
            stored = float(head.scores(states[1], top.ids[:, 0], top).kl.double().sum())
            rows.append((k, exact, stored, (exact - stored) / exact))
    return pd.DataFrame(rows, columns=["k", "exact", "stored", "relative_error"])


def padding_table() -> pd.DataFrame:
    """Tokens through the body for pairs of uneven lengths (16 to 256 tokens each part). Columns layout, tokens, padding."""
    generator = torch.Generator().manual_seed(0)
    sequences = []
    for i in range(16):
        prompt, *completions = torch.randint(16, 257, (3,), generator=generator).tolist()
        sequences += [((i + 1,) * prompt, (c + 1,) * length) for c, length in enumerate(completions)]
    rows = []
    for layout, share in (("one sequence a row", False), ("prompts shared, rows filled", True)):
        packed = pack(sequences, share)
        rows.append((layout, packed.input_ids.numel(), packed.padding()))
    return pd.DataFrame(rows, columns=["layout", "tokens", "padding"])


# -- what is printed ---------------------------------------------------------------------------------------------


def ratios(device: str, steps: pd.DataFrame, memory: pd.DataFrame | None) -> pd.DataFrame:
    """Each variant against the baseline. Columns shape, variant, quantity, value, target (NaN: none)."""
    rows: list[tuple[str, str, str, float, float]] = []
    medians = steps.groupby(["shape", "variant"])["seconds"].median()
    for index, case in enumerate(_cases(device)):
        shape = _shape(case)
        if (shape, BASELINE) not in medians:
            continue  # interrupted
        for variant in (name for name in variants_on(device) if (shape, name) in medians):
            target = TARGETS[device].get(variant)
            value = medians[shape, BASELINE] / medians[shape, variant]
            rows.append((shape, variant, "times as fast", value, target[index] if target else float("nan")))
            if memory is not None:
                sizes = memory[memory["shape"] == shape].set_index("variant")
                wanted = MEMORY_TARGET if target else float("nan")
                for column in ("added_bytes", "peak_bytes"):
                    share = sizes.loc[variant, column] / sizes.loc[BASELINE, column]
                    rows.append((shape, variant, f"share of {column.replace('_', ' ')}", share, wanted))
        live = "dpo, live reference"
        if not {(shape, BASELINE), (shape, live), (shape, MAXPO)} <= set(medians.index):
            continue  # interrupted
        rows.append(
            (shape, MAXPO, f"times as fast as our {live}", medians[shape, live] / medians[shape, MAXPO], float("nan"))
        )
        if device == "cuda":
            flops = _floor(case, live=False)
            floor = _floor(case, live=True, shared=False) / flops
            name = torch.cuda.get_device_name()
            peak = next((value for key, value in PEAK_FLOPS.items() if key in name), None)
            for variant in (name for name in (MAXPO, COMPILED) if (shape, name) in medians):
                reached = medians[shape, BASELINE] / medians[shape, variant] / floor
                rows.append((shape, variant, "share of the floor's ratio", reached, FLOOR_TARGET))
                if peak is not None:
                    used = flops / medians[shape, variant] / peak
                    target = MFU_TARGET if variant == COMPILED else float("nan")
                    rows.append((shape, variant, "model-FLOPs utilisation", used, target))
    return pd.DataFrame(rows, columns=["shape", "variant", "quantity", "value", "target"])


def _floor(case: Case, *, live: bool, shared: bool = True) -> float:
    """Least FLOPs of a step: two per parameter and token forward, twice that backward, and a forward of a live reference."""
    with torch.device("meta"):
        shape = LlamaForCausalLM(LlamaConfig(**MODELS[case.device], tie_word_embeddings=True))
    head = shape.config.vocab_size * shape.config.hidden_size
    body = sum(p.numel() for p in shape.parameters()) - head
    tokens = case.prompt + 2 * case.completion if shared else 2 * (case.prompt + case.completion)
    return 2 * case.pairs * (tokens * body + 2 * case.completion * head) * (4 if live else 3)


def _weights(device: str) -> int:
    """Bytes of the model's weights."""
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**MODELS[device], tie_word_embeddings=True))
    return sum(p.numel() * p.element_size() for p in model.parameters())


def plot_cost(cost: pd.DataFrame, path: Path, unit: str) -> None:
    """Seconds and memory of a step against length, pairs and hidden units."""
    import matplotlib.pyplot as plt

    names = {
        "length": "tokens of a sequence (1 pair)",
        "pairs": "pairs of 256 tokens",
        "hidden": "hidden units (2 pairs)",
    }
    figure, axes = plt.subplots(2, len(names), figsize=(11, 6), layout="constrained")
    for column, (against, label) in enumerate(names.items()):
        for row, (field, title, scale) in enumerate(
            (("seconds", unit, 1), ("added_bytes", "memory of a step [GB]", 1e9))
        ):
            axis = axes[row, column]
            for variant, group in cost[cost["against"] == against].groupby("variant", sort=False):
                axis.plot(group["at"], group[field] / scale, marker="o", label=variant)
            axis.set(xscale="log", yscale="log", xlabel=label, ylabel=title if column == 0 else "")
            ticks = sorted(cost.loc[cost["against"] == against, "at"].unique())
            axis.set_xticks(ticks, [str(tick) for tick in ticks])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _cases(device: str) -> list[Case]:
    scale = 1 if device == "cpu" else GPU_SCALE
    return [Case(device, scale * p, scale * c, PAIRS[device]) for p, c in SHAPES]


def _shape(case: Case) -> str:
    return f"{case.prompt}:{case.completion}"


def main(given: list[str] | None = None) -> int:
    """Measure, print every ratio beside its target, write records and plots; 1 if a target is missed."""
    if given is None:
        given = sys.argv[1:]
    if given[:1] == ["--worker"]:
        case, variant, steps = json.loads(given[1])
        print(json.dumps(asdict(measure(Case(**case), variant, steps))))
        return 0
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="python -m benchmarks training"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the record and the plots")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parts = ("steps", "memory", "cost", "kl", "padding")
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--rounds", type=int, default=2, help="turns of all variants")
    parser.add_argument("--steps", type=int, default=3, help="steps of a training, of which the first is not counted")
    parser.add_argument("--longest", type=int, default=4096, help="longest sequence of the cost against length")
    parser.add_argument(
        "--limit", type=float, default=2.0, help="on a CPU: GB that a step may add, for the longest sequence that fits"
    )
    arguments = parser.parse_args(given)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("error: --device cuda, but this machine has no GPU that torch can use", file=sys.stderr)
        return 2
    if arguments.steps < 2 or arguments.rounds < 1:
        print("error: --steps must be at least 2 (the first is not counted) and --rounds at least 1", file=sys.stderr)
        return 2
    tables: dict[str, pd.DataFrame] = {}
    device = arguments.device
    _Stop.listen()
    if "kl" in arguments.parts:
        tables["kl"] = kl_table()
    if "padding" in arguments.parts:
        tables["padding"] = padding_table()
    if "memory" in arguments.parts and device == "cpu":
        tables["memory"] = memory_table(device)
    if "steps" in arguments.parts:
        tables["steps"], memory = steps_table(device, arguments.rounds, arguments.steps)
        if device == "cuda":
            tables["memory"] = memory
        tables["ratios"] = ratios(device, tables["steps"], tables.get("memory"))
    if "cost" in arguments.parts:
        tables["cost"] = cost_table(device, [n for n in LENGTHS if n <= arguments.longest])
        limit = 1e9 * arguments.limit
        if device == "cuda":
            limit = torch.cuda.mem_get_info()[1] - _weights(device)
        if not _Stop.asked:
            tables["longest"] = longest_table(tables["cost"], limit)
        if device == "cuda" and not _Stop.asked:
            tables["fits"] = fits_table(tables["longest"])
    write_run(
        arguments.out,
        kind="benchmark",
        id=f"benchmark/training/{device}",
        config={name: value for name, value in vars(arguments).items() if name != "out"} | {"model": MODELS[device]},
        seeds={"model": 0, "data": 1},
        tables=tables,
        device=torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads",
    )
    if "cost" in tables:
        unit = "CPU time of a step [s]" if device == "cpu" else "time of a step [s]"
        plot_cost(tables["cost"], arguments.out / "cost.png", unit)
    for name, table in tables.items():
        if name != "steps":
            print(f"\n{name}\n{table.to_string(index=False, float_format='{:.4g}'.format)}")
    return int("ratios" in tables and _report(tables["ratios"]))


def _report(table: pd.DataFrame) -> bool:
    """Print the ratios that have a target; whether one is missed."""
    missed = False
    print("\ntargets")
    for row in table.dropna(subset="target").itertuples():
        at_most = row.quantity.startswith("share of") and "bytes" in row.quantity
        met = row.value <= row.target if at_most else row.value >= row.target
        missed |= not met
        bound = f"{'at most' if at_most else 'at least'} {row.target:g}"
        print(
            f"  {row.shape:>9}  {row.variant}: {row.quantity} {row.value:.2f} ({bound}: {'met' if met else 'MISSED'})"
        )
    return missed


if __name__ == "__main__":
    sys.exit(main())

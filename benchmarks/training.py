"""What a training step costs, against trl's DPOTrainer: same model, same pairs, same loss, in one run.

    python -m benchmarks training --out results/                all of the CPU part (about 15 minutes of two quiet cores)
    python -m benchmarks training --out results/ --parts steps  only the ratios with their targets
    python -m benchmarks training --out results/ --device cuda  the same on a GPU, with a Llama of the 1B class in bfloat16

Steps are whole steps of both trainers (forward, backward, AdamW), the variants in turn; the cost is CPU time of the process on a CPU
(shared cores make wall times useless), wall time on a GPU, and each ratio is that of the medians. On a CPU each training has a process
of its own, whose peak memory is measured; on a GPU torch's allocator has it: what a step adds to the loaded model, and in total. On a
GPU the longest sequences are tried out too. Every training is kept in OUT/unfinished as soon as it is measured, so that a command
that was stopped goes on. Needs the extra `peer`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from analysis.records import code_version, write_run
from benchmarks.kept import Kept
from benchmarks.training_steps import (
    BASELINE,
    COMPILED,
    FUSED,
    MAXPO,
    MODELS,
    ON_GPU,
    PAIRS,
    Case,
    Measured,
    measure_or_fail,
    variants_on,
)
from llm_runs.logprobs import exact_kl
from llm_runs.packing import pack
from llm_runs.vocabulary_head import Head

SHAPES = ((128, 128), (204, 52))  # prompt and completion tokens
GPU_SCALE = 4  # the same shapes, so many times longer, on a GPU
SIZES = {"cpu": (192, 384, 576), "cuda": (1024, 2048)}  # hidden units, for the cost against model size
COUNTS = {"cpu": (1, 2, 4), "cuda": (1, 2, 4, 8)}  # pairs
LENGTHS = (256, 512, 1024, 2048, 4096)
# (variant, least ratio of the baseline's time to its own, for each shape)
TARGETS = {
    "cpu": {MAXPO: (4.0, 6.5), "dpo, precomputed reference": (3.8, 5.5)},
    "cuda": {MAXPO: (1.6, 2.0), COMPILED: (1.6, 2.0)},
}
MEMORY_TARGET = 0.5  # of the baseline's
FLOOR_TARGET, MFU_TARGET = 0.9, 0.45
# Of losses of about 0.7. In bfloat16 the log-probs of a thousand tokens are rounded by half a nat, differently in each kernel.
AGREEMENT = {"cpu": 1e-4, "cuda": 0.1}
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # dense bfloat16, from the vendor's data sheets
LINES = (("#000000", "s"), ("#0072B2", "o"), ("#D55E00", "^"))  # Okabe and Ito's colours, and markers

# -- the parts ---------------------------------------------------------------------------------------------------


def steps_table(device: str, rounds: int, steps: int, kept: Kept) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Seconds of every step, variants in turn. Columns shape, variant, round, step, seconds, loss.

    Second table: peak memory of the same trainings, the largest of the rounds. Columns shape, variant, added_bytes, peak_bytes.
    """
    rows: list[tuple[Any, ...]] = []
    peaks = []
    todo = [
        (case, turn, variant) for case in _cases(device) for turn in range(rounds) for variant in variants_on(device)
    ]
    todo.sort(key=lambda each: (each[2] in ON_GPU, each[2] == FUSED))  # compiling takes a minute; fused layers stay
    for case, turn, variant in tqdm(todo, desc="steps", unit="training", disable=None):
        name = f"steps, {_shape(case)}, {variant}, {turn}"
        measured = _kept_or_failed(kept, name, case, variant, steps)
        if isinstance(measured, str):
            raise SystemExit(f"error: {variant} at {_shape(case)}: {measured}")
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


def _check_agreement(case: Case, variant: str, measured: Measured, rows: Sequence[tuple[Any, ...]]) -> None:
    """All of dpo's variants, trl's and ours, must have the same losses at every step; so must maxpo's be those of one computation."""
    for shape, other, _, step, _, loss in rows:
        same = "dpo" in variant and "dpo" in other
        if shape == _shape(case) and (same or other == variant) and step <= len(measured.losses):
            found = measured.losses[step - 1]
            if abs(found - loss) > AGREEMENT[case.device]:
                raise SystemExit(f"error: {variant} has loss {found} at step {step} of {shape}, but {other} has {loss}")


def _kept_or_failed(kept: Kept, name: str, case: Case, variant: str, steps: int) -> Measured | str:
    def make() -> dict[str, Any] | str:
        measured = measure_or_fail(case, variant, steps)
        return measured if isinstance(measured, str) else asdict(measured)

    found = kept.get(name, make)
    return found if isinstance(found, str) else Measured(**found)


def cost_table(device: str, lengths: Sequence[int], kept: Kept) -> pd.DataFrame:
    """Cost of a step (median of all but the first) against length, pairs and hidden units; where a variant fails, its error.

    Columns against, at, variant, seconds, added_bytes, error.
    """
    cases = [("length", n, Case(device, n // 2, n // 2, 1)) for n in lengths]
    cases += [("pairs", n, Case(device, 128, 128, n)) for n in COUNTS[device]]
    cases += [("hidden", n, Case(device, 128, 128, 2, n)) for n in SIZES[device]]
    variants = (BASELINE, "dpo, precomputed reference", MAXPO)
    rows: list[tuple[Any, ...]] = []
    todo = [(against, at, case, variant) for against, at, case in cases for variant in variants]
    for against, at, case, variant in tqdm(todo, desc="cost", unit="training", disable=None):
        name, steps = f"cost, {against}, {at}, {variant}", 2 if device == "cpu" else 4
        measured = _kept_or_failed(kept, name, case, variant, steps)
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


def fits_table(longest: pd.DataFrame, kept: Kept) -> pd.DataFrame:
    """Whether lengths a tenth below and above the estimates of `longest_table` do fit. Columns variant, tokens, fits, added_bytes."""
    rows = []
    for variant, tokens in longest.itertuples(index=False):
        for share in (0.9, 1.1):
            half = int(share * tokens / 2)
            measured = _kept_or_failed(kept, f"fits, {half}, {variant}", Case("cuda", half, half, 1), variant, 2)
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


def ratios(device: str, steps: pd.DataFrame, memory: pd.DataFrame) -> pd.DataFrame:
    """Each variant against the baseline. Columns shape, variant, quantity, value, target (NaN: none)."""
    rows: list[tuple[str, str, str, float, float]] = []
    medians = steps.groupby(["shape", "variant"])["seconds"].median()
    for index, case in enumerate(_cases(device)):
        shape = _shape(case)
        for variant in steps["variant"].unique():
            target = TARGETS[device].get(variant)
            value = medians[shape, BASELINE] / medians[shape, variant]
            rows.append((shape, variant, "times as fast", value, target[index] if target else float("nan")))
            sizes = memory[memory["shape"] == shape].set_index("variant")
            wanted = MEMORY_TARGET if target else float("nan")
            for column in ("added_bytes", "peak_bytes"):
                share = sizes.loc[variant, column] / sizes.loc[BASELINE, column]
                rows.append((shape, variant, f"share of {column.replace('_', ' ')}", share, wanted))
        live = "dpo, live reference"
        rows.append(
            (shape, MAXPO, f"times as fast as our {live}", medians[shape, live] / medians[shape, MAXPO], float("nan"))
        )
        if device == "cuda":
            flops = _floor(case, live=False)
            floor = _floor(case, live=True, shared=False) / flops
            name = torch.cuda.get_device_name()
            peak = next((value for key, value in PEAK_FLOPS.items() if key in name), None)
            for variant in (MAXPO, COMPILED):
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
    from matplotlib.ticker import LogLocator

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
            groups = cost[cost["against"] == against].groupby("variant", sort=False)
            for (variant, group), (colour, marker) in zip(groups, LINES, strict=False):
                axis.plot(group["at"], group[field] / scale, color=colour, marker=marker, label=variant)
            axis.set(xscale="log", yscale="log", xlabel=label, ylabel=title if column == 0 else "")
            ticks = sorted(cost.loc[cost["against"] == against, "at"].unique())
            axis.set_xticks(ticks, [str(tick) for tick in ticks])
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:g}")
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="python -m benchmarks training"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the record and the plots")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parts = ("steps", "cost", "kl", "padding")
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
    device = arguments.device
    name = torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    config = {name: value for name, value in vars(arguments).items() if name != "out"} | {"model": MODELS[device]}
    about = {
        "device": name,
        "code": code_version(),
        "torch": torch.__version__,
        "steps": arguments.steps,
    }
    kept = Kept(arguments.out / "unfinished", about)
    tables: dict[str, pd.DataFrame] = {}
    if "kl" in arguments.parts:
        tables["kl"] = kl_table()
    if "padding" in arguments.parts:
        tables["padding"] = padding_table()
    if "steps" in arguments.parts:
        tables["steps"], tables["memory"] = steps_table(device, arguments.rounds, arguments.steps, kept)
        tables["ratios"] = ratios(device, tables["steps"], tables["memory"])
    if "cost" in arguments.parts:
        tables["cost"] = cost_table(device, [n for n in LENGTHS if n <= arguments.longest], kept)
        limit = 1e9 * arguments.limit
        if device == "cuda":
            limit = torch.cuda.mem_get_info()[1] - _weights(device)
        tables["longest"] = longest_table(tables["cost"], limit)
        if device == "cuda":
            tables["fits"] = fits_table(tables["longest"], kept)
    write_run(
        arguments.out,
        kind="benchmark",
        id=f"benchmark/training/{device}",
        config=config,
        seeds={"model": 0, "data": 1},
        tables=tables,
        device=name,
    )
    kept.clear()
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

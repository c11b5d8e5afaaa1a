"""What a run would do, take and write, without doing it: `python -m llm_runs run CONFIG --out DIR --dry-run`.

Nothing is written and no weights are loaded. Of a model that is not on this machine at most its config.json is asked from the hub.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import objectives
from llm_runs import account, assets, benchmarks, memory, models, pipeline, scale, texts
from llm_runs.config import ModelConfig, RunConfig, TrainingConfig
from llm_runs.errors import InputError
from llm_runs.experiment import Experiment
from llm_runs.microbatches import compares_pairs

# Sustained TFLOP/s that the time estimate takes unless it is told others: two CPU cores; an H100-class GPU in bf16 at 40 % of its peak.
THROUGHPUT = {"cpu": 0.05, "cuda": 400.0, "mps": 4.0}


@dataclass(frozen=True)
class Shape:
    """Size of a model, as far as it is known without its weights."""

    parameters: int
    body: int  # that every token passes through
    head: int  # of the vocabulary head
    vocabulary: int
    context: int
    source: str  # how these are known
    model: PreTrainedModel | None  # on the meta device: shapes without numbers


@dataclass(frozen=True)
class File:
    """A file, or a folder, that a run leaves behind."""

    path: Path
    content: str
    certain: bool = True  # False: only where the data have it


def report(
    config: RunConfig, out: Path, goal: str = "run", only: str = "", tflops: float | None = None, size: int = 1
) -> str:
    """The plan as text: steps, memory, time, files, downloads; for `size` processes also what each of their GPUs would take.

    Raises InputError where the configuration cannot be run.
    """
    if size < 1:
        raise InputError(f"--processes must be at least 1, not {size}")
    if tflops is not None and not tflops > 0:
        raise InputError(f"--tflops must be greater than 0, not {tflops:g}")
    experiment = Experiment(config, out, dry=True)
    steps = pipeline.plan(experiment, goal, only)
    device = experiment.device.type
    shape = shape_of(config)
    lines = [f"{config.name}: what `{goal}` would do (dry run; nothing is written)", "", "steps"]
    lines += [f"  [{number}/{len(steps)}] {step.title}" for number, step in enumerate(steps, start=1)]
    lines += ["", "model"]
    lines += [f"  {config.model.name}, on {device}"]
    if shape is None:
        lines.append("  size not known before it is downloaded, so there is no estimate of memory and time")
    else:
        lines.append(f"  {shape.parameters / 1e6:,.1f} million parameters ({shape.source})")
        lines += ["", "memory (estimates; the largest step counts)", *(f"  {line}" for line in _memory(config, shape))]
        rate = tflops or THROUGHPUT[device]
        lines += ["", f"time (at {rate:g} TFLOP/s sustained; --tflops changes it)"]
        lines += [f"  {line}" for line in _time(experiment, shape, rate, [step.kind for step in steps])]
        if size > 1:
            lines += [
                "",
                f"on {size} GPUs, training.sharding={config.training.sharding} (estimates for bf16 on H100-class GPUs)",
            ]
            lines += [f"  {line}" for line in _scale(config, shape, tflops or THROUGHPUT["cuda"], size)]
    listed = list(files(experiment, goal, only))
    width = max(len(str(file.path.relative_to(out))) for file in listed)
    lines += ["", f"files, in {out}"]
    lines += [
        f"  {file.path.relative_to(out)!s:<{width}}  {file.content}{'' if file.certain else ' (where there are such)'}"
        for file in listed
    ]
    wanted = list(downloads(config))
    lines += ["", "downloads", *(f"  {line}" for line in wanted or ["none: everything is on this machine"])]
    return "\n".join(lines)


# -- the model -----------------------------------------------------------------------------------------------------


def shape_of(config: RunConfig) -> Shape | None:
    """The model's size from its config.json, else from its name; None where neither says."""
    if config.model.name == models.TINY:
        model, _ = models.tiny_random((text.text for text in texts.synthetic(500)), config.seed)
        return _shape(model.to("meta"), "made here")
    source, trust = _source(config.model), config.model.trust_remote_code
    if source is not None:
        with suppress(OSError, ValueError), torch.device("meta"):
            settings = AutoConfig.from_pretrained(source, revision=config.model.revision, trust_remote_code=trust)
            return _shape(AutoModelForCausalLM.from_config(settings, trust_remote_code=trust), "by its config.json")
    if named := re.search(r"(\d+(?:\.\d+)?)\s*([bm])(?![a-z])", Path(config.model.name).name.lower()):
        count = int(float(named[1]) * {"b": 1e9, "m": 1e6}[named[2]])
        return Shape(count, count, 0, 0, 0, "by its name; its config.json is not here", None)
    return None


def _source(config: ModelConfig) -> str | None:
    """Where the model's config.json is: on this machine (converted if need be) or on the hub; None before an asset is fetched."""
    if config.name in assets.ASSETS and not assets.ASSETS[config.name].folder.is_dir():
        return None
    return models.prepare(config, Path())


def _shape(model: PreTrainedModel, source: str) -> Shape:
    total = sum(parameter.numel() for parameter in model.parameters())
    settings = model.config.get_text_config()
    vocabulary = int(settings.vocab_size)
    head = vocabulary * int(settings.hidden_size)
    tables = head if settings.tie_word_embeddings else 2 * head  # looking up an embedding is no arithmetic
    return Shape(total, total - tables, head, vocabulary, models.context_length(model), source, model)


# -- memory and time -----------------------------------------------------------------------------------------------


def lengths(config: RunConfig, shape: Shape) -> tuple[int, int]:
    """The most tokens of a prompt and of a completion of a pair."""
    data, context = config.data, shape.context or 1024
    if data.preferences is None:
        return data.prompt_tokens, data.completion_tokens
    completion = min(data.reading.max_completion_tokens or context // 2, context - 1)
    return min(data.reading.max_prompt_tokens or context // 2, context - completion), completion


def _memory(config: RunConfig, shape: Shape) -> Iterator[str]:
    training, sft = config.training, config.sft
    if shape.model is None:
        full = 16 * shape.parameters
        yield f"full fine-tuning {full / 1e9:,.0f} GB without activations (4 bytes each for weights, gradients and Adam's two moments)"
        if training.lora:
            yield f"LoRA {4 * shape.parameters / 1e9:,.0f} GB without activations (weights in float32)"
        return
    model = shape.model.to(torch.bfloat16 if config.model.dtype == "bfloat16" else torch.float32)
    prompt, completion = lengths(config, shape)
    if sft.steps:
        micro = sft.micro_batch_size or sft.batch_size
        tokens = sft.sequence_tokens if config.data.preferences is None else prompt + completion
        load = memory.Load(micro * tokens, micro * (tokens if config.data.preferences is None else completion))
        as_training = TrainingConfig(
            batch_size=sft.batch_size, micro_batch_size=micro, gradient_checkpointing=sft.gradient_checkpointing
        )
        yield f"fine-tuning: {memory.Plan(model, as_training, load).estimate()}"
    for text in config.objectives:
        objective = objectives.parse(text)
        load = memory.Load(*_tokens_of_pass(config, shape, objective))
        live = "ref_logps" in objective.needs and training.reference == "live"
        yield f"{objective.label}: {memory.Plan(model, training, load, live).estimate()}"


def _scale(config: RunConfig, shape: Shape, rate: float, size: int) -> Iterator[str]:
    if shape.model is None:
        yield "the model's config.json is needed for this"
        return
    model, training = shape.model.float(), config.training
    passes = scale.passes(training, size)
    for text in config.objectives:
        objective = objectives.parse(text)
        load = memory.Load(*_tokens_of_pass(config, shape, objective, passes * size))
        factor = 4 if training.gradient_checkpointing else 3
        operations = factor * 2.0 * passes * size * (load.body * shape.body + load.head * shape.head)
        yield objective.label
        for line in scale.Step(model, training, load, passes, size, operations).lines(rate):
            yield f"  {line}"
    pairs = training.steps * training.batch_size
    cache = scale.cache_bytes(pairs, lengths(config, shape)[1]) / 1e9
    yield f"reference log-probs of {pairs} pairs: {cache:.2g} GB on disk, mapped by each process"


def _tokens_of_pass(
    config: RunConfig, shape: Shape, objective: objectives.Objective, passes: int | None = None
) -> tuple[int, int]:
    """Tokens of one forward pass through the body and the head, padding included; `passes` a step, by default one process's."""
    training = config.training
    prompt, completion = lengths(config, shape)
    if passes is None:
        passes = training.batch_size // min(training.micro_batch_size or training.batch_size, training.batch_size)
    rows = 2 * training.batch_size
    if "reference_samples" in objective.needs:
        rows += training.reference_batch_size
    if "pretraining" in objective.needs:
        rows += training.pretraining_batch_size
    rows = -(-rows // passes)
    return rows * (prompt + completion), rows * completion


def flops(config: RunConfig, shape: Shape, kinds: list[str], trainings: list[str]) -> dict[str, float]:
    """Floating-point operations of each step of a plan, by what it is called; at the most tokens that lengths allow.

    A forward pass of T tokens, of which H reach the head, takes 2 (T N_body + H N_head); training takes three times that (four with
    gradient checkpointing). The body runs over the prompt of each completion.
    """
    data, sft, training, evaluation = config.data, config.sft, config.training, config.evaluation
    prompt, completion = lengths(config, shape)

    def forward(sequences: float, before: int = prompt, after: int = completion) -> float:
        return 2.0 * sequences * ((before + after) * shape.body + after * shape.head)

    own = data.preferences is not None
    tokens = (prompt, completion) if own else (0, sft.sequence_tokens)
    sampled = min(data.completion_tokens, (shape.context or 1 << 30) - prompt)
    pairs = training.steps * training.batch_size if own else data.prompts * config.sampling.pairs_per_prompt
    samples = config.reference.samples + evaluation.held_out_samples
    samples += 0 if own else 2 * (pairs + evaluation.held_out_pairs)
    policy = 3 * forward(evaluation.prompts, prompt, sampled)  # sampling, and both models over the sample
    on_pairs = forward(2 * (evaluation.held_out_pairs + evaluation.training_pairs))
    others = 2 * forward(evaluation.held_out_samples, prompt, sampled) + forward(
        evaluation.other_texts, 1, evaluation.other_text_tokens
    )
    evaluate = policy + on_pairs + others
    found = {
        "sft": (4 if sft.gradient_checkpointing else 3) * forward(sft.steps * sft.batch_size, *tokens),
        "sample": forward(samples, prompt, sampled),
        "reference": forward(2 * (pairs + evaluation.held_out_pairs))
        + forward(config.reference.samples, prompt, sampled),
        "before": evaluate,
    }
    for text in trainings:
        needs = objectives.parse(text).needs
        step = forward(2 * training.batch_size)
        if "reference_samples" in needs:
            step += forward(training.reference_batch_size, prompt, sampled)
        if "pretraining" in needs:
            step += forward(training.pretraining_batch_size, 1, evaluation.other_text_tokens)
        factor = (4 if training.gradient_checkpointing else 3) + (training.reference == "live" and "ref_logps" in needs)
        found["train"] = found.get("train", 0.0) + factor * step * training.steps + evaluate * (1 + len(evaluation.at))
        found["train"] += on_pairs * evaluation.likelihoods
    return {kind: value for kind, value in found.items() if kind in kinds}


_CALLED = {
    "sft": "fine-tune the reference",
    "sample": "sample (token by token, which takes a GPU several times as long as this)",
    "reference": "log-probabilities of the reference",
    "before": "evaluate the reference",
    "train": "train and evaluate",
}


def _time(experiment: Experiment, shape: Shape, rate: float, kinds: list[str]) -> Iterator[str]:
    config = experiment.config
    prompt, completion = lengths(config, shape)
    trainings = [one.objective for one in experiment.trainings()]
    parts = flops(config, shape, kinds, trainings)
    yield f"prompts of {prompt} and completions of {completion} tokens, the most there may be; benchmarks and loading come on top"
    for kind, value in parts.items():
        yield f"{_CALLED[kind]}: {account.duration(value / rate / 1e12)} ({value:.2g} FLOP)"
    yield f"together: {account.duration(sum(parts.values()) / rate / 1e12)}"


# -- files and downloads -------------------------------------------------------------------------------------------


def files(experiment: Experiment, goal: str = "run", only: str = "") -> Iterator[File]:
    """Every file that the run leaves in its folder, in the order in which they come; a model's folder stands for its files."""
    config, out = experiment.config, experiment.out
    own = config.data.preferences is not None
    kinds = {step.kind for step in pipeline.plan(experiment, goal, only)}
    yield File(out / "config.json", "the configuration, checksums of the files it names")
    if config.model.name == models.TINY:
        yield File(out / "model", "the random model and its tokenizer")
    if own:
        yield File(out / "data" / "report.md", "data report")
        yield File(out / "data" / "report.json", "the same as values")
        yield File(out / "data" / "pairs.parquet", "a row a pair: lengths, overlap, scores")
        yield File(out / "data" / "given", "all pairs: token ids, texts, scores (Arrow)")
        if config.data.reading.held_out or config.data.reading.held_out_split:
            yield File(out / "data" / "held_out", "the same of the held-out source")
        completions = {"candidates": "all scored completions", "unpaired": "all completions labelled good or bad"}
        yield File(out / "data" / "given_completions", " or ".join(completions.values()), certain=False)
        for name, words in completions.items():
            yield File(out / "data" / f"{name}.json", f"{words}: which they are", certain=False)
            yield File(out / "data" / f"{name}.npy", "the same as numbers of rows", certain=False)
    if "reward" in kinds:
        yield File(out / "reward.npz", "the fitted reward")
    if "sft" in kinds:
        yield File(out / "sft_losses.json", "losses of the fine-tuning")
        yield File(out / "reference", "the reference policy (safetensors) and its tokenizer")
    if "sample" in kinds:
        names = ["pairs", "reference", "held_out_reference", *([] if own else ["held_out_pairs"])]
        for name in names:
            yield File(out / "samples" / f"{name}.jsonl", "completions of the reference")
            yield File(out / "samples" / f"{name}.json", "engine and seed that they were drawn with")
    if own or "label" in kinds:
        sides = [(labels, side) for labels in experiment.label_sets for side in ("training", "held_out")]
        for path in dict.fromkeys(experiment.pairs_path(*side) for side in sides):
            yield File(path, "which pairs" if own else "pairs in token ids")
            if own:
                yield File(path.with_suffix(".npy"), "the same as numbers of rows")
    if "reference" in kinds:
        yield File(out / "reference_logps" / "reference.json", "manifest of the reference's numbers")
        yield File(out / "reference_logps" / "rows", "the reference's log-probs and top tokens (Arrow)")
        yield File(out / "reference_logps" / "index.npy", "where each completion's are")
        if own and any(compares_pairs(objectives.parse(text).needs_on_pairs) for text in config.objectives):
            yield File(out / "reference_logps" / "pairs", "the reference's log-probs of all training pairs")
    if "before" in kinds:
        for name in ("reference", "samples", *dict.fromkeys(labels.slug for labels in experiment.label_sets)):
            yield File(out / "before" / f"{name}.parquet", "evaluation before training")
    tables = ("metrics", "evaluations", "samples")
    if "train" in kinds:
        for one in experiment.trainings(only):
            folder = out / "runs" / one.slug
            yield from (File(folder / f"{name}.parquet", name) for name in tables)
            yield File(folder / "run.json", "the record")
            if config.training.save_model:
                yield File(folder / "model", "the trained model (safetensors), its tokenizer and card")
            if "tensorboard" in config.training.report_to:
                yield File(folder / "tensorboard", "live metrics")
    if "cost" in kinds:
        for name in pipeline.cost_names():
            yield from (
                File(out / "costs" / name / file, "time and memory") for file in ("metrics.parquet", "run.json")
            )


def downloads(config: RunConfig) -> Iterator[str]:
    """What would be fetched, in words: pinned assets, models, data sets, benchmarks."""
    for name in sorted(pipeline.needed_assets(config)):
        if not assets.ASSETS[name].folder.is_dir():
            yield f"{name}, {assets.ASSETS[name].content} (package index)"
    hub_models = [config.model.name] if config.model.name not in (models.TINY, *assets.ASSETS) else []
    if config.reward.name == "classifier" and config.data.preferences is None:
        hub_models.append(config.reward.model)
    for name in hub_models:
        if not Path(name).expanduser().exists() and not isinstance(try_to_load_from_cache(name, "config.json"), str):
            yield f"{name} (model, Hugging Face hub)"
    sources = [config.data.preferences, config.data.reading.held_out]
    for name in dict.fromkeys(source for source in sources if source and not Path(source).expanduser().exists()):
        yield f"{name} (data set, Hugging Face hub, unless its cache has it)"
    shipped = benchmarks.shipped()
    tasks = [task for task in config.evaluation.benchmarks if task not in shipped and not task.endswith(".jsonl")]
    if tasks and not config.evaluation.benchmark_include:
        yield f"data of the lm-eval tasks {', '.join(tasks)} (Hugging Face hub, unless its cache has them)"

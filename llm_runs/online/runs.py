"""An online run: its rounds, each kept when it is finished, and the record in the end.

DIR/runs/<method>/unfinished/      the state after the last round (safetensors), metrics and evaluations of every one
DIR/runs/<method>/                 the record, of the same form as an offline training's
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import typing
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import safetensors.torch
from torch import Tensor
from tqdm.auto import tqdm

from analysis.records import atomic_write, fingerprint, is_complete, write_run
from llm_runs import account, dry_run, engines, models, pipeline, processes
from llm_runs.account import Step
from llm_runs.config import DELIVERY, NOT_DECISIVE, OnlineMethod, RunConfig
from llm_runs.errors import InputError
from llm_runs.experiment import Experiment
from llm_runs.json_lines import read_object
from llm_runs.online.iterated import Accelerated, Iterated
from llm_runs.online.policy_gradient import Espo, RlhfPpo
from llm_runs.online.rejection import Rso, best_of_n
from llm_runs.online.rounds import Bench, Loop
from llm_runs.pipeline import read_table, write_table
from objectives.domains import unknown_name

LOOPS: dict[str, type[Loop]] = {loop.name: loop for loop in (RlhfPpo, Espo, Rso, Iterated, Accelerated)}
BEST_OF_N = "best_of_n"


def named(methods: Sequence[str]) -> tuple[str, ...]:
    """The methods, each once. Raises InputError for an unknown name, with the nearest."""
    known = typing.get_args(OnlineMethod)
    for method in methods:
        if method not in known:
            raise InputError(unknown_name("method", method, list(known)))
    return tuple(dict.fromkeys(methods))


def plan(experiment: Experiment, methods: Sequence[str] = ()) -> list[Step]:
    """The reference and its evaluation, then a step for each of the methods; none given: the offline trainings of the configuration,
    then all of its methods.
    """
    chosen = methods or experiment.config.online.methods
    return [
        *pipeline.plan(experiment, "before" if methods else "train"),
        *(Step(title(experiment.config, method), method, partial(run, experiment, method)) for method in chosen),
    ]


def title(config: RunConfig, method: str) -> str:
    """The method in words."""
    if method == BEST_OF_N:
        return f"best of n of {config.online.best_of_n.samples} completions"
    rounds = LOOPS[method].rounds(config.online)
    return f"{method}, {rounds} round{'s' if rounds > 1 else ''}"


def slug(config: RunConfig, method: str) -> str:
    """The name of the folder of a method's record: its name, its settings' checksum, and the labels' seed."""
    settings = hyperparameters(config, method)
    strength = next((f"_{key}={settings[key]:g}" for key in ("beta", "tau") if key in settings), "")
    name = re.sub(r"[^A-Za-z0-9.=_+-]+", "_", f"{method}{strength}")
    return f"{name}-{fingerprint(settings)[:8]}-seed{config.training_seeds[0]}"


def hyperparameters(config: RunConfig, method: str) -> dict[str, Any]:
    """What the method uses of the configuration's section."""
    if method == BEST_OF_N:
        return {"samples": config.online.best_of_n.samples}
    return LOOPS[method].settings(config.online)


def run(experiment: Experiment, method: str) -> str | None:
    """Run one method, from its last finished round on, and write its record; None if it is there already.

    Raises:
        LockError: another process is running it.
    """
    folder = experiment.out / "runs" / slug(experiment.config, method)
    with processes.sole(folder):
        return _run(experiment, method, folder)


def _run(experiment: Experiment, method: str, folder: Path) -> str | None:
    config = experiment.config
    bench = Bench(experiment)
    settings = _settings(bench, method)
    work = folder / "unfinished"
    if is_complete(folder, settings):
        shutil.rmtree(work, ignore_errors=True)  # in case it was killed between writing and clearing
        return None
    engine = engines.resolve(config.sampling.engine, experiment.device)
    _claim(work, fingerprint(settings))
    tables = best_of_n(bench) if method == BEST_OF_N else _rounds(bench, LOOPS[method], work)
    for name, before in (("evaluations", "reference"), ("samples", "samples")):
        start = read_table(experiment.out / "before" / f"{before}.parquet")
        tables[name] = pd.concat([start, tables[name]], ignore_index=True)
    write_run(
        folder,
        kind="llm",
        id=f"{config.name}/{folder.name}",
        config=settings,
        seeds=config.seeds_of(bench.labels.seed) | {"online": bench.labels.seed},
        tables=tables,
        device=pipeline.device_name(experiment.device),
        extra={"samples": experiment.sampled_with, "rollouts": {"engine": engine, "version": engines.version(engine)}},
    )
    shutil.rmtree(work, ignore_errors=True)
    return pipeline.summary(tables["evaluations"], int(tables["evaluations"]["step"].max()))


def _rounds(bench: Bench, kind: type[Loop], work: Path) -> dict[str, pd.DataFrame]:
    """Every round that is not finished yet; then metrics, evaluations and samples of all."""
    online = bench.online
    total = kind.rounds(online)
    loop = kind(bench)
    done = _finished(work)
    if done:
        loop.load(_read_state(work, done))
    with tqdm(total=total, initial=done, desc=kind.name, unit="round", leave=False) as bar:
        for number in range(done + 1, total + 1):
            metrics = loop.advance(number, work / f"round-{number}")
            write_table(work / f"metrics-{number}.parquet", metrics)
            if number % online.evaluate_every == 0 or number == total:
                evaluations, texts = bench.evaluate(loop.model, int(metrics["step"].max()))
                write_table(work / f"evaluations-{number}.parquet", evaluations)
                write_table(work / f"samples-{number}.parquet", texts)
                bar.set_postfix_str(pipeline.means(evaluations, int(metrics["step"].max())))
            # The state comes last: a round is finished when it is there.
            _write_state(work, number, loop.tensors())
            shutil.rmtree(work / f"round-{number}", ignore_errors=True)
            bar.update()
    if bench.config.training.save_model:
        models.save(merged(loop.model), bench.experiment.tokenizer, work.parent / "model")
    found = {}
    for name in ("metrics", "evaluations", "samples"):
        paths = [work / f"{name}-{number}.parquet" for number in range(1, total + 1)]
        found[name] = pd.concat([read_table(path) for path in paths if path.is_file()], ignore_index=True)
    return found


def merged(model: Any) -> Any:
    """The policy as a model of its own, without adapters."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def report(config: RunConfig, out: Path, methods: Sequence[str] = (), tflops: float | None = None) -> str:
    """What `online` would do: the report of the steps before it, then the methods with their sampling and files; nothing is written.

    Raises InputError where the configuration cannot be run.
    """
    experiment = Experiment(config, out, dry=True)
    Bench(experiment)
    chosen = methods or config.online.methods
    lines = [dry_run.report(config, out, "before" if methods else "train", tflops=tflops), "", "then"]
    shape = dry_run.shape_of(config)
    rate = tflops or dry_run.THROUGHPUT[experiment.device.type]
    for method in chosen:
        sampled, trained, evaluated = work_of(config, method)
        line = (
            f"  {title(config, method)}: {sampled} completions sampled, {trained} trained on, {evaluated} evaluations"
        )
        if shape is not None:
            tokens = config.data.prompt_tokens + config.data.completion_tokens
            per = 2.0 * (tokens * shape.body + config.data.completion_tokens * shape.head)
            # Sampling and the reference are a forward pass each, an update three; an evaluation samples and runs both models, both ways.
            held_out = 3 * config.evaluation.prompts + 2 * config.evaluation.held_out_samples
            flops = per * (2 * sampled + 3 * trained + evaluated * held_out)
            line += f", about {account.duration(flops / rate / 1e12)}"
        lines.append(line)
        lines.append(f"    record: {out / 'runs' / slug(config, method)}")
    return "\n".join(lines)


def work_of(config: RunConfig, method: str) -> tuple[int, int, int]:
    """Completions sampled, completions trained on (each time counted), evaluations; at most."""
    online, rounds = config.online, config.online.rounds
    if method == BEST_OF_N:
        return config.evaluation.prompts * online.best_of_n.samples, 0, 0
    evaluations = len({*range(online.evaluate_every, rounds + 1, online.evaluate_every), rounds})
    if method == "rso":
        return (
            online.prompts * rounds * online.rso.candidates,
            2 * config.training.steps * config.training.batch_size,
            1,
        )
    sampled = rounds * online.prompts * online.samples
    if method in (RlhfPpo.name, Espo.name):
        return sampled, sampled * online.policy_gradient.epochs, evaluations
    return sampled, 2 * rounds * online.iterated.steps * config.training.batch_size, evaluations


# -- what is kept ------------------------------------------------------------------------------------------------


def _settings(bench: Bench, method: str) -> dict[str, Any]:
    """What a run's record says it depended on, in the form of an offline training's."""
    config = bench.config
    settings = config.to_dict()
    for key in NOT_DECISIVE:
        del settings[key]
    if not config.own_seeds:
        del settings["seeds"]
    for key in DELIVERY:
        del settings["training"][key]
    own = hyperparameters(config, method)
    shown = ", ".join(f"{key}={own[key]!r}" for key in ("beta", "tau", "objective") if key in own)
    settings["objective"] = {"name": method, "hyperparameters": own, "label": f"{method}({shown})"}
    settings["labels"] = {"name": bench.labels.name, "temperature": bench.labels.temperature}
    settings["training_seed"] = bench.labels.seed
    settings["experiment"] = config.name
    return settings


def _claim(work: Path, identity: str) -> None:
    """Refuse the rounds of another configuration."""
    mark = work / "run.txt"
    if mark.is_file() and mark.read_text() != identity:
        raise InputError(f"{work} holds rounds of another configuration: delete it, or choose another --out")
    atomic_write(mark, identity.encode())


def _states(work: Path) -> Iterator[tuple[int, Path]]:
    for path in work.glob("state-*.safetensors"):
        yield int(path.stem.partition("-")[2]), path


def _finished(work: Path) -> int:
    return max((number for number, _ in _states(work)), default=0)


def _write_state(work: Path, number: int, tensors: dict[str, Tensor]) -> None:
    """The state after a round, with its checksum; then the earlier one goes."""
    content = safetensors.torch.save(tensors)
    atomic_write(work / f"state-{number}.json", json.dumps({"sha256": hashlib.sha256(content).hexdigest()}).encode())
    atomic_write(work / f"state-{number}.safetensors", content)
    for earlier, path in list(_states(work)):
        if earlier < number:
            path.unlink()
            path.with_suffix(".json").unlink(missing_ok=True)


def _read_state(work: Path, number: int) -> dict[str, Tensor]:
    path = work / f"state-{number}.safetensors"
    content = path.read_bytes()
    try:
        wanted = read_object(path.with_suffix(".json"))["sha256"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: its checksum cannot be read ({error}); delete {work} to begin again") from error
    if hashlib.sha256(content).hexdigest() != wanted:
        raise InputError(f"{path}: damaged (wrong checksum); delete {work} to begin again")
    return safetensors.torch.load(content)

"""From a sweep to its tasks: every run, and before them each stage once for all runs that share it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from analysis.records import fingerprint
from llm_runs.config import LabelConfig, RunConfig
from llm_runs.errors import InputError
from llm_runs.experiment import Experiment, Training
from llm_runs.sweeps.spec import SweepConfig
from llm_runs.sweeps.stages import STAGES, Stage
from llm_runs.sweeps.states import Task

SHARED = "shared"


def plan(sweep: SweepConfig, out: Path, *, dry: bool) -> list[Task]:
    """The tasks of a sweep, stages first, and the folders in which they work, each with its configuration (unless `dry`).

    Raises InputError: two settings that cannot be in one sweep, or folders of another configuration.
    """
    stages: dict[str, tuple[Stage, list[RunConfig], str | None]] = {}  # by folder: with the runs' and the stage before
    runs: list[Task] = []
    for name, config in sweep.configs.items():
        before: str | None = None
        for stage in STAGES:
            folder = stage.folder(config)
            stages.setdefault(folder, (stage, [], before))[1].append(config)
            before = folder
        experiment = Experiment(config, out / name, dry=dry)
        runs += [_run(name, config, one, before) for one in _distinct(experiment.trainings())]
    shared = []
    for folder, (stage, configs, before) in stages.items():
        config, parts = stage.config(configs[0]), tuple[str, ...]()
        if stage is STAGES[-1]:
            config = _union(config, configs)
            parts = (*config.objectives, *(label.name for label in config.labels), *map(str, config.training_seeds))
        Experiment(config, out / SHARED / folder, dry=dry)
        task = Task(folder, f"{stage.title} ({folder})", f"{SHARED}/{folder}", folder, before, stage.name, parts=parts)
        shared.append(task)
    return [*shared, *runs]


def _run(name: str, config: RunConfig, one: Training, before: str | None) -> Task:
    settings = config.to_dict()
    for free in ("objectives", "labels", "training_seeds", "name"):
        del settings[free]
    key = fingerprint([settings, one.objective, one.labels.name, one.labels.temperature, one.labels.seed])
    return Task(f"{name}/{one.slug}", f"{name}: {one.title}", name, key, before, run=one.slug)


def _distinct(trainings: list[Training]) -> list[Training]:
    """The trainings. Raises InputError where two would write the same folder."""
    seen: dict[str, Training] = {}
    for one in trainings:
        if (other := seen.setdefault(one.slug, one)) is not one:
            raise InputError(f"two runs of the same identity: {other.title} and {one.title} would both be {one.slug}")
    return trainings


def _union(config: RunConfig, runs: Iterable[RunConfig]) -> RunConfig:
    """The last stage's configuration with the objectives, labels and seeds of all its runs."""
    labels: dict[str, LabelConfig] = {}
    chosen: dict[str, None] = {}
    seeds: dict[int, None] = {}
    for run in runs:
        for label in run.labels:
            if labels.setdefault(label.name, label) != label:
                raise InputError(
                    f"labels {label.name!r} have temperature {label.temperature:g} in {run.name}, {labels[label.name].temperature:g} "
                    "in another data setting of the same samples: give them different names"
                )
        chosen |= dict.fromkeys(run.objectives)
        seeds |= dict.fromkeys(run.training_seeds)
    return replace(config, labels=tuple(labels.values()), objectives=tuple(chosen), training_seeds=tuple(seeds))

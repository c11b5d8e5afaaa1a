"""What a sweep would do and about how long it takes, without doing it: `sweep SWEEP.yaml --out DIR --dry-run`."""

from __future__ import annotations

from pathlib import Path

import torch

from llm_runs import dry_run, models
from llm_runs.account import duration
from llm_runs.config import RunConfig
from llm_runs.experiment import Experiment
from llm_runs.sweeps import stages, tasks
from llm_runs.sweeps.batches import batches, runs_per_job
from llm_runs.sweeps.spec import SweepConfig
from llm_runs.sweeps.states import Folder, Task

_KINDS = {"reference": ("sft",), "samples": ("sample",), "prepared": ("reference", "before")}  # of steps, by stage


def report(sweep: SweepConfig, out: Path, *, slurm: bool = False, tflops: float | None = None) -> str:
    """The tasks with an estimate of their time, and the jobs they make; nothing is written."""
    configs = sweep.configs
    planned = tasks.plan(sweep, out, dry=True)
    folder = Folder(out)
    done = {task.id for task in planned if folder.done(task)}
    seconds = _seconds(configs, planned, out, tflops)
    runs = [task for task in planned if task.stage is None]
    lines = [
        f"{sweep.name}: {len(runs)} runs and {len(planned) - len(runs)} stages that they share (dry run; nothing is written)"
    ]
    width = max(len(task.id) for task in planned)
    for task in planned:
        known = "done" if task.id in done else duration(seconds[task.id]) if task.id in seconds else "unknown"
        lines.append(
            f"  {task.id:<{width}}  {known:>8}" + (f"  after {task.after}" if task.after and task.stage else "")
        )
    left = [task for task in planned if task.id not in done]
    at_once = sweep.jobs or (1 if not slurm else max(1, len(runs)))
    if not slurm and sweep.jobs is None:
        at_once = max(1, torch.cuda.device_count())
    size = (
        (sweep.runs_per_job or 1)
        if slurm
        else runs_per_job(sweep.runs_per_job, sum(t.stage is None for t in left), at_once)
    )
    count = len(batches(planned, done, size))
    lines.append("")
    where = "on Slurm" if slurm else "on this machine"
    lines.append(f"{count} jobs {where}, at most {at_once} at a time, {size} run{'s' if size > 1 else ''} in each")
    if all(task.id in seconds for task in left):
        alone = sum(seconds[task.id] for task in left if task.stage is not None)
        together = alone + sum(seconds[task.id] for task in left if task.stage is None) / at_once
        lines.append(
            f"about {duration(together)} by floating-point operations; loading, benchmarks and starting come on top"
        )
    else:
        lines.append("the time is unknown: the size of a model is not known before it is downloaded")
    for name, config in configs.items():
        if not config.training.save_every:
            lines.append(f"{name}: training.save_every is 0, so a run that is interrupted begins again")
    return "\n".join(lines)


def _seconds(configs: dict[str, RunConfig], planned: list[Task], out: Path, tflops: float | None) -> dict[str, float]:
    """Of every task whose model's size is known."""
    found: dict[str, float] = {}
    for name, config in configs.items():
        shape = dry_run.shape_of(config)
        if shape is None:
            continue
        rate = 1e12 * (tflops or dry_run.THROUGHPUT[models.select_device(config.model).type])
        for one in Experiment(config, out / name, dry=True).trainings():
            found[f"{name}/{one.slug}"] = sum(dry_run.flops(config, shape, ["train"], [one.objective]).values()) / rate
        for stage in stages.STAGES:
            parts = dry_run.flops(config, shape, list(_KINDS[stage.name]), [])
            found[stage.folder(config)] = sum(parts.values()) / rate
    return {task.id: found[task.id] for task in planned if task.id in found}

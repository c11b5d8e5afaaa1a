"""What a sweep costs beside its runs' own time, and how long its status takes.

    python -m benchmarks sweep --out results/                   a thousand runs of a tiny model, two at a time
    python -m benchmarks sweep --out results/ --runs 100        fewer: processes start as often, so that each run bears more

Real runs, as small as they get: a random model of two layers, one step, one prompt to evaluate. The cost is the CPU time of the command
and of all its jobs, less that of the runs and of the stages they share, for each run (processes that start and load libraries,
scheduling, states and logs); beside it the wall time beyond the runs' own. `OUT/sweep` is kept: given again, the command goes on, but only
a sweep that was not interrupted is measured. 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import yaml

from analysis.records import atomic_write, write_run
from llm_runs.sweeps import local, tasks
from llm_runs.sweeps.spec import SweepConfig
from llm_runs.sweeps.states import Folder

A_RUN, STATUS = 1.0, 2.0  # seconds
_SEEDS = 10


def sweep_file(path: Path, runs: int, jobs: int) -> Path:
    """A sweep of so many tiny runs: strengths of dpo, ten seeds each."""
    strengths = [round(0.01 * (number + 1), 4) for number in range(runs // _SEEDS)]
    values = {
        "config": "tiny",
        "set": {
            "sft.steps": 5,
            "data": {"reward_texts": 200, "sft_texts": 200, "prompts": 8},
            "reference.samples": 8,
            "labels": [{"name": "noisy", "temperature": 4.0}],
            "training": {"steps": 1, "batch_size": 2, "warmup_steps": 0},
            "evaluation": {
                "at": [],
                "likelihoods": 0,
                "prompts": 1,
                "held_out_samples": 1,
                "held_out_pairs": 1,
                "training_pairs": 1,
                "other_texts": 1,
            },
        },
        "objectives": ["dpo"],
        "strengths": strengths,
        "seeds": list(range(_SEEDS)),
        "jobs": jobs,
    }
    atomic_write(path, yaml.safe_dump(values, sort_keys=False).encode())
    return path


def _cpu() -> float:
    """CPU seconds of this process and of those that it started and that have ended."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def measure(out: Path, runs: int, jobs: int) -> dict[str, float]:
    """Do the sweep and time it and its status. Raises SystemExit where it had been begun."""
    folder = Folder(out / "sweep")
    sweep = SweepConfig.load(sweep_file(out / "sweep.yaml", runs, jobs))
    if folder.own.exists():
        raise SystemExit(f"error: {folder.out} is there: a sweep that was interrupted is not measured; delete it")
    began, cpu = time.monotonic(), _cpu()
    planned = tasks.plan(sweep, folder.out, dry=False)
    local.carry_out(sweep, folder.out, planned, lambda line: print(line, file=sys.stderr, flush=True), locks=True)
    wall, total = time.monotonic() - began, _cpu() - cpu
    states = {task.id: folder.state(task.id) for task in planned}
    own = sum(state.cpu_seconds for state in states.values() if state)
    seconds = sum(state.seconds for state in states.values() if state)
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "llm_runs", "sweep-status", str(folder.out)], check=True, stdout=sys.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "runs": sum(task.stage is None for task in planned),
        "own CPU seconds a run": own / runs,
        "cost, CPU seconds a run": (total - own) / runs,
        "cost, wall seconds a run": (wall - seconds / jobs) / runs,
        "status, wall seconds": time.monotonic() - began,
        "status, CPU seconds": after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime,
    }


def main(given: list[str] | None = None) -> int:
    """Measure, print beside the targets, write a record; 1 if a target is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="python -m benchmarks sweep"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the sweep and the record")
    parser.add_argument("--runs", type=int, default=1000, help=f"a multiple of {_SEEDS}")
    parser.add_argument("--jobs", type=int, default=2, help="at a time")
    arguments = parser.parse_args(sys.argv[1:] if given is None else given)
    if arguments.runs < _SEEDS or arguments.runs % _SEEDS or arguments.jobs < 1:
        print(f"error: --runs must be a multiple of {_SEEDS}, --jobs at least 1", file=sys.stderr)
        return 2
    found = measure(arguments.out, arguments.runs, arguments.jobs)
    missed = report(found)
    table = pd.DataFrame([{"quantity": name, "value": value} for name, value in found.items()])
    config = {"runs": arguments.runs, "jobs": arguments.jobs}
    write_run(arguments.out, kind="benchmark", id="benchmark/sweep", config=config, seeds={}, tables={"results": table})
    return int(missed)


def report(found: dict[str, float]) -> bool:
    """Print every number, those with targets beside them; whether one is missed."""
    targets = {name: A_RUN for name in found if name.startswith("cost")}
    targets |= {name: STATUS for name in found if name.startswith("status")}
    for name, value in found.items():
        target = (
            f" (under {targets[name]:g}: {'met' if value < targets[name] else 'MISSED'})" if name in targets else ""
        )
        print(f"{name}: {value:.3g}{target}")
    return any(found[name] >= target for name, target in targets.items())


if __name__ == "__main__":
    sys.exit(main())

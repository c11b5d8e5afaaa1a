"""``python -m toy_bandits verify RUN``: does a record reproduce? Solved again, every row, and compared bit for bit.

With the same versions on the same processor the numbers must be the same bits; else differences up to `TOLERANCE` are named and pass.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.records import Run, elsewhere, fingerprint, read_run
from toy_bandits import loops, worlds
from toy_bandits.errors import BanditError
from toy_bandits.experiments import EXPERIMENTS
from toy_bandits.leaderboard.tasks import Task

TOLERANCE = 1e-6  # relative, where other versions or another processor made the record: solutions are converged to 1e-10 in the gradient

Finding = tuple[bool, str]  # whether it is as it should be, and what was looked at or differs


def add_parser(commands: Any) -> None:
    """Add the subcommand to an argparse set of commands; its handler is in ``handler``."""
    parser = commands.add_parser(
        "verify", help="solve a record again and compare; `python -m analysis verify` does this and more"
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of a record")
    parser.set_defaults(handler=run)


def run(chosen: argparse.Namespace) -> int:
    """Run the subcommand; 0 if the record reproduces, 1 if not. Raises RecordError on a damaged one."""
    good = True
    for right, text in findings(read_run(chosen.folder)):
        print(f"{'ok  ' if right else 'FAIL'} {text}", flush=True)
        good &= right
    return int(not good)


def findings(record: Run) -> Iterator[Finding]:
    """What is looked at of a record, one after the other: settings, seeds, rows."""
    try:
        made = _made(record.config)
    except (BanditError, TypeError, ValueError) as error:
        yield False, f"settings: this version cannot make it: {error}"
        return
    if made is None:
        yield True, "a record made of others (or of a kind that is not made again here): nothing of it is done again"
        return
    config, results = made
    differing = [
        f"setting {key}: {record.config.get(key)!r} in the record, {config.get(key)!r} here"
        for key in sorted({*config, *record.config})
        if fingerprint({"": config.get(key)}) != fingerprint({"": record.config.get(key)})
    ]
    if differing:
        yield from ((False, line) for line in differing)
        return
    yield True, "settings are known to this version"
    seeds = {name: config["seed"] for name in record.seeds if "seed" in config}
    for name, seed in seeds.items():
        if record.seeds[name] != seed:
            yield False, f"seed {name}: {record.seeds[name]} in the record, {seed} in its settings"
            return
    yield compare(record.table("results"), results(), exact=not elsewhere(record))


def _made(config: dict[str, Any]) -> tuple[dict[str, Any], Callable[[], pd.DataFrame]] | None:
    """What a record's config makes here: the config as it would be written now, and the table of results."""
    if "experiment" in config:
        if config["experiment"] not in EXPERIMENTS:
            raise BanditError(f"there is no experiment {config['experiment']!r}")
        kind = type(EXPERIMENTS[config["experiment"]])
        known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
        unknown = set(config) - known - {"experiment"}
        if unknown:
            raise BanditError(f"{config['experiment']} has no setting {', '.join(sorted(unknown))}")
        experiment = kind(**{name: _frozen(value) for name, value in config.items() if name in known})
        return experiment.config(), experiment.results
    if "scores" in config:
        task = Task(config["scores"], tuple(config["diagnostics"]), tuple(config["strengths"]))
        return task.config, task.results
    if "loop" in config and "frontier" not in config:
        world = worlds.get(config["world"])
        about = {"world": world.id, "world_settings": dict(world.settings)}
        own = {name: value for name, value in config.items() if name not in ("loop", *about)}
        loop = loops.get(config["loop"], **{name: _frozen(value) for name, value in own.items()})
        return {**loop.config(), **about}, lambda: loops.record(loop, world.problem)
    return None


def _frozen(value: Any) -> Any:
    """A value read from JSON as a setting has it: lists as tuples."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def compare(then: pd.DataFrame, now: pd.DataFrame, *, exact: bool) -> Finding:
    """Whether two tables are the same; `exact`: bit for bit, else numbers up to `TOLERANCE`."""
    if list(then.columns) != list(now.columns) or len(then) != len(now):
        shapes = [f"{len(frame)} rows of {', '.join(map(str, frame.columns))}" for frame in (then, now)]
        return False, f"rows: {shapes[0]} in the record, {shapes[1]} again"
    worst, where = 0.0, ""
    for name in then.columns:
        first, second = then[name].to_numpy(), now[name].to_numpy()
        numbers = first.dtype.kind == "f" and second.dtype.kind == "f"
        same = (first == second) | (pd.isna(first) & pd.isna(second))
        if same.all():
            continue
        row = int(np.flatnonzero(~same)[0])
        off = np.inf
        if numbers and (np.isfinite(first) == np.isfinite(second)).all():
            both = ~same & np.isfinite(first)
            apart = np.abs(first[both] - second[both]) / np.maximum(1, np.abs(first[both]))
            off = float(apart.max()) if both.sum() == (~same).sum() else np.inf
        if off > worst:
            worst, where = off, f"{name} of row {row} was {first[row]!r}, is {second[row]!r}"
    what = f"rows: all {len(then)} solved again"
    if not where:
        return True, f"{what}: the same bits"
    if exact or worst > TOLERANCE:
        return False, f"{what}: they differ: {where}"
    return True, f"{what}: equal up to {worst:.1g}, having been made elsewhere: {where}"

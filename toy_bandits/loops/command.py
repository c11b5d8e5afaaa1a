"""``python -m toy_bandits loop``: an outer loop in a world, step by step."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from analysis.records import is_complete, sole, write_run
from objectives.domains import hyperparameters
from toy_bandits import loops, worlds
from toy_bandits.arguments import setting
from toy_bandits.worlds.command import find

EXAMPLES = """examples:
  python -m toy_bandits loop                                                   list the loops and their settings
  python -m toy_bandits loop espo                                              run one and print its steps
  python -m toy_bandits loop rlhf_ppo --set beta=0.5 samples=256 --out out/loops
  python -m toy_bandits loop accelerated --set extrapolation=0.5 --world bradley_terry/3 --out out/loops
  python -m toy_bandits loop mrpo --world several_references/0

Each row is one step: KL to the reference, expected reward, and regret, what is missing to the best policy of that KL.
With --out a record is written to OUT/LOOP/WORLD; a finished one is skipped when the command is run again; --again makes it anew.
"""
SHOWN = ("step", "stage", "kl_policy_reference", "expected_reward", "win_rate", "regret", "shortfall")
ROWS = 12


def add_parser(commands: Any) -> None:
    """Add the subcommand to an argparse set of commands; its handler is in ``handler``."""
    parser = commands.add_parser(
        "loop",
        help="run an outer loop (rlhf_ppo, espo, rso, accelerated, ...) exactly",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", metavar="LOOP", help=f"of {', '.join(loops.names())}; default: list them")
    parser.add_argument("--world", help="a world's id; default: bradley_terry/1 (mrpo: several_references/0)")
    parser.add_argument("--file", type=Path, help="a YAML file of worlds to find it in")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of the loop")
    parser.add_argument("--out", type=Path, help="folder to write a record into")
    parser.add_argument("--again", action="store_true", help="make a finished record anew")
    parser.set_defaults(handler=run)


def run(chosen: argparse.Namespace) -> int:
    """Run the subcommand; 0 on success. Raises BanditError, ObjectiveError or RecordError on bad input."""
    if chosen.name is None:
        print("\n".join(_describe(kind) for kind in loops.LOOPS.values()))
        return 0
    loop = loops.get(chosen.name, **dict(setting(text) for text in chosen.set))
    own = None if chosen.file is None else worlds.load_file(chosen.file)
    world = find(chosen.world or ("several_references/0" if loop.needs_references else "bradley_terry/1"), own)
    config = {**loop.config(), "world": world.id, "world_settings": dict(world.settings)}
    folder = None if chosen.out is None else chosen.out / loop.name / world.id.replace("/", "-")
    with sole(folder) if folder is not None else contextlib.nullcontext():
        if folder is not None and not chosen.again and is_complete(folder, config):
            print(f"{loop.name} in {world.id}: already complete in {folder}")
            return 0
        frame = loops.record(loop, world.problem, progress=lambda steps: tqdm(steps, unit="step", disable=None))
        if folder is not None:
            seeds = {"sampling": config.get("seed", 0)}
            write_run(
                folder,
                kind="bandit",
                id=f"bandit/{loop.name}/{world.id}",
                config=config,
                seeds=seeds,
                tables={"results": frame},
            )
            print(f"{len(frame)} rows in {folder}")
    print(_table(frame))
    return 0


def _describe(kind: type[loops.Loop]) -> str:
    settings = ", ".join(f"{parameter.name}={parameter.default!r}" for parameter in hyperparameters(kind))
    return f"{kind.name:<14} {kind.summary} ({kind.source})\n{'':<14} {settings}"


def _table(frame: pd.DataFrame) -> str:
    """The steps, evenly thinned where there are many; means over data sets."""
    shown = [column for column in SHOWN if column in frame]
    means = frame[shown].groupby(["step", "stage"], sort=False).mean().reset_index()
    every = max(1, -(-len(means) // ROWS))
    kept = means[(means.index % every == 0) | (means.index == len(means) - 1)]
    return str(kept.to_string(index=False, float_format=lambda value: f"{value:.6g}"))

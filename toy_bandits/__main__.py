"""``python -m toy_bandits``: exact experiments, worlds, outer loops and profiles."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

from tqdm import tqdm

from analysis.records import RecordError, is_complete, sole, write_run
from objectives import ObjectiveError
from objectives.domains import unknown_name
from toy_bandits import verify
from toy_bandits.errors import BanditError
from toy_bandits.experiments import EXPERIMENTS, Experiment
from toy_bandits.frontiers import command as frontiers_command
from toy_bandits.leaderboard import command as leaderboard_command
from toy_bandits.loops import command as loops_command
from toy_bandits.profile import command as profile_command
from toy_bandits.worlds import command as worlds_command

EXAMPLES = """examples:
  python -m toy_bandits run --out out/bandits                 all experiments
  python -m toy_bandits run determinism frontier --out out/bandits
  python -m toy_bandits list
  python -m toy_bandits worlds partial_support/0              what a world is
  python -m toy_bandits profile maxpo --out out/maxpo         the card of one objective
  python -m toy_bandits loop rlhf_ppo --out out/loops         an outer loop, step by step
  python -m toy_bandits frontier dpo ipo --out out/frontiers  KL against reward and win rate, every strength

A finished experiment is skipped when the command is run again; --again makes it anew.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 on success, 1 where what was verified does not reproduce, 2 on bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m toy_bandits",
        description="Preference objectives in tabular bandits, solved exactly.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the experiments and the claims they serve")
    run = commands.add_parser(
        "run",
        help="solve experiments and write one record each",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help=f"of {', '.join(EXPERIMENTS)}; default: all")
    run.add_argument("--out", type=Path, required=True, help="folder; each experiment writes a folder of its own in it")
    run.add_argument("--again", action="store_true", help="make finished experiments anew")
    subcommands = (worlds_command, loops_command, frontiers_command, profile_command, leaderboard_command, verify)
    for command in subcommands:
        command.add_parser(commands)
    chosen = parser.parse_args(arguments)
    try:
        if hasattr(chosen, "handler"):
            out = (
                getattr(chosen, "out", None) if chosen.command != "loop" else None
            )  # a loop has a folder of its own there
            with sole(out) if out is not None else contextlib.nullcontext():
                return int(chosen.handler(chosen))
        if chosen.command == "list":
            for name, experiment in EXPERIMENTS.items():
                print(f"{name:<18} {experiment.claim}")
            return 0
        for name in chosen.experiments:
            if name not in EXPERIMENTS:
                raise BanditError(unknown_name("experiment", name, list(EXPERIMENTS)))
        return _run([EXPERIMENTS[name] for name in chosen.experiments or EXPERIMENTS], chosen.out, chosen.again)
    except (BanditError, ObjectiveError, RecordError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(experiments: list[Experiment], out: Path, again: bool) -> int:
    bar = tqdm(experiments, unit="experiment", disable=None)
    for experiment in bar:
        bar.set_description(experiment.name)
        folder = out / experiment.name
        with sole(folder):
            if not again and is_complete(folder, experiment.config()):
                tqdm.write(f"{experiment.name}: already complete in {folder}")
                continue
            results = experiment.results()
            write_run(
                folder,
                kind="bandit",
                id=f"bandit/{experiment.name}",
                config=experiment.config(),
                seeds={"data": experiment.config().get("seed", 0)},
                tables={"results": results},
            )
        tqdm.write(f"{experiment.name}: {len(results)} rows in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""``python -m toy_bandits frontier``: frontiers of objectives, as records, figures and a page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd
from matplotlib.figure import Figure
from tqdm import tqdm

import objectives
from analysis.records import atomic_write
from objectives import ObjectiveError
from toy_bandits import worlds
from toy_bandits.errors import BanditError
from toy_bandits.frontiers import figure, summary
from toy_bandits.frontiers.pieces import Piece, pieces, slug
from toy_bandits.worlds import World
from toy_bandits.worlds.command import find

WORLDS = (
    "bradley_terry/1",
    "bradley_terry/3",
    "determinism/3",
    "determinism/8",
    "partial_support/4",
    "label_noise/3",
    "neglected_best/1",
    "bradley_terry/6",
    "many_actions/4",
    "several_references/0",
)
"""Noisy, near-deterministic (twice), deterministic, partial support, turned labels, a neglected best action, contexts, 32 actions, two
references."""

EXAMPLES = """examples:
  python -m toy_bandits frontier --out out/frontiers                               the whole registry in ten worlds
  python -m toy_bandits frontier dpo ipo maxpo --out out/frontiers --loops --paths
  python -m toy_bandits frontier "dpo+forward_kl(weight=0.1)" --worlds determinism/6 --out out/mine

Writes a record per world and objective to OUT/WORLD/KIND/NAME, figures OUT/WORLD-reward and OUT/WORLD-win_rate (PNG and PDF), and
OUT/frontiers.md. Finished records are kept when the command is run again, so it can be stopped and continued; --again makes them anew.
"""


def add_parser(commands: Any) -> None:
    """Add the subcommand to an argparse set of commands; its handler is in ``handler``."""
    parser = commands.add_parser(
        "frontier",
        help="KL against reward and win rate for every strength, below the exact optimum",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="objectives, or sums such as dpo+forward_kl; default: all"
    )
    parser.add_argument("--worlds", nargs="+", metavar="ID", help=f"default: {' '.join(WORLDS)}")
    parser.add_argument("--file", type=Path, help="a YAML file of worlds to find them in")
    parser.add_argument("--out", type=Path, required=True, help="folder for records, figures and page")
    parser.add_argument(
        "--per-decade", type=int, default=5, metavar="N", help="strengths per factor of ten (default 5)"
    )
    parser.add_argument("--loops", action="store_true", help="outer loops too")
    parser.add_argument("--paths", action="store_true", help="what Adam goes through on its way too")
    parser.add_argument("--again", action="store_true", help="make finished records anew")
    parser.set_defaults(handler=run)


def run(chosen: argparse.Namespace) -> int:
    """Run the subcommand; 0 on success. Raises BanditError, ObjectiveError or RecordError on bad input."""
    if chosen.per_decade < 1:
        raise BanditError(f"--per-decade: must be at least 1; got {chosen.per_decade}")
    own = None if chosen.file is None else worlds.load_file(chosen.file)
    found = {world_id: find(world_id, own) for world_id in chosen.worlds or own or WORLDS}
    names = list(dict.fromkeys(chosen.names)) or objectives.names()
    planned = {
        world_id: pieces(world, names, chosen.per_decade, with_loops=chosen.loops, with_paths=chosen.paths)
        for world_id, world in found.items()
    }
    done, left_out = _make(planned, chosen.out, again=chosen.again)
    if chosen.names and left_out and not any(piece.name in names for made in done.values() for piece in made):
        raise BanditError(left_out[0])
    frames = {}
    for world_id, made in done.items():
        frames[world_id] = pd.concat([piece.read(chosen.out) for piece in made], ignore_index=True)
        _draw(found[world_id], frames[world_id], chosen.out)
    atomic_write(chosen.out / "frontiers.md", summary.page(frames, found, left_out).encode())
    for line in left_out:
        print(f"left out: {line}")
    print(f"figures and frontiers.md in {chosen.out}")
    return 0


def _make(planned: dict[str, list[Piece]], out: Path, *, again: bool) -> tuple[dict[str, list[Piece]], list[str]]:
    """Makes what is not done; returns what is there now, by world, and a line for each piece that cannot be."""
    left_out = []
    done: dict[str, list[Piece]] = {world_id: [] for world_id in planned}
    bar = tqdm(
        [(world_id, piece) for world_id in planned for piece in planned[world_id]], unit="frontier", disable=None
    )
    for world_id, piece in bar:
        bar.set_description(f"{world_id} {piece.name}")
        try:
            if again or not piece.done(out):
                piece.write(out)
            done[world_id].append(piece)
        except (BanditError, ObjectiveError) as error:
            reason = str(error).removeprefix(f"world {world_id}: ")
            left_out.append(f"{piece.name} in {world_id}: {reason.removeprefix(f'{piece.name}: ')}")
    return done, list(dict.fromkeys(left_out))


def _draw(world: World, frame: pd.DataFrame, out: Path) -> None:
    for measure, name in (("expected_reward", "reward"), ("win_rate", "win_rate")):
        drawn = figure.draw(world, frame, measure)
        for kind in ("png", "pdf"):
            atomic_write(out / f"{slug(world.id)}-{name}.{kind}", _writer(drawn, kind))


def _writer(drawn: Figure, kind: str) -> Any:
    def write(handle: BinaryIO) -> None:
        # Dates and program versions would change the bytes from day to day.
        metadata = {"CreationDate": None} if kind == "pdf" else {"Software": None}
        drawn.savefig(handle, format=kind, dpi=200, metadata=metadata)

    return write

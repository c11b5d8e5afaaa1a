"""``python -m toy_bandits leaderboard`` and ``factorial``: scores of many objectives, as page, figures and tables."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from tqdm import tqdm

import objectives
from analysis.records import atomic_write, write_run, write_unlocked
from objectives import Strength
from objectives.factorial import NONE
from toy_bandits import diagnostics
from toy_bandits.diagnostics import DIAGNOSTICS
from toy_bandits.errors import BanditError
from toy_bandits.leaderboard import figures, text
from toy_bandits.leaderboard.decomposition import complete, decompose
from toy_bandits.leaderboard.selection import (
    at_each_strength,
    inapplicable,
    leaderboard,
    missing_scores,
    without_scores,
)
from toy_bandits.leaderboard.tasks import SELECTION, Task, read, run

LOSSES = ("dpo", "cdpo", "ipo", "exo_pref", "maxpo(beta=0)", "simpo")
REGULARISERS = (NONE, "forward_kl", "chosen_nll", "reverse_kl")

LEADERBOARD_EXAMPLES = """examples:
  python -m toy_bandits leaderboard --out out/leaderboard                      the whole registry
  python -m toy_bandits leaderboard dpo ipo maxpo --strengths 3 --out out/three
  python -m toy_bandits leaderboard --only regret determinism --out out/two
  python -m toy_bandits leaderboard --out out/leaderboard --docs docs          docs/leaderboard.md and its figure, too

Writes OUT/leaderboard.md, its figure (PNG and PDF), tables results and leaderboard (Parquet) with run.json, and a record per objective
below OUT/scores. Finished records are kept when the command is run again, so it can be stopped and continued.
"""
FACTORIAL_EXAMPLES = """examples:
  python -m toy_bandits factorial --out out/factorial
  python -m toy_bandits factorial --out out/factorial --docs docs              docs/factorial.md and its figures, too
  python -m toy_bandits factorial --losses dpo ipo --regularisers none "forward_kl(weight=1.0)" --out out/four

Writes OUT/factorial.md, two figures (PNG and PDF), tables results and shares (Parquet) with run.json, and a record per combination
below OUT/scores. Finished records are kept when the command is run again.
"""


def add_parser(commands: Any) -> None:
    """Add both subcommands to an argparse set of commands; their handlers are in ``handler``."""
    board = commands.add_parser(
        "leaderboard",
        help="every objective at its best strength over all diagnostics",
        epilog=LEADERBOARD_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    board.add_argument(
        "names", nargs="*", metavar="NAME", help="objectives, or sums such as dpo+forward_kl; default: all"
    )
    board.add_argument("--strengths", type=int, default=6, metavar="N", help="how many for each objective (default 6)")
    board.set_defaults(handler=_leaderboard)
    factorial = commands.add_parser(
        "factorial",
        help="pair losses x regularisers over all diagnostics: which component does the work",
        epilog=FACTORIAL_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    factorial.add_argument("--losses", nargs="+", metavar="NAME", default=LOSSES, help=f"default: {' '.join(LOSSES)}")
    factorial.add_argument(
        "--regularisers", nargs="+", metavar="NAME", default=REGULARISERS, help=f"default: {' '.join(REGULARISERS)}"
    )
    factorial.set_defaults(handler=_factorial)
    for parser in (board, factorial):
        parser.add_argument(
            "--only", nargs="+", default=[], metavar="ID", help=f"diagnostics, of {', '.join(DIAGNOSTICS)}"
        )
        parser.add_argument("--out", type=Path, required=True, help="folder for page, figures, tables and records")
        parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), metavar="N", help="processes")
        parser.add_argument(
            "--docs", type=Path, metavar="DIR", help="put page and figures into a documentation folder, too"
        )
        parser.add_argument("--again", action="store_true", help="make finished records anew")


def _leaderboard(chosen: argparse.Namespace) -> int:
    """0 on success. Raises BanditError, ObjectiveError or RecordError on bad input."""
    if chosen.strengths < 1:
        raise BanditError(f"--strengths: must be at least 1; got {chosen.strengths}")
    names = list(dict.fromkeys(chosen.names)) or objectives.names()
    declared = {name: objectives.parse(name).strength for name in names}
    only = tuple(_only(chosen))
    tasks = [Task(name, only, tuple(_strengths(strength, chosen.strengths))) for name, strength in declared.items()]
    everything = _scores(tasks, chosen)
    choices, frame = (everything[(everything["diagnostic"] == SELECTION) == of] for of in (True, False))
    left_out = without_scores(frame, choices)
    scored = frame[~frame["name"].isin(list(left_out))]
    if scored.empty:
        raise BanditError("no objective has a score: " + "; ".join(f"{name}: {why}" for name, why in left_out.items()))
    rising = {name: strength is None or strength.rising for name, strength in declared.items()}
    without = inapplicable(scored)
    board = leaderboard(at_each_strength(scored), choices, rising, {name: list(of) for name, of in without.items()})
    command = _command(
        "leaderboard", chosen.names, strengths=chosen.strengths, only=chosen.only, docs=chosen.docs and "docs"
    )
    missing = missing_scores(scored, board)
    _write(
        chosen.out,
        "leaderboard",
        {"names": names, "strengths": chosen.strengths, "diagnostics": _only(chosen)},
        {"results": everything, "leaderboard": board.reset_index()},
        lambda folder: text.leaderboard(
            board, missing, without, left_out, chosen.strengths, f"{folder}leaderboard.png", command
        ),
        {"leaderboard": figures.leaderboard(board, text.row_labels(board))},
        chosen.docs,
    )
    for name, why in left_out.items():
        print(f"not run: {name}: {why}")
    columns = ["place", "best_strength", "value", "mean", "missing", "sensitivity"]
    print(board[columns].to_string(float_format=lambda value: f"{value:.3g}"))
    print(f"leaderboard.md and figures in {chosen.out}")
    return 0


def _factorial(chosen: argparse.Namespace) -> int:
    """0 on success. Raises BanditError, ObjectiveError or RecordError on bad input."""
    cells = objectives.factorial(chosen.losses, chosen.regularisers)
    only = _only(chosen)
    labels = {cell.objective.label: cell for cell in cells}
    frame = _scores([Task(label, tuple(only)) for label in labels], chosen)
    frame["pair_loss"] = [labels[label].pair_loss for label in frame["name"]]
    frame["regulariser"] = [labels[label].regulariser for label in frame["name"]]
    losses = list(dict.fromkeys(cell.pair_loss for cell in cells))
    regularisers = list(dict.fromkeys(cell.regulariser for cell in cells))
    tables, found, lost = {}, {}, {}
    for name in only:
        table = frame[frame["diagnostic"] == name].pivot(index="pair_loss", columns="regulariser", values="score")
        tables[name] = table.reindex(index=losses, columns=regularisers)
        kept, lost[name] = complete(tables[name])
        if len(kept):
            found[name] = decompose(kept)
    command = _command(
        "factorial",
        [],
        losses=_unless(chosen.losses, LOSSES),
        regularisers=_unless(chosen.regularisers, REGULARISERS),
        only=chosen.only,
        docs=chosen.docs and "docs",
    )
    rows = [
        {"diagnostic": name, "component": key, "share": share}
        for name, of in found.items()
        for key, share in of.shares.items()
    ]
    _write(
        chosen.out,
        "factorial",
        {"losses": losses, "regularisers": regularisers, "diagnostics": only},
        {"results": frame, "shares": pd.DataFrame(rows, columns=["diagnostic", "component", "share"])},
        lambda folder: text.factorial(
            tables, found, lost, (f"{folder}factorial.png", f"{folder}factorial_shares.png"), command
        ),
        {"factorial": figures.factorial(tables, found), "factorial_shares": figures.shares(found)},
        chosen.docs,
    )
    print(f"factorial.md and figures in {chosen.out}")
    return 0


def _only(chosen: argparse.Namespace) -> list[str]:
    """The ids of the diagnostics asked for. Raises BanditError at an unknown one."""
    for name in chosen.only:
        diagnostics.get(name)
    return [name for name in DIAGNOSTICS if not chosen.only or name in chosen.only]


def _strengths(strength: Strength | None, count: int) -> list[float]:
    """``count`` values evenly spaced by ratio over the declared range (of one, its middle); none without a strength."""
    if strength is None:
        return []
    low, high = np.log10(strength.low), np.log10(strength.high)
    return [float(10.0**value) for value in (np.linspace(low, high, count) if count > 1 else [0.5 * (low + high)])]


def _scores(tasks: Sequence[Task], chosen: argparse.Namespace) -> pd.DataFrame:
    if chosen.workers < 1:
        raise BanditError(f"--workers: must be at least 1; got {chosen.workers}")
    with tqdm(total=len(tasks), unit="objective", disable=None, smoothing=0.05) as bar:

        def step(task: Task) -> None:
            bar.set_description(task.name)
            bar.update()

        run(tasks, chosen.out, workers=chosen.workers, again=chosen.again, step=step)
    return read(tasks, chosen.out)


def _write(
    out: Path,
    name: str,
    config: dict[str, Any],
    tables: dict[str, pd.DataFrame],
    page: Callable[[str], str],
    drawn: dict[str, Figure],
    docs: Path | None,
) -> None:
    """``page`` of where its pictures lie; with ``docs`` it and they go there, too."""
    write_run(out, kind="bandit", id=f"bandit/{name}", config={name: config}, seeds={"data": 0}, tables=tables)
    for stem, figure in drawn.items():
        for kind in ("png", "pdf"):
            atomic_write(out / f"{stem}.{kind}", figures.writer(figure, kind))
    atomic_write(out / f"{name}.md", page("").encode())
    if docs is not None:
        for stem, figure in drawn.items():
            write_unlocked(docs / "figures" / f"{stem}.png", figures.writer(figure, "png"))
        write_unlocked(docs / f"{name}.md", page("figures/").encode())


def _unless(given: Sequence[str], default: Sequence[str]) -> Sequence[str]:
    return [] if tuple(given) == tuple(default) else given


def _command(name: str, names: Sequence[str], **options: Any) -> str:
    """The command line that makes the page."""
    words = ["python", "-m", "toy_bandits", name, *names]
    for key, value in options.items():
        if value:
            words += [f"--{key}", *(map(str, value) if isinstance(value, list | tuple) else [str(value)])]
    return shlex.join([*words, "--out", "OUT"])

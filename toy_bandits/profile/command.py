"""``python -m toy_bandits profile``: the card of one objective."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

import objectives
from analysis.records import atomic_write, write_run, write_unlocked
from objectives import Objective
from toy_bandits.arguments import setting
from toy_bandits.diagnostics import DIAGNOSTICS, get, page
from toy_bandits.errors import BanditError
from toy_bandits.profile import card, text
from toy_bandits.profile.measuring import Profile, profile, steps
from toy_bandits.profile.parallel import prepare

BASELINES = ("dpo", "ipo", "maxpo")
MOST_BASELINES = 6

EXAMPLES = """examples:
  python -m toy_bandits profile maxpo --out out/maxpo                         against dpo, ipo and maxpo
  python -m toy_bandits profile dpo --set beta=0.5 --out out/dpo
  python -m toy_bandits profile "dpo(beta=0.1)+forward_kl(weight=0.1)" --compare dpo maxpo simpo --out out/sum
  python -m toy_bandits profile ipo --only determinism off_support --compare --out out/quick
  PREFERENCE_OBJECTIVES_PLUGINS=mine.py python -m toy_bandits profile mine --out out/mine
  python -m toy_bandits profile --page docs/diagnostics.md                    write the documentation of the diagnostics

Writes OUT/card.png, card.pdf and card.md, tables results, scores and frontier (Parquet) with run.json, and a record per objective and
diagnostic below OUT/probes. Finished records are kept when the command is run again, so it can be stopped and continued, and
further cards in the same folder find the baselines ready; --again makes them anew.
"""


def add_parser(commands: Any) -> None:
    """Add the subcommand to an argparse set of commands; its handler is in ``handler``."""
    parser = commands.add_parser(
        "profile",
        help="the card of one objective: a score for every diagnostic, against baselines, and its frontier",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="an objective, or a sum such as dpo+forward_kl")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="its hyper-parameters")
    parser.add_argument(
        "--compare", nargs="*", default=BASELINES, metavar="NAME", help=f"baselines; default: {' '.join(BASELINES)}"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="ID", help=f"diagnostics, of {', '.join(DIAGNOSTICS)}")
    parser.add_argument("--out", type=Path, help="folder for card, tables and records")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), metavar="N", help="processes")
    parser.add_argument("--again", action="store_true", help="make finished records anew")
    parser.add_argument("--page", type=Path, help="write docs/diagnostics.md to this path, and nothing else")
    parser.set_defaults(handler=run)


def run(chosen: argparse.Namespace) -> int:
    """Run the subcommand; 0 on success. Raises BanditError, ObjectiveError or RecordError on bad input."""
    if chosen.page is not None:
        write_unlocked(chosen.page, page.page().encode())
        return 0
    if chosen.name is None or chosen.out is None:
        raise BanditError("profile: NAME and --out are needed")
    only = list(dict.fromkeys(chosen.only))
    for name in only:
        get(name)
    objective = _with_settings(objectives.parse(chosen.name), dict(setting(text) for text in chosen.set))
    compared = {label: other for label, other in _labelled(chosen.compare).items() if label != objective.label}
    if len(compared) > MOST_BASELINES:
        raise BanditError(f"--compare: a card shows at most {MOST_BASELINES} baselines; got {len(compared)}")
    if chosen.workers < 1:
        raise BanditError(f"--workers: must be at least 1; got {chosen.workers}")
    everyone = [objective, *compared.values()]
    ready = prepare(everyone, chosen.out, only, workers=chosen.workers, again=chosen.again)
    measured: list[Profile] = []
    with tqdm(total=steps(only) * len(everyone), unit="probe", disable=None) as bar:
        for each in everyone:
            bar.set_description(each.label)
            again = chosen.again and not ready
            measured.append(profile(each, chosen.out, only, again=again, step=lambda name: bar.update()))
    write(measured[0], measured[1:], chosen.out)
    print(text.table(measured[0], measured[1:]))
    print(f"\ncard.png, card.pdf and card.md in {chosen.out}")
    return 0


def write(mine: Profile, others: list[Profile], out: Path) -> None:
    """Card and tables. Raises RecordError where they cannot be written."""
    everyone = [mine, *others]
    write_run(
        out,
        kind="bandit",
        id=f"bandit/profile/{mine.objective.label}",
        config={
            "profile": mine.objective.label,
            "hyperparameters": mine.objective.hyperparameters,
            "compare": [other.objective.label for other in others],
            "diagnostics": list(mine.scores),
        },
        seeds={"data": 0},
        tables={
            "results": pd.concat([each.results for each in everyone], ignore_index=True),
            "scores": pd.concat([each.rows for each in everyone], ignore_index=True),
            "frontier": pd.concat(
                [each.frontier.assign(objective=each.objective.label) for each in everyone], ignore_index=True
            ),
        },
    )
    atomic_write(out / "card.md", text.card(mine, others, "card.png").encode())
    figure = card.draw(mine, others)
    for kind in ("png", "pdf"):
        atomic_write(out / f"card.{kind}", card.writer(figure, kind))


def _labelled(names: list[str]) -> dict[str, Objective]:
    return {objective.label: objective for objective in map(objectives.parse, names)}


def _with_settings(objective: Objective, settings: dict[str, Any]) -> Objective:
    """The objective with other hyper-parameters; those of a sum's part are named ``forward_kl.weight``."""
    for name, value in settings.items():
        if len(objective.parts) == 1:
            part, key = objective.parts[0], name
        else:
            named, _, key = name.rpartition(".")
            found = [part for part in objective.parts if part.name == named]
            if not found:
                parts = ", ".join(f"{each.name}.{key}" for each in objective.parts)
                raise BanditError(f"--set: say which part of {objective.name} {name!r} belongs to: {parts}")
            (part,) = found
        changed = part.rebuild(**{**part.hyperparameters, key: value})
        objective = Objective(
            tuple(p for each in objective.parts for p in (changed.parts if each is part else (each,)))
        )
    return objective

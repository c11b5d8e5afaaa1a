"""The command ``python -m analysis compare``: methods against each other, with intervals over training seeds and items."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable

import pandas as pd
from tabulate import tabulate

from analysis import aggregates, tuning
from analysis.evidence import FULL, METHODS, NEAR_DETERMINISTIC, Evidence, comparable, seeded
from analysis.frontiers import dominance_table
from analysis.matching import at_equal_kl, at_equal_reward
from analysis.measured import measured_points
from analysis.overoptimisation import humps

EXAMPLES = """\
examples:
  python -m analysis compare paper_figures/records                          every table that the records fill
  python -m analysis compare out/evidence --table dominance --labels noisy  areas between frontiers, hypervolumes
  python -m analysis compare out/evidence --table equal-kl --methods maxpo dpo --format csv > matched.csv
  python -m analysis compare out/evidence --table humps --support top_p=0.5 over-optimisation of the second reward
"""
Options = argparse.Namespace
_WITH_SEEDS = "Intervals: 95 %, over training seeds and items where `seeds` is 2 or more, else over items alone."
TITLES = {
    "budgets": "What each method was searched over",
    "selected": "The best setting of each method: " + tuning.RULE,
    "dominance": "Frontiers at equal KL: first less second. Areas in units of reward, hypervolume in reward times nats. "
    + _WITH_SEEDS,
    "equal-kl": "Reward at equal KL along training: first less second. " + _WITH_SEEDS,
    "equal-reward": "KL (nats) at equal reward along training: first less second. " + _WITH_SEEDS,
    "humps": "Over-optimisation of the second reward along training; the peak is chosen on one half of the prompts. "
    + _WITH_SEEDS,
    "aggregates": "Reward over all kinds of labels and supports that every method was run on. Intervals: stratified bootstrap over runs.",
    "improvement": "Probability that a run of the first scores above one of the second. Intervals: stratified bootstrap over runs.",
}


class NothingToCompare(ValueError):
    """The records fill none of the tables that were asked for."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "folders", nargs="*", default=["out"], metavar="FOLDER", help="where the records lie (default: out)"
    )
    parser.add_argument(
        "--table", choices=tuple(TITLES), help="one table only (default: every one that the records fill)"
    )
    parser.add_argument(
        "--methods", nargs="+", metavar="NAME", default=list(METHODS), help="objectives (default: dpo ipo maxpo)"
    )
    parser.add_argument("--labels", default=NEAR_DETERMINISTIC, help="kind of labels (default: near_deterministic)")
    parser.add_argument("--support", default=FULL, help="support of the pairs (default: full)")
    parser.add_argument("--format", choices=("text", "markdown", "csv"), default="text", help="default: text")


def command(options: Options) -> list[str]:
    """Print the tables; returns a line for each folder or run that was skipped.

    Raises:
        NothingToCompare: no table can be filled, with the reason.
        RecordError: a folder does not exist.
    """
    evidence = Evidence.load(*options.folders)
    found: dict[str, pd.DataFrame] = {}
    reasons: list[ValueError] = []
    for name in TITLES if options.table is None else (options.table,):
        try:
            found[name] = TABLES[name](evidence, options)
        except ValueError as reason:  # records that are missing, or cannot be compared
            reasons.append(reason)
    if not found:
        raise NothingToCompare(str(reasons[0]))
    if options.format == "csv" and len(found) > 1:
        raise NothingToCompare(f"--format csv is of one table; add --table with one of {', '.join(found)}")
    print("\n\n".join(_render(name, table, options.format) for name, table in found.items()))
    return [*evidence.skipped, *evidence.left_out, *(f"left out a table: {reason}" for reason in reasons)]


def _render(name: str, table: pd.DataFrame, style: str) -> str:
    if style == "csv":
        return table.to_csv(index=False).rstrip("\n")
    shown = tabulate(
        table.to_dict("list"), "keys", tablefmt="github" if style == "markdown" else "simple", floatfmt=".3g"
    )
    return f"{'## ' if style == 'markdown' else ''}{name}\n\n{TITLES[name]}\n\n{shown}"


def _pairs(options: Options) -> list[tuple[str, str]]:
    if len(options.methods) < 2:
        raise ValueError("a comparison needs two methods or more")
    return list(itertools.combinations(options.methods, 2))


def _dominance(evidence: Evidence, options: Options) -> pd.DataFrame:
    methods = {name: evidence.method(name, options.labels, options.support) for name in options.methods}
    frames = []
    for pair in _pairs(options):
        compared = seeded({name: methods[name] for name in pair})
        frames.append(dominance_table({name: measured_points(found) for name, found in compared.items()}, [pair]))
    return pd.concat(frames, ignore_index=True)


def _matched(evidence: Evidence, options: Options, table: Callable[..., pd.DataFrame]) -> pd.DataFrame:
    chosen = comparable(evidence, options.labels, options.methods, options.support)
    paths = {name: measured_points([setting], along="steps") for name, setting in chosen.items()}
    frames = []
    for first, second in _pairs(options):
        found = table(paths[first], paths[second]).rename(columns={"first": "of_first", "second": "of_second"})
        found.insert(0, "first", chosen[first].label)
        found.insert(1, "second", chosen[second].label)
        frames.append(found)
    return pd.concat(frames, ignore_index=True)


def _humps(evidence: Evidence, options: Options) -> pd.DataFrame:
    found = [evidence.method(name, options.labels, options.support) for name in options.methods]
    table = humps([setting for settings in found for setting in settings])
    if table.empty:
        raise ValueError("no training was evaluated at three steps or more with the second reward")
    return table.drop(columns=["objective", "strength", "labels", "support"])


def _scores(evidence: Evidence, options: Options) -> pd.DataFrame:
    settings = [one for name in options.methods for one in evidence.language_model(name, support=None)]
    shared = comparable(evidence, options.labels, options.methods, options.support)
    labels = {setting.label for setting in shared.values()}
    return aggregates.scores_of([one for one in settings if one.label in labels])


TABLES: dict[str, Callable[[Evidence, Options], pd.DataFrame]] = {
    "budgets": lambda evidence, options: tuning.budgets(evidence, options.methods),
    "selected": lambda evidence, options: tuning.selected_table(evidence, options.labels, options.support),
    "dominance": _dominance,
    "equal-kl": lambda evidence, options: _matched(evidence, options, at_equal_kl),
    "equal-reward": lambda evidence, options: _matched(evidence, options, at_equal_reward),
    "humps": _humps,
    "aggregates": lambda evidence, options: aggregates.aggregate(_scores(evidence, options)),
    "improvement": lambda evidence, options: aggregates.probability_of_improvement(_scores(evidence, options)),
}

"""Equal tuning budgets, and choosing on other prompts than those that are reported.

Every method must have been searched over as many strengths, learning rates and numbers of steps, with as many runs; `budgets` reads that
off the records. What is then chosen is chosen by a stated rule on the *selection* half of the evaluation prompts and reported on the
*report* half: a maximum over noisy means is too high on the prompts that picked it, and right on others.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from analysis import seeds
from analysis.evidence import METHODS, Evidence, MissingEvidence, Setting, settings
from analysis.measured import KL, REWARD, SPLIT
from analysis.records import Run
from analysis.statistics import Interval

RULE = (
    "of a method's settings, the one with the largest mean reward on the selection half of the held-out prompts, among those whose mean KL "
    "there is within the budget; reported on the other half"
)
# What a search may differ in; all else must be equal for runs to be of one search.
SEARCHED = ("learning_rate", "steps")


def halves(items: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Masks of the selection and the report half of items (n,): a fixed rule, the same in every run and for every method.

    By rank of a checksum of each item's name, so that both halves have n/2 items (the report half one more for odd n), and neither
    follows the order of the items.
    """
    names = [str(item) for item in np.ravel(np.asarray(items))]
    order = sorted(range(len(names)), key=lambda place: (zlib.crc32(names[place].encode()), names[place]))
    selection = np.zeros(len(names), dtype=bool)
    selection[order[: len(names) // 2]] = True
    return selection, ~selection


def budgets(evidence: Evidence, methods: Iterable[str] | None = None) -> pd.DataFrame:
    """What each method was searched over, read off the records.

    Args:
        evidence: records.
        methods: objectives by name; default: all.

    Returns:
        Rows (method, variant, labels, support): strengths, learning_rates, steps (how many values of each), settings (distinct
        combinations), seeds (fewest of a setting), runs, and ``equal``: whether all rows of the same labels and support agree in all of
        strengths, learning_rates, steps, settings, seeds.
    """
    wanted = None if methods is None else set(methods)
    rows = []
    cells: dict[tuple[str, str, str, str], list[tuple[Setting, object, object]]] = {}
    for one in _searched(evidence):
        if wanted is None or one.objective in wanted:
            rate, steps = _training(one)
            cells.setdefault((one.objective, one.variant, one.labels, one.support), []).append((one, rate, steps))
    for (method, variant, labels, support), found in cells.items():
        rows.append(
            {
                "method": method,
                "variant": variant,
                "labels": labels,
                "support": support,
                "strengths": len({one.strength for one, _, _ in found}),
                "learning_rates": len({rate for _, rate, _ in found}),
                "steps": len({steps for _, _, steps in found}),
                "settings": len(found),
                "seeds": min(len(one.runs) for one, _, _ in found),
                "runs": sum(len(one.runs) for one, _, _ in found),
            }
        )
    columns = [
        "method",
        "variant",
        "labels",
        "support",
        "strengths",
        "learning_rates",
        "steps",
        "settings",
        "seeds",
        "runs",
    ]
    frame = pd.DataFrame(rows, columns=columns).sort_values(columns[:4], ignore_index=True)
    compared = frame.groupby(["labels", "support"])[["strengths", "learning_rates", "steps", "settings", "seeds"]]
    return frame.assign(equal=(compared.transform("nunique") == 1).all(axis=1))


def candidates(evidence: Evidence, method: str, labels: str, support: str = "full") -> list[Setting]:
    """The settings among which a method's best is chosen: the variant of `Evidence.method` at all strengths, learning rates, steps.

    Raises:
        MissingEvidence: there is none.
    """
    usual = evidence.method(method, labels, support)
    same = (method, usual[0].variant, labels, support, usual[0].passes, usual[0].held_out)
    others = [
        one
        for one in _searched(evidence)
        if (one.objective, one.variant, one.labels, one.support, one.passes, one.held_out) == same
        and _training(one) != _training(usual[0])
    ]
    return [*usual, *others]


def budget_note(evidence: Evidence, labels: str, methods: Sequence[str] = METHODS, support: str = "full") -> str:
    """One sentence: whether the variants that methods are compared by had equal tuning budgets on these labels."""
    frame = budgets(evidence, methods)
    frame = frame[(frame["labels"] == labels) & (frame["support"] == support)]
    found = {}
    for method in methods:
        variant = evidence.method(method, labels, support)[0].variant
        row = frame[(frame["method"] == method) & (frame["variant"] == variant)].iloc[0]
        found[method] = tuple(int(row[key]) for key in ("strengths", "learning_rates", "steps", "seeds"))
    shown = "{0} strength(s) x {1} learning rate(s) x {2} number(s) of steps x {3} seed(s)"
    if len(set(found.values())) == 1:
        return f"equal tuning budgets on {labels} labels: {shown.format(*next(iter(found.values())))} for each method"
    listed = "; ".join(f"{method} {shown.format(*one)}" for method, one in found.items())
    return f"caveat: unequal tuning budgets on {labels} labels: {listed}"


@dataclass(frozen=True)
class Selected:
    """A method's chosen setting and what it reaches on the prompts that did not choose it."""

    setting: Setting
    tried: int  # settings it was chosen from
    kl: Interval
    reward: Interval


def select(found: Sequence[Setting], kl_budget: float = np.inf, reward: str = REWARD) -> Selected | None:
    """Choose by `RULE` among the settings of one method, and report on the other half; None where none is within the budget.

    Args:
        found: the settings searched.
        kl_budget: largest mean KL (nats) allowed on the selection half.
        reward: metric.

    Raises:
        ValueError: a setting has no evaluation of KL and reward on held-out prompts.
    """
    best: tuple[float, Setting] | None = None
    for setting in found:
        kl, rewards = _at_the_end(setting, reward)
        selection, _ = halves(kl.columns)
        score = float(rewards.loc[:, selection].to_numpy().mean())
        if float(kl.loc[:, selection].to_numpy().mean()) <= kl_budget and (best is None or score > best[0]):
            best = score, setting
    if best is None:
        return None
    tables = _at_the_end(best[1], reward)
    _, report = halves(tables[0].columns)
    kl_after, reward_after = (
        seeds.interval(table.loc[:, report].to_numpy(), over="prompts of the report half") for table in tables
    )
    return Selected(best[1], len(found), kl_after, reward_after)


def selected_table(evidence: Evidence, labels: str, support: str = "full", kl_budget: float = np.inf) -> pd.DataFrame:
    """`select` for every method: method, label, learning_rate, steps, tried, kl, kl_low, kl_high, reward, reward_low, reward_high, seeds.

    Methods are the objectives by name, chosen among their `candidates`; each has as many tries as its row of `budgets` says, which must be
    equal to compare them.
    """
    rows = []
    for method in sorted({one.objective for one in evidence.language_model(None, labels, support)}):
        found = select(candidates(evidence, method, labels, support), kl_budget)
        if found is not None:
            chosen = {"method": method, "label": found.setting.label} | dict(
                zip(SEARCHED, _training(found.setting), strict=True)
            )
            rows.append(
                chosen
                | {"tried": found.tried}
                | {"kl": found.kl.estimate, "kl_low": found.kl.low, "kl_high": found.kl.high}
                | {"reward": found.reward.estimate, "reward_low": found.reward.low, "reward_high": found.reward.high}
                | {"seeds": found.reward.seeds}
            )
    return pd.DataFrame(rows)


def _at_the_end(setting: Setting, reward: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    kl, rewards = setting.values(SPLIT, KL), setting.values(SPLIT, reward)
    if not len(kl) or not len(rewards):
        raise ValueError(f"{setting.label} has no evaluation of {reward} and KL on held-out prompts")
    shared = kl.columns.intersection(rewards.columns)
    return kl[shared], rewards[shared]


def _searched(evidence: Evidence) -> list[Setting]:
    """The settings of the search that the runs in use are of, each of one learning rate and number of steps."""
    try:
        usual = {run.folder for one in evidence.language_model(support=None) for run in one.runs}
    except MissingEvidence:
        return []
    groups: dict[str, list[Run]] = {}
    for run in evidence.language_model_runs:
        groups.setdefault(_search(run), []).append(run)
    by_training: dict[tuple[object, ...], list[Run]] = {}
    for run in max(groups.values(), key=lambda group: sum(run.folder in usual for run in group)):
        by_training.setdefault(tuple(run.config.get("training", {}).get(key) for key in SEARCHED), []).append(run)
    return [one for runs in by_training.values() for one in settings(runs)]


def _training(setting: Setting) -> tuple[Any, ...]:
    """Its values of `SEARCHED`."""
    return tuple(setting.runs[0].config.get("training", {}).get(key) for key in SEARCHED)


def _search(run: Run) -> str:
    """What runs of one search have in common."""
    shared = {
        key: run.config[key]
        for key in ("model", "data", "reward", "sft", "reference", "evaluation")
        if key in run.config
    }
    training = {key: value for key, value in run.config.get("training", {}).items() if key not in SEARCHED}
    return json.dumps([shared, training], sort_keys=True)

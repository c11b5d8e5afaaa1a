"""KL against reward: language-model runs through their checkpoints and exact sweeps of bandits, a panel for what may share axes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.evidence import settings
from analysis.frontiers import band
from analysis.measured import REWARD, SECOND_REWARD, measured_points
from analysis.quantities import IMPORTED, words
from analysis.recorded import Recorded, recorded
from analysis.records import RecordError, Run
from analysis.report.numbers import short
from analysis.report.runs import Shown, by_setting, differences, families
from analysis.seeds import interval
from analysis.statistics import Interval, matched

KL = "kl_policy_reference"
REWARDS = ("reward", "second_reward", "win_rate", "second_win_rate")
PROMPTS = "held_out_prompts"
_BANDIT = ("expected_reward", "win_rate")
_BANDIT_WORDS = {"expected_reward": "expected reward", "win_rate": "win rate against the reference"}
BOUND = "RLHF optimum (bound)"

FEWEST = 3  # points of a frontier that is worth a band

Panel = dict[str, Any]


def panels(shown: Sequence[Shown], step: Callable[[], object] = lambda: None) -> tuple[list[Panel], list[str]]:
    """Language-model panels, then bandit ones; and a line for each run or group that shares no axes with the rest.

    A panel has ``title``, ``note``, ``x`` and ``ys`` (name, title); ``series``: method, label, runs, ``kind`` (``path`` through steps,
    ``sweep`` of strengths, ``bound``), and columns strength, step, status, x, x_low, x_high and of every y its values with low and high;
    ``each``: the same run by run, where there are several seeds; and ``bands`` of methods' frontiers over all their strengths.

    Args:
        shown: all runs of the report.
        step: called after each run with such points, for a progress bar.
    """
    measured, lines = _language_model(shown, step)
    exact, more = _bandits(shown)
    return measured + exact, lines + more


def has_points(one: Shown) -> bool:
    """Whether a run has points of KL and reward of samples."""
    if one.run.kind not in ("llm", "llm_evaluation", IMPORTED) or "evaluations" not in one.run.tables:
        return False
    names = set(recorded(one.run).metrics(PROMPTS))
    return KL in names and bool(names & set(REWARDS))


def _language_model(shown: Sequence[Shown], step: Callable[[], object]) -> tuple[list[Panel], list[str]]:
    index = {one.run.folder: place for place, one in enumerate(shown)}
    candidates = [one for one in shown if has_points(one)]
    lines: list[str] = []
    found: list[Panel] = []
    groups = families(candidates)
    apart = differences(groups)
    for number, (group, difference) in enumerate(zip(groups, apart, strict=True)):
        where = f"group {number + 1} of {len(groups)}, " if len(groups) > 1 else ""
        drawn: dict[str, list[dict[str, Any]]] = {}
        single: list[dict[str, Any]] = []
        members_of, replaced = by_setting(group)
        lines += [
            f"left out the frontier of {one.run.folder}: a run written later has the same objective, labels and seeds"
            for one in replaced
        ]
        for members in members_of:
            try:
                drawn.setdefault(members[0].labels, []).append(_path(members, index))
                single += [_path([one], index, with_intervals=False) | {"labels": one.labels} for one in members]
            except ValueError as error:
                lines.append(f"left out the frontier of {', '.join(str(one.run.folder) for one in members)}: {error}")
            for _ in members:
                step()
        surest_first = {one.labels: (one.temperature, one.labels) for one in group}
        for labels, series in sorted(drawn.items(), key=lambda pair: surest_first[pair[0]]):
            ys = [name for name in REWARDS if any(name in one["y"] for one in series)]
            seeds = max(len(one["runs"]) for one in series)
            kind, comma, special = labels.partition(", ")
            words_ = f"{kind.replace('_', '-')} labels{comma}{special}" if labels else "no labels recorded"
            found.append(
                {
                    "title": f"language model, {where}{words_}",
                    "note": _NOTE + (f" This group: {difference}." if difference else ""),
                    "x": {"name": KL, "title": f"{words(KL)} [nats per completion]"},
                    "ys": [{"name": name, "title": words(name)} for name in ys],
                    "series": series,
                    "bands": _bands([one for one in group if one.labels == labels], ys, lines),
                    "each": [one for one in single if one["labels"] == labels] if seeds > 1 else [],
                }
            )
    lines += [
        f"not on one plot with the others: {len(group)} run(s) such as {group[0].run.folder}, which have {difference}"
        for group, difference in zip(groups[1:], apart[1:], strict=True)
    ]
    return found, lines


_NOTE = (
    "Each line is one objective at one strength, from the reference through its checkpoints to the largest marker. Bars, and the bands of "
    "thick lines: 95 % intervals over training seeds and held-out prompts; with one seed over prompts alone, without training noise. A "
    "thick line is a method's frontier: the rising curve nearest to the points of all its strengths."
)


def _bands(group: Sequence[Shown], ys: Sequence[str], lines: list[str]) -> list[dict[str, Any]]:
    """Each method's frontier over its strengths and checkpoints with its band, for the plotted rewards that allow it."""
    methods: dict[str, list[Run]] = {}
    for one in group:
        if one.is_training:
            methods.setdefault(one.method, []).append(one.run)
    found = []
    for method, runs in sorted(methods.items()):
        for name in ys:
            if name not in (REWARD, SECOND_REWARD):
                continue
            try:
                points = measured_points(settings(runs), reward=name)
                if len(points.where) < FEWEST:
                    continue
                rows = band(points).dropna()
            except ValueError as error:
                lines.append(f"left out the band of {method}, {words(name)}: {error}")
                continue
            columns = ("kl", "reward", "low", "high")
            found.append(
                {"method": method, "y": name} | {key: [short(value) for value in rows[key]] for key in columns}
            )
    return found


def _path(members: Sequence[Shown], index: Mapping[Path, int], with_intervals: bool = True) -> dict[str, Any]:
    """KL and rewards at every step, over the seeds of one setting."""
    found = [recorded(one.run) for one in members]
    names = set.intersection(*(set(one.metrics(PROMPTS)) for one in found))
    if KL not in names or not names & set(REWARDS):
        raise ValueError("no KL and reward of held-out prompts")
    steps = sorted(set.intersection(*(set(one.steps(PROMPTS, KL)) for one in found)))
    made: dict[str, Any] = {
        "method": members[0].method,
        "label": members[0].label,
        "kind": "path",
        "runs": [index[one.run.folder] for one in members],
        "strength": [members[0].strength] * len(steps),
        "step": steps,
        "status": None,
    }
    measure = _intervals if with_intervals else _means
    made["x"], made["x_low"], made["x_high"] = measure(found, KL, steps)
    made["y"] = {name: measure(found, name, steps) for name in REWARDS if name in names}
    return made


def _intervals(runs: Sequence[Recorded], metric: str, steps: Sequence[int]) -> tuple[list[Any], list[Any], list[Any]]:
    """Estimates, and the ends of their intervals, of one quantity by step."""
    found = []
    for step in steps:
        columns = [one.at(PROMPTS, metric, step) for one in runs]
        block = np.stack([column.to_numpy() for column in matched(*columns)])
        found.append(_interval(block.tobytes(), len(runs)) if block.size else Interval(math.nan))
    return (
        [short(one.estimate) for one in found],
        [short(one.low) for one in found],
        [short(one.high) for one in found],
    )


def _means(runs: Sequence[Recorded], metric: str, steps: Sequence[int]) -> tuple[list[Any], None, None]:
    """The same without intervals."""
    values = [np.concatenate([one.at(PROMPTS, metric, step).to_numpy() for one in runs]) for step in steps]
    return [short(one.mean()) if one.size else None for one in values], None, None


@functools.lru_cache(maxsize=4096)
def _interval(values: bytes, seeds: int) -> Interval:
    """Of float64 values by seed and prompt; kept, because all runs of an experiment begin at the same reference."""
    return interval(np.frombuffer(values).reshape(seeds, -1), over="prompts")


def _bandits(shown: Sequence[Shown]) -> tuple[list[Panel], list[str]]:
    worlds: dict[str, list[dict[str, Any]]] = {}
    lines = []
    for place, one in enumerate(shown):
        if one.run.kind != "bandit":
            continue
        try:
            for world, series in _sweeps(one.run, place):
                worlds.setdefault(world, []).append(series)
        except (RecordError, KeyError, ValueError) as error:
            reason = f"it has no column {error}" if isinstance(error, KeyError) else str(error)
            lines.append(f"left out the frontier of {one.run.folder}: {reason}")
    return [
        {
            "title": f"exact bandit, {world}",
            "note": "Exact: no interval. Each line is one objective over its strengths. Where no minimiser exists the point is that of the "
            "limit policy, and its status says so.",
            "x": {"name": KL, "title": "KL(policy ‖ reference) [nats]"},
            "ys": [
                {"name": name, "title": _BANDIT_WORDS[name]}
                for name in _BANDIT
                if any(name in one["y"] for one in series)
            ],
            "series": _without_repetition(series),
            "each": [],
            "bands": [],
        }
        for world, series in sorted(worlds.items())
    ], lines


def _sweeps(run: Run, place: int) -> list[tuple[str, dict[str, Any]]]:
    """(world, series) of a bandit record with a frontier: the experiment, a piece of ``toy_bandits frontier``, or a profile."""
    config = run.config
    if config.get("experiment") == "frontier":
        frame = run.table("results")
        return [
            (str(world), _sweep(rows, str(name), place))
            for (world, name), rows in frame.groupby(["world", "objective"], sort=True)
        ]
    if "frontier" in config and "world" in config and "results" in run.tables:
        name = BOUND if config["frontier"] == "optimum" else str(config.get("objective") or config.get("name"))
        kind = {"optimum": "bound", "path": "path", "loop": "path"}.get(str(config["frontier"]), "sweep")
        frame = run.table("results")
        if kind == "bound" and config.get("name") != "expected_reward":
            return []
        if kind == "path" and "strength" in frame:
            return [
                (str(config["world"]), _sweep(rows, f"{name}, Adam's path", place, kind))
                for _, rows in frame.groupby("strength", sort=True)
            ]
        return [(str(config["world"]), _sweep(frame, name, place, kind))]
    if "profile" in config and "frontier" in run.tables:
        frame = run.table("frontier")
        if frame.empty:
            return []
        return [
            (str(world), _sweep(rows, str(name), place))
            for (world, name), rows in frame.groupby(["world", "objective"], sort=True)
        ]
    return []


def _sweep(frame: pd.DataFrame, name: str, place: int, kind: str = "sweep") -> dict[str, Any]:
    """One objective's points by strength or step; worlds of several data sets by their mean."""
    by = "step" if kind == "path" else "strength"
    numeric = [column for column in (KL, *_BANDIT) if column in frame]
    if "data_set" in frame and by in frame:
        rows = frame.groupby(by, sort=True)[numeric].mean().reset_index()
    else:
        rows = frame.sort_values(by) if by in frame else frame
    kind = "bound" if name == "rlhf" else kind
    return {
        "method": BOUND if name == "rlhf" else name,
        "label": BOUND if name == "rlhf" else name,
        "kind": kind,
        "runs": [place],
        "strength": [short(value) for value in rows["strength"]] if "strength" in rows else None,
        "step": [int(value) for value in rows["step"]] if "step" in rows else None,
        "status": [str(value) for value in rows["status"]] if "status" in rows else None,
        "x": [short(value) for value in rows[KL]],
        "x_low": None,
        "x_high": None,
        "y": {name: ([short(value) for value in rows[name]], None, None) for name in _BANDIT if name in rows},
    }


def _without_repetition(series: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cards share their baselines: the same sweep is drawn once."""
    kept: dict[str, dict[str, Any]] = {}
    for one in series:
        kept.setdefault(repr([one["method"], one["kind"], one["x"], one["y"]]), one)
    return sorted(kept.values(), key=lambda one: (one["kind"] == "bound", one["method"]))

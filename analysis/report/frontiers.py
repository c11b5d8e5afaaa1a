"""KL against reward: language-model runs through their checkpoints and exact sweeps of bandits, a panel for what may share axes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.quantities import words
from analysis.records import RecordError, Run
from analysis.report.numbers import short
from analysis.report.runs import Shown, differences, families
from analysis.statistics import Interval, mean

KL = "kl_policy_reference"
REWARDS = ("reward", "second_reward", "win_rate", "second_win_rate")
PROMPTS = "held_out_prompts"
_BANDIT = ("expected_reward", "win_rate")
_BANDIT_WORDS = {"expected_reward": "expected reward", "win_rate": "win rate against the reference"}
BOUND = "RLHF optimum (bound)"

Panel = dict[str, Any]


def panels(shown: Sequence[Shown], step: Callable[[], object] = lambda: None) -> tuple[list[Panel], list[str]]:
    """Language-model panels, then bandit ones; and a line for each run or group that shares no axes with the rest.

    A panel has ``title``, ``note``, ``x`` and ``ys`` (name, title), and ``series``: method, label, run, ``kind`` (``path`` through steps,
    ``sweep`` of strengths, ``bound``), and columns strength, step, status, x, x_low, x_high and of every y its values with low and high.

    Args:
        shown: all runs of the report.
        step: called after each run with such points, for a progress bar.
    """
    measured, lines = _language_model(shown, step)
    exact, more = _bandits(shown)
    return measured + exact, lines + more


def has_points(one: Shown) -> bool:
    """Whether a run has points of KL and reward of samples."""
    return one.run.kind in ("llm", "llm_evaluation", "imported") and "evaluations" in one.run.tables


def _language_model(shown: Sequence[Shown], step: Callable[[], object]) -> tuple[list[Panel], list[str]]:
    index = {one.run.folder: place for place, one in enumerate(shown)}
    series: dict[Any, list[dict[str, Any]]] = {}
    with_points: list[Shown] = []
    lines: list[str] = []
    for one in filter(has_points, shown):
        try:
            made = _path(one, index[one.run.folder])
        except ValueError as error:
            lines.append(f"left out the frontier of {one.run.folder}: {error}")
            made = None
        if made is not None:
            with_points.append(one)
            series.setdefault((one.axes, one.labels), []).append(made)
        step()
    groups = families(with_points)
    apart = differences(groups)
    found = []
    for number, (group, difference) in enumerate(zip(groups, apart, strict=True)):
        where = f"group {number + 1} of {len(groups)}, " if len(groups) > 1 else ""
        for labels in sorted({one.labels for one in group}):
            drawn = series[group[0].axes, labels]
            ys = [name for name in REWARDS if any(name in one["y"] for one in drawn)]
            found.append(
                {
                    "title": f"language model, {where}{labels.replace('_', '-') + ' labels' if labels else 'no labels recorded'}",
                    "note": "Each line is one run from the reference through its checkpoints. Bars: 95 % bootstrap intervals over the "
                    "held-out prompts; they do not contain training noise, which takes several seeds."
                    + (f" This group: {difference}." if difference else ""),
                    "x": {"name": KL, "title": f"{words(KL)} [nats per completion]"},
                    "ys": [{"name": name, "title": words(name)} for name in ys],
                    "series": drawn,
                }
            )
    if len(groups) > 1:
        lines += [
            f"not on one plot with the others: {len(group)} run(s) such as {group[0].run.folder}, which have {difference}"
            for group, difference in zip(groups[1:], apart[1:], strict=True)
        ]
    return found, lines


def _path(one: Shown, place: int) -> dict[str, Any] | None:
    """KL and rewards of one run at every step that has both; None where it has no such step."""
    frame = one.run.table("evaluations")
    frame = frame[frame["split"] == PROMPTS]
    if KL not in set(frame["metric"]):
        return None
    columns = {
        metric: rows.groupby("step")["value"] for metric, rows in frame.groupby("metric") if metric in (KL, *REWARDS)
    }
    if not any(name in columns for name in REWARDS):
        return None
    steps = sorted(set(frame.loc[frame["metric"] == KL, "step"]))
    made: dict[str, Any] = {
        "method": one.method,
        "label": one.label,
        "kind": "path",
        "run": place,
        "strength": [one.strength] * len(steps),
        "step": [int(step) for step in steps],
        "status": None,
        "y": {},
    }
    made["x"], made["x_low"], made["x_high"] = _intervals(columns[KL], steps)
    for name in REWARDS:
        if name in columns:
            made["y"][name] = _intervals(columns[name], steps)
    return made


def _intervals(by_step: Any, steps: Sequence[int]) -> tuple[list[Any], list[Any], list[Any]]:
    found = []
    for step in steps:
        values = by_step.get_group(step).to_numpy(dtype=float) if step in by_step.groups else np.array([])
        found.append(_mean(values.tobytes()))
    return (
        [short(one.estimate) for one in found],
        [short(one.low) for one in found],
        [short(one.high) for one in found],
    )


@functools.lru_cache(maxsize=4096)
def _mean(values: bytes) -> Interval:
    """Of float64 values over prompts; kept, because all runs of an experiment begin at the same reference."""
    return mean(np.frombuffer(values), over="prompts")


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
        "run": place,
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

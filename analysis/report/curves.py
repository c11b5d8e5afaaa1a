"""Training curves: what was logged, and what was evaluated along training, thinned to what a screen can show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.quantities import agreeing, words
from analysis.recorded import recorded
from analysis.report.numbers import short
from analysis.report.runs import Shown

MOST_POINTS = 200  # of one curve
FEWEST_POINTS = 24
BUDGET = 300_000  # points of all curves of a report
FIRST = ("held_out_prompts/kl_policy_reference", "held_out_prompts/reward", "loss")  # offered first, in this order


def curves(shown: Sequence[Shown]) -> tuple[list[dict[str, Any]], list[str]]:
    """One entry a quantity, with a line for each run that has it; and what was left out.

    An entry has ``name`` (``reward`` of a split is ``held_out_prompts/reward``), ``title``, ``quantity`` in words, ``unit``, ``thinned``
    (whether points are missing), and ``lines``: [index of the run, steps, values], a value that is not finite being None.
    """
    found: dict[str, list[tuple[int, NDArray[np.int64], NDArray[np.float64]]]] = {}
    for index, one in enumerate(shown):
        for name, steps, values in _of_run(one):
            found.setdefault(name, []).append((index, steps, values))
    lines_in_all = sum(map(len, found.values()))
    points = int(np.clip(BUDGET // max(1, lines_in_all), FEWEST_POINTS, MOST_POINTS))
    entries, refused = [], []
    for name in sorted(found, key=lambda each: (FIRST.index(each) if each in FIRST else len(FIRST), each)):
        quantity = name.rpartition("/")[2] if name.startswith(_SPLITS) else name
        kept, unit, lines = agreeing(quantity, [shown[index].run for index, _, _ in found[name]])
        refused += lines
        folders = {run.folder for run in kept}
        title = f"{words(quantity)}, {name.rpartition('/')[0].replace('_', ' ')}" if quantity != name else words(name)
        drawn = [line for line in found[name] if shown[line[0]].run.folder in folders]
        entries.append(
            {
                "name": name,
                "title": title,
                "quantity": words(quantity),
                "unit": unit,
                "thinned": any(len(steps) > points for _, steps, _ in drawn),
                "lines": [[index, *_plain(*thin(steps, values, points))] for index, steps, values in drawn],
            }
        )
    return entries, list(dict.fromkeys(refused))


def thin(
    steps: NDArray[np.int64], values: NDArray[np.float64], points: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """At most ``points`` of a curve (n,): first, last, and the lowest and highest of equal stretches, so that no spike is lost.

    A value that is not finite is kept as a stretch's extreme, so that a gap stays a gap.
    """
    if len(steps) <= points:
        return steps, values
    chosen = {0, len(steps) - 1}
    for part in np.array_split(np.arange(1, len(steps) - 1), max(1, (points - 2) // 2)):
        finite = part[np.isfinite(values[part])]
        broken = part[~np.isfinite(values[part])]
        if len(broken):
            chosen.add(int(broken[0]))
        else:
            chosen.add(int(finite[np.argmin(values[finite])]))
        if len(finite):
            chosen.add(int(finite[np.argmax(values[finite])]))
    kept = np.array(sorted(chosen))
    return steps[kept], values[kept]


_SPLITS = ("held_out_prompts/", "held_out_reference_samples/", "held_out_pairs/", "training_pairs/", "other_text/")


def _of_run(one: Shown) -> list[tuple[str, NDArray[np.int64], NDArray[np.float64]]]:
    """(name, steps, values) of every curve with two points or more."""
    found: list[tuple[str, NDArray[np.int64], NDArray[np.float64]]] = []
    if "metrics" in one.run.tables:
        frame = one.run.table("metrics").drop_duplicates(["name", "step"], keep="last").sort_values(["name", "step"])
        steps, values = frame["step"].to_numpy(dtype=np.int64), frame["value"].to_numpy(dtype=float)
        codes, names = pd.factorize(frame["name"])
        for code, name in enumerate(names):
            start, end = np.searchsorted(codes, [code, code + 1])
            found.append((str(name), steps[start:end], values[start:end]))
    if "evaluations" in one.run.tables:
        kept = recorded(one.run)
        for split, metric in kept.names:
            at = kept.steps(split, metric)
            # A value that is NaN must not vanish from the mean, as it would from pandas's.
            means = [np.mean(kept.at(split, metric, step).to_numpy()) for step in at]
            found.append((f"{split}/{metric}", np.array(at, dtype=np.int64), np.array(means)))
    return [(name, steps, values) for name, steps, values in found if len(steps) > 1]


def _plain(steps: NDArray[np.int64], values: NDArray[np.float64]) -> tuple[list[int], list[float | None]]:
    return [int(step) for step in steps], [short(value) if math.isfinite(value) else None for value in values]

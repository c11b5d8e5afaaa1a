"""A run's evaluations, read once and kept by split, metric and step: claims, figures and reports ask for them hundreds of times."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.records import Run

EVALUATIONS = "evaluations"
_EMPTY = pd.Series(dtype=float, index=pd.Index([], name="item", dtype="int64"))


class Recorded:
    """Table ``evaluations`` (step, split, metric, item, value) by what was measured."""

    def __init__(self, frame: pd.DataFrame) -> None:
        splits, split_names = pd.factorize(frame["split"])
        metrics, metric_names = pd.factorize(frame["metric"])
        codes = splits * len(metric_names) + metrics
        codes[(splits < 0) | (metrics < 0)] = -1
        steps = frame["step"].to_numpy()
        order = np.lexsort((steps, codes))  # stable: items stay in the order in which they were written
        codes, steps = codes[order], steps[order]
        items, values = frame["item"].to_numpy()[order], frame["value"].to_numpy(dtype=float)[order]
        ends = np.flatnonzero((np.diff(codes) != 0) | (np.diff(steps) != 0)) + 1
        self._found: dict[tuple[str, str], dict[int, pd.Series]] = {}
        kept: dict[Hashable, pd.Index] = {}  # steps and metrics share their items: one index each
        for start, end in zip([0, *ends], [*ends, len(codes)], strict=True):
            if start == end or codes[start] < 0:
                continue
            split, metric = divmod(int(codes[start]), len(metric_names))
            index = _index(items[start:end], kept)
            at = self._found.setdefault((str(split_names[split]), str(metric_names[metric])), {})
            at[int(steps[start])] = pd.Series(values[start:end], index=index)

    @property
    def names(self) -> list[tuple[str, str]]:
        """(split, metric) of all that was evaluated, in order."""
        return sorted(self._found)

    def steps(self, split: str, metric: str) -> list[int]:
        """Steps at which this was evaluated; 0 is the reference itself."""
        return list(self._found.get((split, metric), ()))

    def at(self, split: str, metric: str, step: int) -> pd.Series:
        """Values by item as they were written; empty where there are none."""
        return self._found.get((split, metric), {}).get(step, _EMPTY)

    def metrics(self, split: str) -> list[str]:
        """What was measured on a split, in order."""
        return [metric for where, metric in self.names if where == split]


def _index(items: NDArray[np.generic], kept: dict[Hashable, pd.Index]) -> pd.Index:
    key = items.tobytes() if items.dtype != object else tuple(items)
    if key not in kept:
        kept[key] = pd.Index(items, name="item")
    return kept[key]


def recorded(run: Run) -> Recorded:
    """The evaluations of a run.

    Raises:
        RecordError: it has none, or their table is damaged.
    """
    if EVALUATIONS not in run.kept:
        run.kept[EVALUATIONS] = Recorded(run.table(EVALUATIONS))
    found = run.kept[EVALUATIONS]
    assert isinstance(found, Recorded)
    return found

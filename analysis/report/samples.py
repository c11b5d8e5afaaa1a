"""Samples of text before and after training, prompt by prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from analysis.report.numbers import short
from analysis.report.runs import Shown

TABLE = "samples"  # step, item, prompt, completion, reward
LONGEST = 4000  # characters of a text


class Pool:
    """Texts by number: runs of one experiment share prompts and what the reference said."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._places: dict[str, int] = {}

    def place(self, text: str) -> int:
        """The number of a text, cut where it is very long."""
        text = text if len(text) <= LONGEST else text[:LONGEST] + f" … ({len(text) - LONGEST} characters more)"
        if text not in self._places:
            self._places[text] = len(self.texts)
            self.texts.append(text)
        return self._places[text]


def samples(shown: Sequence[Shown], most: int, pool: Pool) -> list[dict[str, Any]]:
    """For each run with texts: its first ``most`` prompts with the completions of the first and of the last step, as numbers in ``pool``.

    Rows are [prompt, before, after, reward before, reward after]; what there is none of is None.
    """
    found = []
    for index, one in enumerate(shown):
        if TABLE not in one.run.tables or most < 1:
            continue
        frame = one.run.table(TABLE)
        if frame.empty:
            continue
        first, last = frame["step"].min(), frame["step"].max()
        before = frame[frame["step"] == first].drop_duplicates("item").set_index("item") if first < last else None
        after = frame[frame["step"] == last].drop_duplicates("item").set_index("item").sort_index()
        rows = [_row(item, after, before, pool) for item in after.index[:most]]
        found.append({"run": index, "steps": [int(first), int(last)], "prompts": len(after), "rows": rows})
    return found


def _row(item: Any, after: pd.DataFrame, before: pd.DataFrame | None, pool: Pool) -> list[Any]:
    now = after.loc[item]
    then = before.loc[item] if before is not None and item in before.index else None
    if then is not None and then["prompt"] != now["prompt"]:
        then = None
    return [
        pool.place(str(now["prompt"])),
        None if then is None else pool.place(str(then["completion"])),
        pool.place(str(now["completion"])),
        None if then is None else _reward(then),
        _reward(now),
    ]


def _reward(row: pd.Series) -> float | None:
    value = row.get("reward")
    return None if value is None else short(value, 3)

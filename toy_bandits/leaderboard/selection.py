"""From scores at several strengths to a ranking: pure functions of tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from toy_bandits.leaderboard import selecting

TIE = 1e-9
ENOUGH = 2 / 3
"""Share of the scores that apply which a place, and a sensitivity, must rest on: a mean of a few says nothing beside means of all."""


def at_each_strength(frame: pd.DataFrame) -> pd.DataFrame:
    """Scores with one row per (name, strength) and one column per diagnostic, in the order of the table.

    A score that does not depend on the strength (its row has strength NaN) stands in the row of every strength.

    Args:
        frame: name, strength, diagnostic, score.
    """
    names, ids = list(dict.fromkeys(frame["name"])), list(dict.fromkeys(frame["diagnostic"]))
    parts = {}
    for name in names:
        mine = frame[frame["name"] == name]
        swept = mine[mine["strength"].notna()]
        fixed = mine[mine["strength"].isna()].set_index("diagnostic")["score"]
        table = swept.pivot(index="strength", columns="diagnostic", values="score")
        if table.empty:
            table = pd.DataFrame(index=pd.Index([np.nan], name="strength"))
        parts[name] = table.assign(**fixed.to_dict()).reindex(columns=ids)
    scores: pd.DataFrame = pd.concat(parts, names=["name"])
    return scores


def inapplicable(frame: pd.DataFrame) -> dict[str, dict[str, str]]:
    """By name, the diagnostics whose question does not arise for it, and why: nothing is missing there.

    Args:
        frame: name, diagnostic, reason, applies.
    """
    none = frame[~frame["applies"].astype(bool)]
    return {
        str(name): dict(zip(of["diagnostic"], of["reason"], strict=True))
        for name, of in none.groupby("name", sort=False)
    }


def leaderboard(
    scores: pd.DataFrame,
    values: pd.DataFrame,
    rising: dict[str, bool],
    without: Mapping[str, Sequence[str]] | None = None,
) -> pd.DataFrame:
    """One row per name at its best strength, highest mean first.

    Args:
        scores: as `at_each_strength` makes it.
        values: name, strength, score: what the strength is chosen by.
        rising: by name, whether a larger strength holds the policy more; it decides between equals only.
        without: as `inapplicable` makes it; such a score is in no mean and is not missing.

    Returns:
        index ``name``; ``place`` (equal means share one; none, and after all others, where less than `ENOUGH` of the scores are there),
        ``best_strength``, ``value`` it was chosen by, ``mean`` over the scores that are there, ``count`` how many they are, ``missing``
        how many are not though they should, ``lowest`` and ``highest`` mean if every missing score were 0 or 1, ``sensitivity`` (largest
        less smallest mean over the strengths, of the diagnostics that have a score at every strength; none where these are less than
        `ENOUGH`), ``strengths`` tried, then one column per diagnostic. Names without any score at it are left out.
    """
    rows = []
    for name, table in scores.groupby(level="name", sort=False):
        table = table.droplevel("name").drop(columns=list((without or {}).get(str(name), ())))
        by_strength = values[values["name"] == name].set_index("strength")["score"]
        best = selecting.best(by_strength, rising=rising.get(str(name), True), tie=TIE)
        chosen = table.iloc[0] if len(table) == 1 else table.loc[[best]].iloc[0]
        lost, count = int(chosen.isna().sum()), table.shape[1]
        if lost == count:
            continue
        mean = float(chosen.mean())
        common = table.dropna(axis=1)
        spread = common.mean(axis=1)
        sensitive = len(table) > 1 and common.shape[1] >= ENOUGH * count
        rows.append(
            {
                "name": name,
                "best_strength": best,
                "value": float(by_strength.get(best, np.nan)),
                "mean": mean,
                "count": count - lost,
                "missing": lost,
                "lowest": mean * (count - lost) / count,
                "highest": (mean * (count - lost) + lost) / count,
                "sensitivity": float(spread.max() - spread.min()) if sensitive else np.nan,
                "strengths": len(table),
                **chosen.to_dict(),
            }
        )
    heads = [key for key in rows[0] if key not in scores]
    made = pd.DataFrame(rows, columns=[*heads, *scores.columns])
    rank = made["mean"].div(TIE).round().mul(-1.0)  # equal means by name, not by their last digit
    last = made["count"] < ENOUGH * (made["count"] + made["missing"])
    made = made.assign(rank=rank, last=last).sort_values(["last", "rank", "name"], ignore_index=True)
    found = places(made.loc[~made["last"], "mean"].to_numpy())
    made.insert(0, "place", [*map(float, found), *[np.nan] * int(last.sum())])
    return made.drop(columns=["rank", "last"]).set_index("name")


def places(means: Sequence[float] | np.ndarray) -> list[int]:
    """Places of means in falling order: those equal to the one before to within `TIE` share its place, the next one counts them all."""
    found: list[int] = []
    for index, mean in enumerate(means):
        equal = index > 0 and abs(means[index - 1] - mean) <= TIE
        found.append(found[-1] if equal else index + 1)
    return found


def range_of_places(board: pd.DataFrame, name: str) -> tuple[int, int]:
    """The best and the worst place that a name could have, whatever its missing scores are, those of the others left out."""
    mine = board.loc[name]
    others = board["mean"][board["place"].notna()].drop(index=name, errors="ignore")
    first, last = (1 + int((others > mine[of] + TIE).sum()) for of in ("highest", "lowest"))
    return first, last


def without_scores(frame: pd.DataFrame, values: pd.DataFrame) -> dict[str, str]:
    """Names that have no score at all, or no strength chosen, and why: the first reason given, and how many others there are."""
    found = {}
    for name, mine in frame.groupby("name", sort=False):
        choice = values[values["name"] == name]
        lacking = next((rows for rows in (mine, choice) if len(rows) and rows["score"].isna().all()), None)
        if lacking is not None:
            reasons = list(dict.fromkeys(str(reason) for reason in lacking["reason"] if reason))
            found[str(name)] = (reasons or ["no score"])[0] + (
                f" (and {len(reasons) - 1} more reasons)" if reasons[1:] else ""
            )
    return found


def missing_scores(frame: pd.DataFrame, chosen: pd.DataFrame) -> list[tuple[str, str, str]]:
    """(name, diagnostic, reason) of every score that is missing at the chosen strengths, though the diagnostic applies."""
    found = []
    frame = frame[frame["applies"].astype(bool)]
    for name, row in chosen.iterrows():
        mine = frame[(frame["name"] == name) & (frame["strength"].isna() | (frame["strength"] == row["best_strength"]))]
        lost = mine[mine["score"].isna()]
        found += [(str(name), str(one.diagnostic), str(one.reason)) for one in lost.itertuples()]
    return found

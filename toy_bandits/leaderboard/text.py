"""Leaderboard and factorial as Markdown; every number and every sentence with one comes from the tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd
from tabulate import tabulate

import objectives
from toy_bandits.diagnostics import DIAGNOSTICS
from toy_bandits.leaderboard.decomposition import MOST, Decomposition, in_words
from toy_bandits.leaderboard.selecting import RULE
from toy_bandits.leaderboard.selection import range_of_places


def named(label: str) -> str:
    """A label without the settings that are the objective's own defaults."""
    return label if label in objectives.names() else objectives.parse(label).label


def row_labels(board: pd.DataFrame) -> dict[str, str]:
    """By name: the name and its best strength."""
    labels = {}
    for name, value in board["best_strength"].items():
        strength = objectives.parse(str(name)).strength
        labels[str(name)] = (
            f"{name}" if strength is None or math.isnan(value) else f"{name}  {strength.parameter}={value:.3g}"
        )
    return labels


def leaderboard(
    board: pd.DataFrame,
    missing: Sequence[tuple[str, str, str]],
    without: Mapping[str, Mapping[str, str]],
    left_out: Mapping[str, str],
    tried: int,
    picture: str,
    command: str,
) -> str:
    """The page of the leaderboard.

    Args:
        board: as `selection.leaderboard` makes it.
        missing: (name, diagnostic, reason) of scores that are missing in it.
        without: by name, the diagnostics that do not apply, and why.
        left_out: names without any score, and why.
        tried: how many strengths each objective that has one was given.
        picture: path of the figure, relative to the page.
        command: that makes the page.
    """
    ids = [column for column in board.columns if column in DIAGNOSTICS]
    rows = []
    for name, row in board.iterrows():
        place = place_of(row["place"])
        if row["missing"]:
            place += " ({}–{})".format(*range_of_places(board, str(name)))
        strength = objectives.parse(str(name)).strength
        value = (
            "none"
            if strength is None or math.isnan(row["best_strength"])
            else f"{strength.parameter} = {row['best_strength']:.3g}"
        )
        cells = [
            place,
            f"`{name}`",
            value,
            _number(row["value"]),
            f"**{row['mean']:.3f}**",
            str(int(row["count"])),
            _number(row["sensitivity"]),
        ]
        shown = ("n/a" if each in without.get(str(name), ()) else _number(row[each]) for each in ids)
        rows.append([*cells, *shown])
    heads = ["place", "objective", "best strength", "value", "mean", "scores", "sensitivity"]
    heads += [DIAGNOSTICS[each].label for each in ids]
    placed = board["place"].dropna()
    equal = placed[placed.duplicated(keep=False)]
    ties = [f"place {place:.0f}: {', '.join(f'`{name}`' for name in of.index)}" for place, of in equal.groupby(equal)]
    parts = [
        "# Leaderboard",
        f"<!-- Made by `{command}`. -->",
        f"Every objective over {len(ids)} diagnostics ({', '.join(f'`{each}`' for each in ids)}), solved exactly, at its best strength. "
        f"1 is the better end of every score.",
        f"![Scores of all objectives]({picture})",
        f"**How the strength is chosen.** Each objective that has a strength gets the same budget: {tried} values, evenly spaced by ratio "
        f"over the range that it declares; the other hyper-parameters keep their defaults. Chosen is, {RULE}. That value, 1 at most, "
        "is the column `value`; a strength that was not solved counts with the best policy found.",
        "**Sensitivity** is the range of the mean over the strengths tried: how much is lost by choosing badly (– where less than two "
        "thirds of the diagnostics that apply have a score at every one). A diagnostic that sweeps the strength by itself has one score "
        "for all.",
        "**Mean** is over the diagnostics that apply (their number is under scores): n/a stands where the question does not arise. "
        "The mean weighs all of them alike; they are not alike in importance to everyone, and a policy that never leaves the "
        "reference does well in many (see the row of `forward_kl`, a regulariser alone). Read the columns that matter to you.",
        *_told(board),
        tabulate(rows, heads, tablefmt="pipe", disable_numparse=True),
        f"Equal means share a place. {_unplaced(board)}"
        + (f"Ties: {'; '.join(ties)}." if ties else "There are no ties."),
    ]
    if missing:
        parts += [
            "## Missing scores",
            "A missing score (–) is never counted as 0: the mean is that of the others, and the places in brackets are those possible if "
            "the missing scores were 1 or 0.",
            tabulate(
                [[f"`{name}`", DIAGNOSTICS[each].label, reason] for name, each, reason in missing],
                ["objective", "diagnostic", "why there is no score"],
                tablefmt="pipe",
                disable_numparse=True,
            ),
        ]
    apart: dict[tuple[str, str], list[str]] = {}
    for name, of in without.items():
        for each, reason in of.items():
            apart.setdefault((each, reason), []).append(f"`{name}`")
    if apart:
        lines = [f"- {DIAGNOSTICS[each].title}, {reason}: {', '.join(of)}" for (each, reason), of in apart.items()]
        parts += ["## Does not apply", "\n".join(lines)]
    if left_out:
        parts += ["## Not run", "\n".join(f"- `{name}`: {reason}" for name, reason in left_out.items())]
    return "\n\n".join(parts) + "\n"


def factorial(
    tables: Mapping[str, pd.DataFrame],
    found: Mapping[str, Decomposition],
    lost: Mapping[str, Sequence[str]],
    pictures: tuple[str, str],
    command: str,
) -> str:
    """The page of the factorial: what each component does, diagnostic by diagnostic, then the scores."""
    parts = [
        "# Pair loss or regulariser: which does the work?",
        f"<!-- Made by `{command}`. -->",
        "Every pair loss with every regulariser, scored by every diagnostic, exactly. Each table of scores is taken apart into a mean, an "
        "effect of the pair loss, an effect of the regulariser, and what is left (interaction). All cells are solved exactly and see the "
        "same data sets where data are drawn; the shares of the variation sum to 100 %. It is the ablation of claim C8: by "
        "[F7](theory.md) any pair loss that is bounded below is regularised once the forward KL is added, so that no named method owns "
        "the effect.",
        f"![Shares of the variation]({pictures[1]})",
        _overall(found),
        "## By diagnostic",
    ]
    parts += [
        f"**{DIAGNOSTICS[name].title}.** {in_words(of, tables[name].drop(index=list(lost[name])))}"
        for name, of in found.items()
    ]
    gone = {name: names for name, names in lost.items() if names}
    if gone:
        parts.append("## Left out of the shares")
        parts.append(
            "\n".join(
                f"- {DIAGNOSTICS[name].title}: {', '.join(f'`{each}`' for each in names)}, for want of a score"
                for name, names in gone.items()
            )
        )
    parts += ["## Scores", f"![Scores of every combination]({pictures[0]})"]
    for name, table in tables.items():
        rows = [
            [f"`{named(str(loss))}`", *(_number(value) for value in row)]
            for loss, row in zip(table.index, table.to_numpy(), strict=True)
        ]
        parts += [
            f"{DIAGNOSTICS[name].title}: {DIAGNOSTICS[name].reading}.",
            tabulate(
                rows,
                ["pair loss", *(f"`{column}`" for column in table.columns)],
                tablefmt="pipe",
                disable_numparse=True,
            ),
        ]
    return "\n\n".join(parts) + "\n"


def _overall(found: Mapping[str, Decomposition]) -> str:
    """In how many diagnostics each component explains most of the variation."""
    varying = {name: of.shares for name, of in found.items() if any(of.shares.values())}
    lines = []
    for component in ("regulariser", "pair loss", "interaction"):
        which = [DIAGNOSTICS[name].label for name, of in varying.items() if of[component] >= MOST]
        what = "their combination" if component == "interaction" else f"the {component}"
        lines.append(f"{what} in {len(which)}" + (f" ({', '.join(which)})" if which else ""))
    none = [DIAGNOSTICS[name].label for name, of in varying.items() if max(of.values()) < MOST]
    text = (
        f"At least half of the variation comes from {', from '.join(lines)} of the {len(varying)} diagnostics that vary"
    )
    return text + (f"; from none of them alone in {len(none)} ({', '.join(none)})." if none else ".")


def _told(board: pd.DataFrame) -> list[str]:
    """A paragraph on objectives that cannot do without rewards, where there are any."""
    names = [f"`{name}`" for name in board.index if "rewards" in objectives.parse(str(name)).needs_on_pairs]
    if not names:
        return []
    return [
        f"**Told the true rewards**, where all others see labels: {', '.join(names)}. Scores for noisy and for few labels are no "
        "achievement there."
    ]


def place_of(place: float) -> str:
    """A place as it stands in the table; "–" for none."""
    return "–" if math.isnan(place) else f"{place:.0f}"


def _unplaced(board: pd.DataFrame) -> str:
    """Which objectives have no place, and why; "" if all have one."""
    names = ", ".join(f"`{name}`" for name in board.index[board["place"].isna()])
    return f"No place (–) where less than two thirds of the scores are there: {names}. " if names else ""


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"

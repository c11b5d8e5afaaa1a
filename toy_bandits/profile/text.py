"""The card as text: for a terminal and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from tabulate import tabulate

import objectives
from toy_bandits.diagnostics import DIAGNOSTICS, Score
from toy_bandits.profile.measuring import Profile


def table(mine: Profile, others: Sequence[Profile]) -> str:
    """The scores, one row per diagnostic, for a terminal."""
    rows = [
        [DIAGNOSTICS[name].title, *(_number(each.scores[name]) for each in (mine, *others)), _note(score)]
        for name, score in mine.scores.items()
    ]
    names = [each.objective.label for each in (mine, *others)]
    return tabulate(rows, ["diagnostic", *names, ""], stralign="left", disable_numparse=True)


def card(mine: Profile, others: Sequence[Profile], picture: str) -> str:
    """The card as Markdown; ``picture`` is the path of its figure, relative to it."""
    about = objectives.describe(mine.objective)
    settings = mine.objective.hyperparameters
    swept = mine.objective.strength
    facts = [
        ("loss", f"`{about.formula}`"),
        ("source", about.source),
        ("hyper-parameters", ", ".join(f"`{key} = {value!r}`" for key, value in settings.items()) or "none"),
        ("strength", swept.text if swept else "none"),
        ("needs", ", ".join(f"`{need}`" for need in sorted(mine.objective.needs_on_pairs))),
        ("optimum", about.optimum or "not stated"),
    ]
    names = [each.objective.label for each in (mine, *others)]
    scores = [
        [
            f"{DIAGNOSTICS[name].title}",
            _number(score, bold=True) + _interval(score),
            *(_number(each.scores[name]) for each in others),
            _note(score) or DIAGNOSTICS[name].reading,
        ]
        for name, score in mine.scores.items()
    ]
    return (
        "\n\n".join(
            [
                f"# {mine.objective.label}",
                about.summary,
                _rows(["", ""], [[key, text.replace("|", "\\|")] for key, text in facts]),
                f"![The card of {mine.objective.label}]({picture})",
                "## Scores",
                _rows(["diagnostic", *(f"`{name}`" for name in names), "a high score says"], scores),
                "1 is the better end, – means no score; brackets hold 95 % intervals over data sets, scores without are exact.",
                *_frontier(mine),
            ]
        )
        + "\n"
    )


def _frontier(mine: Profile) -> list[str]:
    """One point a decade of each world's sweep."""
    if not len(mine.frontier):
        return []
    parts = [
        "## Frontier",
        "Strength, KL(π ‖ π_ref) in nats, expected reward, and the RLHF optimum's reward at the same KL.",
    ]
    for world, rows in mine.frontier.groupby("world"):
        kept = rows.sort_values("strength").iloc[::4]
        numbers = kept[["strength", "kl_policy_reference", "expected_reward", "reward_bound"]].to_numpy()
        cells = [
            [*(f"{value:.4g}" for value in line), str(status)]
            for line, status in zip(numbers, kept["status"], strict=True)
        ]
        parts += [f"`{world}`", _rows(["strength", "KL", "reward", "bound", "status"], cells)]
    return parts


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return tabulate(rows, head, tablefmt="pipe", disable_numparse=True)


def _number(score: Score, *, bold: bool = False) -> str:
    if math.isnan(score.value):
        return "–"
    return f"**{score.value:.2f}**" if bold else f"{score.value:.2f}"


def _interval(score: Score) -> str:
    return "" if np.isnan(score.low) else f" [{score.low:.2f}, {score.high:.2f}]"


def _note(score: Score) -> str:
    """What a reader must know of a score besides its value."""
    if math.isnan(score.value):
        return f"no score: {score.reason}"
    return f"{score.unsolved} of {score.problems} problems unsolved and left out" if score.unsolved else ""

"""Commands that are killed again and again end with what they would have made undisturbed. `crashes.py` is the harness.

python -m pytest -m slow tests/trust/test_crash.py -s      at least 200 kills over all commands, with a table of them
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from trust import crashes
from trust.commands import LONG, Scenario
from trust.crashes import Found


def check(results: Sequence[Found], kills: int) -> None:
    wrong = [f"{each.name}: {line}" for each in results for line in each.wrong]
    assert not wrong, "\n".join(wrong)
    assert sum(each.kills for each in results) >= kills


def test_ten_kills_change_nothing(tmp_path: Path) -> None:
    """A whole run from fine-tuning to its last training, and bandits."""
    check(crashes.carry_out(["small run", "one bandit"], 10, seed=0, place=tmp_path, in_a_row=5), 10)


@pytest.mark.slow
def test_two_hundred_kills_change_nothing(tmp_path: Path) -> None:
    results = crashes.carry_out(LONG, 216, seed=1, place=tmp_path, say=print)
    print(crashes.table(results))
    check(results, 200)


def _careless(folder: Path) -> None:
    """Writes its result in place, and takes it for whole when it is there."""
    result = folder / "result.txt"
    if not result.exists():
        with result.open("w") as file:
            file.write("0123456789")


def _careful(folder: Path) -> None:
    from analysis.records import atomic_write, sole

    with sole(folder):
        if not (folder / "result.txt").exists():
            atomic_write(folder / "result.txt", b"0123456789")


@pytest.mark.parametrize(("call", "safe"), [(_careless, False), (_careful, True)])
def test_the_harness_finds_a_write_that_is_not_atomic(tmp_path: Path, call: object, safe: bool) -> None:
    """At every place of a command of one write: only the careless one is found out."""
    scenario, finished = Scenario("write", call, delays=False), dict[str, Path]()  # type: ignore[arg-type]
    _, total, seconds = crashes.undisturbed(scenario, tmp_path, finished)
    wrong, kills = [], 0
    for place in range(total):
        draw = _At(place / total)
        found = crashes.chain(scenario, tmp_path, finished, total, seconds, 1, draw)
        kills += found.kills
        wrong += found.wrong
    assert kills == total >= (2 if safe is False else 6)
    assert (wrong == []) is safe, wrong
    assert safe or "differs: result.txt" in wrong


class _At(random.Random):
    """Draws one place: `chain` squares what it draws."""

    def __init__(self, share: float) -> None:
        super().__init__(0)
        self.share = share

    def random(self) -> float:
        return (self.share + 1e-9) ** 0.5

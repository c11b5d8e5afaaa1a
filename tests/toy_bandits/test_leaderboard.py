"""Leaderboard and factorial: selection and decomposition on tables made by hand, and the commands that run, stop and go on."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import objectives
from analysis.records import read_run
from toy_bandits import diagnostics
from toy_bandits.__main__ import main
from toy_bandits.leaderboard import figures, selecting, tasks, text
from toy_bandits.leaderboard.decomposition import complete, decompose, in_words
from toy_bandits.leaderboard.selection import (
    at_each_strength,
    inapplicable,
    leaderboard,
    missing_scores,
    places,
    range_of_places,
    without_scores,
)

NAN = math.nan


def long(rows: list[tuple[str, float, str, float]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["name", "strength", "diagnostic", "score"])
    return frame.assign(reason=np.where(frame["score"].isna(), "unsolved", ""), applies=True)


VALUED = [(0.1, 0.5), (1.0, 0.5), (10.0, 0.4)]
VALUES = long(
    [
        ("dpo", 0.1, "selection", 0.2),
        ("dpo", 1.0, "selection", 0.7),
        ("ipo", 0.1, "selection", -0.5),
        ("ipo", 1.0, "selection", -0.1),
        ("kto", 0.1, "selection", 0.9),
    ]
)
HAND = long(
    [
        # dpo: means (.9 + .5 + .4)/3 = .6 and (.2 + .6 + .4)/3 = .4; `strength` has one score for all strengths
        ("dpo", 0.1, "determinism", 0.2),
        ("dpo", 0.1, "noise", 0.6),
        ("dpo", 1.0, "determinism", 0.9),
        ("dpo", 1.0, "noise", 0.5),
        ("dpo", NAN, "strength", 0.4),
        # ipo: a score is missing at 0.1
        ("ipo", 0.1, "determinism", 1.0),
        ("ipo", 0.1, "noise", NAN),
        ("ipo", 1.0, "determinism", 0.3),
        ("ipo", 1.0, "noise", 0.3),
        ("ipo", NAN, "strength", 0.3),
        # sft: no strength; one score missing
        ("sft", NAN, "determinism", 0.8),
        ("sft", NAN, "noise", 0.4),
        ("sft", NAN, "strength", NAN),
        # kto: nothing at all
        ("kto", 0.1, "determinism", NAN),
        ("kto", 0.1, "noise", NAN),
        ("kto", NAN, "strength", NAN),
    ]
)


def test_the_strength_is_the_one_of_the_largest_value_whatever_the_scores_are() -> None:
    board = leaderboard(at_each_strength(HAND), VALUES, {})
    assert board.index.tolist() == ["dpo", "sft", "ipo"]
    assert board.loc["dpo", ["best_strength", "mean", "missing"]].tolist() == pytest.approx([1.0, 0.6, 0])
    assert board.loc["ipo", ["best_strength", "mean", "missing"]].tolist() == pytest.approx([1.0, 0.3, 0])
    assert board.loc["dpo", ["determinism", "noise", "strength"]].tolist() == [0.9, 0.5, 0.4]
    assert without_scores(HAND, VALUES) == {"kto": "unsolved"}


def test_sensitivity_is_the_range_of_the_mean_over_the_strengths() -> None:
    board = leaderboard(at_each_strength(HAND), VALUES, {})
    assert board.loc["dpo", "sensitivity"] == pytest.approx(0.6 - 0.4)
    # ipo's noise is missing at one strength: without it the means are (1 + .3)/2 and (.3 + .3)/2
    assert board.loc["ipo", "sensitivity"] == pytest.approx(0.35)
    assert math.isnan(board.loc["sft", "sensitivity"])


def test_a_missing_score_is_never_zero_and_says_what_it_could_change() -> None:
    board = leaderboard(at_each_strength(HAND), VALUES, {})
    row = board.loc["sft"]
    assert (row["mean"], row["missing"]) == (pytest.approx(0.6), 1)
    assert (row["lowest"], row["highest"]) == pytest.approx((0.4, 2.2 / 3))
    assert range_of_places(board, "sft") == (1, 2)
    assert missing_scores(HAND, board) == [("sft", "strength", "unsolved")]


def test_what_does_not_apply_is_in_no_mean_and_not_missing() -> None:
    frame = HAND.assign(applies=~((HAND["name"] == "sft") & (HAND["diagnostic"] == "strength")))
    without = inapplicable(frame)
    assert without == {"sft": {"strength": "unsolved"}}
    board = leaderboard(at_each_strength(frame), VALUES, {}, {name: list(of) for name, of in without.items()})
    row = board.loc["sft"]
    assert (row["mean"], row["count"], row["missing"]) == (pytest.approx(0.6), 2, 0)
    assert (row["lowest"], row["highest"]) == pytest.approx((0.6, 0.6))
    assert math.isnan(row["strength"]) and board.loc["dpo", "count"] == 3
    assert missing_scores(frame, board) == []
    page = text.leaderboard(board, [], without, {}, 2, "x.png", "made")
    assert "| n/a" in page and "## Missing scores" not in page
    assert f"- {diagnostics.get('strength').title}, unsolved: `sft`" in page


def test_equal_means_share_a_place() -> None:
    assert places([0.9, 0.7, 0.7 - 1e-12, 0.5]) == [1, 2, 2, 4]
    board = leaderboard(at_each_strength(HAND), VALUES, {})
    assert board["place"].to_dict() == {"dpo": 1, "sft": 1, "ipo": 3}
    page = text.leaderboard(board, missing_scores(HAND, board), {}, {"kto": "unsolved"}, 2, "x.png", "made")
    assert "Ties: place 1: `dpo`, `sft`." in page
    assert "| 1 (1–2)" in page and "| –" in page and "- `kto`: unsolved" in page
    assert "Told the true rewards" not in page
    told = text.leaderboard(board.rename({"ipo": "exo_rw"}), [], {}, {}, 2, "x.png", "made")
    assert "**Told the true rewards**, where all others see labels: `exo_rw`." in told


def test_a_mean_of_few_scores_gets_no_place() -> None:
    """One score of three, though the best of all, stands last and takes nobody's place; two of three are enough."""
    few = long([("bco", 0.1, "determinism", 1.0), ("bco", 0.1, "noise", NAN), ("bco", NAN, "strength", NAN)])
    values = pd.concat([VALUES, long([("bco", 0.1, "selection", 1.0)])])
    board = leaderboard(at_each_strength(pd.concat([few, HAND])), values, {})
    assert board.index.tolist() == ["dpo", "sft", "ipo", "bco"]
    assert board["place"].dropna().to_dict() == {"dpo": 1, "sft": 1, "ipo": 3}
    assert range_of_places(board, "sft") == (1, 2)
    assert range_of_places(board, "bco") == (1, 3)
    page = text.leaderboard(board, [], {}, {}, 2, "x.png", "made")
    assert "| – (1–3)" in page and "No place (–) where less than two thirds of the scores are there: `bco`." in page
    assert figures.leaderboard(board, text.row_labels(board)).axes[0].get_yticklabels()[3].get_text().startswith("–")


def test_of_strengths_with_equal_means_the_one_that_holds_most_is_taken() -> None:
    frame = long([("a", 0.1, "noise", 0.5), ("a", 1.0, "noise", 0.5), ("a", 10.0, "noise", 0.4)])
    scores, values = at_each_strength(frame), long([("a", s, "selection", v) for s, v in VALUED])
    assert leaderboard(scores, values, {"a": True}).loc["a", "best_strength"] == 1.0
    assert leaderboard(scores, values, {"a": False}).loc["a", "best_strength"] == 0.1


def test_a_name_without_a_value_at_any_strength_has_no_best_one() -> None:
    frame = long([("a", 0.1, "noise", 0.5), ("a", 1.0, "noise", 0.5)])
    values = long([("a", 0.1, "selection", NAN), ("a", 1.0, "selection", NAN)])
    assert without_scores(frame, values) == {"a": "unsolved"}


def test_the_value_of_a_strength_is_the_share_of_what_the_rlhf_optimum_gains() -> None:
    """dpo under Bradley-Terry is the RLHF optimum of beta * scale, so at the price itself it gains all there is (F1, F2)."""
    problems = {name: of for name, of in selecting.selection_worlds().items() if name.startswith("noisy")}
    prices = {name: 0.2 * (of.rewards.max() - of.rewards.min()).item() for name, of in problems.items()}
    frame = selecting.probe(objectives.get("dpo"), [1e-3, *prices.values(), 1e4])
    assert len(frame) == 12 * 6
    assert frame["share"].max() <= 1 + 1e-12
    for name, price in prices.items():  # labels at temperature 1
        share = frame[frame["world"] == name].set_index("strength")["share"]
        assert share[price] == pytest.approx(1.0, abs=1e-9)
        assert share[1e-3] < 0.7
        assert share[1e4] == pytest.approx(0.0, abs=1e-2)


# Who does the work


def table(values: list[list[float]]) -> pd.DataFrame:
    return pd.DataFrame(values, index=["dpo", "ipo"], columns=["none", "forward_kl", "chosen_nll"])


@pytest.mark.parametrize(
    ("values", "winner", "words"),
    [
        ([[0.1, 0.9, 0.2], [0.1, 0.9, 0.2]], "regulariser", "The regulariser does most of the work (regulariser 100 %"),
        ([[0.2, 0.2, 0.2], [0.8, 0.8, 0.8]], "pair loss", "The pair loss does most of the work"),
        # rows and columns have one mean: nothing but the combination matters
        ([[0.0, 1.0, 0.5], [1.0, 0.0, 0.5]], "interaction", "It depends on the combination"),
    ],
)
def test_a_pure_effect_takes_all_of_the_variation(values: list[list[float]], winner: str, words: str) -> None:
    found = decompose(table(values))
    assert found.shares == pytest.approx({key: float(key == winner) for key in found.shares}, abs=1e-12)
    assert in_words(found, table(values)).replace("100%", "100 %").startswith(words)


def test_effects_worked_by_hand() -> None:
    """Mean .5; losses -.1, +.1; regularisers -.3, +.3, 0; and +-.05 of interaction in four cells."""
    values = [[0.15, 0.65, 0.4], [0.25, 0.95, 0.6]]
    found = decompose(table(values))
    assert found.mean == pytest.approx(0.5)
    assert found.losses.tolist() == pytest.approx([-0.1, 0.1])
    assert found.regularisers.tolist() == pytest.approx([-0.3, 0.3, 0.0])
    assert found.interaction.to_numpy().ravel().tolist() == pytest.approx([0.05, -0.05, 0.0, -0.05, 0.05, 0.0])
    total = 6 * 0.01 + 2 * 0.18 + 4 * 0.0025
    assert found.shares == pytest.approx(
        {"pair loss": 0.06 / total, "regulariser": 0.36 / total, "interaction": 0.01 / total}
    )
    words = in_words(found, table(values))
    assert (
        "the score changes with forward_kl by +0.60 (+0.50 to +0.70 over the pair losses); with chosen_nll by +0.30"
        in words
    )
    assert "Best `ipo` + `forward_kl` with 0.95, worst `dpo` with 0.15." in words


def test_shares_are_those_of_a_least_squares_fit() -> None:
    """Against numpy's regression on dummy variables, which knows nothing of means: explained sums of squares, nested."""
    values = np.random.default_rng(0).random((4, 3))
    frame = pd.DataFrame(values)
    rows, columns = np.repeat(np.arange(4), 3), np.tile(np.arange(3), 4)
    y = values.ravel()

    def left(*factors: np.ndarray) -> float:
        design = np.column_stack([np.ones(12), *(factor[:, None] == np.unique(factor)[1:] for factor in factors)])
        fitted, *_ = np.linalg.lstsq(design, y, rcond=None)
        return float(((y - design @ fitted) ** 2).sum())

    total = left()
    expected = {
        "pair loss": (total - left(rows)) / total,
        "regulariser": (left(rows) - left(rows, columns)) / total,
        "interaction": left(rows, columns) / total,
    }
    assert decompose(frame).shares == pytest.approx(expected, rel=1e-10)


def test_a_table_that_does_not_vary_says_so_and_one_with_holes_is_refused() -> None:
    flat = table([[0.7] * 3] * 2)
    assert set(decompose(flat).shares.values()) == {0.0}
    assert in_words(decompose(flat), flat) == "Every combination scores 0.70: neither component matters."
    holed = table([[0.7, NAN, 0.1], [0.2, 0.3, 0.4]])
    with pytest.raises(ValueError, match="a score is missing"):
        decompose(holed)
    kept, lost = complete(holed)
    assert (kept.index.tolist(), lost) == (["ipo"], ["dpo"])


# The commands

QUICK = ["--only", "determinism", "strength", "likelihood"]


def test_the_leaderboard_runs_is_killed_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["leaderboard", "dpo", "ipo", "pretraining", "--strengths", "2", *QUICK]
    arguments += ["--workers", "1", "--out", str(tmp_path)]
    made: list[str] = []
    honest = tasks.Task.make

    def stopping(self: tasks.Task, out: Path) -> None:
        if len(made) == 1:
            raise KeyboardInterrupt
        made.append(self.name)
        honest(self, out)

    monkeypatch.setattr(tasks.Task, "make", stopping)
    with pytest.raises(KeyboardInterrupt):
        main(arguments)
    assert not (tmp_path / "run.json").exists()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("run.json")}
    assert len(before) == 1
    made.clear()
    made.append("counts from one, so that the limit is not reached")
    monkeypatch.setattr(tasks.Task, "make", lambda self, out: (made.append(self.name), honest(self, out))[1])
    assert main(arguments) == 0
    assert made[1:] == ["ipo", "pretraining"]
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    out = capsys.readouterr().out
    assert "not run: pretraining: needs pretraining, which a bandit does not have" in out
    board = read_run(tmp_path).table("leaderboard").set_index("name")
    assert sorted(board.index) == ["dpo", "ipo"]
    # Certain labels: dpo's KL does not respond to beta, ipo's responds to tau.
    assert board.loc["dpo", "best_strength"] in (pytest.approx(1e-3), pytest.approx(1e2))
    assert board.loc["ipo", "mean"] > board.loc["dpo", "mean"]
    assert (tmp_path / "leaderboard.png").stat().st_size > 10_000
    page = (tmp_path / "leaderboard.md").read_text()
    assert "2 values, evenly spaced by ratio" in page and "- `pretraining`: needs pretraining" in page


@pytest.mark.slow  # two processes that each import torch
def test_two_workers_give_what_one_does(tmp_path: Path) -> None:
    arguments = ["leaderboard", "dpo", "ipo", "--strengths", "1", "--only", "likelihood"]
    for count in ("1", "2"):
        assert main([*arguments, "--workers", count, "--out", str(tmp_path / count)]) == 0
    one, two = (read_run(tmp_path / count).table("results") for count in ("1", "2"))
    pd.testing.assert_frame_equal(one, two)


def test_the_factorial_finds_that_forward_kl_keeps_off_support_mass(tmp_path: Path) -> None:
    losses = ["dpo", "ipo", "maxpo(beta=0)"]
    arguments = ["factorial", "--losses", *losses, "--regularisers", "none", "forward_kl", "--only", "off_support"]
    assert main([*arguments, "--workers", "1", "--out", str(tmp_path)]) == 0
    run = read_run(tmp_path)
    results = run.table("results")
    assert len(results) == 6
    kept = results[results["regulariser"] != "none"]
    np.testing.assert_allclose(kept["score"], 1.0, atol=1e-6)  # F7: any pair loss
    assert results.loc[results["regulariser"] == "none", "score"].max() < 0.9
    shares = run.table("shares").set_index("component")["share"]
    assert shares.sum() == pytest.approx(1.0)
    page = (tmp_path / "factorial.md").read_text()
    assert f"{diagnostics.DIAGNOSTICS['off_support'].title}.**" in page
    assert (tmp_path / "factorial_shares.pdf").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["leaderboard", "dppo"], "unknown objective 'dppo'; did you mean 'dpo'"),
        (["leaderboard", "dpo", "--only", "regrets"], "unknown diagnostic 'regrets'; did you mean 'regret'"),
        (["leaderboard", "dpo", "--strengths", "0"], "--strengths: must be at least 1; got 0"),
        (["leaderboard", "pretraining", "--only", "noise"], "no objective has a score: pretraining: needs pretraining"),
        (["factorial", "--losses", "maxpo"], "has the term forward_kl already"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--workers", "1", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error

"""Tables of evaluated models, from records written by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.__main__ import main
from analysis.evaluations import MissingEvaluations, benchmarks, estimators, measures
from analysis.records import RecordError, Run, read_run, write_run

RNG = np.random.default_rng(4)
REWARDS = RNG.normal(0, 1, (2, 30))
KL = {"kl_policy_reference": RNG.uniform(1, 2, 30), "k1": RNG.normal(1.5, 1, 30), "k3": RNG.exponential(1.5, 30)}
GAINED, LOST = 8, 1  # of 12 questions of the task "facts"


def record(
    folder: Path, name: str = "a", reward_after: np.ndarray = REWARDS[1], facts_after: list[float] | None = None
) -> Run:
    rows: list[tuple[int, str, str, int, float]] = []

    def add(step: int, split: str, metric: str, values: np.ndarray | list[float]) -> None:
        rows.extend((step, split, metric, item, float(value)) for item, value in enumerate(values))

    add(0, "held_out_prompts", "reward", REWARDS[0])
    add(2, "held_out_prompts", "reward", reward_after)
    for metric, values in KL.items():
        add(0, "held_out_prompts", metric, np.zeros(30))
        add(2, "held_out_prompts", metric, values)
    add(0, "benchmark/facts", "acc", [0] * GAINED + [1] * 4)
    add(2, "benchmark/facts", "acc", facts_after or [1] * GAINED + [0] * LOST + [1] * 3)
    add(0, "benchmark/sums", "score", np.arange(4) / 10)
    add(2, "benchmark/sums", "score", np.arange(4) / 10 + [0.1, 0.2, 0.3, 0.4])
    write_run(
        folder / name,
        kind="llm",
        id=f"test/{name}",
        config={"name": name},
        seeds={"training": 0},
        tables={"evaluations": pd.DataFrame(rows, columns=["step", "split", "metric", "item", "value"])},
    )
    return read_run(folder / name)


def test_before_and_after_are_paired_by_item(tmp_path: Path) -> None:
    table = measures([record(tmp_path)]).set_index("metric")
    assert set(table.index) == {"reward", "kl_policy_reference"}  # estimators have a table of their own
    reward, difference = table.loc["reward"], REWARDS[1] - REWARDS[0]
    assert (reward["before"], reward["after"]) == (pytest.approx(REWARDS[0].mean()), pytest.approx(REWARDS[1].mean()))
    low, high = stats.t.interval(0.95, 29, difference.mean(), stats.sem(difference))
    assert reward["difference"] == pytest.approx(difference.mean())
    assert [reward["low"], reward["high"]] == pytest.approx([low, high], abs=0.08)
    assert reward["n"] == 30


def test_estimators_have_mean_standard_error_and_variance(tmp_path: Path) -> None:
    table = estimators([record(tmp_path)]).set_index("estimator")
    assert set(table["step"]) == {2}
    for estimator, metric in (("exact per token", "kl_policy_reference"), ("k1", "k1"), ("k3", "k3")):
        row, values = table.loc[estimator], pd.Series(KL[metric])
        assert row["mean"] == pytest.approx(values.mean())
        assert row["variance"] == pytest.approx(values.var())
        assert row["standard_error"] == pytest.approx(values.sem())
        assert (row["overflows"], row["n"]) == (0, 30)


def test_an_overflow_is_counted_and_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KL, "k3", np.array([math.inf, *KL["k3"][1:]]))
    row = estimators([record(tmp_path)]).set_index("estimator").loc["k3"]
    assert (row["overflows"], row["mean"], row["variance"]) == (1, math.inf, math.inf)


def test_benchmarks_are_tested_and_adjusted_over_the_whole_table(tmp_path: Path) -> None:
    """McNemar of 8 gained and 1 lost: 2 (1 + 9) / 512; four changes of one sign: 2 / 16; two runs: a family of four tests."""
    runs = [record(tmp_path, "a"), record(tmp_path, "b", facts_after=[0] * GAINED + [1] * 4)]
    table = benchmarks(runs).set_index(["run", "task"])
    assert table.loc[("test/a", "facts"), "p"] == pytest.approx(20 / 512)
    assert table.loc[("test/a", "facts"), "test"] == "McNemar"
    assert table.loc[("test/a", "facts"), "difference"] == pytest.approx((GAINED - LOST) / 12)
    assert table.loc[("test/b", "facts"), "p"] == 1
    assert table.loc[("test/a", "sums"), ["p", "test"]].tolist() == [pytest.approx(2 / 16), "permutation"]
    assert table["adjusted_p"].to_dict() == {
        ("test/a", "facts"): pytest.approx(4 * 20 / 512),
        ("test/a", "sums"): pytest.approx(3 * 2 / 16),
        ("test/b", "facts"): 1,
        ("test/b", "sums"): pytest.approx(3 * 2 / 16),
    }
    alone = benchmarks(runs[:1], metric="acc")
    assert alone["adjusted_p"].tolist() == alone["p"].tolist()
    assert benchmarks(runs, "bh")["adjusted_p"].tolist() == pytest.approx([4 * 20 / 512, 4 / 3 / 8, 1, 4 / 3 / 8])


def test_another_run_may_take_the_place_of_before(tmp_path: Path) -> None:
    a, b = record(tmp_path, "a"), record(tmp_path, "b", facts_after=[0] * GAINED + [1] * 4)
    table = benchmarks([a], metric="acc", against=b)
    assert table["before"].tolist() == [pytest.approx(4 / 12)]
    assert table["p"].tolist() == [pytest.approx(20 / 512)]


def test_the_command_prints_and_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path / "runs")
    out = tmp_path / "summary"
    assert main(["evaluation", str(tmp_path / "runs"), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "Adjusted p: Holm, 2 tests" in shown
    assert "0.583 [" in shown
    assert [line.split()[:2] for line in shown.splitlines() if line.startswith("facts")] == [["facts", "acc"]]
    written = read_run(out)
    assert written.tables == ("measures", "estimators", "benchmarks")
    assert written.table("benchmarks")["p"].tolist() == pytest.approx([20 / 512, 2 / 16])
    assert written.config["runs"][0]["id"] == "test/a"
    assert main(["evaluation", str(tmp_path / "runs"), "--table", "measures", "--format", "csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("run,split,metric,before,after")
    assert len(lines) == 3


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error(*arguments: str) -> str:
        assert main(["evaluation", *arguments]) == 2
        shown = capsys.readouterr().err
        assert shown.count("\n") == 1
        return shown

    folder = str(tmp_path / "runs")
    (tmp_path / "runs").mkdir()
    assert "no evaluated models in" in error(folder)
    record(tmp_path / "runs")
    assert "no metric 'ac'; nearest: acc" in error(folder, "--metric", "ac")
    assert "--format csv is of one table" in error(folder, "--format", "csv")
    assert "there is no such folder" in error(str(tmp_path / "absent"))
    assert "no benchmarks with the metric reward" in error(folder, "--table", "benchmarks", "--metric", "reward")
    broken = record(tmp_path / "broken", reward_after=np.full(30, math.nan))
    with pytest.raises(RecordError, match="held_out_prompts, reward: 30 of 30 values are not finite"):
        measures([broken])
    with pytest.raises(MissingEvaluations, match="no KL estimates"):
        estimators([])

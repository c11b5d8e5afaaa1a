"""The command that compares methods: every table from records with a known truth, and refusals in one line."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
import pytest
import synthetic_records as synthetic

from analysis.__main__ import main
from analysis.comparison_table import TITLES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    truth = synthetic.Truth(prompts=48, strengths=(0.1,), seeds=(0, 1, 2), seed_noise=0.01, noise=0.2)
    return synthetic.write_language_model(tmp_path_factory.mktemp("compare"), truth)


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.seeds.DRAWS", 100)
    monkeypatch.setattr("analysis.aggregates.RESAMPLES", 200)


def table(folder: Path, name: str, capsys: pytest.CaptureFixture[str], *options: str) -> pd.DataFrame:
    assert main(["compare", str(folder), "--table", name, "--format", "csv", *options]) == 0
    return pd.read_csv(io.StringIO(capsys.readouterr().out))


def test_every_table_is_filled_and_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(folder)]) == 0
    shown = capsys.readouterr()
    assert all(f"{name}\n\n" in shown.out for name in TITLES)
    assert not shown.err


def test_the_same_reward_at_a_fifth_of_the_kl(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both end at the reward 2, dpo at a KL of 10 nats, maxpo at 2."""
    found = table(folder, "equal-reward", capsys, "--methods", "dpo", "maxpo")
    assert set(found["seeds"]) == {3}
    assert (found["difference"] > 0).all()
    last = found.iloc[-1]
    assert last["low"] > 1.0
    at_equal_kl = table(folder, "equal-kl", capsys, "--methods", "dpo", "maxpo")
    assert (at_equal_kl["high"] < 0).all()
    areas = table(folder, "dominance", capsys, "--methods", "maxpo", "dpo").set_index("measure")
    assert areas.loc["area, pareto", "low"] > 0
    assert areas.loc["area, isotonic", "low"] > 0


def test_aggregates_are_over_both_kinds_of_labels(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = table(folder, "aggregates", capsys)
    assert set(found["tasks"]) == {2}
    assert set(found["runs"]) == {3}
    chances = table(folder, "improvement", capsys)
    assert len(chances) == 3
    assert chances["probability"].between(0, 1).all()


def test_what_cannot_be_compared_is_refused_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(folder), "--table", "dominance", "--methods", "dpo", "nonesuch"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: no records of language-model runs of nonesuch on near_deterministic labels"
    )
    assert main(["compare", str(folder), "--format", "csv"]) == 2
    assert "--format csv is of one table" in capsys.readouterr().err
    assert main(["compare", str(folder), "--table", "dominance", "--methods", "dpo"]) == 2
    assert "needs two methods" in capsys.readouterr().err

"""The data report: its numbers against ones worked by hand, or simulated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import preference_samples
import pytest
from transformers import PreTrainedTokenizerBase

from llm_runs import data
from llm_runs.config import DataConfig, ReadingConfig
from llm_runs.data import Loaded, report
from llm_runs.data.loading import Account
from llm_runs.data.store import Store, Writer
from llm_runs.data.stored import PlacedPair, StoredPairs, pair_kind
from llm_runs.examples import TokenPair


def pair(prompt: int, chosen: tuple[int, ...], rejected: tuple[int, ...], *scores: float) -> TokenPair:
    return TokenPair((prompt,), chosen, rejected, f"prompt {prompt}", "", "", f"{prompt}", False, *scores)


def loaded(folder: Path, *pairs: TokenPair) -> Loaded:
    writer = Writer(folder / "store", "key", pair_kind())
    for each in (*pairs, pair(99, (1,), (2,))):
        writer.append(PlacedPair(each, "somewhere"))
    writer.end_part({}, complete=True)
    every = StoredPairs(Store(folder / "store", StoredPairs.kind), np.arange(len(pairs) + 1))
    return Loaded(every[:-1], every[-1:], [Account("mine.jsonl", "JSON lines", "pairs")], {}, {}, None)


def describe(folder: Path, here: Loaded) -> dict[str, Any]:
    return report.describe(here, report.write(here, folder / "pairs.parquet"), DataConfig())


def test_lengths_and_overlap_by_hand(tmp_path: Path) -> None:
    here = loaded(tmp_path, pair(1, (5, 6, 7, 7), (5, 6, 8)), pair(2, (3,), (4, 4)))
    values = describe(tmp_path, here)
    table = pd.read_parquet(tmp_path / "pairs.parquet")
    one, two = table.iloc[0], table.iloc[1]
    assert (one["prompt_tokens"], one["chosen_tokens"], one["rejected_tokens"]) == (1, 4, 3)
    assert one["common_prefix"] == pytest.approx(2 / 3)  # 5 6 of the shorter one's three
    assert one["overlap"] == pytest.approx(2 * 2 / 7)  # 5 and 6 of 4 + 3
    assert (two["common_prefix"], two["overlap"]) == (0, 0)
    assert values["lengths"]["chosen"] == pytest.approx(np.quantile([4, 1, 1], report.QUANTILES))
    assert values["lengths"]["chosen_longer"] == pytest.approx(1 / 3)


def test_repeated_labels_and_their_agreement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The same pair three times one way and once the other; another pair twice the same way; a third once.
    pairs = [*[pair(1, (5,), (6,))] * 3, pair(1, (6,), (5,)), *[pair(2, (7,), (8,))] * 2, pair(3, (7,), (8,))]
    here = loaded(tmp_path, *pairs)
    values = describe(tmp_path, here)
    monkeypatch.setattr(report, "_TOGETHER", 2)  # a few pairs at a time say the same
    assert describe(tmp_path, here) == values
    assert values["duplicates"] == {
        "repeated_labels": 3,
        "pairs_labelled_both_ways": 1,
        "prompts_with_several_pairs": 0,
    }
    sure = values["determinism"]
    assert (sure["pairs"], sure["repeated_pairs"], sure["pairs_seen_once"]) == (4, 2, 0.5)
    # Of the 6 ways to take two of the four labels 3 agree; of the other pair's two labels all do.
    assert sure["agreement"] == pytest.approx((3 / 6 + 1) / 2)
    assert "labelled both ways" in report.markdown(values)


def test_agreement_estimates_the_label_probability() -> None:
    draw = np.random.default_rng(0)
    labels = draw.integers(2, 6, size=4000)
    wins = draw.binomial(labels, np.where(draw.random(4000) < 0.5, 0.9, 0.1))
    found = report.agreement(wins, labels)
    low, high = found["agreement_interval"]  # type: ignore[misc]
    assert low < 0.82 < high  # .9^2 + .1^2
    assert high - low < 0.04
    assert found["repeated_max_probability"] == pytest.approx(0.9, abs=0.02)
    assert report.agreement([2], [2])["agreement_interval"] is None


def test_the_temperature_of_labels_against_scores(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    gaps = draw.normal(size=20_000)
    kept = draw.random(20_000) < 1 / (1 + np.exp(-gaps / 0.7))  # chosen minus rejected, after the label was drawn
    assert report.fit_temperature(np.where(kept, gaps, -gaps)) == pytest.approx(0.7, rel=0.05)
    assert report.fit_temperature([1.0, -1.0]) == np.inf
    here = loaded(tmp_path, pair(1, (5,), (6,), 2.0, 1.0), pair(2, (5,), (6,), 3.0, 3.0), pair(3, (5,), (6,), 1.0, 2.0))
    sure = describe(tmp_path, here)["determinism"]
    assert (sure["scored_pairs"], sure["label_agrees_with_score"]) == (3, 0.5)
    assert sure["score_ties"] == pytest.approx(1 / 3)


def test_what_is_written(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    source = preference_samples.write_jsonl(
        tmp_path / "uf.jsonl", [*preference_samples.ultrafeedback(12), {"instruction": "x"}]
    )
    reading = ReadingConfig(bad_records="drop", overlong="truncate", max_completion_tokens=12)
    config = DataConfig(preferences=str(source), reading=reading)
    found = data.load(config, tokenizer, 256, folder=tmp_path / "data", seed=0, say=lambda words: None)
    paths = tmp_path / "training.json", tmp_path / "held_out.json"
    page = data.save(found, config, tmp_path / "data", *paths)
    assert {path.name for path in (tmp_path / "data").iterdir()} == {
        "report.md", "report.json", "pairs.parquet", "candidates.json", "candidates.npy", "given", "given_completions"}  # fmt: skip
    values = json.loads((tmp_path / "data" / "report.json").read_text())
    assert values["sources"][0]["left_out"] == {"missing field": 1}
    assert values["truncation"]["completions_cut"] == found.truncated["completions"] > 0
    assert values["split"]["prompts_in_both"] == 0
    assert values["split"]["training"]["pairs"] + values["split"]["held_out"]["pairs"] == 12
    assert values["rendering"]["chat_template_sha256"] == found.template
    assert page == (tmp_path / "data" / "report.md").read_text()
    for words in ("1 records left out: missing field", "line 13: the key 'completions' is missing", "(detected)", "best against the worst",
                  "100.0% of 12 different pairs have one label only", "near-deterministic", "scores"):  # fmt: skip
        assert words in page
    table = pd.read_parquet(tmp_path / "data" / "pairs.parquet")
    assert len(table) == 12
    assert (table["chosen_tokens"] <= 12).all()

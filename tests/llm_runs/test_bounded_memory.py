"""What a huge preference file passes through stays on disk: few bytes are held, and the numbers are those of lists in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import objectives
from benchmarks.data import _Watch
from llm_runs import data, reference, training
from llm_runs.config import DataConfig, ReadingConfig, ReferenceConfig, TrainingConfig
from llm_runs.data import pairing, store
from llm_runs.data.store import Store, Writer
from llm_runs.data.stored import (
    SAMPLES,
    NamedSample,
    PlacedPair,
    StoredGroups,
    StoredPairs,
    StoredSamples,
    pair_kind,
)
from llm_runs.examples import Sides, TokenPair, TokenSample
from llm_runs.logprobs import TopTokens
from llm_runs.microbatches import Microbatches, needs_in_training
from llm_runs.mismatched import Mismatched
from llm_runs.reference import ScoredCompletion


def ids(draw: np.random.Generator, limit: int) -> tuple[int, ...]:
    return tuple(draw.integers(5, 200, draw.integers(2, limit)).tolist())


def pairs(count: int) -> list[TokenPair]:
    draw = np.random.default_rng(0)
    return [TokenPair((10 + n % 90, *ids(draw, 5)), ids(draw, 9), ids(draw, 9), id=str(n)) for n in range(count)]


def stored_pairs(folder: Path, given: Sequence[TokenPair]) -> StoredPairs:
    writer = Writer(folder, "key", pair_kind())
    for each in given:
        writer.append(PlacedPair(each, ""))
    writer.end_part({}, complete=True)
    return StoredPairs(Store(folder, StoredPairs.kind), np.arange(len(given)))


def stored_samples(folder: Path, given: Sequence[TokenSample]) -> StoredSamples:
    writer = Writer(folder, "key", SAMPLES)
    for number, each in enumerate(given):
        writer.append(NamedSample(each, f"name {number}"))
    writer.end_part({}, complete=True)
    return StoredSamples(Store(folder, SAMPLES), np.arange(len(given)))


# -- memory --------------------------------------------------------------------------------------------------------


def test_reference_log_probs_of_many_completions_are_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """6,000 completions of 32 tokens with 32 likeliest tokens each: 74 MB of numbers, of which few are held at any time."""
    tokens, top_k, count = 32, 32, 6000

    def made_up(*arguments: Any) -> list[ScoredCompletion]:  # what the model does to a piece is tested elsewhere
        rows = []
        for sample, _ in arguments[2]:
            ids, logps = torch.zeros(tokens, top_k, dtype=torch.int32), torch.full((tokens, top_k), -float(top_k))
            top = TopTokens(ids, logps + sample.prompt_ids[0], torch.zeros(tokens))
            digest = reference.sequence_digest(sample.prompt_ids, sample.completion_ids)
            own = torch.full((tokens,), -float(sample.prompt_ids[0]))
            rows.append(ScoredCompletion(digest, own, own.sum(), top))
        return rows

    def samples(number: int) -> Iterator[TokenSample]:
        return (TokenSample((n,), tuple(range(5, 5 + tokens))) for n in range(number))

    monkeypatch.setattr(reference, "_score", made_up)
    monkeypatch.setattr(reference, "_NUMBERS", 1 << 18)
    monkeypatch.setattr(store, "BATCH", 64)
    config = ReferenceConfig(top_k=top_k)
    reference.compute(model, tokenizer, (), samples(200), config, folder=tmp_path / "warm")
    with _Watch() as watch:
        found = reference.compute(model, tokenizer, (), samples(count), config, folder=tmp_path / "many")
        seen = [found.logp(s.prompt_ids, s.completion_ids) for s in samples(count)]
        last = found.distributions(TokenSample((count - 1,), tuple(range(5, 5 + tokens))))
    assert seen == [-float(tokens * n) for n in range(count)]
    assert last.logps.unique().item() == count - 1 - top_k
    on_disk = sum(path.stat().st_size for path in (tmp_path / "many" / "rows").iterdir())
    assert on_disk > 50e6
    assert (watch.peak - watch.before) / 1e6 < 20
    (table,) = found._tables
    assert isinstance(table.rows, Store)
    assert isinstance(table.places, np.memmap)


@pytest.mark.parametrize("form", ["candidates", "unpaired"])
def test_completions_of_many_records_are_not_held(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerBase
) -> None:
    """2,000 completions of 600 tokens: 10 MB of pointers to tokens and 3 MB of texts, and as much again in the pairs."""
    monkeypatch.setattr(store, "BATCH", 16)
    monkeypatch.setattr(store, "PART", 64)
    text = " a" * 600

    def source(name: str, count: int) -> DataConfig:
        with (tmp_path / f"{name}.jsonl").open("w") as file:
            for n in range(count):
                answers = [f"{text} {n} {side}" for side in range(4)]
                rows: list[dict[str, Any]] = [{"prompt": f"p {n}", "completions": answers, "scores": [1, 2, 3, 4]}]
                if form == "unpaired":
                    rows = [{"prompt": f"p {n}", "completion": a, "label": k % 2 == 0} for k, a in enumerate(answers)]
                file.writelines(json.dumps(row) + "\n" for row in rows)
        return DataConfig(preferences=str(tmp_path / f"{name}.jsonl"), reading=ReadingConfig())

    def load(name: str, count: int) -> data.Loaded:
        folder = tmp_path / name
        found = data.load(source(name, count), tokenizer, 4096, folder=folder, seed=0, say=lambda words: None)
        data.save(found, DataConfig(preferences="x"), folder, folder / "training.json", folder / "held_out.json")
        return found

    load("warm", 30)
    with _Watch() as watch:
        found = load("many", 500)
    assert len(found.samples[form]) == 2000
    tokens = sum(int(each["completion_ids"].sum()) for each in found.samples[form].store.columns(["completion_ids"]))
    assert tokens > 2000 * 600
    assert len(found.training) + len(found.held_out) == (500 if form == "candidates" else 1000)
    assert (watch.peak - watch.before) / 1e6 < 8
    again = StoredSamples.open(tmp_path / "many" / f"{form}.json")
    assert isinstance(again.rows, np.memmap)
    assert again[1999] == found.samples[form][1999]


class _Counting(StoredPairs):
    """Counts the pairs that are read."""

    reads = 0

    def __getitem__(self, index: Any) -> Any:
        self.reads += not isinstance(index, slice)
        return super().__getitem__(index)


@pytest.mark.parametrize("label", ["dpo", "tdpo", "mrpo", "kto(z0=0.)", "ipo", "simpo"])
def test_a_training_begins_without_reading_all_pairs(
    label: str, tmp_path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    given = stored_pairs(tmp_path / "pairs", pairs(60))
    sides = Sides(given)
    kept = reference.compute(
        model, tokenizer, (), sides, ReferenceConfig(top_k=4), completions=Mismatched(sides), folder=tmp_path / "logps"
    )
    counting = _Counting(given.store, given.rows)
    needs = needs_in_training(objectives.parse(label), candidates=False, unpaired=False)
    config = TrainingConfig(steps=2, batch_size=4)
    batches = Microbatches(needs, counting, (), (), kept, config, 0, references=[kept], context=64)
    batches.sequences()
    assert counting.reads == 0  # the few that bound all come from the store
    batches[0]
    assert counting.reads == 4


# -- the numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["dpo(beta=0.1)", "kto", "tdpo", "mrpo"])
def test_stored_pairs_and_log_probs_train_like_lists(
    label: str, tmp_path: Path, fresh_model: Callable[[], PreTrainedModel], tokenizer: PreTrainedTokenizerBase
) -> None:
    given = pairs(12)
    config = TrainingConfig(steps=3, batch_size=4, save_every=2)
    losses = []
    for name, source in (("list", given), ("stored", stored_pairs(tmp_path / "pairs", given))):
        crossed = Mismatched(Sides(source), 64)
        folder = None if name == "list" else tmp_path / "logps"
        kept = reference.compute(
            fresh_model(), tokenizer, (), Sides(source), ReferenceConfig(), completions=crossed, folder=folder
        )
        metrics = training.train(
            fresh_model(),
            objectives.parse(label),
            source,
            reference=kept,
            references=[kept],
            config=config,
            seed=0,
            out=tmp_path / name,
        )
        losses.append(metrics.loc[metrics["name"] == "loss", "value"].tolist())
    assert losses[0] == losses[1]
    assert len(set(losses[0])) > 1


@pytest.mark.parametrize("label", ["infonca", "kto(z0=0.)"])
def test_stored_completions_train_like_lists(
    label: str, tmp_path: Path, fresh_model: Callable[[], PreTrainedModel], tokenizer: PreTrainedTokenizerBase
) -> None:
    draw = np.random.default_rng(1)
    given = [
        TokenSample((10 + n // 3, 7), ids(draw, 9), reward=float(n % 2 if label.startswith("kto") else n % 3))
        for n in range(36)
    ]
    stored = stored_samples(tmp_path / "samples", given)
    groups = StoredGroups(stored)
    assert [list(group) for group in groups] == [given[n : n + 3] for n in range(0, 36, 3)]
    assert groups.sizes.tolist() == [3] * 12
    ways: list[dict[str, Any]] = [{"candidates": [given[n : n + 3] for n in range(0, 36, 3)]}, {"candidates": groups}]
    if label.startswith("kto"):
        ways = [{"unpaired": given}, {"unpaired": stored}]
    kept = reference.compute(fresh_model(), tokenizer, (), (), ReferenceConfig(), completions=given)
    config = TrainingConfig(steps=2, batch_size=4)
    losses = []
    for number, way in enumerate(ways):
        metrics = training.train(
            fresh_model(),
            objectives.parse(label),
            pairs(4),
            reference=kept,
            config=config,
            seed=0,
            out=tmp_path / str(number),
            **way,
        )
        losses.append(metrics.loc[metrics["name"] == "loss", "value"].tolist())
    assert losses[0] == losses[1]


def in_turn(samples: Sequence[TokenSample]) -> list[tuple[int, int]]:
    """Desirable with undesirable completions of a prompt, by hand."""
    by_prompt: dict[tuple[int, ...], tuple[list[int], list[int]]] = {}
    for place, sample in enumerate(samples):
        good, bad = by_prompt.setdefault(sample.prompt_ids, ([], []))
        (good if sample.reward else bad).append(place)
    return [each for good, bad in by_prompt.values() for each in zip(good, bad, strict=False)]


@pytest.mark.parametrize("together", [1 << 20, 11])
def test_labels_are_paired_in_turn(together: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairing, "_TOGETHER", together)
    draw = np.random.default_rng(2)
    given = [
        TokenSample((int(prompt), 3), (n + 1,), reward=float(label))
        for n, (prompt, label) in enumerate(zip(draw.integers(0, 15, 120), draw.random(120) < 0.6, strict=True))
    ]
    good, bad = pairing.of_unpaired(stored_samples(tmp_path, given))
    found = list(zip(good.tolist(), bad.tolist(), strict=True))
    assert found == in_turn(given)
    assert len(found) > 20


def test_an_interrupted_reading_of_labels_goes_on(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off while records are read, and while they are paired."""
    monkeypatch.setattr(store, "BATCH", 4)
    monkeypatch.setattr(store, "PART", 8)
    rows = [{"prompt": f"p {n % 5}", "completion": f"answer {n}", "label": n % 3 > 0} for n in range(60)]
    source = tmp_path / "mine.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(preferences=str(source))

    def load(name: str) -> data.Loaded:
        return data.load(config, tokenizer, 64, folder=tmp_path / name, seed=0, say=lambda words: None)

    wanted = load("undisturbed")
    assert 8 < len(wanted.training) + len(wanted.held_out) == 20
    for at in (37, 68):  # rows of either kind
        real, calls = Writer.append, 0

        def interrupted(self: Any, row: Any, at: int = at, real: Any = real) -> None:
            nonlocal calls
            calls += 1
            if calls == at:
                raise KeyboardInterrupt
            real(self, row)

        with monkeypatch.context() as patch:
            patch.setattr(Writer, "append", interrupted)
            with pytest.raises(KeyboardInterrupt):
                load(f"cut at {at}")
        found = load(f"cut at {at}")
        for side in ("training", "held_out"):
            assert list(getattr(found, side)) == list(getattr(wanted, side))
        assert list(found.samples["unpaired"]) == list(wanted.samples["unpaired"])
        assert replace(found.accounts[0]) == wanted.accounts[0]

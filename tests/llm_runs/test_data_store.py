"""Pairs on disk: what is written is read, an interrupted reading goes on, damage is noticed, training takes them like a list."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import preference_samples
import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import objectives
from llm_runs import data, training
from llm_runs.config import DataConfig, ReadingConfig, TrainingConfig
from llm_runs.data import loading, store
from llm_runs.data.rendering import Renderer
from llm_runs.data.store import Store, Writer
from llm_runs.data.stored import PlacedPair, StoredPairs, pair_kind
from llm_runs.errors import InputError
from llm_runs.examples import TokenPair


def pairs(count: int) -> list[TokenPair]:
    draw = np.random.default_rng(0)

    def ids(limit: int) -> tuple[int, ...]:
        return tuple(draw.integers(1, 200, draw.integers(1, limit)).tolist())

    return [
        TokenPair(
            ids(5),
            (*ids(7), 3),
            (*ids(9), 4),
            f"prompt {n} é",
            "chosen",
            "",
            str(n),
            chosen_reward=n / 7 if n % 2 else None,
            probability=0.75 if n % 3 else None,
        )
        for n in range(count)
    ]


def write(folder: Path, given: list[TokenPair], key: str = "key") -> StoredPairs:
    writer = Writer(folder, key, pair_kind())
    for each in given:
        writer.append(PlacedPair(each, f"line {each.id}"))
        if writer.full:
            writer.end_part({"count": int(each.id)})
    writer.end_part({"count": len(given)}, complete=True)
    return StoredPairs(Store(folder, StoredPairs.kind), np.arange(len(given)))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 8 rows, parts of 32."""
    monkeypatch.setattr(store, "BATCH", 8)
    monkeypatch.setattr(store, "PART", 32)


@pytest.mark.usefixtures("small")
def test_what_is_written_is_read_in_any_order(tmp_path: Path) -> None:
    given = pairs(100)
    found = write(tmp_path / "store", given)
    assert [path.name for path in sorted(tmp_path.glob("store/*.arrow"))] == [f"part-{n:05}.arrow" for n in range(4)]
    assert list(found) == given
    assert [found[place] for place in (99, 0, 31, 32, -1)] == [given[place] for place in (99, 0, 31, 32, -1)]
    assert list(found[10:50:7]) == given[10:50:7]
    with pytest.raises(IndexError):
        found[100]
    lengths = [len(each.prompt_ids) + max(len(each.chosen_ids), len(each.rejected_ids)) for each in given]
    assert max(len(e.prompt_ids) + max(len(e.chosen_ids), len(e.rejected_ids)) for e in found.extremes) == max(lengths)
    assert max(max(e.prompt_ids + e.chosen_ids + e.rejected_ids) for e in found.extremes) == max(
        max(e.prompt_ids + e.chosen_ids + e.rejected_ids) for e in given
    )
    np.testing.assert_array_equal(found.column("chosen_reward"), [np.nan if n % 2 == 0 else n / 7 for n in range(100)])
    np.testing.assert_array_equal(found[3:9].column("chosen_ids"), [len(each.chosen_ids) for each in given[3:9]])
    selection = tmp_path / "pairs" / "some.json"
    found.take(np.array([5, 40, 7])).save(selection)
    again = StoredPairs.open(selection)
    assert list(again) == [given[5], given[40], given[7]]
    assert isinstance(again.rows, np.memmap)
    assert again.fingerprint != found.fingerprint


@pytest.mark.usefixtures("small")
def test_writing_goes_on_after_the_last_whole_part(tmp_path: Path) -> None:
    given = pairs(80)
    writer = Writer(tmp_path, "key", pair_kind())
    for each in given[:45]:
        writer.append(PlacedPair(each, ""))
        if writer.full:
            writer.end_part({"count": int(each.id) + 1})
    again = Writer(tmp_path, "key", pair_kind())  # the first was killed
    assert (again.progress, again.complete, len(again)) == ({"count": 32}, False, 32)
    for each in given[32:]:
        again.append(PlacedPair(each, ""))
    again.end_part({}, complete=True)
    assert list(StoredPairs(Store(tmp_path, StoredPairs.kind), np.arange(80))) == given
    assert Writer(tmp_path, "key", pair_kind()).complete
    other = Writer(tmp_path, "another key", pair_kind())
    assert (other.progress, other.complete, len(other)) == (None, False, 0)


@pytest.mark.usefixtures("small")
def test_damage_is_noticed(tmp_path: Path) -> None:
    found = write(tmp_path / "store", pairs(40))
    found.save(tmp_path / "all.json")
    writer = Writer(tmp_path / "unfinished", "key", pair_kind())
    writer.append(PlacedPair(pairs(1)[0], ""))
    writer.end_part({})
    with pytest.raises(InputError, match="not written to its end"):
        Store(tmp_path / "unfinished", StoredPairs.kind)
    part = tmp_path / "store" / "part-00001.arrow"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    opened = StoredPairs.open(tmp_path / "all.json")
    assert opened[31].id == "31"  # of a part that is whole
    with pytest.raises(InputError, match=r"part-00001\.arrow: damaged \(wrong checksum\); delete .*store"):
        opened[32]
    part.unlink()
    with pytest.raises(InputError, match=r"part-00001\.arrow: cannot be read"):
        StoredPairs.open(tmp_path / "all.json")[32]
    rows = np.load(tmp_path / "all.npy")
    np.save(tmp_path / "all.npy", rows[::-1])
    with pytest.raises(InputError, match=r"all\.json: damaged \(wrong checksum\)"):
        StoredPairs.open(tmp_path / "all.json")
    (tmp_path / "all.npy").unlink()
    with pytest.raises(InputError, match=r"all\.json: cannot be read"):
        StoredPairs.open(tmp_path / "all.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"parts": None}, "wrong checksum"),
        ({"parts": None, "sha256": None}, "parts is missing or wrong"),
        ({"sha256": None, "complete": "yes"}, "complete is missing or wrong"),
        ({"sha256": None, "parts": [{"name": "../part-00000.arrow", "rows": 3, "sha256": ""}]}, r"parts\[0\] is wrong"),
        ({"sha256": None, "parts": [{"name": "part-00000.arrow", "rows": 2**62, "sha256": ""}]}, "fewer rows than"),
        ({"sha256": None, "extremes": {"length": [5, 3]}}, "extremes are wrong"),
        ({"format": [[7]]}, r"of format \[\[7\]\], this version reads"),
    ],
)
def test_a_damaged_manifest_is_one_line(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    """Also one without a checksum of its own, as earlier versions wrote them."""
    write(tmp_path, pairs(3))
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text()) | change
    path.write_text(json.dumps({key: value for key, value in manifest.items() if value is not None}))
    with pytest.raises(InputError, match=rf"manifest\.json: .*{words}") as caught:
        Store(tmp_path, StoredPairs.kind)
    assert "\n" not in str(caught.value)


def test_a_manifest_of_an_earlier_version_is_read_and_its_rows_are_counted(tmp_path: Path) -> None:
    write(tmp_path, given := pairs(3))
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    path.write_text(json.dumps(manifest))
    assert list(Store(tmp_path, StoredPairs.kind)) == given
    manifest["parts"][0]["rows"] = 4
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"part-00000\.arrow: has 3 rows, not those of the manifest"):
        Store(tmp_path, StoredPairs.kind)[0]


@pytest.mark.parametrize("header", [b"\0", b"{'descr': '<i8', 'shape': (1" + b"0" * 30 + b",)}", b"{(\n"])
def test_damaged_numbers_of_rows_are_one_line(tmp_path: Path, header: bytes) -> None:
    write(tmp_path / "store", pairs(3)).save(tmp_path / "all.json")
    path = tmp_path / "all.npy"
    content = path.read_bytes()
    path.write_bytes(content[:10] + header.ljust(len(content) - 10))
    with pytest.raises(InputError, match=r"all\.json: cannot be read \(all\.npy") as caught:
        StoredPairs.open(tmp_path / "all.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"[" * 5000, b"[]", b'{"store": "store"}'])
def test_a_damaged_selection_is_one_line(tmp_path: Path, content: bytes) -> None:
    write(tmp_path / "store", pairs(3)).save(tmp_path / "all.json")
    path = tmp_path / "all.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"all\.json: cannot be read"):
        StoredPairs.open(path)


@pytest.mark.usefixtures("small")
def test_an_interrupted_reading_goes_on(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[Any] = [{"prompt": f"Film {n} was", "chosen": " great.", "rejected": " bad."} for n in range(100)]
    rows[10] = {"prompt": "x"}
    rows[70] = rows[20]
    source = preference_samples.write_jsonl(tmp_path / "mine.jsonl", rows)
    reading = ReadingConfig(bad_records="drop", duplicates="drop", overlong="truncate", max_completion_tokens=2)
    config = DataConfig(preferences=str(source), reading=reading)
    said: list[str] = []

    def load(folder: Path) -> data.Loaded:
        return data.load(config, tokenizer, 64, folder=folder, seed=0, say=said.append)

    wanted = load(tmp_path / "undisturbed")
    calls = 0
    real = Renderer.in_tokens

    def interrupted(self: Renderer, examples: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 10:
            raise KeyboardInterrupt
        return real(self, examples)

    with monkeypatch.context() as patch:
        patch.setattr(Renderer, "in_tokens", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(tmp_path / "store")
        found = load(tmp_path / "store")
    assert calls == 10 + 4  # eight records at a time; two whole parts were kept, and the rest of 100 records is read
    assert "goes on after 72 records that were read before" in said[-1]
    for side in ("training", "held_out"):
        assert list(getattr(found, side)) == list(getattr(wanted, side))
    assert found.accounts == wanted.accounts
    assert found.accounts[0].left_out == {"missing field": 1, "duplicate": 1}
    assert (found.truncated, found.rendered) == (wanted.truncated, wanted.rendered)
    assert found.truncated["completions"] == 2 * 99


@pytest.mark.usefixtures("small")
def test_a_file_of_another_time_is_read_anew_to_the_same_pairs(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time says only whether it must be read again: a copy of it, or one that was touched, gives the same bits."""
    rows = [{"prompt": f"Film {n} was", "chosen": " great.", "rejected": " bad."} for n in range(100)]
    source = preference_samples.write_jsonl(tmp_path / "mine.jsonl", rows)
    read: list[int] = []
    real = Renderer.in_tokens

    def counted(self: Renderer, examples: Any) -> Any:
        read.append(len(examples))
        return real(self, examples)

    monkeypatch.setattr(Renderer, "in_tokens", counted)

    def load() -> list[list[TokenPair]]:
        config = DataConfig(preferences=str(source))
        found = data.load(config, tokenizer, 64, folder=tmp_path / "store", seed=0, say=lambda line: None)
        return [list(found.training), list(found.held_out)]

    counts, pairs_found, parts = [], [], []
    for touched in (False, False, True):
        if touched:
            os.utime(source, (1, 1))
        pairs_found.append(load())
        parts.append([path.read_bytes() for path in sorted((tmp_path / "store" / "given").glob("*.arrow"))])
        counts.append(sum(read))
    assert counts == [100, 100, 200]
    assert pairs_found[0] == pairs_found[1] == pairs_found[2]
    assert parts[0] == parts[1] == parts[2]


def test_duplicates_are_found_a_bucket_after_the_other(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(1)
    words = [f"Film {n} was" for n in draw.integers(0, 12, 60)]
    flipped = draw.random(60) < 0.3
    rows = [
        {"prompt": word, "chosen": " bad." if turn else " good.", "rejected": " good." if turn else " bad."}
        for word, turn in zip(words, flipped, strict=True)
    ]
    source = preference_samples.write_jsonl(tmp_path / "mine.jsonl", rows)
    config = DataConfig(preferences=str(source), reading=ReadingConfig(duplicates="drop"))
    monkeypatch.setattr(loading, "_TOGETHER", 7)
    found = data.load(config, tokenizer, 64, folder=tmp_path / "store", seed=0, say=lambda words: None)
    different = pd.DataFrame(rows).drop_duplicates()
    kept = sorted(int(pair.id) for pair in [*found.training, *found.held_out])
    assert kept == [index + 1 for index in different.index]  # the first of each
    account = found.accounts[0]
    assert account.left_out["duplicate"] == 60 - len(different)
    repeated = [index for index in range(60) if index not in different.index]
    assert account.named["duplicate"] == [f"{source}, line {index + 1}" for index in repeated[:3]]


def test_training_takes_stored_pairs_like_a_list(tmp_path: Path, fresh_model: Callable[[], PreTrainedModel]) -> None:
    given = pairs(12)
    stored = write(tmp_path / "store", given)
    config = TrainingConfig(steps=3, batch_size=4)
    losses = []
    for number, each in enumerate((given, stored)):
        metrics = training.train(
            fresh_model(), objectives.get("simpo"), each, config=config, seed=0, out=tmp_path / str(number)
        )
        losses.append(metrics.loc[metrics["name"] == "loss", "value"].tolist())
    assert losses[0] == losses[1]
    long = TokenPair(tuple(range(1, 10)), tuple([5] * 5000), (6,), id="long")
    too_long = write(tmp_path / "long", [*given, long])
    with pytest.raises(InputError, match=r"9 prompt and 5000 completion tokens, but the model's context is"):
        training.train(fresh_model(), objectives.get("simpo"), too_long, config=config, seed=0, out=tmp_path / "x")


def test_the_manifest_is_plain(tmp_path: Path) -> None:
    write(tmp_path, pairs(3))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["parts"][0]["rows"] == 3
    assert manifest["complete"]

"""Files of every kind give the same records; what is damaged, missing or misnamed is said in one sentence."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from llm_runs.data import PreferenceFileError, Problem, sources

ROWS = [
    {"prompt": "Café?\u2028Yes", "chosen": "gut 👍", "rejected": "x" * 300_000},
    {"prompt": 'a "quoted", one', "chosen": "two\nlines", "rejected": "c"},
    {"prompt": "3", "chosen": "4", "rejected": "5"},
]


def records(path: Path | str, **options: Any) -> list[Any]:
    return [values for _, values in sources.open_source(str(path), **options).records]


def jsonl(rows: list[Any] = ROWS) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_csv(delimiter: str) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(ROWS[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


def parquet() -> bytes:
    sink = io.BytesIO()
    pa.parquet.write_table(pa.Table.from_pylist(ROWS), sink)
    return sink.getvalue()


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(content)
    return bytes(sink.getvalue().to_pybytes())


BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.jsonl", jsonl(), "JSON lines"),
        ("a.ndjson", jsonl(), "JSON lines"),
        ("a.jsonl", BOM + jsonl(), "JSON lines"),
        ("a.jsonl", jsonl().replace(b"}\n", b"}\r\n"), "JSON lines"),
        ("a.jsonl", b"\n \n" + jsonl().replace(b"}\n", b"}\n\n\t\n"), "JSON lines"),
        ("a.jsonl", jsonl().rstrip(b"\n"), "JSON lines"),
        ("a.json", jsonl(), "JSON lines"),
        ("a.json", json.dumps(ROWS).encode(), "JSON"),
        ("a.json", BOM + json.dumps({"data": ROWS}, indent=2).encode(), "JSON"),
        ("unnamed", jsonl(), "JSON lines"),
        ("unnamed", json.dumps(ROWS).encode(), "JSON"),
        ("a.jsonl.gz", gzip.compress(jsonl()), "JSON lines, gzip"),
        ("a.jsonl", gzip.compress(BOM + jsonl()), "JSON lines, gzip"),
        ("a.jsonl.bz2", bz2.compress(jsonl()), "JSON lines, bzip2"),
        ("a.json.xz", lzma.compress(json.dumps(ROWS).encode()), "JSON, xz"),
        ("a.jsonl.zst", zstd(jsonl()), "JSON lines, zstd"),
        ("a.csv", as_csv(","), "CSV"),
        ("a.csv", BOM + as_csv(","), "CSV"),
        ("a.tsv", as_csv("\t"), "CSV"),
        ("a.csv.gz", gzip.compress(as_csv(",")), "CSV, gzip"),
        ("a.csv.zst", zstd(as_csv(",")), "CSV, zstd"),
        ("a.parquet", parquet(), "Parquet"),
        ("unnamed", parquet(), "Parquet"),
    ],
)
def test_every_kind_of_file_gives_the_same_records(tmp_path: Path, name: str, content: bytes, kind: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert sources.open_source(str(path)).kind == kind
    assert records(path) == ROWS


def test_places_name_line_row_and_record(tmp_path: Path) -> None:
    for name, content, words in (
        ("a.jsonl", b"\n" + jsonl(), ["line 2", "line 3", "line 4"]),
        ("a.json", json.dumps(ROWS).encode(), ["record 1", "record 2", "record 3"]),
        ("a.csv", as_csv(","), ["row 1 (ends at line 2)", "row 2 (ends at line 4)", "row 3 (ends at line 5)"]),
        ("a.parquet", parquet(), ["row 1", "row 2", "row 3"]),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        assert [place for place, _ in sources.open_source(str(path)).records] == [f"{path}, {word}" for word in words]


def test_records_are_read_one_after_the_other(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_bytes(jsonl([{"number": number} for number in range(100_000)]) + b"{broken")
    some = sources.open_source(str(path)).records
    assert next(some) == (f"{path}, line 1", {"number": 0})  # the broken end has not been looked at


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"a": 1', "not valid JSON: .* at column 8"),
        (b'{"a": "\xe9"}', "not UTF-8"),
        (b'{"a": ' + b"[" * 100_000, "not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_a_bad_line_is_a_problem_of_that_record(tmp_path: Path, line: bytes, words: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl() + line + b"\n" + jsonl())
    found = list(sources.open_source(str(path)).records)
    assert len(found) == 7
    place, problem = found[3]
    assert place.endswith("line 4")
    assert isinstance(problem, Problem)
    with pytest.raises(Problem, match=words):
        raise problem


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b"", "holds no records"),
        ("a.jsonl", BOM + b"\r\n \n", "holds no records"),
        ("a.jsonl", json.dumps(ROWS[2]).encode("utf-16"), "UTF-16; save it as UTF-8"),
        ("a.jsonl.gz", gzip.compress(jsonl())[:-30], "damaged or incomplete"),
        ("a.jsonl.gz", jsonl(), "its name says compressed, its content is not"),
        ("a.jsonl.xz", lzma.compress(jsonl())[:-40], "damaged or incomplete"),
        ("a.parquet", parquet()[:-20], "damaged or incomplete"),
        ("a.parquet", parquet().replace(b"prompt", b"pr\xe3mpt"), "damaged or incomplete"),
        ("a.parquet", jsonl(), "not a Parquet file"),
        ("a.parquet.gz", gzip.compress(parquet()), "Parquet inside gzip; unpack it first"),
        ("a.json", b'[{"a": 1},\n{"a" 2}]', "line 2: not valid JSON"),
        ("a.json", b"[1, 2", "line 1: not valid JSON"),
        ("a.txt", b"some words", "what kind of file is this"),
        ("a.csv", b"prompt,chosen,chosen\n1,2,3\n", "the header names 'chosen' twice"),
        ("a.csv", b'prompt,chosen\na,"never closed\n', "not valid CSV"),
        ("a.csv", "prompt,chosen\ncafé,b\n".encode("latin-1"), "not UTF-8 text"),
    ],
)
def test_unusable_files(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(PreferenceFileError, match=words) as error:
        records(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_csv_rows_of_another_width_and_json_in_cells(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('prompt,chosen\n"[{""role"": ""user"", ""content"": ""q""}]",[1]st\n\na,b,c\n')
    (_, first), (place, problem) = sources.open_source(str(path)).records
    assert first == {"prompt": [{"role": "user", "content": "q"}], "chosen": "[1]st"}
    assert "row 2 (ends at line 4)" in place
    assert str(problem) == "3 columns, but the header names 2"


# -- folders -------------------------------------------------------------------------------------------------------


def test_folders_of_data_files_have_splits_and_subsets(tmp_path: Path) -> None:
    for name in ("helpful-base/train.jsonl.gz", "helpful-base/test.jsonl.gz", "harmless-base/train.jsonl.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(gzip.compress(jsonl([{"from": name}])))
    (tmp_path / "README.md").write_text("no data")
    assert records(tmp_path, split="train", subset="helpful-base") == [{"from": "helpful-base/train.jsonl.gz"}]
    assert len(records(tmp_path, split="train")) == 2
    assert records(tmp_path, split="test") == [{"from": "helpful-base/test.jsonl.gz"}]
    with pytest.raises(PreferenceFileError, match="no files of the split 'tests'; nearest: 'test'"):
        records(tmp_path, split="tests")
    with pytest.raises(PreferenceFileError, match="nearest: 'helpful-base'"):
        records(tmp_path, subset="helpful")


def test_parquet_shards_named_by_the_hub(tmp_path: Path) -> None:
    for split in ("train_prefs", "test_prefs"):
        for shard in range(2):
            name = tmp_path / "data" / f"{split}-0000{shard}-of-00002.parquet"
            name.parent.mkdir(exist_ok=True)
            pa.parquet.write_table(pa.Table.from_pylist([{"split": split, "shard": shard}]), name)
    assert records(tmp_path, split="train_prefs") == [{"split": "train_prefs", "shard": shard} for shard in range(2)]


def test_files_without_a_split_in_their_names_are_the_training_split(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_bytes(jsonl())
    (tmp_path / "two.jsonl").write_bytes(jsonl())
    assert records(tmp_path) == ROWS * 2
    with pytest.raises(PreferenceFileError, match="no files of the split 'test'"):
        records(tmp_path, split="test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PreferenceFileError, match="holds no data files"):
        records(tmp_path / "empty")


def test_datasets_on_disk(tmp_path: Path) -> None:
    one = datasets.Dataset.from_list(ROWS)
    one.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": one, "test": one.select([2])}).save_to_disk(str(tmp_path / "both"))
    assert records(tmp_path / "one") == ROWS
    assert records(tmp_path / "both", split="test") == ROWS[2:]
    with pytest.raises(PreferenceFileError, match="no split 'tset'; nearest: 'test'"):
        records(tmp_path / "both", split="tset")
    assert sources.open_source(str(tmp_path / "one")).fingerprint
    about = tmp_path / "one" / "dataset_info.json"
    for path, content in (
        (about, about.read_text().replace('"features": {', '"features": {"x": {"y": "z"}, ')),
        (tmp_path / "one" / "state.json", "{}"),
    ):
        path.write_text(content)
        with pytest.raises(PreferenceFileError, match="damaged or incomplete"):
            records(tmp_path / "one")


# -- the hub -------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Lets `datasets.load_dataset` do what the test says, and waits no time; returns the waits and calls."""

    def prepare(*outcomes: Any) -> list[Any]:
        seen: list[Any] = []
        left = list(outcomes)

        def load(name: str, subset: str | None, **options: Any) -> Any:
            seen.append((name, subset, options))
            outcome = left.pop(0)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        monkeypatch.setattr(datasets, "load_dataset", load)
        monkeypatch.setattr(sources.time, "sleep", lambda seconds: seen.append(seconds))
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        return seen

    return prepare


def test_the_hub_is_asked_again_and_then_answers(hub: Callable[..., list[Any]]) -> None:
    seen = hub(ConnectionError("no route"), ConnectionError("no route"), datasets.Dataset.from_list(ROWS))
    assert records("someone/pairs", split="train", subset="small", revision="abc") == ROWS
    assert [entry for entry in seen if isinstance(entry, float)] == [2.0, 4.0]
    assert seen[0] == ("someone/pairs", "small", {"split": "train", "revision": "abc"})


def test_a_hub_that_never_answers(hub: Callable[..., list[Any]]) -> None:
    hub(*[ConnectionError("no route")] * 3)
    with pytest.raises(PreferenceFileError, match="someone/pairs: the hub did not answer in 3 attempts"):
        records("someone/pairs")


def test_other_answers_of_the_hub(hub: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    hub(datasets.exceptions.DatasetNotFoundError("Dataset 'someone/pairs' doesn't exist"))
    with pytest.raises(PreferenceFileError, match="no such data set on the hub"):
        records("someone/pairs")
    hub(ValueError('Unknown split "tran". Should be one of [train, test].'))
    with pytest.raises(PreferenceFileError, match=r"Should be one of \[train, test\]"):
        records("someone/pairs", split="tran")
    hub(ConnectionError("offline"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(PreferenceFileError, match="not in the local cache, and HF_HUB_OFFLINE"):
        records("someone/pairs")


@pytest.mark.parametrize("name", ["missing.jsonl", "folder/missing.jsonl", "missing", "a/b/c"])
def test_what_is_not_there_is_not_looked_for_on_the_hub(name: str) -> None:
    with pytest.raises(PreferenceFileError, match=f"{name}: cannot be read"):
        records(name)


def test_a_saved_data_set_whose_offsets_lead_out_of_its_file(tmp_path: Path) -> None:
    """Read without a look at them, these end the process."""
    lengths = np.cumsum([0, *(len(str(row["prompt"]).encode()) for row in ROWS)]).astype("<i4")
    datasets.Dataset.from_list([{"prompt": row["prompt"]} for row in ROWS]).save_to_disk(tmp_path / "saved")
    (file,) = (tmp_path / "saved").glob("*.arrow")
    content, offsets = file.read_bytes(), lengths.tobytes()
    assert content.count(offsets) == 1
    lengths[1:] = 2**30 + np.arange(len(ROWS))
    file.write_bytes(content.replace(offsets, lengths.tobytes()))
    with pytest.raises(PreferenceFileError, match="saved: damaged or incomplete"):
        records(tmp_path / "saved")

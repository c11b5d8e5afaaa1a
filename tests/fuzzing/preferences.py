"""Preference files, in every form and every way in which they are stored."""

from __future__ import annotations

import bz2
import contextlib
import csv
import functools
import gzip
import io
import json
import lzma
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import preference_samples
import pyarrow as pa

from fuzzing import seeds
from fuzzing.judging import Reader
from fuzzing.mutations import BINARY, TEXT
from fuzzing.seeds import lines
from llm_runs import data
from llm_runs.config import DataConfig, GuardsConfig
from llm_runs.data import prompts
from llm_runs.data.problems import PreferenceFileError
from llm_runs.models import tiny_random
from llm_runs.watch import Watch

_ROWS = 5


def _plain() -> list[dict[str, Any]]:
    return [
        {"prompt": f"Wie war Film {i}? ü", "chosen": f" good {i}\nthen", "rejected": f" bad, {i}", "chosen_score": i + 0.5, "id": f"p{i}"}
        for i in range(_ROWS)
    ]  # fmt: skip


@functools.cache
def tokenizer() -> Any:
    return tiny_random(["a good film and a bad film"], vocabulary=300)[1]


def load_preferences(path: Path, folder: Path, **config: Any) -> list[tuple[str, str, str]]:
    """All pairs as texts, through everything that `run` does with one's own data."""
    # Nearly every prompt is held out or none, by hash; with .5 both sides have some for the seeds here.
    given = DataConfig(preferences=str(path), held_out_fraction=0.5, **config)
    quiet = Watch(GuardsConfig(round_trip="ignore"))
    loaded = data.load(given, tokenizer(), 10_000, folder=folder, seed=0, say=lambda line: None, watch=quiet)
    return [(p.prompt, p.chosen, p.rejected) for side in (loaded.training, loaded.held_out) for p in side]


def _read_preferences(path: Path) -> list[tuple[str, str, str]]:
    with seeds.folder() as folder:
        return load_preferences(path, folder)


def _nothing_half_imported(seed: bytes, expected: Callable[[], list[Any]]) -> Callable[[Path], None]:
    """After a refusal, the corrected file is read whole in the same folder: nothing of the damaged one is left."""
    draw = random.Random(0)

    def check(path: Path) -> None:
        if draw.random() > 0.02:
            return
        damaged = path.read_bytes()
        with seeds.folder() as folder:
            with contextlib.suppress(PreferenceFileError):
                load_preferences(path, folder)
            path.write_bytes(seed)
            found = load_preferences(path, folder)
        path.write_bytes(damaged)
        assert sorted(found) == sorted(expected()), "pairs of the damaged file are left"

    return check


def _texts_are_of_the_file(path: Path, found: list[tuple[str, str, str]]) -> None:
    """By a reading of its own, which knows nothing of formats: every text that was read stands in the file as a JSON string, and no line
    that has a prompt, chosen and rejected was passed over or changed."""
    rows = [json.loads(line) for line in path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
    wanted = [tuple(row[key] for key in ("prompt", "chosen", "rejected")) for row in rows]
    assert sorted(found) == sorted(wanted)


def _preferences(
    name: str,
    file: str,
    content: bytes,
    kinds: Any = TEXT,
    check: Callable[[Path, Any], None] = lambda path, found: None,
    more: list[tuple[str, bytes]] | None = None,
) -> Reader:
    expected = functools.cache(lambda: _in_a_file(file, content))
    return Reader(
        name, [(file, content), *(more or [])], kinds, _read_preferences, (PreferenceFileError,), check,
        _nothing_half_imported(content, expected) if not more else lambda path: None,
    )  # fmt: skip


def _in_a_file(name: str, content: bytes) -> list[tuple[str, str, str]]:
    with seeds.folder() as folder:
        (folder / name).write_bytes(content)
        return load_preferences(folder / name, folder / "data")


def _csv(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _parquet(rows: list[dict[str, Any]], **options: Any) -> bytes:
    buffer = io.BytesIO()
    pd.DataFrame(rows).to_parquet(buffer, index=False, **options)
    return buffer.getvalue()


def _zstd(content: bytes) -> bytes:
    return pa.compress(content, codec="zstd", asbytes=True)  # type: ignore[no-any-return]


def preference_readers() -> list[Reader]:
    plain = _plain()
    chat = [
        {"prompt": [{"role": "user", "content": f"Ask {i}"}], "chosen": [{"role": "assistant", "content": "Yes."}],
         "rejected": [{"role": "assistant", "content": f"No {i}."}]} for i in range(_ROWS)
    ]  # fmt: skip
    unpaired = [{"prompt": f"p {i // 2}", "completion": f"c {i}", "label": bool(i % 2)} for i in range(2 * _ROWS)]
    shp = [
        {"history": f"post {i}", "human_ref_A": f"A {i}", "human_ref_B": f"B {i}", "labels": i % 2,
         "score_A": 3, "score_B": 2, "score_ratio": 1.5}
        for i in range(_ROWS)
    ]  # fmt: skip
    scored = [{"prompt": f"p {i}", "completions": ["a", "b", "c"], "scores": [1, 2.5, -3]} for i in range(_ROWS)]
    jsonl = lines(plain)
    return [
        _preferences("jsonl", "pairs.jsonl", jsonl, check=_texts_are_of_the_file),
        _preferences("json", "pairs.json", json.dumps(plain, indent=1).encode()),
        _preferences("csv", "pairs.csv", _csv(plain), more=[("pairs.tsv", _csv(plain, "\t"))]),
        _preferences("parquet", "pairs.parquet", _parquet(plain), BINARY, more=[
            ("plain.parquet", _parquet(plain, compression=None, use_dictionary=False)), ("nested.parquet", _parquet(chat)),
        ]),
        _preferences("compressed", "pairs.jsonl.gz", gzip.compress(jsonl), BINARY, more=[
            ("pairs.jsonl.bz2", bz2.compress(jsonl)), ("pairs.jsonl.xz", lzma.compress(jsonl)), ("pairs.jsonl.zst", _zstd(jsonl)),
        ]),
        _preferences("conversations", "chat.jsonl", lines(chat)),
        _preferences("hh_rlhf", "hh.jsonl", lines(preference_samples.hh_rlhf(_ROWS))),
        _preferences("ultrafeedback", "ultra.jsonl", lines(preference_samples.ultrafeedback(_ROWS))),
        _preferences("candidates", "scored.jsonl", lines(scored)),
        _preferences("kto", "kto.jsonl", lines(unpaired)),
        _preferences("shp", "shp.jsonl", lines(shp)),
        _folders(jsonl),
        Reader("prompts", [("prompts.jsonl", lines([{"prompt": row["prompt"]} for row in plain]))], TEXT,
               lambda path: prompts.read(str(path), tokenizer(), 10_000, DataConfig().reading), (PreferenceFileError,)),
    ]  # fmt: skip


def _folders(jsonl: bytes) -> Reader:
    """A folder of two parts, one of them damaged; and one that `datasets` saved, any of whose files is damaged."""

    def read(path: Path) -> Any:
        with seeds.folder() as folder:
            (folder / "pairs").mkdir()
            (folder / "pairs" / "train-1.jsonl").write_bytes(lines(_plain()[:2]))
            shutil.copy(path, folder / "pairs" / path.name)
            return load_preferences(folder / "pairs", folder / "data")

    return Reader("folder", [("train-2.jsonl", jsonl)], TEXT, read, (PreferenceFileError,))


def saved_dataset() -> Reader:
    """A folder that `datasets` saved, any of whose files is damaged."""
    import datasets

    with seeds.folder() as folder:
        datasets.Dataset.from_list(_plain()).save_to_disk(str(folder / "saved"))
        whole = [(path.name, path.read_bytes()) for path in sorted((folder / "saved").iterdir())]

    def read(path: Path) -> Any:
        with seeds.folder() as folder:
            (folder / "saved").mkdir()
            for name, content in whole:
                (folder / "saved" / name).write_bytes(path.read_bytes() if name == path.name else content)
            return load_preferences(folder / "saved", folder / "data")

    return Reader("saved_dataset", whole, BINARY, read, (PreferenceFileError,), names_file=False)

"""Pairs on disk: written in parts as they are read, and read through memory maps, so that their number does not matter for memory.

FOLDER/part-00000.arrow   up to `PART` pairs: token ids, texts, scores, and what is measured of each (`measures.py`)
FOLDER/manifest.json      the parts with their checksums, how far reading has come, and whether it is complete; written last

A part is there whole or not at all, and reading goes on after the last one. Its checksum is compared when it is first read. A
selection (training or held-out pairs) is the numbers of its rows: NAME.npy, and NAME.json with a checksum of these and of the parts.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from analysis.records import atomic_write
from llm_runs.data.measures import MEASURES, measure
from llm_runs.errors import InputError
from llm_runs.examples import TokenPair

FORMAT = 1
BATCH = 1024  # rows that are written, and mapped, together
PART = 128 * BATCH
_MANIFEST = "manifest.json"
_IDS = ("prompt_ids", "chosen_ids", "rejected_ids")
_TEXTS = ("prompt", "chosen", "rejected", "id")
_NUMBERS = ("chosen_reward", "rejected_reward", "probability")
_SCHEMA = pa.schema(
    [
        *((name, pa.list_(pa.int32())) for name in _IDS),
        *((name, pa.string()) for name in _TEXTS),
        *((name, pa.float64()) for name in _NUMBERS),
        ("place", pa.string()),
        *((name, pa.from_numpy_dtype(dtype)) for name, dtype in MEASURES.items()),
    ]
)
Columns = dict[str, np.ndarray[Any, Any]]


class Writer:
    """Appends pairs to a store; goes on with one that was begun with the same `key`, else begins anew.

    Attributes:
        progress: what `end_part` was last given: how far reading had come; None at the beginning.
        complete: whether the store was written to its end.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        manifest = _read_manifest(folder) if (folder / _MANIFEST).is_file() else {}
        if manifest.get("key") != key or manifest.get("progress") is None:
            manifest = {}
        self.parts: list[dict[str, Any]] = manifest.get("parts", [])
        self.extremes: dict[str, list[int]] = manifest.get("extremes", {})
        self.progress: Any = manifest.get("progress")
        self.complete: bool = manifest.get("complete", False)
        self._rows: list[dict[str, Any]] = []
        self._count = 0  # of pairs in the part that is being written
        self._file: Any = None
        self._writer: Any = None

    def __len__(self) -> int:
        return sum(int(part["rows"]) for part in self.parts) + self._count

    @property
    def full(self) -> bool:
        """Whether the part should be ended."""
        return self._count >= PART

    def append(self, pair: TokenPair, place: str, seed: int) -> None:
        """Add a pair; `place` is where its record stands, `seed` that of the split."""
        row = {name: getattr(pair, name) for name in (*_IDS, *_TEXTS, *_NUMBERS)} | {"place": place}
        self._note_extremes(pair)
        self._rows.append(row | measure(pair, seed))
        self._count += 1
        if len(self._rows) == BATCH:
            self._write()

    def end_part(self, progress: Any, *, complete: bool = False) -> None:
        """Make what was appended durable, with how far reading has come."""
        self._write()
        if self._writer is not None:
            self._writer.close()
            self._file.close()
            name = f"part-{len(self.parts):05}.arrow"
            with self._partial.open("rb+") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
            self._partial.replace(self.folder / name)
            self.parts.append({"name": name, "rows": self._count, "sha256": digest})
            self._writer, self._count = None, 0
        values = {"format": FORMAT, "key": self.key, "complete": complete, "parts": self.parts}
        values |= {"extremes": self.extremes, "progress": progress}
        atomic_write(self.folder / _MANIFEST, (json.dumps(values, indent=1) + "\n").encode())

    @property
    def _partial(self) -> Path:
        return self.folder / f".part-{len(self.parts):05}.partial"

    def _write(self) -> None:
        if not self._rows:
            return
        if self._writer is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = pa.OSFile(str(self._partial), "wb")
            self._writer = pa.ipc.new_file(self._file, _SCHEMA)
        self._writer.write_batch(pa.RecordBatch.from_pylist(self._rows, schema=_SCHEMA))
        self._rows.clear()

    def _note_extremes(self, pair: TokenPair) -> None:
        """Keep the rows with the longest and shortest sequences and the largest token id: what holds for them holds for all."""
        sides = len(pair.chosen_ids), len(pair.rejected_ids)
        longest = len(pair.prompt_ids) + max(sides)
        shortest = min(len(pair.prompt_ids), *sides)
        largest = max(max(pair.prompt_ids), max(pair.chosen_ids), max(pair.rejected_ids))
        for name, value in (("longest", longest), ("shortest", -shortest), ("largest id", largest)):
            if name not in self.extremes or value > self.extremes[name][0]:
                self.extremes[name] = [value, len(self)]


class Store:
    """Pairs that a `Writer` has completed. Raises InputError where they are missing, unfinished or damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        manifest = _read_manifest(folder)
        if not manifest["complete"]:
            raise InputError(f"{folder}: the pairs were not read to their end; give the same command again")
        self.parts: list[dict[str, Any]] = manifest["parts"]
        self.starts = np.cumsum([0, *(part["rows"] for part in self.parts)])
        self.extremes = sorted({row for _, row in manifest["extremes"].values()})

    def __len__(self) -> int:
        return int(self.starts[-1])

    def pair(self, row: int) -> TokenPair:
        """The pair of one row."""
        part = int(np.searchsorted(self.starts, row, side="right")) - 1
        batch, place = divmod(row - int(self.starts[part]), BATCH)
        return self._batch(part, batch).pair(place)

    def columns(self, names: Sequence[str]) -> Iterator[Columns]:
        """These columns, a batch of rows after the other; of token ids their lengths, under the name of the ids."""
        for part in range(len(self.parts)):
            reader = self._reader(part)
            for index in range(reader.num_record_batches):
                batch = reader.get_batch(index)
                yield {name: _values(batch.column(name)) for name in names}

    def column(self, name: str) -> np.ndarray[Any, Any]:
        """One column of numbers, whole."""
        found = [each[name] for each in self.columns([name])]
        return np.concatenate(found) if found else np.empty(0)

    def text(self, name: str, row: int) -> str:
        """The text in one row of a column."""
        part = int(np.searchsorted(self.starts, row, side="right")) - 1
        batch, place = divmod(row - int(self.starts[part]), BATCH)
        return str(self._reader(part).get_batch(batch).column(name)[place].as_py())

    @functools.lru_cache(maxsize=32)  # noqa: B019 - a store lives as long as its process
    def _reader(self, part: int) -> Any:
        path = self.folder / self.parts[part]["name"]
        self._check(part)
        return pa.ipc.open_file(pa.memory_map(str(path)))

    @functools.lru_cache(maxsize=256)  # noqa: B019
    def _batch(self, part: int, batch: int) -> _Batch:
        return _Batch(self._reader(part).get_batch(batch))

    @functools.cache  # noqa: B019 - once for each part
    def _check(self, part: int) -> None:
        path = self.folder / self.parts[part]["name"]
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise InputError(
                f"{path}: cannot be read ({error.strerror}); delete {self.folder} to read the data again"
            ) from error
        if digest != self.parts[part]["sha256"]:
            raise InputError(f"{path}: damaged (wrong checksum); delete {self.folder} to read the data again")


class _Batch:
    """Rows that are mapped together, as arrays."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.batch = batch
        self.ids = {}
        for name in _IDS:
            column = batch.column(name)
            self.ids[name] = column.offsets.to_numpy(), column.values.to_numpy()

    def pair(self, place: int) -> TokenPair:
        fields: dict[str, Any] = {
            name: tuple(values[at[place] : at[place + 1]].tolist()) for name, (at, values) in self.ids.items()
        }
        fields |= {name: self.batch.column(name)[place].as_py() for name in (*_TEXTS, *_NUMBERS)}
        return TokenPair(**fields)


class StoredPairs(Sequence[TokenPair]):
    """Some pairs of a store in an order of their own; each is read when it is asked for.

    Attributes:
        store: where they lie.
        rows: their rows there, (N,), in memory or mapped.
    """

    def __init__(self, store: Store, rows: np.ndarray[Any, Any]) -> None:
        self.store, self.rows = store, rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> TokenPair: ...

    @overload
    def __getitem__(self, index: slice) -> StoredPairs: ...

    def __getitem__(self, index: int | slice) -> TokenPair | StoredPairs:
        if isinstance(index, slice):
            return StoredPairs(self.store, self.rows[index])
        return self.store.pair(int(self.rows[index]))

    def take(self, places: np.ndarray[Any, Any]) -> StoredPairs:
        """Some of these pairs, by their places (n,)."""
        return StoredPairs(self.store, self.rows[places])

    def column(self, name: str) -> np.ndarray[Any, Any]:
        """One column of numbers of these pairs, (N,)."""
        values: np.ndarray[Any, Any] = self.store.column(name)[self.rows]
        return values

    @property
    def extremes(self) -> list[TokenPair]:
        """The few pairs of the store whose lengths and token ids bound those of all."""
        return [self.store.pair(row) for row in self.store.extremes]

    @property
    def fingerprint(self) -> str:
        """sha256 of which pairs these are."""
        parts = [part["sha256"] for part in self.store.parts]
        rows = hashlib.sha256(np.ascontiguousarray(self.rows, dtype=np.int64).data).hexdigest()
        return hashlib.sha256(json.dumps([parts, rows]).encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Keep the selection: `path` (JSON), and the rows beside it (.npy)."""
        rows = np.ascontiguousarray(self.rows, dtype=np.int64)
        atomic_write(path.with_suffix(".npy"), lambda file: np.save(file, rows))
        about = {"format": FORMAT, "pairs": len(self), "sha256": self.fingerprint}
        about["store"] = os.path.relpath(self.store.folder.resolve(), path.parent.resolve())
        atomic_write(path, (json.dumps(about, indent=1) + "\n").encode())

    @classmethod
    def open(cls, path: Path) -> StoredPairs:
        """What `save` kept. Raises InputError where it is missing or damaged."""
        try:
            about = json.loads(path.read_bytes())
            rows = np.load(path.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
            found = cls(Store(path.parent.resolve() / about["store"]), rows)
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{path}: cannot be read ({error}); delete it and the folder data to read the data again"
            ) from error
        if found.fingerprint != about["sha256"]:
            raise InputError(f"{path}: damaged (wrong checksum); delete it and the folder data to read the data again")
        return found


def _values(column: Any) -> np.ndarray[Any, Any]:
    if pa.types.is_list(column.type):
        return np.asarray(np.diff(column.offsets.to_numpy()))
    return np.asarray(column.to_numpy(zero_copy_only=False))


def _read_manifest(folder: Path) -> Mapping[str, Any]:
    path = folder / _MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        if manifest["format"] != FORMAT:
            raise InputError(f"{path}: of format {manifest['format']}, this version reads {FORMAT}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read ({error}); delete {folder} to read the data again") from error
    return manifest

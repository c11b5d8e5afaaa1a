"""Rows on disk: written in parts as they are made, and read through memory maps, so that their number does not matter for memory.

FOLDER/part-00000.arrow   up to about `PART` rows of one kind: pairs, samples (`stored.py`), or what is kept of the reference
FOLDER/manifest.json      the parts with their checksums, how far the making has come, and whether it is complete; written last

A part is there whole or not at all, and writing goes on after the last one. Its checksum is compared when it is first read. A
selection (training or held-out pairs) is the numbers of its rows: NAME.npy, and NAME.json with a checksum of these and of the parts.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Generic, Self, TypeVar, overload

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from analysis.records import atomic_write, fingerprint, publish
from llm_runs.errors import InputError

FORMAT = 1
BATCH = 1024  # rows that are written, and mapped, together
PART = 128 * BATCH
_MANIFEST = "manifest.json"
Columns = dict[str, np.ndarray[Any, Any]]
T = TypeVar("T")


@dataclass(frozen=True)
class Kind(Generic[T]):
    """What rows of one kind are like on disk.

    Attributes:
        batch: columns of some rows.
        row: one row of mapped columns, by its place in them.
        bounds: numbers of each row of a batch, (n,) by name. The row with the largest of each is noted: what holds for these
            rows holds for all.
    """

    batch: Callable[[Sequence[T]], pa.RecordBatch]
    row: Callable[[Mapped, int], T]
    bounds: Callable[[pa.RecordBatch], Columns] = lambda batch: {}


class Writer(Generic[T]):
    """Appends rows to a store; goes on with one that was begun with the same `key`, else begins anew.

    Attributes:
        progress: what `end_part` was last given: how far reading had come; None at the beginning.
        complete: whether the store was written to its end.
    """

    def __init__(self, folder: Path, key: str, kind: Kind[T]) -> None:
        self.folder, self.key, self.kind = folder, key, kind
        manifest = _read_manifest(folder) if (folder / _MANIFEST).is_file() else {}
        if manifest.get("key") != key or manifest.get("progress") is None:
            manifest = {}
        self.parts: list[dict[str, Any]] = manifest.get("parts", [])
        self.extremes: dict[str, list[float]] = manifest.get("extremes", {})
        self.progress: Any = manifest.get("progress")
        self.complete: bool = manifest.get("complete", False)
        self._rows: list[T] = []
        self._count = 0  # of rows in the part that is being written
        self._file: Any = None
        self._writer: Any = None

    def __len__(self) -> int:
        return sum(int(part["rows"]) for part in self.parts) + self._count

    @property
    def full(self) -> bool:
        """Whether the part should be ended."""
        return self._count >= PART

    def append(self, row: T) -> None:
        """Add a row."""
        self._rows.append(row)
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
            digest = fingerprint(self._partial)
            publish(self._partial, self.folder / name)
            self.parts.append({"name": name, "rows": self._count, "sha256": digest})
            self._writer, self._count = None, 0
        values = {"format": FORMAT, "key": self.key, "complete": complete, "parts": self.parts}
        values |= {"extremes": self.extremes, "progress": progress}
        values["sha256"] = fingerprint(values)
        atomic_write(self.folder / _MANIFEST, (json.dumps(values, indent=1) + "\n").encode())

    def rewind(self, parts: int) -> None:
        """Forget what came after the first `parts` parts: what is written beside these rows has come no further."""
        del self.parts[parts:]

    @property
    def _partial(self) -> Path:
        return self.folder / f".part-{len(self.parts):05}.partial"

    def _write(self) -> None:
        if not self._rows:
            return
        batch = self.kind.batch(self._rows)
        if self._writer is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = pa.OSFile(str(self._partial), "wb")
            self._writer = pa.ipc.new_file(self._file, batch.schema)
        first = len(self) - len(self._rows)
        for name, values in self.kind.bounds(batch).items():
            place = int(values.argmax())
            if name not in self.extremes or values[place] > self.extremes[name][0]:
                self.extremes[name] = [int(values[place]), first + place]
        self._writer.write_batch(batch)
        self._rows.clear()


class Store(Generic[T]):
    """Rows that a `Writer` has completed. Raises InputError where they are missing, unfinished or damaged."""

    def __init__(self, folder: Path, kind: Kind[T]) -> None:
        self.folder, self.kind = folder, kind
        manifest = _read_manifest(folder)
        if not manifest["complete"]:
            raise InputError(f"{folder}: was not written to its end; give the same command again")
        self.key: str = manifest["key"]
        self.parts: list[dict[str, Any]] = manifest["parts"]
        self.starts = np.cumsum([0, *(part["rows"] for part in self.parts)])
        self.extremes = sorted({int(row) for _, row in manifest["extremes"].values()})

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __iter__(self) -> Iterator[T]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> T:
        part, batch, place = self._place(number)
        return self.kind.row(self._batch(part, batch), place)

    def columns(self, names: Sequence[str]) -> Iterator[Columns]:
        """These columns, a batch of rows after the other; of lists (token ids, for one) their lengths, under their name."""
        for part in range(len(self.parts)):
            reader = self._reader(part)
            for index in range(reader.num_record_batches):
                batch = reader.get_batch(index)
                yield {name: _values(batch.column(name)) for name in names}

    def column(self, name: str) -> np.ndarray[Any, Any]:
        """One column of numbers, whole."""
        start, whole = 0, np.empty(0)
        for each in self.columns([name]):
            if not start:
                whole = np.empty(len(self), dtype=each[name].dtype)
            whole[start : start + len(each[name])] = each[name]
            start += len(each[name])
        return whole

    def text(self, name: str, row: int) -> str:
        """The text in one row of a column."""
        part, batch, place = self._place(row)
        return str(self._reader(part).get_batch(batch).column(name)[place].as_py())

    def check(self) -> None:
        """Compare the checksums of all parts now. Raises InputError."""
        for part in range(len(self.parts)):
            self._check(part)

    def _place(self, row: int) -> tuple[int, int, int]:
        """Part, batch in it, and row in that."""
        part = int(np.searchsorted(self.starts, row, side="right")) - 1
        return part, *divmod(row - int(self.starts[part]), BATCH)

    @functools.lru_cache(maxsize=32)  # noqa: B019 - a store lives as long as its process
    def _reader(self, part: int) -> Any:
        path = self.folder / self.parts[part]["name"]
        self._check(part)
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        rows = sum(reader.get_batch(index).num_rows for index in range(reader.num_record_batches))
        if rows != self.parts[part]["rows"]:
            raise InputError(
                f"{path}: has {rows} rows, not those of the manifest; delete {self.folder} to make it again"
            )
        return reader

    @functools.lru_cache(maxsize=256)  # noqa: B019
    def _batch(self, part: int, batch: int) -> Mapped:
        return Mapped(self._reader(part).get_batch(batch))

    @functools.cache  # noqa: B019 - once for each part
    def _check(self, part: int) -> None:
        path = self.folder / self.parts[part]["name"]
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise InputError(
                f"{path}: cannot be read ({error.strerror}); delete {self.folder} to make it again"
            ) from error
        if digest != self.parts[part]["sha256"]:
            raise InputError(f"{path}: damaged (wrong checksum); delete {self.folder} to make it again")


class Mapped:
    """Rows that are mapped together. Nothing is copied before a value is asked for."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.batch = batch
        self._lists: dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = {}

    def value(self, name: str, place: int) -> Any:
        """A text, a number, or None."""
        return self.batch.column(name)[place].as_py()

    def array(self, name: str, place: int) -> np.ndarray[Any, Any]:
        """A list, as a view of the mapped file that must not be written to."""
        if name not in self._lists:
            column = self.batch.column(name)
            self._lists[name] = column.offsets.to_numpy(), column.values.to_numpy()
        at, values = self._lists[name]
        return values[at[place] : at[place + 1]]


class Selection(Sequence[T]):
    """Some rows of a store in an order of their own; each is read when it is asked for. Subclasses name the kind.

    Attributes:
        store: where they lie.
        rows: their rows there, (N,), in memory or mapped.
    """

    kind: Kind[T]

    def __init__(self, store: Store[T], rows: np.ndarray[Any, Any]) -> None:
        self.store, self.rows = store, rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> Self: ...

    def __getitem__(self, index: int | slice) -> T | Self:
        if isinstance(index, slice):
            return type(self)(self.store, self.rows[index])
        return self.store[int(self.rows[index])]

    def take(self, places: np.ndarray[Any, Any]) -> Self:
        """Some of these rows, by their places (n,), or by whether they are taken, (N,) of bool."""
        return type(self)(self.store, self.rows[places])

    def column(self, name: str) -> np.ndarray[Any, Any]:
        """One column of numbers of these rows, (N,)."""
        values: np.ndarray[Any, Any] = self.store.column(name)[self.rows]
        return values

    @property
    def extremes(self) -> list[T]:
        """The few rows of the store that bound all (see `Kind.bounds`)."""
        return [self.store[row] for row in self.store.extremes]

    @property
    def fingerprint(self) -> str:
        """sha256 of which rows these are."""
        parts = [part["sha256"] for part in self.store.parts]
        rows = hashlib.sha256(np.ascontiguousarray(self.rows, dtype=np.int64).data).hexdigest()
        return hashlib.sha256(json.dumps([parts, rows]).encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Keep the selection: `path` (JSON), and the rows beside it (.npy)."""
        rows = np.ascontiguousarray(self.rows, dtype=np.int64)
        atomic_write(path.with_suffix(".npy"), lambda file: np.save(file, rows))
        about = {"format": FORMAT, "rows": len(self), "sha256": self.fingerprint}
        about["store"] = os.path.relpath(self.store.folder.resolve(), path.parent.resolve())
        atomic_write(path, (json.dumps(about, indent=1) + "\n").encode())

    @classmethod
    def open(cls, path: Path) -> Self:
        """What `save` kept. Raises InputError where it is missing or damaged."""
        again = "delete it and the folder data to read the data again"
        try:
            about = json.loads(path.read_bytes())
            rows = _read_rows(path.with_suffix(".npy"))
            found = cls(Store(path.parent.resolve() / about["store"], cls.kind), rows)
            digest = about["sha256"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path}: cannot be read ({error}); {again}") from error
        if found.fingerprint != digest:
            raise InputError(f"{path}: damaged (wrong checksum); {again}")
        return found


def _read_rows(path: Path) -> np.ndarray[Any, Any]:
    """Mapped numbers of rows, (N,). Raises OSError, or ValueError where they are not that."""
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # numpy raises several unrelated types on a damaged header
        raise ValueError(f"{path.name}: {' '.join(str(error).split()):.200}") from error
    if not isinstance(rows, np.ndarray) or rows.dtype != np.int64 or rows.ndim != 1:
        raise ValueError(f"{path.name} holds no numbers of rows")
    return rows


def list_column(rows: Sequence[Sequence[Any]], dtype: Any) -> pa.Array:
    """A column of lists of numbers."""
    offsets = np.zeros(len(rows) + 1, dtype=np.int32)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    if rows and isinstance(rows[0], np.ndarray):
        values = np.concatenate(rows).astype(dtype, copy=False)
    else:
        values = np.fromiter(chain.from_iterable(rows), dtype=dtype, count=int(offsets[-1]))
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def _values(column: Any) -> np.ndarray[Any, Any]:
    if pa.types.is_list(column.type):
        return np.asarray(np.diff(column.offsets.to_numpy()))
    return np.asarray(column.to_numpy(zero_copy_only=False))


def _read_manifest(folder: Path) -> Mapping[str, Any]:
    path = folder / _MANIFEST
    again = f"delete {folder} to make it again"
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        if not isinstance(manifest, dict) or "format" not in manifest:
            raise ValueError("it has no format")
        if manifest["format"] != FORMAT:
            raise InputError(f"{path}: of format {manifest['format']!r:.20}, this version reads {FORMAT}")
        _check_manifest(folder, manifest)
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read ({error}); {again}") from error
    return manifest


def _check_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Raise ValueError where a manifest is not one that `Writer` writes; its own checksum is not in those of earlier versions."""
    digest = manifest.pop("sha256", None)
    if digest is not None and digest != fingerprint(manifest):
        raise ValueError("wrong checksum")
    kinds = {"key": str, "complete": bool, "parts": list, "extremes": dict}
    if wrong := [name for name, kind in kinds.items() if not isinstance(manifest.get(name), kind)]:
        raise ValueError(f"{wrong[0]} is missing or wrong")
    total = 0
    for number, part in enumerate(manifest["parts"]):
        name = f"part-{number:05}.arrow"
        rows = part.get("rows") if isinstance(part, dict) and part.get("name") == name else None
        if type(rows) is not int or rows <= 0 or not isinstance(part.get("sha256"), str):
            raise ValueError(f"parts[{number}] is wrong")
        if (folder / name).exists() and rows > (folder / name).stat().st_size:
            raise ValueError(f"{name} has fewer rows than it says")
        total += rows
    for found in manifest["extremes"].values():
        if not (isinstance(found, list) and len(found) == 2 and type(found[1]) is int and 0 <= found[1] < total):
            raise ValueError("extremes are wrong")

"""Records from wherever they lie: JSON lines, JSON, CSV, Parquet (also compressed), folders of these, `datasets` on disk, the hub.

Records are read one after the other; only a JSON file that is one large array is held in memory as a whole.
"""

from __future__ import annotations

import bz2
import codecs
import contextlib
import csv
import gzip
import io
import itertools
import json
import lzma
import os
import re
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from llm_runs import json_lines
from llm_runs.data.problems import PreferenceFileError, Problem, nearest

Record = tuple[str, Any]  # where it stands, for error messages, and its content: a mapping of fields, or a Problem

_Opener = Callable[[Path], Any]


def _open_zstd(path: Path) -> Any:
    return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))


# How a file begins, how it is then compressed, and how it is opened.
_COMPRESSED: dict[bytes, tuple[str, _Opener]] = {
    b"\x1f\x8b": ("gzip", gzip.GzipFile),
    b"BZh": ("bzip2", bz2.BZ2File),
    b"\xfd7zXZ": ("xz", lzma.LZMAFile),
    b"\x28\xb5\x2f\xfd": ("zstd", _open_zstd),
}
# UnicodeDecodeError: names of a Parquet file's columns.
_DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException, UnicodeDecodeError)
_KINDS = {
    ".jsonl": "JSON lines",
    ".ndjson": "JSON lines",
    ".json": "JSON",
    ".csv": "CSV",
    ".tsv": "CSV",
    ".parquet": "Parquet",
}
_ENDINGS = re.compile(r"\.(jsonl|ndjson|json|csv|tsv|parquet)(\.(gz|bz2|xz|zst))?$", re.IGNORECASE)
# Bounds on what a few bytes may stand for once they are unpacked; a record of a line is far below, a JSON array is held as a whole.
_LONGEST_LINE = 64 * 2**20
_LARGEST_JSON = 2**30
_ATTEMPTS = 3
_FIRST_WAIT = 2.0  # seconds; doubles with each attempt


@dataclass(frozen=True)
class Source:
    """Where records come from. `records` can be iterated once."""

    name: str  # as the user gave it, with the split where there are several
    kind: str  # e.g. "JSON lines, gzip"
    records: Iterator[Record]
    typed: bool = True  # False: every value is text (CSV), so numbers are read from text
    files: tuple[Path, ...] = ()
    fingerprint: str | None = None  # of a `datasets` data set


def open_source(name: str, split: str = "train", subset: str | None = None, revision: str | None = None) -> Source:
    """The records of a file, a folder or a hub id.

    Args:
        name: a data file; a folder of data files; a folder written by `Dataset.save_to_disk`; or a hub id (owner/name).
        split: of folders and of the hub. A single file has no splits.
        subset: of the hub: the data set's configuration; of a folder of data files: a folder in it.
        revision: of the hub.

    Raises:
        PreferenceFileError: nothing there, an unknown kind of file, no such split or subset (the nearest are named), damaged
            data, or a hub that does not answer.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return _file(path)
    if path.is_dir():
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return _saved_dataset(path, split)
        return _folder(path, split, subset)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not _ENDINGS.search(name):
        return _hub(name, split, subset, revision)
    raise PreferenceFileError(f"{name}: cannot be read (no such file, folder, or hub id of the form owner/name)")


def local_files(name: str | None) -> list[Path]:
    """The files that a source on this machine consists of; none for the hub."""
    path = Path(name or "").expanduser()
    if not name or not path.exists():
        return []
    return [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())


# -- files ---------------------------------------------------------------------------------------------------------


def _file(path: Path) -> Source:
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise PreferenceFileError(f"{path}: cannot be read ({error.strerror})") from error
    compression, opener = next(
        (found for magic, found in _COMPRESSED.items() if head.startswith(magic)), ("", lambda path: path.open("rb"))
    )
    if path.suffix in (".gz", ".bz2", ".xz", ".zst") and not compression:
        raise PreferenceFileError(f"{path}: damaged: its name says compressed, its content is not")
    with _reading(path):
        start = _start(path, opener)
    if not start.strip(b"\xef\xbb\xbf \t\r\n"):
        raise PreferenceFileError(f"{path}: holds no records")
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise PreferenceFileError(f"{path}: not UTF-8 text but UTF-16; save it as UTF-8")
    named = _ENDINGS.search(path.name)
    kind = _KINDS[f".{named[1].lower()}"] if named else ""
    if start.startswith(b"PAR1"):
        kind = "Parquet"
    elif kind == "Parquet":
        raise PreferenceFileError(f"{path}: not a Parquet file, though its name says so")
    if kind in ("", "JSON"):
        kind = _kind_of_json(path, start, opener)
    described = f"{kind}, {compression}" if compression else kind
    if kind == "Parquet":
        if compression:
            raise PreferenceFileError(f"{path}: Parquet inside {compression}; unpack it first")
        return Source(str(path), described, _parquet(path), files=(path,))
    if kind == "CSV":
        delimiter = "\t" if ".tsv" in path.name.lower() else ","
        return Source(str(path), described, _csv(path, opener, delimiter), typed=False, files=(path,))
    read = _json_lines if kind == "JSON lines" else _json
    return Source(str(path), described, read(path, opener), files=(path,))


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what a damaged file raises into one clear error."""
    try:
        yield
    except _DAMAGED as error:
        raise PreferenceFileError(f"{path}: damaged or incomplete: {_short(error)}") from error


def _start(path: Path, opener: _Opener) -> bytes:
    with opener(path) as file:
        start: bytes = file.read(1 << 16)
    return start


def _kind_of_json(path: Path, start: bytes, opener: _Opener) -> str:
    """JSON or JSON lines: the latter also hides in files called .json."""
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"["):
        return "JSON"
    if text.startswith(b"{"):
        with _reading(path), opener(path) as file:
            first = next((line for line in _lines(path, file) if line.removeprefix(b"\xef\xbb\xbf").strip()), b"")
        try:
            json_lines.loads(first.removeprefix(b"\xef\xbb\xbf").decode())
        except (ValueError, RecursionError):
            return "JSON" if path.suffix != ".jsonl" else "JSON lines"
        return "JSON lines"
    raise PreferenceFileError(
        f"{path}: what kind of file is this? Its name should end in {', '.join(_KINDS)} (or these with .gz, .bz2, .xz, .zst)"
    )


def _json_lines(path: Path, opener: _Opener) -> Iterator[Record]:
    with _reading(path), opener(path) as file:
        for number, line in enumerate(
            _lines(path, file), start=1
        ):  # at b"\n" only: JSON text may hold other line separators
            content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if content.strip():
                yield f"{path}, line {number}", _parse_line(content.rstrip())


def _lines(path: Path, file: Any) -> Iterator[bytes]:
    """The lines of a file, of which none may take all memory. Raises PreferenceFileError for one that would."""
    for number in itertools.count(1):
        line: bytes = file.readline(_LONGEST_LINE)
        if not line:
            return
        if len(line) == _LONGEST_LINE and not line.endswith(b"\n"):
            raise PreferenceFileError(
                f"{path}, line {number}: longer than {_LONGEST_LINE >> 20} MiB, which no record is; is it damaged?"
            )
        yield line


def _parse_line(line: bytes) -> Any:
    try:
        return json_lines.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Problem("not UTF-8", f"not UTF-8 text ({error.reason} at byte {error.start})")
    except json.JSONDecodeError as error:
        return Problem("not JSON", f"not valid JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, nesting without end
        return Problem("not JSON", f"not valid JSON: {error}")


def _json(path: Path, opener: _Opener) -> Iterator[Record]:
    with _reading(path), opener(path) as file:
        content = file.read(_LARGEST_JSON + 1)
    if len(content) > _LARGEST_JSON:
        raise PreferenceFileError(
            f"{path}: more than {_LARGEST_JSON >> 30} GiB in one JSON array, which is read as a whole; save it as JSON lines"
        )
    try:
        value = json_lines.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise PreferenceFileError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise PreferenceFileError(
            f"{path}, line {error.lineno}: not valid JSON: {error.msg} at column {error.colno}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise PreferenceFileError(f"{path}: not valid JSON: {error}") from error
    if isinstance(value, dict):
        lists = [each for each in value.values() if isinstance(each, list)]
        value = lists[0] if len(value) == len(lists) == 1 else [value]
    if not isinstance(value, list):
        raise PreferenceFileError(f"{path}: expected a list of records, found {type(value).__name__}")
    for number, record in enumerate(value, start=1):
        yield f"{path}, record {number}", record


def _csv(path: Path, opener: _Opener, delimiter: str) -> Iterator[Record]:
    csv.field_size_limit(_LONGEST_LINE)
    with _reading(path), opener(path) as file:
        decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        reader = csv.reader((decode(line) for line in _lines(path, file)), delimiter=delimiter, strict=True)
        header: list[str] = []
        number = 0
        try:
            for row in reader:
                if not row or not any(cell.strip() for cell in row):
                    continue
                if not header:
                    header = [name.strip() for name in row]
                    double = {name for name in header if header.count(name) > 1}
                    if double:
                        raise PreferenceFileError(f"{path}: the header names {sorted(double)[0]!r} twice")
                    continue
                number += 1
                place = f"{path}, row {number} (ends at line {reader.line_num})"
                if len(row) == len(header):
                    yield place, {name: _cell(cell) for name, cell in zip(header, row, strict=True)}
                else:
                    yield place, Problem("wrong columns", f"{len(row)} columns, but the header names {len(header)}")
        except UnicodeDecodeError as error:
            raise PreferenceFileError(f"{path}: not UTF-8 text ({error.reason} near row {number + 1})") from error
        except csv.Error as error:
            raise PreferenceFileError(f"{path}, line {reader.line_num}: not valid CSV: {error}") from error


def _cell(text: str) -> Any:
    """Text, or the list of messages or completions that is written in a cell as JSON."""
    if text.lstrip().startswith("[") and text.rstrip().endswith("]"):
        try:
            value = json_lines.loads(text)
        except (ValueError, RecursionError):
            return text
        if isinstance(value, list) and value and not all(isinstance(each, str) for each in value):
            return value
    return text


def _parquet(path: Path) -> Iterator[Record]:
    number = 0
    with _reading(path), pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1000):
            for record in _rows(batch):
                number += 1
                yield f"{path}, row {number}", record


def _rows(batch: Any) -> list[Any]:
    """The rows of a batch as mappings; where one holds what is no text or no date, a Problem stands for it alone."""
    try:
        return list(batch.to_pylist())
    except (ValueError, OverflowError) as error:
        if len(batch) == 1:
            return [Problem("not text", f"holds a value that cannot be read: {_short(error)}")]
        half = len(batch) // 2
        return _rows(batch.slice(0, half)) + _rows(batch.slice(half))


# -- folders and the hub -------------------------------------------------------------------------------------------


def _folder(folder: Path, split: str, subset: str | None) -> Source:
    """Data files of one split in a folder: those named after it, or all where no file is named after any split."""
    root = folder / subset if subset else folder
    files = [path for path in local_files(str(root)) if _ENDINGS.search(path.name)]
    if not files:
        there = sorted(path.name for path in folder.iterdir() if path.is_dir()) if subset else []
        hint = f"; {nearest(subset, there)}" if subset and there else ""
        raise PreferenceFileError(f"{root}: holds no data files ({', '.join(_KINDS)}){hint}")
    names = {path: set(re.split(r"[^a-z0-9_]+", str(path.relative_to(root)).lower())) for path in files}
    chosen = [path for path in files if split.lower() in names[path]]
    if not chosen:
        found = sorted({word for words in names.values() for word in words if word.startswith(_SPLITS)})
        if found or split != "train":
            raise PreferenceFileError(f"{root}: no files of the split {split!r}; {nearest(split, found or ['train'])}")
        chosen = files
    sources = [_file(path) for path in chosen]
    if len({source.typed for source in sources}) > 1:
        raise PreferenceFileError(f"{root}: CSV files and others side by side; name one of them")
    kinds = ", ".join(dict.fromkeys(source.kind for source in sources))
    return Source(
        f"{root} ({split}: {len(chosen)} file{'s' if len(chosen) > 1 else ''})",
        kinds,
        itertools.chain.from_iterable(source.records for source in sources),
        typed=sources[0].typed,
        files=tuple(chosen),
    )


_SPLITS = ("train", "test", "valid", "dev", "eval")


def _saved_dataset(folder: Path, split: str) -> Source:
    import datasets

    with _reading(folder):
        try:
            found = datasets.load_from_disk(str(folder))
        except OSError:
            raise
        except Exception as error:  # datasets raises several unrelated types on damaged descriptions
            raise PreferenceFileError(f"{folder}: damaged or incomplete: {_short(error)}") from error
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise PreferenceFileError(f"{folder}: no split {split!r}; {nearest(split, found)}")
        found = found[split]
    with _reading(folder):  # mapped tables whose offsets lead out of the file would end the process
        for table in (found.data, found._indices):
            for batch in () if table is None else table.table.to_batches(max_chunksize=1000):
                batch.validate(full=True)
    return _dataset(f"{folder} ({split})", "datasets on disk", found)


def _hub(name: str, split: str, subset: str | None, revision: str | None) -> Source:
    """A data set of the hub; what is in the local cache is used where the hub does not answer."""
    import datasets

    for attempt in range(1, _ATTEMPTS + 1):
        try:
            found = datasets.load_dataset(name, subset, split=split, revision=revision)
            return _dataset(f"{name} ({', '.join(filter(None, (subset, split)))})", "hub", found)
        except datasets.exceptions.DatasetNotFoundError as error:
            raise PreferenceFileError(
                f"{name}: no such data set on the hub, or no permission to read it (hf auth login): {_short(error)}"
            ) from error
        except ValueError as error:  # no such split or subset; the message lists those that there are
            raise PreferenceFileError(f"{name}: {_short(error)}") from error
        except OSError as error:  # ConnectionError and the hub's HTTP errors are of this kind
            if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON"):
                raise PreferenceFileError(
                    f"{name}: not in the local cache, and HF_HUB_OFFLINE keeps from the hub; unset it, or give files"
                ) from error
            if attempt == _ATTEMPTS:
                raise PreferenceFileError(
                    f"{name}: the hub did not answer in {_ATTEMPTS} attempts, and the local cache has no complete copy: "
                    f"{_short(error)}. Download the data set elsewhere and give its folder or files"
                ) from error
            wait = _FIRST_WAIT * 2 ** (attempt - 1)
            print(f"the hub does not answer ({_short(error)}); trying again in {wait:g} s", flush=True)
            time.sleep(wait)
    raise AssertionError("unreachable")


def _dataset(name: str, kind: str, data: Any) -> Source:
    records = ((f"{name}, row {number}", record) for number, record in enumerate(data, start=1))
    return Source(name, kind, records, fingerprint=str(data._fingerprint))


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def columns(record: Any) -> Sequence[str]:
    """The field names of a record, none where it is not a mapping."""
    return [str(key) for key in record] if isinstance(record, dict) else []

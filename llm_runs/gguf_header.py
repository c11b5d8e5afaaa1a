"""The header of a GGUF file, read with bounds: every length in it is compared with the file before anything is allocated.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian).
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_runs.errors import InputError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LONGEST_KEY = 65_535
_MOST_DIMENSIONS = 4


class GGUFError(InputError):
    """A file that is no whole GGUF file; the message says at which byte."""


@dataclass(frozen=True)
class Header:
    """Metadata by key (arrays as their number of elements), and the tensors' shapes."""

    values: dict[str, Any]
    arrays: dict[str, int]
    tensors: dict[str, tuple[int, ...]]


def read(path: Path) -> Header:
    """The header of a GGUF file.

    Raises:
        GGUFError: not GGUF, a version that is not read here, a length or offset beyond the file, text that is not UTF-8, a key or
            tensor twice.
    """
    try:
        with path.open("rb") as file:
            if not (size := path.stat().st_size):
                raise GGUFError(f"{path}: empty, not a GGUF file")
            with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as content:
                return _Reader(path, content).header()
    except OSError as error:
        raise GGUFError(f"{path}: cannot be read ({error.strerror})") from error


class _Reader:
    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self.path, self.content, self.size, self.place = path, content, len(content), 0

    def header(self) -> Header:
        if self._bytes(4, "the mark GGUF") != b"GGUF":
            raise GGUFError(f"{self.path}: not a GGUF file (it does not begin with GGUF)")
        version = self._number("I")
        if version not in (2, 3):
            raise self._error(f"version {version}, but 2 and 3 are read here (a big-endian file?)", 4)
        tensors, pairs = self._number("Q"), self._number("Q")
        for count, least, what in ((tensors, 32, "tensors"), (pairs, 13, "entries")):
            if count > (self.size - self.place) // least:
                raise self._error(f"{count:,} {what} do not fit into the file")
        values: dict[str, Any] = {}
        arrays: dict[str, int] = {}
        for _ in range(pairs):
            start, key = self.place, self._text(_LONGEST_KEY)
            if key in values or key in arrays:
                raise self._error(f"key {key!r:.60} stands twice", start)
            kind = self._number("I")
            if kind == _ARRAY:
                arrays[key] = self._skip_array(key)
            else:
                values[key] = self._value(kind, key)
        shapes: dict[str, tuple[int, ...]] = {}
        offsets = []
        for _ in range(tensors):
            start, name = self.place, self._text(_LONGEST_KEY)
            if name in shapes:
                raise self._error(f"tensor {name!r:.60} stands twice", start)
            if not 1 <= (dimensions := self._number("I")) <= _MOST_DIMENSIONS:
                raise self._error(f"tensor {name!r:.60} has {dimensions:,} dimensions", start)
            shapes[name] = tuple(self._number("Q") for _ in range(dimensions))
            self._number("I")  # how it is quantised: the loader's business
            offsets.append((name, self._number("Q")))
            elements = 1
            for length in shapes[name]:
                elements *= length
            if elements > 64 * self.size:  # no quantisation has under an eighth of a bit per weight
                raise self._error(f"tensor {name!r:.60} has {elements:,} elements, more than the file can hold", start)
        for name, offset in offsets:
            if self.place + offset > self.size:
                raise GGUFError(
                    f"{self.path}: damaged: tensor {name!r:.60} begins beyond the end of the file; is it cut off?"
                )
        return Header(values, arrays, shapes)

    def _error(self, problem: str, place: int | None = None) -> GGUFError:
        return GGUFError(
            f"{self.path}: damaged GGUF header at byte {self.place if place is None else place}: {problem}"
        )

    def _bytes(self, count: int, what: str) -> bytes:
        if count > self.size - self.place:
            raise self._error(
                f"{what} needs {count:,} bytes, but {self.size - self.place:,} are left; is the file cut off?"
            )
        self.place += count
        return self.content[self.place - count : self.place]

    def _number(self, kind: str) -> Any:
        (value,) = struct.unpack(f"<{kind}", self._bytes(struct.calcsize(kind), "a number"))
        return value

    def _text(self, longest: int | None = None) -> str:
        start, length = self.place, self._number("Q")
        if longest is not None and length > longest:
            raise self._error(f"a name of {length:,} bytes", start)
        try:
            return self._bytes(length, "a text").decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._error(f"text that is not UTF-8 ({error.reason})", start) from error

    def _value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self._text()
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        raise self._error(f"{key!r:.60} has the unknown type {kind}")

    def _skip_array(self, key: str) -> int:
        """Pass over an array; its number of elements."""
        kind, count = self._number("I"), int(self._number("Q"))
        if kind in _SCALARS:
            self._bytes(count * struct.calcsize(_SCALARS[kind]), f"array {key!r:.60}")
        elif kind == _STRING:
            if count > (self.size - self.place) // 8:
                raise self._error(f"array {key!r:.60} of {count:,} texts does not fit into the file")
            for _ in range(count):
                self._bytes(self._number("Q"), f"array {key!r:.60}")
        else:
            raise self._error(f"array {key!r:.60} of the type {kind}, which no loader reads")
        return count

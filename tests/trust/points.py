"""Places where a process can be killed while it writes: before each change of a file, within each write, before each sync.

`arm(n)` in a process kills it (SIGKILL, nothing runs after it) at the n-th such place in the given folders; `arm(None)` only counts.
A write in which it is killed leaves half of its bytes. What libraries write from C++ or Rust is cut to half of its length.
"""

from __future__ import annotations

import builtins
import functools
import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")


class Points:
    """Counts the places, and kills at one of them.

    Attributes:
        count: of the places so far.
        last: what the last one was.
    """

    def __init__(self, fatal: int | None, folders: tuple[Path, ...], report: Path) -> None:
        self.fatal, self.folders, self.report = fatal, tuple(map(str, folders)), str(report)
        self.count, self.last, self._busy = 0, "", False

    def reached(self, what: str) -> bool:
        """Whether this is the place to die at."""
        self.count, self.last = self.count + 1, what
        return self.count == self.fatal

    def die(self) -> None:
        self._busy = True
        descriptor = os.open(self.report, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(descriptor, f"{self.count} {self.last}".encode())
        os.kill(os.getpid(), signal.SIGKILL)

    def inside(self, path: Any) -> bool:
        """Whether a path is in the folders that count. A name relative to an open folder is one that `rmtree` removes."""
        if isinstance(path, int):
            return False
        name = os.fsdecode(path)
        return not Path(name).is_absolute() or name.startswith(self.folders)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Changes of files, before they are made."""
        if self._busy or event not in _CHANGES:
            return
        if self.inside(arguments[0]) and self.reached(f"{event} {os.fsdecode(arguments[0])}"):
            self.die()


class _Raw(io.FileIO):
    """A file of which only half is written where the process dies in the write."""

    def __init__(self, points: Points, name: Any, mode: str) -> None:
        super().__init__(name, mode)
        self._points = points

    def write(self, content: Any) -> int:
        if self._points.reached(f"write {self.name}"):
            super().write(bytes(content)[: len(content) // 2])
            self._points.die()
        return super().write(content)


def arm(fatal: int | None, folders: tuple[Path, ...], report: Path) -> Points:
    """From now on count the places in `folders`, and die at number `fatal`, which is then noted in the file `report`."""
    points = Points(fatal, folders, report)
    sys.addaudithook(points.audit)
    original, sync = io.open, os.fsync

    @functools.wraps(original)
    def opened(
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        plain = set(mode) - set("bt")
        if len(plain) != 1 or not plain & set("wax") or not points.inside(file) or opener or buffering not in (-1, 1):
            return original(file, mode, buffering, encoding, errors, newline, closefd, opener)
        if points.reached(f"open {file}"):
            points.die()
        raw = io.BufferedWriter(_Raw(points, file, plain.pop()))
        if "b" in mode:
            return raw
        return io.TextIOWrapper(raw, encoding, errors, newline, line_buffering=buffering == 1)

    def synced(descriptor: Any) -> None:
        if points.reached("fsync"):
            points.die()
        sync(descriptor)

    builtins.open = io.open = opened  # type: ignore[assignment]
    os.fsync = synced
    _from_outside(points)
    return points


def _from_outside(points: Points) -> None:
    """What is not written by Python."""
    import torch
    import transformers.modeling_utils as modeling

    def torn(write: Callable[..., Any], place: int) -> Callable[..., Any]:
        @functools.wraps(write)
        def written(*arguments: Any, **named: Any) -> Any:
            result = write(*arguments, **named)
            path = arguments[place]
            if points.inside(path) and points.reached(f"half of {path}"):
                os.truncate(path, Path(path).stat().st_size // 2)
                points.die()
            return result

        return written

    torch.save = torn(torch.save, 1)
    modeling.safe_save_file = torn(modeling.safe_save_file, 1)

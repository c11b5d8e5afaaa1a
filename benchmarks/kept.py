"""Measurements, each kept as soon as it is made: a benchmark that is stopped goes on where it was."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from analysis.records import atomic_write, fingerprint


class Kept:
    """Results in a folder, by name.

    Args:
        folder: made if it is not there.
        about: what the results depend on. Results of something else in the folder are an error.
    """

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.folder, self._began = folder, time.monotonic()
        mark, identity = folder / "about.json", json.dumps({"about": fingerprint(about)})
        if mark.is_file() and mark.read_text() != identity:
            raise SystemExit(
                f"error: {folder} holds measurements of other settings, code or another machine: delete it"
            )
        atomic_write(mark, identity.encode())

    def get(self, name: str, make: Callable[[], Any]) -> Any:
        """The result of that name (JSON), made if it is missing. What was made, and when, is said on standard error."""
        path = self._path(name)
        if path.is_file():
            return json.loads(path.read_text())
        result = make()
        atomic_write(path, json.dumps(result).encode())
        print(f"{time.monotonic() - self._began:7.1f} s  {name}", file=sys.stderr, flush=True)
        return result

    def has(self, name: str) -> bool:
        """Whether the result of that name is there."""
        return self._path(name).is_file()

    def forget(self, names: Iterable[str]) -> None:
        """Delete these results."""
        for name in names:
            self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.folder / (re.sub(r"[^A-Za-z0-9.=]+", "-", name).strip("-") + ".json")

    def clear(self) -> None:
        """Delete all; the benchmark is complete."""
        shutil.rmtree(self.folder)

"""What the readers' valid files are made of."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def lines(rows: list[Any]) -> bytes:
    """JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A new one, removed in the end."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        yield Path(name)

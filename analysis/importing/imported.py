"""What an importer makes of some files, and the record that is written of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.quantities import IMPORTED
from analysis.records import RecordError, code_version, fingerprint, read_manifest, write_run

VERSION = 1  # of the importers: raised when the same files would give another record


@dataclass(frozen=True)
class Imported:
    """One run of another program.

    Attributes:
        name: of the run, for people and for the record's folder.
        format: what was read: ``trainer_state``, ``lm_eval`` or ``tensorboard``.
        files: that were read.
        tables: as a record has them.
        units: of quantities whose unit is known.
        about: what the source says of itself, such as the model's name.
        notes: what a reader must know, such as values that were left out.
    """

    name: str
    format: str
    files: tuple[Path, ...]
    tables: Mapping[str, pd.DataFrame]
    units: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def write(self, folder: Path) -> Path:
        """Write the record into ``folder``: files by name and sha256, never by their place on this machine.

        Raises:
            RecordError: it cannot be written.
        """
        return write_run(
            folder,
            kind=IMPORTED,
            id=f"imported/{self.name}",
            config={
                "name": self.name,
                "source": {
                    "format": self.format,
                    "files": [{"name": path.name, "sha256": fingerprint(path)} for path in self.files],
                },
                "importer": VERSION,
                "units": dict(self.units),
                "about": dict(self.about),
            },
            seeds={},
            tables=self.tables,
            device="not recorded by the source",
            extra={"imported_by": code_version(), "notes": list(self.notes), "place": self._place},
        )

    def is_of(self, folder: Path) -> bool:
        """Whether the record in ``folder`` was imported from the same place, so that it may be replaced.

        Its tables may be damaged: where an import of a log that has grown was killed, they are newer than the manifest.
        """
        try:
            extra = read_manifest(folder).get("extra")
            return isinstance(extra, dict) and extra.get("place") == self._place
        except RecordError:
            return False

    @property
    def _place(self) -> str:
        """Where the first file lies, as a fingerprint: the same for another import of it, and nobody else's business."""
        return fingerprint(str(self.files[0].resolve()))


def slug(text: str) -> str:
    """The text as the name of a folder."""
    return re.sub(r"[^A-Za-z0-9_.+=-]+", "-", text).strip("-.") or "run"


def loads(text: str) -> Any:
    """JSON that tables can hold: whole numbers of 64 bits, no halves of characters. Raises ValueError where it is not that."""
    found = json.loads(text, parse_int=_whole)
    if "\\ud" in text.lower():
        json.dumps(found, ensure_ascii=False).encode()  # a half of a surrogate pair has no encoding
    return found


def _whole(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**63:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return int(digits)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        RecordError: it cannot be read, or is something else.
    """
    try:
        found = loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(path, f"cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise RecordError(path, f"is damaged: not valid JSON ({error})") from error
    if not isinstance(found, dict):
        raise RecordError(path, f"is not what was expected: a JSON {type(found).__name__} instead of an object")
    return found


def plain_settings(found: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """The named settings where they are plain values: nothing else of a source is copied, so that no secret is."""
    return {key: found[key] for key in keys if isinstance(found.get(key), str | int | float | bool)}

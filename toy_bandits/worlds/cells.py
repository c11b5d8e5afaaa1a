"""Strict reading of a world file: every key known, every value of the right kind, every error with its world and cell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from objectives.domains import unknown_name
from toy_bandits.errors import BanditError

MOST = 2**22  # numbers in one table of a world, 32 MB: far more than any is meant to have


@dataclass(frozen=True)
class Cells:
    """A mapping of a world file together with where it stands, such as ``world partial_support/3: pairs``."""

    where: str
    values: Mapping[str, Any]

    @staticmethod
    def of(where: str, value: Any) -> Cells:
        """The value as a mapping with names as keys. Raises BanditError where it is something else."""
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise BanditError(f"{where}: expected a mapping of names to values, got {value!r}")
        return Cells(where, value)

    def only(self, *known: str) -> Cells:
        """Itself, or BanditError at the first key that is not known."""
        for key in self.values:
            if key not in known:
                raise BanditError(f"{self.where}: {unknown_name('key', key, sorted(known))}")
        return self

    def error(self, cell: str, problem: str) -> BanditError:
        """The error that says where."""
        return BanditError(f"{self.where}: {cell}: {problem}")

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def raw(self, key: str) -> Any:
        """The value as it stands in the file. Raises BanditError where it is missing."""
        if key not in self.values:
            raise BanditError(f"{self.where}: {key} is missing")
        return self.values[key]

    def text(self, key: str) -> str:
        """A text that is not empty."""
        value = self.raw(key)
        if not isinstance(value, str) or not value.strip():
            raise self.error(key, f"expected a text, got {value!r}")
        return " ".join(value.split())

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts; none where the key is missing."""
        value = self.values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            raise self.error(key, f"expected a list of texts, got {value!r}")
        return tuple(value)

    def flag(self, key: str) -> bool:
        """true or false; false where the key is missing."""
        value = self.values.get(key, False)
        if not isinstance(value, bool):
            raise self.error(key, f"expected true or false, got {value!r}")
        return value

    def whole(self, key: str, *, at_least: int = 0, at_most: int = 2**63 - 1) -> int:
        """A whole number."""
        value = self.raw(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
            raise self.error(key, f"expected a whole number >= {at_least}, got {value!r:.100}")
        if value > at_most:
            raise self.error(key, f"expected a whole number <= {at_most}, got {value!r:.100}")
        return value

    def number(self, key: str, default: float | None = None, *, low: float, high: float) -> float:
        """A number in [low, high]. YAML reads 1e-3 as a text; it counts as a number here."""
        value = self.values.get(key, default)
        try:
            result = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else None
        except (ValueError, OverflowError):
            result = None
        if result is None or not low <= result <= high:
            raise self.error(key, f"expected a number in [{low:g}, {high:g}], got {value!r:.100}")
        return result

    def one(self, key: str, *choices: str) -> tuple[str, Cells]:
        """The cell's only entry ``{choice: settings}``, or a bare ``choice``: how something is made, and its settings."""
        value = self.raw(key)
        where = f"{self.where}: {key}"
        if isinstance(value, str):
            value = {value: {}}
        cells = Cells.of(where, value).only(*choices)
        if len(cells.values) != 1:
            raise BanditError(f"{where}: expected one of {', '.join(choices)}, got {value!r}")
        ((choice, settings),) = cells.values.items()
        return choice, Cells.of(f"{where}: {choice}", settings)

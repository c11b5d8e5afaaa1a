"""What can be wrong with preference data: with a whole source, or with one record of it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from llm_runs.errors import InputError


class PreferenceFileError(InputError):
    """Preference data that cannot be used; the message names the file, the record (line or row) and the field."""


class Problem(Exception):
    """What is wrong with one record. `kind` groups problems in the report: "not JSON", "missing field", "empty", ..."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def not_text(text: str) -> Problem | None:
    """The problem of a text that no file can hold: JSON may spell half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return Problem("not text", f"holds {text[error.start]!r}, which is no character")
    return None


def nearest(name: str, known: Iterable[str]) -> str:
    """Words for an error message: the known names nearest to `name`, or all of them where none is near."""
    names = list(known)
    if not names:
        return "there is nothing else"
    folded = {each.casefold(): each for each in names}
    near = [folded[each] for each in difflib.get_close_matches(name.casefold(), folded, n=3, cutoff=0.5)]
    return f"nearest: {', '.join(map(repr, near))}" if near else f"there are: {', '.join(map(repr, names))}"

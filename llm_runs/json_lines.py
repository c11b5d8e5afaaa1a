"""JSON, and JSON lines, with every error in one line: file, line, and what is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_runs.errors import InputError


def loads(text: str) -> Any:
    """JSON in which a key that stands twice is an error (ValueError): the second would silently replace the first."""
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {double!r:.60} stands twice")
    return found


def read(path: Path, error: type[InputError] = InputError) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of a file, with where it stands; empty lines are passed over.

    Raises:
        InputError: (of the class `error`) the file cannot be read, or a line is no JSON object.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):  # at b"\n" only: JSON text may hold other line separators
                where = f"{path}, line {number}"
                try:
                    text = line.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
                    if not text.strip():
                        continue
                    values = loads(text)
                except UnicodeDecodeError as found:
                    raise error(f"{where}: not UTF-8 text ({found.reason} at byte {found.start})") from found
                except (ValueError, RecursionError) as found:
                    raise error(f"{where}: not valid JSON: {found}") from found
                if not isinstance(values, dict):
                    raise error(f"{where}: expected an object with fields, found {type(values).__name__}")
                yield where, values
    except OSError as found:
        raise error(f"{path}: cannot be read ({found.strerror})") from found


def read_object(path: Path) -> dict[str, Any]:
    """A whole file that is one JSON object: what commands keep for themselves.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged; a message of one line, without the file's name.
    """
    try:
        found = loads(path.read_bytes().decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text ({error.reason} at byte {error.start})") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError(f"a JSON {type(found).__name__} instead of an object")
    return found


def token_ids(values: dict[str, Any], *names: str) -> dict[str, Any]:
    """The values with these fields as tuples of token ids. Raises ValueError where one is something else."""
    found = dict(values)
    for name in names:
        ids = found[name]
        if not isinstance(ids, list) or not all(type(token) is int and 0 <= token < 2**31 for token in ids):
            raise ValueError(f"{name} must be a list of token ids")
        found[name] = tuple(ids)
    return found


def check_types(values: dict[str, Any], texts: tuple[str, ...], numbers: tuple[str, ...]) -> None:
    """ValueError unless these fields, where they are there, are texts, and numbers or none."""
    for name in texts:
        if not isinstance(values.get(name, ""), str):
            raise ValueError(f"{name} must be text")
    for name in numbers:
        value = values.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{name} must be a number")

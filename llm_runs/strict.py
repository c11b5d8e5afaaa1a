"""Frozen dataclasses as configurations: values checked on construction, read strictly from plain keys and values."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from llm_runs.errors import InputError
from objectives import yaml_text
from objectives.yaml_text import YamlError


class ConfigError(InputError):
    """A configuration that cannot be used; the message says which key, where, and what is allowed."""


def number(
    default: Any,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> Any:
    """A field whose number (or every number of its list) must lie in the range."""
    limits = {"above": above, "at_least": at_least, "below": below, "at_most": at_most}
    if isinstance(default, list | tuple):
        return field(default=tuple(default), metadata=limits)
    return field(default=default, metadata=limits)


class Checked:
    """Checks types and ranges of all fields on construction."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for entry in dataclasses.fields(self):  # type: ignore[arg-type]
            place = f"{type(self).__name__}.{entry.name}"
            value = _convert(getattr(self, entry.name), hints[entry.name], place)
            object.__setattr__(self, entry.name, value)
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, int | float):
                    _check_range(number, entry.metadata, place)


def _check_range(value: float, limits: Mapping[str, float | None], place: str) -> None:
    if not math.isfinite(value):
        raise ConfigError(f"{place} must be finite, not {value}")
    above, at_least, below, at_most = (limits.get(name) for name in ("above", "at_least", "below", "at_most"))
    if above is not None and not value > above:
        raise ConfigError(f"{place} must be greater than {above:g}, not {value}")
    if at_least is not None and not value >= at_least:
        raise ConfigError(f"{place} must be at least {at_least:g}, not {value}")
    if below is not None and not value < below:
        raise ConfigError(f"{place} must be less than {below:g}, not {value}")
    if at_most is not None and not value <= at_most:
        raise ConfigError(f"{place} must be at most {at_most:g}, not {value}")


def read_yaml(path: Path) -> dict[str, Any]:
    """Keys and values of a YAML file. Raises ConfigError where it is not that."""
    try:
        values = yaml_text.read(path.read_text(encoding="utf-8"))
    except (OSError, YamlError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(values, dict | None):
        raise ConfigError(f"{path}: expected keys and values, found {type(values).__name__}")
    return values or {}


_hints = functools.cache(typing.get_type_hints)  # it takes longer than all else


def build(cls: type, values: Any, place: str) -> Any:
    """A dataclass from a mapping, rejecting unknown keys."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{place or 'the file'}: expected keys and values, found {values!r}")
    hints = _hints(cls)
    names = [entry.name for entry in dataclasses.fields(cls)]
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=3) or names
            where = f"in section {place!r}" if place else "at the top level"
            raise ConfigError(f"unknown key {key!r} {where}; nearest valid names: {', '.join(near)}")
    prefix = f"{place}." if place else ""
    arguments = {key: _convert(value, hints[key], prefix + key) for key, value in values.items()}
    try:
        return cls(**arguments)
    except ConfigError as error:
        message = str(error)
        own = f"{cls.__name__}."
        raise ConfigError(prefix + message.removeprefix(own) if message.startswith(own) else message) from error


def _convert(value: Any, hint: Any, place: str) -> Any:
    """`value` as the annotated type, without any lossy conversion."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, typing.cast(type, hint)) else build(typing.cast(type, hint), value, place)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(value, next(a for a in arguments if a is not type(None)), place)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{place} must be one of {', '.join(map(str, arguments))}, not {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{place} must be a list, not {value!r}")
        return tuple(_convert(item, arguments[0], f"{place}[{index}]") for index, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{place} must be keys and values, not {value!r}")
        return {str(key): _convert(item, arguments[1], f"{place}.{key}") for key, item in value.items()}
    if hint is Any:
        return value
    if hint is float:
        value = _scientific(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(_in_range(value, place))
        raise ConfigError(f"{place} must be a number, not {value!r}")
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        kind = {int: "a whole number", str: "text", bool: "true or false"}[hint]
        raise ConfigError(f"{place} must be {kind}, not {value!r}")
    return _in_range(value, place) if hint is int else value


def _in_range(value: Any, place: str) -> Any:
    """The number, unless it is a whole one that no machine's numbers hold."""
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ConfigError(f"{place} must be less than 2**63, not a number of {len(hex(value)) - 2} hexadecimal digits")
    return value


def _scientific(value: Any) -> Any:
    """YAML 1.1 reads `1e-5` (without a point) as text; make it the number that was meant."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    if isinstance(value, list):
        return [_scientific(item) for item in value]
    if isinstance(value, dict):
        return {key: _scientific(item) for key, item in value.items()}
    return value


def plain(value: Any) -> Any:
    """Dataclasses as dicts, tuples as lists: what `build` reads."""
    if dataclasses.is_dataclass(value):
        return {entry.name: plain(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value

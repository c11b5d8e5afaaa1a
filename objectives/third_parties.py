"""Objectives from outside: packages by entry point, single files by an environment variable."""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
import zlib
from importlib.metadata import entry_points
from pathlib import Path

from objectives.errors import ObjectiveError

ENTRY_POINT_GROUP = "preference_objectives"
FILES_VARIABLE = "PREFERENCE_OBJECTIVES_PLUGINS"


def load() -> None:
    """Import every entry point of the group, and every Python file that the variable names (separated as in ``PATH``).

    Raises:
        ObjectiveError: a file that the variable names is missing or fails. An installed package that fails is only warned of:
            it must not take the others down.
    """
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            entry_point.load()
        except Exception as error:
            warnings.warn(
                f"objectives of {entry_point.name!r} ({entry_point.value}) are missing: {error}", stacklevel=4
            )
    for name in filter(None, os.environ.get(FILES_VARIABLE, "").split(os.pathsep)):
        _load_file(Path(name).expanduser())


def _load_file(path: Path) -> None:
    where = f"{FILES_VARIABLE}: {path}"
    if not path.is_file():
        raise ObjectiveError(f"{where}: no such file (from {Path.cwd()})")
    name = f"preference_objectives_plugin_{path.stem}_{zlib.crc32(str(path.resolve()).encode()):08x}"
    if name in sys.modules:
        return  # loaded before another file failed
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ObjectiveError(f"{where}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and type hints of the file look themselves up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[spec.name]
        raise ObjectiveError(f"{where}: {type(error).__name__}: {error}") from error

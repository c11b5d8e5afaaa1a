"""TensorBoard event files: the scalars of a folder's files as one run. Needs the package tensorboard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.importing.imported import Imported
from analysis.importing.names import Name, Trainer, named
from analysis.records import RecordError

PATTERN = "*tfevents*"
INSTALL = "pip install tensorboard   (or: pip install 'preference-objectives[tensorboard]')"


def find(folder: Path) -> list[Path]:
    """Folders with event files at or below ``folder``."""
    return sorted({path.parent for path in folder.rglob(PATTERN) if path.is_file()})


def read(
    folder: Path, name: str | None = None, *, trainer: Trainer | None = None, beta: float | None = None
) -> Imported:
    """The scalars of all event files in a folder, or of one file, as metrics: step, name, value.

    Tags of transformers' Trainer (``train/loss`` beside ``train/epoch``) are named as in its log; every other one keeps its name behind
    ``tensorboard/``. Where a step was written twice, as after a restart, the later value counts.

    Raises:
        RecordError: there is no scalar, the package tensorboard is missing, or a file cannot be read.
    """
    files = (folder,) if folder.is_file() else tuple(sorted(path for path in folder.glob(PATTERN) if path.is_file()))
    if not files:
        raise RecordError(folder, "has no event files (*tfevents*)")
    rows: list[tuple[float, int, str, float]] = []
    notes = []
    for path in files:
        read_bytes = 0
        for size, event_rows in _events(path):
            read_bytes += size
            rows += event_rows
        whole = path.stat().st_size
        if read_bytes < whole:
            notes.append(
                f"{path.name}: the last {whole - read_bytes} of {whole} bytes are unfinished or damaged and were left out"
            )
    if not rows:
        damaged = f" ({'; '.join(notes)})" if notes else ""
        raise RecordError(folder, f"has no scalars{damaged}")
    frame = pd.DataFrame(rows, columns=["time", "step", "tag", "value"]).sort_values("time", kind="stable")
    latest = frame.drop_duplicates(["step", "tag"], keep="last")
    if repeated := len(frame) - len(latest):
        notes.append(f"{repeated} values were written again later, as after a restart; the later ones count")
    of_trainer = {"train/epoch", "train/loss"} <= set(latest["tag"])
    metrics, units = [], {}
    for tag, found in latest.groupby("tag", sort=True):
        ours = _name(str(tag), of_trainer, trainer, beta)
        if ours is None:
            continue
        if ours.unit is not None:
            units[ours.name] = ours.unit
        metrics += [
            (int(step), ours.name, ours.convert(float(value)))
            for step, value in zip(found["step"], found["value"], strict=True)
        ]
    about: dict[str, Any] = {"trainer": trainer, "beta": beta} if trainer else {}
    return Imported(
        name or (folder.resolve().parent if folder.is_file() else folder.resolve()).name,
        "tensorboard",
        files,
        {"metrics": pd.DataFrame(metrics, columns=["step", "name", "value"]).sort_values("step", kind="stable")},
        units,
        about,
        tuple(notes),
    )


def _name(tag: str, of_trainer: bool, trainer: Trainer | None, beta: float | None) -> Name | None:
    """As `names.named`; None for what says only where training is."""
    if not of_trainer or not tag.startswith(("train/", "eval/")):
        return Name(f"tensorboard/{tag}")
    bare = tag.removeprefix("train/") if tag.startswith("train/") else f"eval_{tag.removeprefix('eval/')}"
    return None if bare in ("epoch", "global_step") else named(bare, trainer, beta)


def _events(path: Path) -> Iterator[tuple[int, list[tuple[float, int, str, float]]]]:
    """For each whole event of a file the bytes that it takes there, and its scalars: time, step, tag, value."""
    try:
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader, RawEventFileLoader
        from tensorboard.util.tensor_util import make_ndarray
    except ImportError as error:
        raise RecordError(path, f"needs the package tensorboard to be read: {INSTALL}") from error
    try:
        for event in EventFileLoader(str(path)).Load():
            scalars = []
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    scalars.append((event.wall_time, event.step, value.tag, float(value.simple_value)))
                elif value.HasField("tensor") and value.metadata.plugin_data.plugin_name == "scalars":
                    scalars.append((event.wall_time, event.step, value.tag, float(make_ndarray(value.tensor).item())))
            yield 0, scalars
        # The loader stops at a damaged record without a word; how far it came are the records' lengths, each with 16 bytes around it.
        yield sum(len(record) + 16 for record in RawEventFileLoader(str(path)).Load()), []
    except RecordError:
        raise
    except Exception as error:  # protobuf and tensorboard raise several unrelated types on a malformed file
        raise RecordError(path, f"is not a readable event file ({type(error).__name__}: {error})") from error

"""``trainer_state.json`` of transformers' Trainer and of everything built on it, such as trl."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from analysis.importing.imported import Imported, plain_settings, read_json
from analysis.importing.names import Trainer, named
from analysis.records import RecordError

FILE = "trainer_state.json"
_ABOUT = ("global_step", "max_steps", "epoch", "num_train_epochs", "train_batch_size", "best_metric", "total_flos")
_TOTALS = (
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "train_loss",
    "total_flos",
)  # of the end


def find(folder: Path) -> list[Path]:
    """The logs below a folder, of several checkpoints of one training the last, which holds the others' entries too."""
    found: dict[Path, list[Path]] = {}
    for path in folder.rglob(FILE):
        in_checkpoint = path.parent.name.startswith("checkpoint-")
        found.setdefault(path.parent.parent if in_checkpoint else path.parent, []).append(path)
    return [max(paths, key=lambda path: _age(path, training)) for training, paths in sorted(found.items())]


def read(path: Path, name: str | None = None, *, trainer: Trainer | None = None, beta: float | None = None) -> Imported:
    """The log as metrics: step, name, value.

    Raises:
        RecordError: the file is damaged, or is no such log.
    """
    state = read_json(path)
    history = state.get("log_history")
    if not isinstance(history, list):
        raise RecordError(path, "is no Trainer's state: it has no log_history")
    rows: list[tuple[int, str, float]] = []
    units: dict[str, str] = {}
    summary: dict[str, float] = {}
    strange: set[str] = set()
    for number, entry in enumerate(history):
        if not isinstance(entry, dict) or not isinstance(entry.get("step"), int) or isinstance(entry["step"], bool):
            raise RecordError(path, f"entry {number} of log_history has no step")
        for key, value in entry.items():
            if key in ("step", "epoch"):
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                strange.add(key)
            elif key in _TOTALS:
                summary[key] = value
            else:
                ours = named(key, trainer, beta)
                rows.append((entry["step"], ours.name, ours.convert(float(value))))
                if ours.unit is not None:
                    units[ours.name] = ours.unit
    if not rows:
        raise RecordError(path, "holds no logged numbers; was logging_steps larger than the training?")
    about: dict[str, Any] = plain_settings(state, _ABOUT) | {"totals": plain_settings(summary, _TOTALS)}
    about |= {"trainer": trainer, "beta": beta} if trainer else {}
    return Imported(
        name or default_name(path),
        "trainer_state",
        (path,),
        {"metrics": pd.DataFrame(rows, columns=["step", "name", "value"])},
        units,
        about,
        tuple(f"left out {key}: its values are no numbers" for key in sorted(strange)),
    )


def default_name(path: Path) -> str:
    """The training's folder, with the checkpoint's where it lies in one."""
    folder = path.resolve().parent
    return f"{folder.parent.name}-{folder.name}" if folder.name.startswith("checkpoint-") else folder.name


def _age(path: Path, training: Path) -> float:
    """Larger for a later log of a training: its own is the last, then the checkpoints' by their steps."""
    number = path.parent.name.removeprefix("checkpoint-")
    return float("inf") if path.parent == training else int(number) if number.isdigit() else -1

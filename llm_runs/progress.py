"""One progress bar for every training, its name and its newest loss, instead of the printed logs of libraries."""

from __future__ import annotations

import math
import os
import warnings
from typing import Any

from transformers import PrinterCallback, ProgressCallback, Trainer
from transformers.utils import logging


def quiet() -> None:
    """Leave the terminal to our own account and progress bars."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"


def show_progress(trainer: Trainer, label: str) -> None:
    """Replace the trainer's own reporting by one bar with this label."""
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(_Progress(label))


class _Progress(ProgressCallback):  # type: ignore[misc]
    def __init__(self, label: str) -> None:
        super().__init__()
        self.label = label

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        super().on_train_begin(*args, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description(self.label)
            self.training_bar.unit = "step"
            self.training_bar.leave = False

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if self.training_bar is not None and logs and "loss" in logs:
            shown = {"loss": f"{logs['loss']:.4g}"}
            if math.isfinite(margin := logs.get("plain_margin", math.nan)):
                shown["margin"] = f"{margin:.3g}"
            self.training_bar.set_postfix(shown)

"""Where metrics are shown while a training runs: TensorBoard, W&B and the others that transformers knows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from llm_runs.errors import InputError

TENSORBOARD = "tensorboard"


def check(names: Sequence[str]) -> None:
    """InputError where a name of `training.report_to` is unknown or its package is not installed."""
    available = get_available_reporting_integrations()
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise InputError(f"training.report_to: unknown {name!r}; there are {known}")
        if name not in available:
            raise InputError(f"training.report_to: {name} is not installed; pip install {name}, or leave it out")


def callbacks(names: Sequence[str], out: Path) -> list[TrainerCallback]:
    """TensorBoard's, if asked for, with its files in `out/tensorboard`: by default they lie among the checkpoints, which are deleted.

    The others are left to `TrainingArguments.report_to` (`passed_on`).
    """
    if TENSORBOARD not in names:
        return []
    from torch.utils.tensorboard import SummaryWriter

    return [TensorBoardCallback(SummaryWriter(log_dir=str(out / "tensorboard")))]


def passed_on(names: Sequence[str]) -> list[str]:
    """The value of `TrainingArguments.report_to`."""
    return [name for name in names if name != TENSORBOARD]

"""Processes of one thread each that do what is given to them, and end with the process that started them."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import torch

from analysis.records.locks import end_with_parent


def pool(workers: int) -> ProcessPoolExecutor:
    """So many processes; to be used as a context."""
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin)


def _begin() -> None:
    end_with_parent()
    torch.set_num_threads(1)

"""Faster layers for training, on request (`training.kernels`): compiled by torch, or with Liger-Kernel's fused operations.

Neither changes what is computed but for rounding. The vocabulary head has a path of its own (`vocabulary_head`) in any case, because
fused losses give the log-probability of the target only, not what the objectives here read off the logits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import is_liger_kernel_available

from llm_runs.errors import InputError

# What Liger-Kernel replaces: the layers' operations, not the head and its loss.
LIGER = {"rope": True, "rms_norm": True, "swiglu": True, "cross_entropy": False, "fused_linear_cross_entropy": False}


def check(kernels: str, device: torch.device) -> None:
    """InputError where these kernels cannot run."""
    if kernels != "liger":
        return
    if not is_liger_kernel_available():
        raise InputError("training.kernels is liger, but Liger-Kernel is not installed: pip install liger-kernel")
    if device.type == "cpu":
        raise InputError("training.kernels is liger, but its kernels need a GPU: set training.kernels=none")


@contextlib.contextmanager
def compiled(*models: PreTrainedModel, backend: str = "inductor") -> Iterator[None]:
    """The repeated blocks of these models are compiled meanwhile: one compilation serves all blocks of a model.

    In place, so that names of parameters, hooks and checkpoints stay as they are. `backend`: torch.compile's.
    """
    blocks = [block for model in models for block in repeated_blocks(model)]
    for block in blocks:
        block.compile(backend=backend)
    try:
        yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None  # torch has compile() in place, but no way back


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The members of the outermost lists of modules that are all of one class: a transformer's layers."""
    if isinstance(model, nn.ModuleList) and len({type(block) for block in model}) == 1:
        return list(model)
    return [block for child in model.children() for block in repeated_blocks(child)]

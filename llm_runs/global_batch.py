"""The batches of all processes as one: every process sees the losses, the means and the mistakes of the whole batch.

A loss that looks at the other examples of its batch (through means, ranks, a reference point) is then the loss of a single process on the
same examples, and so are its gradients. Only what losses see is exchanged, some numbers an example, never hidden states.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from llm_runs import processes
from objectives import Batch


def gathered(batches: Mapping[str, Batch]) -> dict[str, Batch]:
    """The batches of all processes, those of the first process first; each process must have equally many examples of each source.

    Gradients reach this process's own examples, times the number of processes, because every kind of data parallelism takes the mean of
    the processes' gradients: the mean is then the gradient of the loss on the whole batch.
    """
    return {source: _whole(batch) for source, batch in batches.items()} if processes.size() > 1 else dict(batches)


def rows(own: Tensor) -> Tensor:
    """(N, ...) of every process as (processes * N, ...), with gradients as in `gathered`."""
    if processes.size() == 1:
        return own
    if own.dtype == torch.bool:
        return rows(own.to(torch.uint8)).bool()
    whole: Tensor = _Rows.apply(own)  # type: ignore[no-untyped-call]
    return whole


def _whole(batch: Batch) -> Batch:
    found = {}
    for name, tensor in batch.tensors().items():
        if name in batch.wide:  # one value a token or candidate: as many columns everywhere
            width = torch.tensor(tensor.shape[-1], device=tensor.device)
            dist.all_reduce(width, dist.ReduceOp.MAX)
            tensor = F.pad(tensor, (0, int(width) - tensor.shape[-1]))
        found[name] = rows(tensor)
    if "weights" in found:
        found["weights"] = found["weights"] / processes.size()
    return replace(batch, **found)


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(processes.size())]
        dist.all_gather(parts, own.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.chunk(processes.size())[processes.rank()] * processes.size()

"""What training does on its way: the policy along gradient steps, not only where they end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from objectives import Objective
from toy_bandits import batching
from toy_bandits.derivatives import Function
from toy_bandits.problem import Bandit


def adam_path(
    problem: Bandit, objective: Objective, steps: Sequence[int], learning_rate: float = 0.05
) -> Iterator[tuple[int, Tensor]]:
    """Adam on the logits from log pi_ref, on the exact objective; yields (step, log-policy (..., X, A)) at each of ``steps``."""
    shape = batching.common_shape(problem.batch_shape, objective)
    flat = problem.flattened(shape)
    function = Function(flat, batching.flattened(objective, shape))
    logits = flat.log_reference.clone()
    optimiser = torch.optim.Adam([logits], lr=learning_rate)
    wanted = set(steps)
    for step in range(max(wanted) + 1):
        if step in wanted:
            yield step, logits.log_softmax(-1).reshape(*shape, *logits.shape[1:])
        logits.grad = function(logits).gradient.reshape(logits.shape)
        optimiser.step()

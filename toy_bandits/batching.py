"""Laying problems and hyper-parameters along one dimension, and taking some of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from objectives import Objective
from objectives.terms import Part
from toy_bandits.errors import BanditError


def common_shape(problem_shape: Sequence[int], objective: Objective, start_shape: Sequence[int] = ()) -> torch.Size:
    """The leading dimensions of problem, hyper-parameters and start, broadcast together.

    Raises:
        BanditError: they do not broadcast.
    """
    shapes = {"problem": tuple(problem_shape), "start": tuple(start_shape)} | {
        key: tuple(value.shape) for key, value in objective.hyperparameters.items() if isinstance(value, Tensor)
    }
    try:
        shape: torch.Size = torch.broadcast_shapes(*shapes.values())  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        listed = ", ".join(f"{key} {shape}" for key, shape in shapes.items())
        raise BanditError(f"{objective.name}: leading dimensions do not broadcast: {listed}") from error
    return shape


def _mapped(objective: Objective, function: Callable[[Tensor], Tensor]) -> Objective:
    """The objective with every hyper-parameter that holds one value per problem replaced by ``function`` of it."""
    parts: list[Part] = []
    for part in objective.parts:
        changed: dict[str, Any] = {
            key: function(value)
            for key, value in part.hyperparameters.items()
            if isinstance(value, Tensor) and value.ndim
        }
        parts += part.rebuild(**{**part.hyperparameters, **changed}).parts if changed else (part,)
    return Objective(tuple(parts))


def flattened(objective: Objective, shape: Sequence[int], device: torch.device) -> Objective:
    """The objective for problems of the device laid out along one dimension, its hyper-parameters in float64."""
    return _mapped(objective, lambda value: value.to(device, torch.float64).expand(*shape).reshape(-1))


def moved(objective: Objective, device: torch.device) -> Objective:
    """The objective for the same problems on another device."""
    return _mapped(objective, lambda value: value.to(device))


def take(objective: Objective, index: Tensor) -> Objective:
    """The objective for the problems ``index`` of a flattened batch."""
    return _mapped(objective, lambda value: value[index])

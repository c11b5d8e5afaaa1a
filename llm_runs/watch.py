"""What happens when a guard finds something: stop, warn, or nothing, as the configuration's section `guards` says."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from llm_runs import processes
from llm_runs.config import GuardsConfig
from llm_runs.errors import InputError


class GuardWarning(UserWarning):
    """Something that a guard found and that the configuration lets pass."""


def look(path: Path) -> str:
    """The words that lead from a message to what was saved."""
    return f"look at it: python -m llm_runs batch {path}"


class Watch:
    """The guards of one job. Of each guard the first warning is said and its batch saved; later ones are only counted.

    Args:
        actions: what to do, by guard.
    """

    def __init__(self, actions: GuardsConfig) -> None:
        self.actions = actions
        self.warned: dict[str, int] = {}

    def action(self, guard: str) -> str:
        """stop, warn or ignore."""
        return str(getattr(self.actions, guard))

    def meet(
        self,
        guard: str,
        reason: str | None,
        save: Callable[[str], Path],
        fail: Callable[[str], Exception] = InputError,
    ) -> bool:
        """Do what is configured for `guard`; whether it warned.

        Args:
            guard: a key of `GuardsConfig`.
            reason: what was found; None: nothing.
            save: writes the offending batch under a name without ending and returns the file to look at.
            fail: makes the error of a stop from its message.

        Raises:
            Exception: from `fail`, where the guard stops.
        """
        action = self.action(guard)
        if reason is None or action == "ignore":
            return False
        if action == "stop":
            raise fail(f"{reason} (guards.{guard}); {look(save('failed_batch'))}")
        first = guard not in self.warned
        self.warned[guard] = self.warned.get(guard, 0) + 1
        if first:
            path = save(f"warned_{guard}")
            warnings.warn(
                f"{reason} (guards.{guard}=stop would stop here); {look(path)}", category=GuardWarning, stacklevel=2
            )
        return True


class Gradients(TrainerCallback):  # type: ignore[misc]
    """Looks at the gradients before they reach the weights; where they are not finite, or the step is lost already, no weight changes.

    Args:
        found: told what was found; raises to stop.
        lost: whether the step's update is to be left out whatever the gradients are.
    """

    def __init__(self, found: Callable[[str], None], lost: Callable[[], bool] = lambda: False) -> None:
        self.found, self.lost = found, lost

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """After the gradients are clipped, which keeps what is not finite."""
        parameters = [p for p in model.parameters() if p.grad is not None]  # none with DeepSpeed, which keeps its own
        if not parameters:
            return
        lost = self.lost()
        if not lost:
            gradients = [p.grad.to_local() if hasattr(p.grad, "to_local") else p.grad for p in parameters]
            norm = sum(processes.gather(float(torch.nn.utils.get_total_norm(gradients))))
            if lost := not math.isfinite(norm):
                self.found(f"the gradient's norm is {norm}")
        if lost:
            for parameter in parameters:
                parameter.grad = None

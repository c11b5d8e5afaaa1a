"""Hyper-parameters as numbers or as one number per problem of a batch, and values that are held fixed while differentiating."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

Value = float | Tensor

_tape: ContextVar[Callable[[Tensor], Tensor] | None] = ContextVar("stop_gradient_tape", default=None)


def per_example(value: Value) -> Value:
    """A hyper-parameter of a batch of problems, (...), made to broadcast over the examples of each, (..., 1); a number stays itself."""
    return value.unsqueeze(-1) if isinstance(value, Tensor) and value.ndim else value


def stop_gradient(value: Tensor) -> Tensor:
    """``value`` as a constant: the sg of the formulas. Under `frozen` it really is one, so that finite differences "
    "see what autograd sees."""
    tape = _tape.get()
    return value.detach() if tape is None else tape(value.detach().clone())


@contextmanager
def frozen() -> Iterator[Callable[[], None]]:
    """Inside, each `stop_gradient` keeps the value of its first evaluation. Yields the function to call before every re-evaluation."""
    kept: list[Tensor] = []
    position = 0

    def tape(value: Tensor) -> Tensor:
        nonlocal position
        if position == len(kept):
            kept.append(value)
        position += 1
        return kept[position - 1]

    def rewind() -> None:
        nonlocal position
        position = 0

    token = _tape.set(tape)
    try:
        yield rewind
    finally:
        _tape.reset(token)

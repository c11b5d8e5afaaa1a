"""Hyper-parameters as numbers or as one number per problem of a batch, and values that are held fixed while differentiating."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

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


class Kink(Protocol):
    """A stand-in for max(0, x), with its derivatives."""

    def value(self, x: Tensor) -> Tensor:
        """What stands for max(0, x)."""
        ...

    def first(self, x: Tensor) -> Tensor:
        """Its derivative."""
        ...

    def second(self, x: Tensor) -> Tensor:
        """Its second derivative."""
        ...


class _Exact:
    """max(0, x) itself; at x = 0 the derivative from the left."""

    def value(self, x: Tensor) -> Tensor:
        return x.clamp(min=0.0)

    def first(self, x: Tensor) -> Tensor:
        return (x > 0).to(x.dtype)

    def second(self, x: Tensor) -> Tensor:
        return x.new_zeros(x.shape)


_EXACT = _Exact()
_kink: ContextVar[Kink | None] = ContextVar("kink", default=None)


def positive_part(x: Tensor) -> Tensor:
    """max(0, x). Losses that take it from here let an exact solver find minima that lie at its kink: see `kinks_as`."""
    return (_kink.get() or _EXACT).value(x)


def positive_part_derivatives(x: Tensor) -> tuple[Tensor, Tensor]:
    """First and second derivative of `positive_part`."""
    kink = _kink.get() or _EXACT
    return kink.first(x), kink.second(x)


@contextmanager
def kinks_as(kink: Kink) -> Iterator[None]:
    """Inside, `positive_part` is ``kink``: smooth, or linear with a given slope."""
    token = _kink.set(kink)
    try:
        yield
    finally:
        _kink.reset(token)


@contextmanager
def watched() -> Iterator[set[str]]:
    """Yields a set into which "stop_gradient" and "positive_part" are entered where losses evaluated inside use them."""
    seen: set[str] = set()
    plain = _kink.get() or _EXACT

    class Watching(_Exact):
        def value(self, x: Tensor) -> Tensor:
            seen.add("positive_part")
            return plain.value(x)

    def tape(value: Tensor) -> Tensor:
        seen.add("stop_gradient")
        return value

    tokens = _tape.set(tape), _kink.set(Watching())
    try:
        yield seen
    finally:
        _tape.reset(tokens[0])
        _kink.reset(tokens[1])

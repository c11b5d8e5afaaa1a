"""Domains of hyper-parameters, written as type hints of an objective's factory: ``def dpo(beta: Positive = 0.1)``."""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from numbers import Real as Real_
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from torch import Tensor

from objectives.errors import ObjectiveError
from objectives.values import Value


@dataclass(frozen=True)
class Domain:
    """An interval of allowed values; a tensor (one value per problem) must lie in it everywhere."""

    text: str
    contains: Callable[[float], bool]


Positive = Annotated[Value, Domain("> 0", lambda x: x > 0)]
NonNegative = Annotated[Value, Domain(">= 0", lambda x: x >= 0)]
Real = Annotated[Value, Domain("any finite number", lambda x: True)]

# Parameters that shape a link: one number, not one per problem.
Number = Annotated[float, Domain("any finite number", lambda x: True)]
PositiveNumber = Annotated[float, Domain("> 0", lambda x: x > 0)]
Smoothing = Annotated[float, Domain("in [0, 0.5)", lambda x: 0 <= x < 0.5)]
PositiveSmoothing = Annotated[float, Domain("in (0, 0.5)", lambda x: 0 < x < 0.5)]
Fraction = Annotated[float, Domain("in [0, 1]", lambda x: 0 <= x <= 1)]


@dataclass(frozen=True)
class Simplex:
    """Numbers >= 0 that sum to 1."""

    text: str = "a tuple of numbers >= 0 that sum to 1"


MixtureWeights = Annotated[tuple[float, ...], Simplex()]


@dataclass(frozen=True)
class HyperParameter:
    """Name, default and allowed values of one hyper-parameter."""

    name: str
    default: Any
    hint: Any

    @property
    def allowed(self) -> str:
        """The allowed values in words, e.g. ``> 0`` or ``'sampled', 'full'``."""
        return _allowed(self.hint)

    def check(self, objective: str, value: Any) -> Any:
        """The value as the objective takes it (numbers as float), or an ObjectiveError naming objective, argument and range."""
        accepted = _accept(self.hint, value)
        if accepted is REFUSED:
            shown = (
                f"a tensor with values {value.min().item():g}..{value.max().item():g}"
                if isinstance(value, Tensor)
                else repr(value)
            )
            raise ObjectiveError(f"{objective}: {self.name} must be {self.allowed}; got {shown}")
        return accepted


def hyperparameters(factory: Callable[..., Any]) -> tuple[HyperParameter, ...]:
    """The hyper-parameters that a factory's signature declares, in order."""
    hints = get_type_hints(factory, include_extras=True)
    parameters = inspect.signature(factory).parameters.values()
    return tuple(HyperParameter(p.name, p.default, hints.get(p.name, Real)) for p in parameters)


def unknown_name(kind: str, name: str, known: list[str]) -> str:
    """``unknown objective 'dpp'; did you mean 'dpo'? Known: ...``"""
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else "."
    return f"unknown {kind} {name!r}{hint} Known: {', '.join(known) or 'none'}"


REFUSED = object()


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _allowed(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return ", ".join(repr(choice) for choice in get_args(hint))
    if get_origin(hint) is Annotated:
        return next(extra.text for extra in get_args(hint) if isinstance(extra, Domain | Simplex))
    members = _members(hint)
    if len(members) > 1:
        return " or ".join(_allowed(member) for member in members)
    return {bool: "True or False", type(None): "None", int: "a whole number", str: "a string"}.get(hint, str(hint))


def _accept(hint: Any, value: Any) -> Any:
    """The value, converted, if the hint admits it; else REFUSED."""
    for member in _members(hint):
        if get_origin(member) is Literal:
            if isinstance(value, str | bool) and value in get_args(member):
                return value
        elif get_origin(member) is Annotated:
            domain = next((extra for extra in get_args(member) if isinstance(extra, Domain | Simplex)), None)
            if isinstance(domain, Simplex):
                if _in_simplex(value):
                    return tuple(float(weight) for weight in value)
            elif isinstance(value, Tensor) and get_args(member)[0] is float:
                continue
            elif domain is not None and _in_domain(domain, value):
                return value if isinstance(value, Tensor) else float(value)
        elif member is bool:
            if isinstance(value, bool):
                return value
        elif isinstance(member, type) and isinstance(value, member):
            return value
    return REFUSED


def _in_domain(domain: Domain, value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() > 0 and all(
            math.isfinite(x) and domain.contains(x) for x in value.detach().flatten().tolist()
        )
    if isinstance(value, bool) or not isinstance(value, Real_):
        return False
    try:
        number = float(value)
    except OverflowError:  # a whole number beyond any float
        return False
    return math.isfinite(number) and domain.contains(number)


def _in_simplex(value: Any) -> bool:
    if not isinstance(value, tuple | list) or not value:
        return False
    numbers: list[Any] = [x for x in value if isinstance(x, Real_) and not isinstance(x, bool)]
    if len(numbers) < len(value) or not all(0 <= x <= 1 for x in numbers):
        return False
    return abs(math.fsum(map(float, numbers)) - 1) < 1e-9

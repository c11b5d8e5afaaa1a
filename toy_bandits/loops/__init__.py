"""Outer loops, exact: how data and references change between updates. Each goes through the policies of its steps; `record` judges them
against the RLHF optimum."""

from __future__ import annotations

from typing import Any

from objectives.domains import unknown_name
from toy_bandits.errors import BanditError
from toy_bandits.loops.base import Loop, Step, make, record
from toy_bandits.loops.iterated import Accelerated, IterativeDpo
from toy_bandits.loops.policy_gradient import Espo, RlhfPpo
from toy_bandits.loops.references import Mrpo
from toy_bandits.loops.rejection import BestOfN, Rso

LOOPS: dict[str, type[Loop]] = {
    kind.name: kind for kind in (RlhfPpo, Espo, Rso, Accelerated, IterativeDpo, BestOfN, Mrpo)
}


def names() -> list[str]:
    """The names of all loops."""
    return list(LOOPS)


def get(name: str, **settings: Any) -> Loop:
    """The loop ``name``; settings left out take their defaults.

    Raises:
        BanditError: unknown name or setting, or a whole number out of range.
        ObjectiveError: another setting out of range.
    """
    if name not in LOOPS:
        raise BanditError(unknown_name("loop", name, names()))
    return make(LOOPS[name], settings)


__all__ = [
    "LOOPS",
    "Accelerated",
    "BestOfN",
    "Espo",
    "IterativeDpo",
    "Loop",
    "Mrpo",
    "RlhfPpo",
    "Rso",
    "Step",
    "get",
    "names",
    "record",
]

"""All diagnostics, in the order of the radar."""

from __future__ import annotations

from objectives.domains import unknown_name
from toy_bandits.diagnostics import (
    determinism,
    finite_data,
    finite_reference,
    intransitive,
    leak,
    length_bias,
    likelihood,
    many_actions,
    neglected_best,
    noise,
    off_support,
    regret,
    strength,
    uniqueness,
)
from toy_bandits.diagnostics.base import Diagnostic
from toy_bandits.errors import BanditError

DIAGNOSTICS: dict[str, Diagnostic] = {
    module.DIAGNOSTIC.id: module.DIAGNOSTIC
    for module in (
        determinism,
        strength,
        off_support,
        leak,
        uniqueness,
        likelihood,
        noise,
        finite_data,
        finite_reference,
        intransitive,
        length_bias,
        neglected_best,
        many_actions,
        regret,
    )
}
"""By id, in the order of the radar: what holds the policy, what data do to it, what it gains."""


def get(diagnostic_id: str) -> Diagnostic:
    """A diagnostic by its id. Raises BanditError where there is none, with the nearest ids."""
    if diagnostic_id not in DIAGNOSTICS:
        raise BanditError(unknown_name("diagnostic", diagnostic_id, list(DIAGNOSTICS)))
    return DIAGNOSTICS[diagnostic_id]

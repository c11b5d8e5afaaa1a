"""What recorded numbers are called and in which unit they are; two units of one quantity never share an axis.

A record may state units in its config (``units: {name: unit}``), as imported ones do; the suite's own are in the units below.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from analysis.records import Run

IMPORTED = "imported"  # the kind of records that come from other programs
SUITE = ("bandit", "llm", "llm_cost", "llm_evaluation")  # kinds that the suite writes, in its own units

# name: (in words, unit); the names of tables `metrics` and `evaluations`, see docs/evaluation.md
KNOWN = {
    "kl_policy_reference": ("KL(policy ‖ reference)", "nats per completion"),
    "kl_reference_policy": ("KL(reference ‖ policy)", "nats per completion"),
    "k1": ("KL, estimator k1", "nats per completion"),
    "k3": ("KL, estimator k3", "nats per completion"),
    "k3_tokens": ("KL, estimator k3 by tokens", "nats per completion"),
    "log_ratio": ("log π − log π_ref", "nats per completion"),
    "chosen_log_ratio": ("log π − log π_ref of the chosen", "nats per completion"),
    "rejected_log_ratio": ("log π − log π_ref of the rejected", "nats per completion"),
    "chosen_logps": ("log π of the chosen", "nats per completion"),
    "rejected_logps": ("log π of the rejected", "nats per completion"),
    "margin": ("reference-adjusted margin", "nats per completion"),
    "plain_margin": ("plain margin", "nats per completion"),
    "nll": ("negative log-likelihood", "nats per text"),
    "reward": ("reward", ""),
    "second_reward": ("second reward", ""),
    "win_rate": ("win rate against the reference", "share"),
    "second_win_rate": ("win rate by the second reward", "share"),
    "accuracy": ("reference-adjusted accuracy", "share"),
    "plain_accuracy": ("plain accuracy", "share"),
    "preference_accuracy": ("preference accuracy", "share"),
    "saturated_share": ("saturated share of pairs", "share"),
    "length": ("length", "tokens"),
    "tokens": ("length of text", "tokens"),
    "peak_memory_bytes": ("peak memory", "bytes"),
    "step_seconds": ("time of a step", "seconds"),
    "step_cpu_seconds": ("processor time of a step", "seconds"),
}


def words(name: str) -> str:
    """The quantity in words, or its name where it has none."""
    return KNOWN.get(name, (name, ""))[0]


def unit_of(run: Run, name: str) -> str | None:
    """The unit of a quantity in a record; None where nobody says."""
    stated = run.config.get("units")
    if isinstance(stated, dict) and name in stated:
        return str(stated[name])
    return KNOWN[name][1] if run.kind in SUITE and name in KNOWN else None


def agreeing(name: str, runs: Iterable[Run]) -> tuple[list[Run], str, list[str]]:
    """The runs whose unit of a quantity is the same, that unit, and a line for each other run.

    The unit of most runs is kept (of equally many, the suite's own); a run that states none goes with the others where they state none.
    """
    runs = list(runs)
    units = {run.folder: unit_of(run, name) for run in runs}
    counts = Counter(units.values())
    own = KNOWN.get(name, ("", None))[1]
    kept = max(counts, key=lambda unit: (counts[unit], unit == own, str(unit)), default=None)
    lines = [
        f"left out {name} of {run.folder}: it is in {_said(units[run.folder])}, that of {counts[kept]} other run(s) in {_said(kept)}; "
        "convert it, or make a report of its own"
        for run in runs
        if units[run.folder] != kept
    ]
    return [run for run in runs if units[run.folder] == kept], kept or "", lines


def _said(unit: str | None) -> str:
    return "a unit that its record does not state" if unit is None else repr(unit)

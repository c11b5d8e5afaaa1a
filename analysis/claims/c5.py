"""C5: what a reference model costs while optimising."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from analysis.claims.model import Claim, Domain, Judgement, Part, Verdict, above
from analysis.evidence import COST_COMMAND, Evidence, MissingEvidence
from analysis.records import Run
from analysis.statistics import Interval, ratio

SAVED = 1.05  # peak memory must differ by 5 % to count either way: it is one number per run, without an interval
WARM_UP = 1  # first steps left out: they allocate and compile


def language_model(evidence: Evidence) -> Judgement:
    """Peak memory and time per step of DPO with a live reference, over MaxPO, which needs none."""
    costs = evidence.costs()
    maxpo, live = _find(costs, "maxpo", "none"), _find(costs, "dpo", "live")
    parts = [_memory("peak memory: dpo with a live reference over maxpo", live, maxpo)]
    parts.append(above("time per step: dpo with a live reference over maxpo", _ratio(live, maxpo), "times", bound=1.0))
    notes = [
        "maxpo's step also scores its samples of the reference, which dpo's does not",
        "one process per measurement: peak memory has no interval; time intervals are over steps",
    ]
    try:
        stored = _find(costs, "dpo", "precomputed")
    except MissingEvidence:
        return Judgement(parts, notes)
    memory, time = _memory("", stored, maxpo).value.estimate, _ratio(stored, maxpo)
    notes.append(
        f"dpo with precomputed reference log-probabilities over maxpo: memory {memory:.3g} times, time {time} times"
    )
    return Judgement(parts, notes)


def _find(costs: list[Run], objective: str, reference: str) -> Run:
    for run in costs:
        named = run.config["objective"]
        if (named["name"] if isinstance(named, dict) else named) == objective and run.config["reference"] == reference:
            return run
    raise MissingEvidence(f"the cost of {objective} with reference {reference!r}", COST_COMMAND)


def _values(run: Run, name: str) -> NDArray[np.float64]:
    frame = run.table("metrics").sort_values("step")
    values = frame.loc[frame["name"] == name, "value"].to_numpy(dtype=float)
    if not values.size:
        raise MissingEvidence(f"{name} in {run.folder}", COST_COMMAND)
    return values


def _memory(statement: str, first: Run, second: Run) -> Part:
    times = float(_values(first, "peak_memory_bytes").max() / _values(second, "peak_memory_bytes").max())
    verdict = Verdict.HOLDS if times > SAVED else Verdict.FAILS if times < 1 / SAVED else Verdict.OPEN
    return Part(statement, verdict, Interval(times, over="runs", n=1), "times")


def _ratio(first: Run, second: Run) -> Interval:
    """Ratio of the processor time per step."""
    # Wall time on shared cores measures the neighbours; processor time does not.
    one, two = (_values(run, "step_cpu_seconds")[WARM_UP:] for run in (first, second))
    return ratio(one, two, over="steps")


CLAIM = Claim(
    id="C5",
    title="No reference model while optimising",
    prediction="MaxPO needs no reference model while optimising: less peak memory and time per step than DPO with a live reference.",
    data={Domain.LANGUAGE_MODEL: "peak memory and processor time per step of the same trainer"},
    rule={
        Domain.LANGUAGE_MODEL: f"peak memory of DPO with a live reference more than {SAVED - 1:.0%} above MaxPO's, and time per "
        "step above it; Welch's t on the logarithms of the steps' times, 95 %."
    },
    figures=(),
    language_model=language_model,
)

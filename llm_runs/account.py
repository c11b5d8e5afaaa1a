"""The running account of a long job: what is being done, what it gave, what comes next, how long it will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llm_runs import processes


@dataclass(frozen=True)
class Step:
    """One step of a plan. `run` returns a few words on the result; None says that it had been done before."""

    title: str
    kind: str  # steps of one kind take about as long as each other
    run: Callable[[], str | None]


def carry_out(
    plan: Sequence[Step], say: Callable[[str], None] | None = None, begin: Callable[[Step], object] = lambda step: None
) -> None:
    """Run the steps in their order, saying before and after each what a waiting person wants to know. `begin` is called before each.

    Processes of a launch begin each step together, so that all see the same files.
    """
    say = say or (lambda line: print(line, flush=True))  # of the first process only: the others are hushed
    seconds: dict[str, list[float]] = {}
    for number, step in enumerate(plan, start=1):
        say(f"[{number}/{len(plan)}] {step.title}")
        processes.barrier()
        begin(step)
        start = time.monotonic()
        result = step.run()
        elapsed = time.monotonic() - start
        if result is not None:
            seconds.setdefault(step.kind, []).append(elapsed)
        words = [f"done in {duration(elapsed)}" if result is not None else "already done"]
        words += [result] if result else []
        rest = plan[number:]
        if rest:
            words.append(f"next: {rest[0].title}")
            known = [seconds[later.kind] for later in rest if later.kind in seconds]
            if len(known) == len(rest):
                words.append(f"about {duration(sum(sum(each) / len(each) for each in known))} left")
        say(f"      {'; '.join(words)}")


def duration(seconds: float) -> str:
    """Seconds as 9s, 2m10s or 1h05m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02}m"

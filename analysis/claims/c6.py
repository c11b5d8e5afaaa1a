"""C6: benchmarks unrelated to the preferences."""

from __future__ import annotations

import pandas as pd

from analysis.claims.c1 import over
from analysis.claims.model import Claim, Domain, Judgement, above, below
from analysis.evidence import LLM_COMMAND, NEAR_DETERMINISTIC, Evidence, MissingEvidence, Setting, comparable
from analysis.statistics import mean, paired_difference

HOLD = 0.05  # a benchmark "holds" when its accuracy falls by less than this


def language_model(evidence: Evidence) -> Judgement:
    """Per-item change of benchmark scores after training, all benchmarks pooled (one test, not one per benchmark)."""
    chosen = comparable(evidence, NEAR_DETERMINISTIC)
    changes = {method: benchmark_changes(setting) for method, setting in chosen.items()}
    for method, change in changes.items():
        if change.empty:
            raise MissingEvidence(f"benchmarks before and after training {method}", LLM_COMMAND)
    parts = [below(f"{method}: change of benchmark accuracy", mean(changes[method])) for method in ("dpo", "ipo")]
    parts.append(above("maxpo: change of benchmark accuracy", mean(changes["maxpo"]), bound=-HOLD))
    parts += [
        above(f"maxpo's change less {method}'s", paired_difference(changes["maxpo"], changes[method]))
        for method in ("dpo", "ipo")
    ]
    notes = []
    for method, change in changes.items():
        by_task = "; ".join(f"{task} {mean(values)}" for task, values in change.groupby(level="task"))
        notes.append(f"{method}: {by_task}")
    rewards = {method: setting.items("held_out_prompts", "reward") for method, setting in chosen.items()}
    notes.append(
        "matched reward: " + ", ".join(f"{setting.label} {mean(rewards[method])}" for method, setting in chosen.items())
    )
    for method in ("dpo", "ipo"):
        gap = paired_difference(rewards["maxpo"], rewards[method])
        if gap.above_zero or gap.below_zero:
            notes.append(f"caveat: maxpo's reward is not matched to {method}'s, the difference is {gap}")
    return Judgement(parts, [*notes, *over(list(chosen.values()))])


def benchmark_changes(setting: Setting) -> pd.Series:
    """By (task, item): the score at the last step less that of the reference; empty where no benchmark was run."""
    columns = {}
    frame = setting.evaluations
    for split in setting.splits:
        if split.startswith("benchmark/"):
            metric = str(frame.loc[frame["split"] == split, "metric"].iloc[0])
            before, after = setting.items(split, metric, step=0), setting.items(split, metric)
            columns[split.removeprefix("benchmark/")] = (after - before).dropna()
    if not columns:
        return pd.Series(dtype=float, index=pd.MultiIndex.from_arrays([[], []], names=["task", "item"]))
    return pd.concat(columns, names=["task", "item"])


CLAIM = Claim(
    id="C6",
    title="Unrelated benchmarks",
    prediction="Benchmarks unrelated to the preferences drop after DPO and IPO on near-deterministic preferences "
    "and hold under MaxPO, at matched reward.",
    data={
        Domain.LANGUAGE_MODEL: "per-item benchmark scores before and after training, near-deterministic labels, matched reward"
    },
    rule={
        Domain.LANGUAGE_MODEL: f"change of accuracy over all benchmark items below 0 for DPO and IPO, above -{HOLD} for MaxPO, and "
        "MaxPO's above both others'; paired bootstrap over items, 95 %."
    },
    figures=("off_support",),
    language_model=language_model,
)

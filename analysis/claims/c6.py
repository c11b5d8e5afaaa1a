"""C6: benchmarks unrelated to the preferences."""

from __future__ import annotations

import pandas as pd

from analysis.claims.measuring import ablation, contrast, level, over, rewards_note
from analysis.claims.model import Claim, Domain, Judgement, above, below
from analysis.evidence import LLM_COMMAND, NEAR_DETERMINISTIC, Evidence, MissingEvidence, Setting, comparable
from analysis.seeds import interval
from analysis.statistics import adjusted

HOLD = 0.05  # a benchmark "holds" when its accuracy falls by less than this


def language_model(evidence: Evidence) -> Judgement:
    """Per-item change of benchmark scores after training, all benchmarks pooled (one test, not one per benchmark)."""
    chosen = comparable(evidence, NEAR_DETERMINISTIC)
    for method, setting in chosen.items():
        if changes(setting).empty:
            raise MissingEvidence(f"benchmarks before and after training {method}", LLM_COMMAND)
    parts = [
        below(f"{method}: change of benchmark accuracy", level(changes, [chosen[method]])) for method in ("dpo", "ipo")
    ]
    parts.append(above("maxpo: change of benchmark accuracy", level(changes, [chosen["maxpo"]]), bound=-HOLD))
    parts += [
        above(f"maxpo's change less {method}'s", contrast(changes, [chosen["maxpo"]], [chosen[method]]))
        for method in ("dpo", "ipo")
    ]
    notes = [*_by_task(chosen), *rewards_note(chosen)]
    why = ablation(evidence, NEAR_DETERMINISTIC, changes, "change of benchmark accuracy", "")
    return Judgement(parts, [*notes, *over(parts)], why)


def _by_task(chosen: dict[str, Setting]) -> list[str]:
    """Each method on each benchmark, with p adjusted over all of them (Holm)."""
    found = {}
    for method, setting in chosen.items():
        table = changes(setting)
        for task in table.columns.get_level_values("task").unique():
            found[method, str(task)] = interval(table.xs(task, axis=1, level="task").to_numpy()[None])
    # where no item changed there is no interval, and no doubt either
    values = adjusted([one.p_value() if one.known else 1.0 for one in found.values()], "holm")
    shown: dict[str, list[str]] = {}
    for ((method, task), one), p in zip(found.items(), values, strict=True):
        shown.setdefault(method, []).append(f"{task} {one}, p {p:.2g}")
    return [f"{method}: {'; '.join(lines)} (p: Holm, {len(found)} tests)" for method, lines in shown.items()]


def changes(setting: Setting) -> pd.DataFrame:
    """By training seed and (task, item): the score at the last step less that of the reference; empty where no benchmark was run."""
    columns = {}
    frame = setting.evaluations
    for split in setting.splits:
        if split.startswith("benchmark/"):
            metric = str(frame.loc[frame["split"] == split, "metric"].iloc[0])
            columns[split.removeprefix("benchmark/")] = setting.values(split, metric) - setting.values(split, metric, 0)
    if not columns:
        return pd.DataFrame(dtype=float)
    return pd.concat(columns, axis=1, names=["task", "item"]).dropna(axis=1)


def benchmark_changes(setting: Setting) -> pd.Series:
    """`changes` averaged over the training seeds, by (task, item)."""
    found = changes(setting)
    if found.empty:
        return pd.Series(dtype=float, index=pd.MultiIndex.from_arrays([[], []], names=["task", "item"]))
    return found.mean(axis=0)


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
        "MaxPO's above both others'; paired by seed and item, 95 %."
    },
    figures=("benchmarks", "benchmarks_table"),
    language_model=language_model,
)

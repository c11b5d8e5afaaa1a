"""Which language-model settings a figure shows, and how it names them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from analysis.evidence import (
    LLM_COMMAND,
    METHODS,
    NEAR_DETERMINISTIC,
    NOISY,
    STRENGTHS,
    Evidence,
    MissingEvidence,
    Setting,
    comparable,
)
from analysis.statistics import Interval, mean
from paper_figures import style


def label_kinds(evidence: Evidence) -> list[str]:
    """The kinds of labels in the records, from near-deterministic to noisy.

    Raises:
        MissingEvidence: there are no language-model runs.
    """
    certainty = {setting.labels: -doubt(setting) for setting in evidence.settings}
    if not certainty:
        raise MissingEvidence("language-model runs", LLM_COMMAND)
    ends = {NEAR_DETERMINISTIC: -1, NOISY: 1}
    return sorted(certainty, key=lambda name: (-np.nan_to_num(certainty[name], nan=-1.0), ends.get(name, 0), name))


def doubt(setting: Setting) -> float:
    """1 - p: how likely a label of the setting's pairs is to go against the better answer, on average; NaN where unknown."""
    found = [run.config["labels"].get("mean_max_probability") for run in setting.runs]
    known = [1.0 - float(value) for value in found if value is not None]
    return float(np.mean(known)) if known else float("nan")


def labels_title(settings: Sequence[Setting]) -> str:
    """ "noisy labels (T = 2)", of settings on one kind of labels."""
    temperature = settings[0].runs[0].config["labels"].get("temperature")
    known = f" (T = {temperature:g})" if temperature is not None else ""
    return f"{settings[0].labels.replace('_', '-')} labels{known}"


def matched(evidence: Evidence, labels: str) -> list[Setting]:
    """One setting of each variant of each objective, matched on reward; the three methods of the claims first.

    The three are chosen by `comparable`; of any other the strength is taken whose mean reward is nearest to theirs.
    """
    claimed = comparable(evidence, labels, METHODS)
    target = float(np.mean([_reward(setting) for setting in claimed.values()]))
    variants: dict[str, Setting] = {}
    for setting in evidence.language_model(labels=labels):
        best = variants.get(setting.variant)
        if best is None or abs(_reward(setting) - target) < abs(_reward(best) - target):
            variants[setting.variant] = setting
    variants |= {setting.variant: setting for setting in claimed.values()}
    places = {name: place for place, name in enumerate(style.order(one.objective for one in variants.values()))}
    return sorted(variants.values(), key=lambda one: (places[one.objective], one.variant))


def names(settings: Iterable[Setting], *, strength: bool = True) -> dict[str, str]:
    """By label: method and (unless told not to) strength, with the other hyper-parameters in which settings of one method differ."""
    by_objective: dict[str, list[Setting]] = {}
    for setting in settings:
        by_objective.setdefault(setting.objective, []).append(setting)
    found = {}
    for group in by_objective.values():
        keys = sorted({key for setting in group for key in setting.hyperparameters})
        values = {key: {str(setting.hyperparameters.get(key)) for setting in group} for key in keys}
        differing = [key for key in keys if len(values[key]) > 1 and key.rpartition(".")[2] not in STRENGTHS]
        for setting in group:
            given = [key for key in differing if key in setting.hyperparameters]
            others = "".join(f", {key.rpartition('.')[2]} {setting.hyperparameters[key]}" for key in given)
            known = strength and np.isfinite(setting.strength)
            shown = f", {setting.symbol} = {setting.strength:g}" if known else ""
            found[setting.label] = f"{style.look(setting.objective).label}{shown}{others}"
    return found


def remark(settings: Sequence[Setting]) -> str:
    """Which strengths are shown and what the bars rest on, for a caption."""
    shown = names(settings)
    strengths = ", ".join(dict.fromkeys(shown[setting.label] for setting in settings))
    return f"Shown: {strengths}. {seeds(settings)}"


def seeds(settings: Sequence[Setting]) -> str:
    """The number of training seeds, in a sentence."""
    least = min(len(setting.runs) for setting in settings)
    return (
        "One training seed: bars do not cover training noise." if least == 1 else f"Means over {least} training seeds."
    )


def measured(setting: Setting, split: str, metric: str, step: int | None = None) -> Interval:
    """Mean of a measured quantity with its 95 % interval; a column that does not vary has none."""
    return mean(setting.items(split, metric, step))


def _reward(setting: Setting) -> float:
    return float(setting.items("held_out_prompts", "reward").mean())

"""Which language-model settings a figure shows, and how it names them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

from analysis import seeds
from analysis.evidence import (
    FULL,
    LLM_COMMAND,
    METHODS,
    NEAR_DETERMINISTIC,
    NOISY,
    Evidence,
    MissingEvidence,
    Setting,
    comparable,
    strength_key,
)
from analysis.statistics import Interval
from paper_figures import style


def label_kinds(evidence: Evidence, support: str | None = FULL) -> list[str]:
    """The kinds of labels in the records (of pairs with this support), from near-deterministic to noisy.

    Raises:
        MissingEvidence: there are no such language-model runs.
    """
    certainty = {one.labels: one.certainty for one in evidence.settings if support in (None, one.support)}
    if not certainty:
        raise MissingEvidence("language-model runs", LLM_COMMAND)
    ends = {NEAR_DETERMINISTIC: -1, NOISY: 1}
    return sorted(certainty, key=lambda name: (-np.nan_to_num(certainty[name], nan=-1.0), ends.get(name, 0), name))


def doubt(setting: Setting) -> float:
    """1 - p: how likely a label of the setting's pairs is to go against the better answer, on average; NaN where unknown."""
    return 1.0 - setting.certainty


def labels_title(settings: Sequence[Setting]) -> str:
    """ "noisy labels (T = 2)", of settings on one kind of labels."""
    temperature = settings[0].temperature
    known = f" (T = {temperature:g})" if np.isfinite(temperature) else ""
    return f"{settings[0].labels.replace('_', '-')} labels{known}"


def support_words(support: str) -> str:
    """ "pairs from top-p = 0.5", of a setting's support."""
    return f"pairs from {'all samples' if support == FULL else support.replace('_', '-').replace('=', ' = ')}"


def matched(evidence: Evidence, labels: str, support: str = FULL) -> list[Setting]:
    """One setting of each variant of each objective, matched on reward; the three methods of the claims first.

    The three are chosen by `comparable` (on full support); of any other, and on another support, the strength is taken whose mean
    reward is nearest to theirs.
    """
    claimed = comparable(evidence, labels, METHODS)
    target = float(np.mean([_reward(setting) for setting in claimed.values()]))
    variants: dict[str, Setting] = {}
    for setting in evidence.language_model(labels=labels, support=support):
        best = variants.get(variant(setting))
        if best is None or abs(_reward(setting) - target) < abs(_reward(best) - target):
            variants[variant(setting)] = setting
    if support == FULL:
        variants |= {variant(setting): setting for setting in claimed.values()}
    places = {name: place for place, name in enumerate(style.order(one.objective for one in variants.values()))}
    return sorted(variants.values(), key=lambda one: (places[one.objective], variant(one)))


def names(settings: Iterable[Setting], *, strength: bool = True) -> dict[str, str]:
    """By label: method and (unless told not to) strength, with the other options in which settings of one method differ."""
    by_objective: dict[str, list[Setting]] = {}
    for setting in settings:
        by_objective.setdefault(setting.objective, []).append(setting)
    found = {}
    for group in by_objective.values():
        options = {setting.label: _options(setting.label) for setting in group}
        keys = sorted({key for one in options.values() for key in one})
        differing = [key for key in keys if len({one.get(key) for one in options.values()}) > 1]
        for setting in group:
            given = options[setting.label]
            others = "".join(f", {_said(key.rpartition('.')[2], given[key])}" for key in differing if key in given)
            known = strength and np.isfinite(setting.strength)
            shown = f", {setting.symbol} = {setting.strength:g}" if known else ""
            found[setting.label] = f"{style.look(setting.objective).label}{shown}{others}"
    return found


def _said(option: str, value: str) -> str:
    """An option in few words: rows of figures are named by it."""
    words = option.replace("_", " ")
    if value == "True":
        return words
    return {"tokens": f"{value}-token", "temperature": f"T {value}"}.get(option, f"{words} {value}")


def variant(setting: Setting) -> str:
    """The objective with the options that it was given, but the strength: the same on any data ("auto" stays "auto")."""
    given = ", ".join(f"{key}={value}" for key, value in sorted(_options(setting.label).items()))
    return f"{setting.objective}({given})"


def _options(label: str) -> dict[str, str]:
    """What a label such as ``ipo(tau=0.3, aggregation='mean')`` gives, but the strength, by "ipo.aggregation"."""
    found = {}
    for part, arguments in re.findall(r"(\w+)\(([^)]*)\)", label):
        for argument in re.split(r", (?=\w+=)", arguments):
            key, _, value = argument.partition("=")
            if key:
                found[f"{part}.{key}"] = value.strip("'\"").replace("_", " ")
    found.pop(strength_key(found) or "", None)
    return found


def remark(settings: Sequence[Setting]) -> str:
    """Which strengths are shown and what the bars rest on, for a caption."""
    shown = names(settings)
    strengths = ", ".join(dict.fromkeys(shown[setting.label] for setting in settings))
    return f"Shown: {strengths}. {rests_on(settings)}"


def rests_on(settings: Sequence[Setting]) -> str:
    """The number of training seeds, and what an interval therefore covers, in a sentence."""
    counts = {len(setting.runs) for setting in settings}
    if counts == {1}:
        return "One training seed: bars cover items, not training noise."
    if 1 in counts:
        return f"One to {max(counts)} training seeds; of one, bars cover items, not training noise."
    return f"Means over {_range(counts)} training seeds; bars cover seeds and items."


def _range(counts: set[int]) -> str:
    return f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"


def measured(setting: Setting, split: str, metric: str, step: int | None = None) -> Interval:
    """Mean of a measured quantity with its 95 % interval over training seeds and items; NaN where it was not evaluated."""
    table = setting.values(split, metric, step)
    return seeds.interval(table.to_numpy()) if table.size else Interval(float("nan"))


def change(setting: Setting, split: str, metric: str, step: int | None = None, scale: float = 1.0) -> Interval:
    """Mean over seeds and items of the value at ``step`` less that of the reference, paired, times ``scale``.

    Raises:
        MissingEvidence: it was not evaluated before and after.
    """
    after, before = setting.values(split, metric, step), setting.values(split, metric, 0)
    if not after.size or not before.size:
        raise MissingEvidence(f"{metric} of {setting.label} on {split} before and after training", LLM_COMMAND)
    (block,) = seeds.aligned([after, before])
    return seeds.interval(scale * block, of=seeds.difference)


def _reward(setting: Setting) -> float:
    return float(setting.items("held_out_prompts", "reward").mean())

"""The runs of a report as a reader knows them: method, strength, labels, seed; and which of them share the meaning of their axes."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from analysis.evidence import FULL, STRENGTHS, passes_of, settings, strength_of, support_of
from analysis.quantities import IMPORTED
from analysis.records import Run

# What gives KL, reward and log-probs of a record their meaning: prompts, lengths, reference policy, reward. Objectives, labels, seeds,
# steps and learning rates may differ on one plot.
_AXES = {
    "llm": ("model", "data", "reward", "sft", "units"),
    "llm_evaluation": (
        "reference",
        "reference_weights",
        "prompts",
        "prompt_ids",
        "reward",
        "completion_tokens",
        "data",
        "sft",
        "units",
    ),
    IMPORTED: ("units", "axes"),
}

MANY_PASSES = 1.01  # over the reference samples: beyond one, they repeat

_VALUE = r"\s*=\s*[^,()]+(?:,\s*)?"
_STRENGTH = re.compile(rf"\b(?:{'|'.join(STRENGTHS)}){_VALUE}")
_WEIGHT = re.compile(rf"\bweight{_VALUE}(?!.*\bweight\b)")  # of a sum of losses, the last


@dataclass(frozen=True)
class Shown:
    """One run and what tells it from the others."""

    run: Run
    several: bool = False  # whether the report has several variants of its objective
    apart: str = ""  # what of the training is other than in most runs on the same axes, such as "learning_rate = 1e-05"

    @property
    def id(self) -> str:
        """The record's name."""
        return self.run.id

    @cached_property
    def _objective(self) -> dict[str, Any]:
        found = self.run.config.get("objective")
        return found if isinstance(found, dict) else {}

    @cached_property
    def objective(self) -> str:
        """The objective's registry name; of runs without one, what was evaluated or from where it was imported."""
        config = self.run.config
        if "name" in self._objective:
            return str(self._objective["name"]) + (", cost" if self.run.kind == "llm_cost" else "")
        if self.run.kind == IMPORTED:
            return f"imported: {config.get('name', self.id)}"
        return str(config.get("evaluated") or config.get("experiment") or config.get("profile") or self.run.kind)

    @cached_property
    def variant(self) -> str:
        """The label without the strength: ``maxpo(beta=0.1, tokens='full')`` is ``maxpo(tokens='full')``."""
        label = self._label
        without, weights = _WEIGHT.subn("", label) if "+" in label else (label, 0)
        without = without if weights else _STRENGTH.sub("", label)
        return re.sub(r"\(\s*\)", "", re.sub(r",\s*\)", ")", without))

    @property
    def method(self) -> str:
        """What has a colour of its own: the objective, or its variant where the report has several, and another training apart."""
        return self._apart(self.variant if self.several else self.objective)

    @cached_property
    def label(self) -> str:
        """The method with its hyper-parameters, and what is special about its training."""
        return self._apart(self._label)

    @property
    def _label(self) -> str:
        return str(self._objective.get("label", self.objective))

    def _apart(self, words: str) -> str:
        return f"{words}, {self.apart}" if self.apart else words

    @cached_property
    def strength(self) -> float | None:
        """Beta, tau, or the weight of the last term of a sum; None where there is none."""
        found = self._objective.get("hyperparameters")
        value = strength_of(found) if isinstance(found, dict) else math.nan
        return value if math.isfinite(value) else None

    @property
    def is_training(self) -> bool:
        """Whether the record says what was trained on which labels, so that runs that differ in their seed can be told."""
        labels = self.run.config.get("labels")
        named = {"name", "label", "hyperparameters"} <= set(self._objective)
        return self.run.kind == "llm" and named and isinstance(labels, dict) and "name" in labels

    @cached_property
    def labels(self) -> str:
        """The kind of labels with their temperature; the pairs' support and the passes over reference samples where they are not usual."""
        found = self.run.config.get("labels")
        if not isinstance(found, dict):
            return ""
        temperature, support = found.get("temperature"), support_of(self.run.config)
        said = str(found.get("name", "")) + (f" (T = {temperature:g})" if isinstance(temperature, int | float) else "")
        said += "" if support == FULL else f", pairs of the nucleus {support}"
        passes = passes_of(self.run.config)
        return said if passes <= MANY_PASSES else f"{said}, reference samples seen {passes:g} times"

    @cached_property
    def temperature(self) -> float:
        """Of the labels; infinite where the record does not say."""
        found = self.run.config.get("labels")
        value = found.get("temperature") if isinstance(found, dict) else None
        return float(value) if isinstance(value, int | float) else math.inf

    @property
    def seed(self) -> int | None:
        """The training seed; records of later versions have a seed for each purpose, and name the training's in their configuration."""
        if isinstance(given := self.run.config.get("training_seed"), int):
            return given
        found = self.run.manifest["seeds"]
        return next((int(found[key]) for key in ("training", "online") if isinstance(found.get(key), int)), None)

    @cached_property
    def axes(self) -> str:
        """What KL and reward of this run mean, as canonical JSON: equal for runs that may share a plot."""
        keys = _AXES.get(self.run.kind, ())
        return json.dumps({key: self.run.config[key] for key in keys if key in self.run.config}, sort_keys=True)


def show(runs: Sequence[Run]) -> list[Shown]:
    """The runs in a stable order, each knowing whether its objective alone names its method, and how its training is another."""
    ordered = sorted(map(Shown, runs), key=lambda one: (one.run.kind, one.id, str(one.run.folder)))
    variants: dict[str, set[str]] = {}
    for one in ordered:
        if one.is_training:
            variants.setdefault(one.objective, set()).add(one.variant)
    apart: dict[Path, str] = {}
    for group in families([one for one in ordered if one.is_training]):
        apart |= _apart(group)
    return [
        Shown(one.run, one.is_training and len(variants[one.objective]) > 1, apart.get(one.run.folder, ""))
        for one in ordered
    ]


def _apart(group: Sequence[Shown]) -> dict[Path, str]:
    """By folder: where the configuration of a run's training is not the most frequent one, key by key; empty where it is."""
    flat = {one.run.folder: _flat(one.run.config.get("training", {})) for one in group}
    usual = {
        key: Counter(json.dumps(one.get(key)) for one in flat.values()).most_common(1)[0][0]
        for key in sorted({key for one in flat.values() for key in one})
    }
    return {
        folder: ", ".join(f"{key} = {one[key]}" for key in usual if key in one and json.dumps(one[key]) != usual[key])
        for folder, one in flat.items()
    }


def families(shown: Sequence[Shown]) -> list[list[Shown]]:
    """Runs by what their axes mean, the largest group first."""
    groups: dict[str, list[Shown]] = {}
    for one in shown:
        groups.setdefault(one.axes, []).append(one)
    return sorted(groups.values(), key=lambda group: (-len(group), group[0].id))


def by_setting(group: Sequence[Shown]) -> tuple[list[list[Shown]], list[Shown]]:
    """Trainings that differ in their seed alone, together; and those that a run written later takes the place of.

    Args:
        group: runs whose axes mean the same; those that are no training are left alone, one each.
    """
    of = {one.run.folder: one for one in group}
    trained = [one for one in group if one.is_training]
    trainings: dict[str, list[Run]] = {}
    for one in trained:
        trainings.setdefault(one.apart, []).append(one.run)
    made = [[of[run.folder] for run in one.runs] for runs in trainings.values() for one in settings(runs)]
    kept = {one.run.folder for members in made for one in members}
    replaced = [one for one in trained if one.run.folder not in kept]
    return made + [[one] for one in group if not one.is_training], replaced


def differences(groups: Sequence[Sequence[Shown]], most: int = 4) -> list[str]:
    """For each group what sets its axes apart from the first group's, such as ``reward.name = 'vader'``; of the first, its own values.

    Args:
        groups: as `families` returns them.
        most: differences to name for a group; the rest is counted.
    """
    flat = [_flat(json.loads(group[0].axes)) for group in groups]
    if len(flat) < 2:
        return ["" for _ in flat]
    differing = [
        key
        for key in sorted({key for one in flat for key in one})
        if len({json.dumps(one.get(key)) for one in flat}) > 1
    ]
    # A setting that older records do not have says less than one with another value.
    keys = sorted(differing, key=lambda key: any(key not in one for one in flat))
    said = []
    for index, one in enumerate(flat):
        named = keys if index == 0 else [key for key in keys if one.get(key) != flat[0].get(key)]
        words = [f"{key} = {one[key]!r}" if key in one else f"no {key}" for key in named[:most]]
        said.append(", ".join(words) + (f" and {len(named) - most} more" if len(named) > most else ""))
    return said


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {
            name: leaf
            for key, item in value.items()
            for name, leaf in _flat(item, f"{prefix}.{key}".lstrip(".")).items()
        }
    return {prefix: value}

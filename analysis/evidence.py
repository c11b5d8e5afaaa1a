"""Records by what they say: bandit experiments by name, language-model runs by objective, strength and labels.

Claims and figures ask here and never read files. Runs that differ in their training seed alone form one ``Setting``.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.recorded import recorded
from analysis.records import Run, find_runs
from analysis.statistics import on

NEAR_DETERMINISTIC = "near_deterministic"
NOISY = "noisy"
FULL = "full"  # support of the pairs: all that the reference samples
METHODS = ("dpo", "ipo", "maxpo")  # the three that the claims are about

STRENGTHS = ("beta", "tau")  # hyper-parameters that are a regularisation strength; see `strength_key`

SOLVED = ("converged", "diverges", "not_unique", "path")  # statuses that say something; "path": steps of training

BANDIT_COMMAND = "python -m toy_bandits run {name} --out out/bandits"
LLM_COMMAND = "python -m llm_runs run quick --out out/language_model"
COST_COMMAND = "python -m llm_runs cost quick --out out/language_model"

_MAXPO = "maxpo(beta={beta}, temperature='auto', tokens='{tokens}')"


def training_command(*objectives: str) -> str:
    """The command that adds trainings of ``objectives`` to the language-model records, everything else equal."""
    listed = ", ".join(f'\\"{one}\\"' for one in objectives)
    return f'{LLM_COMMAND} --set "objectives=[{listed}]"'


SECOND_STRENGTH = training_command("dpo(beta=0.5)", "ipo(tau=0.5)", _MAXPO.format(beta=0.5, tokens="full"))
WITH_FORWARD_KL = training_command("dpo(beta=0.1) + forward_kl(weight=0.1, tokens='full')")
SAMPLED_FORM = training_command(_MAXPO.format(beta=0.1, tokens="sampled"))

# What two language-model runs must share to be compared: everything but the objective, the labels and the training's seeds; stated
# units too.
_FAMILY_KEYS = ("model", "data", "reward", "sft", "sampling", "reference", "training", "evaluation", "units")

# What may differ between comparable runs all the same, because settings say it themselves.
_OF_SETTINGS = {"sampling": ("top_p",), "reference": ("samples",)}

_CONFIG = {"objective": ("name", "label", "hyperparameters"), "labels": ("name",)}


class MissingEvidence(ValueError):
    """The records that a claim or figure needs are not there; says which, and the command that makes them."""

    def __init__(self, what: str, command: str) -> None:
        self.what = what
        self.command = command
        super().__init__(f"no records of {what}; make them with: {command}")


@dataclass(frozen=True)
class Setting:
    """Language-model runs of one objective at one strength on one kind of labels: one run for each training seed."""

    objective: str  # registry name, e.g. "dpo" or "dpo+forward_kl"
    label: str  # with hyper-parameters, e.g. "dpo(beta=0.1)"
    strength: float  # beta, tau for ipo, or the weight of the term that is added to a pair loss
    hyperparameters: dict[str, Any]
    labels: str  # "near_deterministic" or "noisy"
    runs: tuple[Run, ...]
    temperature: float = math.nan  # of the labels: they are sigmoid(difference of rewards / temperature)
    certainty: float = math.nan  # mean probability of a pair's likelier label
    support: str = FULL  # of the pairs: "full", or the nucleus that they show, such as "top_p=0.5"
    passes: float = 1.0  # how often each reference sample is seen
    held_out: str = ""  # equal where the held-out prompts are the same ones, see `held_out_of`

    @property
    def variant(self) -> str:
        """The objective with every hyper-parameter but the strength."""
        strength = strength_key(self.hyperparameters)
        others = [f"{key}={value}" for key, value in self.hyperparameters.items() if key != strength]
        return f"{self.objective}({', '.join(sorted(others))})"

    @property
    def symbol(self) -> str:
        """The strength's letter, or name."""
        key = (strength_key(self.hyperparameters) or "beta").rpartition(".")[2]
        return {"beta": "β", "tau": "τ"}.get(key, key)

    @property
    def tokens(self) -> str | None:
        """The form of its forward-KL term, "full" or "sampled"; None where there is no such term."""
        return next(
            (str(value) for key, value in self.hyperparameters.items() if key.rpartition(".")[2] == "tokens"), None
        )

    @functools.cached_property
    def seeds(self) -> tuple[str, ...]:
        """The runs' seeds, "data/training"."""
        return tuple(seed_of(run) for run in self.runs)

    def values(self, split: str, metric: str, step: int | None = None) -> pd.DataFrame:
        """Values by training seed (rows) and item (columns) at ``step`` (default: the last at which this was evaluated).

        Only items that every seed has. Empty where there is none.

        Raises:
            ValueError: an item is there twice, or the seeds share fewer than half of the items.
        """
        if (split, metric, step) not in self._tables:
            self._tables[split, metric, step] = self._pivoted(split, metric, step)
        return self._tables[split, metric, step]

    @functools.cached_property
    def _tables(self) -> dict[tuple[str, str, int | None], pd.DataFrame]:
        return {}

    def _pivoted(self, split: str, metric: str, step: int | None) -> pd.DataFrame:
        columns = self._columns(split, metric, step)
        if all(column.empty for column in columns):
            return pd.DataFrame(dtype=float)
        if any(column.index.has_duplicates for column in columns):
            raise ValueError(f"{split}, {metric} of {self.label} has values of one item twice")
        shared = everything = columns[0].index
        for column in columns[1:]:
            if column.index is not shared or column.index is not everything:
                shared, everything = shared.intersection(column.index), everything.union(column.index)
        if 2 * len(shared) < len(everything):
            raise ValueError(
                f"the training seeds of {self.label} share {len(shared)} of {len(everything)} items of {split}, {metric}"
            )
        shared = shared if shared.is_monotonic_increasing else shared.sort_values()
        order = sorted(range(len(columns)), key=self.seeds.__getitem__)
        return pd.DataFrame(
            np.stack([on(columns[place], shared).to_numpy() for place in order]),
            index=pd.Index([self.seeds[place] for place in order], name="seed"),
            columns=shared,
            copy=False,
        )

    def _columns(self, split: str, metric: str, step: int | None) -> list[pd.Series]:
        """Values by item of every run, at ``step`` or the last at which any run was evaluated so; empty where one was not."""
        steps = self.steps_of(split, metric)
        if not steps:
            return [pd.Series(dtype=float)]
        at = steps[-1] if step is None else step
        return [recorded(run).at(split, metric, at) for run in self.runs]

    def steps_of(self, split: str, metric: str) -> list[int]:
        """Steps at which this was evaluated; 0 is the reference itself."""
        return sorted({step for run in self.runs for step in recorded(run).steps(split, metric)})

    @functools.cached_property
    def evaluations(self) -> pd.DataFrame:
        """step, split, metric, item, value: the mean over the training seeds of each item's value."""
        frames = [run.table("evaluations") for run in self.runs]
        if len(frames) == 1:
            return frames[0]
        return _average(frames, ["step", "split", "metric", "item"])

    @functools.cached_property
    def metrics(self) -> pd.DataFrame:
        """step, name, value: the mean over the training seeds."""
        frames = [run.table("metrics") for run in self.runs]
        if len(frames) == 1:
            return frames[0]
        return _average(frames, ["step", "name"])

    @property
    def steps(self) -> list[int]:
        """Steps at which anything was evaluated; 0 is the reference itself."""
        found = (recorded(run) for run in self.runs)
        return sorted({step for one in found for name in one.names for step in one.steps(*name)})

    @property
    def splits(self) -> list[str]:
        """Names of the evaluated splits."""
        return sorted({split for run in self.runs for split, _ in recorded(run).names})

    def items(self, split: str, metric: str, step: int | None = None) -> pd.Series:
        """Value by item at ``step`` (default: the last step at which this was evaluated); empty where there is none."""
        columns = [column for column in self._columns(split, metric, step) if len(column)]
        if len(columns) < 2:
            return columns[0] if columns else pd.Series(dtype=float)
        found = _average([column.to_frame("value").reset_index() for column in columns], ["item"])
        return found.set_index("item")["value"]


@dataclass(frozen=True)
class Evidence:
    """All runs found below some folders."""

    runs: tuple[Run, ...]
    skipped: tuple[str, ...] = ()

    @classmethod
    def load(cls, *folders: str | os.PathLike[str]) -> Evidence:
        """Read every run at or below the folders.

        Raises:
            RecordError: a folder does not exist.
        """
        runs: list[Run] = []
        skipped: list[str] = []
        for folder in folders:
            found, lines = find_runs(folder)
            runs += found
            skipped += lines
        return cls(tuple(runs), tuple(skipped))

    def bandit_run(self, experiment: str) -> Run:
        """The run of a bandit experiment; of several, the one written last.

        Raises:
            MissingEvidence: there is none.
        """
        matching = [run for run in self.runs if run.kind == "bandit" and _experiment(run) == experiment]
        if not matching:
            command = BANDIT_COMMAND.format(name=experiment)
            raise MissingEvidence(f"the bandit experiment {experiment!r}", command)
        return max(matching, key=lambda run: (str(run.manifest.get("times", {}).get("written")), str(run.folder)))

    def bandit(self, experiment: str) -> pd.DataFrame:
        """Table ``results`` of a bandit experiment: one row per solved problem.

        Raises:
            MissingEvidence: there is no such run.
            ValueError: a problem was not solved, so that its row proves nothing.
        """
        frame = self.bandit_run(experiment).table("results")
        if "status" in frame:
            unsolved = ~frame["status"].isin(SOLVED)
            if unsolved.any():
                what = ", ".join(sorted(frame.loc[unsolved, "status"].astype(str).unique()))
                raise ValueError(f"{int(unsolved.sum())} of {len(frame)} problems of {experiment} have status {what}")
        return frame

    @functools.cached_property
    def _malformed(self) -> dict[Path, str]:
        """Language-model runs whose config does not say what was trained on what: folder and reason."""
        found = {}
        for run in self.runs:
            if run.kind == "llm":
                for key, needed in _CONFIG.items():
                    value = run.config.get(key)
                    if not isinstance(value, dict) or not set(needed) <= set(value):
                        found[run.folder] = f"its config has no {key} with {', '.join(needed)}"
        return found

    @functools.cached_property
    def language_model_runs(self) -> tuple[Run, ...]:
        """Every language-model run whose config says what was trained on what."""
        return tuple(run for run in self.runs if run.kind == "llm" and run.folder not in self._malformed)

    @functools.cached_property
    def _families(self) -> list[list[Run]]:
        """Language-model runs that may be compared with each other, the largest group first."""
        groups: dict[str, list[Run]] = {}
        for run in self.language_model_runs:
            shared = {key: _shared(run.config, key) for key in _FAMILY_KEYS if key in run.config}
            shared["seeds"] = data_seeds(run.config)  # another seed makes another reference and another reward
            groups.setdefault(json.dumps(shared, sort_keys=True), []).append(run)
        return sorted(groups.values(), key=lambda group: (-len(group), str(group[0].folder)))

    @functools.cached_property
    def _held_out(self) -> str:
        """The held-out prompts that most runs were measured on, of those with the fewest passes."""
        counts: Counter[str] = Counter()
        for one in self.settings:
            if one.passes <= self.fewest_passes:
                counts[one.held_out] += len(one.runs)
        return max(counts, key=lambda key: (counts[key], key), default="")

    @functools.cached_property
    def settings(self) -> list[Setting]:
        """The language-model settings of the largest group of comparable runs, in a stable order."""
        return settings(self._families[0]) if self._families else []

    @functools.cached_property
    def fewest_passes(self) -> float:
        """The fewest passes over reference samples of any setting: once, unless all of these runs repeat them."""
        return max(1.0, min((one.passes for one in self.settings), default=1.0))

    @property
    def left_out(self) -> list[str]:
        """One line for each language-model run, or group of them, that cannot be compared with the group in use."""
        return (
            [f"left out {folder}: {reason}" for folder, reason in self._malformed.items()]
            + [
                f"left out {len(group)} language-model run(s) that differ in model, data or training, such as {group[0].folder}"
                for group in self._families[1:]
            ]
            + [
                f"left out {len(one.runs)} run(s) of {one.label}, measured on other held-out prompts than most: {one.runs[0].folder}"
                for one in self.settings
                if one.passes <= self.fewest_passes and one.held_out != self._held_out
            ]
        )

    def language_model(
        self,
        objective: str | None = None,
        labels: str | None = None,
        support: str | None = FULL,
        repeated: bool = False,
    ) -> list[Setting]:
        """Settings of one objective (by name), one kind of labels and one support of the pairs, by rising strength; None is any.

        Settings that saw their reference samples more often than others did are left out, unless ``repeated``; so are those that were
        measured on other held-out prompts than most, since comparisons are paired by prompt.

        Raises:
            MissingEvidence: there is none.
        """
        found = [
            one
            for one in self.settings
            if objective in (None, one.objective)
            and labels in (None, one.labels)
            and support in (None, one.support)
            and (repeated or (one.passes <= self.fewest_passes and one.held_out == self._held_out))
        ]
        if not found:
            what = (
                "language-model runs"
                + (f" of {objective}" if objective else "")
                + (f" on {labels} labels" if labels else "")
            )
            what += f" with {support} support" if support not in (None, FULL) else ""
            raise MissingEvidence(what, LLM_COMMAND)
        return found

    def method(self, objective: str, labels: str, support: str = FULL) -> list[Setting]:
        """Settings of one objective that differ in strength alone, by rising strength: what methods are compared by.

        Of several variants (other hyper-parameters) the one run at the most strengths is taken, then the one with the most runs,
        then the one run first, so that no method is given more tries than the others for having more options.

        Raises:
            MissingEvidence: there is none.
        """
        variants: dict[str, list[Setting]] = {}
        for setting in self.language_model(objective, labels, support):
            variants.setdefault(setting.variant, []).append(setting)
        return max(variants.values(), key=lambda found: (len(found), sum(len(one.runs) for one in found), _age(found)))

    def costs(self) -> list[Run]:
        """Runs that measure time and memory per step.

        Raises:
            MissingEvidence: there is none.
        """
        found = [run for run in self.runs if run.kind == "llm_cost"]
        if not found:
            raise MissingEvidence("time and memory per step", COST_COMMAND)
        return found


def settings(runs: Iterable[Run]) -> list[Setting]:
    """Runs grouped by everything but the seed, in a stable order; of two runs with the same seed the one written last counts."""
    groups: dict[tuple[object, ...], dict[str, Run]] = {}
    for run in sorted(runs, key=_written):
        config = run.config
        said = config["objective"]["label"], config["labels"]["name"]
        key = (*said, support_of(config), passes_of(config), held_out_of(config))
        groups.setdefault(key, {})[seed_of(run)] = run
    made = [_setting([by_seed[seed] for seed in sorted(by_seed)]) for by_seed in groups.values()]
    return sorted(
        made,
        key=lambda one: (one.labels, one.support, one.passes, one.objective, one.strength, one.label, one.held_out),
    )


def seed_of(run: Run) -> str:
    """The seeds of a run's data and of its training, such as "0/2"."""
    return f"{run.config.get('seed', 0)}/{run.config.get('training_seed', run.seeds.get('training', 0))}"


def support_of(config: Mapping[str, Any]) -> str:
    """The support of a run's pairs: "full", or the nucleus of the reference that they were drawn from, such as "top_p=0.5"."""
    sampling = config.get("sampling")
    share = sampling.get("top_p", 1.0) if isinstance(sampling, Mapping) else 1.0
    return FULL if share >= 1 else f"top_p={share:g}"


def passes_of(config: Mapping[str, Any]) -> float:
    """How often training sees each reference sample, where its objective uses them; 1 where the config does not say."""
    reference, training = (_mapping(config.get(key)) for key in ("reference", "training"))
    if not training or not reference.get("samples"):
        return 1.0
    used = training.get("steps", 0) * training.get("reference_batch_size", training.get("batch_size", 0))
    return float(used / reference["samples"]) or 1.0


def held_out_of(config: Mapping[str, Any]) -> str:
    """What the held-out prompts of a run follow from: where it is the same for two runs, item i is the same prompt in both.

    Prompts are dealt out one after the other: those of the pairs, those of the reference samples, then the held-out ones. Another number of
    the first two, or another seed of the splits, makes others of the last. Of one's own pairs the held-out part is set apart by itself.
    """
    data, reference = (_mapping(config.get(key)) for key in ("data", "reference"))
    dealt = None if data.get("preferences") else [data.get("prompts"), reference.get("samples")]
    return json.dumps([data_seeds(config)["splits"], dealt])


def data_seeds(config: Mapping[str, Any]) -> dict[str, Any]:
    """The seeds of all that trainings share: which texts are for what, fine-tuning of the reference, sampling from it."""
    own = _mapping(config.get("seeds"))
    return {
        purpose: config.get("seed") if own.get(purpose) is None else own[purpose]
        for purpose in ("splits", "fine_tuning", "sampling")
    }


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _shared(config: Mapping[str, Any], key: str) -> Any:
    value = config[key]
    if not isinstance(value, Mapping):
        return value
    return {name: one for name, one in value.items() if name not in _OF_SETTINGS.get(key, ())}


def strength_key(hyperparameters: Mapping[str, Any]) -> str | None:
    """Which hyper-parameter is the strength of regularisation: what `Objective.with_strength` sets.

    Of a pair loss it is beta or tau. Of a sum, whose hyper-parameters are "dpo.beta", "forward_kl.weight" and so on, it is the last weight.
    """
    weights = [key for key in hyperparameters if key.endswith(".weight")]
    return (
        weights[-1] if weights else next((key for key in hyperparameters if key.rpartition(".")[2] in STRENGTHS), None)
    )


def strength_of(hyperparameters: Mapping[str, Any]) -> float:
    """The value of the strength of regularisation (`strength_key`); NaN where there is none."""
    key = strength_key(hyperparameters)
    return float("nan") if key is None else float(hyperparameters[key])


def seeded(found: Mapping[str, Sequence[Setting]]) -> dict[str, list[Setting]]:
    """Of each method the settings with as many training seeds as the best-seeded setting of every method has.

    A difference between methods is paired by seed, so one setting of one seed would reduce all to that seed. Where every setting has
    the same seeds, this keeps them all; where only one strength of each has three seeds, that one.
    """
    fewest = min(max(len(one.seeds) for one in settings) for settings in found.values())
    return {method: [one for one in settings if len(one.seeds) >= fewest] for method, settings in found.items()}


def comparable(
    evidence: Evidence, labels: str, methods: Iterable[str] = METHODS, support: str = FULL
) -> dict[str, Setting]:
    """One setting for each method, matched on reward.

    Rule: the target is the smallest of the methods' best mean rewards on held-out prompts; of each method the
    strength is taken whose mean reward is nearest to the target. Equal rewards are thus compared where they exist. Of each method only
    the settings with the most training seeds that all have are looked at (`seeded`).
    """
    tried = seeded({method: evidence.method(method, labels, support) for method in methods})
    rewards = {
        method: [(one, float(one.items("held_out_prompts", "reward").mean())) for one in found]
        for method, found in tried.items()
    }
    best = [np.nanmax([reward for _, reward in found] or [np.nan]) for found in rewards.values()]
    target = min(best)
    return {
        method: min(found, key=lambda pair: abs(pair[1] - target) if np.isfinite(pair[1]) else np.inf)[0]
        for method, found in rewards.items()
    }


def _age(found: list[Setting]) -> float:
    """Larger for settings whose first run was written earlier."""
    return -min(_written(run) for one in found for run in one.runs)


def _written(run: Run) -> float:
    return datetime.fromisoformat(run.manifest["times"]["written"]).timestamp()


def _average(frames: list[pd.DataFrame], keys: list[str]) -> pd.DataFrame:
    """Mean of ``value`` over the frames by ``keys``; NaN in one of them stays NaN and is not left out."""
    groups = pd.concat(frames).groupby(keys, sort=True)["value"]
    return groups.mean().where(groups.count() == groups.size()).reset_index()


def _experiment(run: Run) -> str:
    return str(run.config.get("experiment", Path(run.folder).name))


def _setting(runs: list[Run]) -> Setting:
    objective = runs[0].config["objective"]
    labels = runs[0].config["labels"]
    hyperparameters = dict(objective["hyperparameters"])
    return Setting(
        objective=objective["name"],
        label=objective["label"],
        strength=strength_of(hyperparameters),
        hyperparameters=hyperparameters,
        labels=labels["name"],
        runs=tuple(runs),
        temperature=_number(labels.get("temperature")),
        certainty=_number(labels.get("mean_max_probability")),
        support=support_of(runs[0].config),
        passes=passes_of(runs[0].config),
        held_out=held_out_of(runs[0].config),
    )


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan

"""The sweep file: which runs, and where they run."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import objectives
from llm_runs.config import RunConfig, find, read, shipped
from llm_runs.strict import Checked, ConfigError, build, number, read_yaml

_GRID = {
    "objectives": "objectives",
    "training_seeds": "seeds",
    "name": "name",
}  # keys of a configuration, and the sweep's own
_OWN = ("objectives", "seeds")  # of them, those that a data setting may have instead of the whole sweep's
_RESERVED = ("sweep", "shared")  # folders beside those of the data settings
SHIPPED = "configs/sweeps"


@dataclass(frozen=True)
class ObjectiveConfig(Checked):
    """An objective with strengths of its own."""

    objective: str = ""
    strengths: tuple[float, ...] = ()  # none: as written


@dataclass(frozen=True)
class SlurmConfig(Checked):
    """What each job asks of Slurm; left out, the cluster's default counts."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: int = number(240, above=0)  # minutes; a job that needs more is queued again and goes on
    gpus: int = number(0, at_least=0)
    cpus: int | None = number(None, above=0)
    memory: float | None = number(None, above=0)  # GB
    setup: tuple[str, ...] = ()  # shell commands before the job, such as "module load cuda"
    options: dict[str, str] = field(default_factory=dict)  # further options of sbatch, without the dashes
    notice: int = number(90, above=0)  # seconds from the warning to the end of a job's time
    requeues: int = number(50, at_least=0)  # how often a job may run out of time before it counts as failed


@dataclass(frozen=True)
class _OwnGrid(Checked):
    """What a data setting may have of its own."""

    objectives: tuple[Any, ...] | None = None
    seeds: tuple[int, ...] | None = number(None, at_least=0)

    @property
    def given(self) -> dict[str, Any]:
        """Those that are."""
        return {key: value for key, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class SweepConfig(Checked):
    """A grid of runs over one configuration. Values of the configuration count where the sweep says nothing."""

    name: str = "sweep"
    config: str = ""  # a configuration: a YAML file, or the name of a shipped one
    set: dict[str, Any] = field(default_factory=dict)  # changes to it for all runs: key.key: value
    objectives: tuple[Any, ...] | None = None  # each text, or {objective: ..., strengths: [...]}
    strengths: tuple[float, ...] | None = None  # of each objective's own parameter of strength (beta, tau, ...)
    seeds: tuple[int, ...] | None = number(None, at_least=0)  # of labels and training
    # Data settings: name: {key.key: value}; `objectives` and `seeds` in one are in place of those above.
    data: dict[str, Any] = field(default_factory=lambda: {"main": {}})
    jobs: int | None = number(None, above=0)  # at a time; None: one a GPU, or one, or as many as Slurm lets
    runs_per_job: int | None = number(None, above=0)  # None: on Slurm one, else enough to make starting cheap
    slurm: SlurmConfig = field(default_factory=SlurmConfig)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a sweep file, or a shipped one by name.

        Raises ConfigError: no such file, not YAML, unknown keys, an empty grid, two runs of the same identity, or values that
            the configuration does not take.
        """
        source = find(path, SHIPPED)
        values = read_yaml(source)
        values.setdefault("name", source.stem)
        beside = source.parent / str(values.get("config"))
        if os.path.isfile(beside):  # noqa: PTH113 - Path.is_file raises for a name that is too long
            values["config"] = str(beside)
        try:
            sweep: Self = build(cls, values, "")
            if not sweep.config:
                raise ConfigError(f"config is missing: a configuration file, or one of: {', '.join(shipped())}")
            sweep.configs  # noqa: B018 - every run is checked before the first starts
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from error
        return sweep

    @property
    def configs(self) -> dict[str, RunConfig]:
        """The configuration of every data setting, with all objectives and seeds of the sweep."""
        if not self.data:
            raise ConfigError("the grid is empty: data has no settings; leave it out for the configuration's own")
        found: dict[str, RunConfig] = {}
        values, source = read(self.config), find(self.config)  # once: reading takes longer than all else
        for name, changes in self.data.items():
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=+-]*", name) or name in _RESERVED:
                raise ConfigError(
                    f"data.{name}: this names a folder: letters, digits and . _ = + -, and not {' or '.join(_RESERVED)}"
                )
            own = {key: changes[key] for key in _OWN if isinstance(changes, Mapping) and key in changes}
            others = {key: value for key, value in changes.items() if key not in own} if own else changes
            overrides = [*_flat(self.set, "set"), *_flat(others, f"data.{name}")]
            for key, _ in overrides:
                if key in _GRID:
                    raise ConfigError(f"data.{name}: {key} is for the whole sweep: give {_GRID[key]} at the top level")
            grid = replace(self, **build(_OwnGrid, own, f"data.{name}").given)
            base = RunConfig.of(values, overrides, source)
            changed: list[tuple[str, Any]] = [("name", f"{self.name}/{name}")]
            changed.append(("objectives", list(grid._labels(base))))
            changed.append(("training_seeds", grid._seeds(base)))
            config = RunConfig.of(values, [*overrides, *changed], source)
            for other, earlier in found.items():
                if earlier.to_dict() | {"name": ""} == config.to_dict() | {"name": ""}:
                    raise ConfigError(f"data.{other} and data.{name} are the same runs: take one of them away")
            found[name] = config
        return found

    def _seeds(self, base: RunConfig) -> list[int]:
        seeds = base.training_seeds if self.seeds is None else self.seeds
        if not seeds:
            raise ConfigError("the grid is empty: seeds is an empty list")
        if double := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
            raise ConfigError(f"two runs of the same identity: seeds names {double[0]} twice")
        return list(seeds)

    def _labels(self, base: RunConfig) -> Iterator[str]:
        """The objectives at their strengths, each once."""
        given = base.objectives if self.objectives is None else self.objectives
        if not given:
            raise ConfigError("the grid is empty: objectives is an empty list")
        if self.strengths is not None and not self.strengths:
            raise ConfigError("the grid is empty: strengths is an empty list; leave it out for those that are written")
        seen: dict[str, str] = {}
        for place, entry in enumerate(given):
            where = f"objectives[{place}]"
            if isinstance(entry, Mapping):
                entry = build(ObjectiveConfig, entry, where)
                text, strengths = entry.objective, entry.strengths or (None,)
            elif isinstance(entry, str):
                text, strengths = entry, self.strengths or (None,)
            else:
                raise ConfigError(f"{where} must be text, or objective with strengths, not {entry!r}")
            for strength in strengths:
                try:
                    objective = objectives.parse(text)
                    label = (objective if strength is None else objective.with_strength(strength)).label
                except objectives.ObjectiveError as error:
                    raise ConfigError(f"{where}: {error}") from error
                source = where if strength is None else f"{where} at strength {strength:g}"
                if label in seen:
                    raise ConfigError(f"two runs of the same identity: {seen[label]} and {source} are both {label}")
                seen[label] = source
                yield label


def _flat(changes: Any, place: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested keys as dotted ones."""
    if changes is not None and not isinstance(changes, Mapping):
        raise ConfigError(f"{place} must be keys and values, not {changes!r}")
    for key, value in (changes or {}).items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, place, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value

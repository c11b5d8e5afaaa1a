"""What a frontier figure is made of: one record per world and objective, outer loop or training path, so that work can be continued."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

import objectives
from analysis.records import is_complete, read_run, write_run
from toy_bandits import loops
from toy_bandits.frontiers import points
from toy_bandits.worlds import World

SWEEP, PATH, LOOP, OPTIMUM = "sweep", "path", "loop", "optimum"


@dataclass(frozen=True)
class Piece:
    """One record to be made.

    Attributes:
        world: where.
        kind: `SWEEP`, `PATH`, `LOOP` or `OPTIMUM`.
        name: of the objective, loop or measure.
        settings: what the table depends on besides the world.
        make: makes the table.
    """

    world: World
    kind: str
    name: str
    settings: dict[str, Any]
    make: Callable[[], pd.DataFrame]

    @property
    def config(self) -> dict[str, Any]:
        """The record's config."""
        world = {"world": self.world.id, "world_settings": dict(self.world.settings)}
        return {"frontier": self.kind, "name": self.name, **self.settings, **world}

    def folder(self, out: Path) -> Path:
        """Where its record lies: OUT/WORLD/KIND/NAME."""
        return out / slug(self.world.id) / self.kind / slug(self.name)

    def done(self, out: Path) -> bool:
        """Whether its record is there, whole, and of these settings."""
        return is_complete(self.folder(out), self.config)

    def write(self, out: Path) -> None:
        """Make and record it. Raises BanditError or ObjectiveError where the world cannot give what it needs."""
        write_run(
            self.folder(out),
            kind="bandit",
            id=f"bandit/frontier/{self.world.id}/{self.kind}/{self.name}",
            config=self.config,
            seeds={"sampling": self.settings.get("seed", 0)},
            tables={"results": self.make()},
        )

    def read(self, out: Path) -> pd.DataFrame:
        """Its table, with ``kind`` and ``name`` in front."""
        frame = read_run(self.folder(out)).table("results")
        frame.insert(0, "kind", self.kind)
        frame.insert(1, "name", self.name)
        return frame


def slug(text: str) -> str:
    """The text as the name of a folder."""
    return re.sub(r"[^A-Za-z0-9_.+=]+", "-", text).strip("-")


def pieces(
    world: World, names: Sequence[str], per_decade: int, *, with_loops: bool = False, with_paths: bool = False
) -> list[Piece]:
    """All pieces of a world: the bound's curves, the objectives ``names`` (labels as `objectives.parse` reads them), loops and paths.

    Raises:
        ObjectiveError: a name that no objective has.
    """
    found = [
        Piece(world, OPTIMUM, measure, {"strengths": points.OPTIMUM_STRENGTHS}, _optima(world, measure))
        for measure in ("expected_reward", "win_rate")
    ]
    for name in names:
        objective = objectives.parse(name)
        about: dict[str, Any] = {
            "objective": objective.label,
            "strength": objective.strength and objective.strength.text,
        }
        settings = {**about, "per_decade": per_decade}
        found.append(Piece(world, SWEEP, name, settings, _sweep(world, objective, per_decade)))
        if with_paths:
            settings = {**about, "steps": points.PATH_STEPS}
            found.append(Piece(world, PATH, name, settings, _path(world, objective)))
    if with_loops:
        for kind in loops.LOOPS.values():
            loop = kind()
            if world.references is not None or not kind.needs_references:
                found.append(Piece(world, LOOP, loop.name, loop.config(), _loop(world, loop)))
    return found


def _optima(world: World, measure: str) -> Callable[[], pd.DataFrame]:
    return lambda: points.optima(world, measure)


def _sweep(world: World, objective: objectives.Objective, per_decade: int) -> Callable[[], pd.DataFrame]:
    return lambda: points.sweep(world, objective, per_decade)


def _path(world: World, objective: objectives.Objective) -> Callable[[], pd.DataFrame]:
    return lambda: points.along_path(world, objective)


def _loop(world: World, loop: loops.Loop) -> Callable[[], pd.DataFrame]:
    return lambda: points.along_loop(world, loop)

"""Measuring an objective, one record per diagnostic, so that what is finished is not done again."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

import objectives
import toy_bandits
from analysis.records import fingerprint, is_complete, read_run, write_run
from objectives import Objective
from objectives.registry import specs
from toy_bandits import diagnostics, frontiers, worlds
from toy_bandits.diagnostics import DIAGNOSTICS, Diagnostic, Score
from toy_bandits.errors import BanditError

PROBES = "probes"
"""The folder of the records, one per objective and diagnostic."""
FRONTIER = "frontier"
FRONTIER_WORLDS = ("bradley_terry/1", "partial_support/4")
PER_DECADE = 4


@dataclass(frozen=True)
class Profile:
    """What was measured of one objective.

    Attributes:
        objective: with its hyper-parameters.
        tables: the rows of each diagnostic's probe, by id; those without a score for want of data are missing.
        scores: by diagnostic's id.
        frontier: rows of `toy_bandits.frontiers.sweep` in the worlds `FRONTIER_WORLDS`, with a column ``world``; empty where there is none.
    """

    objective: Objective
    tables: dict[str, pd.DataFrame]
    scores: dict[str, Score]
    frontier: pd.DataFrame

    @property
    def results(self) -> pd.DataFrame:
        """All probes' rows, with columns ``objective`` and ``diagnostic``."""
        label = self.objective.label
        return pd.concat(
            [frame.assign(objective=label, diagnostic=name) for name, frame in self.tables.items()] or [pd.DataFrame()],
            ignore_index=True,
        )

    @property
    def rows(self) -> pd.DataFrame:
        """One row per diagnostic: objective, diagnostic, title, and the fields of `Score` (its value as ``score``)."""
        return pd.DataFrame(
            [
                {"objective": self.objective.label, "diagnostic": name, "title": DIAGNOSTICS[name].title}
                | {"score" if key == "value" else key: of for key, of in asdict(score).items()}
                for name, score in self.scores.items()
            ]
        )


def profile(
    objective: Objective,
    out: Path,
    only: Iterable[str] = (),
    *,
    again: bool = False,
    step: Callable[[str], object] = lambda name: None,
) -> Profile:
    """Measure an objective, taking finished records of the same objective, settings and code from ``out``.

    Args:
        objective: with its hyper-parameters.
        out: the folder; records go to ``out/probes/LABEL/DIAGNOSTIC``.
        only: ids of diagnostics; default: all.
        again: make finished records anew.
        step: called with the name of each part when it is done, for a progress bar.

    Raises:
        BanditError: an unknown diagnostic, or a loss that breaks its contract, named with world, objective and cell.
        ObjectiveError: the same.
        RecordError: a record cannot be written.
    """
    chosen = [diagnostics.get(name) for name in only] or list(DIAGNOSTICS.values())
    tables: dict[str, pd.DataFrame] = {}
    scores: dict[str, Score] = {}
    for diagnostic in chosen:
        frame, scores[diagnostic.id] = _measured(diagnostic, objective, out, again)
        if frame is not None:
            tables[diagnostic.id] = frame
        step(diagnostic.id)
    frontier = _frontier(objective, out, again) if tables else pd.DataFrame()
    step(FRONTIER)
    return Profile(objective, tables, scores, frontier)


def done(objective: Objective, out: Path, name: str) -> bool:
    """Whether the record of a diagnostic, or of the `FRONTIER`, is there, whole, and of this objective and code."""
    return is_complete(folder(objective, out, name), _config(objective, name))


def make(objective: Objective, out: Path, name: str) -> None:
    """Make the record of a diagnostic, or of the `FRONTIER`, if the objective can have one."""
    if name != FRONTIER:
        _measured(diagnostics.get(name), objective, out, again=True)
    elif any(not diagnostics.refusal(diagnostic, objective) for diagnostic in DIAGNOSTICS.values()):
        _frontier(objective, out, again=True)


def folder(objective: Objective, out: Path, name: str) -> Path:
    """Where the record lies."""
    return out / PROBES / slug(objective.label) / name


def steps(only: Iterable[str] = ()) -> int:
    """How many times `profile` calls ``step``."""
    return (len(list(only)) or len(DIAGNOSTICS)) + 1


def slug(label: str) -> str:
    """A label as the name of a folder: ``dpo(beta=0.1)+forward_kl(weight=0.1)`` as ``dpo-beta-0.1-forward_kl-weight-0.1``."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", label).strip("-.")


def _config(objective: Objective, name: str) -> dict[str, Any]:
    """What the record of a diagnostic, or of the `FRONTIER`, depends on."""
    what = {"frontier": FRONTIER_WORLDS, "per_decade": PER_DECADE} if name == FRONTIER else {"diagnostic": name}
    return {**what, **identity(objective)}


def _measured(
    diagnostic: Diagnostic, objective: Objective, out: Path, again: bool
) -> tuple[pd.DataFrame | None, Score]:
    if not again and done(objective, out, diagnostic.id):
        kept = read_run(folder(objective, out, diagnostic.id))
        return kept.table("results"), _score(kept.table("score"))
    frame, score = diagnostics.measure(diagnostic, objective)
    if frame is not None:
        _write(objective, out, diagnostic.id, {"results": frame, "score": pd.DataFrame([asdict(score)])})
    return frame, score


def _score(frame: pd.DataFrame) -> Score:
    """The score that a table of one row holds."""
    return Score(**{str(name): of for name, of in frame.iloc[0].to_dict().items()})


def _frontier(objective: Objective, out: Path, again: bool) -> pd.DataFrame:
    if not again and done(objective, out, FRONTIER):
        return read_run(folder(objective, out, FRONTIER)).table("results")
    frames = []
    for world_id in FRONTIER_WORLDS:
        frame = frontiers.sweep(worlds.get(world_id), objective, PER_DECADE)
        frames.append(frame.assign(world=world_id))
    made = pd.concat(frames, ignore_index=True)
    _write(objective, out, FRONTIER, {"results": made})
    return made


def _write(objective: Objective, out: Path, name: str, tables: dict[str, pd.DataFrame]) -> None:
    record = "bandit/profile/frontier" if name == FRONTIER else f"bandit/diagnostic/{name}"
    config = _config(objective, name)
    write_run(folder(objective, out, name), kind="bandit", id=record, config=config, seeds={"data": 0}, tables=tables)


def identity(objective: Objective) -> dict[str, Any]:
    """The objective, its settings, and the code behind both: a loss that was edited is measured anew."""
    return {
        "objective": objective.label,
        "hyperparameters": objective.hyperparameters,
        "code": {"suite": _suite(), **{part.name: _source(part.name) for part in objective.parts}},
    }


@functools.cache
def _suite() -> str:
    """Fingerprint of losses, solver, worlds and diagnostics."""
    roots = [Path(package.__file__ or "").parent for package in (objectives, toy_bandits)]
    users = {Path(__file__).parent, Path(__file__).parent.parent / "leaderboard"}  # measure nothing by themselves
    files = sorted(
        file
        for root in roots
        for kind in ("*.py", "*.yaml")
        for file in root.rglob(kind)
        if users.isdisjoint(file.parents)
    )
    return fingerprint([fingerprint(file) for file in files])


def _source(name: str) -> str:
    """Fingerprint of the file that an objective comes from; of a third party's, this is what notices an edit."""
    try:
        file = inspect.getsourcefile(specs()[name].factory)
    except TypeError as error:
        raise BanditError(f"{name}: its source cannot be found ({error})") from error
    return fingerprint(Path(file)) if file and Path(file).exists() else "none"

"""Finding worlds: those that come with the package, and those of a file."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from objectives import yaml_text
from objectives.domains import unknown_name
from objectives.yaml_text import YamlError
from toy_bandits.errors import BanditError
from toy_bandits.worlds.cells import Cells
from toy_bandits.worlds.world import World, build

FAMILIES = (
    "three_actions",
    "bradley_terry",
    "determinism",
    "partial_support",
    "intransitive",
    "label_noise",
    "finite_labels",
    "finite_reference",
    "neglected_best",
    "many_actions",
    "shared_features",
    "sequences",
    "several_references",
)
"""In the order of the documentation; each is a file of `data`."""


class Family:
    """The worlds of one file: what they probe, and the cells of each, not yet built."""

    def __init__(self, where: str, content: Any) -> None:
        head = Cells.of(where, content).only("family", "probes", "facts", "tags", "defaults", "worlds")
        self.name = head.text("family")
        self.probes = head.text("probes")
        self.facts = head.texts("facts")
        self.tags = head.texts("tags")
        if not self.facts:
            raise head.error("facts", "name the facts that the worlds rest on, such as [F5]")
        self._where = where
        self._defaults = Cells.of(f"{where}: defaults", head.values.get("defaults", {})).values
        worlds = head.raw("worlds")
        if not isinstance(worlds, Mapping) or not worlds:
            raise head.error("worlds", "expected a mapping of numbers to worlds")
        for number in worlds:
            if isinstance(number, bool) or not isinstance(number, int) or number < 0:
                raise head.error("worlds", f"worlds are numbered 0, 1, 2, ...; got {number!r}")
        self._worlds = {f"{self.name}/{number}": content for number, content in sorted(worlds.items())}

    @property
    def ids(self) -> list[str]:
        """``name/0``, ``name/1``, ..."""
        return list(self._worlds)

    def build(self, world_id: str) -> World:
        """One of its worlds. Raises BanditError naming the world and the cell that is wrong."""
        cells = self._cells(world_id)
        described = {
            "summary": cells.text("summary"),
            "probes": self.probes,
            "facts": self.facts,
            "tags": self.tags_of(world_id),
        }
        own = {key: value for key, value in cells.values.items() if key not in ("summary", "tags")}
        return build(world_id, described, Cells(cells.where, {**self._defaults, **own}))

    def tags_of(self, world_id: str) -> tuple[str, ...]:
        """The family's name and tags, then its own."""
        return tuple(dict.fromkeys((self.name, *self.tags, *self._cells(world_id).texts("tags"))))

    def _cells(self, world_id: str) -> Cells:
        return Cells.of(f"{self._where}: world {world_id}", self._worlds[world_id])


def names(tag: str | None = None) -> list[str]:
    """The ids of all worlds that come with the package, in the order of the documentation; or of those with a tag."""
    return [
        world_id
        for family in map(_family, FAMILIES)
        for world_id in family.ids
        if tag is None or tag in family.tags_of(world_id)
    ]


@cache
def get(world_id: str) -> World:
    """A world by its id. Raises BanditError where there is none, with the nearest ids."""
    if world_id not in names():
        raise BanditError(unknown_name("world", world_id, names()))
    return _family(world_id.split("/")[0]).build(world_id)


@cache
def _family(name: str) -> Family:
    text = (resources.files("toy_bandits.worlds") / "data" / f"{name}.yaml").read_text(encoding="utf-8")
    return Family(f"{name}.yaml", yaml_text.read(text))


def load_file(path: str | Path) -> dict[str, World]:
    """All worlds of a YAML file, by id; the file is made as those in ``toy_bandits/worlds/data``.

    Raises:
        BanditError: the file cannot be read, or a world in it is not one; the message names file, world and cell.
    """
    try:
        content = yaml_text.read(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YamlError) as error:
        raise BanditError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    family = Family(str(path), content)
    return {world_id: family.build(world_id) for world_id in family.ids}

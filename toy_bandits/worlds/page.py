"""The documentation of the worlds, made from them."""

from __future__ import annotations

from itertools import groupby

import yaml

from toy_bandits.worlds.registry import get, names
from toy_bandits.worlds.world import CELLS, World

HEAD = """# Worlds

<!-- Made by `python -m toy_bandits worlds --page docs/worlds.md`; edit the files in toy_bandits/worlds/data instead. -->

A world is data: a reference policy, preferences, the pairs that are compared, known rewards, and where it has them features, token
sequences, several references or finite data. It has a stable id, a failure that it probes, and the facts that say what should happen
(F: exact facts, C: claims). Two worlds of one family differ in one setting where that is possible, so that a curve over them means
something.

```python
from toy_bandits import solve, worlds
import objectives

world = worlds.get("partial_support/0")
solution = solve(world.problem, objectives.get("maxpo", beta=0.1))
```

`world.problem` is what an objective sees; where data are finite, it is a batch with one problem per data set. `world.truth` is the
same world without label noise and with infinite data, by which a policy is judged. `python -m toy_bandits worlds` lists all,
`python -m toy_bandits worlds partial_support/0` describes one with its numbers, `worlds.load_file("mine.yaml")` reads your own.
"""

EXAMPLE = """\
family: mine
probes: Does a noisy favourite hold its lead?
facts: [F2, F6]
tags: [own]
defaults:
  rewards: falling
  preferences: {bradley_terry: {scale: 0.5}}
worlds:
  0:
    summary: four actions, the last of them never compared
    reference: [0.1, 0.2, 0.3, 0.4]
    pairs: [[0, 1], [1, 2], [0, 2]]
    tags: [off_support]
  1:
    summary: six actions in three contexts, 50 labels per context, 20 data sets
    actions: 6
    contexts: 3
    reference: {normal: {scale: 1.0, seed: 1}}
    connected: true
    label_noise: 0.1
    labels: {count: 50, data_sets: 20, seed: 2}
"""

CELLS_HEAD = f"""## Worlds of your own

```yaml
{EXAMPLE}```

A YAML file with one family: `family`, `probes`, `facts`, `tags`, `defaults` (cells that its worlds share) and `worlds`, which maps
numbers to worlds. A world has a `summary`, `tags`, and these cells; `reference`, `rewards` and `preferences` are needed, the others
not. A rule that draws numbers has a `seed`, so that the same file always makes the same world. Actions and contexts count from 0.

| cell | what it may be |
|---|---|
"""


def page() -> str:
    """docs/worlds.md."""
    worlds = [get(world_id) for world_id in names()]
    parts = [HEAD, _overview(worlds)]
    for name, family in groupby(worlds, lambda world: world.family):
        parts.append(_family(name, list(family)))
    escaped = {key: text.replace("|", "\\|") for key, text in CELLS.items()}
    cells = "\n".join(f"| `{key}` | {text} |" for key, text in escaped.items())
    return "\n".join([*parts, CELLS_HEAD + cells + "\n"])


def _overview(worlds: list[World]) -> str:
    rows = ["| family | worlds | probes | rests on |", "|---|---|---|---|"]
    for name, group in groupby(worlds, lambda world: world.family):
        family = list(group)
        rows.append(f"| [{name}](#{name}) | {len(family)} | {family[0].probes} | {family[0].fact} |")
    return "\n".join(rows) + "\n"


def _family(name: str, family: list[World]) -> str:
    first = family[0]
    rows = ["| id | what it is | size | tags |", "|---|---|---|---|"]
    for world in family:
        own = ", ".join(tag for tag in world.tags if tag != name)
        rows.append(f"| `{world.id}` | {world.summary} | {size(world)} | {own} |")
    return f"## {name}\n\n{first.probes} Rests on {first.fact}.\n\n" + "\n".join(rows) + "\n"


def size(world: World) -> str:
    """Such as ``64 data sets, 2 contexts, 8 actions``."""
    *data_sets, contexts, actions = world.problem.reference.shape
    counts = [(n, "data sets") for n in data_sets] + ([(contexts, "contexts")] if contexts > 1 else [])
    return ", ".join(f"{n:,} {what}" for n, what in [*counts, (actions, "actions")])


def describe(world: World) -> str:
    """One world in full: what it probes, its settings, and its numbers where they are few."""
    lines = [
        str(world),
        f"probes    {world.probes}",
        f"rests on  {world.fact}",
        f"tags      {', '.join(world.tags)}",
        f"size      {size(world)}",
        "settings",
        *(f"  {line}" for line in _settings(world).splitlines()),
    ]
    truth = world.truth
    if truth.reference.numel() <= 12 and truth.rewards is not None:
        lines.append("numbers (each context: reference, rewards, preferences, pairs)")
        for x in range(truth.reference.shape[0]):
            tables = (truth.reference[x], truth.rewards[x], truth.preferences[x], truth.pairs[x])
            lines += [f"  {_row(row)}" for table in tables for row in ([table] if table.ndim == 1 else table)]
    return "\n".join(lines)


def _settings(world: World) -> str:
    """The cells as they would stand in a file."""
    return yaml.safe_dump(dict(world.settings), default_flow_style=None, sort_keys=False, width=110)


def _row(values: object) -> str:
    return "  ".join(f"{value:8.4g}" for value in values.tolist())  # type: ignore[attr-defined]

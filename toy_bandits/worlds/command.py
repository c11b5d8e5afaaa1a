"""``python -m toy_bandits worlds``: list the worlds, describe one, check a file of your own."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from analysis.records import write_unlocked
from toy_bandits.worlds import page
from toy_bandits.worlds.registry import get, load_file, names
from toy_bandits.worlds.world import World

EXAMPLES = """examples:
  python -m toy_bandits worlds                            list all worlds
  python -m toy_bandits worlds --tag deterministic        those with a tag
  python -m toy_bandits worlds partial_support/0          one in full: what it probes, settings, numbers
  python -m toy_bandits worlds --file mine.yaml           check a file and list its worlds
  python -m toy_bandits worlds --file mine.yaml mine/0    describe one of them
  python -m toy_bandits worlds --page docs/worlds.md      write the documentation
"""


def add_parser(commands: Any) -> None:
    """Add the subcommand to an argparse set of commands; its handler is in ``handler``."""
    parser = commands.add_parser(
        "worlds",
        help="list the worlds, describe one, check a file of your own",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("ids", nargs="*", metavar="ID", help="worlds to describe; default: list all")
    parser.add_argument("--tag", help="only worlds with this tag")
    parser.add_argument("--file", type=Path, help="a YAML file of worlds, instead of those that come with the package")
    parser.add_argument("--page", type=Path, help="write docs/worlds.md to this path")
    parser.set_defaults(handler=run)


def run(chosen: argparse.Namespace) -> int:
    """Run the subcommand; 0 on success. Raises BanditError on bad input."""
    if chosen.page is not None:
        write_unlocked(chosen.page, page.page().encode())
        return 0
    own = None if chosen.file is None else load_file(chosen.file)
    if chosen.ids:
        print("\n\n".join(page.describe(find(world_id, own)) for world_id in chosen.ids))
        return 0
    listed = list(own.values()) if own is not None else [get(world_id) for world_id in names(chosen.tag)]
    listed = [world for world in listed if chosen.tag is None or chosen.tag in world.tags]
    if not listed:
        print(f"no world has the tag {chosen.tag!r}")
        return 0
    width = max(len(world.id) for world in listed)
    for world in listed:
        print(f"{world.id:<{width}}  {world.summary}  [{page.size(world)}]")
    return 0


def find(world_id: str, own: dict[str, World] | None) -> World:
    """The world of that id in a file's worlds, or else in the package's. Raises BanditError where there is none."""
    return own[world_id] if own is not None and world_id in own else get(world_id)

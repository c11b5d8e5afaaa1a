"""Settings from YAML text, strictly: plain values only, no key twice, and no more of them than a person would write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml

from objectives.errors import ObjectiveError

MOST_CHARACTERS = 5_000_000
MOST_VALUES = 200_000  # with every alias written out: a few lines of aliases of aliases can stand for billions
DEEPEST = 60  # mappings and lists inside each other


class YamlError(ObjectiveError):
    """Text that is not YAML, or not settings; one line, with the place."""


class _Loader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error: the second would silently replace the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]
        for i, key in enumerate(keys):
            if key in keys[:i]:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r:.60} stands twice", node.start_mark)
        return dict(super().construct_mapping(node, deep))


def read(text: str) -> Any:
    """The values of one YAML document.

    Raises:
        YamlError: not YAML, a key twice, tags that would make objects, too large, nested too deeply, or a value that is none (a date that
            no calendar has).
    """
    return _bounded(text, lambda loader, node: loader.construct_document(node))


def check(text: str) -> None:
    """What `read` raises for text that is not YAML, too large or nested too deeply; tags are not looked at, and nothing is made.

    For files that somebody else's reader will read.
    """
    _bounded(text, lambda loader, node: None)


def _bounded(text: str, use: Callable[[_Loader, yaml.Node], Any]) -> Any:
    if len(text) > MOST_CHARACTERS:
        raise YamlError(f"{len(text):,} characters, more than the {MOST_CHARACTERS:,} of any settings")
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _size(node, {}, 0)
            return use(loader, node)
        finally:
            loader.dispose()  # type: ignore[no-untyped-call]
    except RecursionError:
        raise YamlError("nested too deeply") from None
    except (yaml.YAMLError, ValueError, OverflowError, TypeError) as error:
        if isinstance(error, YamlError):
            raise
        raise YamlError(" ".join(str(error).split())[:400]) from error


def _size(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """How many values a node stands for. Raises YamlError beyond the bounds, and where a node contains itself."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if depth > DEEPEST:
        raise YamlError(f"line {node.start_mark.line + 1}: nested more than {DEEPEST} deep")
    if id(node) in known:
        if not known[id(node)]:
            raise YamlError(f"line {node.start_mark.line + 1}: contains itself")
        return known[id(node)]
    known[id(node)] = 0
    parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
    size = 1 + sum(_size(part, known, depth + 1) for part in parts)
    if size > MOST_VALUES:
        raise YamlError(
            f"line {node.start_mark.line + 1}: stands for more than {MOST_VALUES:,} values; are there aliases of aliases?"
        )
    known[id(node)] = size
    return size

"""Worlds to measure objectives in: data with a stable id, a probe and a fact behind each. `small` makes families of worlds in code."""

from toy_bandits.worlds.registry import FAMILIES, get, load_file, names
from toy_bandits.worlds.small import CHAIN_REFERENCE, ONE_PAIR_REFERENCE, bradley_terry, chain, log_odds, one_pair
from toy_bandits.worlds.world import CELLS, World

__all__ = [
    "CELLS",
    "CHAIN_REFERENCE",
    "FAMILIES",
    "ONE_PAIR_REFERENCE",
    "World",
    "bradley_terry",
    "chain",
    "get",
    "load_file",
    "log_odds",
    "names",
    "one_pair",
]

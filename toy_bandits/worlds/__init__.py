"""Worlds to measure objectives in."""

from toy_bandits.worlds.small import CHAIN_REFERENCE, ONE_PAIR_REFERENCE, bradley_terry, chain, log_odds, one_pair

__all__ = ["CHAIN_REFERENCE", "ONE_PAIR_REFERENCE", "bradley_terry", "chain", "log_odds", "one_pair"]

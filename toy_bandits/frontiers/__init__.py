"""Reward and win rate against KL over the whole range of an objective's strength, below the RLHF optimum that bounds them all."""

from toy_bandits.frontiers.points import along_loop, along_path, optima, sweep

__all__ = ["along_loop", "along_path", "optima", "sweep"]

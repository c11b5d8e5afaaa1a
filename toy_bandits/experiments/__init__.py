"""Experiments: settings in, one tidy table of exactly solved problems out. `EXPERIMENTS` names them all."""

from toy_bandits.experiments.ablation import Ablation
from toy_bandits.experiments.base import Experiment
from toy_bandits.experiments.determinism import Determinism
from toy_bandits.experiments.finite_data import FiniteData
from toy_bandits.experiments.frontier import Frontier
from toy_bandits.experiments.partial_support import PartialSupport
from toy_bandits.experiments.reference_samples import ReferenceSamples
from toy_bandits.experiments.strength import Strength

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        Determinism(),
        Strength(),
        PartialSupport(),
        FiniteData(),
        Frontier(),
        Ablation(),
        ReferenceSamples(),
    )
}

__all__ = ["EXPERIMENTS", "Experiment"]

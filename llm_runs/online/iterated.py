"""iterative_dpo and accelerated: rounds of an offline objective on labelled pairs of the policy's own completions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

import objectives
from llm_runs import training
from llm_runs.config import OnlineConfig
from llm_runs.examples import TokenPair
from llm_runs.online.rounds import Bench, Loop, mean_reward, metric_frame, metric_rows, put_weights, weights


class Iterated(Loop):
    """A round samples pairs from the policy pi_t, labels them by the reward, and trains from pi_t on.

    The reference of a round is pi_t ("moving") or the first policy ("fixed"). State: the weights.
    """

    name = "iterative_dpo"

    @classmethod
    def settings(cls, config: OnlineConfig) -> dict[str, Any]:
        """Objective and its hyper-parameters, steps, reference."""
        iterated = config.iterated
        own = objectives.parse(iterated.objective)
        return own.hyperparameters | {
            "objective": own.label,
            "rounds": config.rounds,
            "prompts": config.prompts,
            "samples": config.samples,
            "steps": iterated.steps,
            "reference": iterated.reference,
        }

    def advance(self, number: int, folder: Path) -> pd.DataFrame:
        """Sample, label, train."""
        bench, iterated = self.bench, self.bench.online.iterated
        self.extrapolate()
        samples = bench.rollouts(self.model, bench.prompts(number), bench.online.samples, number)
        pairs = bench.labelled(samples, f"{self.name}, round {number}", number)
        metrics = self.train(pairs, number, folder)
        # A round's steps follow the last one's.
        metrics["step"] += (number - 1) * iterated.steps
        head = metric_rows((number - 1) * iterated.steps, {"round": number, "reward": mean_reward(samples)})
        return pd.concat([metric_frame(head), metrics], ignore_index=True)

    def extrapolate(self) -> None:
        """What happens to the weights before a round: nothing."""

    def train(self, pairs: list[TokenPair], number: int, folder: Path) -> pd.DataFrame:
        """One training from the policy on; the reference is in memory only while it scores the pairs."""
        bench, iterated = self.bench, self.bench.online.iterated
        moving = self.moving
        objective = objectives.parse(iterated.objective)
        config = replace(bench.config.training, steps=iterated.steps, schedule="constant", warmup_steps=0)
        stored = None
        if "ref_logps" in objective.needs_on_pairs:
            stored = bench.reference_logps(self.model if moving else bench.experiment.load_reference(), pairs)
        metrics = training.train(
            self.model,
            objective,
            pairs,
            reference=stored,
            config=config,
            seed=bench.seed("training", number) % 2**32,
            out=folder,
            tokenizer=bench.experiment.tokenizer,
            watch=bench.config.guards,
            starts_as_reference=moving,
        )
        training.clear_checkpoints(folder)
        return metrics

    @property
    def moving(self) -> bool:
        """Whether the round's reference is the policy that it starts from."""
        return self.bench.online.iterated.reference == "moving"

    def tensors(self) -> dict[str, Tensor]:
        """The weights."""
        return {f"own/{name}": value for name, value in weights(self.model).items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what `tensors` gave."""
        put_weights(self.model, _part(tensors, "own/"))


class Accelerated(Iterated):
    """Accelerated preference optimisation (arXiv 2410.06293, algorithm 1): pi^_{t+1} is trained from pi_t with pi_t as reference, and
    pi_{t+1} has the weights of pi^_{t+1} + alpha (pi^_{t+1} - pi^_t), in float32. alpha = 0 is iterative_dpo.

    What is evaluated is pi^, the round's own policy. State: the weights of the last two, whose difference the next round extrapolates.
    """

    name = "accelerated"

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self.before = weights(self.model)

    @classmethod
    def settings(cls, config: OnlineConfig) -> dict[str, Any]:
        """Those of iterative_dpo with a moving reference, and alpha."""
        return super().settings(config) | {"reference": "moving", "extrapolation": config.iterated.extrapolation}

    @property
    def moving(self) -> bool:
        """Always: the method's reference is the extrapolated policy."""
        return True

    def extrapolate(self) -> None:
        """From pi^_t and pi^_{t-1} to pi_t."""
        own = weights(self.model)
        put_weights(self.model, extrapolated(own, self.before, self.bench.online.iterated.extrapolation))
        self.before = own

    def tensors(self) -> dict[str, Tensor]:
        """The weights of the last two rounds' own policies."""
        return super().tensors() | {f"before/{name}": value for name, value in self.before.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what `tensors` gave."""
        super().load(tensors)
        self.before = _part(tensors, "before/")


def extrapolated(own: Mapping[str, Tensor], before: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """own + alpha (own - before), parameter by parameter."""
    return {name: value + alpha * (value - before[name]) for name, value in own.items()}


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

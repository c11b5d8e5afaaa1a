"""What the online methods share: the steps that a round is made of, and the form of a loop over rounds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

from llm_runs import labelling, memory, reference
from llm_runs.config import OnlineConfig
from llm_runs.errors import InputError
from llm_runs.evaluation import Evaluator
from llm_runs.examples import Prompt, TokenPair, TokenSample
from llm_runs.experiment import Experiment
from llm_runs.measuring import measure
from llm_runs.reference import ReferenceLogps
from llm_runs.rewards import Reward, score_samples
from llm_runs.sampling import derived_seed, sample


class Bench:
    """The steps of a round, on the prompts, the reward and the reference of an experiment.

    Raises InputError where there is no reward: with preferences of one's own nothing can score new completions.
    """

    def __init__(self, experiment: Experiment) -> None:
        if experiment.config.data.preferences is not None:
            raise InputError(
                "online methods score the policy's own completions, and data.preferences has no reward for these: leave "
                "data.preferences out, and name a reward (reward.name: tfidf, vader or classifier)"
            )
        self.experiment, self.config = experiment, experiment.config
        self.labels = experiment.label_sets[0]

    @property
    def online(self) -> OnlineConfig:
        """The configuration's section."""
        return self.config.online

    @property
    def reward(self) -> Reward:
        """What scores completions."""
        assert self.experiment.reward is not None
        return self.experiment.reward

    def seed(self, *purpose: object) -> int:
        """A seed for one purpose, the same for every method that asks alike."""
        return derived_seed(self.config.seed, "online", self.labels.seed, *purpose)

    def prompts(self, number: int) -> list[Prompt]:
        """The prompts of a round (1, 2, ...): those of the offline pairs in a fixed shuffled order, round after round, in a circle."""
        everything, count = self.experiment.prompts["pairs"], self.online.prompts
        order = np.random.default_rng(self.seed("prompts")).permutation(len(everything))
        return [everything[order[i % len(order)]] for i in range((number - 1) * count, number * count)]

    def rollouts(
        self, model: PreTrainedModel, prompts: Sequence[Prompt], count: int, *purpose: object
    ) -> list[TokenSample]:
        """`count` scored completions of each prompt, one prompt's after the other, from the exact distribution of `model`."""
        settings = self.config.sampling
        with memory.lower("sampling.batch_size", settings.batch_size):
            drawn = sample(
                model,
                self.experiment.tokenizer,
                [prompt for prompt in prompts for _ in range(count)],
                max_tokens=self.config.data.completion_tokens,
                seed=self.seed("rollouts", *purpose),
                batch_size=settings.batch_size,
                engine=settings.engine,
                description="sampling",
            )
        scored = score_samples(self.reward, drawn)
        self.experiment.check_reward(scored, f"completions of round {' '.join(map(str, purpose))}")
        return scored

    def labelled(self, samples: Sequence[TokenSample], where: str, *purpose: object) -> list[TokenPair]:
        """Neighbours as pairs, labelled by the reward at the temperature of the run's first labels.

        Raises InputError where no two neighbours differ.
        """
        pairs = labelling.pair_up(samples)
        if not pairs:
            raise InputError(f"{where}: every pair of completions is equal, so there is nothing to learn from")
        assert self.labels.temperature is not None
        return labelling.label(pairs, self.labels.temperature, self.seed("labels", *purpose))

    def reference_logps(self, model: PreTrainedModel, pairs: Sequence[TokenPair]) -> ReferenceLogps:
        """What `model` says of the pairs."""
        return reference.compute(model, self.experiment.tokenizer, pairs, (), self.config.reference)

    def evaluator(self) -> Evaluator:
        """Reward, KLs and win rate on the held-out prompts: the same, sampled with the same seed, as those of the offline trainings."""
        return Evaluator(
            self.experiment.tokenizer,
            self.experiment.load_reference,
            None,
            self.reward,
            prompts=self.experiment.prompts["evaluation"],
            reference_samples=self.experiment.samples("held_out_reference"),
            max_tokens=self.config.data.completion_tokens,
            config=self.config.evaluation,
            seed=derived_seed(self.config.seed, "evaluation"),
            second_reward=self.experiment.second_reward,
        )

    def evaluate(self, model: PreTrainedModel, number: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Evaluations and samples of a policy after a round."""
        with torch.random.fork_rng():
            return measure(self.evaluator(), model, number, self.config.evaluation)


class Loop(ABC):
    """A method that goes round by round. `model` is the policy; `tensors` is all that the next round depends on.

    Args:
        bench: shared steps.
    """

    name: ClassVar[str]

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.model: Any = bench.experiment.load_reference()

    @classmethod
    @abstractmethod
    def settings(cls, config: OnlineConfig) -> dict[str, Any]:
        """What this method uses of the section, by name: its hyper-parameters in the record."""

    @classmethod
    def rounds(cls, config: OnlineConfig) -> int:
        """How many rounds there are."""
        return config.rounds

    @abstractmethod
    def advance(self, number: int, folder: Path) -> pd.DataFrame:
        """Round `number` (1, 2, ...); returns metrics: step, name, value. `folder` is for checkpoints within the round."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The state after a round, on the CPU."""

    @abstractmethod
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what `tensors` gave."""


def metric_rows(step: int, values: Mapping[str, float]) -> list[tuple[int, str, float]]:
    """Rows of a table of metrics."""
    return [(step, name, float(value)) for name, value in values.items()]


def metric_frame(rows: Sequence[tuple[int, str, float]]) -> pd.DataFrame:
    """A table of metrics."""
    return pd.DataFrame(list(rows), columns=["step", "name", "value"])


def mean_reward(samples: Sequence[TokenSample]) -> float:
    """Of scored samples."""
    return float(np.mean([entry.reward for entry in samples]))


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Copies of all parameters in float32, on the CPU: the precision in which weights are extrapolated and kept."""
    return {name: p.detach().to("cpu", torch.float32, copy=True) for name, p in model.named_parameters()}


@torch.no_grad()
def put_weights(model: PreTrainedModel, values: Mapping[str, Tensor]) -> None:
    """The reverse of `weights`, in the model's own precision."""
    for name, parameter in model.named_parameters():
        parameter.copy_(values[name])

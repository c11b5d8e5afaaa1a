"""What runs share: three stages before training, each in a folder of its own that is named by what it depends on.

A stage's configuration is a run's with everything that the stage does not depend on set to a fixed value. Its checksum names the
folder, so runs whose stage is the same find the same folder, and a key that is new in the configuration keeps runs apart until it
is listed here. A later stage, and the folder of a data setting, link to what the earlier ones made.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from analysis.records import fingerprint
from llm_runs.config import (
    EvaluationConfig,
    OnlineConfig,
    ReferenceConfig,
    RewardConfig,
    RunConfig,
    SamplingConfig,
    TrainingConfig,
)


@dataclass(frozen=True)
class Stage:
    """A part of the pipeline that several runs may share.

    Attributes:
        name: as in the plan and in the folder's name.
        goal: of `pipeline.plan`.
        title: for people.
        makes: files and folders that later stages and runs link to.
        reduce: the run's configuration without what this stage does not depend on.
        skips: kinds of steps of that plan that are left to a later stage.
    """

    name: str
    goal: str
    title: str
    makes: tuple[str, ...]
    reduce: Callable[[RunConfig], RunConfig]
    skips: tuple[str, ...] = ()

    def config(self, config: RunConfig) -> RunConfig:
        """The stage's configuration in a run of `config`."""
        return replace(self.reduce(config), name=self.name)

    def folder(self, config: RunConfig) -> str:
        """The name of its folder: equal for runs that share it."""
        return f"{self.name}-{fingerprint(self.config(config).to_dict())[:10]}"


def _prepared(config: RunConfig) -> RunConfig:
    """All that comes before training depends on everything but training and how it is watched; labels and seeds may be added."""
    plain = RunConfig()
    return replace(
        config,
        objectives=plain.objectives,
        labels=plain.labels,
        training_seeds=plain.training_seeds,
        cost_steps=0,
        online=OnlineConfig(),
        training=TrainingConfig(reference_samples=config.training.reference_samples),
        evaluation=replace(config.evaluation, at=(), middle="all", likelihoods=plain.evaluation.likelihoods),
    )


def _samples(config: RunConfig) -> RunConfig:
    """Samples do not depend on how they are scored, nor on texts of another domain, nor on what is kept of the reference."""
    prepared, evaluation = _prepared(config), config.evaluation
    fitted = config.reward.name == "tfidf"  # to texts that are then not used for anything else
    return replace(
        prepared,
        reward=RewardConfig(name="tfidf" if fitted else "classifier"),
        data=replace(prepared.data, other_text="none", preferences_from_reference=False),
        training=TrainingConfig(),
        reference=ReferenceConfig(samples=config.reference.samples),
        evaluation=EvaluationConfig(
            prompts=evaluation.prompts,
            held_out_samples=evaluation.held_out_samples,
            held_out_pairs=evaluation.held_out_pairs,
            other_text_tokens=2,
        ),
    )


def _reference(config: RunConfig) -> RunConfig:
    """The reference depends on the model, on fine-tuning and its texts, and on one's own preferences where there are some."""
    sampled = _samples(config)
    return replace(
        sampled,
        data=replace(sampled.data, prompts=1, prompt_tokens=1, completion_tokens=1),
        sampling=SamplingConfig(),
        reference=ReferenceConfig(),
        evaluation=EvaluationConfig(other_text_tokens=2),
    )


STAGES = (
    Stage(
        "reference",
        "sft",
        "the model, its fine-tuning, and the data",
        ("model", "reference", "sft_losses.json", "data", "pairs"),
        _reference,
        skips=("reward",),
    ),
    Stage("samples", "sample", "completions of the reference", ("samples",), _samples, skips=("reward",)),
    Stage(
        "prepared",
        "before",
        "rewards, labels, and what is kept of the reference",
        ("reward.npz", "pairs", "reference_logps", "before"),
        _prepared,
    ),
)


def link(source: Path, target: Path) -> None:
    """Let `target` have what stages made in `source`, by relative links. What it has already stays."""
    for name in dict.fromkeys(name for stage in STAGES for name in stage.makes):
        if (source / name).exists() and not (target / name).exists():
            with suppress(FileExistsError):  # another job was faster
                (target / name).symlink_to(os.path.relpath(source / name, target))

"""A tuned model against its reference on prompts of one's own: no run and no training, one record.

OUT/samples/reference-*.jsonl   a completion of the reference for each prompt: for the forward KL and the win rate
OUT/reference/                  a record of the reference itself: what "before" is
OUT/<model>/                    a record of the model: step 0 is the reference, step 1 the model
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from analysis.records import fingerprint, is_complete, read_run, write_run
from llm_runs import assets, benchmarks, engines, guards, models, processes, rewards, sampling
from llm_runs.account import Step
from llm_runs.config import RunConfig
from llm_runs.data import prompts as prompt_data
from llm_runs.errors import InputError
from llm_runs.evaluation import Evaluator
from llm_runs.examples import Prompt
from llm_runs.measuring import measure, name_of
from llm_runs.reference import model_fingerprint
from llm_runs.rewards import Reward
from llm_runs.sampling import derived_seed

KIND = "llm_evaluation"
_BEFORE = "reference"


class Comparison:
    """The evaluation of one model against one reference.

    Args:
        model: folder, .gguf file or hub id.
        reference: the same, of the model that it was tuned from.
        prompts: file, folder or hub id with a field `prompt` of text or messages.
        out: folder; continued if it exists, and shared by any number of models with one reference.
        config: `model` (device, dtype, chat_template), `data.completion_tokens`, `data.reading`, `sampling.batch_size`, `evaluation`,
            `seed`.
        reward: "none", "vader", "classifier" (by `config.reward`), the .npz file of a run's reward, or any object with `score`.
    """

    def __init__(
        self, model: str, reference: str, prompts: str, out: Path, config: RunConfig, reward: str | Reward = "none"
    ) -> None:
        self.model, self.reference, self.source, self.out, self.config = model, reference, prompts, out, config
        self.reward = _reward(reward, config) if isinstance(reward, str) else reward
        self.reward_name = reward if isinstance(reward, str) else type(reward).__name__

    def plan(self) -> list[Step]:
        """The steps, each of which is found done when repeated."""
        return [
            Step("check models, prompts and benchmarks", "check", lambda: processes.in_turn(self._check)),
            Step("sample completions of the reference", "sample", self._sample),
            Step(f"evaluate the reference {self.reference}", "evaluate", self._evaluate_reference),
            Step(f"evaluate {self.model}", "evaluate", self._evaluate_model),
        ]

    @property
    def folder(self) -> Path:
        """Where the model's record is written."""
        name = name_of(self.model)
        return self.out / (f"{name}-model" if name in (_BEFORE, "samples") else name)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The reference's, with the chat template that the configuration names."""
        settings = self.config.model
        found = models.load_tokenizer(
            self._prepared(self.reference), settings.revision, trust=settings.trust_remote_code
        )
        return models.use_template(found, settings.template)

    @cached_property
    def prompts(self) -> list[Prompt]:
        """The prompts in token ids."""
        room = self.config.data.completion_tokens
        sources = (self.reference, self.model)
        context = min(
            models.source_context_length(self._prepared(each), trust=self.config.model.trust_remote_code)
            for each in sources
        )
        return prompt_data.read(
            self.source,
            self.tokenizer,
            context - room,
            self.config.data.reading,
            chat_template=self.config.model.chat_template,
        )

    def _prepared(self, source: str) -> str:
        return models.prepare(replace(self.config.model, name=source), self.out / "model")

    def _load(self, source: str) -> PreTrainedModel:
        settings = self.config.model
        device = models.select_device(settings)
        revision = settings.revision if source == self.reference else None
        return models.load_model(
            self._prepared(source), device, settings.dtype, revision, trust=settings.trust_remote_code
        )

    # -- the steps -------------------------------------------------------------------------------------------------

    def _check(self) -> str:
        trust = self.config.model.trust_remote_code
        guards.check_comparable(
            models.load_tokenizer(self._prepared(self.model), trust=trust),
            self.tokenizer,
            [models.source_settings(self._prepared(each), trust=trust)[0] for each in (self.model, self.reference)],
            self.model,
        )
        tasks = self.config.evaluation.benchmarks
        if set(tasks) & set(benchmarks.shipped()):
            assets.fetch(benchmarks.ASSET)
        benchmarks.check(tasks, self.config.evaluation.benchmark_include)
        engines.check(self.config.sampling.engine)
        return f"{len(self.prompts)} prompts"

    @cached_property
    def _weights(self) -> str:
        return model_fingerprint(self._load(self.reference))

    @property
    def _samples(self) -> Path:
        tokens = self.config.data.completion_tokens
        key = fingerprint([self._weights, [list(prompt) for prompt in self.prompts], tokens, self.config.seed])
        return self.out / "samples" / f"reference-{key[:12]}.jsonl"

    def _sample(self) -> str | None:
        if self._samples.is_file():
            return None
        drawn = sampling.sample_to_file(
            self._samples,
            self._load(self.reference),
            self.tokenizer,
            self.prompts,
            max_tokens=self.config.data.completion_tokens,
            seed=derived_seed(self.config.seed, "samples", "held_out_reference"),
            config=replace(self.config.sampling, temperature=1.0),
        )
        return f"{len(drawn)} samples"

    def _evaluate_reference(self) -> str | None:
        model = self._load(self.reference)
        return self._record(self.out / _BEFORE, model, self.reference, 0, {})

    def _evaluate_model(self) -> str | None:
        before = read_run(self.out / _BEFORE)
        model = self._load(self.model)
        tables = {name: before.table(name) for name in before.tables}
        return self._record(self.folder, model, self.model, 1, tables)

    def _record(
        self, folder: Path, model: PreTrainedModel, source: str, step: int, earlier: dict[str, pd.DataFrame]
    ) -> str | None:
        """Measure a model and write its record behind the `earlier` tables; None where it is there already."""
        settings = self._settings(model, source)
        if is_complete(folder, settings):
            return None
        evaluator = Evaluator(
            self.tokenizer,
            lambda: self._load(self.reference),
            None,
            self.reward,
            prompts=self.prompts,
            reference_samples=sampling.read_samples(self._samples),
            max_tokens=self.config.data.completion_tokens,
            config=self.config.evaluation,
            seed=derived_seed(self.config.seed, "evaluation"),
        )
        frame, texts = measure(evaluator, model, step, self.config.evaluation, self.config.evaluation.benchmarks)
        found = {"evaluations": frame, "samples": texts}
        if earlier:
            found = {name: pd.concat([earlier[name], table], ignore_index=True) for name, table in found.items()}
        processes.by_first(
            lambda: write_run(
                folder,
                kind=KIND,
                id=f"{self.config.name}/{folder.name}",
                config=settings,
                seeds={"sampling": self.config.seed},
                tables=found,
                data_fingerprint=fingerprint([list(prompt) for prompt in self.prompts]),
                device=str(model.device),
                extra={"samples": {"reference": sampling.provenance(self._samples)}},
            )
        )
        return str(folder)

    def _settings(self, model: PreTrainedModel, source: str) -> dict[str, Any]:
        return {
            "evaluated": source,
            "weights": model_fingerprint(model),
            "reference": self.reference,
            "reference_weights": self._weights,
            "reference_samples": fingerprint(self._samples),
            "prompts": self.source,
            "prompt_ids": fingerprint([list(prompt) for prompt in self.prompts]),
            "reward": self.reward_name,
            "completion_tokens": self.config.data.completion_tokens,
            "seed": self.config.seed,
            "model": asdict(self.config.model) | {"name": source},
            "evaluation": asdict(self.config.evaluation),
        }


def _reward(name: str, config: RunConfig) -> Reward | None:
    if name == "none":
        return None
    if name == "vader":
        return rewards.VaderReward()
    if name == "classifier":
        return rewards.ClassifierReward(config.reward, models.select_device(config.model))
    if name.endswith(".npz"):
        return rewards.TfidfReward.load(Path(name))
    raise InputError(f"--reward {name!r}: give none, vader, classifier, or the reward.npz of a run")

"""The configuration of a language-model run: frozen dataclasses, read strictly from YAML.

Every value is checked when a dataclass is made, whether it comes from a file, from `--set` or from Python. An unknown
key is an error that names the key, where it stands and the nearest valid names.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

import objectives
from llm_runs.strict import Checked as _Checked
from llm_runs.strict import ConfigError, build, plain, read_yaml
from llm_runs.strict import number as _number
from objectives import yaml_text
from objectives.yaml_text import YamlError


@dataclass(frozen=True)
class ModelConfig(_Checked):
    """Which language model, and on what it runs."""

    name: str = "smollm2-135m-instruct"  # pinned asset, local folder, .gguf file, hub id, or "tiny-random"
    revision: str | None = None  # of a hub id
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # of the weights; auto: float32, and bf16 autocast on CUDA
    chat_template: bool = False  # wrap plain prompts (and HH-RLHF transcripts) of preference data as messages
    template: str | None = None  # for messages: "dialogue", "chatml" or a Jinja file; None: the tokenizer's own
    trust_remote_code: bool = False  # run Python code that comes with the model


@dataclass(frozen=True)
class ReadingConfig(_Checked):
    """How your own preference data (`data.preferences`) are read. docs/data.md has the formats and an example of each."""

    format: Literal["auto", "pairs", "hh_rlhf", "ultrafeedback", "candidates", "unpaired", "shp"] = "auto"
    columns: dict[str, str] = field(default_factory=dict)  # a format's field: your column, e.g. {prompt: question}
    subset: str | None = None  # the configuration of a hub data set, or a folder in a folder
    split: str = "train"  # of a hub data set, a `datasets` folder, or a folder of data files
    revision: str | None = None  # of a hub data set
    held_out: str | None = None  # another source, with the held-out pairs; None: the same
    held_out_split: str | None = None  # its split; with both None, prompts are held out by their hash
    max_records: int | None = _number(None, above=0)  # only the first so many records of each split
    pairing: Literal["best_worst", "best_random", "all"] = "best_worst"  # of scored completions
    score: Literal["auto", "overall", "ratings"] = "auto"  # of UltraFeedback; auto: overall_score, where it is there
    min_score_ratio: float = _number(1.0, at_least=1)  # of SHP: leave out pairs whose scores are closer than that
    bad_records: Literal["error", "drop"] = "error"  # unreadable, empty or identical; dropped ones are counted by kind
    duplicates: Literal["keep", "drop", "error"] = "keep"  # the same prompt, chosen and rejected again
    overlong: Literal["error", "truncate", "drop"] = "error"  # beyond the limits below, or the model's context
    max_prompt_tokens: int | None = _number(None, above=0)
    max_completion_tokens: int | None = _number(None, above=0)
    prompt_keep: Literal["end", "start"] = "end"  # of a truncated prompt; completions keep their start


@dataclass(frozen=True)
class DataConfig(_Checked):
    """The texts, and how they are split. All splits are disjoint."""

    text: str = "imdb"  # "imdb", "synthetic", or JSONL with {"text": ..., "label": 0 or 1}
    other_text: str = "rotten_tomatoes"  # another domain: "rotten_tomatoes", "synthetic", "none", or JSONL
    preferences: str | None = None  # your own preferences instead of sampled ones: a file, a folder, or a hub id
    reading: ReadingConfig = field(default_factory=ReadingConfig)  # of these
    preferences_from_reference: bool = False  # your word that the reference sampled both completions of every pair
    held_out_fraction: float = _number(0.2, above=0, below=1)  # of your own pairs' prompts, kept for evaluation
    reward_texts: int = _number(20000, above=0)
    sft_texts: int = _number(2000, above=0)
    prompts: int = _number(384, above=0)  # from which preference pairs are sampled
    prompt_tokens: int = _number(16, above=0)  # a prompt is the first tokens of a text
    completion_tokens: int = _number(32, above=0)  # budget of a sampled completion


@dataclass(frozen=True)
class RewardConfig(_Checked):
    """The ground-truth reward that scores sampled completions."""

    name: Literal["tfidf", "vader", "classifier"] = "tfidf"
    second: Literal["none", "vader"] = "none"  # only evaluated, never optimised: shows over-optimisation of the first
    max_features: int = _number(50000, above=0)  # tfidf: size of the vocabulary
    regularisation: float = _number(10.0, above=0)  # tfidf: inverse strength C of the logistic regression
    model: str = (
        "lvwerra/distilbert-imdb"  # classifier: folder or hub id of a sequence classifier or reward model (safetensors)
    )
    label: str = (
        "POSITIVE"  # classifier: the label whose log-odds are the reward; a model with one output gives it as it is
    )
    batch_size: int = _number(64, above=0)  # classifier: texts per forward pass


@dataclass(frozen=True)
class SFTConfig(_Checked):
    """Supervised fine-tuning on the domain; its result is the reference policy. steps = 0 takes the model as it is."""

    steps: int = _number(60, at_least=0)
    batch_size: int = _number(24, above=0)
    sequence_tokens: int = _number(48, above=1)
    learning_rate: float = _number(5e-5, above=0)
    warmup_steps: int = _number(6, at_least=0)
    save_every: int = _number(20, at_least=0)
    micro_batch_size: int | None = _number(None, above=0)  # texts per forward pass; None: the whole batch
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size % (self.micro_batch_size or self.batch_size):
            raise ConfigError(
                f"SFTConfig.batch_size ({self.batch_size}) must be a multiple of micro_batch_size ({self.micro_batch_size})"
            )


@dataclass(frozen=True)
class SamplingConfig(_Checked):
    """Sampling of completions: from the reference in advance, and of the policy's rollouts in online runs."""

    temperature: float = _number(1.0, above=0)
    # Of the pairs alone: 1 draws them from the whole reference, less from its nucleus, the most probable next tokens that together
    # have this mass, so that pairs show a part of the support only. Samples that stand for the reference are always whole.
    top_p: float = _number(1.0, above=0, at_most=1)
    pairs_per_prompt: int = _number(1, above=0)  # from twice as many completions
    batch_size: int = _number(64, above=0)  # sequences at a time
    # The plain loop, transformers' continuous batching, vLLM; auto: on a GPU vLLM if installed, else continuous, on a CPU the loop.
    engine: Literal["transformers", "continuous", "vllm", "auto"] = "transformers"


@dataclass(frozen=True)
class LabelConfig(_Checked):
    """Labels are drawn with p(first preferred) = sigmoid((reward_1 - reward_2) / temperature)."""

    name: str = "near_deterministic"
    temperature: float = _number(0.01, above=0)


@dataclass(frozen=True)
class ReferenceConfig(_Checked):
    """Samples of the reference for the off-policy KL term, and what is stored of the reference's distributions."""

    samples: int = _number(384, above=0)  # fresh completions; steps * reference_batch_size should not exceed it
    top_k: int = _number(64, above=0)  # next-token probabilities stored per position, besides the tail's mass
    batch_size: int = _number(16, above=0)  # of the forward passes of the reference
    models: tuple[str, ...] = ()  # further references (mrpo's), named like model.name, of the same tokenizer


@dataclass(frozen=True)
class LoRAConfig(_Checked):
    """Low-rank adaptation instead of full fine-tuning."""

    rank: int = _number(16, above=0)
    alpha: float = _number(32.0, above=0)
    dropout: float = _number(0.0, at_least=0, below=1)
    targets: str = "all-linear"


@dataclass(frozen=True)
class TrainingConfig(_Checked):
    """Preference training. All objectives of a run share it, so that they see the same pairs in the same order."""

    steps: int = _number(24, above=0)
    batch_size: int = _number(16, above=0)  # pairs per step
    micro_batch_size: int | None = _number(None, above=0)  # pairs per forward pass; None: a process's whole share
    reference_batch_size: int = _number(16, above=0)  # reference samples per step, where the objective uses them
    pretraining_batch_size: int = _number(16, above=0)  # texts per step, where the objective uses them
    learning_rate: float = _number(2e-5, above=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = _number(2, at_least=0)
    weight_decay: float = _number(0.0, at_least=0)
    max_grad_norm: float = _number(1.0, above=0)
    log_every: int = _number(1, above=0)
    save_every: int = _number(0, at_least=0)  # a checkpoint to resume from; 0: none
    save_model: bool = False  # keep the trained model (safetensors), its tokenizer and a model card in the run's folder
    push_to_hub: bool = False  # upload that folder as <hub_model_id>-<training>
    hub_model_id: str | None = None  # user/name
    hub_private: bool = True
    report_to: tuple[str, ...] = ()  # where metrics are shown live: tensorboard, wandb, ...
    kl_limit: float | None = _number(10.0, above=0)  # stop beyond so many nats a token from the reference; None: never
    gradient_checkpointing: bool = False
    # Over the processes of a launch (docs/launching.md), fine-tuning too: whole copies (DDP), FSDP2, DeepSpeed ZeRO 2 or 3.
    sharding: Literal["none", "fsdp", "zero2", "zero3"] = "none"
    kernels: Literal["none", "compile", "liger"] = (
        "none"  # of the layers: compiled by torch, or Liger-Kernel's fused ones
    )
    share_prompt: Literal["auto", True, False] = (
        "auto"  # completions of one prompt in one row; auto: where the model can
    )
    logits_memory: int = _number(
        256, at_least=0
    )  # MiB of softmaxes kept for the backward pass; the rest is computed twice
    reference_samples: Literal["own", "pairs"] = (
        "own"  # "pairs": the pairs' completions, where the reference sampled them
    )
    reference: Literal["precomputed", "live"] = "precomputed"  # "live" only to measure what precomputing saves
    lora: LoRAConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.push_to_hub and not self.hub_model_id:
            raise ConfigError("TrainingConfig.push_to_hub needs hub_model_id, for example user/name")

    @property
    def decisive(self) -> dict[str, Any]:
        """What the trained weights and the metrics depend on: all but where results are kept, shown and sent."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in DELIVERY}


Action = Literal["stop", "warn", "ignore"]


@dataclass(frozen=True)
class GuardsConfig(_Checked):
    """What a run does when it meets something that makes its numbers worthless: stop, warn and go on, or ignore it.

    Where it stops or warns, the batch is saved; `python -m llm_runs batch FILE` shows it. docs/training.md has each guard.
    """

    not_finite: Literal["stop", "warn"] = "stop"  # NaN or infinity in loss or gradients; warn: the update is left out
    kl: Action = "stop"  # the policy beyond training.kl_limit of the reference
    start: Action = "stop"  # policy and reference differ before the first update
    collapse: Action = "warn"  # chosen and rejected completions both lose collapse_limit
    collapse_limit: float = _number(3.0, above=0)  # nats a token
    round_trip: Action = "warn"  # texts whose tokens do not give the text back
    constant_reward: Action = "stop"  # every completion has the same reward, so that labels are coin flips


# Keys of `training` that say where results go: they may change between calls on one folder.
DELIVERY = ("report_to", "push_to_hub", "hub_model_id", "hub_private")

# Sections and keys of a run that a single training's record leaves out: they say which trainings there are, or what is watched.
NOT_DECISIVE = ("objectives", "training_seeds", "cost_steps", "name", "online", "guards")


@dataclass(frozen=True)
class EvaluationConfig(_Checked):
    """What is measured before, during and after training."""

    at: tuple[int, ...] = _number((), at_least=0)  # steps besides the first (0) and the last
    middle: Literal["all", "samples"] = (
        "all"  # at those steps; "samples": only rewards, KLs and pairs, for their curves
    )
    likelihoods: int = _number(4, at_least=0)  # further steps, evenly spaced, at which only pairs are scored
    prompts: int = _number(64, above=0)  # held-out prompts, from which the policy samples
    held_out_samples: int = _number(64, above=0)  # reference samples on held-out prompts
    held_out_pairs: int = _number(64, above=0)
    training_pairs: int = _number(64, above=0)  # a fixed subset, for the overfitting gap
    other_texts: int = _number(64, above=0)
    other_text_tokens: int = _number(48, above=1)
    batch_size: int = _number(32, above=0)
    benchmarks: tuple[str, ...] = ()  # local tasks by name, or lm-eval tasks where a hub is reachable
    benchmark_limit: int | None = _number(None, above=0)  # items per task
    benchmark_include: str | None = None  # folder with further lm-eval task files


@dataclass(frozen=True)
class PolicyGradientConfig(_Checked):
    """rlhf_ppo and espo: several epochs of minibatches on the rollouts of a round."""

    beta: float = _number(0.1, at_least=0)  # strength of the KL penalty
    kl: Literal["reward", "loss"] = "reward"  # where the penalty stands: in each rollout's reward, or a term of its own
    estimate: Literal["exact", "k3"] = "exact"  # of the penalty in the loss
    baseline: Literal["group", "learned"] = "group"  # mean of the prompt's other rollouts, or a linear value function
    level: Literal["sequence", "token"] = "sequence"  # of the ratio
    clip: float = _number(0.2, above=0, below=1)  # rlhf_ppo
    delta: float = _number(0.25, above=0)  # espo: end the epochs where mean |ratio - 1| of a minibatch exceeds it
    epochs: int = _number(4, above=0)  # over the rollouts of a round; espo: at most
    minibatch: int = _number(32, above=0)  # rollouts per update
    learning_rate: float = _number(2e-5, above=0)


@dataclass(frozen=True)
class IteratedConfig(_Checked):
    """iterative_dpo and accelerated: each round trains on labelled pairs of the policy's own completions."""

    objective: str = "dpo(beta=0.1)"
    steps: int = _number(8, above=0)  # per round, at a constant rate; the rest as in `training`
    reference: Literal["moving", "fixed"] = "moving"  # iterative_dpo: the last round's policy, or the first
    extrapolation: float = _number(0.3, at_least=0, below=1)  # accelerated: alpha, in the weights


@dataclass(frozen=True)
class RejectionConfig(_Checked):
    """rso: accept candidates of the reference with probability exp((r - r_max)/beta), pair, label, train once as in `training`."""

    beta: float = _number(0.5, above=0)
    candidates: int = _number(16, above=1)  # completions of the reference per prompt
    accepted: int = _number(4, above=1)  # of them per prompt, even: neighbours are paired
    maximum: float | None = _number(None)  # r_max; None: of each prompt's candidates, as in the paper
    objective: str = "rso_hinge()"


@dataclass(frozen=True)
class BestOfNConfig(_Checked):
    """best_of_n: nothing is trained."""

    samples: int = _number(
        32, above=1
    )  # of each held-out prompt; the curve is over n = 1, 2, 4, ... up to half of them


OnlineMethod = Literal["rlhf_ppo", "espo", "rso", "iterative_dpo", "accelerated", "best_of_n"]


@dataclass(frozen=True)
class OnlineConfig(_Checked):
    """Runs that sample from the policy while they train, and their offline relatives. docs/online.md has the methods."""

    methods: tuple[OnlineMethod, ...] = typing.get_args(OnlineMethod)
    rounds: int = _number(6, above=0)  # of rlhf_ppo, espo, iterative_dpo and accelerated
    prompts: int = _number(32, above=0)  # per round, in turn from those of the pairs
    samples: int = _number(4, above=1)  # completions of each prompt in a round
    evaluate_every: int = _number(1, above=0)  # rounds; the last is always evaluated
    policy_gradient: PolicyGradientConfig = field(default_factory=PolicyGradientConfig)
    iterated: IteratedConfig = field(default_factory=IteratedConfig)
    rso: RejectionConfig = field(default_factory=RejectionConfig)
    best_of_n: BestOfNConfig = field(default_factory=BestOfNConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ConfigError("OnlineConfig.methods must name at least one method, none of them twice")
        for name, count in (("samples", self.samples), ("rso.accepted", self.rso.accepted)):
            if count % 2:
                raise ConfigError(f"OnlineConfig.{name} must be even, because neighbours make a pair; it is {count}")
        if self.rso.accepted > self.rso.candidates:
            raise ConfigError(
                f"OnlineConfig.rso.accepted ({self.rso.accepted}) exceeds rso.candidates ({self.rso.candidates})"
            )
        for name, text in (("rso", self.rso.objective), ("iterated", self.iterated.objective)):
            try:
                objective = objectives.parse(text)
            except objectives.ObjectiveError as error:
                raise ConfigError(f"OnlineConfig.{name}.objective: {error}") from error
            allowed = {"pairs", "ref_logps", "lengths", "token_logps", "log_collisions"}
            if missing := objective.needs_on_pairs - allowed:
                raise ConfigError(
                    f"OnlineConfig.{name}.objective: {objective.label} needs {', '.join(sorted(missing))}; a round has labelled pairs only"
                )
            if objective.needs_temperature:
                raise ConfigError(
                    f"OnlineConfig.{name}.objective: {objective.label}: give the temperature as a number, it would differ between rounds"
                )


@dataclass(frozen=True)
class SeedsConfig(_Checked):
    """A seed of its own for each purpose; None: `seed`, and for what differs between trainings each of `training_seeds`."""

    splits: int | None = _number(None, at_least=0)  # which texts and pairs are for what
    fine_tuning: int | None = _number(None, at_least=0)  # order of its texts
    sampling: int | None = _number(None, at_least=0)  # of completions, in advance and for evaluations
    labels: int | None = _number(None, at_least=0)  # of each training
    order: int | None = _number(None, at_least=0)  # in which each training sees its data
    initialisation: int | None = _number(None, at_least=0)  # of LoRA's adapters, and of the model "tiny-random"


_EACH_TRAINING = ("labels", "order", "initialisation")


@dataclass(frozen=True)
class RunConfig(_Checked):
    """Everything that determines a run's results."""

    name: str = "run"
    seed: int = _number(0, at_least=0)  # splits, supervised fine-tuning, sampling
    training_seeds: tuple[int, ...] = _number((0,), at_least=0)  # each draws its own labels and order of the pairs
    seeds: SeedsConfig = field(default_factory=SeedsConfig)  # to vary one of these and keep the others
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    labels: tuple[LabelConfig, ...] = field(default_factory=lambda: (LabelConfig(),))
    objectives: tuple[str, ...] = ("dpo(beta=0.1)",)  # e.g. "dpo(beta=0.1) + forward_kl(weight=0.1, tokens='full')"
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    guards: GuardsConfig = field(default_factory=GuardsConfig)
    online: OnlineConfig = field(default_factory=OnlineConfig)
    cost_steps: int = _number(0, at_least=0)  # measure time and memory with and without a reference for so many steps

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("labels", "objectives", "training_seeds"):
            if not getattr(self, key):
                raise ConfigError(f"{key} must not be empty")
        names = [label.name for label in self.labels]
        if len(set(names)) < len(names):
            raise ConfigError(f"labels: each needs its own name, but they are {', '.join(names)}")
        for text in self.objectives:
            try:
                objectives.parse(text)
            except objectives.ObjectiveError as error:
                raise ConfigError(f"objectives: {error}") from error
        if self.training.reference_samples == "pairs":
            if self.data.preferences is not None and not self.data.preferences_from_reference:
                raise ConfigError(
                    "training.reference_samples is 'pairs', which is right only where the reference itself sampled the pairs of "
                    "data.preferences: if it did, say so with data.preferences_from_reference=true, else use 'own'"
                )
            if self.data.preferences is None and (self.sampling.temperature, self.sampling.top_p) != (1, 1):
                raise ConfigError(
                    f"training.reference_samples is 'pairs', but they are sampled at temperature {self.sampling.temperature:g} and top_p "
                    f"{self.sampling.top_p:g}, so not from the reference itself: let sampling.temperature and sampling.top_p be 1, "
                    "or use 'own'"
                )
        if max(self.evaluation.at, default=0) > self.training.steps:
            raise ConfigError(f"evaluation.at has a step beyond training.steps ({self.training.steps})")

    def seed_of(self, purpose: str, training: int | None = None) -> int:
        """The seed of a purpose, of those of `seeds`; for what differs between trainings that of the training with seed `training`."""
        own: int | None = getattr(self.seeds, purpose)
        if own is not None:
            return own
        return training if training is not None and purpose in _EACH_TRAINING else self.seed

    @property
    def own_seeds(self) -> bool:
        """Whether any purpose has a seed of its own."""
        return self.seeds != SeedsConfig()

    def seeds_of(self, training: int) -> dict[str, int]:
        """All seeds of a training, by purpose: for its record."""
        return {field.name: self.seed_of(field.name, training) for field in dataclasses.fields(SeedsConfig)}

    @classmethod
    def load(cls, path: str | Path | None, overrides: Sequence[str | tuple[str, Any]] = ()) -> Self:
        """Read a YAML file, or a shipped configuration by name (None: all defaults), and apply overrides.

        An override is text, `key.key=value`, or the key with its value.

        Raises ConfigError for a file that is missing or not YAML, unknown keys, wrong types and values out of range.
        """
        return cls.of({} if path is None else read(path), overrides, "--set" if path is None else find(path))

    @classmethod
    def of(cls, values: Mapping[str, Any], overrides: Sequence[str | tuple[str, Any]], source: str | Path) -> Self:
        """What `read` gave, with overrides applied; `source` is for messages. Raises ConfigError as `load`."""
        changed = copy.deepcopy(dict(values))
        try:
            for override in overrides:
                _apply(changed, override)
            return typing.cast(Self, build(cls, changed, ""))
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts, numbers and strings: what `load` reads, with every default written out."""
        return typing.cast(dict[str, Any], plain(self))


def from_dict(values: Mapping[str, Any]) -> RunConfig:
    """What `RunConfig.to_dict` gave."""
    return typing.cast(RunConfig, build(RunConfig, values, ""))


CONFIGS = "configs"  # the folder of those that come with the package


def shipped(kind: str = CONFIGS) -> list[str]:
    """Names of the configurations (or other files of settings) that come with the package."""
    folder = resources.files("llm_runs") / kind
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read(path: str | Path) -> dict[str, Any]:
    """The keys of a configuration file, or of a shipped one by name. Raises ConfigError where it is missing or not YAML."""
    source = find(path)
    values = read_yaml(source)
    values.setdefault("name", source.stem)
    return values


def find(path: str | Path, kind: str = CONFIGS) -> Path:
    """The file of a configuration (or of other settings): a path, or the name of a shipped one."""
    shipped_file = Path(str(resources.files("llm_runs") / kind / f"{path}.yaml"))
    for file in (Path(path), shipped_file):
        if os.path.isfile(file):  # noqa: PTH113 - Path.is_file raises for a name that is too long
            return file
    raise ConfigError(f"no configuration file {str(path)[:200]!r}; give a path or one of: {', '.join(shipped(kind))}")


def _apply(values: dict[str, Any], override: str | tuple[str, Any]) -> None:
    if isinstance(override, str):
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {override!r}: expected key=value, for example training.steps=10")
        try:
            value = yaml_text.read(text)
        except YamlError as error:
            raise ConfigError(f"--set {override!r}: the value is not valid YAML: {error}") from error
    else:
        key, value = override
    *sections, last = key.split(".")
    for section in sections:
        if values.get(section) is None:
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            raise ConfigError(f"--set {override!r}: {section!r} has no keys of its own; give the whole list or value")
    values[last] = value

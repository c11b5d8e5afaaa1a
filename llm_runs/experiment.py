"""One configuration in one folder: every artefact of a run, each made once and found again afterwards.

DIR/config.json            the configuration, and checksums of the files it names
DIR/reward.npz             the ground-truth reward
DIR/reference/             the fine-tuned model: the reference policy
DIR/samples/*.jsonl        completions of the reference: for pairs and for the KL term, held-out ones of both; .json: engine and seed
DIR/data/                  your own preferences: their pairs in tokens, the data report, and what it is made of
DIR/pairs/*.jsonl          labelled pairs, a file for each kind of labels and seed; of your own, which pairs are on which side
DIR/reference_logps/       log-probabilities and token distributions of the reference; folders in it for what only some objectives need
DIR/before/*.parquet       evaluations of the reference itself
DIR/runs/<name>/           a record of each training
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import objectives
from analysis.records import atomic_write, fingerprint, redact, write_unlocked
from analysis.records.files import LOCK
from llm_runs import (
    data,
    guards,
    labelling,
    models,
    processes,
    reference,
    rewards,
    round_trip,
    sampling,
    saved_batches,
    sft,
    texts,
)
from llm_runs.checkpoints import clear_checkpoints
from llm_runs.config import DELIVERY, RunConfig, SamplingConfig, from_dict
from llm_runs.data.artefact import REPORT, summary
from llm_runs.data.sources import local_files
from llm_runs.data.stored import StoredGroups, StoredPairs, StoredSamples
from llm_runs.errors import InputError
from llm_runs.examples import Prompt, Sides, TokenPair, TokenSample
from llm_runs.json_lines import read_object
from llm_runs.microbatches import compares_pairs, needs_in_training
from llm_runs.mismatched import Mismatched
from llm_runs.sampling import derived_seed
from llm_runs.watch import Watch

# Keys that may change between calls on the same folder: nothing that is shared between trainings depends on them.
_FREE_TRAINING = (*DELIVERY, "micro_batch_size", "gradient_checkpointing", "sharding")
_FREE = (
    *("name", "objectives", "labels", "training_seeds", "cost_steps", "online", "guards"),
    *(f"training.{key}" for key in _FREE_TRAINING),
)
# How one's own preferences are read, which comes before all else: until that has succeeded, these may be corrected in the same folder.
_OF_READING = (
    "data.preferences",
    "data.reading.",
    "data.held_out_fraction",
    "model.template",
    "model.chat_template",
)
_SHOWN = 100  # of samples with a constant reward, those that are saved
_ROUND_TRIPS = 1000  # texts of which it is checked that their tokens give them back
_AUTO_PROMPTS = 64  # prompts sampled twice for maxpo's automatic temperature where the pairs are your own


@dataclass(frozen=True)
class LabelSet:
    """A kind of labels, drawn with one seed."""

    name: str
    seed: int
    temperature: float | None  # None: labels that were given

    @property
    def slug(self) -> str:
        """A name for files."""
        return f"{self.name}-seed{self.seed}"


@dataclass(frozen=True)
class Training:
    """An objective trained on one label set."""

    objective: str  # as in the configuration, normalised
    labels: LabelSet

    @property
    def slug(self) -> str:
        """A name for files."""
        label = re.sub(r"[^A-Za-z0-9.=+-]+", "_", self.objective.replace(" ", "").replace("'", "")).strip("_")
        return f"{label}-{self.labels.slug}"

    @property
    def title(self) -> str:
        """A name for people."""
        return f"{self.objective} on {self.labels.name} labels, seed {self.labels.seed}"


class Experiment:
    """The artefacts of `config` in the folder `out`; each property or method makes what is not there yet.

    `dry` only looks: the folder is checked, and nothing is written by constructing this.

    Raises InputError where `out` belongs to another configuration; the message says which keys differ.
    """

    def __init__(self, config: RunConfig, out: Path, *, dry: bool = False) -> None:
        self.config, self.out = config, out
        self.watch = Watch(config.guards)
        _lock(config, out, write=not dry)

    # -- model and texts -----------------------------------------------------------------------------------------

    @cached_property
    def device(self) -> torch.device:
        """Where everything runs."""
        return models.select_device(self.config.model)

    @cached_property
    def base(self) -> str:
        """Where the pretrained model is loaded from."""
        sample_texts = (text.text for text in self._pool[:2000])
        return models.prepare(
            self.config.model, self.out / "model", sample_texts, self.config.seed_of("initialisation")
        )

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer, with the chat template that the configuration names."""
        config = self.config.model
        tokenizer = models.load_tokenizer(self.base, self._revision, trust=config.trust_remote_code)
        return models.use_template(tokenizer, config.template)

    @property
    def _revision(self) -> str | None:
        return self.config.model.revision

    @cached_property
    def context(self) -> int:
        """The most tokens of prompt and completion together."""
        return models.source_context_length(self.base, self._revision, trust=self.config.model.trust_remote_code)

    def check(self) -> None:
        """InputError where model, tokenizer and lengths do not belong together; no weights are loaded."""
        config, generation = models.source_settings(
            self.base, self._revision, trust=self.config.model.trust_remote_code
        )
        guards.check_tokenizer(self.tokenizer, config, self.config.model.name, generation)
        guards.check_contexts(self.config, self.context)
        if self.config.data.preferences is None:
            self._check_round_trip()

    def _check_round_trip(self) -> None:
        """The guard of texts whose tokens do not give them back, on some of the texts; what comes back is saved in DIR/guards."""
        changed = []
        for text in self._pool[:_ROUND_TRIPS]:
            ids = tuple(self.tokenizer(text.text).input_ids)
            if (back := round_trip.read_back(self.tokenizer, text.text, ids)) is not None:
                changed.append((text.text, back, ids))
        if not changed:
            return
        among = min(len(self._pool), _ROUND_TRIPS)
        reason = (
            f"{self.config.data.text}: the tokens of {len(changed)} of {among} texts do not give the text back; "
            f"{round_trip.said(*changed[0][:2])}: use the model's own tokenizer, or clean the texts"
        )

        def save(name: str) -> Path:
            shown = {i: TokenSample((), ids, text, back) for i, (text, back, ids) in enumerate(changed[:_SHOWN])}
            about = {"reason": "tokenization round trip", "prompt": "the text", "completion": "what its tokens say"}
            return saved_batches.save_batch(self.out / "guards", {}, {"texts": shown}, about, name=name)

        self.watch.meet("round_trip", reason, save)

    @cached_property
    def own_pairs(self) -> tuple[StoredPairs, StoredPairs] | None:
        """Training and held-out pairs of the user's own data, where the configuration names some.

        Read and rendered once; the data report is printed then, and kept in DIR/data. The pairs stay on disk until they are asked for.
        """
        if self.config.data.preferences is None:
            return None
        training, held_out = (self.pairs_path(self.label_sets[0], side) for side in ("training", "held_out"))
        if (self.out / "data" / REPORT).is_file():
            return StoredPairs.open(training), StoredPairs.open(held_out)
        loaded = data.load(
            self.config.data,
            self.tokenizer,
            self.context,
            folder=self.out / "data",
            seed=derived_seed(self.config.seed_of("splits"), "held out"),
            chat_template=self.config.model.chat_template,
            watch=self.watch,
        )
        print(data.save(loaded, self.config.data, self.out / "data", training, held_out), flush=True)
        return loaded.training, loaded.held_out

    @property
    def data_summary(self) -> dict[str, Any]:
        """What records say of the user's own data; nothing where pairs are sampled."""
        return {"preferences": summary(self.out / "data")} if self.own_pairs else {}

    @cached_property
    def _pool(self) -> list[texts.Text]:
        return texts.read(self.config.data.text)

    @cached_property
    def split_texts(self) -> dict[str, list[texts.Text]]:
        """Disjoint texts: "reward", "sft", and "rest", from which prompts come."""
        data, sizes = self.config.data, {}
        if self.config.reward.name == "tfidf":
            sizes["reward"] = data.reward_texts
        if self.config.sft.steps:
            sizes["sft"] = data.sft_texts
        return texts.split(self._pool, sizes, derived_seed(self.config.seed_of("splits"), "texts"))

    @cached_property
    def prompts(self) -> dict[str, list[Prompt]]:
        """Disjoint prompts: "pairs", "reference" (for the KL term) and "evaluation"."""
        config = self.config
        if self.own_pairs:
            of_reference = config.reference.samples
            training = _distinct_prompts(self.own_pairs[0], max(_AUTO_PROMPTS, of_reference))
            return {
                "pairs": training[:_AUTO_PROMPTS],
                "reference": _cycle(training, of_reference),
                "evaluation": _distinct_prompts(self.own_pairs[1], config.evaluation.prompts),
            }
        data = config.data
        if data.prompt_tokens + data.completion_tokens > self.context:
            raise InputError(
                f"data.prompt_tokens ({data.prompt_tokens}) and data.completion_tokens ({data.completion_tokens}) exceed "
                f"the model's context of {self.context} tokens"
            )
        counts = {
            "pairs": data.prompts,
            "reference": config.reference.samples,
            "evaluation": config.evaluation.prompts,
        }
        return texts.prompts(self.split_texts["rest"], self.tokenizer, data.prompt_tokens, counts)

    @cached_property
    def other_texts(self) -> dict[str, list[tuple[int, ...]]]:
        """Token ids of texts of another domain: "evaluation", and "pretraining" for objectives with that term."""
        config = self.config
        pool = texts.read(config.data.other_text)
        shuffled = texts.split(pool, {}, derived_seed(config.seed_of("splits"), "other texts"))["rest"]
        tokens = config.evaluation.other_text_tokens
        windows = [tuple(self.tokenizer(text.text).input_ids[:tokens]) for text in shuffled[: 4 * config_texts(config)]]
        usable = [window for window in windows if len(window) > 1]
        return {
            "evaluation": usable[: config.evaluation.other_texts],
            "pretraining": usable[config.evaluation.other_texts :],
        }

    # -- reward --------------------------------------------------------------------------------------------------

    @cached_property
    def reward(self) -> rewards.Reward | None:
        """The ground truth; None where the pairs are the user's own."""
        if self.config.data.preferences is not None:
            return None
        if self.config.reward.name == "vader":
            return rewards.VaderReward()
        if self.config.reward.name == "classifier":
            return rewards.ClassifierReward(self.config.reward, self.device)
        path = self.out / "reward.npz"
        if not path.is_file():
            rewards.TfidfReward.fit(self.split_texts["reward"], self.config.reward).save(path)
        return rewards.TfidfReward.load(path)

    @cached_property
    def second_reward(self) -> rewards.Reward | None:
        """A reward that nothing is optimised for, where the configuration names one."""
        return rewards.VaderReward() if self.config.reward.second == "vader" else None

    # -- reference policy ----------------------------------------------------------------------------------------

    @property
    def has_reference(self) -> bool:
        """Whether the reference policy is there."""
        return not self.config.sft.steps or (self.out / "reference" / "config.json").is_file()

    def fine_tune(self) -> list[tuple[int, float]]:
        """Make the reference policy by supervised fine-tuning; returns (step, loss)."""
        config = self.config.sft
        model = self.load(self.base)
        samples: Sequence[TokenSample]
        if self.own_pairs:
            samples = [pair.samples[0] for pair in self._fine_tuned_on(self.own_pairs[0])]
        else:
            samples = sft.windows(self.split_texts["sft"], self.tokenizer, config.sequence_tokens)
        checkpoints = self.out / "sft"
        seed = derived_seed(self.config.seed_of("fine_tuning"), "sft") % 2**32
        shard = self.config.training.sharding
        losses = sft.train(
            model, samples, config, seed=seed, checkpoints=checkpoints, shard=shard, tokenizer=self.tokenizer
        )
        processes.by_first(lambda: atomic_write(self.out / "sft_losses.json", json.dumps(losses).encode()))
        models.save(model, self.tokenizer, self.out / "reference")
        processes.by_first(lambda: clear_checkpoints(checkpoints))
        return losses

    def _fine_tuned_on(self, pairs: StoredPairs) -> StoredPairs:
        """As many pairs, drawn at random, as fine-tuning sees; all where there are no more."""
        count = self.config.sft.steps * self.config.sft.batch_size
        if len(pairs) <= count:
            return pairs
        draw = np.random.default_rng(derived_seed(self.config.seed_of("fine_tuning"), "sft", "pairs"))
        return pairs.take(draw.choice(len(pairs), count, replace=False))

    def load(self, source: str | Path) -> PreTrainedModel:
        """A model on this run's device, in its dtype."""
        revision = self._revision if str(source) == self.base else None
        config = self.config.model
        return models.load_model(source, self.device, config.dtype, revision, trust=config.trust_remote_code)

    def load_reference(self) -> PreTrainedModel:
        """The reference policy; also what every training starts from."""
        if not self.has_reference:
            self.fine_tune()
        return self.load(self.out / "reference" if self.config.sft.steps else self.base)

    # -- samples -------------------------------------------------------------------------------------------------

    def _wanted_samples(self) -> dict[str, list[Prompt]]:
        """The prompts of each file of samples, one for each completion."""
        config, prompts = self.config, self.prompts
        twice = 2 * config.sampling.pairs_per_prompt
        held_out = _cycle(prompts["evaluation"], config.evaluation.held_out_pairs)
        wanted = {
            "pairs": [prompt for prompt in prompts["pairs"] for _ in range(twice)],
            "reference": prompts["reference"],
            "held_out_reference": _cycle(prompts["evaluation"], config.evaluation.held_out_samples),
        }
        if self.own_pairs is None:
            wanted["held_out_pairs"] = [prompt for prompt in held_out for _ in range(2)]
        return wanted

    def samples(self, name: str) -> list[TokenSample]:
        """Completions of the reference: "pairs", "reference", "held_out_reference" or "held_out_pairs"."""
        path = self.out / "samples" / f"{name}.jsonl"
        if not path.is_file():
            self.draw_samples()
        return sampling.read_samples(path)

    @property
    def sampled_with(self) -> dict[str, Any]:
        """What each file of samples was drawn with (`sampling.provenance`), for records."""
        return {path.stem: sampling.provenance(path) for path in sorted((self.out / "samples").glob("*.jsonl"))}

    @property
    def _exact(self) -> SamplingConfig:
        """Of samples that stand for the reference itself: its own distribution, however pairs are sampled."""
        return replace(self.config.sampling, temperature=1.0, top_p=1.0)

    def missing_samples(self) -> list[str]:
        """Names of the files of samples that are still to be drawn."""
        return [name for name in self._wanted_samples() if not (self.out / "samples" / f"{name}.jsonl").is_file()]

    def draw_samples(self) -> int:
        """Draw all missing samples; returns how many."""
        drawn, missing = 0, self.missing_samples()
        for name in self._wanted_samples():
            if name not in missing:
                processes.by_first(partial(sampling.clear_partial, self.out / "samples" / f"{name}.jsonl"))
        if missing:
            model = self.load_reference()
            key = reference.model_fingerprint(model)
            for name in missing:
                drawn += len(
                    sampling.sample_to_file(
                        self.out / "samples" / f"{name}.jsonl",
                        model,
                        self.tokenizer,
                        self._wanted_samples()[name],
                        max_tokens=self.config.data.completion_tokens,
                        seed=derived_seed(self.config.seed_of("sampling"), "samples", name),
                        config=self.config.sampling if "pairs" in name else self._exact,
                        key=key,
                    )
                )
        return drawn

    # -- labels --------------------------------------------------------------------------------------------------

    @property
    def label_sets(self) -> list[LabelSet]:
        """Every kind of labels with every seed."""
        seeds = self.config.training_seeds
        if self.config.data.preferences is not None:
            return [LabelSet("given", seed, None) for seed in seeds]
        return [LabelSet(label.name, seed, label.temperature) for label in self.config.labels for seed in seeds]

    @cached_property
    def unlabelled(self) -> dict[str, Sequence[TokenPair]]:
        """Pairs of completions with their rewards: "training" and "held_out"."""
        if self.own_pairs:
            return {"training": self.own_pairs[0], "held_out": self.own_pairs[1]}
        assert self.reward is not None
        found: dict[str, Sequence[TokenPair]] = {}
        for side, name in (("training", "pairs"), ("held_out", "held_out_pairs")):
            scored = rewards.score_samples(self.reward, self.samples(name))
            if side == "training":
                self.check_reward(scored, f"samples/{name}.jsonl")
            found[side] = labelling.pair_up(scored)
            if not found[side]:
                raise InputError(
                    "every prompt's two completions are the same, so there are no pairs; sample longer ones"
                )
        return found

    def check_reward(self, samples: Sequence[TokenSample], where: str) -> None:
        """The guard of rewards that are constant; the samples are saved in DIR/guards.

        Raises:
            InputError: all are the same, and the configuration stops for that.
        """

        def save(name: str) -> Path:
            about = {"reason": "constant reward", "where": where, "reward": type(self.reward).__name__}
            shown = dict(enumerate(samples[:_SHOWN]))
            scores = {"rewards": torch.tensor([entry.reward for entry in samples], dtype=torch.float64)}
            return saved_batches.save_batch(
                self.out / "guards", scores, {"samples": shown}, about, self.tokenizer, name
            )

        self.watch.meet("constant_reward", guards.constant(samples, where), save)

    def pairs_path(self, labels: LabelSet, side: str) -> Path:
        """The file of labelled pairs of one side ("training" or "held_out"); of given ones, what says which they are (`StoredPairs`)."""
        end = "" if side == "training" else "-held_out"
        if labels.temperature is None:  # the same for every seed
            return self.out / "pairs" / f"{labels.name}{end}.json"
        return self.out / "pairs" / f"{labels.slug}{end}.jsonl"

    def pairs(self, labels: LabelSet, side: str) -> Sequence[TokenPair]:
        """Labelled pairs of one side ("training" or "held_out"), drawn at the first call."""
        if labels.temperature is None:
            return self.unlabelled[side]
        path = self.pairs_path(labels, side)
        if not path.is_file():
            labelling.write_pairs(path, self.labelled(labels, side))
        return labelling.read_pairs(path)

    def labelled(self, labels: LabelSet, side: str) -> list[TokenPair]:
        """The pairs of one side with labels drawn now."""
        assert labels.temperature is not None
        seed = derived_seed(self.config.seed_of("labels", labels.seed), "labels", side)
        return labelling.label(self.unlabelled[side], labels.temperature, seed)

    # -- other kinds of preferences ------------------------------------------------------------------------------

    @cached_property
    def candidates(self) -> Sequence[Sequence[TokenSample]]:
        """Scored completions of each training prompt, of the user's own data or sampled; none where there are no scores."""
        if self.own_pairs is not None:
            given = self._own_samples("candidates")
            return StoredGroups(given) if given is not None else []
        assert self.reward is not None
        scored = rewards.score_samples(self.reward, self.samples("pairs"))
        count = 2 * self.config.sampling.pairs_per_prompt
        return [scored[start : start + count] for start in range(0, len(scored), count)]

    @cached_property
    def unpaired(self) -> Sequence[TokenSample]:
        """Completions of the user's own data that are labelled desirable (reward 1) or not (0); none in other data."""
        found = self._own_samples("unpaired") if self.own_pairs is not None else None
        return found if found is not None else []

    def candidates_for(self, objective: objectives.Objective) -> Sequence[Sequence[TokenSample]]:
        """`candidates` where the objective trains on them: always if pairs cannot stand for them, else if a prompt has more than two."""
        terms = [term for term in objective.terms if term.source == "candidates"]
        if not terms:
            return []
        groups = self.candidates
        largest = max(groups.sizes if isinstance(groups, StoredGroups) else map(len, groups), default=0)
        return [] if all(term.accepts_pairs for term in terms) and largest <= 2 else groups

    def unpaired_for(self, objective: objectives.Objective) -> Sequence[TokenSample]:
        """`unpaired` where the objective trains on them."""
        return self.unpaired if "unpaired" in objective.needs else []

    def _own_samples(self, kind: str) -> StoredSamples | None:
        """Of the user's own data, in the order of the records; nothing of held-out prompts. They stay on disk. None: there are none."""
        path = self.out / "data" / f"{kind}.json"
        if path.with_suffix(".jsonl").is_file():
            raise InputError(f"{path.with_suffix('.jsonl')}: of an earlier version; use another --out")
        if not path.is_file() or self.own_pairs is None:
            return None
        found = StoredSamples.open(path)
        held_out = np.unique(self.own_pairs[1].column("prompt_ids_hash"))
        return found.take(~np.isin(found.column("prompt_ids_hash"), held_out))

    # -- what is kept of the reference ---------------------------------------------------------------------------

    @cached_property
    def reference_logps(self) -> reference.ReferenceLogps:
        """Log-probabilities of the pairs and token distributions along the samples of the KL term; model then freed.

        Of your own pairs, which may be many, only of those that are evaluated: `reference_logps_for` has those that are trained on.
        Raises ReferenceCacheError where the folder holds those of another model, other data or other settings.
        """
        samples: list[Sequence[TokenSample]] = [self.samples("reference")]
        if self.config.training.reference_samples == "pairs":
            samples.append(Sides(self.unlabelled["training"]))
        sides = self.unlabelled
        if self.own_pairs:
            evaluation = self.config.evaluation
            shown = {"training": evaluation.training_pairs, "held_out": evaluation.held_out_pairs}
            sides = {side: pairs[: shown[side]] for side, pairs in sides.items()}
        return self._scored("", [Sides(side) for side in sides.values()], samples)

    def reference_logps_for(self, objective: objectives.Objective) -> reference.ReferenceLogps:
        """`reference_logps`, and what only some objectives need besides: each kind is computed once, in a folder of its own.

        "pairs": your own training pairs.
        "candidates" and "unpaired": of such data. "mismatched": completions under other prompts. "distributions": along the pairs.
        """
        needs = self.needs(objective)
        found = self.reference_logps
        if self.own_pairs and compares_pairs(needs):
            found = found.joined(self._scored("pairs", [self._sides()]))
        if "candidates" in needs:
            found = found.joined(self._scored("candidates", [_ungrouped(self.candidates)]))
        if "unpaired" in needs:
            found = found.joined(self._scored("unpaired", [self.unpaired]))
        if "mismatched_logps" in needs:
            labelled = self.unpaired if "unpaired" in needs else self._sides()
            found = found.joined(self._scored("mismatched", [Mismatched(labelled, self.context)]))
        if "token_kl" in needs:
            found = found.joined(self._scored("distributions", samples=[self._sides()]))
        return found

    def _sides(self) -> Sides:
        return Sides(self.unlabelled["training"])

    def other_references(self, objective: objectives.Objective) -> list[reference.ReferenceLogps]:
        """Log-probabilities of the training pairs under each of `reference.models`, where the objective needs them."""
        if "references" not in objective.needs:
            return []
        return [self._scored("other references", [self._sides()], model=name) for name in self.config.reference.models]

    def needs(self, objective: objectives.Objective) -> frozenset[str]:
        """What a training takes from this run's data."""
        return needs_in_training(
            objective, candidates=bool(self.candidates_for(objective)), unpaired=bool(self.unpaired_for(objective))
        )

    def _scored(
        self,
        name: str,
        completions: Sequence[Sequence[TokenSample]] = (),
        samples: Sequence[Sequence[TokenSample]] = (),
        model: str | None = None,
    ) -> reference.ReferenceLogps:
        """Log-probabilities under the reference, or another model; of `samples` the distributions, too. Computed once, then mapped.

        Raises ReferenceCacheError where the folder holds those of another model, other data or other settings.
        """
        folder, config = self.out / "reference_logps" / name, self.config
        if model is not None:
            source = models.prepare(replace(config.model, name=model), self.out / "model")
            folder /= re.sub(r"[^A-Za-z0-9.-]+", "_", model).strip("_")
        else:
            if not self.has_reference:
                self.fine_tune()
            source = str(self.out / "reference" if config.sft.steps else self.base)
        others: dict[str, Any] = {
            "source": models.source_fingerprint(source, self._revision if source == self.base else None),
            "data": reference.data_fingerprint(*completions, *samples),
            "truncation": [self.context, config.data.prompt_tokens, config.data.completion_tokens],
        }
        if not (folder / "reference.json").is_file():
            if model is not None:
                self._check_other_reference(source, model)
            reference.compute(
                self.load(source),
                self.tokenizer,
                (),
                itertools.chain.from_iterable(samples),
                config.reference,
                completions=itertools.chain.from_iterable(completions),
                folder=folder,
                **others,
            )
        stored = reference.ReferenceLogps.load(folder)
        guards.check_same_tokenizer(stored.key.get("tokenizer"), self.tokenizer, str(folder))
        stored.check(reference.reference_key(None, self.tokenizer, config.reference, **others), str(folder))
        return stored

    def _check_other_reference(self, source: str, name: str) -> None:
        trust = self.config.model.trust_remote_code
        guards.check_comparable(
            models.load_tokenizer(source, trust=trust),
            self.tokenizer,
            [models.source_settings(each, trust=trust)[0] for each in (source, self.base)],
            name,
        )

    # -- trainings -----------------------------------------------------------------------------------------------

    def trainings(self, only: str = "") -> list[Training]:
        """Every objective on every label set; `only` keeps those with that text in their name."""
        made = [
            Training(objectives.parse(text).label, labels)
            for labels in self.label_sets
            for text in self.config.objectives
        ]
        unique = list(dict.fromkeys(made))
        kept = [training for training in unique if only in training.slug or only in training.title]
        if not kept:
            names = ", ".join(training.slug for training in unique)
            raise InputError(f"no training has {only!r} in its name; there are: {names}")
        return kept


def kept_config(out: Path) -> RunConfig:
    """The configuration that a folder belongs to. Raises InputError where there is none, or a damaged one."""
    path = out / "config.json"
    try:
        return from_dict(read_object(path)["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error})") from error


def config_texts(config: RunConfig) -> int:
    """How many texts of another domain a run may use."""
    return config.evaluation.other_texts + config.training.steps * config.training.pretraining_batch_size


def _ungrouped(groups: Sequence[Sequence[TokenSample]]) -> Sequence[TokenSample]:
    if isinstance(groups, StoredGroups):
        return groups.samples
    return [sample for group in groups for sample in group]


def _distinct_prompts(pairs: Iterable[TokenPair], count: int) -> list[Prompt]:
    """The first `count` different prompts."""
    found: dict[Prompt, None] = {}
    for pair in pairs:
        if len(found) == count:
            break
        found[pair.prompt_ids] = None
    return list(found)


def _cycle(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    return [prompts[index % len(prompts)] for index in range(count)]


def _lock(config: RunConfig, out: Path, *, write: bool) -> None:
    """Refuse a folder of another configuration; with `write`, keep this one in it."""
    path = out / "config.json"
    data = config.data
    of_reading = (data.preferences, data.reading.held_out, config.model.template)
    named = (data.text, data.other_text, *of_reading)
    stats = {str(file): _stat(file) for name in named for file in local_files(name)}
    files = _checksums(path, stats)
    current = redact({"config": config.to_dict(), "files": files, "stats": stats})
    if path.is_file():
        try:
            before = read_object(path)
            old, new = flat(before["config"]), flat(current["config"])
            old_files = before["files"]
            unread = before["config"]["data"]["preferences"] is not None and _nothing_made(out)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{path} is damaged ({error}); use another --out") from error
        changed = [
            f"{key} was {old.get(key)!r}, is {new.get(key)!r}"
            for key in sorted({*old, *new})
            if old.get(key) != new.get(key)
            and not {key, key.partition(".")[0]} & set(_FREE)
            and not (unread and key.startswith(_OF_READING))
        ]
        temperatures = {label["name"]: label["temperature"] for label in before["config"]["labels"]}
        changed += [
            f"the temperature of labels {label.name!r} was {temperatures[label.name]}, is {label.temperature}"
            for label in config.labels
            if temperatures.get(label.name, label.temperature) != label.temperature
        ]
        correctable = {str(file) for name in of_reading for file in local_files(name)} if unread else set()
        changed += [
            f"the content of {name} changed"
            for name in files
            if name not in correctable and old_files.get(name, files[name]) != files[name]
        ]
        if changed:
            raise InputError(
                f"{out} was made with another configuration: {'; '.join(changed)}. Use another --out, or change it back"
            )
    if write:
        write_unlocked(path, (json.dumps(current, indent=1) + "\n").encode())  # a sweep writes those of all its folders


def _stat(file: Path) -> list[int]:
    found = file.stat()
    return [found.st_size, found.st_mtime_ns]


def _checksums(kept: Path, stats: Mapping[str, list[int]]) -> dict[str, str]:
    """Of each file; what was computed before is taken where size and time are the same, because large files take long."""
    try:
        before = read_object(kept)
        known = {name: before["files"][name] for name, stat in before["stats"].items() if stats.get(name) == stat}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        known = {}
    return {name: known.get(name) or fingerprint(Path(name)) for name in stats}


def _nothing_made(out: Path) -> bool:
    """Whether the folder holds nothing that depends on data: the configuration alone, and maybe the random model."""
    read = (out / "data" / REPORT).is_file()
    return all(
        entry.name in ("config.json", "model", LOCK)
        or entry.name.startswith(".config.json.")  # its lock, or what a killed process left of it
        or (entry.name == "data" and not read)
        for entry in out.iterdir()
    )


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration's values by their whole keys, such as data.text."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found

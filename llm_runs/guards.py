"""What must hold before a training spends any time: model, tokenizer, reference and lengths belong together.

And what is watched while it runs: that the policy starts as its reference, how far it has gone from it (`kl_per_token`), whether all
completions are becoming unlikely (`Collapse`), whether the reward says anything (`constant`). What then happens: `watch.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

import objectives
from llm_runs.config import RunConfig
from llm_runs.errors import InputError
from llm_runs.examples import TokenSample
from llm_runs.models import PROBE, tokenizer_fingerprint
from llm_runs.reference import model_fingerprint


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
    source: str,
    generation: GenerationConfig | None = None,
) -> None:
    """The tokenizer's ids must exist in the model, and its end-of-text token must be the model's.

    Args:
        tokenizer: as loaded.
        config: the model's configuration; no weights are needed.
        source: where the model is from, for the message.
        generation: the model's settings for generation, which may name further end-of-text tokens.

    Raises:
        InputError: they do not belong together.
    """
    vocabulary = int(config.get_text_config().vocab_size)
    advice = "use the tokenizer that came with the model, or correct its config.json"
    highest = max(tokenizer.get_vocab().values())
    if highest >= vocabulary:
        raise InputError(
            f"the tokenizer of {source} has ids up to {highest}, but the model's vocabulary is {vocabulary}: {advice}"
        )
    ends: set[int] = set()
    for settings in (config.get_text_config(), generation):
        named = getattr(settings, "eos_token_id", None)
        ends |= set(named) if isinstance(named, list | tuple) else set() if named is None else {named}
    if ends and tokenizer.eos_token_id not in ends:
        raise InputError(
            f"the tokenizer of {source} ends texts with {tokenizer.eos_token!r} (id {tokenizer.eos_token_id}), "
            f"but the model with id {' or '.join(map(str, sorted(ends)))}: {advice}"
        )


def check_same_tokenizer(stored: str | None, tokenizer: PreTrainedTokenizerBase, what: str) -> None:
    """InputError where `what` was made with a tokenizer of another fingerprint (`stored`)."""
    if stored != (current := tokenizer_fingerprint(tokenizer)):
        raise InputError(
            f"{what} was made with another tokenizer (fingerprint {str(stored)[:12]}, now {current[:12]}): token ids would mean other "
            "texts; delete it to make it again, or go back to the tokenizer it was made with"
        )


def check_comparable(
    tokenizer: PreTrainedTokenizerBase,
    of_reference: PreTrainedTokenizerBase,
    configs: Sequence[PretrainedConfig],
    source: str,
) -> None:
    """InputError where the model `source` has not the tokenizer or the vocabulary (of the two `configs`) of its reference.

    Padding and chat templates may differ: they do not change which text an id stands for.
    """
    first, second = tokenizer.get_vocab(), of_reference.get_vocab()
    sizes = [int(config.get_text_config().vocab_size) for config in configs]
    reason = None
    if first != second:
        reason = f"its vocabulary of {len(first)} tokens is not the reference's of {len(second)}"
    elif tokenizer(PROBE).input_ids != of_reference(PROBE).input_ids:
        reason = "it splits texts into other tokens than the reference's"
    elif tokenizer.eos_token_id != of_reference.eos_token_id:
        reason = f"it ends texts with {tokenizer.eos_token!r}, the reference's with {of_reference.eos_token!r}"
    elif len(set(sizes)) > 1:
        reason = f"the model has {sizes[0]} outputs, the reference {sizes[1]}"
    if reason:
        raise InputError(
            f"{source} cannot be compared with the reference: another tokenizer or vocabulary ({reason}), so no KL exists between "
            "the two; give the reference that it was tuned from"
        )


def check_contexts(config: RunConfig, context: int) -> None:
    """InputError where a length of the configuration exceeds the model's context of `context` tokens."""
    lengths = {"evaluation.other_text_tokens": config.evaluation.other_text_tokens}
    if config.data.preferences is None:
        lengths["data.prompt_tokens + data.completion_tokens"] = (
            config.data.prompt_tokens + config.data.completion_tokens
        )
        if config.sft.steps:
            lengths["sft.sequence_tokens"] = config.sft.sequence_tokens
    too_long = [f"{name} is {length}" for name, length in lengths.items() if length > context]
    if too_long:
        raise InputError(f"{' and '.join(too_long)}, over the model's context of {context} tokens: lower it")


def check_same_weights(key: Mapping[str, Any], model: PreTrainedModel) -> None:
    """InputError where the reference's numbers, by their key (`reference.reference_key`), are not of `model` as it is now."""
    dtype = str(model.dtype).removeprefix("torch.")
    if key["dtype"] != dtype:
        raise InputError(
            f"the reference log-probs were computed in {key['dtype']}, but the policy is in {dtype}: "
            "compute them again, or load the policy in that dtype (model.dtype)"
        )
    if key["model"] != (current := model_fingerprint(model)):
        raise InputError(
            "the reference log-probs are of another model than the policy starts from "
            f"(weights {key['model'][:12]}, policy {current[:12]}): compute them again for this model"
        )


def kl_per_token(batches: Mapping[str, objectives.Batch], sample_ref_logps: Tensor | None = None) -> dict[str, Tensor]:
    """Estimates of KL(pi_ref || pi) in nats a token, by source; none where nothing is known of the reference.

    With full-token KL it is that KL. Else it is the mean of log pi_ref - log pi over the completions, over their mean length: unbiased
    where they are samples of the reference (on one's own pairs it is a distance in likelihood). The low-variance form k3
    would be e^x of a sum of log-ratios, which overflows exactly where the watch is needed.

    Args:
        batches: of one forward pass.
        sample_ref_logps: log-probabilities of the reference samples, (N,), as noted when they were drawn.
    """
    found: dict[str, Tensor] = {}
    pairs, samples = batches.get("pairs"), batches.get("reference_samples")
    if isinstance(pairs, objectives.PairBatch):
        stored = (pairs.ref_chosen_logps, pairs.ref_rejected_logps)
        lengths = (pairs.chosen_lengths, pairs.rejected_lengths)
        if stored[0] is not None and stored[1] is not None and lengths[0] is not None and lengths[1] is not None:
            drop = stored[0].sum() + stored[1].sum() - pairs.chosen_logps.sum() - pairs.rejected_logps.sum()
            found["pairs"] = (drop / (lengths[0].sum() + lengths[1].sum())).detach()
    if isinstance(samples, objectives.SampleBatch) and samples.lengths is not None:
        kl = samples.token_kl
        if kl is None and sample_ref_logps is not None:
            kl = sample_ref_logps - samples.logps
        if kl is not None:
            found["reference_samples"] = (kl.sum() / samples.lengths.sum()).detach()
    return found


def beyond(kl: Mapping[str, Tensor], limit: float | None) -> str | None:
    """What to say where an estimate of `kl_per_token` exceeds `limit` (None: no limit) or is not a number."""
    if limit is None:
        return None
    for source, value in kl.items():
        if not (found := float(value)) <= limit:
            where = source.replace("_", " ")
            return f"the policy is {found:.3g} nats a token from the reference on its {where}, beyond training.kl_limit={limit:g}"
    return None


def differs_at_start(batches: Mapping[str, objectives.Batch], reduced_precision: bool) -> str | None:
    """What to say where log-ratios or full-token KL are not zero before the first update (theory F9), where policy and reference are one.

    `reduced_precision`: computed in bfloat16, so with larger rounding.
    """
    absolute, relative = (0.5, 0.02) if reduced_precision else (1e-3, 1e-5)
    pairs, samples = batches.get("pairs"), batches.get("reference_samples")
    compared: list[tuple[Tensor, Tensor | None]] = []
    if isinstance(pairs, objectives.PairBatch):
        compared += [
            (pairs.chosen_logps, pairs.ref_chosen_logps),
            (pairs.rejected_logps, pairs.ref_rejected_logps),
        ]
    for batch in batches.values():
        if isinstance(batch, objectives.CandidateBatch | objectives.UnpairedBatch):
            compared.append((batch.logps, batch.ref_logps))
        if isinstance(batch, objectives.UnpairedBatch) and batch.mismatched_logps is not None:
            compared.append((batch.mismatched_logps, batch.ref_mismatched_logps))
        if isinstance(batch, objectives.RolloutBatch) and batch.token_logps is not None:
            compared.append((batch.token_logps, batch.ref_token_logps))
    differences = [((policy - ref).abs(), ref.abs()) for policy, ref in compared if ref is not None]
    if isinstance(samples, objectives.SampleBatch) and samples.token_kl is not None:
        differences.append((samples.token_kl.abs(), samples.logps.abs()))
    for difference, size in differences:
        if not bool((difference <= absolute + relative * size).all()):
            return (
                f"policy and reference differ by up to {difference.max().item():.4g} nats before the first step, where they should be "
                "the same model: the reference log-probs come from other weights, another tokenizer or template, another "
                "precision, or dropout is on. Compute them again for this model"
            )
    return None


class Collapse:
    """Whether chosen and rejected completions both lose likelihood: the margin may grow while the model forgets how to write either.

    Measured in nats a token, against the reference where the batch has its log-probs, else against the first batch seen.

    Args:
        limit: the most that both may lose, nats a token.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._first: tuple[Tensor, Tensor] | None = None

    def found(self, batches: Mapping[str, objectives.Batch]) -> str | None:
        """What to say where both lost more than the limit."""
        pairs = batches.get("pairs")
        if (
            not isinstance(pairs, objectives.PairBatch)
            or pairs.chosen_lengths is None
            or pairs.rejected_lengths is None
        ):
            return None
        chosen, rejected = pairs.chosen_logps.detach(), pairs.rejected_logps.detach()
        against = "the reference"
        if pairs.ref_chosen_logps is not None and pairs.ref_rejected_logps is not None:
            chosen, rejected = chosen - pairs.ref_chosen_logps, rejected - pairs.ref_rejected_logps
        chosen, rejected = chosen.sum() / pairs.chosen_lengths.sum(), rejected.sum() / pairs.rejected_lengths.sum()
        if pairs.ref_chosen_logps is None:
            against = "the first step"
            self._first = self._first or (chosen, rejected)
            chosen, rejected = chosen - self._first[0], rejected - self._first[1]
        lost = [-float(chosen), -float(rejected)]
        if min(lost) <= self.limit:
            return None
        return (
            f"chosen and rejected completions have both become unlikely: {lost[0]:.3g} and {lost[1]:.3g} nats a token below "
            f"{against}, beyond guards.collapse_limit={self.limit:g}"
        )


def constant(samples: Sequence[TokenSample], where: str) -> str | None:
    """What to say where all of several scored completions that are not the same text have the same reward, but for rounding."""
    rewards = [entry.reward for entry in samples if entry.reward is not None]
    if len({(entry.prompt_ids, entry.completion_ids) for entry in samples}) < 2 or len(rewards) < 2:
        return None
    low, high = min(rewards), max(rewards)
    if high - low > 1e-9 * max(1.0, abs(high), abs(low)):
        return None
    return (
        f"{where}: all {len(rewards)} completions have the reward {low:g}, so it says nothing of which is better: look at the "
        "reward (reward.name), or let completions be longer (data.completion_tokens)"
    )

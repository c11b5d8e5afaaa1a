"""Preference labels for sampled completions, drawn from the ground-truth reward at a chosen temperature."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from scipy.special import expit

from analysis.records import atomic_write
from llm_runs import json_lines
from llm_runs.data.stored import StoredPairs
from llm_runs.errors import InputError
from llm_runs.examples import TokenPair, TokenSample

_NUMBERS = ("chosen_reward", "rejected_reward", "probability")


def pair_up(samples: Sequence[TokenSample]) -> list[TokenPair]:
    """Neighbouring samples (first and second, third and fourth, ...) as pairs, not labelled yet: `chosen` is the first.

    Pairs of two equal completions say nothing and are left out.
    """
    pairs = []
    for index, (first, second) in enumerate(zip(samples[::2], samples[1::2], strict=True)):
        if first.prompt_ids != second.prompt_ids:
            raise ValueError(f"samples {2 * index} and {2 * index + 1} belong to different prompts")
        if first.completion_ids != second.completion_ids:
            pairs.append(
                TokenPair(
                    first.prompt_ids,
                    first.completion_ids,
                    second.completion_ids,
                    first.prompt,
                    first.completion,
                    second.completion,
                    id=str(index),
                    chosen_reward=first.reward,
                    rejected_reward=second.reward,
                )
            )
    return pairs


def label(pairs: Sequence[TokenPair], temperature: float, seed: int) -> list[TokenPair]:
    """Draw each pair's label once: P(first preferred) = sigmoid((reward_1 - reward_2) / temperature).

    Raises ValueError for a pair without rewards. The same seed uses the same uniform numbers at every temperature, so
    that label sets of two temperatures differ only as far as the temperature makes them.
    """
    if any(pair.chosen_reward is None or pair.rejected_reward is None for pair in pairs):
        raise ValueError("labels can only be drawn for pairs whose completions carry rewards")
    gaps = np.array([(pair.chosen_reward or 0.0) - (pair.rejected_reward or 0.0) for pair in pairs])
    probabilities = expit(gaps / temperature)
    uniform = np.random.default_rng(seed).random(len(pairs))
    labelled = []
    for pair, probability, draw in zip(pairs, probabilities, uniform, strict=True):
        first_wins = replace(pair, probability=float(probability))
        labelled.append(first_wins if draw < probability else first_wins.flip())
    return labelled


def mean_max_probability(pairs: Sequence[TokenPair]) -> float | None:
    """Mean of max(p, 1 - p) over the pairs: 1 where labels are deterministic, 1/2 where they are coin flips."""
    if isinstance(pairs, StoredPairs):
        known = pairs.column("probability")
        known = known[~np.isnan(known)]
    else:
        known = np.array([pair.probability for pair in pairs if pair.probability is not None])
    return float(np.maximum(known, 1 - known).mean()) if len(known) else None


def write_pairs(path: Path, pairs: Sequence[TokenPair]) -> Path:
    """Pairs as JSONL (texts, token ids, rewards, probability), whole or not at all."""
    lines = (json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in pairs)
    return atomic_write(path, "".join(lines).encode())


def read_pairs(path: Path) -> list[TokenPair]:
    """Pairs that `write_pairs` wrote. Raises InputError with file, line and reason."""
    pairs = []
    for where, values in json_lines.read(path):
        try:
            json_lines.check_types(values, ("prompt", "chosen", "rejected", "id"), _NUMBERS)
            pairs.append(TokenPair(**json_lines.token_ids(values, "prompt_ids", "chosen_ids", "rejected_ids")))
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{where}: not a pair ({error}); delete the file to redo it") from error
    return pairs

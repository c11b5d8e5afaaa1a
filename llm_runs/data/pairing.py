"""Pairs out of scored completions and out of unpaired labels, by a stated rule."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from llm_runs.data.stored import StoredSamples
from llm_runs.examples import TokenPair, TokenSample

_Rows = np.ndarray[Any, Any]
_TOGETHER = 1 << 20  # samples that are compared in memory at a time

RULES = {
    "best_worst": "the best against the worst completion of each prompt",
    "best_random": "the best against one drawn from the worse completions (seeded by the prompt)",
    "all": "every two completions of a prompt with different scores",
}


def of_scored(samples: Sequence[TokenSample], rule: str, id: str, seed: int) -> list[TokenPair]:
    """Pairs among the scored completions of one prompt, the higher score preferred; equal scores make no pair.

    Of several best (or worst) completions the first one is taken. `rule` is one of `RULES`; "best_random" draws by `seed` and
    the prompt, so that a pair does not depend on other records.
    """
    scores = [sample.reward or 0.0 for sample in samples]
    places = range(len(scores))
    best = max(places, key=lambda place: scores[place])
    worse = [place for place in places if scores[place] < scores[best]]
    if not worse:
        return []
    if rule == "best_worst":
        taken = [(best, min(worse, key=lambda place: scores[place]))]
    elif rule == "best_random":
        taken = [(best, random.Random(f"{seed}/{samples[0].prompt_ids}").choice(worse))]
    else:
        taken = [(one, other) for one in places for other in places if scores[one] > scores[other]]
    return [_pair(samples[one], samples[other], f"{id}/{one + 1}-{other + 1}") for one, other in taken]


def of_unpaired(samples: StoredSamples) -> tuple[_Rows, _Rows]:
    """Desirable completions of a prompt with its undesirable ones, in turn: as many pairs as the rarer kind allows.

    Reward 1 is desirable, 0 undesirable. A prompt with one kind only makes no pair. Returns places of the desirable and of the
    undesirable completions, (pairs,) each: prompts in the order in which they come first, and of each its pairs in their order.
    A million samples are compared at a time.
    """
    prompts, good = samples.column("prompt_ids_hash"), samples.column("reward") > 0
    count = max(1, -(-len(prompts) // _TOGETHER))
    firsts, chosen, rejected = [], [], []
    for bucket in range(count):
        places = np.flatnonzero(prompts % np.uint64(count) == bucket)
        places = places[np.argsort(prompts[places], kind="stable")]
        _, starts, of_prompt = np.unique(prompts[places], return_index=True, return_inverse=True)
        kinds = [np.flatnonzero(good[places] == kind) for kind in (True, False)]
        counts = [np.bincount(of_prompt[kind], minlength=len(starts)) for kind in kinds]
        pairs = np.minimum(*counts)
        taken = []
        for kind, number in zip(kinds, counts, strict=True):
            before = np.concatenate([[0], np.cumsum(number)[:-1]]).astype(np.int64)  # of this kind, in earlier prompts
            turn = np.arange(len(kind)) - before[of_prompt[kind]]
            taken.append(kind[turn < pairs[of_prompt[kind]]])
        firsts.append(places[starts][of_prompt[taken[0]]])
        chosen.append(places[taken[0]])
        rejected.append(places[taken[1]])
    order = np.argsort(np.concatenate(firsts), kind="stable")
    return np.concatenate(chosen)[order], np.concatenate(rejected)[order]


def pair_of_labels(chosen: TokenSample, rejected: TokenSample, id: str) -> TokenPair:
    """A desirable and an undesirable completion. A label is no score: how much better the one is, nobody said."""
    return _pair(replace(chosen, reward=None), replace(rejected, reward=None), id)


def _pair(chosen: TokenSample, rejected: TokenSample, id: str) -> TokenPair:
    return TokenPair(
        chosen.prompt_ids,
        chosen.completion_ids,
        rejected.completion_ids,
        chosen.prompt,
        chosen.completion,
        rejected.completion,
        id=id,
        chosen_reward=chosen.reward,
        rejected_reward=rejected.reward,
    )

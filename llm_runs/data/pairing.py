"""Pairs out of scored completions and out of unpaired labels, by a stated rule."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace

from llm_runs.examples import TokenPair, TokenSample

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


def of_unpaired(samples: Iterable[tuple[str, TokenSample]]) -> list[TokenPair]:
    """Desirable completions of a prompt with its undesirable ones, in turn: as many pairs as the rarer kind allows.

    `samples` come with their ids; reward 1 is desirable, 0 undesirable. A prompt with one kind only makes no pair.
    """
    by_prompt: dict[tuple[int, ...], tuple[list[tuple[str, TokenSample]], list[tuple[str, TokenSample]]]] = {}
    for name, sample in samples:
        good, bad = by_prompt.setdefault(sample.prompt_ids, ([], []))
        (good if sample.reward else bad).append((name, sample))
    pairs = []
    for good, bad in by_prompt.values():
        for (one, chosen), (other, rejected) in zip(good, bad, strict=False):
            # A label is no score: how much better the one is than the other, nobody said.
            pairs.append(_pair(replace(chosen, reward=None), replace(rejected, reward=None), f"{one}-{other}"))
    return pairs


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

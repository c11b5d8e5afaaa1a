"""Each prompt with the completion of another one, for kto's reference point (its eq. 7)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm_runs.errors import InputError
from llm_runs.examples import MadeWhenAsked, TokenSample
from llm_runs.packing import TokenSequence
from llm_runs.reference import places_of, sequence_digest, sorted_places


class Mismatched(MadeWhenAsked[TokenSample]):
    """For each distinct prompt and completion: the same prompt with the completion of another one.

    The other is the next with another prompt in the order of their digests: a random order that is fixed by the data alone, so that the
    reference's log-probabilities can be computed in advance, whatever is preferred. Kept are 16 bytes a completion; the sequences
    themselves are read from `samples` when they are asked for.

    Args:
        samples: the prompts and completions.
        context: completions are cut where the two exceed so many tokens.

    Raises InputError where all prompts are the same.
    """

    def __init__(self, samples: Sequence[TokenSample], context: int | None = None) -> None:
        self.samples, self.context = samples, context
        places, numbers = sorted_places(places_of(sequence_digest(s.prompt_ids, s.completion_ids) for s in samples))
        first = np.concatenate([[True], places[1:] != places[:-1]]) if len(places) else np.zeros(0, dtype=bool)
        self._places, self._numbers = places[first], numbers[first]
        if len(self._numbers) < 2 or self._other(0) is None:
            raise InputError(
                "the objective pairs prompts with other prompts' completions, but there is only one prompt"
            )

    def __len__(self) -> int:
        return len(self._numbers)

    def at(self, place: int) -> TokenSample:
        """A prompt with the completion that it was given."""
        other = self._other(place)
        assert other is not None
        prompt = self._sample(place).prompt_ids
        room = None if self.context is None else self.context - len(prompt)
        return TokenSample(prompt, other.completion_ids[:room])

    def of(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> TokenSequence:
        """What stands for a prompt and its completion. KeyError where it is none of the samples."""
        (wanted,) = places_of([sequence_digest(prompt_ids, completion_ids)])
        place = int(np.searchsorted(self._places, wanted))
        if place == len(self) or self._places[place] != wanted:
            raise KeyError("a completion that is none of those that were paired with other prompts")
        found = self[place]
        return found.prompt_ids, found.completion_ids

    def _sample(self, place: int) -> TokenSample:
        return self.samples[int(self._numbers[place])]

    def _other(self, place: int) -> TokenSample | None:
        prompt = self._sample(place).prompt_ids
        for step in range(1, len(self)):
            other = self._sample((place + step) % len(self))
            if other.prompt_ids != prompt:
                return other
        return None

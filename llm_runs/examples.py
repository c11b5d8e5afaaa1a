"""Examples in token ids: what flows from data to training. Ids are kept from sampling on, never tokenised twice."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, overload

T = TypeVar("T")
Prompt = tuple[int, ...]


class MadeWhenAsked(Sequence[T]):
    """A sequence whose elements are made, or read, each time they are asked for: `at` and a length are all that it needs."""

    @abstractmethod
    def at(self, place: int) -> T:
        """The element at `place`, from 0 to below the length."""

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> list[T]: ...

    def __getitem__(self, index: int | slice) -> T | list[T]:
        places = range(len(self))[index]
        return [self.at(place) for place in places] if isinstance(places, range) else self.at(places)


@dataclass(frozen=True)
class TokenSample:
    """One completion of one prompt. `completion_ids` includes the end-of-text token where the model ended by itself."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]  # at least one token
    prompt: str = ""
    completion: str = ""
    logp: float | None = None  # log-probability under the policy that sampled it (temperature 1), nats
    reward: float | None = None  # ground truth, where there is one


@dataclass(frozen=True)
class TokenPair:
    """Two completions of one prompt, the first preferred."""

    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    prompt: str = ""
    chosen: str = ""
    rejected: str = ""
    id: str = ""  # stable across label sets: the same two completions carry the same id, whichever is preferred
    flipped: bool = False  # True: chosen is the second of the two completions as sampled
    chosen_reward: float | None = None
    rejected_reward: float | None = None
    probability: float | None = None  # p(chosen preferred), from which the label was drawn

    def flip(self) -> TokenPair:
        """The same two completions with the preference reversed."""
        return replace(
            self,
            chosen_ids=self.rejected_ids,
            rejected_ids=self.chosen_ids,
            chosen=self.rejected,
            rejected=self.chosen,
            flipped=not self.flipped,
            chosen_reward=self.rejected_reward,
            rejected_reward=self.chosen_reward,
            probability=None if self.probability is None else 1 - self.probability,
        )

    @property
    def samples(self) -> tuple[TokenSample, TokenSample]:
        """The two completions, chosen first."""
        return (
            TokenSample(self.prompt_ids, self.chosen_ids, self.prompt, self.chosen, reward=self.chosen_reward),
            TokenSample(self.prompt_ids, self.rejected_ids, self.prompt, self.rejected, reward=self.rejected_reward),
        )


class Sides(MadeWhenAsked[TokenSample]):
    """The completions of pairs, chosen and rejected in turn; each is read when it is asked for."""

    def __init__(self, pairs: Sequence[TokenPair]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return 2 * len(self.pairs)

    def at(self, place: int) -> TokenSample:
        """One side of a pair."""
        return self.pairs[place // 2].samples[place % 2]

    @property
    def fingerprint(self) -> str | None:
        """That of stored pairs (`StoredPairs.fingerprint`); None for others."""
        found: str | None = getattr(self.pairs, "fingerprint", None)
        return found

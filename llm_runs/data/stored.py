"""Pairs and samples in a `Store`: their columns, what is measured of them, and the sequences that training takes them from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from llm_runs.data.measures import measures_of_pairs, sequence_hashes
from llm_runs.data.store import Columns, Kind, Mapped, Selection, list_column
from llm_runs.examples import MadeWhenAsked, TokenPair, TokenSample


class PlacedPair(NamedTuple):
    """A pair, and where its record stands."""

    pair: TokenPair
    place: str


class NamedSample(NamedTuple):
    """A sample, and the name of its record."""

    sample: TokenSample
    name: str


_PAIR_IDS = ("prompt_ids", "chosen_ids", "rejected_ids")
_PAIR_TEXTS = ("prompt", "chosen", "rejected", "id")
_PAIR_NUMBERS = ("chosen_reward", "rejected_reward", "probability")
_SAMPLE_IDS = ("prompt_ids", "completion_ids")
_SAMPLE_TEXTS = ("prompt", "completion")
_SAMPLE_NUMBERS = ("logp", "reward")


@cache
def pair_kind(seed: int = 0) -> Kind[Any]:
    """Pairs; `seed` is that of the split, for writing. Written are `PlacedPair`s, read are `TokenPair`s."""

    def batch(rows: Sequence[PlacedPair]) -> pa.RecordBatch:
        pairs = [row.pair for row in rows]
        columns = _columns(pairs, _PAIR_IDS, _PAIR_TEXTS, _PAIR_NUMBERS)
        columns["place"] = pa.array([row.place for row in rows], pa.string())
        return pa.RecordBatch.from_pydict(columns | measures_of_pairs(pairs, columns, seed))

    def row(mapped: Mapped, place: int) -> TokenPair:
        return TokenPair(**_fields(mapped, place, _PAIR_IDS, _PAIR_TEXTS, _PAIR_NUMBERS))

    return Kind(batch, row, lambda batch: _bounds(batch, _PAIR_IDS))


def _sample_batch(rows: Sequence[NamedSample]) -> pa.RecordBatch:
    columns = _columns([row.sample for row in rows], _SAMPLE_IDS, _SAMPLE_TEXTS, _SAMPLE_NUMBERS)
    columns["name"] = pa.array([row.name for row in rows], pa.string())
    columns["prompt_ids_hash"] = sequence_hashes(columns["prompt_ids"])
    return pa.RecordBatch.from_pydict(columns)


def _sample_row(mapped: Mapped, place: int) -> TokenSample:
    return TokenSample(**_fields(mapped, place, _SAMPLE_IDS, _SAMPLE_TEXTS, _SAMPLE_NUMBERS))


# Written are `NamedSample`s, read are `TokenSample`s.
SAMPLES: Kind[Any] = Kind(_sample_batch, _sample_row, lambda batch: _bounds(batch, _SAMPLE_IDS))


class StoredPairs(Selection[TokenPair]):
    """Some pairs of a store."""

    kind = pair_kind()


class StoredSamples(Selection[TokenSample]):
    """Some samples of a store."""

    kind = SAMPLES


class StoredGroups(MadeWhenAsked[list[TokenSample]]):
    """The candidates of each prompt: samples that follow each other and have one prompt.

    Attributes:
        samples: all of them.
        starts: where each group begins, and after it the number of samples, (groups + 1,).
    """

    def __init__(self, samples: StoredSamples) -> None:
        self.samples = samples
        prompts = samples.column("prompt_ids_hash")
        self.starts = (
            np.flatnonzero(np.concatenate([[True], prompts[1:] != prompts[:-1], [True]]))
            if len(prompts)
            else np.zeros(1, int)
        )

    @property
    def sizes(self) -> np.ndarray[Any, Any]:
        """How many candidates each prompt has, (groups,)."""
        return np.asarray(np.diff(self.starts))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def at(self, place: int) -> list[TokenSample]:
        """The candidates of a prompt."""
        return list(self.samples[int(self.starts[place]) : int(self.starts[place + 1])])

    @property
    def fingerprint(self) -> str:
        """That of the samples."""
        return self.samples.fingerprint


def _columns(rows: Sequence[Any], ids: Sequence[str], texts: Sequence[str], numbers: Sequence[str]) -> dict[str, Any]:
    found = {name: list_column([getattr(row, name) for row in rows], np.int32) for name in ids}
    found |= {name: pa.array([getattr(row, name) for row in rows], pa.string()) for name in texts}
    return found | {name: pa.array([getattr(row, name) for row in rows], pa.float64()) for name in numbers}


def _fields(
    mapped: Mapped, place: int, ids: Sequence[str], texts: Sequence[str], numbers: Sequence[str]
) -> dict[str, Any]:
    fields: dict[str, Any] = {name: tuple(mapped.array(name, place).tolist()) for name in ids}
    return fields | {name: mapped.value(name, place) for name in (*texts, *numbers)}


def _bounds(batch: pa.RecordBatch, ids: Sequence[str]) -> Columns:
    """The longest and the shortest sequence, and the largest token id."""
    lists = [batch.column(name) for name in ids]
    lengths = np.stack([np.diff(column.offsets.to_numpy()) for column in lists])
    largest = [np.maximum.reduceat(column.values.to_numpy(), column.offsets.to_numpy()[:-1]) for column in lists]
    return {
        "longest": lengths[0] + lengths[1:].max(0),
        "shortest": -lengths.min(0),
        "largest id": np.stack(largest).max(0),
    }

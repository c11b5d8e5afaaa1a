"""What is measured of every pair as it is read: by which it is told from others, and how alike its completions are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from llm_runs.data.splitting import prompt_hash
from llm_runs.examples import TokenPair

_Array = np.ndarray[Any, Any]


def measures_of_pairs(pairs: Sequence[TokenPair], columns: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Measures of some pairs, a column each; `columns` are their token ids as lists, `seed` is that of the split.

    - prompt_hash (uint64): of the text, with the seed; prompt_ids_hash (uint64): of the ids
    - pair_hash (uint64): the same for the same two completions of the same prompt in either order; order (bool) tells these apart
    - common_prefix, overlap (float64): see `report.Table`
    """
    order = [pair.chosen_ids <= pair.rejected_ids for pair in pairs]
    prefixes = np.array([_common_prefix(pair.chosen_ids, pair.rejected_ids) for pair in pairs])
    prompts, chosen, rejected = (_pieces(columns[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
    sorted_sides = [(a, b) if first else (b, a) for first, a, b in zip(order, chosen, rejected, strict=True)]
    lengths = [np.diff(columns[name].offsets.to_numpy()) for name in ("chosen_ids", "rejected_ids")]
    common = _tokens_in_common(columns["chosen_ids"], columns["rejected_ids"])
    return {
        "prompt_hash": pa.array([prompt_hash(pair, seed) for pair in pairs], pa.uint64()),
        "prompt_ids_hash": _hashes(prompts),
        "pair_hash": _hashes(prompt + a + b for prompt, (a, b) in zip(prompts, sorted_sides, strict=True)),
        "order": pa.array(order, pa.bool_()),
        "common_prefix": pa.array(prefixes / np.minimum(*lengths)),
        "overlap": pa.array(2 * common / (lengths[0] + lengths[1])),
    }


def sequence_hashes(column: Any) -> Any:
    """64 bits of each list of token ids, (n,) uint64."""
    return _hashes(_pieces(column))


def _pieces(column: Any) -> list[bytes]:
    """Each list of token ids as bytes, its length first: joined, they still tell where one ends."""
    at = column.offsets.to_numpy()
    lengths, values = np.diff(at).astype("<u4").tobytes(), column.values.to_numpy().astype("<i4", copy=False).tobytes()
    ends = (4 * at).tolist()
    return [lengths[4 * n : 4 * n + 4] + values[ends[n] : ends[n + 1]] for n in range(len(ends) - 1)]


def _hashes(contents: Any) -> Any:
    digests = b"".join(hashlib.blake2b(content, digest_size=8).digest() for content in contents)
    return pa.array(np.frombuffer(digests, dtype="<u8"))


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))


def _tokens_in_common(one: Any, other: Any) -> _Array:
    """How many tokens the two lists of each row share, with multiplicities, (n,)."""
    (keys, counts), (others, other_counts) = (_counted(column) for column in (one, other))
    shared, here, there = np.intersect1d(keys, others, assume_unique=True, return_indices=True)
    least = np.minimum(counts[here], other_counts[there])
    return np.bincount(shared >> 32, weights=least, minlength=len(one)).astype(np.int64)


def _counted(column: Any) -> tuple[_Array, _Array]:
    """Row and token in one number, each once, and how often they occur."""
    at, values = column.offsets.to_numpy(), column.values.to_numpy()
    rows = np.repeat(np.arange(len(at) - 1, dtype=np.int64), np.diff(at))
    keys, counts = np.unique(rows << 32 | values, return_counts=True)
    return keys, counts

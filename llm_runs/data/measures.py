"""What is measured of every pair as it is read: by which it is told from others, and how alike its completions are."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from llm_runs.data.splitting import prompt_hash
from llm_runs.examples import TokenPair

# Name: type. `prompt_hash` is of the text, with the seed of the split; `prompt_ids_hash` of the ids; `pair_hash` is the same for the same
# two completions of the same prompt in either order, and `order` tells the two apart. `report.Table` explains the others.
MEASURES: dict[str, Any] = {
    "prompt_hash": np.uint64,
    "prompt_ids_hash": np.uint64,
    "pair_hash": np.uint64,
    "order": np.bool_,
    "common_prefix": np.float64,
    "overlap": np.float64,
}


def measure(pair: TokenPair, seed: int) -> dict[str, Any]:
    """The measures of a pair; `seed` is that of the split."""
    chosen, rejected = pair.chosen_ids, pair.rejected_ids
    shorter = min(len(chosen), len(rejected))
    prefix = next((place for place, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), shorter)
    common = (Counter(chosen) & Counter(rejected)).total()
    first, second = sorted((chosen, rejected))
    return {
        "prompt_hash": prompt_hash(pair, seed),
        "prompt_ids_hash": _hash(pair.prompt_ids),
        "pair_hash": _hash(pair.prompt_ids, first, second),
        "order": chosen == first,
        "common_prefix": prefix / shorter,
        "overlap": 2 * common / (len(chosen) + len(rejected)),
    }


def _hash(*sequences: Sequence[int]) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for ids in sequences:
        digest.update(len(ids).to_bytes(4, "little"))
        digest.update(array("i", ids))
    return int.from_bytes(digest.digest(), "little")

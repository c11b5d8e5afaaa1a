"""Training and held-out pairs by the hash of the prompt: a prompt's side depends on nothing but itself and the seed."""

from __future__ import annotations

import hashlib
import unicodedata
from typing import Any

import numpy as np

from llm_runs.data.problems import PreferenceFileError
from llm_runs.examples import TokenPair


def prompt_hash(pair: TokenPair, seed: int) -> int:
    """64 bits of what makes two prompts the same for splitting: their text without differences of case, width and whitespace."""
    key = " ".join(unicodedata.normalize("NFKC", pair.prompt).casefold().split()) or repr(pair.prompt_ids)
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode("utf-8", "surrogatepass")).digest()[:8])


def held_out(hashes: np.ndarray[Any, Any], fraction: float, source: str = "the data") -> np.ndarray[Any, Any]:
    """Which pairs are held out, (N,) of bool, by the hashes of their prompts (N,); all pairs of a prompt go to the same side.

    About `fraction` of the prompts are held out: those whose hash, read as a number in [0, 1), is below it; at least one on either side.
    The side of a prompt does not change when records are added, removed or reordered (unless it is that only one).

    Raises PreferenceFileError, naming the `source`, where there is a single prompt, so that nothing could be held out.
    """
    lowest, highest = hashes.min(), hashes.max()
    if lowest == highest:
        raise PreferenceFileError(
            f"{source}: all pairs have the same prompt; at least two are needed, so that one can be held out"
        )
    held = hashes < np.uint64(min(int(fraction * 2**64), 2**64 - 1))
    held |= hashes == lowest if not held.any() else False
    held &= hashes != highest if held.all() else True
    return np.asarray(held)

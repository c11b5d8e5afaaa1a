"""Training and held-out pairs by the hash of the prompt: a prompt's side depends on nothing but itself and the seed."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence

from llm_runs.data.problems import PreferenceFileError
from llm_runs.examples import TokenPair


def prompt_key(pair: TokenPair) -> str:
    """What makes two prompts the same for splitting: their text without differences of case, width and whitespace."""
    return " ".join(unicodedata.normalize("NFKC", pair.prompt).casefold().split()) or repr(pair.prompt_ids)


def split(pairs: Sequence[TokenPair], fraction: float, seed: int) -> tuple[list[TokenPair], list[TokenPair]]:
    """Training pairs and held-out pairs; all pairs of a prompt go to the same side.

    About `fraction` of the prompts are held out: those whose hash, read as a number in [0, 1), is below it; at least one on either side.
    The side of a prompt does not change when records are added, removed or reordered (unless it is that only one).

    Raises PreferenceFileError where there is a single prompt, so that nothing could be held out.
    """
    places = {key: _place(key, seed) for key in dict.fromkeys(map(prompt_key, pairs))}
    if len(places) < 2:
        raise PreferenceFileError(
            "all pairs have the same prompt; at least two are needed, so that one can be held out"
        )
    ranked = sorted(places, key=lambda key: places[key])
    held = {key for key in ranked if places[key] < fraction} or {ranked[0]}
    if len(held) == len(ranked):
        held.discard(ranked[-1])
    return [pair for pair in pairs if prompt_key(pair) not in held], [
        pair for pair in pairs if prompt_key(pair) in held
    ]


def without_prompts_of(pairs: Sequence[TokenPair], others: Sequence[TokenPair]) -> list[TokenPair]:
    """The pairs whose prompt is none of the others'."""
    taken = set(map(prompt_key, others))
    ids = {pair.prompt_ids for pair in others}
    return [pair for pair in pairs if prompt_key(pair) not in taken and pair.prompt_ids not in ids]


def _place(key: str, seed: int) -> float:
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode("utf-8", "surrogatepass")).digest()[:7]) / 2**56

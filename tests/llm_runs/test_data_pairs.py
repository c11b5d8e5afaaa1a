"""Preference files of one's own: every way to be wrong is named with file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from llm_runs import preferences
from llm_runs.errors import InputError
from llm_runs.examples import TokenPair
from llm_runs.preferences import PreferenceFileError

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


def read_one(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, row: Any, **options: bool) -> TokenPair:
    (pair,) = preferences.read(write(tmp_path, row), tokenizer, CONTEXT, **options)
    return pair


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
        (GOOD | {"choosen": "x"}, "unknown key 'choosen'; did you mean 'chosen'"),
        (GOOD | {"chosen": ""}, "'chosen' is empty"),
        (GOOD | {"rejected": " \n"}, "'rejected' is empty"),
        (GOOD | {"rejected": GOOD["chosen"]}, "are the same"),
        (GOOD | {"prompt": ""}, "the prompt is empty"),
        (GOOD | {"prompt": "very " * 200}, "the prompt has .* tokens; the model's context is 64"),
        (GOOD | {"chosen": "very " * 200}, "prompt and 'chosen' have .* context is 64"),
        (GOOD | {"chosen": 3}, "'prompt' must be a string like the others or a list"),
        (GOOD | {"chosen": [assistant("b")]}, "must be a string like the others or a list"),
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
        preferences.read(write(tmp_path, GOOD, row), tokenizer, CONTEXT)


def test_the_longest_that_fits(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    pair = read_one(tmp_path, tokenizer, GOOD)
    needed = len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids))
    path = write(tmp_path, GOOD)
    assert preferences.read(path, tokenizer, needed) == [pair]
    with pytest.raises(PreferenceFileError, match=f"context is {needed - 1}"):
        preferences.read(path, tokenizer, needed - 1)


def test_files_that_are_no_files_of_pairs(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(PreferenceFileError, match="cannot be read"):
        preferences.read(tmp_path / "missing.jsonl", tokenizer, CONTEXT)
    with pytest.raises(PreferenceFileError, match="holds no pairs"):
        preferences.read(write(tmp_path, "", " "), tokenizer, CONTEXT)
    path = tmp_path / "latin.jsonl"
    path.write_bytes(json.dumps(GOOD | {"prompt": "Café"}, ensure_ascii=False).encode("latin-1"))
    with pytest.raises(PreferenceFileError, match="not UTF-8"):
        preferences.read(path, tokenizer, CONTEXT)


def test_messages_need_a_template(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    template, tokenizer.chat_template = tokenizer.chat_template, None
    try:
        with pytest.raises(PreferenceFileError, match="chat template"):
            read_one(tmp_path, tokenizer, {key: [assistant(text)] for key, text in GOOD.items()})
    finally:
        tokenizer.chat_template = template


def test_held_out_prompts_are_held_out() -> None:
    pairs = [TokenPair((prompt,), (1,), (2,), id=f"{prompt}/{copy}") for prompt in range(20) for copy in range(3)]
    training, held_out = preferences.split(pairs, 0.25, seed=0)
    assert (len(training), len(held_out)) == (45, 15)
    assert not {pair.prompt_ids for pair in training} & {pair.prompt_ids for pair in held_out}
    assert preferences.split(pairs, 0.25, seed=0) == (training, held_out)
    assert preferences.split(pairs, 0.25, seed=1) != (training, held_out)
    assert [len(side) for side in preferences.split(pairs[:6], 0.01, seed=0)] == [3, 3]
    with pytest.raises(InputError, match="at least two"):
        preferences.split(pairs[:3], 0.5, seed=0)

"""Your own preference pairs, from a JSONL file.

Each line is an object with `prompt`, `chosen` and `rejected`: three strings, or three lists of messages
`{"role": ..., "content": ...}`. With lists, `prompt` may be left out: it is then what `chosen` and `rejected` begin with
in common. Messages go through the tokenizer's chat template. Further keys that are understood: `id`, `chosen_reward`,
`rejected_reward`, `probability`. The whole file is checked before anything is made of it.
"""

from __future__ import annotations

import difflib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from llm_runs.errors import InputError
from llm_runs.examples import TokenPair

_REQUIRED = ("prompt", "chosen", "rejected")
_OPTIONAL = ("id", "chosen_reward", "rejected_reward", "probability")

Messages = list[dict[str, str]]


class PreferenceFileError(InputError):
    """A preference file that cannot be used; the message names the file, the line and the reason."""


class _Problem(Exception):
    """What is wrong with one line."""


def read(
    path: Path, tokenizer: PreTrainedTokenizerBase, context: int, *, chat_template: bool = False
) -> list[TokenPair]:
    """All pairs of the file as token ids; completions end with the end-of-text token.

    Args:
        path: the JSONL file, UTF-8.
        tokenizer: its chat template is used for lists of messages.
        context: the most tokens of prompt and completion together.
        chat_template: treat a plain prompt as a user's message and plain completions as the assistant's.

    Raises:
        PreferenceFileError: no such file, not UTF-8, malformed JSON, a missing or unknown key, a wrong type, an empty
            completion, two equal completions, or more tokens than the context holds.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise PreferenceFileError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise PreferenceFileError(f"{path}: cannot be read ({error.strerror})") from error
    pairs = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            pairs.append(_pair(line, tokenizer, context, chat_template, default_id=str(number)))
        except _Problem as problem:
            raise PreferenceFileError(f"{path}, line {number}: {problem}") from problem
    if not pairs:
        raise PreferenceFileError(f"{path}: holds no pairs")
    return pairs


def split(pairs: Sequence[TokenPair], fraction: float, seed: int) -> tuple[list[TokenPair], list[TokenPair]]:
    """Training pairs and held-out pairs; all pairs of a prompt go to the same side.

    Raises InputError where the file has a single prompt, so that nothing could be held out.
    """
    prompts = list(dict.fromkeys(pair.prompt_ids for pair in pairs))
    if len(prompts) < 2:
        raise InputError("all pairs have the same prompt; at least two are needed, so that one can be held out")
    held = min(max(1, round(fraction * len(prompts))), len(prompts) - 1)
    held_out = set(random.Random(seed).sample(prompts, held))
    return (
        [pair for pair in pairs if pair.prompt_ids not in held_out],
        [pair for pair in pairs if pair.prompt_ids in held_out],
    )


def _pair(
    line: str, tokenizer: PreTrainedTokenizerBase, context: int, chat_template: bool, default_id: str
) -> TokenPair:
    row = _parse(line)
    prompt, chosen, rejected = _texts(row, tokenizer, chat_template)
    prompt_ids = tuple(tokenizer(prompt, add_special_tokens=isinstance(row.get("prompt"), str)).input_ids)
    if not prompt_ids:
        raise _Problem("the prompt is empty")
    if len(prompt_ids) >= context:
        raise _Problem(f"the prompt has {len(prompt_ids)} tokens; the model's context is {context}. Shorten it")
    completions = {}
    for key, text in (("chosen", chosen), ("rejected", rejected)):
        ids = list(tokenizer(text, add_special_tokens=False).input_ids)
        if ids[-1] != tokenizer.eos_token_id:
            ids.append(tokenizer.eos_token_id)
        if len(prompt_ids) + len(ids) > context:
            total = len(prompt_ids) + len(ids)
            raise _Problem(
                f"prompt and {key!r} have {total} tokens together; the model's context is {context}. Shorten"
            )
        completions[key] = tuple(ids)
    if completions["chosen"] == completions["rejected"]:
        raise _Problem("'chosen' and 'rejected' are the same")
    return TokenPair(
        prompt_ids,
        completions["chosen"],
        completions["rejected"],
        prompt,
        chosen,
        rejected,
        id=str(row.get("id", default_id)),
        chosen_reward=row.get("chosen_reward"),
        rejected_reward=row.get("rejected_reward"),
        probability=row.get("probability"),
    )


def _parse(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise _Problem(f"not valid JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(row, dict):
        raise _Problem(f"expected an object with the keys {', '.join(_REQUIRED)}")
    for key in row:
        if key not in _REQUIRED + _OPTIONAL:
            near = difflib.get_close_matches(key, _REQUIRED + _OPTIONAL, n=1)
            raise _Problem(f"unknown key {key!r}; {f'did you mean {near[0]!r}?' if near else ''} known: "
                           f"{', '.join(_REQUIRED + _OPTIONAL)}")  # fmt: skip
    for key in ("chosen_reward", "rejected_reward", "probability"):
        value = row.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise _Problem(f"{key!r} must be a number")
    if row.get("probability") is not None and not 0 <= row["probability"] <= 1:
        raise _Problem("'probability' must lie in [0, 1]")
    for key in ("chosen", "rejected"):
        if key not in row:
            raise _Problem(f"the key {key!r} is missing")
    if "prompt" not in row and not isinstance(row["chosen"], list):
        raise _Problem("the key 'prompt' is missing")
    return row


def _texts(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, chat_template: bool) -> tuple[str, str, str]:
    """Prompt, chosen and rejected as text, after the chat template where there is one to apply."""
    values = [row.get(key) for key in _REQUIRED]
    if all(isinstance(value, str) for value in values):
        prompt, chosen, rejected = (str(value) for value in values)
        for key, text in (("chosen", chosen), ("rejected", rejected)):
            if not text.strip():
                raise _Problem(f"{key!r} is empty")
        if not chat_template:
            return prompt, chosen, rejected
        messages = [_message("user", prompt)], [_message("assistant", chosen)], [_message("assistant", rejected)]
    else:
        messages = _conversation(row)
    if not tokenizer.chat_template:
        raise _Problem("messages need a chat template, but this model's tokenizer has none; use plain strings")
    return _render(tokenizer, *messages)


def _conversation(row: dict[str, Any]) -> tuple[Messages, Messages, Messages]:
    """Prompt, chosen and rejected messages; without `prompt`, the common beginning of the two is the prompt."""
    for key in _REQUIRED:
        if key in row:
            _check_messages(key, row[key])
    chosen, rejected = row["chosen"], row["rejected"]
    if "prompt" in row:
        prompt = row["prompt"]
    else:
        shared = 0
        while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
            shared += 1
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
        if not prompt:
            raise _Problem("'chosen' and 'rejected' have no common beginning, and there is no 'prompt'")
        if not chosen and not rejected:
            raise _Problem("'chosen' and 'rejected' are the same")
    for key, messages in (("chosen", chosen), ("rejected", rejected)):
        if not messages or not any(message["content"].strip() for message in messages):
            raise _Problem(f"{key!r} is empty")
    return prompt, chosen, rejected


def _check_messages(key: str, value: Any) -> None:
    if not isinstance(value, list):
        raise _Problem(
            f"{key!r} must be a string like the others or a list of messages like the others, not {type(value).__name__}"
        )
    if not value:
        raise _Problem(f"{key!r} is empty")
    for message in value:
        if not (
            isinstance(message, dict)
            and set(message) == {"role", "content"}
            and all(isinstance(text, str) for text in message.values())
        ):
            raise _Problem(f'{key!r}: each message must be {{"role": "...", "content": "..."}}, not {message!r:.80}')


def _render(
    tokenizer: PreTrainedTokenizerBase, prompt: Messages, chosen: Messages, rejected: Messages
) -> tuple[str, str, str]:
    """Texts whose concatenation is what the template makes of the whole conversation."""
    try:
        start: str = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        whole = [tokenizer.apply_chat_template([*prompt, *end], tokenize=False) for end in (chosen, rejected)]
    except Exception as error:  # templates are programs and raise what they like
        raise _Problem(f"the chat template refuses this conversation: {error}") from error
    if not all(text.startswith(start) for text in whole):
        raise _Problem("the chat template does not keep the prompt as it is once an answer follows; use plain strings")
    # What templates write after the end-of-text token (a line break, mostly), the model never generates.
    endings = []
    for text in whole:
        head, end, tail = text[len(start) :].rpartition(tokenizer.eos_token)
        endings.append(head + end if end and not tail.strip() else text[len(start) :])
    return start, endings[0], endings[1]


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}

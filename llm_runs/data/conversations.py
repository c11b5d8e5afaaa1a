"""Conversations: lists of messages, HH-RLHF transcripts, and the prompt that two of either have in common."""

from __future__ import annotations

import re
from typing import Any

from llm_runs.data.problems import Problem

Message = dict[str, str]
Messages = list[Message]
Text = str | Messages

ROLES = ("system", "user", "assistant")
_TURN = re.compile(r"\n\n(Human|Assistant):")
_ANSWER = "\n\nAssistant:"


def user(content: str) -> Message:
    """A message of the user."""
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    """A message of the assistant."""
    return {"role": "assistant", "content": content}


def messages(field: str, value: Any) -> Messages:
    """`value` as a list of messages with role and content only. Raises Problem, naming the field and the message."""
    if not isinstance(value, list):
        raise Problem("wrong type", f"{field!r} must be text or a list of messages, not {type(value).__name__}")
    if not value:
        raise Problem("empty", f"{field!r} is empty")
    found = []
    for number, entry in enumerate(value, start=1):
        known = {key: text for key, text in entry.items() if text is not None} if isinstance(entry, dict) else {}
        if set(known) != {"role", "content"} or not all(isinstance(text, str) for text in known.values()):
            raise Problem(
                "wrong type",
                f'{field!r}, message {number}: each message must be {{"role": "...", "content": "..."}}, not {entry!r:.80}',
            )
        if known["role"] not in ROLES:
            raise Problem(
                "unknown role",
                f"{field!r}, message {number}: the role {known['role']!r} is none of {', '.join(ROLES)}",
            )
        found.append(known)
    return found


def check_exchange(prompt: Messages, completion: Messages, field: str) -> None:
    """Raise Problem unless prompt and completion together alternate between user and assistant.

    One system message may come first; the prompt ends with the user, the completion begins and ends with the assistant, and no
    message is empty. `field` is what the completion is called in messages.
    """
    if not completion:
        raise Problem("empty", f"{field!r} is empty: there is no message of the assistant")
    _check_turns([*_numbered("prompt", prompt), *_numbered(field, completion)])
    if not prompt or prompt[-1]["role"] != "user":
        raise Problem("does not alternate", "'prompt' must end with a message of the user")


def _numbered(field: str, part: Messages) -> list[tuple[str, Message]]:
    """Messages with what they are called in error messages."""
    if len(part) == 1:
        return [(repr(field), part[0])]
    return [(f"{field!r}, message {number}", message) for number, message in enumerate(part, start=1)]


def _check_turns(turns: list[tuple[str, Message]]) -> None:
    """Raise Problem unless user and assistant alternate, the user first and the assistant last, with none empty."""
    for place, message in turns:
        if not message["content"].strip():
            raise Problem("empty", f"{place} is empty")
    if turns[0][1]["role"] == "system":
        turns = turns[1:]
    for number, (place, message) in enumerate(turns):
        expected = ("user", "assistant")[number % 2]
        if message["role"] != expected:
            raise Problem(
                "does not alternate",
                f"{place}: user and assistant must alternate, but where the {expected} is due comes the {message['role']}",
            )
    if len(turns) % 2:
        place, _ = turns[-1]
        raise Problem("does not alternate", f"{place}: the last message must be one of the assistant")


def split_messages(chosen: Messages, rejected: Messages) -> tuple[Messages, Messages, Messages]:
    """Prompt (the messages that both begin with), and what follows it in each."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if not shared:
        raise Problem("no common prompt", "'chosen' and 'rejected' have no common beginning, and there is no 'prompt'")
    if shared == len(chosen) == len(rejected):
        raise Problem("identical", "'chosen' and 'rejected' are the same")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def split_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Prompt (what both begin with, up to its last whitespace, so that no word is cut), and what follows it in each."""
    if chosen == rejected:
        raise Problem("identical", "'chosen' and 'rejected' are the same")
    common = _common_start(chosen, rejected)
    whole_words = re.match(r"(.*\S)(?=\s)", common, re.DOTALL)
    if whole_words is None:
        raise Problem(
            "no common prompt", "the key 'prompt' is missing, and 'chosen' and 'rejected' have no common beginning"
        )
    prompt = whole_words[1]
    return prompt, chosen[len(prompt) :], rejected[len(prompt) :]


def _common_start(one: str, other: str) -> str:
    end = next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
    return one[:end]


def is_transcript(value: Any) -> bool:
    """Whether this is text in HH-RLHF's form."""
    return isinstance(value, str) and re.match(r"\s*Human:.*\n\r?\nAssistant:", value, re.DOTALL) is not None


def split_transcripts(chosen: Any, rejected: Any) -> tuple[str, str, str]:
    r"""Prompt, chosen and rejected of two HH-RLHF transcripts ("\n\nHuman: ...\n\nAssistant: ...").

    The prompt is the common beginning up to and with its last "\n\nAssistant:". Raises Problem where a transcript does not alternate,
    has an empty turn, or where the two part before their last turn.
    """
    chosen, rejected = _transcript("chosen", chosen), _transcript("rejected", rejected)
    if chosen == rejected:
        raise Problem("identical", "'chosen' and 'rejected' are the same")
    start = _common_start(chosen, rejected).rfind(_ANSWER)
    if start < 0:
        raise Problem("no common prompt", "'chosen' and 'rejected' have no common beginning up to an Assistant's turn")
    end = start + len(_ANSWER)
    for field, transcript in (("chosen", chosen), ("rejected", rejected)):
        if _TURN.search(transcript, end):
            raise Problem("parts early", f"{field!r} goes on after the answer in which the two transcripts part")
    return chosen[:end], chosen[end:], rejected[end:]


def _transcript(field: str, value: Any) -> str:
    """A checked transcript, its lines ended as on Unix."""
    if not isinstance(value, str):
        raise Problem("wrong type", f"{field!r} must be a transcript (text), not {type(value).__name__}")
    transcript = "\n\n" + value.replace("\r\n", "\n").lstrip()
    turns = transcript_messages(transcript)
    if not turns:
        raise Problem("not a transcript", rf"{field!r} must begin with '\n\nHuman:' and go on with '\n\nAssistant:'")
    _check_turns(_numbered(field, turns))
    return transcript


def transcript_messages(transcript: str) -> Messages:
    """The turns of a transcript as messages, without the whitespace around them; none where it begins otherwise."""
    before, *parts = _TURN.split(transcript)
    if before.strip():
        return []
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[name], "content": text.strip()} for name, text in zip(parts[::2], parts[1::2], strict=True)]

"""Prompts alone, from any source that preference data may come from: a field `prompt` of text or messages."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from llm_runs.config import ReadingConfig
from llm_runs.data.conversations import Text, messages
from llm_runs.data.formats import Fields, check_columns, rename
from llm_runs.data.problems import PreferenceFileError, Problem
from llm_runs.data.rendering import Renderer
from llm_runs.data.sources import open_source


def read(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    longest: int,
    reading: ReadingConfig,
    *,
    chat_template: bool = False,
) -> list[tuple[int, ...]]:
    """The different prompts of a source as token ids, in their order; a prompt that occurs again is left out.

    Args:
        name: file, folder or hub id; see `sources.open_source`.
        tokenizer: its chat template renders messages.
        longest: the most tokens of a prompt.
        reading: `columns`, `split`, `subset`, `revision` and `max_records`.
        chat_template: treat plain prompts as a user's message.

    Raises:
        PreferenceFileError: an unreadable source, a record without a usable prompt (with its place), or no prompts.
    """
    source = open_source(name, reading.split, reading.subset, reading.revision)
    renderer = Renderer(tokenizer, longest, reading, chat_template=chat_template)
    found: dict[tuple[int, ...], None] = {}
    for number, (place, values) in enumerate(source.records):
        if number == reading.max_records:
            break
        try:
            if isinstance(values, Problem):
                raise values
            if not isinstance(values, dict):
                raise Problem("wrong type", f"expected an object with the key 'prompt', not {type(values).__name__}")
            if number == 0:
                check_columns(reading.columns, list(values), place)
            prompt = renderer.prompt(_prompt(Fields(rename(values, reading.columns))))
            if len(prompt) > longest:
                raise Problem(
                    "too long",
                    f"the prompt has {len(prompt)} tokens, but with the completion the model's context leaves {longest}: "
                    "shorten it, or lower data.completion_tokens",
                )
        except Problem as problem:
            raise PreferenceFileError(f"{place}: {problem}") from problem
        found[prompt] = None
    if not found:
        raise PreferenceFileError(f"{source.name}: holds no prompts")
    return list(found)


def _prompt(fields: Fields) -> Text:
    value = fields.get("prompt")
    if isinstance(value, str):
        return fields.text("prompt")
    asked = messages("prompt", value)
    if asked[-1]["role"] == "assistant":
        raise Problem("wrong turn", "'prompt' ends with the assistant's message, so there is nothing to answer")
    return asked

"""Whether a text's tokens give the text back: where they do not, the model is trained on other words than the data have."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def read_back(tokenizer: PreTrainedTokenizerBase, text: str, ids: Sequence[int]) -> str | None:
    """What the tokens `ids` of `text` say where that is not the text, else None.

    White space at the ends does not count, because some tokenizers add or drop it; neither do the begin- and end-of-text tokens that the
    tokenizer adds itself.
    """
    back = str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
    if back == text:
        return None
    begin, end = tokenizer.bos_token, tokenizer.eos_token
    if begin and not text.startswith(begin):
        back = back.removeprefix(begin)
    if end and not text.endswith(end):
        back = back.removesuffix(end)
    return None if back.strip() == text.strip() else back


def said(text: str, back: str) -> str:
    """Words for where the two part, with a little of both."""
    place = next((i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), min(len(text), len(back)))
    shown = slice(max(0, place - 10), place + 30)
    return f"at character {place + 1} {text[shown]!r} comes back as {back[shown]!r}"

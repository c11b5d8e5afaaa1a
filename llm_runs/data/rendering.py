"""Texts and conversations to token ids: the chat template is applied here, once, and nothing is tokenised again afterwards."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from llm_runs.config import ReadingConfig
from llm_runs.data import conversations
from llm_runs.data.conversations import Messages, Text, assistant, user
from llm_runs.data.formats import Comparison, Scored, Unpaired
from llm_runs.data.problems import Problem
from llm_runs.examples import TokenPair, TokenSample

SAME_WHEN_CUT = "identical after truncation"


@dataclass(frozen=True)
class _Rendered:
    """One prompt with answers, as text; their concatenation is what the model sees."""

    prompt: str
    answers: tuple[str, ...]
    special: (
        bool  # whether the tokenizer adds its own special tokens to the prompt (a template has written them already)
    )


@dataclass(frozen=True)
class _Encoded:
    """The same in token ids, within the limits; texts are of what was kept."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[tuple[int, ...], ...]
    prompt: str
    answers: tuple[str, ...]


class Renderer:
    """Renders prompts and answers with one tokenizer, and cuts what is too long, counting it.

    Args:
        tokenizer: its chat template renders messages.
        context: the most tokens of prompt and completion together.
        reading: limits and what to do with what exceeds them.
        chat_template: treat a plain prompt as a user's message and plain answers (and HH-RLHF transcripts) as conversations.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, context: int, reading: ReadingConfig, *, chat_template: bool = False
    ) -> None:
        self.tokenizer, self.context, self.reading, self.chat_template = tokenizer, context, reading, chat_template
        self.truncated: Counter[str] = Counter()  # "prompts", "completions"
        self.rendered: Counter[str] = Counter()  # "plain text", "chat template"
        self._ids: dict[int, int] = {}  # one object for each id, however often it occurs

    @property
    def template_hash(self) -> str | None:
        """sha256 of the tokenizer's chat template; None where it has none."""
        template = self.tokenizer.chat_template
        return hashlib.sha256(str(template).encode()).hexdigest() if template else None

    def pair(self, comparison: Comparison) -> TokenPair:
        """A comparison in token ids; completions end with the end-of-text token unless they were cut. Raises Problem."""
        rendered = self._render(comparison.prompt, (comparison.chosen, comparison.rejected), ("chosen", "rejected"))
        encoded = self._encode(rendered, ("chosen", "rejected"))
        chosen, rejected = encoded.completion_ids
        if chosen == rejected:
            if self.reading.overlong == "truncate":
                raise Problem(SAME_WHEN_CUT, "what is left of 'chosen' and 'rejected' is the same")
            raise Problem("identical", "'chosen' and 'rejected' are the same in tokens")
        return TokenPair(
            encoded.prompt_ids,
            chosen,
            rejected,
            encoded.prompt,
            encoded.answers[0],
            encoded.answers[1],
            id=comparison.id,
            chosen_reward=comparison.chosen_score,
            rejected_reward=comparison.rejected_score,
            probability=comparison.probability,
        )

    def samples(self, example: Scored | Unpaired) -> list[TokenSample]:
        """Each completion with its score (or 1 and 0 for desirable and undesirable ones) in token ids. Raises Problem."""
        if isinstance(example, Scored):
            answers, scores = example.answers, example.scores
            fields = [f"completions[{place}]" for place in range(1, len(answers) + 1)]
        else:
            answers, scores, fields = (example.answer,), (float(example.label),), ["completion"]
        encoded = self._encode(self._render(example.prompt, answers, fields), fields)
        return [
            TokenSample(encoded.prompt_ids, ids, encoded.prompt, text, reward=score)
            for ids, text, score in zip(encoded.completion_ids, encoded.answers, scores, strict=True)
        ]

    def prompt(self, prompt: Text) -> tuple[int, ...]:
        """A prompt alone in token ids, whole. Raises Problem."""
        rendered = self._render(prompt, (), ())
        ids = self._tokens(rendered.prompt, special=rendered.special)
        if not ids:
            raise Problem("empty", "the prompt is empty")
        return ids

    # -- text ------------------------------------------------------------------------------------------------------

    def _render(self, prompt: Text, answers: Sequence[Text], fields: Sequence[str]) -> _Rendered:
        if isinstance(prompt, str) and all(isinstance(answer, str) for answer in answers):
            texts = [str(answer) for answer in answers]
            if not self.chat_template:
                self.rendered["plain text"] += 1
                return _Rendered(prompt, tuple(texts), special=True)
            if conversations.is_transcript(prompt):
                asked = conversations.transcript_messages(prompt)[:-1]  # the last turn is the one to be written
                texts = [text.strip() for text in texts]
            else:
                asked = [user(prompt)]
            given = [[assistant(text)] for text in texts]
        else:
            assert not isinstance(prompt, str)
            asked, given = prompt, [answer for answer in answers if not isinstance(answer, str)]
        if not self.tokenizer.chat_template:
            raise Problem(
                "no chat template",
                "messages need a chat template, but this model's tokenizer has none; set model.template (dialogue, chatml, or a "
                "Jinja file)",
            )
        self.rendered["chat template"] += 1
        start, endings = self._apply_template(asked, given, fields)
        return _Rendered(start, tuple(endings), special=False)

    def _apply_template(
        self, prompt: Messages, answers: Sequence[Messages], fields: Sequence[str]
    ) -> tuple[str, list[str]]:
        """Texts whose concatenation is what the template makes of the whole conversation."""
        apply = self.tokenizer.apply_chat_template
        try:
            start = str(apply(prompt, tokenize=False, add_generation_prompt=True))
            whole = [str(apply([*prompt, *answer], tokenize=False)) for answer in answers]
        except Exception as error:  # templates are programs and raise what they like
            raise Problem("template", f"the chat template refuses this conversation: {error}") from error
        _check_content(start, prompt, "prompt")
        if not all(text.startswith(start) for text in whole):
            raise Problem(
                "template",
                "the chat template does not keep the prompt as it is once an answer follows; use plain strings",
            )
        # What templates write after the end-of-text token (a line break, mostly), the model never generates.
        endings = []
        for text, answer, field in zip(whole, answers, fields, strict=True):
            head, end, tail = text[len(start) :].rpartition(self.tokenizer.eos_token)
            endings.append(head + end if end and not tail.strip() else text[len(start) :])
            _check_content(endings[-1], answer, field)
        return start, endings

    # -- token ids -------------------------------------------------------------------------------------------------

    def _encode(self, rendered: _Rendered, fields: Sequence[str]) -> _Encoded:
        prompt = self._tokens(rendered.prompt, special=rendered.special)
        if not prompt:
            raise Problem("empty", "the prompt is empty")
        eos = self.tokenizer.eos_token_id
        completions = [self._tokens(text) for text in rendered.answers]
        completions = [ids if ids and ids[-1] == eos else (*ids, eos) for ids in completions]
        if self.reading.overlong == "truncate":
            return self._cut(rendered, prompt, completions)
        self._check_lengths(prompt, completions, fields)
        return _Encoded(prompt, tuple(completions), rendered.prompt, rendered.answers)

    def _tokens(self, text: str, *, special: bool = False) -> tuple[int, ...]:
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON may spell half of a surrogate pair
            raise Problem("not text", f"holds {text[error.start]!r}, which is no character") from error
        ids = self.tokenizer(text, add_special_tokens=special).input_ids
        return tuple(self._ids.setdefault(token, token) for token in ids)

    def _check_lengths(
        self, prompt: tuple[int, ...], completions: Sequence[tuple[int, ...]], fields: Sequence[str]
    ) -> None:
        reading, context = self.reading, self.context
        if reading.max_prompt_tokens and len(prompt) > reading.max_prompt_tokens:
            raise Problem(
                "too long",
                f"the prompt has {len(prompt)} tokens; data.reading.max_prompt_tokens is {reading.max_prompt_tokens}. {_ADVICE}",
            )
        if len(prompt) >= context:
            raise Problem(
                "too long", f"the prompt has {len(prompt)} tokens; the model's context is {context}. {_ADVICE}"
            )
        for field, ids in zip(fields, completions, strict=True):
            if reading.max_completion_tokens and len(ids) > reading.max_completion_tokens:
                raise Problem(
                    "too long",
                    f"{field!r} has {len(ids)} tokens; data.reading.max_completion_tokens is "
                    f"{reading.max_completion_tokens}. {_ADVICE}",
                )
            if len(prompt) + len(ids) > context:
                raise Problem(
                    "too long",
                    f"prompt and {field!r} have {len(prompt) + len(ids)} tokens together; the model's context is "
                    f"{context}. {_ADVICE}",
                )

    def _cut(self, rendered: _Rendered, prompt: tuple[int, ...], completions: Sequence[tuple[int, ...]]) -> _Encoded:
        """Completions lose their end, the prompt its beginning (or end). Without limits a completion may have half the context."""
        reading, context = self.reading, self.context
        wanted = min(len(prompt), reading.max_prompt_tokens or context)
        completion_limit = min(reading.max_completion_tokens or max(context // 2, context - wanted), context - 1)
        prompt_limit = min(wanted, context - min(max(map(len, completions)), completion_limit))
        text, answers = rendered.prompt, list(rendered.answers)
        if len(prompt) > prompt_limit:
            self.truncated["prompts"] += 1
            prompt = self._cut_prompt(prompt, prompt_limit)
            text = self.tokenizer.decode(prompt)
        kept = []
        for place, ids in enumerate(completions):
            if len(ids) > completion_limit:
                self.truncated["completions"] += 1
                ids = ids[:completion_limit]  # without an end: it goes on
                answers[place] = self.tokenizer.decode(ids)
            kept.append(ids)
        return _Encoded(prompt, tuple(kept), text, tuple(answers))

    def _cut_prompt(self, ids: tuple[int, ...], limit: int) -> tuple[int, ...]:
        if self.reading.prompt_keep == "start":
            return ids[:limit]
        bos = self.tokenizer.bos_token_id
        if limit > 1 and ids[0] == bos and bos not in ids[1:]:  # the text's own beginning, not that of a turn
            return (ids[0], *ids[len(ids) - limit + 1 :])
        return ids[len(ids) - limit :]


_ADVICE = "Shorten it, or set data.reading.overlong to truncate or drop"


def _check_content(text: str, messages: Messages, field: str) -> None:
    """Raise Problem where the rendered text lacks what a message says."""
    for number, message in enumerate(messages, start=1):
        if message["content"].strip() not in text:
            raise Problem(
                "template",
                f"the chat template drops message {number} ({message['role']}) of {field!r}; its text is not in what the template writes",
            )

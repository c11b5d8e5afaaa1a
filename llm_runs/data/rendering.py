"""Texts and conversations to token ids: the chat template is applied here, once, and nothing is tokenised again afterwards."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from llm_runs import round_trip
from llm_runs.config import ReadingConfig
from llm_runs.data import conversations
from llm_runs.data.conversations import Messages, Text, assistant, user
from llm_runs.data.formats import Comparison, Scored, Unpaired
from llm_runs.data.problems import Problem, not_text
from llm_runs.examples import TokenPair, TokenSample

SAME_WHEN_CUT = "identical after truncation"
_CAME_BACK = 20  # texts kept of those that their tokens do not give back


@dataclass(frozen=True)
class _Rendered:
    """One prompt with answers, as text; their concatenation is what the model sees."""

    prompt: str
    answers: tuple[str, ...]
    fields: tuple[str, ...]  # what the answers are called in messages
    # Whether the tokenizer adds its own special tokens to the prompt (a template has written them already).
    special: bool


@dataclass(frozen=True)
class _Encoded:
    """The same in token ids, within the limits; texts are of what was kept."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[tuple[int, ...], ...]
    prompt: str
    answers: tuple[str, ...]


_Tokens = tuple[int, ...] | Problem


class Renderer:
    """Renders prompts and answers with one tokenizer, and cuts what is too long, counting it.

    Args:
        tokenizer: its chat template renders messages.
        context: the most tokens of prompt and completion together.
        reading: limits and what to do with what exceeds them.
        chat_template: treat a plain prompt as a user's message and plain answers (and HH-RLHF transcripts) as conversations.
        round_trip: what to do about texts whose tokens do not give them back: "stop" makes them problems of their records, "warn" counts
            them in `changed` and keeps the first few in `came_back`, "ignore" does not look.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        context: int,
        reading: ReadingConfig,
        *,
        chat_template: bool = False,
        round_trip: str = "warn",
    ) -> None:
        self.tokenizer, self.context, self.reading, self.chat_template = tokenizer, context, reading, chat_template
        self.truncated: Counter[str] = Counter()  # "prompts", "completions"
        self.rendered: Counter[str] = Counter()  # "plain text", "chat template"
        self.round_trip = round_trip
        self.changed: Counter[str] = Counter()  # "texts"
        self.came_back: list[tuple[str, str, tuple[int, ...]]] = []  # text, what its tokens say, the tokens

    @property
    def template_hash(self) -> str | None:
        """sha256 of the tokenizer's chat template; None where it has none."""
        template = self.tokenizer.chat_template
        return hashlib.sha256(str(template).encode()).hexdigest() if template else None

    def in_tokens(
        self, examples: Sequence[Comparison | Scored | Unpaired | Problem]
    ) -> list[TokenPair | list[TokenSample] | Problem]:
        """Examples in token ids, tokenised together because that is several times faster than one by one.

        A comparison becomes a pair, whose completions end with the end-of-text token unless they were cut. Of others each completion
        becomes a sample with its score (1 and 0 for desirable and undesirable ones). What cannot be used becomes its problem;
        problems that are given stay.
        """
        drafts = [self._draft(example) for example in examples]
        good = [draft for draft in drafts if isinstance(draft, _Rendered)]
        prompts: dict[bool, Iterator[_Tokens]] = {
            special: iter(self._tokens([draft.prompt for draft in good if draft.special == special], special))
            for special in (True, False)
        }
        answers = iter(self._tokens([answer for draft in good for answer in draft.answers]))
        found: list[TokenPair | list[TokenSample] | Problem] = []
        for example, draft in zip(examples, drafts, strict=True):
            if isinstance(draft, Problem):
                found.append(draft)
                continue
            prompt, completions = next(prompts[draft.special]), [next(answers) for _ in draft.answers]
            assert not isinstance(example, Problem)
            try:
                encoded = self._encode(draft, prompt, completions)
                found.append(
                    self._pair(example, encoded) if isinstance(example, Comparison) else _samples(example, encoded)
                )
            except Problem as problem:
                found.append(problem)
        return found

    def _draft(self, example: Comparison | Scored | Unpaired | Problem) -> _Rendered | Problem:
        if isinstance(example, Problem):
            return example
        answers: Sequence[Text]
        fields: tuple[str, ...]
        if isinstance(example, Comparison):
            answers, fields = (example.chosen, example.rejected), ("chosen", "rejected")
        elif isinstance(example, Scored):
            answers = example.answers
            fields = tuple(f"completions[{place}]" for place in range(1, len(answers) + 1))
        else:
            answers, fields = (example.answer,), ("completion",)
        try:
            return self._render(example.prompt, answers, fields)
        except Problem as problem:
            return problem

    def _pair(self, comparison: Comparison, encoded: _Encoded) -> TokenPair:
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

    def prompt(self, prompt: Text) -> tuple[int, ...]:
        """A prompt alone in token ids, whole. Raises Problem."""
        rendered = self._render(prompt, (), ())
        (ids,) = self._tokens([rendered.prompt], rendered.special)
        if not (usable := _usable(ids)):
            raise Problem("empty", "the prompt is empty")
        return usable

    # -- text ------------------------------------------------------------------------------------------------------

    def _render(self, prompt: Text, answers: Sequence[Text], fields: Sequence[str]) -> _Rendered:
        if isinstance(prompt, str) and all(isinstance(answer, str) for answer in answers):
            texts = [str(answer) for answer in answers]
            if not self.chat_template:
                self.rendered["plain text"] += 1
                return _Rendered(prompt, tuple(texts), tuple(fields), special=True)
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
        return _Rendered(start, tuple(endings), tuple(fields), special=False)

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

    def _encode(self, rendered: _Rendered, prompt: _Tokens, answers: Sequence[_Tokens]) -> _Encoded:
        prompt = _usable(prompt)
        if not prompt:
            raise Problem("empty", "the prompt is empty")
        eos = self.tokenizer.eos_token_id
        completions = [_usable(ids) for ids in answers]
        completions = [ids if ids and ids[-1] == eos else (*ids, eos) for ids in completions]
        if self.reading.overlong == "truncate":
            return self._cut(rendered, prompt, completions)
        self._check_lengths(prompt, completions, rendered.fields)
        return _Encoded(prompt, tuple(completions), rendered.prompt, rendered.answers)

    def _tokens(self, texts: Sequence[str], special: bool = False) -> list[_Tokens]:
        """Token ids of each text; where it holds what is no character, the problem."""
        problems = {place: problem for place, text in enumerate(texts) if (problem := not_text(text))}
        found = _tokenized(self.tokenizer, ["" if at in problems else text for at, text in enumerate(texts)], special)
        if self.round_trip != "ignore":
            self._check_round_trips(texts, found, problems)
        return [problems.get(place, tuple(ids)) for place, ids in enumerate(found)]

    def _check_round_trips(
        self, texts: Sequence[str], ids: Sequence[Sequence[int]], problems: dict[int, Problem]
    ) -> None:
        """Texts that their tokens do not give back are counted, or become problems."""
        for place, (text, tokens) in enumerate(zip(texts, ids, strict=True)):
            if place in problems or (back := round_trip.read_back(self.tokenizer, text, tokens)) is None:
                continue
            if self.round_trip == "stop":
                said = round_trip.said(text, back)
                problems[place] = Problem("round trip", f"its tokens do not give the text back: {said}")
                continue
            self.changed["texts"] += 1
            if len(self.came_back) < _CAME_BACK:
                self.came_back.append((text, back, tuple(tokens)))

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


def _samples(example: Scored | Unpaired, encoded: _Encoded) -> list[TokenSample]:
    scores = example.scores if isinstance(example, Scored) else (float(example.label),)
    return [
        TokenSample(encoded.prompt_ids, ids, encoded.prompt, text, reward=score)
        for ids, text, score in zip(encoded.completion_ids, encoded.answers, scores, strict=True)
    ]


def _usable(ids: _Tokens) -> tuple[int, ...]:
    if isinstance(ids, Problem):
        raise ids
    return ids


def _tokenized(tokenizer: PreTrainedTokenizerBase, texts: list[str], special: bool) -> Sequence[Sequence[int]]:
    """Token ids of each text, by the tokenizer's Rust part alone where it has one: masks and types would take as long again."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or len(texts) < _MANY:
        return list(tokenizer(texts, add_special_tokens=special).input_ids) if texts else []
    first = tokenizer(
        texts[0], add_special_tokens=special
    ).input_ids  # this also ends padding and cutting in the Rust part
    found = [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=special)]
    if found[0] != list(first):  # a tokenizer with more to it than its Rust part
        return list(tokenizer(texts, add_special_tokens=special).input_ids)
    return found


_MANY = 16  # texts from which on it pays
_ADVICE = "Shorten it, or set data.reading.overlong to truncate or drop"


def _check_content(text: str, messages: Messages, field: str) -> None:
    """Raise Problem where the rendered text lacks what a message says."""
    for number, message in enumerate(messages, start=1):
        if message["content"].strip() not in text:
            raise Problem(
                "template",
                f"the chat template drops message {number} ({message['role']}) of {field!r}; its text is not in what the template writes",
            )

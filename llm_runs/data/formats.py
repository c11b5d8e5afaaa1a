"""The forms in which preferences come, how each is recognised, and how a record of it is read.

A record becomes a `Comparison` (two answers, the first preferred), a `Scored` (K answers with scores) or an `Unpaired` (one answer, good
or bad). What cannot be read raises `Problem`, which names the field.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from llm_runs.data import conversations
from llm_runs.data.conversations import Text, assistant, user
from llm_runs.data.problems import PreferenceFileError, Problem, nearest, not_text

# Names under which data sets give the scores of the two answers.
_SCORES = {
    side: (f"{side}_reward", f"score_{side}", f"{side}_score", f"{side}-rating", f"{side}_rating")
    for side in ("chosen", "rejected")
}
_RATINGS = ("helpfulness", "honesty", "instruction_following", "truthfulness")  # of UltraFeedback


@dataclass(frozen=True)
class Comparison:
    """Two answers to one prompt, the first preferred."""

    prompt: Text
    chosen: Text
    rejected: Text
    id: str = ""
    chosen_score: float | None = None
    rejected_score: float | None = None
    probability: float | None = None  # that chosen is preferred, where it is known
    score_ratio: float | None = None  # larger score over smaller, where the data set says so


@dataclass(frozen=True)
class Scored:
    """Answers to one prompt with their scores."""

    prompt: Text
    answers: tuple[Text, ...]
    scores: tuple[float, ...]
    id: str = ""


@dataclass(frozen=True)
class Unpaired:
    """One answer to a prompt; label True: desirable."""

    prompt: Text
    answer: Text
    label: bool
    id: str = ""


Example = Comparison | Scored | Unpaired


class Fields:
    """Typed access to the fields of one record.

    Args:
        values: the record.
        typed: False: numbers and booleans are read from text (CSV).
        score: which score of UltraFeedback's is read.
        name: what the record is called where it has no name of its own.
    """

    def __init__(self, values: Mapping[str, Any], typed: bool = True, score: str = "auto", name: str = "") -> None:
        self.values, self.typed, self.score, self.name = values, typed, score, name

    def __contains__(self, field: str) -> bool:
        return self.values.get(field) is not None

    def get(self, field: str) -> Any:
        """The value, which must be there."""
        value = self.values.get(field)
        if value is None:
            hint = nearest(field, [str(key) for key in self.values if key != field]) if self.values else "it is empty"
            raise Problem("missing field", f"the key {field!r} is missing ({hint})")
        return value

    def text(self, field: str) -> str:
        """The value, which must be text that is not blank."""
        value = self.get(field)
        if not isinstance(value, str):
            raise Problem("wrong type", f"{field!r} must be text, not {type(value).__name__}")
        if not value.strip():
            raise Problem("empty", f"{field!r} is empty")
        return value

    def number(self, field: str) -> float:
        """The value, which must be a finite number."""
        return number(field, self.get(field), self.typed)

    def optional_number(self, *fields: str) -> float | None:
        """The first of these fields that is there."""
        for field in fields:
            value = self.values.get(field)
            if value is not None and (self.typed or str(value).strip()):
                return number(field, value, self.typed)
        return None

    def label(self, field: str) -> bool:
        """The value, which must be true or false (or 1 or 0)."""
        value = self.get(field)
        if not self.typed and isinstance(value, str):
            value = {"true": True, "1": True, "false": False, "0": False}.get(value.strip().lower(), value)
        if not isinstance(value, bool) and value not in (0, 1):
            raise Problem("wrong type", f"{field!r} must be true or false, not {value!r:.40}")
        return bool(value)

    @property
    def id(self) -> str:
        """The record's own name, or what it is called without one."""
        value = next((self.values[key] for key in ("id", "prompt_id") if self.values.get(key) is not None), "")
        if problem := not_text(str(value)):
            raise Problem(problem.kind, f"its name {problem}")
        return str(value) or self.name


def number(field: str, value: Any, typed: bool = True) -> float:
    """`value` as a finite number; from text only where `typed` is False."""
    if isinstance(value, str):
        try:
            read = float(value)
        except ValueError:
            raise Problem("not a number", f"{field!r} must be a number, not {value!r:.40}") from None
        if typed:
            raise Problem(
                "not a number", f"{field!r} must be a number, not the text {value!r:.40}; write it without quotes"
            )
        value = read
    try:
        finite = not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # a whole number beyond any float
        finite = False
    if not finite:
        raise Problem("not a number", f"{field!r} must be a finite number, not {value!r:.40}")
    return float(value)


# -- the readers of one record -------------------------------------------------------------------------------------


def _pair(fields: Fields) -> Comparison:
    chosen, rejected, prompt = fields.get("chosen"), fields.get("rejected"), fields.values.get("prompt")
    probability = fields.optional_number("probability")
    if probability is not None and not 0 <= probability <= 1:
        raise Problem("not a number", f"'probability' must lie in [0, 1], not {probability:g}")
    parts: tuple[Text, Text, Text]
    if isinstance(chosen, str) and isinstance(rejected, str):
        parts = _plain_pair(fields, prompt, chosen, rejected)
    else:
        parts = _conversational_pair(prompt, chosen, rejected)
    if parts[1] == parts[2]:
        raise Problem("identical", "'chosen' and 'rejected' are the same")
    return Comparison(*parts, fields.id, *_pair_scores(fields), probability)


def _pair_scores(fields: Fields) -> tuple[float | None, float | None]:
    return fields.optional_number(*_SCORES["chosen"]), fields.optional_number(*_SCORES["rejected"])


def _plain_pair(fields: Fields, prompt: Any, chosen: str, rejected: str) -> tuple[Text, Text, Text]:
    for field in ("chosen", "rejected"):
        fields.text(field)
    if prompt is None:
        return conversations.split_text(chosen, rejected)
    if not isinstance(prompt, str):
        asked = conversations.messages("prompt", prompt)
        for field, answer in (("chosen", chosen), ("rejected", rejected)):
            conversations.check_exchange(asked, [assistant(answer)], field)
        return asked, [assistant(chosen)], [assistant(rejected)]
    if not prompt.strip():
        raise Problem("empty", "the prompt is empty")
    return prompt, chosen, rejected


def _conversational_pair(prompt: Any, chosen: Any, rejected: Any) -> tuple[Text, Text, Text]:
    """Messages; `prompt` may be the messages before the answers, the text of the user's last message, or missing."""
    if isinstance(chosen, str) or isinstance(rejected, str):
        field, other = ("chosen", "rejected") if isinstance(chosen, str) else ("rejected", "chosen")
        raise Problem(
            "wrong type",
            f"{other!r} must be text or a list of messages like {field!r}, which is text",
        )
    good, bad = conversations.messages("chosen", chosen), conversations.messages("rejected", rejected)
    asked: conversations.Messages
    if isinstance(prompt, list):
        asked = conversations.messages("prompt", prompt)
        if good[: len(asked)] == bad[: len(asked)] == asked:
            good, bad = good[len(asked) :], bad[len(asked) :]
    elif isinstance(prompt, str) and good[0]["role"] == bad[0]["role"] == "assistant":
        asked = [user(prompt)]
    elif prompt is None or isinstance(prompt, str):
        asked, good, bad = conversations.split_messages(good, bad)
        if prompt is not None and prompt.strip() not in (message["content"].strip() for message in asked):
            raise Problem(
                "no common prompt", "'prompt' is none of the messages with which 'chosen' and 'rejected' begin"
            )
    else:
        raise Problem("wrong type", f"'prompt' must be text or a list of messages, not {type(prompt).__name__}")
    for field, answer in (("chosen", good), ("rejected", bad)):
        conversations.check_exchange(asked, answer, field)
    return asked, good, bad


def _hh_rlhf(fields: Fields) -> Comparison:
    prompt, chosen, rejected = conversations.split_transcripts(fields.get("chosen"), fields.get("rejected"))
    return Comparison(prompt, chosen, rejected, fields.id, *_pair_scores(fields))


def _ultrafeedback(fields: Fields) -> Scored:
    prompt = fields.text("instruction")
    completions = fields.get("completions")
    if not isinstance(completions, list) or not all(isinstance(entry, dict) for entry in completions):
        raise Problem("wrong type", "'completions' must be a list of objects with 'response' and scores")
    answers, scores = [], []
    for number_, entry in enumerate(completions, start=1):
        where = f"completions[{number_}]"
        response = entry.get("response")
        if not isinstance(response, str):
            raise Problem("missing field", f"'{where}.response' is missing or no text")
        if not response.strip():
            raise Problem("empty", f"'{where}.response' is empty")
        answers.append([assistant(response)])
        scores.append(_ultrafeedback_score(entry, where, fields))
    return _scored([user(prompt)], answers, scores, fields.id)


def _ultrafeedback_score(entry: Mapping[str, Any], where: str, fields: Fields) -> float:
    """`overall_score`, or the mean of the ratings (texts of numbers upstream), as asked for."""
    if fields.score == "overall" or (fields.score == "auto" and entry.get("overall_score") is not None):
        if entry.get("overall_score") is None:
            raise Problem(
                "missing field", f"'{where}.overall_score' is missing; data.reading.score=ratings takes the ratings"
            )
        return number(f"{where}.overall_score", entry["overall_score"], fields.typed)
    annotations = entry.get("annotations")
    if not isinstance(annotations, dict):
        raise Problem("missing field", f"'{where}' has neither 'overall_score' nor 'annotations'")
    ratings = []
    for aspect in _RATINGS:
        rating = annotations.get(aspect)
        rating = rating[0] if isinstance(rating, list) and rating else rating
        if not isinstance(rating, dict) or rating.get("Rating") is None:
            raise Problem("missing field", f"'{where}.annotations.{aspect}.Rating' is missing")
        ratings.append(number(f"{where}.annotations.{aspect}.Rating", rating["Rating"], typed=False))
    return sum(ratings) / len(ratings)


def _candidates(fields: Fields) -> Scored:
    prompt, answers, scores = fields.get("prompt"), fields.get("completions"), fields.get("scores")
    for field, value in (("completions", answers), ("scores", scores)):
        if not isinstance(value, list):
            raise Problem("wrong type", f"{field!r} must be a list, not {type(value).__name__}")
    if len(answers) != len(scores):
        raise Problem("wrong type", f"'scores' has {len(scores)} entries, but 'completions' has {len(answers)}")
    read = [_exchange(prompt, answer, f"completions[{place}]") for place, answer in enumerate(answers, start=1)]
    values = [number(f"scores[{place}]", score) for place, score in enumerate(scores, start=1)]
    return _scored(read[0][0] if read else "", [answer for _, answer in read], values, fields.id)


def _scored(prompt: Text, answers: list[Any], scores: list[float], id: str) -> Scored:
    if len(answers) < 2:
        raise Problem("too few completions", f"'completions' has {len(answers)}; at least two are needed to compare")
    return Scored(prompt, tuple(answers), tuple(scores), id)


def _unpaired(fields: Fields) -> Unpaired:
    label = fields.label("label")
    return Unpaired(*_exchange(fields.get("prompt"), fields.get("completion"), "completion"), label, fields.id)


def _exchange(prompt: Any, answer: Any, field: str) -> tuple[Text, Text]:
    """A prompt and an answer, both texts or both messages."""
    if isinstance(prompt, str) and isinstance(answer, str):
        for name, value in (("prompt", prompt), (field, answer)):
            if not value.strip():
                raise Problem("empty", f"{name!r} is empty")
        return prompt, answer
    asked = [user(prompt)] if isinstance(prompt, str) else conversations.messages("prompt", prompt)
    given = [assistant(answer)] if isinstance(answer, str) else conversations.messages(field, answer)
    conversations.check_exchange(asked, given, field)
    return asked, given


def _shp(fields: Fields) -> Comparison:
    prompt, first, second = (fields.text(field) for field in ("history", "human_ref_A", "human_ref_B"))
    score_a, score_b = fields.optional_number("score_A"), fields.optional_number("score_B")
    if first == second:
        raise Problem("identical", "'human_ref_A' and 'human_ref_B' are the same")
    ratio = fields.optional_number("score_ratio")
    if ratio is not None and ratio < 1:
        raise Problem("not a number", f"'score_ratio' must be at least 1 (larger score over smaller), not {ratio:g}")
    comparison = Comparison([user(prompt)], [assistant(first)], [assistant(second)], fields.id, score_a, score_b)
    if not fields.label("labels"):  # 1: the first is preferred
        comparison = replace(
            comparison,
            chosen=comparison.rejected,
            rejected=comparison.chosen,
            chosen_score=score_b,
            rejected_score=score_a,
        )
    return replace(comparison, score_ratio=ratio)


# -- the formats ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    """One form of preference data."""

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    content: str  # in words, for the report
    read: Callable[[Fields], Example]


_PAIR_FIELDS = ("id", "probability", *_SCORES["chosen"], *_SCORES["rejected"])

FORMATS = {
    form.name: form
    for form in (
        Format("hh_rlhf", ("chosen", "rejected"), _PAIR_FIELDS, "two transcripts that begin alike (HH-RLHF)", _hh_rlhf),
        Format(
            "pairs", ("chosen", "rejected"), ("prompt", "prompt_id", *_PAIR_FIELDS), "prompt, chosen, rejected", _pair
        ),
        Format(
            "ultrafeedback",
            ("instruction", "completions"),
            ("id",),
            "an instruction with scored completions (UltraFeedback)",
            _ultrafeedback,
        ),
        Format(
            "candidates", ("prompt", "completions", "scores"), ("id",), "a prompt with scored completions", _candidates
        ),
        Format(
            "unpaired",
            ("prompt", "completion", "label"),
            ("id",),
            "a prompt, one completion, good or bad (KTO)",
            _unpaired,
        ),
        Format(
            "shp",
            ("history", "human_ref_A", "human_ref_B", "labels"),
            ("id", "score_A", "score_B", "score_ratio"),
            "a post with two replies and the better one's label (SHP)",
            _shp,
        ),
    )
}


def detect(values: Mapping[str, Any], place: str) -> Format:
    """The format of a record, by its fields. Raises PreferenceFileError where it is none, naming the nearest columns."""
    there = set(values)
    fitting = [form for form in FORMATS.values() if there >= set(form.required)]
    if fitting and fitting[0].name == "hh_rlhf":
        transcripts = "prompt" not in values and any(
            conversations.is_transcript(values[key]) for key in ("chosen", "rejected")
        )
        return FORMATS["hh_rlhf" if transcripts else "pairs"]
    if fitting:
        return fitting[0]
    closest = max(
        FORMATS.values(),  # where nothing fits, the plainest one
        key=lambda form: (len(there & set(form.required)) / len(form.required), form.name == "pairs"),
    )
    lacking = [field for field in closest.required if field not in there]
    hints = "; ".join(
        f"the key {field!r} is missing ({nearest(field, there - set(closest.required))})" for field in lacking
    )
    raise PreferenceFileError(
        f"{place}: the columns {', '.join(map(repr, values)) or '(none)'} are no known format. Nearest format {closest.name!r} "
        f"({closest.content}): {hints}. Name yours in data.reading.columns, e.g. {{{closest.required[0]}: your_column}}"
    )


def rename(values: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The record with the user's columns under the names of the format's fields; a column that is not there is left out."""
    if not columns:
        return dict(values)
    renamed = dict(values) | {field: values.get(column) for field, column in columns.items()}
    for column in set(columns.values()) - set(columns):
        renamed.pop(column, None)
    return renamed


def check_columns(columns: Mapping[str, str], there: Collection[str], place: str) -> None:
    """Raise PreferenceFileError where the mapping names a column that does not exist, or a field that no format has."""
    known = sorted({field for form in FORMATS.values() for field in (*form.required, *form.optional)})
    for field, column in columns.items():
        if field not in known:
            raise PreferenceFileError(f"data.reading.columns: no format has a field {field!r}; {nearest(field, known)}")
        if column not in there:
            raise PreferenceFileError(
                f"{place}: data.reading.columns wants the column {column!r} for {field!r}, which is not there; {nearest(column, there)}"
            )

"""From a source to training and held-out pairs in token ids, with an account of everything that was left out or changed."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from llm_runs.config import DataConfig, ReadingConfig
from llm_runs.data import formats, pairing, splitting
from llm_runs.data.formats import Comparison, Fields, Format, Scored
from llm_runs.data.problems import PreferenceFileError, Problem
from llm_runs.data.rendering import SAME_WHEN_CUT, Renderer
from llm_runs.data.sources import Source, columns, open_source
from llm_runs.examples import TokenPair, TokenSample

# Problems whose own words say what to do, or that leaving records out would not solve.
_ADVICE = {
    "too long": "",
    "no chat template": "",
    "template": "; model.template takes another template (dialogue, chatml, or a Jinja file)",
}
_NAMED = 3  # how many records of each kind of problem the report names


@dataclass
class Account:
    """What happened to the records of one source."""

    source: str
    kind: str
    format: str = ""
    detected: bool = True  # False: the format was given by the user
    fingerprint: str | None = None
    records: int = 0
    pairs: int = 0
    left_out: Counter[str] = field(default_factory=Counter)  # records, by reason
    named: dict[str, list[str]] = field(default_factory=dict)  # the first few of each reason, with where they stand
    notes: list[str] = field(default_factory=list)  # further statements on how the records were read

    def leave_out(self, reason: str, where: str) -> None:
        """Count one record that makes no pair."""
        self.left_out[reason] += 1
        if len(named := self.named.setdefault(reason, [])) < _NAMED:
            named.append(where)


@dataclass
class Loaded:
    """Preference data in token ids. `samples` has all scored ("candidates") or labelled ("unpaired") completions, if any."""

    training: list[TokenPair]
    held_out: list[TokenPair]
    accounts: list[Account]
    truncated: Mapping[str, int]
    rendered: Mapping[str, int]
    template: str | None  # sha256 of the chat template
    shared_prompts: int = 0  # training pairs left out because their prompt is held out
    samples: dict[str, list[TokenSample]] = field(default_factory=dict)


def load(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    context: int,
    *,
    seed: int,
    chat_template: bool = False,
    say: Callable[[str], None] = print,
) -> Loaded:
    """Read, check, render and split the preference data that `config` names.

    Args:
        config: `preferences`, `reading` and `held_out_fraction`.
        tokenizer: of the model; its chat template renders messages.
        context: the most tokens of prompt and completion together.
        seed: of the split, and of the pairing rule "best_random".
        chat_template: treat plain prompts and HH-RLHF transcripts as conversations.
        say: told what was detected.

    Raises:
        PreferenceFileError: a source that cannot be read, a record that cannot be used (with file, record and field; see
            `reading.bad_records`), no pairs, or a single prompt.
    """
    if config.preferences is None:
        raise ValueError("data.preferences names nothing to load")
    reading = config.reading
    renderer = Renderer(tokenizer, context, reading, chat_template=chat_template)
    readers = [_Reader(config.preferences, reading.split, reading, renderer, seed, say)]
    if reading.held_out or reading.held_out_split:
        name, split = reading.held_out or config.preferences, reading.held_out_split or reading.split
        readers.append(_Reader(name, split, reading, renderer, seed, say))
    for reader in readers:
        reader.read()
    if len(readers) == 2:
        held_out = readers[1].pairs
        training = splitting.without_prompts_of(readers[0].pairs, held_out)
        if not training:
            raise PreferenceFileError(f"{readers[0].account.source}: every prompt is among the held-out ones")
    else:
        training, held_out = splitting.split(readers[0].pairs, config.held_out_fraction, seed)
    return Loaded(
        training,
        held_out,
        [reader.account for reader in readers],
        dict(renderer.truncated),
        dict(renderer.rendered),
        renderer.template_hash if renderer.rendered["chat template"] else None,
        sum(len(reader.pairs) for reader in readers) - len(training) - len(held_out),
        readers[0].samples,
    )


class _Reader:
    """Reads one source into `pairs`, `samples` and `account`."""

    def __init__(
        self, name: str, split: str, reading: ReadingConfig, renderer: Renderer, seed: int, say: Callable[[str], None]
    ) -> None:
        self.reading, self.renderer, self.seed, self.say = reading, renderer, seed, say
        self.source: Source = open_source(name, split, reading.subset, reading.revision)
        self.account = Account(self.source.name, self.source.kind, fingerprint=self.source.fingerprint)
        self.pairs: list[TokenPair] = []
        self.samples: dict[str, list[TokenSample]] = {}
        self._unpaired: list[tuple[str, TokenSample]] = []
        self._seen: dict[tuple[tuple[int, ...], ...], str] = {}
        self._form: Format | None = None

    def read(self) -> None:
        """Read all records."""
        records = itertools.islice(self.source.records, self.reading.max_records)
        for place, values in tqdm(records, desc="reading preferences", unit="record", leave=False, delay=1):
            self.account.records += 1
            try:
                self._take(place, values)
            except Problem as problem:
                self._refuse(place, problem)
        if self._unpaired:
            self._pair_unpaired()
        self.account.pairs = len(self.pairs)
        if not self.pairs:
            reasons = "; ".join(f"{reason}: {count}" for reason, count in self.account.left_out.most_common())
            raise PreferenceFileError(
                f"{self.source.name}: holds no pairs ({self.account.records} records{'; ' + reasons if reasons else ''})"
            )

    def _take(self, place: str, values: Any) -> None:
        if isinstance(values, Problem):
            raise values
        if not isinstance(values, dict):
            raise Problem("not a record", f"expected an object with fields, found {type(values).__name__}")
        if self._form is None:
            self._form = self._recognise(place, values)
        renamed = formats.rename(values, self.reading.columns)
        example = self._form.read(Fields(renamed, self.source.typed, self.reading.score))
        name = example.id or str(self.account.records)
        if isinstance(example, Comparison):
            pair = self.renderer.pair(example)
            if self.reading.min_score_ratio > 1 and self._form.name == "shp":
                if example.score_ratio is None:
                    raise Problem(
                        "missing field", "the key 'score_ratio' is missing, but data.reading.min_score_ratio needs it"
                    )
                if example.score_ratio < self.reading.min_score_ratio:
                    self.account.leave_out(f"score_ratio below {self.reading.min_score_ratio:g}", place)
                    return
            self._add(place, pair if pair.id else replace(pair, id=name))
            return
        samples = self.renderer.samples(example)
        if not isinstance(example, Scored):
            self.samples.setdefault("unpaired", []).extend(samples)
            self._unpaired.append((name, samples[0]))
            return
        self.samples.setdefault("candidates", []).extend(samples)
        pairs = pairing.of_scored(samples, self.reading.pairing, name, self.seed)
        if not pairs:
            self.account.leave_out("all scores equal", place)
        for pair in pairs:
            self._add(place, pair)

    def _add(self, place: str, pair: TokenPair) -> None:
        key = (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)
        if pair.chosen_ids == pair.rejected_ids:
            self.account.leave_out("two equal completions", place)
            return
        first = self._seen.setdefault(key, place)
        if first is not place and self.reading.duplicates != "keep":
            if self.reading.duplicates == "error":
                raise PreferenceFileError(
                    f"{place}: the same prompt, chosen and rejected as in {first}; data.reading.duplicates=drop leaves it out"
                )
            self.account.leave_out("duplicate", place)
            return
        self.pairs.append(pair)

    def _recognise(self, place: str, values: Mapping[str, Any]) -> Format:
        """The format of the source, from its first record; says what it is."""
        reading, account = self.reading, self.account
        formats.check_columns(reading.columns, columns(values), place)
        renamed = formats.rename(values, reading.columns)
        account.detected = reading.format == "auto"
        form = formats.detect(renamed, place) if account.detected else formats.FORMATS[reading.format]
        account.format = form.name
        known = {*form.required, *form.optional}
        ignored = [str(column) for column in renamed if column not in known]
        if form.name in ("ultrafeedback", "candidates"):
            account.notes.append(f"pairs are {pairing.RULES[reading.pairing]}")
        if form.name == "unpaired":
            account.notes.append("pairs are desirable with undesirable completions of the same prompt, in turn")
        if reading.columns:
            account.notes.append(", ".join(f"{mine!r} is {name!r}" for name, mine in reading.columns.items()))
        if ignored:
            account.notes.append(f"columns not used: {', '.join(ignored)}")
        how = "detected" if account.detected else "as configured"
        self.say(f"{account.source}: {account.kind}; {how}: {form.name}, {form.content}")
        for note in account.notes:
            self.say(f"  {note}")
        return form

    def _refuse(self, place: str, problem: Problem) -> None:
        reading = self.reading
        policy = {"too long": reading.overlong, SAME_WHEN_CUT: "drop"}.get(problem.kind, reading.bad_records)
        if policy != "drop":
            advice = _ADVICE.get(problem.kind, " (data.reading.bad_records=drop leaves such records out)")
            raise PreferenceFileError(f"{place}: {problem}{advice}") from problem
        self.account.leave_out(problem.kind, f"{place}: {problem}")

    def _pair_unpaired(self) -> None:
        for pair in pairing.of_unpaired(self._unpaired):
            self._add(f"{self.source.name}, records {pair.id}", pair)
        used = 2 * len(self.pairs)
        good = sum(bool(sample.reward) for _, sample in self._unpaired)
        self.account.notes.append(
            f"{good} desirable and {len(self._unpaired) - good} undesirable completions; {len(self._unpaired) - used} found no partner"
        )

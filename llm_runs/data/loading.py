"""From a source to training and held-out pairs in token ids, with an account of everything that was left out or changed.

Pairs, scored completions and unpaired labels are stored as they are read (`store.py`), and what looks at all of them reads a few
columns: memory does not grow with their number but for about 40 bytes a pair. Records are taken a thousand at a time, because
tokenising and measuring many together is several times faster; what is wrong with one is still said in their order.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from analysis.records import fingerprint
from llm_runs import round_trip, saved_batches
from llm_runs.config import DataConfig, GuardsConfig, ReadingConfig
from llm_runs.data import formats, pairing, splitting, store
from llm_runs.data.formats import Comparison, Example, Fields, Format, Scored, Unpaired
from llm_runs.data.problems import PreferenceFileError, Problem
from llm_runs.data.rendering import SAME_WHEN_CUT, Renderer
from llm_runs.data.sources import Record, Source, columns, open_source
from llm_runs.data.store import Store, Writer
from llm_runs.data.stored import SAMPLES, NamedSample, PlacedPair, StoredPairs, StoredSamples, pair_kind
from llm_runs.examples import TokenPair, TokenSample
from llm_runs.models import tokenizer_fingerprint
from llm_runs.watch import Watch

# Problems whose own words say what to do, or that leaving records out would not solve.
_ADVICE = {
    "too long": "",
    "no chat template": "",
    "template": "; model.template takes another template (dialogue, chatml, or a Jinja file)",
}
_NAMED = 3  # how many records of each kind of problem the report names
_TOGETHER = 1 << 20  # pairs that are compared for duplicates in memory at a time
_VERSION = 2  # of what is noted of how far reading has come


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

    training: StoredPairs
    held_out: StoredPairs
    accounts: list[Account]
    truncated: Mapping[str, int]
    rendered: Mapping[str, int]
    template: str | None  # sha256 of the chat template
    shared_prompts: int = 0  # training pairs left out because their prompt is held out
    samples: dict[str, StoredSamples] = field(default_factory=dict)


def load(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    context: int,
    *,
    folder: Path,
    seed: int,
    chat_template: bool = False,
    say: Callable[[str], None] = print,
    watch: Watch | None = None,
) -> Loaded:
    """Read, check, render and split the preference data that `config` names. Interrupted, it goes on after the last part that it stored.

    Args:
        config: `preferences`, `reading` and `held_out_fraction`.
        tokenizer: of the model; its chat template renders messages.
        context: the most tokens of prompt and completion together.
        folder: where the pairs are stored, in `given` and `held_out`, and other completions in `given_completions`.
        seed: of the split, and of the pairing rule "best_random".
        chat_template: treat plain prompts and HH-RLHF transcripts as conversations.
        say: told what was detected.
        watch: what to do about texts whose tokens do not give them back; the defaults where it is not given.

    Raises:
        PreferenceFileError: a source that cannot be read, a record that cannot be used (with file, record and field; see
            `reading.bad_records`), no pairs, or a single prompt.
    """
    if config.preferences is None:
        raise ValueError("data.preferences names nothing to load")
    reading = config.reading
    watch = watch or Watch(GuardsConfig())
    action = watch.action("round_trip")
    renderer = Renderer(tokenizer, context, reading, chat_template=chat_template, round_trip=action)
    readers = [_Reader(config.preferences, reading.split, reading, renderer, seed, say, folder / "given")]
    if reading.held_out or reading.held_out_split:
        name, split = reading.held_out or config.preferences, reading.held_out_split or reading.split
        readers.append(_Reader(name, split, reading, renderer, seed, say, folder / "held_out"))
    for reader in readers:
        reader.read()
    if changed := sum(reader.counts["changed"]["texts"] for reader in readers):
        _warn_of_round_trips(watch, changed, renderer, folder)
    first = readers[0].pairs
    hashes = first.column("prompt_hash")
    if len(readers) == 2:
        held_out = readers[1].pairs
        shared = _among(hashes, first.column("prompt_ids_hash"), held_out)
        if shared.all():
            raise PreferenceFileError(f"{readers[0].account.source}: every prompt is among the held-out ones")
        training = StoredPairs(first.store, first.rows[~shared])
    else:
        held = splitting.held_out(hashes, config.held_out_fraction, readers[0].account.source)
        training, held_out = (StoredPairs(first.store, first.rows[side]) for side in (~held, held))
    rendered = sum((reader.counts["rendered"] for reader in readers), Counter[str]())
    return Loaded(
        training,
        held_out,
        [reader.account for reader in readers],
        dict(sum((reader.counts["truncated"] for reader in readers), Counter[str]())),
        dict(rendered),
        renderer.template_hash if rendered["chat template"] else None,
        sum(len(reader.pairs) for reader in readers) - len(training) - len(held_out),
        readers[0].samples,
    )


def _warn_of_round_trips(watch: Watch, changed: int, renderer: Renderer, folder: Path) -> None:
    shown = renderer.came_back

    def save(name: str) -> Path:
        samples = {place: TokenSample((), ids, text, back) for place, (text, back, ids) in enumerate(shown)}
        about = {"reason": "tokenization round trip", "prompt": "the text", "completion": "what its tokens say"}
        return saved_batches.save_batch(folder, {}, {"texts": samples}, about, name=name)

    first = f"; {round_trip.said(*shown[0][:2])}" if shown else ""  # none where an earlier call read them
    watch.meet("round_trip", f"the tokens of {changed:,} texts do not give the text back{first}", save)


def _among(hashes: np.ndarray[Any, Any], ids: np.ndarray[Any, Any], others: StoredPairs) -> np.ndarray[Any, Any]:
    """Which prompts, by the hashes of their texts and token ids (N,) each, are among those of other pairs."""
    found = np.zeros(len(hashes), dtype=bool)
    for own, name in ((hashes, "prompt_hash"), (ids, "prompt_ids_hash")):
        found |= np.isin(own, np.unique(others.column(name)))
    return found


class _Reader:
    """Reads one source into `pairs`, `samples`, `account` and `counts`."""

    def __init__(
        self,
        name: str,
        split: str,
        reading: ReadingConfig,
        renderer: Renderer,
        seed: int,
        say: Callable[[str], None],
        folder: Path,
    ) -> None:
        self.reading, self.renderer, self.seed, self.say, self.folder = reading, renderer, seed, say, folder
        self.source: Source = open_source(name, split, reading.subset, reading.revision)
        self.account = Account(self.source.name, self.source.kind, fingerprint=self.source.fingerprint)
        self.counts: dict[str, Counter[str]] = {kind: Counter() for kind in ("truncated", "rendered", "changed")}
        self.samples: dict[str, StoredSamples] = {}
        self.pairs: StoredPairs
        self._paired = 0  # unpaired labels: of the pairs that they make, how many were stored or left out
        self._form: Format | None = None
        self._writer = Writer(folder, key := self._key(), pair_kind(seed))
        self._completions = Writer(folder.with_name(f"{folder.name}_completions"), key, SAMPLES)

    def read(self) -> None:
        """Read all records that are not stored yet."""
        self.renderer.truncated, self.renderer.rendered = self.counts["truncated"], self.counts["rendered"]
        self.renderer.changed = self.counts["changed"]
        self._restore()
        if not self._writer.complete:
            self._read_on()
        rows = np.arange(len(self._writer), dtype=np.int64)
        store = Store(self.folder, StoredPairs.kind) if len(rows) else None
        if store is not None and self.reading.duplicates != "keep":
            rows = rows[~self._repeated(store)]
        self.account.pairs = len(rows)
        if store is None:
            reasons = "; ".join(f"{reason}: {count}" for reason, count in self.account.left_out.most_common())
            raise PreferenceFileError(
                f"{self.source.name}: holds no pairs ({self.account.records} records{'; ' + reasons if reasons else ''})"
            )
        self.pairs = StoredPairs(store, rows)
        if len(self._completions):
            self.samples["unpaired" if self._unpaired else "candidates"] = self._all_completions()

    def _read_on(self) -> None:
        before = self.account.records
        records = itertools.islice(self.source.records, before, self.reading.max_records)
        with tqdm(desc="reading preferences", unit="record", initial=before, leave=False, delay=1) as bar:
            for chunk in _chunks(records, store.BATCH):
                self._take(chunk)
                bar.update(len(chunk))
                if self._writer.full or self._completions.full:
                    self._end_parts()
        self._end_parts(read=True)
        if self._unpaired and len(self._completions):
            self._pair_unpaired()
        self._writer.end_part(self._progress(), complete=True)

    @property
    def _unpaired(self) -> bool:
        return self._form is not None and self._form.name == "unpaired"

    def _all_completions(self) -> StoredSamples:
        return StoredSamples(
            Store(self._completions.folder, SAMPLES), np.arange(len(self._completions), dtype=np.int64)
        )

    def _end_parts(self, *, read: bool = False) -> None:
        if len(self._completions):
            self._completions.end_part(True, complete=read)
        self._writer.end_part(self._progress())

    def _progress(self) -> Any:
        """What reading goes on with; the completions' parts come first, so that there may be more of them than this says."""
        own = {"account": vars(self.account), "completions": len(self._completions.parts), "paired": self._paired}
        return own | self.counts

    def _restore(self) -> None:
        progress = self._writer.progress
        self._completions.rewind(progress["completions"] if progress else 0)
        if progress is None:
            return
        values = progress["account"]
        self.account = Account(**values | {"left_out": Counter(values["left_out"])})
        self._paired = progress["paired"]
        for name, counter in self.counts.items():
            counter.update(progress.get(name, {}))
        if self.account.format:
            self._form = formats.FORMATS[self.account.format]
            self.say(f"{self.account.source}: goes on after {self.account.records} records that were read before")

    def _key(self) -> str:
        """What stored pairs depend on; files by size and time, because their checksums may take long."""
        stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in self.source.files]
        tokenizer = self.renderer.tokenizer
        how: list[Any] = [
            asdict(self.reading) | {"duplicates": ""},
            self.renderer.context,
            self.renderer.chat_template,
            self.seed,
        ]
        if self.renderer.round_trip == "stop" and self.reading.bad_records == "drop":
            how.append("round trip")  # then such records are left out
        made = [tokenizer_fingerprint(tokenizer), str(tokenizer.chat_template)]
        return fingerprint([_VERSION, self.source.name, self.source.fingerprint, stats, how, made])

    def _repeated(self, store: Store[TokenPair]) -> np.ndarray[Any, Any]:
        """Which rows say the same as an earlier one, (N,) of bool; they are counted, or are an error."""
        found = np.zeros(len(store), dtype=bool)
        firsts: dict[int, int] = {}  # of the first few repeated rows
        for rows, pairs, orders in _in_buckets(store):
            order = np.lexsort((rows, orders, pairs))
            same = (pairs[order][1:] == pairs[order][:-1]) & (orders[order][1:] == orders[order][:-1])
            found[rows[order[1:][same]]] = True
            starts = np.maximum.accumulate(np.where(np.append(True, ~same), np.arange(len(order)), 0))
            repeated = np.flatnonzero(np.append(False, same))
            least = repeated[np.argsort(rows[order[repeated]])[:_NAMED]]
            firsts |= {int(rows[order[at]]): int(rows[order[starts[at]]]) for at in least}
        for row in sorted(firsts)[:_NAMED]:
            place = store.text("place", row)
            if self.reading.duplicates == "error":
                raise PreferenceFileError(
                    f"{place}: the same prompt, chosen and rejected as in {store.text('place', firsts[row])}; "
                    "data.reading.duplicates=drop leaves it out"
                )
            self.account.leave_out("duplicate", place)
        if more := int(found.sum()) - min(len(firsts), _NAMED):
            self.account.left_out["duplicate"] += more
        return found

    def _take(self, records: Sequence[Record]) -> None:
        """Store what some records hold. Raises PreferenceFileError for the first that cannot be used and is not to be left out."""
        examples = [
            self._example(place, values, self.account.records + number)
            for number, (place, values) in enumerate(records, start=1)
        ]
        usable = [Problem("", "") if isinstance(each, PreferenceFileError) else each for each in examples]
        found = self.renderer.in_tokens(usable)
        for (place, _), example, tokens in zip(records, examples, found, strict=True):
            self.account.records += 1
            if isinstance(example, PreferenceFileError):
                raise example
            try:
                self._keep(place, example, tokens)
            except Problem as problem:
                self._refuse(place, problem)

    def _example(self, place: str, values: Any, number: int) -> Example | Problem | PreferenceFileError:
        """What a record says, or what is wrong with it."""
        if isinstance(values, Problem):
            return values
        if not isinstance(values, dict):
            return Problem("not a record", f"expected an object with fields, found {type(values).__name__}")
        try:
            if self._form is None:
                self._form = self._recognise(place, values)
            renamed = formats.rename(values, self.reading.columns)
            return self._form.read(Fields(renamed, self.source.typed, self.reading.score, str(number)))
        except (Problem, PreferenceFileError) as problem:
            return problem

    def _keep(self, place: str, example: Example | Problem, tokens: TokenPair | list[TokenSample] | Problem) -> None:
        """Store one record. Raises Problem."""
        if isinstance(tokens, Problem):
            raise tokens
        assert self._form is not None
        if isinstance(example, Comparison):
            assert isinstance(tokens, TokenPair)
            if self.reading.min_score_ratio > 1 and self._form.name == "shp":
                if example.score_ratio is None:
                    raise Problem(
                        "missing field", "the key 'score_ratio' is missing, but data.reading.min_score_ratio needs it"
                    )
                if example.score_ratio < self.reading.min_score_ratio:
                    self.account.leave_out(f"score_ratio below {self.reading.min_score_ratio:g}", place)
                    return
            self._add(place, tokens)
            return
        assert isinstance(tokens, list)
        assert isinstance(example, Scored | Unpaired)
        for sample in tokens:
            self._completions.append(NamedSample(sample, example.id))
        if isinstance(example, Unpaired):
            return
        pairs = pairing.of_scored(tokens, self.reading.pairing, example.id, self.seed)
        if not pairs:
            self.account.leave_out("all scores equal", place)
        for pair in pairs:
            self._add(place, pair)

    def _add(self, place: str, pair: TokenPair) -> None:
        if pair.chosen_ids == pair.rejected_ids:
            self.account.leave_out("two equal completions", place)
        else:
            self._writer.append(PlacedPair(pair, place))

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
        completions = self._all_completions()
        good, bad = pairing.of_unpaired(completions)
        name = completions.store.text
        for one, other in zip(good[self._paired :].tolist(), bad[self._paired :].tolist(), strict=True):
            id = f"{name('name', one)}-{name('name', other)}"
            pair = pairing.pair_of_labels(completions[one], completions[other], id)
            self._add(f"{self.source.name}, records {id}", pair)
            self._paired += 1
            if self._writer.full:
                self._writer.end_part(self._progress())
        desirable = int((completions.column("reward") > 0).sum())
        undesirable, unused = len(completions) - desirable, len(completions) - 2 * len(self._writer)
        self.account.notes.append(
            f"{desirable} desirable and {undesirable} undesirable completions; {unused} found no partner"
        )


def _chunks(records: Iterator[Record], size: int) -> Iterator[list[Record]]:
    """Some records after the other. Where reading fails, what was read before comes first."""
    chunk: list[Record] = []
    try:
        for record in records:
            chunk.append(record)
            if len(chunk) == size:
                yield chunk
                chunk = []
    except PreferenceFileError:
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk


def _in_buckets(
    store: Store[TokenPair],
) -> Iterator[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Rows, hashes and orders of the pairs, (n,) each, a bucket of hashes after the other: no pair is in two of them."""
    count = -(-len(store) // _TOGETHER)
    for bucket in range(count):
        parts: list[Sequence[np.ndarray[Any, Any]]] = []
        start = 0
        for batch in store.columns(["pair_hash", "order"]):
            here = np.flatnonzero(batch["pair_hash"] % np.uint64(count) == bucket)
            parts.append((start + here, batch["pair_hash"][here], batch["order"][here]))
            start += len(batch["order"])
        rows, pairs, orders = (np.concatenate(each) for each in zip(*parts, strict=True))
        yield rows, pairs, orders

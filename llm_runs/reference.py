"""What is kept of the reference policy: its log-probabilities, computed once, so that the model itself can be freed.

Entries are found by content (the token ids of prompt and completion), so one cache serves every label set of the same completions,
and a completion that the reference never scored is refused instead of getting another one's number.

FOLDER/rows/            a row for each completion, in parts that are mapped (`data/store.py`)
FOLDER/index.npy        in the order of 64 bits of their digests, in which row each is; mapped
FOLDER/reference.json   what the numbers depend on, and the index's checksum; written last
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from analysis.records import atomic_write, fingerprint
from llm_runs import processes
from llm_runs.config import ReferenceConfig
from llm_runs.data.store import Kind, Mapped, Store, Writer, list_column
from llm_runs.errors import InputError
from llm_runs.examples import TokenPair, TokenSample
from llm_runs.json_lines import read_object
from llm_runs.logprobs import TopTokens
from llm_runs.models import autocast, tokenizer_fingerprint
from llm_runs.scoring import Scorer

FORMAT = 3
OF_MODEL = ("model", "dtype", "tokenizer", "template", "top_k")  # of a key: what the numbers depend on besides the data
_ROWS, _INDEX, _MANIFEST = "rows", "index.npy", "reference.json"
_NUMBERS = 1 << 24  # log-probabilities and ids that are in memory at a time
_TOGETHER = 1 << 20  # digests that are sorted at a time


class ReferenceCacheError(InputError):
    """A cache of reference log-probabilities that is missing, damaged, or of another model, tokenizer or data set."""


@dataclass(frozen=True)
class ScoredCompletion:
    """What the reference says of one completion of T tokens.

    Its next-token distributions, where they are stored, are T rows of `ids` and `logps` (K each, nats) and of `log_tail` (log of the
    other tokens' mass).
    """

    digest: bytes  # of prompt and completion ids (`sequence_digest`)
    logps: Tensor  # (T,) log-probability of every token
    logp: Tensor  # their sum
    top: TopTokens | None


def _batch(rows: Sequence[ScoredCompletion]) -> pa.RecordBatch:
    kind = rows[0].logps.numpy().dtype
    tops = [row.top for row in rows]

    def tokens(values: Sequence[Tensor | None], dtype: Any) -> pa.Array:
        given: list[Any] = [np.empty(0, dtype) if each is None else each.flatten().numpy() for each in values]
        return list_column(given, dtype)

    return pa.RecordBatch.from_pydict(
        {
            "digest": pa.array([row.digest for row in rows], pa.binary(16)),
            "place": pa.array(places_of(row.digest for row in rows)),
            "logp": pa.array(np.array([row.logp.item() for row in rows], dtype=kind)),
            "logps": tokens([row.logps for row in rows], kind),
            "ids": tokens([None if top is None else top.ids for top in tops], np.int32),
            "top_logps": tokens([None if top is None else top.logps for top in tops], kind),
            "log_tail": tokens([None if top is None else top.log_tail for top in tops], kind),
        }
    )


def _row(mapped: Mapped, number: int) -> ScoredCompletion:
    logps, ids, top_logps, log_tail = (
        torch.from_numpy(mapped.array(name, number).copy()) for name in ("logps", "ids", "top_logps", "log_tail")
    )
    top = TopTokens(ids.view(len(logps), -1), top_logps.view(len(logps), -1), log_tail) if len(log_tail) else None
    logp = torch.tensor(mapped.value("logp", number), dtype=logps.dtype)
    return ScoredCompletion(mapped.value("digest", number), logps, logp, top)


def places_of(digests: Iterable[bytes]) -> np.ndarray[Any, Any]:
    """The first 64 bits of each digest: in their order, as numbers."""
    return np.frombuffer(b"".join(digest[:8] for digest in digests), dtype=">u8").astype(np.uint64)


_COMPLETIONS = Kind(_batch, _row)


@dataclass(frozen=True)
class _Table:
    """Scored completions, in memory or mapped, and where each is: `places` (M,) sorted, of `rows[numbers[i]]`."""

    rows: Sequence[ScoredCompletion] | Store[ScoredCompletion]
    places: np.ndarray[Any, Any]
    numbers: np.ndarray[Any, Any]

    @classmethod
    def of(cls, rows: Sequence[ScoredCompletion]) -> _Table:
        return cls(rows, *sorted_places(places_of(row.digest for row in rows)))

    def find(self, digest: bytes) -> Iterator[ScoredCompletion]:
        (place,) = places_of([digest])
        at = int(np.searchsorted(self.places, place))
        while at < len(self.places) and self.places[at] == place:
            row = self.rows[int(self.numbers[at])]
            if row.digest == digest:
                yield row
            at += 1


class ReferenceLogps:
    """Log-probabilities of completions under the reference, and its next-token distributions along some of them.

    What was loaded from a folder stays on disk: each completion is read when it is asked for.

    Attributes:
        key: model, tokenizer, dtype, top_k: what the numbers depend on besides the tokens.
    """

    def __init__(self, key: dict[str, Any], tables: Sequence[_Table]) -> None:
        self.key, self._tables = key, tuple(tables)

    @classmethod
    def of(cls, key: dict[str, Any], rows: Sequence[ScoredCompletion]) -> ReferenceLogps:
        """Of completions in memory."""
        return cls(key, [_Table.of(rows)])

    def __len__(self) -> int:
        return sum(len(table.rows) for table in self._tables)

    @property
    def rows(self) -> Iterator[ScoredCompletion]:
        """All completions, one after the other."""
        return chain.from_iterable(table.rows for table in self._tables)

    def logp(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> float:
        """log pi_ref(completion | prompt), nats. ReferenceCacheError if this completion was never scored."""
        return float(self._found(prompt_ids, completion_ids).logp)

    def logps_of_tokens(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> Tensor:
        """log pi_ref of every token of a completion, (T,), nats."""
        return self._found(prompt_ids, completion_ids).logps

    def pair_logps(self, pairs: Iterable[TokenPair]) -> tuple[Tensor, Tensor]:
        """Summed log-probabilities of the chosen and of the rejected completions, (N,) each."""
        both = [self._found(p.prompt_ids, ids).logp for p in pairs for ids in (p.chosen_ids, p.rejected_ids)]
        sides = torch.stack(both).reshape(-1, 2) if both else torch.zeros(0, 2)
        return sides[:, 0], sides[:, 1]

    def distributions(self, sample: TokenSample) -> TopTokens:
        """The stored next-token distributions along one reference sample: `ids` and `logps` (T, K), `log_tail` (T,)."""
        for row in self._all_found(sample.prompt_ids, sample.completion_ids):
            if row.top is not None:
                return row.top
        self._found(sample.prompt_ids, sample.completion_ids)
        raise ReferenceCacheError(
            "a completion has no stored token distributions: it was scored as part of a pair, not as a reference sample"
        )

    def _all_found(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> Iterator[ScoredCompletion]:
        digest = sequence_digest(prompt_ids, completion_ids)
        return chain.from_iterable(table.find(digest) for table in self._tables)

    def _found(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> ScoredCompletion:
        for row in self._all_found(prompt_ids, completion_ids):
            return row
        raise ReferenceCacheError(
            f"no reference log-probability for a completion of {len(completion_ids)} tokens: the cache was computed for other data "
            "or another tokenizer; compute it again for these pairs and samples"
        )

    def joined(self, other: ReferenceLogps) -> ReferenceLogps:
        """These completions and those of `other`, whose numbers count where both have one. ReferenceCacheError: of another reference."""
        other.check({name: self.key[name] for name in OF_MODEL}, "further log-probabilities")
        return ReferenceLogps(self.key, [*other._tables, *self._tables])

    def save(self, folder: str | Path) -> Path:
        """Keep it in a folder, from which `load` reads it."""
        folder = Path(folder)
        writer = Writer(folder / _ROWS, fingerprint(self.key), _COMPLETIONS)
        for row in () if writer.complete else self.rows:
            writer.append(row)
        _complete(folder, writer, self.key, 1)
        return folder

    @classmethod
    def load(cls, folder: str | Path, key: dict[str, Any] | None = None) -> ReferenceLogps:
        """Open a saved cache; with `key` (see `reference_key`), refuse one made by another model or with other settings.

        Raises ReferenceCacheError: no cache, damaged, of another format, or with another key (the message lists what differs).
        """
        folder = Path(folder)
        again = "delete the folder and compute it again"
        try:
            manifest = read_object(folder / _MANIFEST)
        except FileNotFoundError as error:
            raise ReferenceCacheError(
                f"no reference log-probabilities in {folder}: {Path(error.filename).name} is missing"
            ) from error
        except (OSError, ValueError) as error:
            raise ReferenceCacheError(f"{folder / _MANIFEST}: damaged ({error}); {again}") from error
        if manifest.get("format") != FORMAT or not isinstance(manifest.get("key"), dict):
            raise ReferenceCacheError(f"{folder / _MANIFEST}: not a reference cache of format {FORMAT}; {again}")
        try:
            store = Store(folder / _ROWS, _COMPLETIONS)
            store.check()
            if _digest(folder / _INDEX) != manifest["index"]:
                raise ReferenceCacheError(f"{folder / _INDEX}: damaged (wrong checksum); {again}")
            index = np.load(folder / _INDEX, mmap_mode="r", allow_pickle=False)
        except (InputError, OSError, ValueError, KeyError) as error:
            if isinstance(error, ReferenceCacheError):
                raise
            raise ReferenceCacheError(f"{folder}: damaged ({error}); {again}") from error
        found = cls(manifest["key"], [_Table(store, index["place"], index["row"])])
        if key is not None:
            found.check(key, str(folder))
        return found

    def check(self, key: Mapping[str, Any], place: str) -> None:
        """ReferenceCacheError where a part of `key` is not what this was computed with; `place` is for the message."""
        differing = [
            f"{name} is {self.key.get(name)}, expected {key[name]}" for name in key if self.key.get(name) != key[name]
        ]
        if differing:
            raise ReferenceCacheError(
                f"{place}: computed with another reference, other data or other settings: {'; '.join(differing)}; delete it to compute "
                "it again"
            )


def reference_key(
    model: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase, config: ReferenceConfig, **others: Any
) -> dict[str, Any]:
    """What the stored numbers depend on besides the tokens: weights (adapters too), tokenizer, template, precision, top_k.

    Args:
        model: the reference; None leaves out what only a loaded model tells (weights and precision).
        others: further parts, such as fingerprints of the model's files and of the data, and how prompts were cut.
    """
    template = json.dumps(tokenizer.chat_template).encode()
    of_model = (
        {} if model is None else {"model": model_fingerprint(model), "dtype": str(model.dtype).removeprefix("torch.")}
    )
    return {
        **of_model,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "template": hashlib.sha256(template).hexdigest(),
        "top_k": config.top_k,
        **others,
    }


def data_fingerprint(*sources: Iterable[TokenSample]) -> str:
    """sha256 of the distinct completions with their prompts, in whatever order and source; of stored ones that of their files."""
    stored = sorted(found for source in sources if (found := getattr(source, "fingerprint", None)) is not None)
    others = chain.from_iterable(source for source in sources if getattr(source, "fingerprint", None) is None)
    digests = {sequence_digest(sample.prompt_ids, sample.completion_ids) for sample in others}
    return hashlib.sha256(b"".join([*(each.encode() for each in stored), *sorted(digests)])).hexdigest()


def model_fingerprint(model: PreTrainedModel) -> str:
    """sha256 of all parameters (names, shapes, values): the same weights have it wherever they came from."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@torch.no_grad()
def compute(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Iterable[TokenPair],
    samples: Iterable[TokenSample],
    config: ReferenceConfig,
    *,
    completions: Iterable[TokenSample] = (),
    folder: Path | None = None,
    **others: Any,
) -> ReferenceLogps:
    """Score every pair's completions, and every sample with its next-token distributions, under the reference `model`.

    `completions` are scored like the pairs'. The model is left in evaluation mode; free it afterwards. `others`: further parts of
    the key, see `reference_key`. Processes of a launch share the batches, and all have the result.

    Completions are taken in pieces that fit into memory (see `_pieces`), each distinct one of a piece scored once. With a `folder` what was
    scored is written there, piece by piece, and mapped; interrupted, it goes on after the last piece. Without one it is kept in memory.
    """
    model.eval()
    key = reference_key(model, tokenizer, config, **others)
    wanted = chain(((s, True) for s in samples), ((s, False) for p in pairs for s in p.samples))
    wanted = chain(wanted, ((s, False) for s in completions))
    kept: list[ScoredCompletion] = []
    writer, before = None, 0
    if folder is not None:
        writer = Writer(folder / _ROWS, fingerprint([key, config.batch_size, _NUMBERS]), _COMPLETIONS)
        before = processes.gather(writer.progress or 0)[0]  # all from the same, also where new files are seen late
    scorer: Scorer | None = None
    number = -1
    for number, piece in enumerate(_pieces(wanted, config.top_k)):
        if number < before:
            continue
        if scorer is None:
            scorer = Scorer(model, [(s.prompt_ids, s.completion_ids) for s, _ in piece])
        rows = _score(model, scorer, piece, config)
        if writer is None:
            kept += rows
        elif processes.is_first():
            for row in rows:
                writer.append(row)
            writer.end_part(number + 1)
    if scorer is not None:
        scorer.release(model)
    if folder is None or writer is None:
        return ReferenceLogps.of(key, kept)
    processes.by_first(partial(_complete, folder, writer, key, number + 1))
    return ReferenceLogps.load(folder)


def _pieces(wanted: Iterable[tuple[TokenSample, bool]], top_k: int) -> Iterator[list[tuple[TokenSample, bool]]]:
    """Completions of at most `_NUMBERS` numbers together; a number for each token, and with distributions two for each of `top_k`."""
    piece: list[tuple[TokenSample, bool]] = []
    size = 0
    for sample, with_top in wanted:
        own = len(sample.prompt_ids) + len(sample.completion_ids) * (2 * top_k + 2 if with_top else 1)
        if piece and size + own > _NUMBERS:
            yield piece
            piece, size = [], 0
        piece.append((sample, with_top))
        size += own
    if piece:
        yield piece


def _score(
    model: PreTrainedModel, scorer: Scorer, piece: Sequence[tuple[TokenSample, bool]], config: ReferenceConfig
) -> list[ScoredCompletion]:
    """The completions of one piece, each distinct one once; in every process."""
    named = [(sequence_digest(s.prompt_ids, s.completion_ids), s, with_top) for s, with_top in piece]
    with_top = {digest: (s.prompt_ids, s.completion_ids) for digest, s, top in named if top}
    scored = {digest: (s.prompt_ids, s.completion_ids) for digest, s, top in named if not top} | with_top
    # Longest first: batches of similar length waste little on padding, and too large a batch fails at once.
    order = sorted(scored, key=lambda digest: (-len(scored[digest][0]) - len(scored[digest][1]), scored[digest][0]))
    batches = [order[first : first + config.batch_size] for first in range(0, len(order), config.batch_size)]
    own: dict[bytes, ScoredCompletion] = {}
    rounds = list(processes.own_rounds(len(batches)))
    for batch, counts in tqdm(rounds, desc="reference log-probs", unit="batch", leave=False):
        digests = sorted(batches[batch], key=lambda digest: digest in with_top)
        lengths = [len(scored[digest][1]) for digest in digests]
        last = sum(length for digest, length in zip(digests, lengths, strict=True) if digest in with_top)
        rows = scorer.pack([scored[digest] for digest in digests]).to(model.device)
        with autocast(model.device):
            logps, top = scorer.distributions(model, rows, config.top_k, last)
        position = last - sum(lengths)  # of the tokens with a distribution; negative before the first
        for digest, each in zip(digests, torch.split(logps.cpu(), lengths), strict=True):
            tokens = slice(position, position + len(each))
            stored = None
            if digest in with_top:
                stored = TopTokens(top.ids[tokens].int(), top.logps[tokens], top.log_tail[tokens]).to("cpu")
            if counts:
                own[digest] = ScoredCompletion(digest, each.clone(), each.sum(), stored)
            position += len(each)
    found = {digest: row for part in processes.gather(own) for digest, row in part.items()}
    return [found[digest] for digest in order]


def _complete(folder: Path, writer: Writer[ScoredCompletion], key: dict[str, Any], pieces: int) -> None:
    """Write the index of completions, and the manifest, which stands for all and comes last."""
    writer.end_part(pieces, complete=True)
    store = Store(folder / _ROWS, _COMPLETIONS)
    places, numbers = sorted_places(store.column("place").astype(np.uint64, copy=False))
    index = np.empty(len(places), dtype=[("place", np.uint64), ("row", np.int64)])
    index["place"], index["row"] = places, numbers
    atomic_write(folder / _INDEX, lambda file: np.save(file, index))
    manifest = {"format": FORMAT, "key": key, "completions": len(store), "index": _digest(folder / _INDEX)}
    atomic_write(folder / _MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sorted_places(places: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Numbers (M,) in their order, and where each was; those that are equal in the order in which they were. A million at a time."""
    found, numbers = np.empty_like(places), np.empty(len(places), dtype=np.int64)
    count = max(1, -(-len(places) // _TOGETHER))
    width = np.uint64((1 << 64) // (count + 1) + 1)  # of a bucket: digests are spread evenly
    start = 0
    for bucket in range(count + 1):
        here = np.flatnonzero(places // width == bucket)
        here = here[np.argsort(places[here], kind="stable")]
        found[start : start + len(here)], numbers[start : start + len(here)] = places[here], here
        start += len(here)
    return found, numbers


def margin_deviation(samples: Iterable[TokenSample]) -> float:
    """Standard deviation, in nats, of d = log pi_ref(y1|x) - log pi_ref(y2|x) between two reference samples of one prompt.

    It is what `temperature="auto"` of maxpo stands for. d has mean zero, so this is the root of the mean of d^2 over all pairs of samples
    that share a prompt; for m samples of one prompt the mean of d^2 is twice their variance. Uses the log-probabilities noted when
    the samples were drawn, so it needs no reference model.

    Raises ReferenceCacheError where no prompt has two samples, where log-probabilities are missing, or where all are equal.
    """
    by_prompt: dict[tuple[int, ...], list[float]] = {}
    for sample in samples:
        if sample.logp is None:
            raise ReferenceCacheError(
                "a reference sample carries no log-probability, so the automatic temperature cannot be computed"
            )
        by_prompt.setdefault(sample.prompt_ids, []).append(sample.logp)
    squares = [(a - b) ** 2 for logps in by_prompt.values() for i, a in enumerate(logps) for b in logps[:i]]
    if not squares:
        raise ReferenceCacheError(
            "the automatic temperature needs two reference samples of at least one prompt; sample more, or give a number"
        )
    deviation = math.sqrt(sum(squares) / len(squares))
    if not deviation > 0:
        raise ReferenceCacheError(
            "all reference samples of a prompt have the same log-probability; give the temperature as a number"
        )
    return deviation


def sequence_digest(prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> bytes:
    """By what a completion of a prompt is found again, 16 bytes."""
    ids = torch.tensor([len(prompt_ids), *prompt_ids, *completion_ids], dtype=torch.int64)
    return hashlib.blake2b(ids.numpy().tobytes(), digest_size=16).digest()

"""What is kept of the reference policy: its log-probabilities, computed once, so that the model itself can be freed.

Entries are found by content (the token ids of prompt and completion), so one cache serves every label set of the same completions,
and a completion that the reference never scored is refused instead of getting another one's number.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from analysis.records import atomic_write
from llm_runs import processes
from llm_runs.config import ReferenceConfig
from llm_runs.errors import InputError
from llm_runs.examples import TokenPair, TokenSample
from llm_runs.logprobs import TopTokens
from llm_runs.models import autocast, tokenizer_fingerprint
from llm_runs.scoring import Scorer

FORMAT = 2
OF_MODEL = ("model", "dtype", "tokenizer", "template", "top_k")  # of a key: what the numbers depend on besides the data
_TABLE, _MANIFEST = "reference.safetensors", "reference.json"


class ReferenceCacheError(InputError):
    """A cache of reference log-probabilities that is missing, damaged, or of another model, tokenizer or data set."""


@dataclass(frozen=True)
class ReferenceLogps:
    """Log-probabilities of M completions under the reference, and its next-token distributions along some of them.

    The distributions of a completion of T tokens are T rows of `ids` and `logps` (K each, nats) and of `log_tail` (log of the other
    tokens' mass), starting at row `start` of that completion; `start` is -1 where none are stored.
    """

    key: dict[str, Any]  # model, tokenizer, dtype, top_k: what the numbers depend on besides the tokens
    digests: Tensor  # (M, 16) uint8: of prompt and completion ids
    token_logps: Tensor  # (sum of lengths,) log-probability of every token, one completion after the other
    lengths: Tensor  # (M,) tokens
    start: Tensor  # (M,)
    ids: Tensor  # (R, K) int32
    top_logps: Tensor  # (R, K)
    log_tail: Tensor  # (R,)
    logps: Tensor = field(init=False, repr=False, compare=False)  # (M,) summed over the completion's tokens
    _rows: dict[bytes, int] = field(init=False, repr=False, compare=False)
    _ends: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        rows = {bytes(digest): row for row, digest in enumerate(self.digests.numpy())}
        sums = [each.sum() for each in torch.split(self.token_logps, self.lengths.tolist())]
        object.__setattr__(self, "_rows", rows)
        object.__setattr__(self, "_ends", self.lengths.cumsum(0))
        object.__setattr__(self, "logps", torch.stack(sums) if sums else self.token_logps)

    def __len__(self) -> int:
        return len(self.logps)

    def logp(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> float:
        """log pi_ref(completion | prompt), nats. ReferenceCacheError if this completion was never scored."""
        return float(self.logps[self._row(prompt_ids, completion_ids)])

    def logps_of_tokens(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> Tensor:
        """log pi_ref of every token of a completion, (T,), nats."""
        end = int(self._ends[self._row(prompt_ids, completion_ids)])
        return self.token_logps[end - len(completion_ids) : end]

    def pair_logps(self, pairs: Iterable[TokenPair]) -> tuple[Tensor, Tensor]:
        """Summed log-probabilities of the chosen and of the rejected completions, (N,) each."""
        both = [(self._row(p.prompt_ids, p.chosen_ids), self._row(p.prompt_ids, p.rejected_ids)) for p in pairs]
        rows = torch.tensor(both, dtype=torch.long).reshape(-1, 2)
        return self.logps[rows[:, 0]], self.logps[rows[:, 1]]

    def distributions(self, sample: TokenSample) -> TopTokens:
        """The stored next-token distributions along one reference sample: `ids` and `logps` (T, K), `log_tail` (T,)."""
        row = self._row(sample.prompt_ids, sample.completion_ids)
        start = int(self.start[row])
        if start < 0:
            raise ReferenceCacheError(
                "a completion has no stored token distributions: it was scored as part of a pair, not as a reference sample"
            )
        tokens = slice(start, start + len(sample.completion_ids))
        return TopTokens(self.ids[tokens], self.top_logps[tokens], self.log_tail[tokens])

    def _row(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> int:
        try:
            return self._rows[sequence_digest(prompt_ids, completion_ids)]
        except KeyError:
            raise ReferenceCacheError(
                f"no reference log-probability for a completion of {len(completion_ids)} tokens: the cache was computed for other data "
                "or another tokenizer; compute it again for these pairs and samples"
            ) from None

    def joined(self, other: ReferenceLogps) -> ReferenceLogps:
        """These completions and those of `other`, whose numbers count where both have one. ReferenceCacheError: of another reference."""
        own = {name: self.key[name] for name in OF_MODEL}
        other.check(own, "further log-probabilities")
        first, second = self._tensors(), other._tensors()
        for tensors, others in ((first, second), (second, first)):
            for name in ("ids", "top_logps"):  # as wide as the others' where there are none
                if not len(tensors[name]):
                    tensors[name] = others[name][:0]
        second["start"] = torch.where(second["start"] < 0, second["start"], second["start"] + len(first["log_tail"]))
        return ReferenceLogps(key=self.key, **{name: torch.cat([first[name], second[name]]) for name in first})

    def save(self, folder: str | Path) -> Path:
        """Write the folder's two files; the manifest, with the checksum of the other, comes last."""
        folder = Path(folder)
        table = safetensors.torch.save(self._tensors())
        atomic_write(folder / _TABLE, table)
        manifest = {
            "format": FORMAT,
            "key": self.key,
            "sha256": hashlib.sha256(table).hexdigest(),
            "completions": len(self),
        }
        atomic_write(folder / _MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
        return folder

    @classmethod
    def load(cls, folder: str | Path, key: dict[str, Any] | None = None) -> ReferenceLogps:
        """Read a saved cache; with `key` (see `reference_key`), refuse one made by another model or with other settings.

        Raises ReferenceCacheError: no cache, damaged, of a newer format, or with another key (the message lists what differs).
        """
        folder = Path(folder)
        try:
            manifest = json.loads((folder / _MANIFEST).read_bytes())
            table = (folder / _TABLE).read_bytes()
        except FileNotFoundError as error:
            raise ReferenceCacheError(
                f"no reference log-probabilities in {folder}: {Path(error.filename).name} is missing"
            ) from error
        except ValueError as error:
            raise ReferenceCacheError(
                f"{folder / _MANIFEST}: damaged ({error}); delete the folder and compute it again"
            ) from error
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise ReferenceCacheError(f"{folder / _MANIFEST}: not a reference cache of format {FORMAT}")
        if hashlib.sha256(table).hexdigest() != manifest["sha256"]:
            raise ReferenceCacheError(
                f"{folder / _TABLE}: damaged (wrong checksum); delete the folder and compute it again"
            )
        found = cls(key=manifest["key"], **safetensors.torch.load(table))
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

    def _tensors(self) -> dict[str, Tensor]:
        names = ("digests", "token_logps", "lengths", "start", "ids", "top_logps", "log_tail")
        return {name: getattr(self, name).contiguous() for name in names}


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


def data_fingerprint(samples: Iterable[TokenSample]) -> str:
    """sha256 of the distinct completions with their prompts, in whatever order."""
    digests = {sequence_digest(sample.prompt_ids, sample.completion_ids) for sample in samples}
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


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
    pairs: Sequence[TokenPair],
    samples: Sequence[TokenSample],
    config: ReferenceConfig,
    *,
    completions: Sequence[TokenSample] = (),
    **others: Any,
) -> ReferenceLogps:
    """Score every pair's completions, and every sample with its next-token distributions, under the reference `model`.

    `completions` are scored like the pairs'. Each distinct completion is scored once. The model is left in evaluation mode; free it
    afterwards. `others`: further parts of the key, see `reference_key`. Processes of a launch share the batches, and all have the result.
    """
    model.eval()
    with_top = {sequence_digest(s.prompt_ids, s.completion_ids): (s.prompt_ids, s.completion_ids) for s in samples}
    without = {
        sequence_digest(s.prompt_ids, s.completion_ids): (s.prompt_ids, s.completion_ids)
        for s in chain((s for p in pairs for s in p.samples), completions)
    }
    scored = {**without, **with_top}
    # Longest first: batches of similar length waste little on padding, and too large a batch fails at once.
    order = sorted(scored, key=lambda digest: (-len(scored[digest][0]) - len(scored[digest][1]), scored[digest][0]))
    scorer = Scorer(model, list(scored.values())) if scored else None
    batches = [order[first : first + config.batch_size] for first in range(0, len(order), config.batch_size)]
    own: dict[bytes, tuple[Tensor, TopTokens | None]] = {}
    rounds = list(processes.own_rounds(len(batches)))
    for batch, counts in tqdm(rounds, desc="reference log-probs", unit="batch", leave=False):
        assert scorer is not None
        digests = sorted(batches[batch], key=lambda digest: digest in with_top)
        lengths = [len(scored[digest][1]) for digest in digests]
        last = sum(length for digest, length in zip(digests, lengths, strict=True) if digest in with_top)
        rows = scorer.pack([scored[digest] for digest in digests]).to(model.device)
        with autocast(model.device):
            logps, top = scorer.distributions(model, rows, config.top_k, last)
        position = last - sum(lengths)  # of the tokens with a distribution; negative before the first
        for digest, each in zip(digests, torch.split(logps.cpu(), lengths), strict=True):
            tokens = slice(position, position + len(each))
            stored = TopTokens(top.ids[tokens].int(), top.logps[tokens], top.log_tail[tokens]).to("cpu")
            if counts:
                own[digest] = each, stored if digest in with_top else None
            position += len(each)
    if scorer is not None:
        scorer.release(model)
    found = {digest: entry for part in processes.gather(own) for digest, entry in part.items()}
    tops = [top for _, top in (found[digest] for digest in order) if top is not None]
    starts, rows_before = [], 0
    for digest in order:
        starts.append(rows_before if digest in with_top else -1)
        rows_before += len(scored[digest][1]) if digest in with_top else 0
    return ReferenceLogps(
        key=reference_key(model, tokenizer, config, **others),
        digests=torch.tensor([list(digest) for digest in order], dtype=torch.uint8).reshape(-1, 16),
        token_logps=torch.cat([found[digest][0] for digest in order]) if order else torch.zeros(0),
        lengths=torch.tensor([len(scored[digest][1]) for digest in order], dtype=torch.long),
        start=torch.tensor(starts, dtype=torch.long),
        ids=torch.cat([t.ids for t in tops]) if tops else torch.zeros(0, 0, dtype=torch.int32),
        top_logps=torch.cat([t.logps for t in tops]) if tops else torch.zeros(0, 0),
        log_tail=torch.cat([t.log_tail for t in tops]) if tops else torch.zeros(0),
    )


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

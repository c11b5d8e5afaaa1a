"""Log-probabilities of completions under any transformers causal language model.

Prompts are padded on the left and completions on the right, so that every completion starts in the same column: the vocabulary
head, most of the cost of a small model, then runs on the completion columns only. Padding is known by the attention mask,
never by a token id: the padding token of many models (SmolLM2's, for one) is also their end-of-text token.

Shapes: N sequences, P prompt columns, C completion columns, V vocabulary entries, K stored entries of a distribution.
All log-probabilities are natural logarithms in float32 (float64 for a float64 model), whatever the dtype of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class CompletionBatch:
    """Prompts and completions, padded around the column at which every completion starts."""

    input_ids: Tensor  # (N, P + C)
    attention_mask: Tensor  # (N, P + C), 1 for a token, 0 for padding
    completion_mask: Tensor  # (N, C), true for a completion token

    @property
    def targets(self) -> Tensor:
        """The completion tokens, (N, C)."""
        return self.input_ids[:, self.prompt_width :]

    @property
    def prompt_width(self) -> int:
        """P: the column at which completions start."""
        return self.input_ids.shape[1] - self.completion_mask.shape[1]

    @property
    def lengths(self) -> Tensor:
        """Tokens per completion, (N,)."""
        return self.completion_mask.sum(-1)

    def to(self, device: torch.device | str) -> CompletionBatch:
        """The same batch on `device`."""
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def rows(self, rows: slice) -> CompletionBatch:
        """Some of the sequences."""
        return replace(self, **{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def __len__(self) -> int:
        return self.input_ids.shape[0]


def collate(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> CompletionBatch:
    """Pad prompts on the left and completions on the right.

    Raises ValueError for an empty batch, an empty prompt (its first completion token has no prediction) or an empty completion.
    """
    if not prompts or len(prompts) != len(completions):
        raise ValueError(
            f"need as many prompts as completions, and at least one; got {len(prompts)} and {len(completions)}"
        )
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        if not len(prompt) or not len(completion):
            raise ValueError(f"sequence {i} has an empty {'completion' if len(prompt) else 'prompt'}")
    p, c = max(map(len, prompts)), max(map(len, completions))
    input_ids = torch.zeros(len(prompts), p + c, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        columns = slice(p - len(prompt), p + len(completion))
        input_ids[i, columns] = torch.tensor([*prompt, *completion])
        attention_mask[i, columns] = 1
    return CompletionBatch(input_ids, attention_mask, attention_mask[:, p:].bool())


def completion_logits(model: Callable[..., object], batch: CompletionBatch) -> Tensor:
    """Logits that predict each completion column, (N, C, V), in the model's dtype; the head runs on those columns only."""
    p, c = batch.prompt_width, batch.completion_mask.shape[1]
    position_ids = (batch.attention_mask.cumsum(-1) - 1).clamp_min(0)
    output = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=position_ids,
        logits_to_keep=torch.arange(p - 1, p + c - 1, device=batch.input_ids.device),
        use_cache=False,
    )
    logits: Tensor = output.logits  # type: ignore[attr-defined]
    return logits


def token_logps(logits: Tensor, batch: CompletionBatch, chunk: int | None = None) -> Tensor:
    """log pi(y_t | x, y_<t), (N, C); exactly 0 at padding. `chunk` sequences at a time bound the memory of the softmax."""
    return _by_rows(_gathered_logps, chunk, logits, batch.targets, batch.completion_mask)


@torch.no_grad()
def log_collisions(logits: Tensor) -> Tensor:
    """log sum_v pi(v)^2 of every distribution in `logits` (..., V): how likely two draws agree, a constant weight for WPO."""
    logits = full_precision(logits)
    return (2 * logits).logsumexp(-1) - 2 * logits.logsumexp(-1)


def completion_logps(model: Callable[..., object], batch: CompletionBatch, chunk: int | None = None) -> Tensor:
    """log pi(y | x), summed over the completion's tokens, (N,)."""
    return token_logps(completion_logits(model, batch), batch, chunk).sum(-1)


@dataclass(frozen=True)
class TopTokens:
    """The K most probable tokens of next-token distributions, and the mass of all other tokens."""

    ids: Tensor  # (N, C, K), int
    logps: Tensor  # (N, C, K)
    log_tail: Tensor  # (N, C), log of the mass of the other tokens; -inf where there is none (K = V)

    def to(self, device: torch.device | str) -> TopTokens:
        """The same distributions on `device`."""
        return TopTokens(self.ids.to(device), self.logps.to(device), self.log_tail.to(device))


def top_tokens(logits: Tensor, k: int) -> TopTokens:
    """The `k` most probable tokens of every distribution in `logits` (N, C, V); all of them where V <= k."""
    logits = full_precision(logits)
    ids = logits.topk(min(k, logits.shape[-1]), dim=-1).indices
    return TopTokens(ids, *_top_and_tail(logits, ids))


def kl_from_top(top: TopTokens, logits: Tensor, mask: Tensor, chunk: int | None = None) -> Tensor:
    """Full-token forward KL of each sequence, sum_t KL(pi_ref(. | prefix) || pi(. | prefix)), (N,), from stored reference distributions.

    All tokens outside the reference's top K count as one event, so this is a lower bound on the exact sum (data processing
    inequality), equal to it for K = V; its value and gradient vanish where the policy is the reference.
    """
    per_token = _by_rows(_kl_from_top, chunk, logits, top.ids, top.logps, top.log_tail, mask)
    return per_token.sum(-1)


@torch.no_grad()
def exact_kl(logits_p: Tensor, logits_q: Tensor, mask: Tensor, chunk: int | None = None) -> Tensor:
    """sum_t KL(p(. | prefix) || q(. | prefix)) over the whole vocabulary, (N,), from two (N, C, V) logits of the same prefixes."""
    return _by_rows(_exact_kl, chunk, logits_p, logits_q, mask).sum(-1)


def full_precision(logits: Tensor) -> Tensor:
    """float32, or float64 where it is that already: sums over a vocabulary lose too much in less."""
    return logits if logits.dtype == torch.float64 else logits.float()


# Temporaries of up to this many numbers stay in a CPU's cache and are reused by its allocator: twice as fast as larger ones.
_CACHED = 2**22


def _by_rows(function: Callable[..., Tensor], chunk: int | None, *tensors: Tensor) -> Tensor:
    """Apply `function` to `chunk` sequences at a time (none: as fits the cache, or all where gradients are needed).

    Under autograd each chunk is recomputed backward, not kept.
    """
    n = tensors[0].shape[0]
    if chunk is None:
        chunk = n if torch.is_grad_enabled() else max(1, _CACHED * n // tensors[0].numel())
    if chunk >= n:
        return function(*tensors)
    pieces = zip(*(torch.split(tensor, chunk) for tensor in tensors), strict=True)
    if torch.is_grad_enabled():
        return torch.cat([checkpoint(function, *piece, use_reentrant=False) for piece in pieces])
    return torch.cat([function(*piece) for piece in pieces])


def _gathered_logps(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    loss = F.cross_entropy(full_precision(logits).flatten(0, 1), targets.flatten(), reduction="none")
    return torch.where(mask, -loss.view_as(targets), 0.0)


def _top_and_tail(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the tokens `ids` (..., K), and the log of all others' mass (...), -inf where there are no others.

    The others' mass is a sum of its own, because 1 - sum(top) loses a small tail to rounding.
    """
    top = logits.gather(-1, ids)
    if ids.shape[-1] == logits.shape[-1]:
        tail = torch.full_like(logits[..., 0], -torch.inf)
    else:
        tail = logits.scatter(-1, ids, -torch.inf).logsumexp(-1)
    normaliser = torch.logaddexp(top.logsumexp(-1), tail)
    return top - normaliser[..., None], tail - normaliser


def _kl_from_top(logits: Tensor, ids: Tensor, logps: Tensor, log_tail: Tensor, mask: Tensor) -> Tensor:
    top, tail = _top_and_tail(full_precision(logits), ids.long())
    kl = event_kl(logps, top).sum(-1) + event_kl(log_tail, tail)
    return torch.where(mask, kl, 0.0)


def event_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """p log(p / q), 0 where p = 0."""
    return torch.where(log_p > -torch.inf, log_p.exp() * (log_p - log_q), 0.0)


def _exact_kl(logits_p: Tensor, logits_q: Tensor, mask: Tensor) -> Tensor:
    log_p = full_precision(logits_p).log_softmax(-1)
    log_q = full_precision(logits_q).log_softmax(-1)
    return torch.where(mask, event_kl(log_p, log_q).sum(-1), 0.0)

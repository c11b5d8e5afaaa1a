"""The vocabulary head and what is read off its logits, in chunks of tokens: whole logits are never in memory.

Shapes: T tokens to predict, d hidden units, V vocabulary entries, K stored entries of a reference distribution, T_k tokens that have
one (always the last T_k of the T). Log-probabilities are natural logarithms in float32 (float64 for a float64 model).

One chunk has one buffer of (chunk, V) numbers (half-precision logits and soft-capping need a second). The logits are multiplied into
it, and its softmax replaces them in place; backward, the softmax becomes the gradient in place, from which those of the hidden states
and of the head follow. Between the two the softmax of as many chunks as fit into a budget is kept, and that of the others is computed
again: a fourth product with the head's weights where a kept one needs three. A head that is not trained (LoRA) needs neither: the
forward pass multiplies the softmax back at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from llm_runs.logprobs import TopTokens, event_kl, full_precision, top_tokens

CHUNK = {"cpu": 128, "cuda": 2048}  # tokens; on a CPU the largest whose softmax stays in the cache


@dataclass(frozen=True)
class TokenScores:
    """What is known of each token that was to be predicted."""

    logps: Tensor  # (T,)
    kl: Tensor  # (T_k,) KL(pi_ref(. | prefix) || pi(. | prefix)) with all tokens outside the stored ones as one event
    log_collisions: Tensor | None  # (T,) log sum_v pi(v)^2, a constant (no gradient)


@dataclass(frozen=True)
class Head:
    """A linear head, and what the model does to its logits: `cap * tanh(scale * (h W^T + b) / cap)`."""

    linear: nn.Linear
    scale: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, model: Any) -> Head | None:
        """The head of a transformers model (adapters or not); None where it is not a plain linear map."""
        linear = model.get_output_embeddings()
        if type(linear) is not nn.Linear:
            return None
        config = model.config.get_text_config()
        return cls(linear, _scale(config), getattr(config, "final_logit_softcapping", None))

    def scores(
        self,
        hidden: Tensor,
        targets: Tensor,
        top: TopTokens | None = None,
        *,
        collisions: bool = False,
        kept_bytes: int = 0,
        chunk: int | None = None,
    ) -> TokenScores:
        """Scores of `targets` (T,) from hidden states (T, d), with gradients in these and in the head.

        Args:
            hidden: the states that predict the targets.
            targets: token ids.
            top: reference distributions of the last T_k tokens: ids and logps (T_k, K), log_tail (T_k,).
            collisions: whether log_collisions are wanted.
            kept_bytes: how much memory may hold softmaxes from forward to backward.
            chunk: tokens at a time; none: as suits the device.
        """
        if top is None:
            none = hidden.new_zeros(0)
            top = TopTokens(none.new_zeros(0, 1, dtype=torch.long), none[:, None].float(), none.float())
        settings = _Settings(
            self.scale,
            self.cap,
            chunk or CHUNK.get(hidden.device.type, 1024),
            kept_bytes,
            torch.is_grad_enabled(),
            collisions,
        )
        logps, kl, log_collisions = _TokenScores.apply(  # type: ignore[no-untyped-call]
            hidden, self.linear.weight, self.linear.bias, targets, top.ids.long(), top.logps, top.log_tail, settings
        )
        return TokenScores(logps, kl, log_collisions if collisions else None)

    @torch.no_grad()
    def top_tokens(self, hidden: Tensor, k: int) -> TopTokens:
        """The `k` most probable next tokens after each hidden state (T, d), ids and logps (T, k)."""
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.linear.weight.dtype
        settings = _Settings(self.scale, self.cap, CHUNK.get(device, 1024), 0, False, False)
        none = torch.zeros(len(hidden), 0)
        work = _Work(hidden, self.linear.weight, self.linear.bias, none, none[:0], dtype, settings)
        with torch.autocast(device, enabled=False):
            found = [top_tokens(work.logits(rows), k) for rows in list(work.chunks()) or [slice(0, 0)]]
        return TopTokens(
            torch.cat([top.ids for top in found]),
            torch.cat([top.logps for top in found]),
            torch.cat([top.log_tail for top in found]),
        )


def _scale(config: Any) -> float:
    """By what the model multiplies its logits; families name it differently."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    scaling = getattr(config, "logits_scaling", None)
    if scaling is None:
        return 1.0
    return float(scaling) if config.model_type == "hyperclovax" else 1 / float(scaling)


@dataclass(frozen=True)
class _Settings:
    scale: float
    cap: float | None
    chunk: int
    kept_bytes: int
    differentiable: bool
    collisions: bool


@dataclass
class _Chunk:
    """One chunk's softmax over the tokens that have no stored reference probability (all, where there is no reference)."""

    softmax: Tensor  # (c, V); 0 at stored tokens
    target: Tensor  # (c, 1) logits of the targets
    log_mass: Tensor  # (c, 1) log of the unnormalised mass that `softmax` spreads; -inf where every token is stored
    log_norm: Tensor  # (c, 1) log of the unnormalised mass of all tokens
    stored: Tensor | None  # (c, K) logits of the stored tokens
    slope: Tensor | None  # (c, V) derivative of the cap


class _TokenScores(torch.autograd.Function):
    """(hidden (T, d), weight (V, d), bias (V,) or None, targets (T,), reference) -> logps (T,), kl (T_k,), log_collisions (T,)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        ids: Tensor,
        top_logps: Tensor,
        log_tail: Tensor,
        settings: _Settings,
    ) -> tuple[Tensor, Tensor, Tensor]:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        work = _Work(hidden, weight, bias, targets, ids, dtype, settings)
        logps, collisions = (hidden.new_empty(len(hidden), dtype=work.precision) for _ in range(2))
        kl = logps.new_empty(len(ids))
        frozen = not (weight.requires_grad or (bias is not None and bias.requires_grad)) and settings.cap is None
        pulled = torch.empty_like(hidden, dtype=dtype) if settings.differentiable and frozen else None
        ctx.kept, room = {}, settings.kept_bytes if settings.differentiable and not frozen else 0
        ctx.log_norms = torch.empty_like(logps)
        ctx.log_masses = torch.empty_like(logps)
        ctx.stored = top_logps.new_empty(top_logps.shape, dtype=work.precision)
        with torch.autocast(device, enabled=False):
            for rows in work.chunks():
                size = (rows.stop - rows.start) * work.vocabulary * logps.element_size()
                keep = size <= room and settings.cap is None
                found = work.softmax(rows, fresh=keep)
                logps[rows] = (found.target - found.log_norm)[:, 0]
                ctx.log_norms[rows], ctx.log_masses[rows] = found.log_norm[:, 0], found.log_mass[:, 0]
                if found.stored is not None:
                    here = work.reference(rows)
                    ctx.stored[here] = found.stored
                    known = event_kl(top_logps[here], found.stored - found.log_norm).sum(-1)
                    kl[here] = known + event_kl(log_tail[here], (found.log_mass - found.log_norm)[:, 0])
                if settings.collisions:
                    collisions[rows] = _log_collisions(found)
                if pulled is not None:
                    pulled[rows] = found.softmax.to(dtype) @ work.weight
                if keep:
                    room -= size
                    ctx.kept[rows.start] = found.softmax
        ctx.settings, ctx.dtype = settings, dtype
        ctx.mark_non_differentiable(collisions)
        ctx.save_for_backward(hidden, weight, bias, targets, ids, top_logps, log_tail, pulled)
        return logps, kl, collisions

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, d_logps: Tensor, d_kl: Tensor, unused: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, ids, top_logps, log_tail, pulled = ctx.saved_tensors
        work = _Work(hidden, weight, bias, targets, ids, ctx.dtype, ctx.settings)
        d_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        d_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        d_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in work.chunks():
                up = d_logps[rows, None]
                spread = -up  # by what the softmax is multiplied
                at_stored: Tensor | None = None
                if rows.start >= work.plain:
                    here = work.reference(rows)
                    up_kl = d_kl[here, None]
                    log_norm, log_mass = ctx.log_norms[rows, None], ctx.log_masses[rows, None]
                    spread = (up_kl - up) * (log_mass - log_norm).exp() - up_kl * log_tail[here, None].exp()
                    at_stored = (up_kl - up) * (ctx.stored[here] - log_norm).exp() - up_kl * top_logps[here].exp()
                if pulled is not None:
                    if d_hidden is not None:
                        d_hidden[rows] = work.pull(pulled[rows], spread, up, at_stored, rows)
                    continue
                softmax, slope = ctx.kept.pop(rows.start, None), None
                if softmax is None:
                    found = work.softmax(rows)
                    softmax, slope = found.softmax, found.slope
                gradient = softmax.mul_(spread)
                if at_stored is not None:
                    gradient.scatter_(-1, ids[work.reference(rows)], at_stored)
                gradient.scatter_add_(-1, targets[rows, None], up)
                if slope is not None:
                    gradient.mul_(slope)
                gradient = gradient.to(ctx.dtype)
                if d_hidden is not None:
                    d_hidden[rows] = (gradient @ work.weight).mul_(ctx.settings.scale)
                if d_weight is not None:
                    work.accumulate(d_weight, gradient, rows)
                if d_bias is not None:
                    d_bias += ctx.settings.scale * gradient.sum(0)
        return d_hidden, d_weight, d_bias, None, None, None, None, None


class _Work:
    """The two passes' common part: the chunks and their softmaxes."""

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        ids: Tensor,
        dtype: torch.dtype,
        settings: _Settings,
    ) -> None:
        self.hidden, self.weight = hidden.to(dtype) * settings.scale, weight.to(dtype)
        self.bias = None if bias is None else bias.to(dtype) * settings.scale
        self.targets, self.ids, self.settings = targets, ids, settings
        self.vocabulary = weight.shape[0]
        self.plain = len(targets) - len(ids)  # tokens without a reference distribution, which come first
        self.precision = torch.float64 if dtype == torch.float64 else torch.float32
        self._buffer: Tensor | None = None

    def chunks(self) -> Iterator[slice]:
        """Of `chunk` tokens at most; none holds both tokens with and without a reference distribution."""
        for first, last in ((0, self.plain), (self.plain, len(self.targets))):
            for start in range(first, last, self.settings.chunk):
                yield slice(start, min(start + self.settings.chunk, last))

    def reference(self, rows: slice) -> slice:
        """Where these tokens' reference distributions are."""
        return slice(rows.start - self.plain, rows.stop - self.plain)

    def softmax(self, rows: slice, fresh: bool = False) -> _Chunk:
        """The chunk's softmax, in a buffer that the next chunk overwrites unless it is a `fresh` one."""
        logits = self.logits(rows, fresh)
        slope = None
        if self.settings.cap is not None and self.settings.differentiable:
            slope = 1 - (logits / self.settings.cap).square()
        target = logits.gather(-1, self.targets[rows, None])
        if rows.start < self.plain:
            log_norm = _softmax_(logits)
            return _Chunk(logits, target, log_norm, log_norm, None, slope)
        ids = self.ids[self.reference(rows)]
        stored = logits.gather(-1, ids)
        if ids.shape[-1] == self.vocabulary:
            logits.zero_()
            log_mass = torch.full_like(target, -torch.inf)
        else:
            log_mass = _softmax_(logits.scatter_(-1, ids, -torch.inf))
        log_norm = torch.logaddexp(stored.logsumexp(-1, keepdim=True), log_mass)
        return _Chunk(logits, target, log_mass, log_norm, stored, slope)

    def logits(self, rows: slice, fresh: bool = False) -> Tensor:
        """The chunk's logits, (c, V), as the model itself would give them."""
        hidden = self.hidden[rows]
        if hidden.dtype != self.precision:
            logits = full_precision(nn.functional.linear(hidden, self.weight, self.bias))
        else:
            if fresh:
                logits = hidden.new_empty(len(hidden), self.vocabulary)
            else:
                if self._buffer is None:
                    self._buffer = hidden.new_empty(self.settings.chunk, self.vocabulary)
                logits = self._buffer[: len(hidden)]
            torch.mm(hidden, self.weight.t(), out=logits)
            if self.bias is not None:
                logits.add_(self.bias)
        cap = self.settings.cap
        if cap is not None:
            logits.div_(cap).tanh_().mul_(cap)
        return logits

    def pull(self, pulled: Tensor, spread: Tensor, up: Tensor, at_stored: Tensor | None, rows: slice) -> Tensor:
        """Gradient in the hidden states, from the softmax's product with the weights."""
        total = pulled * spread + self.weight[self.targets[rows]] * up
        if at_stored is not None:
            total += torch.einsum("ck,ckd->cd", at_stored, self.weight[self.ids[self.reference(rows)]].to(at_stored))
        return total * self.settings.scale

    def accumulate(self, total: Tensor, gradient: Tensor, rows: slice) -> None:
        """Add the chunk's gradient in the weights to `total`."""
        if total.dtype == gradient.dtype:
            total.addmm_(gradient.t(), self.hidden[rows])
        else:
            total += gradient.t() @ self.hidden[rows]


def _softmax_(logits: Tensor) -> Tensor:
    """Softmax of the rows in place; returns the log of their normalisers, (c, 1). Stable: the largest probability is at least 1/V."""
    largest = logits.amax(-1, keepdim=True)
    torch.softmax(logits, -1, out=logits)
    log_norm: Tensor = largest - logits.amax(-1, keepdim=True).log()
    return log_norm


def _log_collisions(chunk: _Chunk) -> Tensor:
    spread: Tensor = 2 * (
        torch.linalg.vector_norm(chunk.softmax, dim=-1).log() + (chunk.log_mass - chunk.log_norm)[:, 0]
    )
    if chunk.stored is None:
        return spread
    return torch.logaddexp((2 * (chunk.stored - chunk.log_norm)).logsumexp(-1), spread)

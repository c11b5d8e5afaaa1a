"""Log-probabilities of completions under a model: body once, head on completion tokens only, prompts shared where the model allows.

`Scorer` tries a model out on a few tokens of the data: whether its logits are those of a plain linear head, and whether it follows a
mask that lets completions share their prompt. Where it does not, its own logits or unshared rows are used, and a warning says so.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from accelerate.utils import extract_model_from_parallel
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from llm_runs.attention import IN_ROWS
from llm_runs.errors import InputError
from llm_runs.logprobs import TopTokens, full_precision, kl_from_top, log_collisions, top_tokens
from llm_runs.models import autocast
from llm_runs.packing import Rows, TokenSequence, block_mask, dense_mask, pack
from llm_runs.vocabulary_head import Head, TokenScores

T = TypeVar("T")
_PROBED = 8  # tokens of prompt and of completions on which a model is tried


class Scorer:
    """Scores sequences under one model, whatever wraps it (adapters, data parallelism), or under another of the same architecture.

    Args:
        model: transformers causal language model, with adapters or without.
        sequences: prompts and completions that will be scored. A few of their tokens try the model out; where the model has a sliding
            window, the longest must fit into it for prompts to be shared.
        share_prompt: True refuses a model that cannot share prompts; "auto" warns and goes on without.
        kept_bytes: memory that may hold softmaxes between forward and backward, see `Head.scores`.

    Attributes:
        head: how the model maps hidden states to logits; None: its own logits are used whole.
        share: whether prompts are shared.
        attention: with what, if so; on a GPU FlexAttention where it works.

    Raises:
        InputError: prompts are to be shared, but this model cannot.
    """

    def __init__(
        self,
        model: Any,
        sequences: Sequence[TokenSequence],
        share_prompt: Literal["auto", True, False] = "auto",
        kept_bytes: int = 0,
    ) -> None:
        self.kept_bytes = kept_bytes
        self.head, self.share = Head.of(_plain(model)), False
        self.attention = self._own = _plain(model).config._attn_implementation
        name, training = type(_plain(model)).__name__, model.training
        model.eval()
        try:
            probe = _Probe(model, sequences)
            if self.head is not None and not probe.passes(self, share=False):
                self.head = None
            if self.head is None:
                warnings.warn(
                    f"{name}: its logits are not those of a plain linear head, so they are computed whole, which needs more "
                    "memory: lower training.micro_batch_size if it runs out",
                    stacklevel=3,
                )
            if share_prompt is not False:
                reason = self._try_sharing(model, probe, max(len(p) + len(c) for p, c in sequences))
                if reason and share_prompt is True:
                    raise InputError(
                        f"training.share_prompt is true, but {name} cannot share prompts: {reason}. Set it to auto or false"
                    )
                if reason:
                    warnings.warn(f"{name}: prompts are not shared between completions: {reason}", stacklevel=3)
                self.share = not reason
        finally:
            model.train(training)

    def pack(self, sequences: Sequence[TokenSequence]) -> Rows:
        """Rows as this model can read them."""
        return pack(sequences, self.share)

    def score(self, model: Any, rows: Rows, top: TopTokens | None = None, *, collisions: bool = False) -> TokenScores:
        """Scores of every completion token. `top`: reference distributions of the last T_k of them, ids and logps (T_k, K)."""
        if self.head is None:
            return _scores(self._logits(model, rows).flatten(0, 1)[rows.source], rows.targets, top, collisions)
        scores, output = self._read(
            model,
            rows,
            lambda head, hidden: head.scores(
                hidden, rows.targets, top, collisions=collisions, kept_bytes=self.kept_bytes
            ),
            lambda scores: scores.logps,
        )
        logps: Tensor = _Through.apply(scores.logps, output)  # type: ignore[no-untyped-call]
        return replace(scores, logps=logps)

    @torch.no_grad()
    def distributions(self, model: Any, rows: Rows, k: int, last: int) -> tuple[Tensor, TopTokens]:
        """Log-probabilities of all completion tokens (T,), and the `k` most probable tokens at the `last` of them, (last, k)."""
        first = len(rows.targets) - last
        if self.head is None:
            logits = self._logits(model, rows).flatten(0, 1)[rows.source]
            return _scores(logits, rows.targets, None, False).logps, top_tokens(logits[first:], k)
        found, _ = self._read(
            model,
            rows,
            lambda head, hidden: (head.scores(hidden, rows.targets).logps, head.top_tokens(hidden[first:], k)),
            lambda found: found[0],
        )
        return found

    def _read(
        self, model: Any, rows: Rows, read: Callable[[Head, Tensor], T], logps: Callable[[T], Tensor]
    ) -> tuple[T, Tensor]:
        """What `read` makes of the head and the hidden states (T, d), within the model's own forward: there, wrappers have its weights.

        Also the model's output, which has no columns but depends on the `logps` of what was read: see `_Through`.
        """
        assert self.head is not None
        linear = _plain(model).get_output_embeddings()
        head = replace(self.head, linear=linear)
        found: list[T] = []

        def in_place_of_logits(hidden: Tensor) -> Tensor:
            found.append(read(head, hidden.flatten(0, 1)[rows.source]))
            return logps(found[0])[:0].to(hidden.dtype).view(len(hidden), 0, linear.out_features)

        with _replaced_forward(linear, in_place_of_logits):
            output = self._logits(model, rows)
        return found[0], output

    def _logits(self, model: Any, rows: Rows) -> Tensor:
        plain = _plain(model)
        if bool(rows.shared) and plain.config._attn_implementation != self.attention:
            plain.set_attn_implementation(self.attention)
        return _forward(model, rows)

    def release(self, model: Any) -> None:
        """Give the model its own attention back, for everything but training; the next scores, if any, change it again.

        Scoring leaves its attention in place because recomputation in a backward pass needs it.
        """
        plain = _plain(model)
        if plain.config._attn_implementation != self._own:
            plain.set_attn_implementation(self._own)

    def _try_sharing(self, model: Any, probe: _Probe, longest: int) -> str:
        """Why this model cannot share prompts; empty if it can. On a GPU its attention becomes FlexAttention if that works."""
        plain = _plain(model)
        if reason := _unmaskable(plain, longest):
            return reason
        for attention in (IN_ROWS, self._own) if plain.device.type == "cuda" else (self._own,):
            self.attention = attention
            try:
                if probe.passes(self, share=True):
                    if reason:
                        warnings.warn(f"{type(plain).__name__}: FlexAttention is not used: {reason}", stacklevel=4)
                    return ""
                reason = "it does not follow the mask that keeps completions of one prompt apart"
            except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
                reason = f"it refuses the mask ({' '.join(str(error).split())[:120]})"
            finally:
                self.release(model)
        return reason


class _Through(torch.autograd.Function):
    """`logps` as they are; but backward, the gradient passes the model's output before it reaches the head.

    Wrappers wait for the gradient of a module's output to gather its weights (FSDP2, ZeRO-3) and look from the output for what was used
    (DDP): without this edge the head's backward pass would find weights that have been given away.
    """

    @staticmethod
    def forward(ctx: Any, logps: Tensor, output: Tensor) -> Tensor:
        ctx.empty = torch.empty_like(output)
        return logps.view_as(logps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, ctx.empty


class _Probe:
    """Two short completions of one prompt, and what the model itself makes of each."""

    def __init__(self, model: Any, sequences: Sequence[TokenSequence]) -> None:
        prompt = sequences[0][0][-_PROBED:]
        if len(prompt) == 1:
            prompt *= 2  # a single token is never shared
        self.model = model
        # Completions of one token would see nothing but their prompt, so they are repeated.
        self.sequences = [(prompt, (c * _PROBED)[:_PROBED]) for _, c in (sequences[0], sequences[-1])]
        rows = self._on_device(pack(self.sequences, share=False))
        with torch.no_grad(), autocast(model.device):
            self.expected = _scores(_forward(model, rows).flatten(0, 1)[rows.source], rows.targets, None, False).logps

    @torch.no_grad()
    def passes(self, scorer: Scorer, *, share: bool) -> bool:
        """Whether the scorer's way gives the model's own log-probabilities."""
        with autocast(self.model.device):
            found = scorer.score(self.model, self._on_device(pack(self.sequences, share))).logps
        reduced = self.model.device.type == "cuda" or self.model.dtype in (torch.bfloat16, torch.float16)
        return torch.allclose(
            found.to(self.expected), self.expected, atol=0.1 if reduced else 1e-4, rtol=0.02 if reduced else 1e-4
        )

    def _on_device(self, rows: Rows) -> Rows:
        return rows.to(self.model.device)


def _forward(model: Any, rows: Rows) -> Tensor:
    """The model's logits (R, L, V), of every column."""
    arguments: dict[str, Any] = {"input_ids": rows.input_ids, "use_cache": False}
    if bool(rows.shared):
        plain = _plain(model)
        arguments |= {"attention_mask": _attention_mask(plain, rows), "position_ids": rows.position_ids}
    logits: Tensor = model(**arguments).logits
    return logits


def _attention_mask(model: PreTrainedModel, rows: Rows) -> Any:
    if model.config._attn_implementation in ("flex_attention", IN_ROWS):
        return block_mask(rows)
    mask = dense_mask(rows)
    if model.config._attn_implementation == "eager":  # adds the mask to the attention's scores
        return torch.zeros(mask.shape, dtype=model.dtype, device=mask.device).masked_fill_(
            ~mask, torch.finfo(model.dtype).min
        )
    return mask


def _unmaskable(model: PreTrainedModel, longest: int) -> str:
    """What about the model's attention a mask of ours would override or could not express; empty if nothing."""
    config = model.config.get_text_config()
    attention = model.config._attn_implementation
    if attention not in ("sdpa", "eager", "flex_attention", IN_ROWS):
        return f"its attention is {attention}, which takes no mask of single pairs of tokens"
    kinds = set(getattr(config, "layer_types", None) or ())
    if others := kinds - {"full_attention", "sliding_attention", "chunked_attention"}:
        return f"it has {', '.join(sorted(others))} layers"
    windows = {
        "sliding_attention": getattr(config, "sliding_window", None),
        "chunked_attention": getattr(config, "attention_chunk_size", None),
    }
    for kind, window in windows.items():
        if window is not None and (kind in kinds or not kinds) and longest > window:
            return f"its {kind.replace('_', ' ')} sees {window} tokens, but the longest sequence has {longest}"
    return ""


def _scores(logits: Tensor, targets: Tensor, top: TopTokens | None, collisions: bool) -> TokenScores:
    """The same scores from whole logits (T, V)."""
    kl = logits.new_zeros(0)
    if top is not None:
        chosen = logits[len(logits) - len(top.ids) :]
        each = TopTokens(top.ids[:, None], top.logps[:, None], top.log_tail[:, None])
        kl = kl_from_top(each, chosen[:, None], torch.ones_like(top.log_tail[:, None], dtype=torch.bool))
    logps = -F.cross_entropy(full_precision(logits), targets, reduction="none")
    return TokenScores(logps, kl, log_collisions(logits) if collisions else None)


def _plain(model: Any) -> PreTrainedModel:
    """The transformers model inside its wrappers."""
    inner = extract_model_from_parallel(model)
    plain: PreTrainedModel = inner.get_base_model() if isinstance(inner, PeftModel) else inner
    return plain


@contextlib.contextmanager
def _replaced_forward(module: torch.nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """`module` computes `forward` meanwhile; its hooks run as ever."""
    before = module.__dict__.get("forward")  # another wrapper's, where there is one
    module.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before

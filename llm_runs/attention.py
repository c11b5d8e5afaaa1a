"""FlexAttention for rows that hold several sequences, on a GPU.

transformers' "flex_attention" hands torch queries, keys and values as they are. With float32 weights under autocast, rotary embeddings
leave the first two in float32 while the values are bfloat16; what torch makes of that mixture depends on its version. `IN_ROWS` is the same
attention with all three of the values' dtype.

Masks are made block by block, because torch's own `create_block_mask` holds several matrices of all pairs of tokens at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.masking_utils import flex_attention_mask

IN_ROWS = "flex_attention_in_rows"  # transformers checks what has "flex_attention" in its name for support by the model
BLOCK = 128  # tokens, FlexAttention's default
_PAIRS = 2**27  # pairs of tokens looked at together: bounds the memory of a mask's making to some hundred megabytes

Visible = Callable[
    [Tensor, Tensor, Tensor], Tensor
]  # (row, query, key) indices that broadcast -> whether the query may look at the key


def _attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
    return flex_attention_forward(module, query.to(value.dtype), key.to(value.dtype), value, mask, **options)


AttentionInterface.register(IN_ROWS, _attention)
AttentionMaskInterface.register(IN_ROWS, flex_attention_mask)


def block_mask(visible: Visible, rows: int, width: int, device: torch.device) -> BlockMask:
    """The mask of `rows` rows of `width` tokens: blocks without a visible pair are skipped, those with nothing else not looked into."""
    blocks = -(-width // BLOCK)
    some, every = (torch.zeros(rows, blocks, blocks, dtype=torch.bool, device=device) for _ in range(2))
    row = torch.arange(rows, device=device)[:, None, None]
    tokens = torch.arange(blocks * BLOCK, device=device)
    keys = tokens.clamp_max(width - 1)[None, None]
    step = max(1, _PAIRS // (rows * blocks * BLOCK**2))
    for first in range(0, blocks, step):
        queries = tokens[first * BLOCK : (first + step) * BLOCK]
        seen = visible(row, queries.clamp_max(width - 1)[None, :, None], keys)
        seen = (seen & (queries < width)[:, None] & (tokens < width)).view(rows, -1, BLOCK, blocks, BLOCK)
        some[:, first : first + step] = seen.any(4).any(2)
        every[:, first : first + step] = seen.all(4).all(2)
    partial_count, partial = _indices(some & ~every)
    whole_count, wholes = _indices(every)

    def pair(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return visible(b, query, key)

    return BlockMask.from_kv_blocks(
        partial_count, partial, whole_count, wholes, BLOCK_SIZE=BLOCK, mask_mod=pair, seq_lengths=(width, width)
    )


def _indices(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row of blocks (R, Q, K): how many are set, (R, 1, Q), and their places first, (R, 1, Q, K); one head stands for all."""
    chosen = blocks[:, None].to(torch.int8)
    order = chosen.argsort(dim=-1, descending=True, stable=True)
    return chosen.sum(-1, dtype=torch.int32), order.to(torch.int32)

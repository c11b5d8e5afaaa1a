"""Token sequences as rows for a model's body: what completions share is computed once, and nothing else is seen.

A row is `prompt + completion_1 + completion_2 + ...`: completions of one prompt form a group, several groups may follow each other in a
row, and no token attends outside its own prompt and completion. Positions count from each prompt's start. A completion's last token
predicts nothing and is left out. Without sharing, each sequence is a row of its own, padded on the right: causal
attention alone then keeps padding out, so no mask is needed and any causal model will do.

Shapes: R rows, L columns, S sequences, T tokens to predict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from llm_runs import attention

TokenSequence = tuple[tuple[int, ...], tuple[int, ...]]  # prompt and completion, at least one token each
PADDING = -1  # the group of padding


@dataclass(frozen=True)
class Rows:
    """Sequences as rows, and where the hidden states lie that predict their completions' tokens."""

    input_ids: Tensor  # (R, L)
    position_ids: Tensor  # (R, L)
    group: Tensor  # (R, L) int32, which group a token belongs to; PADDING for none
    branch: Tensor  # (R, L) int32, 0 in a prompt, i in the i-th completion of its group
    source: Tensor  # (T,) index into the flattened rows, in the order of the sequences and of their tokens
    targets: Tensor  # (T,)
    lengths: Tensor  # (S,) tokens per completion
    shared: Tensor  # () bool: whether rows hold several sequences, so that attention must be masked

    @property
    def mask(self) -> Tensor:
        """(S, C), true for a completion token."""
        return torch.arange(int(self.lengths.max()), device=self.lengths.device) < self.lengths[:, None]

    def by_sequence(self, values: Tensor) -> Tensor:
        """(T,) values of tokens as (S, C), 0 at padding."""
        mask = self.mask
        return values.new_zeros(mask.shape).masked_scatter(mask, values)

    def tensors(self) -> dict[str, Tensor]:
        """The fields by name."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}

    def to(self, device: torch.device | str) -> Rows:
        """The same rows on `device`."""
        return replace(self, **{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def padding(self) -> float:
        """The share of the rows' tokens that are padding."""
        return float((self.group == PADDING).float().mean())


def pack(sequences: Sequence[TokenSequence], share: bool) -> Rows:
    """Lay out prompts and completions, in any order; their results come in this order.

    With `share`, completions of one prompt follow it in one row, and rows as long as the longest group are filled with further groups
    (first fit, longest first). A prompt of one token (a text's first) is not worth sharing.

    Raises ValueError for no sequences, an empty prompt (the first completion token has no prediction) or an empty completion.
    """
    if not sequences:
        raise ValueError("no sequences to lay out")
    for i, (prompt, completion) in enumerate(sequences):
        if not prompt or not completion:
            raise ValueError(f"sequence {i} has an empty {'completion' if prompt else 'prompt'}")
    groups: dict[object, list[int]] = {}
    for i, (prompt, _) in enumerate(sequences):
        groups.setdefault(prompt if share and len(prompt) > 1 else i, []).append(i)
    lengths = [len(sequences[g[0]][0]) + sum(len(sequences[i][1]) - 1 for i in g) for g in groups.values()]
    width = max(lengths)
    rows = _first_fit(lengths, width) if share else [[g] for g in range(len(lengths))]

    shape = len(rows), width
    input_ids, position_ids = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    group, branch = torch.full(shape, PADDING, dtype=torch.int32), torch.zeros(shape, dtype=torch.int32)
    sources: list[Tensor] = [torch.empty(0)] * len(sequences)
    members = list(groups.values())
    for r, row in enumerate(rows):
        column = 0
        for g in row:
            prompt = sequences[members[g][0]][0]
            last = r * width + column + len(prompt) - 1  # the prompt's last token predicts every completion's first
            for b, (tokens, first) in enumerate(
                [(prompt, 0), *((sequences[i][1][:-1], len(prompt)) for i in members[g])]
            ):
                columns = slice(column, column + len(tokens))
                input_ids[r, columns] = torch.tensor(tokens, dtype=torch.long)
                position_ids[r, columns] = torch.arange(first, first + len(tokens))
                group[r, columns], branch[r, columns] = g, b
                if b:
                    own = torch.arange(r * width + column, r * width + column + len(tokens))
                    sources[members[g][b - 1]] = torch.cat([torch.tensor([last]), own])
                column += len(tokens)
    return Rows(
        input_ids,
        position_ids,
        group,
        branch,
        torch.cat(sources),
        torch.tensor([token for _, completion in sequences for token in completion]),
        torch.tensor([len(completion) for _, completion in sequences]),
        torch.tensor(share),
    )


def dense_mask(rows: Rows) -> Tensor:
    """(R, 1, L, L), true where a query (third dimension) may look at a key (fourth)."""
    column = torch.arange(rows.input_ids.shape[1], device=rows.group.device)
    group, branch = rows.group, rows.branch
    mask = _visible(column[:, None], column, group[:, :, None], group[:, None], branch[:, :, None], branch[:, None])
    return mask[:, None]


def block_mask(rows: Rows) -> BlockMask:
    """The same mask for FlexAttention, which skips the blocks that are empty."""
    (count, width), group, branch = rows.input_ids.shape, rows.group, rows.branch

    def visible(row: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return _visible(query, key, group[row, query], group[row, key], branch[row, query], branch[row, key])

    return attention.block_mask(visible, count, width, group.device)


def _visible(
    query: Tensor, key: Tensor, query_group: Tensor, key_group: Tensor, query_branch: Tensor, key_branch: Tensor
) -> Tensor:
    """Earlier tokens of the same group that belong to its prompt or to the query's own completion."""
    return (query >= key) & (query_group == key_group) & ((key_branch == 0) | (key_branch == query_branch))


def _first_fit(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Which items go into which row of `width`: longest first, each into the first row with room."""
    rows: list[list[int]] = []
    room: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((r for r, free in enumerate(room) if free >= lengths[item]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(width)
        rows[row].append(item)
        room[row] -= lengths[item]
    return rows

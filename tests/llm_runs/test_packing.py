"""Rows of shared prompts: which token sees which, where predictions lie, and how little is padding."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from llm_runs.packing import PADDING, block_mask, dense_mask, pack

SEQUENCES = [
    ((1, 2, 3), (4, 5)),
    ((6, 7), (8,)),
    ((1, 2, 3), (9, 10, 11)),
    ((12,), (13, 14)),
    ((12,), (15, 16)),
]


def test_a_row_laid_out_by_hand() -> None:
    """Prompt 1 2 3, then 4 (5 predicts nothing), then 9 10; the next group fills the second row."""
    rows = pack(SEQUENCES, share=True)
    assert rows.input_ids.tolist() == [[1, 2, 3, 4, 9, 10], [6, 7, 12, 13, 12, 15]]
    assert rows.position_ids.tolist() == [[0, 1, 2, 3, 3, 4], [0, 1, 0, 1, 0, 1]]
    assert rows.branch.tolist() == [[0, 0, 0, 1, 2, 2], [0, 0, 0, 1, 0, 1]]
    assert rows.source.tolist() == [
        2,
        3,
        7,
        2,
        4,
        5,
        8,
        9,
        10,
        11,
    ]  # one token's completion comes from its prompt alone
    assert rows.targets.tolist() == [4, 5, 8, 9, 10, 11, 13, 14, 15, 16]
    assert rows.lengths.tolist() == [2, 1, 3, 2, 2]
    assert rows.padding() == 0
    assert dense_mask(rows)[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 0, 1, 0],  # the second completion does not see the first
        [1, 1, 1, 0, 1, 1],
    ]
    assert dense_mask(rows)[1, 0, 3].tolist() == [False, False, True, True, False, False]


def test_without_sharing_each_sequence_is_a_row() -> None:
    rows = pack(SEQUENCES, share=False)
    assert rows.input_ids.tolist() == [
        [1, 2, 3, 4, 0],
        [6, 7, 0, 0, 0],
        [1, 2, 3, 9, 10],
        [12, 13, 0, 0, 0],
        [12, 15, 0, 0, 0],
    ]
    assert (rows.group == PADDING).sum() == 1 + 3 + 0 + 3 + 3
    flat = rows.input_ids.flatten()
    assert flat[rows.source].tolist() == [3, 4, 7, 3, 9, 10, 12, 13, 12, 15]
    assert rows.by_sequence(rows.targets).tolist() == [[4, 5, 0], [8, 0, 0], [9, 10, 11], [13, 14, 0], [15, 16, 0]]


def test_packing_leaves_little_padding() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, 60, (64, 2), generator=generator).tolist()
    sequences = [((i + 1,) * p, (1,) * c) for i, (p, c) in enumerate(lengths)]
    packed, plain = pack(sequences, share=True), pack(sequences, share=False)
    assert (packed.group != PADDING).sum() == (plain.group != PADDING).sum() == sum(p + c - 1 for p, c in lengths)
    assert packed.padding() < 0.15 < 0.4 < plain.padding()


def test_block_mask_attends_as_the_dense_one() -> None:
    rows = pack(SEQUENCES, share=True)
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 6, 16, generator=generator)
    blocked = flex_attention(q, k, v, block_mask=block_mask(rows))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=dense_mask(rows))
    torch.testing.assert_close(blocked, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([((1,), (2,)), ((), (3,))], "sequence 1 has an empty prompt"),
        ([((1,), ())], "sequence 0 has an empty completion"),
        ([], "no sequences"),
    ],
)
def test_bad_sequences_are_refused(sequences: list[tuple[tuple[int, ...], tuple[int, ...]]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack(sequences, share=True)

"""FlexAttention's mask against torch's own, and the attention under autocast against plain attention on a GPU's dtypes."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from llm_runs import attention, packing


def rows(groups: int, longest: int) -> packing.Rows:
    generator = torch.Generator().manual_seed(groups)
    sequences = []
    for i in range(groups):
        prompt, *completions = torch.randint(2, longest, (3,), generator=generator).tolist()
        sequences += [((i + 1,) * prompt, (c + 1,) * length) for c, length in enumerate(completions)]
    return packing.pack(sequences, share=True)


@pytest.mark.parametrize("pairs", [2**27, 2**17], ids=["at-once", "in-parts"])
@pytest.mark.parametrize(("groups", "longest"), [(9, 300), (1, 400), (5, 20)])
def test_the_mask_is_the_one_that_torch_makes(
    groups: int, longest: int, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_PAIRS", pairs)
    packed = rows(groups, longest)
    dense = packing.dense_mask(packed)[:, 0]

    def visible(b: torch.Tensor, h: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return dense[b, query, key]

    (count, width), found = packed.input_ids.shape, packing.block_mask(packed)
    expected = create_block_mask(visible, count, None, width, width, device="cpu")
    assert found.shape == expected.shape
    for counts, indices in (
        ("kv_num_blocks", "kv_indices"),
        ("full_kv_num_blocks", "full_kv_indices"),
        ("q_num_blocks", "q_indices"),
        ("full_q_num_blocks", "full_q_indices"),
    ):
        assert torch.equal(getattr(found, counts), getattr(expected, counts))
        used = torch.arange(getattr(found, indices).shape[-1]) < getattr(found, counts)[..., None]
        assert torch.equal(getattr(found, indices)[used], getattr(expected, indices)[used])


def test_attention_through_the_mask_is_masked_attention() -> None:
    packed = rows(4, 150)
    count, width = packed.input_ids.shape
    query, key, value = torch.randn(3, count, 2, width, 8, generator=torch.Generator().manual_seed(0))
    found = flex_attention(query, key, value, block_mask=packing.block_mask(packed))
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=packing.dense_mask(packed))
    real = (packed.group != packing.PADDING)[:, None, :, None]
    assert torch.allclose(found * real, expected.nan_to_num() * real, atol=1e-5)

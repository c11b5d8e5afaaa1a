"""The arithmetic of a plan for many devices, against numbers written out by hand for Llama-2-7B (6,738,415,616 weights)."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from llm_runs import scale
from llm_runs.config import TrainingConfig
from llm_runs.errors import InputError
from llm_runs.memory import Load

N = 6_738_415_616
TABLES = 2 * 32_000 * 4_096
LAYER = (N - TABLES) / 32  # the last norm's 4,096 numbers are as good as nothing


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig())


def step(llama: PreTrainedModel, kind: str, size: int = 8, passes: int = 2) -> scale.Step:
    config = TrainingConfig(batch_size=64, sharding=kind, gradient_checkpointing=True)
    return scale.Step(llama, config, Load(4096, 2048), passes, size, flops=1e15)


@pytest.mark.parametrize(
    ("kind", "weights", "gradients", "optimiser", "gathered", "sent"),
    [
        ("none", 4 * N + 2 * N, 4 * N, 8 * N, 0, 2 * 4 * N),
        ("fsdp", N / 2, N / 2, N, 2 * TABLES + 4 * LAYER + 2 * TABLES + 2 * LAYER, 2 * (3 * 2 * N)),
        ("zero2", 2 * N + N / 2, N / 4, N, 0, 2 * 2 * N + 2 * N),
        ("zero3", N / 2 + N / 4, N / 2, N, 4 * TABLES + 6 * LAYER, 2 * (3 * 2 * N)),
    ],
)
def test_what_a_device_holds_and_sends(
    llama: PreTrainedModel, kind: str, weights: float, gradients: float, optimiser: float, gathered: float, sent: float
) -> None:
    planned = step(llama, kind)
    share = planned.share()
    found = (share.weights, share.gradients, share.optimiser, share.gathered, planned.sent())
    assert found == pytest.approx((weights, gradients, optimiser, gathered, sent * 7 / 8), rel=1e-3)
    # Inputs of 32 layers in bf16, and one layer's activations; all softmaxes of the head in float32, and as much for one chunk.
    inputs = 4096 * 32 * 4096 * 2
    assert inputs < share.activations < 1.1 * inputs + 4096 * 300_000
    assert share.head == 2 * 2048 * 32_000 * 4
    assert share.total == pytest.approx(sum(found[:4]) + share.activations + share.head)


def test_time_is_of_computing_and_of_sending_at_the_links_that_are_there(llama: PreTrainedModel) -> None:
    computing, sending = step(llama, "fsdp").seconds(400)
    assert computing == pytest.approx(1e15 / (8 * 4e14))
    assert sending == pytest.approx(12 * N * 7 / 8 / 300e9)
    _, across = step(llama, "fsdp", size=16).seconds(400)
    assert across == pytest.approx(12 * N * 15 / 16 / 150e9)


def test_a_batch_that_cannot_be_shared_is_named() -> None:
    assert scale.passes(TrainingConfig(batch_size=64), 8) == 1
    assert scale.passes(TrainingConfig(batch_size=64, micro_batch_size=2), 8) == 4
    with pytest.raises(
        InputError, match=r"6 processes cannot share training\.batch_size \(64\) in passes of 10: make it"
    ):
        scale.passes(TrainingConfig(batch_size=64), 6)


def test_the_reference_cache_is_a_number_a_token_and_an_index() -> None:
    assert scale.cache_bytes(1000, 512) == 2 * 1000 * (512 * 4 + 64)

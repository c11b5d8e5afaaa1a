"""Compiled layers compute what the plain ones do, and leave the model as it was."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import objectives
from llm_runs import kernels
from llm_runs.config import TrainingConfig
from llm_runs.errors import InputError
from llm_runs.examples import TokenPair
from llm_runs.training import train

PAIRS = [TokenPair((3, 4, 5), (6, 7, 8), (9, 10)), TokenPair((11, 12), (13,), (14, 15, 16))]


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, num_hidden_layers=3, bos_token_id=1, eos_token_id=2, **sizes))


def test_the_repeated_blocks_are_the_layers() -> None:
    model = llama()
    assert kernels.repeated_blocks(model) == list(model.model.layers)
    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2))
    assert kernels.repeated_blocks(gpt) == list(gpt.transformer.h)


def losses(tmp_path: Path, **settings: object) -> tuple[list[float], LlamaForCausalLM]:
    model = llama()
    config = TrainingConfig(steps=3, batch_size=2, learning_rate=1e-2, warmup_steps=0, **settings)  # type: ignore[arg-type]
    metrics = train(model, objectives.parse("simpo"), PAIRS, config=config, seed=0, out=tmp_path)
    return metrics.query("name == 'loss'")["value"].tolist(), model


def test_compiled_layers_train_the_same_and_are_plain_again_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The graphs are captured as ever, but run by torch's own operations: no compiler is needed, and no minute.
    monkeypatch.setattr(kernels, "compiled", partial(kernels.compiled, backend="aot_eager"))
    expected, plain = losses(tmp_path / "plain")
    torch._dynamo.utils.counters.clear()
    found, model = losses(tmp_path / "compiled", kernels="compile")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1  # something was compiled
    assert found == pytest.approx(expected, abs=1e-5)
    for own, other in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.allclose(own, other, atol=1e-4)
    assert list(model.state_dict()) == list(plain.state_dict())
    torch._dynamo.utils.counters.clear()
    model(torch.tensor([[1, 2, 3]]))
    assert not torch._dynamo.utils.counters["stats"]


def test_liger_kernels_are_refused_where_they_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "is_liger_kernel_available", lambda: True)
    with pytest.raises(InputError, match=r"need a GPU: set training\.kernels=none"):
        losses(tmp_path, kernels="liger")
    monkeypatch.setattr(kernels, "is_liger_kernel_available", lambda: False)
    with pytest.raises(InputError, match="not installed: pip install liger-kernel"):
        losses(tmp_path, kernels="liger")


def test_blocks_are_plain_again_after_an_error() -> None:
    model = llama()
    blocks = model.model.layers

    def fail() -> None:
        with kernels.compiled(model):
            assert all(block._compiled_call_impl is not None for block in blocks)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert all(block._compiled_call_impl is None for block in blocks)

"""The estimate of memory against what torch's allocator measured, and the advice that follows from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_training import CONFIG, MAXPO, PAIRS, SAMPLES, llama
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from llm_runs import memory
from llm_runs.config import LoRAConfig, TrainingConfig
from llm_runs.errors import InputError
from llm_runs.examples import TokenPair, TokenSample
from llm_runs.memory import Load, Plan
from llm_runs.microbatches import Microbatches
from llm_runs.training import TrainingError, train

FACTOR = 1.25  # estimate and measurement agree within it


def small_llama(hidden: int, layers: int, vocabulary: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=hidden * 8 // 3,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 16,
            num_key_value_heads=hidden // 32,
            max_position_embeddings=512,
            tie_word_embeddings=True,
        )
    )


def examples(count: int, prompt: int, completion: int, vocabulary: int) -> tuple[list[TokenPair], list[TokenSample]]:
    generator = torch.Generator().manual_seed(0)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(1, vocabulary, (length,), generator=generator).tolist())

    pairs = [TokenPair(ids(prompt), ids(completion), ids(completion)) for _ in range(count)]
    return pairs, [TokenSample(ids(prompt), ids(completion)) for _ in range(count)]


def allocated(action: Callable[[], object], folder: Path) -> int:
    """The most bytes that torch had allocated on the CPU at once during `action`."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        action()
    trace = folder / "trace.json"
    profiler.export_chrome_trace(str(trace))
    events = [e["args"] for e in json.loads(trace.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    return max(e["Total Allocated"] for e in events) - (events[0]["Total Allocated"] - events[0]["Bytes"])


@pytest.mark.parametrize(
    ("size", "lengths", "change"),
    [
        ((64, 2, 512), (8, 24), {}),
        ((64, 2, 512), (100, 20), {"gradient_checkpointing": True}),
        ((64, 6, 512), (100, 20), {"micro_batch_size": 2}),
        ((384, 6, 49152), (204, 52), {"batch_size": 2, "reference_batch_size": 2}),
    ],
    ids=["tiny", "recomputed", "accumulated", "28M"],
)
def test_the_estimate_is_what_is_allocated(
    size: tuple[int, int, int], lengths: tuple[int, int], change: dict[str, object], tmp_path: Path
) -> None:
    config = TrainingConfig(**{"steps": 2, "batch_size": 8, "reference_batch_size": 8, **change})  # type: ignore[arg-type]
    pairs, samples = examples(8, *lengths, size[2])
    estimates = []

    def run() -> None:
        model = small_llama(*size)
        data = Microbatches(MAXPO.needs_on_pairs, pairs, samples, (), None, config, 0)
        estimates.append(memory.of_training(model, data, config, live_reference=False).estimate().total)
        train(model, MAXPO, pairs, reference_samples=samples, config=config, seed=0, out=tmp_path)

    measured = allocated(run, tmp_path)
    assert measured / FACTOR < estimates[0] < measured * FACTOR


def plan(**change: object) -> Plan:
    config = replace(CONFIG, batch_size=12, reference_batch_size=12, pretraining_batch_size=12, **change)  # type: ignore[arg-type]
    with torch.device("meta"):
        return Plan(small_llama(384, 6, 49152), config, Load(36 * 256, 36 * 52))


def test_advice_is_the_first_setting_that_fits() -> None:
    """By bytes added up here: 28.6 million weights in float32, and their two moments."""
    whole = plan()
    weights = sum(p.numel() for p in whole.model.parameters()) * 4
    assert weights == pytest.approx(28.6e6 * 4, rel=0.01)
    assert (whole.estimate().weights, whole.estimate().optimiser) == (weights, 2 * weights)
    sizes = {change: smaller.estimate().total for change, smaller in whole.smaller()}
    micro = {change: size for change, size in sizes.items() if "checkpointing" not in change and "lora" not in change}
    assert list(micro) == [f"training.micro_batch_size={n} (now 12)" for n in (6, 4, 3, 2, 1)]
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)
    limit = (sizes["training.micro_batch_size=4 (now 12)"] + sizes["training.micro_batch_size=3 (now 12)"]) // 2
    assert "set training.micro_batch_size=3 (now 12), which takes about" in memory.advice(whole, limit)
    # It failed although it should have fitted: still something clearly smaller is proposed.
    assert "set training.micro_batch_size=6 (now 12)" in memory.advice(whole, 10**12)
    assert "training.gradient_checkpointing=true and training.lora.rank=16" in memory.advice(whole, 10**6)
    least = plan(micro_batch_size=1, gradient_checkpointing=True, lora=LoRAConfig())
    assert "take a smaller model or shorter texts" in memory.advice(least, 10**6)


def test_lora_is_counted_as_peft_makes_it() -> None:
    from peft import LoraConfig, get_peft_model

    whole = plan(lora=LoRAConfig(rank=4))
    expected = whole.estimate().gradients
    adapted = get_peft_model(
        small_llama(384, 6, 49152), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    assert expected == 4 * sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert replace(whole, model=adapted).estimate().gradients == expected


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
    ids=["cuda", "host", "torch-cpu"],
)
def test_out_of_memory_says_what_to_lower(error: Exception, tmp_path: Path) -> None:
    model = llama()

    def fail(*_: object) -> None:
        raise error

    model.model.layers[1].mlp.register_forward_hook(fail)
    with pytest.raises(
        TrainingError, match=r"^out of memory while training: it takes about .*activations.*; set "
    ) as caught:
        train(model, MAXPO, PAIRS, reference_samples=SAMPLES, config=CONFIG, seed=0, out=tmp_path)
    assert "set training.micro_batch_size=" in str(caught.value) and "\n" not in str(caught.value)
    with (
        pytest.raises(InputError, match=r"^out of memory: set sampling.batch_size=32 \(now 64\)"),
        memory.lower("sampling.batch_size", 64),
    ):
        raise error


def test_real_exhaustion_of_the_cpu_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert memory.ran_out(caught.value)


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="size mismatch"), memory.lower("x", 2):
        raise RuntimeError("size mismatch")

"""Engines of sampling: draws of the exact distribution with their log-probabilities at temperature 1, reproducible, with clear errors."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy import stats
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, TopPLogitsWarper

from llm_runs import engines, sampling
from llm_runs.config import SamplingConfig
from llm_runs.errors import InputError
from llm_runs.examples import TokenSample

PROMPTS = [tuple(range(10, 10 + length)) for length in (3, 7, 5, 4, 6)]
Draw = Callable[..., list[TokenSample]]


def sharpen(model: PreTrainedModel, factor: float) -> PreTrainedModel:
    """Random weights give almost uniform distributions; make them peaked, so that mistakes show."""
    with torch.no_grad():
        model.model.norm.weight.mul_(factor)
    return model


def logp(model: Any, sample: TokenSample) -> float:
    """By a plain forward pass of the whole sequence."""
    with torch.no_grad():
        logits = model(torch.tensor([[*sample.prompt_ids, *sample.completion_ids]])).logits[0].double().log_softmax(-1)
    first = len(sample.prompt_ids) - 1
    return sum(float(logits[first + t, token]) for t, token in enumerate(sample.completion_ids))


# -- a stand-in for vLLM: the parts of its interface that are used, drawing with transformers ---------------------


class FakeParams(SimpleNamespace):
    pass


class FakeLLM:
    """Reads the folder that it is given, and draws each sequence with its own seed."""

    started: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, model: str, **settings: Any) -> None:
        self.started.append(settings | {"files": sorted(path.name for path in Path(model).iterdir())})
        self.model = AutoModelForCausalLM.from_pretrained(model).eval()

    def generate(self, requests: Sequence[Any], settings: Sequence[Any], use_tqdm: bool) -> list[Any]:
        return [self._one(r["prompt_token_ids"], s) for r, s in zip(requests, settings, strict=True)]

    @torch.no_grad()
    def _one(self, prompt: list[int], settings: Any) -> Any:
        assert (settings.top_k, settings.logprobs) == (-1, 0)
        nucleus = TopPLogitsWarper(settings.top_p) if settings.top_p < 1 else lambda _, logits: logits
        generator = torch.Generator().manual_seed(settings.seed)
        ids, found = list(prompt), []
        for _ in range(settings.max_tokens):
            logits = self.model(torch.tensor([ids])).logits[0, -1].float()
            kept = nucleus(None, logits[None] / settings.temperature)[0]
            token = int(torch.multinomial(kept.softmax(-1), 1, generator=generator))
            ids.append(token)
            found.append({token: SimpleNamespace(logprob=float(logits.log_softmax(-1)[token]))})
            if token in settings.stop_token_ids:
                break
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(ids[len(prompt) :]), logprobs=found)])


@pytest.fixture
def with_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = FakeLLM, FakeParams  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(FakeLLM, "started", [])


@pytest.fixture
def draw(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Draw:
    def of(engine: str, prompts: Sequence[Any] = PROMPTS, policy: Any = None, **options: Any) -> list[TokenSample]:
        settings = {"max_tokens": 6, "seed": 0, "batch_size": 4} | options
        return sampling.sample(policy or model, tokenizer, prompts, engine=engine, **settings)

    return of


@pytest.mark.parametrize("engine", ["continuous", "vllm"])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.6)])
@pytest.mark.usefixtures("with_vllm")
def test_draws_follow_the_model_at_the_temperature(
    model: PreTrainedModel, draw: Draw, engine: str, temperature: float, top_p: float
) -> None:
    sharpen(model, 6.0)
    model.generation_config.update(do_sample=True, top_k=2)  # what a model's own settings say must not matter
    count = 2000
    drawn = draw(engine, PROMPTS[1:2] * count, temperature=temperature, top_p=top_p, max_tokens=1, batch_size=500)
    with torch.no_grad():
        logits = model(torch.tensor([PROMPTS[1]])).logits[:, -1].double() / temperature
    kept = TopPLogitsWarper(top_p)(None, logits) if top_p < 1 else logits
    probabilities = kept[0].softmax(-1).numpy()
    assert all(probabilities[entry.completion_ids[0]] > 0 for entry in drawn)
    counts = np.bincount([entry.completion_ids[0] for entry in drawn], minlength=len(probabilities))
    frequent = probabilities * count >= 5
    assert frequent.sum() >= 5
    observed = np.append(counts[frequent], counts[~frequent].sum())
    expected = np.append(probabilities[frequent], probabilities[~frequent].sum()) * count
    some = expected > 0
    assert stats.chisquare(observed[some], expected[some]).pvalue > 1e-4
    for entry in drawn[:3]:  # whatever the temperature, the noted log-probability is that at temperature 1
        assert entry.logp == pytest.approx(logp(model, entry), abs=1e-4)


@pytest.mark.parametrize("engine", ["continuous", "vllm"])
@pytest.mark.usefixtures("with_vllm")
def test_completions_are_whole_in_order_and_reproducible(model: PreTrainedModel, draw: Draw, engine: str) -> None:
    sharpen(model, 12.0)
    ends = list(range(100, 160))
    model.generation_config.eos_token_id = ends  # some models have several
    prompts = PROMPTS * 8
    state = torch.get_rng_state()
    first, again, other = (draw(engine, prompts, max_tokens=12, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert first == again
    assert first != other
    assert [entry.prompt_ids for entry in first] == prompts
    assert len({entry.completion_ids for entry in first[::5]}) > 1  # one prompt's completions differ
    for entry in first:
        assert not set(ends) & set(entry.completion_ids[:-1])
        assert len(entry.completion_ids) == 12 or entry.completion_ids[-1] in {*ends, 2}
        assert entry.logp == pytest.approx(logp(model, entry), abs=1e-3)
    assert min(len(entry.completion_ids) for entry in first) < 12


def test_continuous_batching_leaves_the_model_as_it_was(model: PreTrainedModel, draw: Draw) -> None:
    model.config._attn_implementation = "flex_attention"  # as a training with shared prompts leaves it on a GPU
    draw("continuous")
    assert model.config._attn_implementation == "flex_attention"


def test_continuous_batching_samples_adapters(fresh_model: Callable[[], PreTrainedModel], draw: Draw) -> None:
    policy = get_peft_model(fresh_model(), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    torch.manual_seed(0)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=1.0)
    drawn = draw("continuous", policy=policy)
    with policy.disable_adapter():
        apart = [abs(float(entry.logp or 0.0) - logp(policy, entry)) for entry in drawn]
    assert max(apart) > 0.1
    for entry in drawn:
        assert entry.logp == pytest.approx(logp(policy, entry), abs=1e-3)


@pytest.mark.parametrize(
    ("error", "expected", "words"),
    [
        (RuntimeError("a kernel is missing"), InputError, "a kernel is missing. Take sampling.engine=transformers"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), MemoryError, "out of memory"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_failure_in_the_engine_is_an_error_of_the_call(
    model: PreTrainedModel, draw: Draw, error: Exception, expected: type[Exception], words: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    model.model.layers[0].register_forward_hook(fail)
    with pytest.raises(expected, match=words):
        draw("continuous")


@pytest.mark.usefixtures("with_vllm")
def test_vllm_gets_the_policy_and_a_seed_for_each_sequence(
    model: PreTrainedModel, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    original = FakeLLM.generate
    monkeypatch.setattr(
        FakeLLM, "generate", lambda self, r, s, use_tqdm: seen.extend(s) or original(self, r, s, use_tqdm)
    )
    draw("vllm", PROMPTS * 3)
    (started,) = FakeLLM.started  # once, however many prompts there are
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(started["files"])
    assert started["max_model_len"] == 7 + 6
    assert started["max_num_seqs"] == 4
    assert started["dtype"] == "float32"
    assert len({settings.seed for settings in seen}) == len(PROMPTS) * 3


def test_vllm_that_is_not_there_is_an_error_with_advice(
    draw: Draw, fresh_model: Callable[[], PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    for call in (lambda: draw("vllm"), lambda: engines.check("vllm")):
        with pytest.raises(InputError, match=r"vLLM cannot be imported .*pip install vllm.*continuous or transformers"):
            call()
    engines.check("auto")
    policy = get_peft_model(fresh_model(), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    with pytest.raises(InputError, match="this one has adapters"):
        draw("vllm", policy=policy)


def test_auto_is_the_best_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert engines.resolve("auto", cpu) == "transformers"
    assert engines.resolve("continuous", cpu) == "continuous"
    for there, expected in ((None, "continuous"), (object(), "vllm")):
        monkeypatch.setattr("importlib.util.find_spec", lambda name, there=there: there)
        assert engines.resolve("auto", gpu) == expected


def test_files_say_what_drew_them_and_go_on_after_an_interruption(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, prompts = SamplingConfig(batch_size=2, engine="continuous"), PROMPTS * 9  # three calls of sixteen prompts

    def draw(name: str) -> list[TokenSample]:
        return sampling.sample_to_file(
            tmp_path / name, model, tokenizer, prompts, max_tokens=3, seed=7, config=config, key="k"
        )

    whole, calls = draw("whole.jsonl"), []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return engines.continuous(*arguments, **options)

    monkeypatch.setitem(engines.ENGINES, "continuous", interrupted)
    with pytest.raises(KeyboardInterrupt):
        draw("cut.jsonl")
    assert not (tmp_path / "cut.json").exists()
    assert draw("cut.jsonl") == whole
    assert len(calls) == 2 + 2
    about = sampling.provenance(tmp_path / "cut.jsonl")
    assert about.pop("version").startswith("transformers 5.")
    assert about == {
        "engine": "continuous",
        "seed": 7,
        "temperature": 1.0,
        "top_p": 1.0,
        "batch_size": 2,
        "max_tokens": 3,
        "samples": 45,
    }
    assert sampling.provenance(tmp_path / "unknown.jsonl") == {}
    (tmp_path / "cut.json").write_text(json.dumps(about)[:9])
    with pytest.raises(InputError, match=r"cut\.json: damaged"):
        sampling.provenance(tmp_path / "cut.jsonl")

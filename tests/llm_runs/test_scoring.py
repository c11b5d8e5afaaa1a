"""The training path's scores and gradients against each model's own, one unpadded sequence at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from llm_runs import vocabulary_head
from llm_runs.errors import InputError
from llm_runs.logprobs import TopTokens, top_tokens
from llm_runs.packing import TokenSequence
from llm_runs.scoring import Scorer

V = 40
SIZES = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "llama-tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "llama-eager": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attn_implementation="eager")),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=V,
            n_embd=32,
            n_layer=2,
            n_head=2,
            n_positions=64,
            initializer_range=0.2,
            bos_token_id=1,
            eos_token_id=2,
        )
    ),
    "gemma2, soft cap": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=1.5)),
    "cohere, scaled": lambda: CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.3)),
    "granite, scaled": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=3.0)),
    "phi, bias": lambda: PhiForCausalLM(PhiConfig(**SIZES)),
    "mamba": lambda: MambaForCausalLM(
        MambaConfig(vocab_size=V, hidden_size=32, num_hidden_layers=2, state_size=4, bos_token_id=1, eos_token_id=2)
    ),
}
UNSHARED = {"mamba"}


def tokens(count: int, generator: torch.Generator) -> tuple[int, ...]:
    return tuple(torch.randint(1, V, (count,), generator=generator).tolist())


GENERATOR = torch.Generator().manual_seed(0)
FIRST, SECOND = tokens(5, GENERATOR), tokens(3, GENERATOR)
SEQUENCES: list[TokenSequence] = [
    (prompt, tokens(count, GENERATOR))
    for prompt, count in ((FIRST, 4), (SECOND, 6), (FIRST, 2), (tokens(1, GENERATOR), 5), (FIRST, 7), (SECOND, 1))
]
T = sum(len(completion) for _, completion in SEQUENCES)
LAST = 8  # tokens with a reference distribution: those of the last two sequences
WEIGHTS = torch.linspace(-1, 1.5, T)
KL_WEIGHTS = torch.linspace(0.5, 2, LAST)
_top = top_tokens(2 * torch.randn(LAST, V, generator=GENERATOR), 7)


def made(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = MODELS[name]()
    for parameter in model.parameters():
        if parameter.ndim == 1:  # biases and norms that do something
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def expected(model: PreTrainedModel) -> tuple[Tensor, Tensor, Tensor]:
    """log pi, log sum pi^2 and KL of each token: from full softmaxes of single sequences, and torch's own kl_div over the events."""
    rows = []
    for prompt, completion in SEQUENCES:
        logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
        rows.append(logits.float().softmax(-1))
    probabilities = torch.cat(rows)
    targets = torch.tensor([token for _, completion in SEQUENCES for token in completion])
    logps = probabilities.gather(-1, targets[:, None])[:, 0].log()
    with_top = probabilities[-LAST:]
    stored = with_top.gather(-1, _top.ids)
    events = torch.cat([stored, (with_top.sum(-1) - stored.sum(-1))[:, None]], -1)
    reference = torch.cat([_top.logps, _top.log_tail[:, None]], -1)
    kl = torch.nn.functional.kl_div(events.log(), reference, log_target=True, reduction="none").sum(-1)
    return logps, probabilities.square().sum(-1).log(), kl


def gradients(model: torch.nn.Module) -> Tensor:
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return found


@pytest.mark.parametrize("kept", [0, 10**9, 4 * V * 9], ids=["computed again", "kept", "in part"])
@pytest.mark.parametrize("name", MODELS)
def test_scores_and_gradients_are_the_models_own(name: str, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vocabulary_head.CHUNK, "cpu", 3)
    model = made(name)
    logps, collisions, kl = expected(model)
    ((logps * WEIGHTS).sum() + (kl * KL_WEIGHTS).sum()).backward()
    wanted = gradients(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error" if name not in UNSHARED else "ignore", UserWarning)
        scorer = Scorer(model, SEQUENCES, kept_bytes=kept)
    assert scorer.share == (name not in UNSHARED)
    assert scorer.head is not None
    scores = scorer.score(model, scorer.pack(SEQUENCES), _top, collisions=True)
    assert scores.log_collisions is not None
    ((scores.logps * WEIGHTS).sum() + (scores.kl * KL_WEIGHTS).sum()).backward()
    for found, value in ((scores.logps, logps), (scores.log_collisions, collisions), (scores.kl, kl)):
        torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients(model), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


def test_a_head_that_is_not_trained_gives_the_same_gradients() -> None:
    """Its product with the softmax is taken forward; the gradient of the states must be that of a trained head."""
    model = made("llama")
    scorer = Scorer(model, SEQUENCES)
    rows = scorer.pack(SEQUENCES)

    def run() -> Tensor:
        scores = scorer.score(model, rows, _top)
        ((scores.logps * WEIGHTS).sum() + (scores.kl * KL_WEIGHTS).sum()).backward()
        assert (model.lm_head.weight.grad is None) is not model.lm_head.weight.requires_grad
        model.lm_head.weight.grad = None
        return gradients(model)

    trained = run()
    model.lm_head.weight.requires_grad_(False)
    torch.testing.assert_close(run(), trained, rtol=0, atol=1e-5 * float(trained.abs().max()))


@pytest.mark.parametrize("k", [1, 6, V])
def test_gradients_by_finite_differences(k: int) -> None:
    generator = torch.Generator().manual_seed(1)
    linear = torch.nn.Linear(5, V, dtype=torch.float64)
    hidden = torch.randn(7, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    top = top_tokens(torch.randn(3, V, generator=generator, dtype=torch.float64), k)
    targets = torch.randint(0, V, (7,), generator=generator)
    for cap in (None, 0.7):
        head = vocabulary_head.Head(linear, 1.3, cap)

        def scores(
            hidden: Tensor, weight: Tensor, bias: Tensor, head: vocabulary_head.Head = head
        ) -> tuple[Tensor, Tensor]:
            found = head.scores(hidden, targets, top, chunk=2)
            return found.logps, found.kl

        assert torch.autograd.gradcheck(scores, (hidden, linear.weight, linear.bias))


def test_a_tiny_tail_keeps_its_gradient() -> None:
    """The policy has almost abandoned the reference's tail (mass e^-200, below float32): the pull back must not vanish."""
    head = vocabulary_head.Head(torch.nn.Linear(4, 4, bias=False))
    head.linear.weight.data = torch.eye(4)
    hidden = torch.tensor([[200.0, 0.0, 0.0, 0.0]], requires_grad=True)
    top = TopTokens(torch.zeros(1, 1, dtype=torch.long), torch.full((1, 1), 0.25).log(), torch.full((1,), 0.75).log())
    kl = head.scores(hidden, torch.tensor([0]), top).kl
    by_hand = 0.25 * torch.tensor(0.25).log() + 0.75 * (torch.tensor(0.75 / 3).log() + 200)
    torch.testing.assert_close(kl[0], by_hand)
    kl.sum().backward()
    torch.testing.assert_close(hidden.grad, torch.tensor([[0.75, -0.25, -0.25, -0.25]]))  # q - p, p uniform


def test_autocast_computes_the_head_in_half_precision_and_sums_in_single() -> None:
    model = made("llama")
    scorer = Scorer(model, SEQUENCES)
    rows = scorer.pack(SEQUENCES)
    full = scorer.score(model, rows, _top)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = scorer.score(model, rows, _top)
    assert half.logps.dtype == torch.float32
    torch.testing.assert_close(half.logps, full.logps, rtol=0.05, atol=0.2)
    (half.logps.sum() + half.kl.sum()).backward()
    reduced = gradients(model)
    (full.logps.sum() + full.kl.sum()).backward()
    assert torch.nn.functional.cosine_similarity(reduced, gradients(model), dim=0) > 0.995


def test_adapters_on_and_off() -> None:
    model = get_peft_model(made("llama"), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    scorer = Scorer(model, SEQUENCES)
    rows = scorer.pack(SEQUENCES)
    on, _, _ = expected(model)
    with model.disable_adapter():
        off = scorer.score(model, rows).logps
    base, _, _ = expected(made("llama"))
    torch.testing.assert_close(off, base, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scorer.score(model, rows).logps, on, rtol=1e-5, atol=1e-5)
    assert (on - off).abs().max() > 0.1


def test_distributions_are_those_of_full_softmaxes() -> None:
    model = made("gemma2, soft cap")
    scorer = Scorer(model, SEQUENCES)
    logps, top = scorer.distributions(model, scorer.pack(SEQUENCES), 5, LAST)
    prompt, completion = SEQUENCES[-1]  # of one token
    rows = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1].softmax(-1)
    largest = rows.sort(descending=True)
    assert top.ids[-1].tolist() == largest.indices[0, :5].tolist()
    torch.testing.assert_close(top.logps[-1].exp(), largest.values[0, :5], rtol=1e-5, atol=0)
    torch.testing.assert_close(top.log_tail[-1].exp(), largest.values[0, 5:].sum(), rtol=1e-5, atol=0)
    torch.testing.assert_close(logps, expected(model)[0], rtol=1e-5, atol=1e-5)


# What a model cannot do is found out and said.


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (
            lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=6)),
            "sliding attention sees 6 tokens, but the longest sequence has 12",
        ),
        (
            lambda: BloomForCausalLM(BloomConfig(vocab_size=V, hidden_size=32, n_layer=2, n_head=2)),
            "it refuses the mask",
        ),
    ],
    ids=["mistral", "bloom"],
)
def test_models_that_cannot_share_prompts_say_so(model: Callable[[], PreTrainedModel], reason: str) -> None:
    made_model = model().eval()
    with pytest.warns(UserWarning, match=f"prompts are not shared between completions: .*{reason}"):
        scorer = Scorer(made_model, SEQUENCES)
    assert not scorer.share
    torch.testing.assert_close(
        scorer.score(made_model, scorer.pack(SEQUENCES)).logps, expected(made_model)[0], rtol=1e-5, atol=1e-5
    )
    with pytest.raises(InputError, match=f"share_prompt is true, but .* cannot share prompts: .*{reason}"):
        Scorer(made_model, SEQUENCES, True)


def test_a_model_that_ignores_the_mask_is_found_out() -> None:
    model = made("llama")
    forward = model.model.forward
    model.model.forward = lambda *args, **kwargs: forward(*args, **{**kwargs, "attention_mask": None})
    with pytest.warns(UserWarning, match="it does not follow the mask"):
        assert not Scorer(model, SEQUENCES).share


def test_logits_that_the_model_changes_in_its_own_way_are_used_whole() -> None:
    class Tempered(LlamaForCausalLM):
        def forward(self, *args: object, **kwargs: object) -> object:
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * 0.5
            return output

    torch.manual_seed(0)
    model = Tempered(LlamaConfig(**SIZES)).eval()
    with pytest.warns(UserWarning, match="its logits are not those of a plain linear head"):
        scorer = Scorer(model, SEQUENCES)
    assert scorer.head is None
    assert scorer.share
    scores = scorer.score(model, scorer.pack(SEQUENCES), _top, collisions=True)
    assert scores.log_collisions is not None
    for found, value in zip((scores.logps, scores.log_collisions, scores.kl), expected(model), strict=True):
        torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-5)

"""Log-probabilities against plain, unpadded, full forward passes and written-out sums."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from llm_runs.logprobs import (
    TopTokens,
    collate,
    completion_logits,
    completion_logps,
    exact_kl,
    kl_from_top,
    token_logps,
    top_tokens,
)

VOCABULARY = 40
SEQUENCES = [([5, 6, 7], [8, 9, 10, 11]), ([3], [4, 2, 2]), ([1, 2, 3, 4, 5, 6], [7]), ([2, 2], [2, 2, 9, 30, 31])]


def llama(seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            pad_token_id=2,
            eos_token_id=2,
            initializer_range=0.3,  # far from uniform
        )
    ).eval()


def gpt2() -> PreTrainedModel:
    torch.manual_seed(1)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, n_positions=64, initializer_range=0.2)
    ).eval()


def qwen() -> PreTrainedModel:
    torch.manual_seed(2)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    ).eval()


def plain_logps(model: PreTrainedModel, prompt: list[int], completion: list[int]) -> list[float]:
    """One unpadded sequence, every position through the head, log of a softmax written out."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0].double()
    return [
        math.log(logits[len(prompt) + t - 1].exp()[token] / logits[len(prompt) + t - 1].exp().sum())
        for t, token in enumerate(completion)
    ]


@pytest.mark.parametrize("make", [llama, gpt2, qwen], ids=["llama", "gpt2", "qwen2"])
def test_padded_batch_equals_plain_forward_of_each_sequence(make: Callable[[], PreTrainedModel]) -> None:
    model = make()
    batch = collate([p for p, _ in SEQUENCES], [c for _, c in SEQUENCES])
    with torch.no_grad():
        logps = token_logps(completion_logits(model, batch), batch)
    for row, (prompt, completion) in enumerate(SEQUENCES):
        assert logps[row, : len(completion)].tolist() == pytest.approx(plain_logps(model, prompt, completion), abs=1e-5)
        assert (logps[row, len(completion) :] == 0).all()
    assert batch.lengths.tolist() == [4, 3, 1, 5]


def test_padding_and_neighbours_do_not_matter() -> None:
    model = llama()
    prompt, completion = SEQUENCES[0]
    with torch.no_grad():
        alone = completion_logps(model, collate([prompt], [completion]))
        padded = completion_logps(model, collate([prompt, [1] * 20], [completion, [3] * 15]))
    assert padded[0].item() == pytest.approx(alone[0].item(), abs=1e-5)


def test_padding_token_inside_a_completion_counts() -> None:
    """2 is the model's padding and end-of-text token; a completion that ends with it must be scored with it."""
    model = llama()
    with torch.no_grad():
        with_end = completion_logps(model, collate([[3]], [[4, 2]]))
    assert with_end.item() == pytest.approx(sum(plain_logps(model, [3], [4, 2])), abs=1e-5)


def test_head_runs_on_completion_columns_only() -> None:
    model = llama()
    positions: list[int] = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: positions.append(inputs[0].shape[1]))
    batch = collate([[1] * 30], [[3] * 4])
    completion_logits(model, batch)
    assert positions == [4]


@pytest.mark.parametrize("chunk", [1, 3])
def test_chunks_change_neither_values_nor_gradients(chunk: int) -> None:
    model = llama()
    batch = collate([p for p, _ in SEQUENCES], [c for _, c in SEQUENCES])
    reference = top_tokens(completion_logits(llama(9), batch).detach(), 7)

    def run(size: int | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        model.zero_grad()
        logits = completion_logits(model, batch)
        logps, kl = (
            token_logps(logits, batch, size).sum(-1),
            kl_from_top(reference, logits, batch.completion_mask, size),
        )
        (logps * torch.arange(4) + kl).sum().backward()
        return logps.detach(), kl.detach(), model.model.embed_tokens.weight.grad.clone()

    for whole, chunked in zip(run(None), run(chunk), strict=True):
        torch.testing.assert_close(whole, chunked, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("prompts", "completions", "message"),
    [
        ([[1], []], [[2], [3]], "sequence 1 has an empty prompt"),
        ([[1]], [[]], "sequence 0 has an empty completion"),
        ([[1]], [], "as many prompts"),
        ([], [], "at least one"),
    ],
)
def test_bad_sequences_are_refused(prompts: list[list[int]], completions: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collate(prompts, completions)


def two_distributions() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    p, q = 3 * torch.randn(2, 3, 5, VOCABULARY, generator=generator, dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor([5, 2, 4])[:, None]
    return p, q, mask


def summed_kl(p: torch.Tensor, q: torch.Tensor, mask: torch.Tensor) -> list[float]:
    """sum over tokens and vocabulary of p (log p - log q), in plain Python."""
    totals = []
    for row in range(p.shape[0]):
        total = 0.0
        for t in range(p.shape[1]):
            if mask[row, t]:
                ps, qs = [[math.exp(x) for x in logits[row, t].tolist()] for logits in (p, q)]
                total += sum(
                    a / sum(ps) * (math.log(a / sum(ps)) - math.log(b / sum(qs))) for a, b in zip(ps, qs, strict=True)
                )
        totals.append(total)
    return totals


def test_exact_kl_is_the_sum_over_tokens_and_vocabulary() -> None:
    p, q, mask = two_distributions()
    assert exact_kl(p, q, mask, chunk=2).tolist() == pytest.approx(summed_kl(p, q, mask), rel=1e-10)


def test_kl_from_all_tokens_is_exact_and_grows_with_k() -> None:
    p, q, mask = two_distributions()
    exact = torch.tensor(summed_kl(p, q, mask), dtype=torch.float64)
    torch.testing.assert_close(kl_from_top(top_tokens(p, VOCABULARY), q, mask), exact, rtol=1e-10, atol=0)
    torch.testing.assert_close(kl_from_top(top_tokens(p, 10 * VOCABULARY), q, mask), exact, rtol=1e-10, atol=0)
    bounds = torch.stack([kl_from_top(top_tokens(p, k), q, mask) for k in (1, 4, 16, VOCABULARY)])
    assert (bounds.diff(dim=0) > 0).all()  # a finer partition of the events cannot lower the divergence


def test_kl_from_top_of_two_events_by_hand() -> None:
    """p = (1/2, 1/4, 1/4), q = (1/4, 1/4, 1/2); k = 1 leaves the events {0}, {1, 2}: (1/2) log 2 + (1/2) log(2/3)."""
    p, q = torch.tensor([[[0.5, 0.25, 0.25]]]).log(), torch.tensor([[[0.25, 0.25, 0.5]]]).log()
    top = top_tokens(p, 1)
    assert top.log_tail.exp().item() == pytest.approx(0.5)
    value = kl_from_top(top, q, torch.ones(1, 1, dtype=torch.bool))
    assert value.item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), abs=1e-6)


@pytest.mark.parametrize("k", [1, 8, VOCABULARY])
def test_full_token_kl_and_its_gradient_vanish_at_the_reference(k: int) -> None:
    model = llama().double()
    batch = collate([p for p, _ in SEQUENCES], [c for _, c in SEQUENCES])
    with torch.no_grad():
        top = top_tokens(completion_logits(model, batch), k)
    logits = completion_logits(model, batch)
    kl = kl_from_top(top, logits, batch.completion_mask)
    assert kl.abs().max() < 1e-12
    kl.sum().backward()
    gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert gradients.abs().max() < 1e-12
    # The sampled form has a gradient there: only its mean over samples is zero.
    model.zero_grad()
    completion_logps(model, batch).sum().backward()
    assert torch.cat([p.grad.flatten() for p in model.parameters()]).abs().max() > 1e-2


def test_full_token_kl_gradient_by_finite_differences() -> None:
    p, q, mask = two_distributions()
    top = top_tokens(p, 6)
    assert torch.autograd.gradcheck(lambda logits: kl_from_top(top, logits, mask), q.requires_grad_())


def test_a_tiny_tail_keeps_its_gradient() -> None:
    """The policy has almost abandoned the reference's tail (mass e^-40, lost in 1 - sum): the pull back must not vanish."""
    uniform = TopTokens(
        torch.zeros(1, 1, 1, dtype=torch.long), torch.full((1, 1, 1), 0.25).log(), torch.full((1, 1), 0.75).log()
    )
    policy = torch.tensor([[[40.0, 0.0, 0.0, 0.0]]], requires_grad=True)
    kl = kl_from_top(uniform, policy, torch.ones(1, 1, dtype=torch.bool))
    assert kl.item() == pytest.approx(
        0.25 * math.log(0.25) + 0.75 * math.log(0.75) + 0.75 * (40 - math.log(3)), rel=1e-5
    )
    kl.sum().backward()
    assert policy.grad[0, 0, 0].item() == pytest.approx(0.75, abs=1e-5)  # d/dlogit_0 = q_0 - p_0


def test_padded_distributions_count_nothing() -> None:
    """Ragged reference distributions are padded with log-probability -inf; such rows give neither value nor NaN gradients."""
    logits = torch.randn(1, 2, 5, requires_grad=True)
    top = top_tokens(torch.randn(1, 2, 5), 3)
    padded = TopTokens(
        torch.cat([top.ids[:, :1], torch.zeros(1, 1, 3, dtype=torch.long)], 1),
        torch.cat([top.logps[:, :1], torch.full((1, 1, 3), -torch.inf)], 1),
        torch.cat([top.log_tail[:, :1], torch.full((1, 1), -torch.inf)], 1),
    )
    mask = torch.tensor([[True, False]])
    value = kl_from_top(padded, logits, mask)
    torch.testing.assert_close(value, kl_from_top(top, logits, mask))
    value.sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[0, 1] == 0).all()


def test_half_precision_logits_are_summed_in_float32() -> None:
    model = llama().bfloat16()
    batch = collate([[1, 2]], [list(range(3, 33))])
    with torch.no_grad():
        logits = completion_logits(model, batch)
        logps = token_logps(logits, batch)
    assert logits.dtype == torch.bfloat16
    assert logps.dtype == torch.float32
    expected = [
        math.log(row.exp()[t] / row.exp().sum()) for row, t in zip(logits[0].double(), range(3, 33), strict=True)
    ]
    assert logps[0].tolist() == pytest.approx(expected, abs=1e-5)

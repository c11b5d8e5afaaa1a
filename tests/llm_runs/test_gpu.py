"""What differs on a GPU: FlexAttention, bfloat16 under autocast, compiled layers. Run where torch sees one."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import objectives
from llm_runs.attention import IN_ROWS
from llm_runs.config import ReferenceConfig, TrainingConfig
from llm_runs.examples import TokenPair, TokenSample
from llm_runs.models import tiny_random
from llm_runs.reference import ReferenceLogps, compute
from llm_runs.scoring import Scorer
from llm_runs.training import train
from llm_runs.verify import TOLERANCE
from toy_bandits import Bandit, solve

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
V = 96


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).cuda()


def pairs(count: int) -> list[TokenPair]:
    generator = torch.Generator().manual_seed(1)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        length = int(torch.randint(low, high, (1,), generator=generator))
        return tuple(torch.randint(3, V, (length,), generator=generator).tolist())

    return [TokenPair(tokens(60, 200), tokens(20, 180), tokens(20, 180)) for _ in range(count)]


PAIRS = pairs(8)
SEQUENCES = [(pair.prompt_ids, ids) for pair in PAIRS for ids in (pair.chosen_ids, pair.rejected_ids)]


def scores(share: bool, precision: str) -> tuple[torch.Tensor, torch.Tensor, str]:
    policy = model()
    scorer = Scorer(policy, SEQUENCES, share)
    rows = scorer.pack(SEQUENCES).to("cuda")
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bfloat16"):
        logps = rows.by_sequence(scorer.score(policy, rows).logps).sum(-1)
    (logps * torch.linspace(-1, 1, len(logps), device="cuda")).sum().backward()
    gradients = torch.cat([parameter.grad.flatten() for parameter in policy.parameters()])
    return logps.detach(), gradients, scorer.attention


def test_shared_prompts_in_float32_are_the_unshared_ones() -> None:
    own, own_gradients, _ = scores(False, "float32")
    shared, gradients, attention = scores(True, "float32")
    assert attention == IN_ROWS
    assert (shared - own).abs().max() / own.abs().max() < 1e-5
    assert (gradients - own_gradients).norm() / own_gradients.norm() < 1e-4


def test_shared_prompts_in_bfloat16_differ_by_its_rounding() -> None:
    exact, exact_gradients, _ = scores(False, "float32")
    own, own_gradients, _ = scores(False, "bfloat16")
    shared, gradients, attention = scores(True, "bfloat16")
    assert attention == IN_ROWS
    rounding = (own - exact).abs().max()
    assert (shared - exact).abs().max() < 3 * rounding + 0.1
    rounding = (own_gradients - exact_gradients).norm()
    assert (gradients - exact_gradients).norm() < 2 * rounding


def trained(tmp_path: Path, **settings: object) -> tuple[list[float], LlamaForCausalLM]:
    policy = model()
    stored: ReferenceLogps = compute(policy, tiny_random(["a"], vocabulary=80)[1], PAIRS, [], ReferenceConfig())
    config = TrainingConfig(steps=3, batch_size=8, learning_rate=1e-4, warmup_steps=0, **settings)  # type: ignore[arg-type]
    objective = objectives.parse("dpo(beta=0.1)")
    metrics = train(policy, objective, PAIRS, reference=stored, config=config, seed=0, out=tmp_path)
    return metrics.query("name == 'loss'")["value"].tolist(), policy


@pytest.mark.parametrize(
    "settings",
    [
        {"kernels": "compile"},
        {"share_prompt": False},
        {"gradient_checkpointing": True},
        {"kernels": "compile", "gradient_checkpointing": True},
        {"micro_batch_size": 4},
        {"reference": "live"},
    ],
    ids=str,
)
def test_training_is_the_same_whatever_makes_it_faster(settings: dict[str, object], tmp_path: Path) -> None:
    expected, _ = trained(tmp_path / "plain")
    found, policy = trained(tmp_path / "other", **settings)
    assert expected[-1] < expected[0] - 0.01
    assert found == pytest.approx(expected, abs=0.01)
    assert policy.config._attn_implementation == "sdpa"  # for everything but training, it is as it was
    prompt = torch.tensor([PAIRS[0].prompt_ids], device="cuda")
    assert policy.generate(prompt, max_new_tokens=4, do_sample=False).shape[1] <= prompt.shape[1] + 4


def test_the_same_training_again_is_within_the_bound_of_verification(tmp_path: Path) -> None:
    """Only sums in another order may differ between two trainings of one seed: `analysis verify` relies on it."""
    first, second = (trained(tmp_path / name)[0] for name in ("first", "second"))
    print("largest difference of a loss:", max(abs(a - b) for a, b in zip(first, second, strict=True)))
    assert second == pytest.approx(first, rel=TOLERANCE, abs=TOLERANCE)


def test_full_token_kl_is_zero_at_the_start_and_trains(tmp_path: Path) -> None:
    policy = model()
    samples = [TokenSample(pair.prompt_ids, pair.chosen_ids) for pair in PAIRS]
    stored = compute(policy, tiny_random(["a"], vocabulary=80)[1], PAIRS, samples, ReferenceConfig(top_k=16))
    metrics = train(
        policy,
        objectives.parse("maxpo(beta=0.1, temperature=20, tokens='full')"),
        PAIRS,
        reference=stored,
        reference_samples=samples,
        config=TrainingConfig(steps=2, batch_size=8, reference_batch_size=4, learning_rate=1e-4, warmup_steps=0),
        seed=0,
        out=tmp_path,
    )
    kl = metrics.query("name == 'kl_per_token/reference_samples'")["value"].tolist()
    assert abs(kl[0]) < 1e-2
    assert kl[1] >= 0


@pytest.mark.parametrize("label", ["dpo", "ipo", "maxpo", "dpo+forward_kl", "chipo", "slic_hf", "orpo"])
def test_the_exact_solver_gives_the_same_on_a_gpu(label: str) -> None:
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(20, 5, generator=generator, dtype=torch.float64)
    preferences = (rewards[:, :, None] - rewards[:, None]).sigmoid()
    reference = torch.rand(20, 5, generator=generator, dtype=torch.float64).softmax(-1)
    here = solve(Bandit(reference, preferences), objectives.parse(label))
    there = solve(Bandit(reference.cuda(), preferences.cuda()), objectives.parse(label))
    assert there.policy.device.type == "cuda"
    assert list(here.status) == list(there.status)
    assert torch.allclose(here.policy, there.policy.cpu(), atol=1e-9)


def test_a_copied_model_scores_as_the_first_one_does() -> None:
    policy = model()
    scorer = Scorer(policy, SEQUENCES, True)
    rows = scorer.pack(SEQUENCES).to("cuda")
    with torch.no_grad():
        first = scorer.score(policy, rows).logps
        second = scorer.score(copy.deepcopy(policy), rows).logps
    assert torch.allclose(first, second, atol=1e-5)

"""Everything an objective may need besides pairs, against losses written out by hand: token by token, one unpadded sequence at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_training import (
    CONFIG,
    GENERATOR,
    PAIRS,
    VOCABULARY,
    assert_same_weights,
    llama,
    plain_logp,
    plain_rows,
    tokens,
)
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import objectives
from llm_runs import reference
from llm_runs.config import ReferenceConfig
from llm_runs.errors import InputError
from llm_runs.examples import TokenSample
from llm_runs.mismatched import Mismatched
from llm_runs.models import tiny_random
from llm_runs.packing import TokenSequence
from llm_runs.reference import ReferenceLogps
from llm_runs.training import TrainingError, train

Loss = Callable[[PreTrainedModel, PreTrainedModel], Tensor]

GROUPS = [
    [
        TokenSample(prompt, tokens(GENERATOR, 1, 6), reward=float(reward))
        for reward in torch.randn(3, generator=GENERATOR)
    ]
    for prompt in (tokens(GENERATOR, 1, 5) for _ in range(8))
]
UNPAIRED = [
    TokenSample(tokens(GENERATOR, 1, 5), tokens(GENERATOR, 1, 6), reward=float(good))
    for good in (1, 1, 0, 1, 1, 0, 1, 1)
]
PAIR_SIDES = [(p.prompt_ids, c) for p in PAIRS for c in (p.chosen_ids, p.rejected_ids)]
SINGLE = [(s.prompt_ids, s.completion_ids) for s in UNPAIRED]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return tiny_random(["a"], vocabulary=300)[1]


def mismatched(sequences: Iterable[TokenSequence], context: int | None = None) -> dict[TokenSequence, TokenSequence]:
    given = [TokenSample(*sequence) for sequence in sequences]
    found = Mismatched(given, context)
    return {(s.prompt_ids, s.completion_ids): found.of(s.prompt_ids, s.completion_ids) for s in given}


@pytest.fixture(scope="module")
def stored(tokenizer: PreTrainedTokenizerBase) -> ReferenceLogps:
    """The reference's distributions over the whole vocabulary, of all that these tests train on."""
    others = [*mismatched(PAIR_SIDES).values(), *mismatched(SINGLE).values(), *PAIR_SIDES, *SINGLE]
    samples = [*(s for group in GROUPS for s in group), *(TokenSample(*sequence) for sequence in others)]
    return reference.compute(llama(), tokenizer, [], samples, ReferenceConfig(top_k=VOCABULARY))


# Losses by hand.


def ratios(policy: PreTrainedModel, base: PreTrainedModel, prompt: Sequence[int], completion: Sequence[int]) -> Tensor:
    """log pi(y_t) - log pi_ref(y_t) of every token."""
    own, other = plain_rows(policy, prompt, completion), plain_rows(base, prompt, completion).detach()
    return torch.stack([own[t, token] - other[t, token] for t, token in enumerate(completion)])


def logistic(x: Tensor) -> Tensor:
    return torch.log1p(torch.exp(-x))


def ld_dpo(policy: PreTrainedModel, base: PreTrainedModel) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for p in PAIRS:
        short = min(len(p.chosen_ids), len(p.rejected_ids))
        sides = [ratios(policy, base, p.prompt_ids, c) for c in (p.chosen_ids, p.rejected_ids)]
        chosen, rejected = (side[:short].sum() + 0.25 * side[short:].sum() for side in sides)
        total = total + logistic(0.3 * (chosen - rejected)) / len(PAIRS)
    return total


def sampo(policy: PreTrainedModel, base: PreTrainedModel) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for p in PAIRS:
        short = min(len(p.chosen_ids), len(p.rejected_ids))
        chosen, rejected = (
            short * ratios(policy, base, p.prompt_ids, c).mean() for c in (p.chosen_ids, p.rejected_ids)
        )
        total = total + logistic(0.3 * (chosen - rejected)) / len(PAIRS)
    return total


def token_kl(
    policy: PreTrainedModel, base: PreTrainedModel, prompt: Sequence[int], completion: Sequence[int]
) -> Tensor:
    p, q = plain_rows(base, prompt, completion).detach(), plain_rows(policy, prompt, completion)
    return sum(((row.exp() * (row - other)).sum() for row, other in zip(p, q, strict=True)), torch.zeros(()))


def tdpo(policy: PreTrainedModel, base: PreTrainedModel) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for p in PAIRS:
        chosen, rejected = (ratios(policy, base, p.prompt_ids, c).sum() for c in (p.chosen_ids, p.rejected_ids))
        drift = token_kl(policy, base, p.prompt_ids, p.rejected_ids)
        drift = drift - token_kl(policy, base, p.prompt_ids, p.chosen_ids).detach()
        total = total + logistic(0.3 * (chosen - rejected - 0.5 * drift)) / len(PAIRS)
    return total


def kto_of(examples: Sequence[tuple[tuple[int, ...], tuple[int, ...], bool]]) -> Loss:
    """1 - sigmoid(beta (gain - z0)) of the desirable, of the undesirable 1 - sigmoid(beta (z0 - gain)); the sum of all over 8."""
    partners = mismatched([(prompt, completion) for prompt, completion, _ in examples])

    def loss(policy: PreTrainedModel, base: PreTrainedModel) -> Tensor:
        with torch.no_grad():
            crossed = [ratios(policy, base, *partners[prompt, y]).sum() for prompt, y, _ in examples]
        point = max(0.0, float(sum(crossed)) / len(crossed))
        gains = [ratios(policy, base, prompt, y).sum() for prompt, y, _ in examples]
        signs = [1 if good else -1 for *_, good in examples]
        return (
            sum(
                (1 / (1 + torch.exp(0.5 * s * (g - point))) for g, s in zip(gains, signs, strict=True)), torch.zeros(())
            )
            / 8
        )

    return loss


KTO_OF_PAIRS = kto_of([(p.prompt_ids, y, y is p.chosen_ids) for p in PAIRS for y in (p.chosen_ids, p.rejected_ids)])
KTO_OF_SINGLES = kto_of([(s.prompt_ids, s.completion_ids, s.reward == 1) for s in UNPAIRED])


def bco_of_singles(policy: PreTrainedModel, base: PreTrainedModel) -> Tensor:
    rewards = [0.3 * ratios(policy, base, s.prompt_ids, s.completion_ids).sum() for s in UNPAIRED]
    point = torch.stack(rewards).mean().item()
    return torch.stack(
        [logistic((r - point) * (1 if s.reward else -1)) for r, s in zip(rewards, UNPAIRED, strict=True)]
    ).mean()


def exo_rw(policy: PreTrainedModel, base: PreTrainedModel) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for group in GROUPS:
        scores = torch.stack([0.3 * ratios(policy, base, s.prompt_ids, s.completion_ids).sum() for s in group])
        rewards = torch.tensor([s.reward / 0.7 for s in group], dtype=torch.float64)
        q, p = scores.exp() / scores.exp().sum(), rewards.exp() / rewards.exp().sum()
        total = total + (q * (q / p).log()).sum() / len(GROUPS)
    return total


def infonca(policy: PreTrainedModel, base: PreTrainedModel) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for group in GROUPS:
        scores = torch.stack([0.3 * ratios(policy, base, s.prompt_ids, s.completion_ids).sum() for s in group])
        rewards = torch.tensor([s.reward / 0.7 for s in group], dtype=torch.float64)
        total = total - ((rewards.exp() / rewards.exp().sum()) * (scores.exp() / scores.exp().sum()).log()).sum() / 8
    return total


def assert_trained_as_by_hand(trained: PreTrainedModel, losses: Sequence[float], by_hand: Loss, steps: int = 2) -> None:
    """Losses step by step, and weights after them: so the gradients, too."""
    policy, base = llama(), llama()
    decayed = [p for name, p in policy.named_parameters() if "norm" not in name]
    others = [p for name, p in policy.named_parameters() if "norm" in name]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=1e-2
    )
    expected = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = by_hand(policy, base)
        loss.backward()
        expected.append(loss.item())
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
        optimiser.step()
    assert losses == pytest.approx(expected, abs=1e-6)
    assert abs(expected[1] - expected[0]) > 1e-3
    assert_same_weights(trained, policy, atol=5e-6)  # rewards are float32


@pytest.mark.parametrize(
    ("label", "by_hand", "given"),
    [
        ("ld_dpo(beta=0.3, alpha=0.25)", ld_dpo, {}),
        ("sampo(beta=0.3, selection='expected')", sampo, {}),
        ("tdpo(beta=0.3, alpha=0.5)", tdpo, {}),
        ("kto(beta=0.5)", KTO_OF_PAIRS, {}),
        ("kto(beta=0.5)", KTO_OF_SINGLES, {"unpaired": UNPAIRED}),
        ("bco(beta=0.3)", bco_of_singles, {"unpaired": UNPAIRED}),
        ("exo_rw(beta_policy=0.3, beta_reward=0.7)", exo_rw, {"candidates": GROUPS}),
        ("infonca(beta=0.3, alpha=0.7)", infonca, {"candidates": GROUPS}),
    ],
    ids=["ld_dpo", "sampo", "tdpo", "kto", "kto-unpaired", "bco-unpaired", "exo_rw", "infonca-candidates"],
)
def test_two_steps_end_where_a_loop_by_hand_ends(
    label: str, by_hand: Loss, given: dict[str, object], stored: ReferenceLogps, tmp_path: Path
) -> None:
    model = llama()
    config = replace(CONFIG, steps=2)
    metrics = train(
        model, objectives.parse(label), PAIRS, reference=stored, config=config, seed=0, out=tmp_path, **given
    )
    assert_trained_as_by_hand(model, metrics[metrics.name == "loss"].value.tolist(), by_hand)


@pytest.mark.parametrize("label", ["kto", "ld_dpo", "exo_rw"])
def test_a_live_reference_gives_the_stored_one_s_steps(label: str, stored: ReferenceLogps, tmp_path: Path) -> None:
    one, two = llama(), llama()
    for model, kind in ((one, "precomputed"), (two, "live")):
        config = replace(CONFIG, steps=2, reference=kind)
        given = stored if kind == "precomputed" else None
        train(
            model,
            objectives.parse(label),
            PAIRS,
            reference=given,
            candidates=GROUPS,
            config=config,
            seed=0,
            out=tmp_path,
        )
    assert_same_weights(one, two, atol=1e-9)


def test_candidates_split_over_forward_passes_are_the_same_step(stored: ReferenceLogps, tmp_path: Path) -> None:
    one, two = llama(), llama()
    for model, micro in ((one, 8), (two, 2)):
        config = replace(CONFIG, steps=2, micro_batch_size=micro)
        objective = objectives.parse("exo_rw + tdpo")
        train(model, objective, PAIRS, reference=stored, candidates=GROUPS, config=config, seed=0, out=tmp_path)
    assert_same_weights(one, two, atol=1e-7)


def test_sampo_s_own_draw_trains(stored: ReferenceLogps, tmp_path: Path) -> None:
    """At the reference the loss is log 2 whatever is drawn; afterwards equal draws from equal seeds."""
    runs = []
    for number in range(2):
        torch.manual_seed(5)
        metrics = train(
            llama(), objectives.get("sampo"), PAIRS, reference=stored, config=CONFIG, seed=0, out=tmp_path / str(number)
        )
        runs.append(metrics[metrics.name == "loss"].value.tolist())
    assert runs[0][0] == pytest.approx(0.693147, abs=1e-5)
    assert runs[0] == runs[1]
    assert runs[0][2] < runs[0][0]


def other() -> PreTrainedModel:
    """A second reference, some way from the first."""
    model = llama()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.8)
    return model


def mrpo(policy: PreTrainedModel, base: PreTrainedModel) -> Tensor:
    """pi_ref = 1 / (0.3/pi_1 + 0.7/pi_2), the harmonic mean, in probabilities."""
    second = other()

    def log_ratio(prompt: Sequence[int], completion: Sequence[int]) -> Tensor:
        logps = [plain_logp(model, prompt, completion) for model in (policy, base, second)]
        harmonic = 1 / (0.3 / logps[1].detach().exp() + 0.7 / logps[2].detach().exp())
        return logps[0] - harmonic.log()

    margins = [log_ratio(p.prompt_ids, p.chosen_ids) - log_ratio(p.prompt_ids, p.rejected_ids) for p in PAIRS]
    return sum((logistic(0.3 * margin) for margin in margins), torch.zeros(())) / len(PAIRS)


def test_several_references(stored: ReferenceLogps, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    model = llama()
    second = reference.compute(other(), tokenizer, PAIRS, [], ReferenceConfig())
    objective = objectives.parse("mrpo(beta=0.3, weights=(0.3, 0.7), clip=None)")
    config = replace(CONFIG, steps=2)
    metrics = train(model, objective, PAIRS, reference=stored, references=[second], config=config, seed=0, out=tmp_path)
    assert_trained_as_by_hand(model, metrics[metrics.name == "loss"].value.tolist(), mrpo)


def test_joined_log_probs_are_those_of_one_computation(
    stored: ReferenceLogps, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Of pairs without distributions and of samples with them; whatever comes later counts."""
    config = ReferenceConfig(top_k=VOCABULARY)
    sums = reference.compute(llama(), tokenizer, PAIRS, GROUPS[0], config)
    singles = reference.compute(llama(), tokenizer, [], [], config, completions=UNPAIRED)
    sides = [sample for pair in PAIRS for sample in pair.samples]
    joined = sums.joined(singles).joined(reference.compute(llama(), tokenizer, [], sides, config))
    for sample in (*sides, *UNPAIRED, *GROUPS[0]):
        sequence = sample.prompt_ids, sample.completion_ids
        torch.testing.assert_close(joined.logps_of_tokens(*sequence), stored.logps_of_tokens(*sequence))
        if sample not in UNPAIRED:
            for name in ("ids", "logps", "log_tail"):
                found, expected = (getattr(cache.distributions(sample), name) for cache in (joined, stored))
                torch.testing.assert_close(found, expected)
    with pytest.raises(
        reference.ReferenceCacheError, match="further log-probabilities: computed with another reference"
    ):
        sums.joined(reference.compute(other(), tokenizer, PAIRS, [], config))


# Mismatched prompts and completions.


def test_mismatching_crosses_prompts_and_depends_on_the_data_alone() -> None:
    found = mismatched(PAIR_SIDES)
    prompt_of = {completion: prompt for prompt, completion in PAIR_SIDES}
    assert set(found) == set(PAIR_SIDES)
    for (prompt, _), (kept, other) in found.items():
        assert kept == prompt
        assert prompt_of[other] != prompt
    assert mismatched(reversed(PAIR_SIDES)) == found
    assert len({other for _, other in found.values()}) > 0.7 * len(found)  # all are used about equally


def test_mismatched_completions_are_cut_to_the_context() -> None:
    found = mismatched(PAIR_SIDES, context=7)
    assert any(len(found[key][1]) < len(value[1]) for key, value in mismatched(PAIR_SIDES).items())
    assert all(len(prompt) + len(completion) <= 7 for prompt, completion in found.values() if len(prompt) < 7)


# Refusals.


@pytest.mark.parametrize(
    ("label", "given", "message"),
    [
        ("exo_rw", {}, "needs candidates .scored completions of each prompt.*but none are given"),
        (
            "exo_rw",
            {"candidates": [GROUPS[0], GROUPS[1][:2]]},
            "2 to 3 candidates each; every prompt must have equally many",
        ),
        (
            "exo_rw",
            {"candidates": [[replace(s, reward=None) for s in GROUPS[0]]]},
            "candidates 0: a completion has no reward",
        ),
        ("kto", {"unpaired": [replace(s, prompt_ids=(1, 2)) for s in UNPAIRED]}, "there is only one prompt"),
    ],
)
def test_what_is_missing_or_unusable_is_said(
    label: str, given: dict[str, object], message: str, stored: ReferenceLogps, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        train(llama(), objectives.parse(label), PAIRS, reference=stored, config=CONFIG, seed=0, out=tmp_path, **given)


def test_tdpo_refuses_pairs_without_distributions(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    sums = reference.compute(llama(), tokenizer, PAIRS, [], ReferenceConfig())
    with pytest.raises(reference.ReferenceCacheError, match="has no stored token distributions"):
        train(llama(), objectives.get("tdpo"), PAIRS, reference=sums, config=CONFIG, seed=0, out=tmp_path)


def test_every_name_of_the_registry_trains_but_one(stored: ReferenceLogps, tmp_path: Path) -> None:
    config = replace(CONFIG, steps=1, kl_limit=None)
    given = {"candidates": GROUPS, "unpaired": UNPAIRED, "references": [stored], "pretraining": [(1, 2, 3)] * 8}
    samples = [replace(sample, logp=-3.0) for group in GROUPS for sample in group][:8]
    for name in objectives.names():
        model, objective = llama(), objectives.get(name)
        if objective.needs_temperature:
            objective = objective.with_temperature(2.0)
        arguments = {"reference": stored, "reference_samples": samples, "config": config, "seed": 0, "out": tmp_path}
        if name == "reverse_kl":
            with pytest.raises(TrainingError, match="needs policy_kl, rollouts, which training does not supply"):
                train(model, objective, PAIRS, **arguments, **given)
            continue
        train(model, objective, PAIRS, **arguments, **given)
        assert all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters()), name

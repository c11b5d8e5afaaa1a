"""Evaluations against sums written out over single sequences, and the two KLs against an exact enumeration of completions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from llm_runs import reference
from llm_runs.config import EvaluationConfig, ReferenceConfig
from llm_runs.evaluation import Evaluator
from llm_runs.examples import TokenPair, TokenSample
from llm_runs.models import tiny_random
from llm_runs.reference import ReferenceLogps
from llm_runs.sampling import sample

VOCABULARY = 300
PAIRS = [
    TokenPair((5, 6), (7, 8, 9), (10,)),
    TokenPair((20,), (21, 22), (23, 24, 25, 26)),
    TokenPair((9,), (9, 9), (8,)),
]
SAMPLES = [
    TokenSample((5, 6), (30, 31)),
    TokenSample((40, 41, 42), (43, 44, 45, 46, 47)),
    TokenSample((5, 6), (7, 8, 9)),
]
TEXTS = [(50, 51, 52), (60, 61), (70, 71, 72, 73, 74)]
PROMPTS = [(5, 6), (20,), (40, 41, 42), (9,), (100, 101)]


def model(seed: int, vocabulary: int = VOCABULARY) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.4,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).double().eval()


class Length:
    """A reward that a test can predict: the characters of prompt and completion."""

    def score(self, prompts: Sequence[str], completions: Sequence[str]) -> NDArray[np.float64]:
        return np.array([100.0 * len(p) + len(c) for p, c in zip(prompts, completions, strict=True)])


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return tiny_random(["a"], vocabulary=VOCABULARY)[1]


@pytest.fixture(scope="module")
def stored(tokenizer: PreTrainedTokenizerBase) -> ReferenceLogps:
    return reference.compute(model(0), tokenizer, PAIRS, [], ReferenceConfig())


def evaluator(tokenizer: PreTrainedTokenizerBase, stored: ReferenceLogps, **changes: object) -> Evaluator:
    arguments = {
        "prompts": PROMPTS,
        "reference_samples": SAMPLES,
        "pairs": PAIRS[:2],
        "training_pairs": PAIRS[1:],
        "other_texts": TEXTS,
        "max_tokens": 6,
        "config": EvaluationConfig(batch_size=2),
        "seed": 3,
        "reward": Length(),
        "load_reference": lambda: model(0),
    } | changes
    return Evaluator(tokenizer, arguments.pop("load_reference"), stored, arguments.pop("reward"), **arguments)


def rows_of(policy: PreTrainedModel, prompt: Sequence[int], completion: Sequence[int]) -> torch.Tensor:
    with torch.no_grad():
        logits = policy(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
    return logits - logits.exp().sum(-1, keepdim=True).log()


def logp(policy: PreTrainedModel, prompt: Sequence[int], completion: Sequence[int]) -> float:
    return sum(row[token].item() for row, token in zip(rows_of(policy, prompt, completion), completion, strict=True))


def values(frame: pd.DataFrame, split: str, metric: str) -> list[float]:
    found = frame[(frame["split"] == split) & (frame["metric"] == metric)].sort_values("item")
    assert found["item"].tolist() == list(range(len(found)))
    return found["value"].tolist()


def test_every_number_is_that_of_single_sequences(tokenizer: PreTrainedTokenizerBase, stored: ReferenceLogps) -> None:
    policy, base = model(1), model(0)
    tested = evaluator(tokenizer, stored)
    frame = tested.evaluate(policy, 12)
    assert set(frame["step"]) == {12}
    assert not frame.duplicated(["split", "metric", "item"]).any()

    drawn = tested.samples
    assert [s.prompt_ids for s in drawn] == PROMPTS
    assert len({s.completion_ids for s in drawn}) > 3
    rewards = [100.0 * len(tokenizer.decode(s.prompt_ids)) + len(s.completion) for s in drawn]
    assert values(frame, "held_out_prompts", "reward") == rewards == [s.reward for s in drawn]
    assert values(frame, "held_out_prompts", "length") == [len(s.completion_ids) for s in drawn]
    # Of PROMPTS, the reference has samples of (5, 6), two of them, and of (40, 41, 42).
    wins = frame[frame["metric"] == "win_rate"].set_index("item")["value"]
    lengths = [len(drawn[0].completion), len(drawn[2].completion)]
    tied = {"": 0.5}  # SAMPLES have no texts: every one of the policy's is longer, or as empty
    assert wins.to_dict() == {0: tied.get(drawn[0].completion, 1.0), 2: tied.get(drawn[2].completion, 1.0)}
    assert max(lengths) > 0
    for split, samples, first, second in (
        ("held_out_prompts", drawn, policy, base),
        ("held_out_reference_samples", SAMPLES, base, policy),
    ):
        names = ("kl_policy_reference", "k1") if split == "held_out_prompts" else ("kl_reference_policy", "log_ratio")
        found = (values(frame, split, name) for name in (*names, "k3", "k3_tokens"))
        for kl, ratio, k3, k3_tokens, s in zip(*found, samples, strict=True):
            p, q = (rows_of(each, s.prompt_ids, s.completion_ids) for each in (first, second))
            assert kl == pytest.approx((p.exp() * (p - q)).sum().item(), rel=1e-9)
            expected = logp(policy, s.prompt_ids, s.completion_ids) - logp(base, s.prompt_ids, s.completion_ids)
            assert ratio == pytest.approx(expected, abs=1e-9)
            token_ratios = [(q - p)[t, token].item() for t, token in enumerate(s.completion_ids)]  # log other / sampler
            total = sum(token_ratios)
            assert k3 == pytest.approx(math.exp(total) - 1 - total, rel=1e-7, abs=1e-9)
            assert k3_tokens == pytest.approx(sum(math.exp(t) - 1 - t for t in token_ratios), rel=1e-7, abs=1e-9)

    for split, pairs in (("held_out_pairs", PAIRS[:2]), ("training_pairs", PAIRS[1:])):
        margins = []
        for item, pair in enumerate(pairs):
            ratios = [
                logp(policy, pair.prompt_ids, ids) - logp(base, pair.prompt_ids, ids)
                for ids in (pair.chosen_ids, pair.rejected_ids)
            ]
            assert values(frame, split, "chosen_log_ratio")[item] == pytest.approx(ratios[0], abs=1e-9)
            assert values(frame, split, "rejected_log_ratio")[item] == pytest.approx(ratios[1], abs=1e-9)
            margins.append(ratios[0] - ratios[1])
        assert values(frame, split, "margin") == pytest.approx(margins, abs=1e-9)
        assert values(frame, split, "preference_accuracy") == [float(margin > 0) for margin in margins]
    assert values(frame, "other_text", "nll") == pytest.approx(
        [-logp(policy, text[:1], text[1:]) for text in TEXTS], abs=1e-9
    )
    assert values(frame, "other_text", "tokens") == [2, 1, 4]


def test_at_step_0_all_differences_are_zero_and_preferences_tie(
    tokenizer: PreTrainedTokenizerBase, stored: ReferenceLogps
) -> None:
    frame = evaluator(tokenizer, stored).evaluate(model(0), 0)
    zero = (
        "kl_policy_reference",
        "kl_reference_policy",
        "k1",
        "log_ratio",
        "k3",
        "k3_tokens",
        "margin",
        "chosen_log_ratio",
        "rejected_log_ratio",
    )
    assert frame[frame["metric"].isin(zero)]["value"].abs().max() < 1e-9
    assert set(frame[frame["metric"] == "preference_accuracy"]["value"]) == {0.5}


def test_both_kls_agree_with_enumeration_of_all_completions() -> None:
    """Over all 3-token completions of a prompt (vocabulary 6, no end): sum_y pi(y) sum_t KL_t = sum_y pi(y) log(pi(y) / pi_ref(y))."""
    from llm_runs.logprobs import collate, completion_logits, completion_logps, exact_kl

    policy, base = model(1, 6), model(0, 6)
    completions = list(itertools.product(range(6), repeat=3))
    batch = collate([(4, 1)] * len(completions), completions)
    with torch.no_grad():
        p, q = completion_logps(policy, batch), completion_logps(base, batch)
        per_sample = exact_kl(completion_logits(policy, batch), completion_logits(base, batch), batch.completion_mask)
        assert p.exp().sum().item() == pytest.approx(1)
        exact = (p.exp() * (p - q)).sum().item()
    assert (p.exp() * per_sample).sum().item() == pytest.approx(exact, rel=1e-9)
    # Rao-Blackwellisation: the same mean as k1 = log pi - log pi_ref, with less variance.
    variance = [(p.exp() * (values - exact) ** 2).sum().item() for values in (per_sample, p - q)]
    assert variance[0] < 0.5 * variance[1]


def test_every_policy_gets_the_same_random_numbers(tokenizer: PreTrainedTokenizerBase, stored: ReferenceLogps) -> None:
    first, second = evaluator(tokenizer, stored), evaluator(tokenizer, stored)
    pd.testing.assert_frame_equal(first.evaluate(model(1), 5), second.evaluate(model(1), 5))
    other = evaluator(tokenizer, stored, seed=4)
    other.evaluate(model(1), 5)
    assert [s.completion_ids for s in other.samples] != [s.completion_ids for s in first.samples]
    alone = sample(model(1), tokenizer, PROMPTS, max_tokens=6, seed=3)
    assert [s.completion_ids for s in alone] == [s.completion_ids for s in first.samples]


def test_the_reference_is_loaded_once_per_evaluation_and_not_kept(
    tokenizer: PreTrainedTokenizerBase, stored: ReferenceLogps
) -> None:
    import gc
    import weakref

    loaded: list[weakref.ref[PreTrainedModel]] = []

    def load() -> PreTrainedModel:
        made = model(0)
        loaded.append(weakref.ref(made))
        return made

    tested = evaluator(tokenizer, stored, load_reference=load)
    tested.evaluate(model(1), 0)
    gc.collect()
    assert len(loaded) == 1
    assert loaded[0]() is None
    pairs_only = evaluator(tokenizer, stored, load_reference=load, prompts=(), reference_samples=(), other_texts=())
    frame = pairs_only.evaluate(model(1), 0)
    assert set(frame["split"]) == {"held_out_pairs", "training_pairs"}
    assert len(loaded) == 1  # the pairs' reference log-probs are stored


def test_without_reward_there_are_no_reward_rows(tokenizer: PreTrainedTokenizerBase, stored: ReferenceLogps) -> None:
    tested = evaluator(tokenizer, stored, reward=None)
    frame = tested.evaluate(model(1), 0)
    assert "reward" not in set(frame["metric"])
    assert {s.reward for s in tested.samples} == {None}
    assert math.isfinite(frame["value"].sum())


def test_pairs_that_the_reference_never_scored_are_refused(
    tokenizer: PreTrainedTokenizerBase, stored: ReferenceLogps
) -> None:
    with pytest.raises(reference.ReferenceCacheError, match="other data"):
        evaluator(tokenizer, stored, pairs=[TokenPair((1,), (2,), (3,))])


def test_k1_k3_and_exact_have_the_kl_as_their_mean_over_all_completions(tokenizer: PreTrainedTokenizerBase) -> None:
    """All 2-token completions (vocabulary 4), each weighted by its probability under the sampler: no sampling error at all."""
    policy, base = model(1, 4), model(0, 4)
    completions = [TokenSample((3, 1), ids) for ids in itertools.product(range(4), repeat=2)]
    tested = Evaluator(
        tokenizer, lambda: base, None, None, max_tokens=2, config=EvaluationConfig(batch_size=16), seed=0
    )
    for sampler, other, policy_first in ((policy, base, True), (base, policy, False)):
        found = tested._compare(policy, base, completions, policy_first=policy_first)
        weights = np.exp([logp(sampler, (3, 1), s.completion_ids) for s in completions])
        assert weights.sum() == pytest.approx(1)
        ratios = [logp(sampler, (3, 1), s.completion_ids) - logp(other, (3, 1), s.completion_ids) for s in completions]
        kl = weights @ ratios
        assert kl > 0.05
        sign = 1 if policy_first else -1
        for estimate in (
            [sign * each.log_ratio for each in found],
            [each.kl for each in found],
            [each.k3 for each in found],
            [each.k3_tokens for each in found],
        ):
            assert weights @ np.array(estimate) == pytest.approx(kl, rel=1e-9)
        assert min(each.k3 for each in found) >= 0


def test_k3_overflows_where_k1_does_not() -> None:
    from llm_runs.evaluation import _k3

    assert _k3(torch.tensor([-800.0], dtype=torch.float64)).item() == math.inf
    assert _k3(torch.tensor([800.0, 1e-9], dtype=torch.float64)).tolist() == pytest.approx(
        [799.0, 5e-19], rel=1e-6, abs=1e-16
    )


class Fixed:
    """Scores by completion."""

    def __init__(self, scores: dict[str, float]) -> None:
        self.scores = scores

    def score(self, prompts: Sequence[str], completions: Sequence[str]) -> NDArray[np.float64]:
        return np.array([self.scores[each] for each in completions])


def test_win_rate_by_hand(tokenizer: PreTrainedTokenizerBase) -> None:
    """One sample against rivals that score 1, 2 and 3: 2 wins against 1, ties with 2, loses to 3; another prompt has no rival."""
    rivals = [TokenSample((5,), (6,), "p", text) for text in "abc"] + [TokenSample((8,), (6,), "q", "c")]
    scored = [
        TokenSample((5,), (7,), "p", "x", reward=2.0),
        TokenSample((9,), (7,), "r", "x", reward=2.0),
        TokenSample((8,), (7,), "q", "x", reward=3.5),
    ]
    tested = Evaluator(
        tokenizer,
        lambda: model(0),
        None,
        None,
        reference_samples=rivals,
        max_tokens=2,
        config=EvaluationConfig(),
        seed=0,
    )
    rows = tested._reward_rows(Fixed({"a": 1.0, "b": 2.0, "c": 3.0}), scored, "second_")
    assert [(metric, item, value) for _, metric, item, value in rows] == [
        ("second_reward", 0, 2.0),
        ("second_win_rate", 0, 0.5),
        ("second_reward", 1, 2.0),
        ("second_reward", 2, 3.5),
        ("second_win_rate", 2, 1.0),
    ]

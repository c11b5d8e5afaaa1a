"""What a policy does on held-out data: reward, wins, KL to the reference both ways, preferences, other text. One row per item.

Every policy sees the same prompts, sampled with the same seed, so that differences between policies can be taken per item.
Processes of a launch share the batches, and all of them have all results.
The reference model is needed for exact KLs only: it is loaded for the evaluation and freed after it, never held while training.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm_runs import processes
from llm_runs.config import EvaluationConfig
from llm_runs.examples import TokenPair, TokenSample
from llm_runs.logprobs import collate, completion_logits, completion_logps, exact_kl, token_logps
from llm_runs.models import autocast
from llm_runs.reference import ReferenceLogps
from llm_runs.rewards import Reward, score_samples
from llm_runs.sampling import sample

COLUMNS = ["step", "split", "metric", "item", "value"]
TIE = 1e-3  # nats: a margin below float32's rounding of two long sums is a tie, not a preference

T = TypeVar("T")
R = TypeVar("R")
_Sequence = tuple[tuple[int, ...], tuple[int, ...]]  # prompt ids, completion ids


class _Compared(NamedTuple):
    """One completion under both models, nats: three unbiased estimates of KL(sampler || other), and the ratio they start from."""

    log_ratio: float  # log policy - log reference
    kl: float  # sum over tokens of the exact KL of the next-token distributions
    k3: float  # e^-x - 1 + x of the whole completion, x = log sampler - log other
    k3_tokens: float  # sum over tokens of e^-x - 1 + x of the token


class Evaluator:
    """Evaluates policies on fixed held-out data.

    Args:
        tokenizer: of policy and reference.
        load_reference: gives the reference model, in evaluation mode and on the policy's device; called once per evaluation.
        reference_logps: the reference's log-probs of all `pairs` and `training_pairs`; None where there are none.
        reward: the ground truth that scores completions; None leaves reward and win rate out.
        prompts: held-out prompts, from which the policy samples.
        reference_samples: completions of the reference on held-out prompts.
        pairs: held-out labelled pairs.
        training_pairs: a fixed subset of the training pairs, for the overfitting gap.
        other_texts: token ids of texts of another domain, at least two tokens each.
        max_tokens: budget of a sampled completion.
        config: batch size.
        seed: of the sampling, the same for every policy. `reference_samples` need another one: the win rate is of independent samples.
        second_reward: a reward that nothing is optimised for.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        load_reference: Callable[[], PreTrainedModel],
        reference_logps: ReferenceLogps | None,
        reward: Reward | None,
        *,
        prompts: Sequence[tuple[int, ...]] = (),
        reference_samples: Sequence[TokenSample] = (),
        pairs: Sequence[TokenPair] = (),
        training_pairs: Sequence[TokenPair] = (),
        other_texts: Sequence[Sequence[int]] = (),
        max_tokens: int,
        config: EvaluationConfig,
        seed: int,
        second_reward: Reward | None = None,
    ) -> None:
        self.tokenizer, self.load_reference, self.reward = tokenizer, load_reference, reward
        self.second_reward = second_reward
        self.prompts, self.reference_samples = tuple(prompts), tuple(reference_samples)
        self.pairs, self.ref_logps = {}, {}
        if reference_logps is not None:
            self.pairs = {"held_out_pairs": tuple(pairs), "training_pairs": tuple(training_pairs)}
            self.ref_logps = {split: reference_logps.pair_logps(each) for split, each in self.pairs.items()}
        self.other_texts = tuple(tuple(text) for text in other_texts)
        self.max_tokens, self.config, self.seed = max_tokens, config, seed
        # The policy's completions of the last evaluation, with rewards where known.
        self.samples: list[TokenSample] = []
        self.seconds = 0.0  # that the last evaluation took

    @torch.no_grad()
    def evaluate(self, model: PreTrainedModel, step: int) -> pd.DataFrame:
        """All metrics of `model`: columns step, split, metric, item, value (log-probs and KLs in nats, summed over tokens).

        - held_out_prompts: reward, win_rate (against the reference's samples of the same prompt: win 1, tie 1/2, their mean where
          there are several; second_reward and second_win_rate by the other reward), kl_policy_reference (Rao-Blackwellised:
          sum_t KL(pi(.|prefix) || pi_ref(.|prefix)) along the policy's own sample), k1 (x = log pi - log pi_ref of the sample),
          k3 (e^-x - 1 + x), k3_tokens (the sum of every token's), length (tokens)
        - held_out_reference_samples: kl_reference_policy (sum_t KL(pi_ref(.|prefix) || pi(.|prefix))), log_ratio (log pi - log pi_ref),
          k3 and k3_tokens of KL(pi_ref || pi)
        - held_out_pairs, training_pairs: preference_accuracy (1 where the reference-adjusted margin is positive, 1/2 in a tie),
          margin, chosen_log_ratio, rejected_log_ratio
        - other_text: nll (of all tokens but the first), tokens (how many those are)
        """
        start = time.perf_counter()
        model.eval()
        drawn = sample(
            model,
            self.tokenizer,
            self.prompts,
            max_tokens=self.max_tokens,
            seed=self.seed,
            description="sampling from the policy",
        )
        rows: list[tuple[str, str, int, float]] = []
        if self.second_reward is not None:
            rows += self._reward_rows(self.second_reward, score_samples(self.second_reward, drawn), "second_")
        if self.reward is not None:
            drawn = score_samples(self.reward, drawn)
            rows += self._reward_rows(self.reward, drawn)

        own, other = self._against_reference(model, drawn)
        for item, (entry, result) in enumerate(zip(drawn, own, strict=True)):
            rows += _rows(
                "held_out_prompts",
                item,
                kl_policy_reference=result.kl,
                k1=result.log_ratio,
                k3=result.k3,
                k3_tokens=result.k3_tokens,
                length=len(entry.completion_ids),
            )
        for item, result in enumerate(other):
            rows += _rows(
                "held_out_reference_samples",
                item,
                kl_reference_policy=result.kl,
                log_ratio=result.log_ratio,
                k3=result.k3,
                k3_tokens=result.k3_tokens,
            )

        texts = [(text[:1], text[1:]) for text in self.other_texts]
        completions = [_key(s) for pairs in self.pairs.values() for pair in pairs for s in pair.samples]
        logps = self._logps(model, list(dict.fromkeys([*completions, *texts])))
        for split, pairs in self.pairs.items():
            for item, (pair, ref_chosen, ref_rejected) in enumerate(
                zip(pairs, *(values.tolist() for values in self.ref_logps[split]), strict=True)
            ):
                chosen, rejected = (logps[_key(entry)] for entry in pair.samples)
                margin = (chosen - ref_chosen) - (rejected - ref_rejected)
                rows += _rows(
                    split,
                    item,
                    preference_accuracy=0.5 if abs(margin) <= TIE else float(margin > 0),
                    margin=margin,
                    chosen_log_ratio=chosen - ref_chosen,
                    rejected_log_ratio=rejected - ref_rejected,
                )
        for item, key in enumerate(texts):
            rows += _rows("other_text", item, nll=-logps[key], tokens=len(key[1]))

        self.samples = drawn
        self.seconds = time.perf_counter() - start
        return pd.DataFrame([(step, *row) for row in rows], columns=COLUMNS)

    def _reward_rows(
        self, reward: Reward, scored: Sequence[TokenSample], prefix: str = ""
    ) -> list[tuple[str, str, int, float]]:
        """Rewards of the policy's samples, and their wins where the reference has samples of the prompt."""
        rivals: dict[tuple[int, ...], list[float]] = {}
        wanted = {entry.prompt_ids for entry in scored}
        for rival in score_samples(reward, [each for each in self.reference_samples if each.prompt_ids in wanted]):
            assert rival.reward is not None
            rivals.setdefault(rival.prompt_ids, []).append(rival.reward)
        rows = []
        for item, entry in enumerate(scored):
            assert entry.reward is not None
            found = {f"{prefix}reward": entry.reward}
            if others := rivals.get(entry.prompt_ids):
                found[f"{prefix}win_rate"] = float(np.heaviside(entry.reward - np.array(others), 0.5).mean())
            rows += _rows("held_out_prompts", item, **found)
        return rows

    def _against_reference(
        self, model: PreTrainedModel, drawn: Sequence[TokenSample]
    ) -> tuple[list[_Compared], list[_Compared]]:
        """The policy's samples and the reference's under both models; the reference is in memory here only."""
        if not drawn and not self.reference_samples:
            return [], []
        reference = self.load_reference()
        own = self._compare(model, reference, drawn, policy_first=True)
        other = self._compare(model, reference, self.reference_samples, policy_first=False)
        del reference
        _free()
        return own, other

    def _compare(
        self, model: PreTrainedModel, reference: PreTrainedModel, samples: Sequence[TokenSample], *, policy_first: bool
    ) -> list[_Compared]:
        def compare(part: Sequence[TokenSample]) -> list[_Compared]:
            batch = collate([s.prompt_ids for s in part], [s.completion_ids for s in part]).to(model.device)
            with autocast(model.device):
                logits, ref_logits = completion_logits(model, batch), completion_logits(reference, batch)
            first, second = (logits, ref_logits) if policy_first else (ref_logits, logits)
            kl = exact_kl(first, second, batch.completion_mask)
            ratios = (token_logps(logits, batch) - token_logps(ref_logits, batch)).cpu().double()  # 0 at padding
            x = ratios if policy_first else -ratios
            estimates = (ratios.sum(-1), kl.cpu().double(), _k3(x.sum(-1)), _k3(x).sum(-1))
            return list(map(_Compared._make, torch.stack(estimates, dim=1).tolist()))

        return _by_batches(samples, self.config.batch_size, compare, "KL to the reference")

    def _logps(self, model: PreTrainedModel, sequences: Sequence[_Sequence]) -> dict[_Sequence, float]:
        def score(part: Sequence[_Sequence]) -> list[float]:
            batch = collate([prompt for prompt, _ in part], [completion for _, completion in part]).to(model.device)
            with autocast(model.device):
                logps: list[float] = completion_logps(model, batch).tolist()
            return logps

        # Similar lengths together: little is spent on padding.
        ordered = sorted(sequences, key=lambda sequence: len(sequence[1]))
        return dict(zip(ordered, _by_batches(ordered, self.config.batch_size, score, "log-probs"), strict=True))


def _k3(x: Tensor) -> Tensor:
    """e^-x - 1 + x (Schulman 2020, "Approximating KL divergence"): never negative; infinite in float64 below x = -709."""
    return torch.expm1(-x) + x


def _key(entry: TokenSample) -> _Sequence:
    return entry.prompt_ids, entry.completion_ids


def _rows(split: str, item: int, **values: float) -> list[tuple[str, str, int, float]]:
    return [(split, metric, item, float(value)) for metric, value in values.items()]


def _by_batches(items: Sequence[T], size: int, work: Callable[[Sequence[T]], Sequence[R]], description: str) -> list[R]:
    """What `work` makes of `size` items at a time, one after the other."""
    batches = [items[start : start + size] for start in range(0, len(items), size)]
    with tqdm(total=len(batches), desc=description, unit="batch", leave=False) as bar:

        def one(batch: Sequence[T]) -> Sequence[R]:
            found = work(batch)
            bar.update(processes.size())
            return found

        return [each for part in processes.spread(batches, one) for each in part]


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

"""What a policy does on held-out data: reward, KL to the reference both ways, preferences, other text. One row per item.

Every policy sees the same prompts, sampled with the same seed, so that differences between policies can be taken per item.
The reference model is needed for exact KLs only: it is loaded for the evaluation and freed after it, never held while training.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import pandas as pd
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
_Sequence = tuple[tuple[int, ...], tuple[int, ...]]  # prompt ids, completion ids


class _Compared(NamedTuple):
    """One completion under both models, nats; `kl` sums the exact KL over its prefixes."""

    policy_logp: float
    reference_logp: float
    kl: float


class Evaluator:
    """Evaluates policies on fixed held-out data.

    Args:
        tokenizer: of policy and reference.
        load_reference: gives the reference model, in evaluation mode and on the policy's device; called once per evaluation.
        reference_logps: the reference's log-probs of all `pairs` and `training_pairs`.
        reward: the ground truth that scores completions; None leaves the reward out.
        prompts: held-out prompts, from which the policy samples.
        reference_samples: completions of the reference on held-out prompts.
        pairs: held-out labelled pairs.
        training_pairs: a fixed subset of the training pairs, for the overfitting gap.
        other_texts: token ids of texts of another domain, at least two tokens each.
        max_tokens: budget of a sampled completion.
        config: batch size.
        seed: of the sampling, the same for every policy.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        load_reference: Callable[[], PreTrainedModel],
        reference_logps: ReferenceLogps,
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
    ) -> None:
        self.tokenizer, self.load_reference, self.reward = tokenizer, load_reference, reward
        self.prompts, self.reference_samples = tuple(prompts), tuple(reference_samples)
        self.pairs = {"held_out_pairs": tuple(pairs), "training_pairs": tuple(training_pairs)}
        self.ref_logps = {split: reference_logps.pair_logps(each) for split, each in self.pairs.items()}
        self.other_texts = tuple(tuple(text) for text in other_texts)
        self.max_tokens, self.config, self.seed = max_tokens, config, seed
        self.samples: list[
            TokenSample
        ] = []  # the policy's completions of the last evaluation, with rewards where known
        self.seconds = 0.0  # that the last evaluation took

    @torch.no_grad()
    def evaluate(self, model: PreTrainedModel, step: int) -> pd.DataFrame:
        """All metrics of `model`: columns step, split, metric, item, value (log-probs and KLs in nats, summed over tokens).

        - held_out_prompts: reward, kl_policy_reference (Rao-Blackwellised: sum_t KL(pi(.|prefix) || pi_ref(.|prefix)) along the
          policy's own sample), k1 (log pi - log pi_ref of the sample), length (tokens)
        - held_out_reference_samples: kl_reference_policy (sum_t KL(pi_ref(.|prefix) || pi(.|prefix))), log_ratio (log pi - log pi_ref)
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
        if self.reward is not None:
            drawn = score_samples(self.reward, drawn)
        rows: list[tuple[str, str, int, float]] = []

        own, other = self._against_reference(model, drawn)
        for item, (entry, result) in enumerate(zip(drawn, own, strict=True)):
            known_reward = {} if entry.reward is None else {"reward": entry.reward}
            rows += _rows(
                "held_out_prompts",
                item,
                **known_reward,
                kl_policy_reference=result.kl,
                k1=result.policy_logp - result.reference_logp,
                length=len(entry.completion_ids),
            )
        for item, result in enumerate(other):
            log_ratio = result.policy_logp - result.reference_logp
            rows += _rows("held_out_reference_samples", item, kl_reference_policy=result.kl, log_ratio=log_ratio)

        known = {_key(s): r.policy_logp for s, r in zip(self.reference_samples, other, strict=True)}
        texts = [(text[:1], text[1:]) for text in self.other_texts]
        completions = [_key(s) for pairs in self.pairs.values() for pair in pairs for s in pair.samples]
        logps = known | self._logps(model, [key for key in dict.fromkeys([*completions, *texts]) if key not in known])
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
        found: list[_Compared] = []
        for part in _batched(samples, self.config.batch_size, "KL to the reference"):
            batch = collate([s.prompt_ids for s in part], [s.completion_ids for s in part]).to(model.device)
            with autocast(model.device):
                logits, ref_logits = completion_logits(model, batch), completion_logits(reference, batch)
            first, second = (logits, ref_logits) if policy_first else (ref_logits, logits)
            kl = exact_kl(first, second, batch.completion_mask)
            logps = [token_logps(each, batch).sum(-1) for each in (logits, ref_logits)]
            found += map(_Compared._make, torch.stack([*logps, kl], dim=1).tolist())
        return found

    def _logps(self, model: PreTrainedModel, sequences: Sequence[_Sequence]) -> dict[_Sequence, float]:
        found: dict[_Sequence, float] = {}
        # Similar lengths together: little is spent on padding.
        ordered = sorted(sequences, key=lambda sequence: len(sequence[1]))
        for part in _batched(ordered, self.config.batch_size, "log-probs"):
            batch = collate([prompt for prompt, _ in part], [completion for _, completion in part]).to(model.device)
            with autocast(model.device):
                logps = completion_logps(model, batch)
            found |= zip(part, logps.tolist(), strict=True)
        return found


def _key(entry: TokenSample) -> _Sequence:
    return entry.prompt_ids, entry.completion_ids


def _rows(split: str, item: int, **values: float) -> list[tuple[str, str, int, float]]:
    return [(split, metric, item, float(value)) for metric, value in values.items()]


def _batched(items: Sequence[T], size: int, description: str) -> Iterable[Sequence[T]]:
    batches = [items[start : start + size] for start in range(0, len(items), size)]
    bar: Iterable[Sequence[T]] = tqdm(batches, desc=description, unit="batch", leave=False)
    return bar


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

"""rso and best_of_n: what a reward can do with completions of the reference alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import gammaln
from torch import Tensor

import objectives
from llm_runs import training
from llm_runs.config import OnlineConfig
from llm_runs.errors import InputError
from llm_runs.evaluation import COLUMNS
from llm_runs.examples import TokenSample
from llm_runs.online.rounds import Bench, Loop, mean_reward, metric_frame, metric_rows, put_weights, weights


def accept(
    rewards: Sequence[float], beta: float, count: int, draw: np.random.Generator, maximum: float | None = None
) -> list[int]:
    """Which candidates statistical rejection sampling takes, in the order in which it takes them (arXiv 2309.06657, algorithm 1).

    Candidates are gone through in their order; each is accepted with probability exp((r - r_max)/beta), until there are `count`. Without
    a `maximum`, r_max is the largest reward among the candidates, and as long as some are missing the rest is gone through again with
    the largest reward among them, so that the better ones come first. With the true `maximum` there is one pass, which accepts
    completions distributed as pi_ref exp(r/beta)/Z exactly, and maybe fewer than `count`.

    Raises:
        InputError: a reward beyond the given maximum, with which no acceptance probability exists.
    """
    if maximum is not None and max(rewards, default=maximum) > maximum:
        raise InputError(
            f"online.rso.maximum is {maximum:g}, but a completion has reward {max(rewards):g}: raise it, or leave it out to take "
            "the candidates' own"
        )
    accepted: list[int] = []
    left = list(range(len(rewards)))
    while left and len(accepted) < count:
        top = max(rewards[i] for i in left) if maximum is None else maximum
        for i in list(left):
            if draw.random() < np.exp((rewards[i] - top) / beta):
                accepted.append(i)
                left.remove(i)
                if len(accepted) == count:
                    break
        if maximum is not None:
            break
    return accepted


class Rso(Loop):
    """Candidates of the reference, accepted, paired, labelled by the reward, and one training on the pairs. One round."""

    name = "rso"

    @classmethod
    def settings(cls, config: OnlineConfig) -> dict[str, Any]:
        """The sampler's, the objective and how much is sampled."""
        rso = config.rso
        own = objectives.parse(rso.objective)
        return own.hyperparameters | {
            "beta": rso.beta,
            "objective": own.label,
            "candidates": rso.candidates,
            "accepted": rso.accepted,
            "maximum": rso.maximum,
            "prompts": config.prompts * config.rounds,
        }

    @classmethod
    def rounds(cls, config: OnlineConfig) -> int:
        """One."""
        return 1

    def advance(self, number: int, folder: Path) -> pd.DataFrame:
        """All of it, on the prompts that the other methods see in all their rounds."""
        bench, rso = self.bench, self.bench.online.rso
        wanted = [prompt for t in range(1, bench.online.rounds + 1) for prompt in bench.prompts(t)]
        prompts = list(dict.fromkeys(wanted))
        candidates = bench.rollouts(self.model, prompts, rso.candidates, "rso")
        draw = np.random.default_rng(bench.seed("accept"))
        accepted: list[TokenSample] = []
        for start in range(0, len(candidates), rso.candidates):
            own = candidates[start : start + rso.candidates]
            rewards = [float(entry.reward or 0.0) for entry in own]
            taken = accept(rewards, rso.beta, rso.accepted, draw, rso.maximum)
            accepted += [own[i] for i in taken[: len(taken) // 2 * 2]]  # neighbours are paired
        if not accepted:
            raise InputError(
                "rso: no prompt has two accepted candidates: raise online.rso.candidates or online.rso.beta"
            )
        pairs = bench.labelled(accepted, "rso", "rso")
        objective = objectives.parse(rso.objective)
        metrics = training.train(
            self.model,
            objective,
            pairs,
            reference=lambda: bench.reference_logps(self.model, pairs),
            config=bench.config.training,
            seed=bench.seed("training", number) % 2**32,
            out=folder,
            tokenizer=bench.experiment.tokenizer,
            watch=bench.config.guards,
        )
        training.clear_checkpoints(folder)
        head = {
            "reward": mean_reward(candidates),
            "accepted_reward": mean_reward(accepted),
            "accepted": len(accepted),
            "pairs": len(pairs),
        }
        return pd.concat([metric_frame(metric_rows(0, head)), metrics], ignore_index=True)

    def tensors(self) -> dict[str, Tensor]:
        """The weights."""
        return weights(self.model)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what `tensors` gave."""
        put_weights(self.model, tensors)


def expected_best(rewards: NDArray[np.float64], n: int) -> float:
    """Unbiased estimate of E[max of n rewards] from m >= n of them, (m,): the mean over all subsets of n.

    sum_i r_(i) C(i - 1, n - 1)/C(m, n), r_(1) <= r_(2) <= ... (as pass@k's estimator, arXiv 2107.03374).
    """
    m = len(rewards)
    i = np.arange(n, m + 1)

    def log_choose(a: Any, b: Any) -> Any:
        return gammaln(a + 1) - gammaln(b + 1) - gammaln(a - b + 1)

    return float(np.exp(log_choose(i - 1, n - 1) - log_choose(m, n)) @ np.sort(rewards)[n - 1 :])


def best_of_kl(rewards: NDArray[np.float64], n: int) -> float:
    """KL(best of n || pi_ref) in nats with the distribution of the rewards (m,) in place of the true one.

    A level of reward has mass q = F(r)^n - F(r-)^n of the best, p = F(r) - F(r-) of the reference, and within a level ties are
    broken by chance, so the KL is that of the levels, at most log n - (n - 1)/n (arXiv 2401.01879). It falls short of the truth
    for n near m, as it never exceeds log m.
    """
    _, counts = np.unique(rewards, return_counts=True)
    above = np.cumsum(counts) / len(rewards)
    p = counts / len(rewards)
    q = above**n - (above - p).clip(0.0) ** n
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.where(q > 0, q * np.log(q / p), 0.0).sum())


def kl_bound(n: int) -> float:
    """log n - (n - 1)/n, nats: the most that KL(best of n || pi_ref) can be."""
    return float(np.log(n) - (n - 1) / n)


def sizes(samples: int) -> list[int]:
    """n = 1, 2, 4, ... up to half of the samples."""
    return [2**i for i in range(samples.bit_length()) if 2**i <= max(1, samples // 2)]


def best_of_n(bench: Bench) -> dict[str, pd.DataFrame]:
    """Metrics, evaluations and samples of the best of n, n = 1, 2, 4, ..., from one set of completions of each held-out prompt.

    The column step is n. By prompt: reward (`expected_best`), kl_policy_reference (`best_of_kl`, an estimate) and kl_bound. The samples
    are the best of the first n. Table reference_rewards has the rewards of all completions: item, draw, reward.
    """
    experiment, count = bench.experiment, bench.online.best_of_n.samples
    model = experiment.load_reference()
    prompts = experiment.prompts["evaluation"]
    drawn = bench.rollouts(model, prompts, count, "best_of_n")
    rows: list[tuple[int, str, str, int, float]] = []
    texts: list[tuple[int, int, str, str, float]] = []
    scored: list[tuple[int, int, float]] = []
    for item in range(len(prompts)):
        own = drawn[item * count : (item + 1) * count]
        rewards = np.array([entry.reward for entry in own], dtype=np.float64)
        scored += [(item, draw, reward) for draw, reward in enumerate(rewards.tolist())]
        for n in sizes(count):
            values = {
                "reward": expected_best(rewards, n),
                "kl_policy_reference": best_of_kl(rewards, n),
                "kl_bound": kl_bound(n),
            }
            rows += [(n, "held_out_prompts", metric, item, value) for metric, value in values.items()]
            best = own[int(rewards[:n].argmax())]
            texts.append((n, item, best.prompt, best.completion, float(best.reward or 0.0)))
    evaluations = pd.DataFrame(rows, columns=COLUMNS)
    metrics = evaluations.groupby(["step", "metric"])["value"].mean().reset_index()
    samples = pd.DataFrame(texts, columns=["step", "item", "prompt", "completion", "reward"])
    metrics.columns = pd.Index(["step", "name", "value"])
    return {
        "metrics": metrics,
        "evaluations": evaluations,
        "samples": samples,
        "reference_rewards": pd.DataFrame(scored, columns=["item", "draw", "reward"]),
    }

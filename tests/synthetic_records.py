"""Records with a known truth, for the tests of analysis and figures.

Bandit records come from closed forms of tiny worlds, written out here (theory facts F2, F4, F5, F6, F11); language-model
records are random numbers around levels that the caller chooses.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.records import write_run

STRENGTHS = (0.01, 0.1, 1.0)
PROBABILITIES = (0.6, 0.8, 0.9, 0.99, 1 - 1e-3, 1 - 1e-4, 1 - 1e-5, 1 - 1e-6, 1 - 1e-8, 1.0)
REFERENCE = np.array([0.4, 0.6])


def two_actions(objective: str, strength: float, p: float) -> tuple[str, np.ndarray]:
    """Status and policy of two actions with reference (.4, .6), where action 0 is preferred with probability p."""
    q = REFERENCE[0]
    if objective == "maxpo":  # F6 (iii)
        d = 2 * p - 1
        b = d - strength
        first = q if d == 0 else (b + np.sqrt(b * b + 4 * d * strength * q)) / (2 * d)
        return "converged", np.array([first, 1 - first])
    if objective == "dpo":
        if p == 1:
            return "diverges", np.array([1.0, 0.0])
        with np.errstate(divide="ignore"):
            margin = (np.log(p) - np.log1p(-p)) / strength  # F2
    else:
        margin = (2 * p - 1) / (2 * strength)  # F4
    logits = np.log(REFERENCE) + np.array([margin, 0.0])
    return "converged", np.exp(logits - np.logaddexp.reduce(logits))


def kl(first: np.ndarray, second: np.ndarray) -> float:
    """KL(first || second), exact zeros allowed."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.sum(np.where(first > 0, first * (np.log(first) - np.log(second)), 0.0)))


def determinism(strengths: Iterable[float] = STRENGTHS, probabilities: Iterable[float] = PROBABILITIES) -> pd.DataFrame:
    rows = []
    for objective in ("dpo", "ipo", "maxpo"):
        for strength in strengths:
            for p in probabilities:
                status, policy = two_actions(objective, strength, p)
                # the masses of ipo and dpo underflow: the forward KL from the margin stays exact
                forward = kl(REFERENCE, policy)
                if not np.isfinite(forward) and status == "converged":
                    margin = (
                        (np.log(p) - np.log1p(-p)) / strength if objective == "dpo" else (2 * p - 1) / (2 * strength)
                    )
                    forward = REFERENCE[1] * margin + np.log(REFERENCE[0])
                rows.append(
                    {
                        "objective": objective,
                        "strength": strength,
                        "probability": p,
                        "status": status,
                        "kl_policy_reference": kl(policy, REFERENCE),
                        "kl_reference_policy": forward,
                        "expected_reward": float(policy[0]),
                        "win_rate": float(policy @ np.array([[0.5, p], [1 - p, 0.5]]) @ REFERENCE),
                        "off_support_mass": 0.0,
                        "gradient_norm": 0.0,
                        "value": 0.0,
                    }
                )
    return pd.DataFrame(rows)


def partial_support(starts: int = 12) -> pd.DataFrame:
    """F5: reference (.2, .5, .3), only the pair (0, 1) is seen; the off-support mass stays at the start's, or at .3."""
    reference = np.array([0.2, 0.5, 0.3])
    logits = [np.log(reference), np.array([0.0, 0.0, 3.0]), np.array([0.0, 0.0, -3.0])]
    logits += list(np.random.default_rng(0).normal(0, 2, (starts, 3)))
    rows = []
    for objective in ("dpo", "ipo", "maxpo"):
        for strength in (0.1, 1.0):
            for start, start_logits in enumerate(logits):
                mass = np.exp(start_logits - np.logaddexp.reduce(start_logits))
                off = 0.3 if objective == "maxpo" else mass[2]
                share = {"maxpo": 0.905, "dpo": 0.99, "ipo": 1 / (1 + 2.5 * np.exp(-1 / (2 * strength)))}[objective]
                policy = np.array([(1 - off) * share, (1 - off) * (1 - share), off])
                for action in range(3):
                    rows.append(
                        {
                            "objective": objective,
                            "strength": strength,
                            "probability": 0.9,
                            "start": start,
                            "start_name": ["reference", "0,0,3", "0,0,-3"][start] if start < 3 else f"random {start}",
                            "action": action,
                            "probability_mass": policy[action],
                            "reference_mass": reference[action],
                            "on_support": action < 2,
                            "status": "converged" if objective == "maxpo" else "not_unique",
                        }
                    )
    return pd.DataFrame(rows)


def finite_data(sizes: Iterable[int] = (1, 2, 5, 10, 30, 100), seeds: int = 200) -> pd.DataFrame:
    """Two actions, p = .8: DPO has no finite minimiser when all N labels agree."""
    rows = []
    for size in sizes:
        wins = np.random.default_rng(size).binomial(size, 0.8, seeds)
        for seed, count in enumerate(wins):
            for objective in ("dpo", "ipo", "maxpo"):
                status, policy = two_actions(objective, 0.1, count / size)
                if objective == "dpo" and count in (0, size):
                    status = "diverges"
                gap = abs(count / size - 0.8) * {"dpo": 2.0, "ipo": 1.0, "maxpo": 0.5}[objective]
                rows.append(
                    {
                        "labels": size,
                        "seed": seed,
                        "objective": objective,
                        "strength": 0.1,
                        "status": status,
                        "kl_policy_reference": kl(policy, REFERENCE),
                        "expected_reward": float(policy[0]),
                        "overfit_gap": gap,
                        "step": np.nan,
                    }
                )
    for objective, rate in (("dpo", 1.0), ("ipo", 0.4), ("maxpo", 0.2)):
        for step in (0, 1, 3, 10, 30, 100, 300, 1000):
            rows.append(
                {
                    "labels": 10,
                    "seed": 0,
                    "objective": objective,
                    "strength": 0.1,
                    "status": "path",
                    "kl_policy_reference": rate * np.log1p(step) / 8,
                    "expected_reward": 0.5,
                    "overfit_gap": rate * np.log1p(step) / 7,
                    "step": float(step),
                }
            )
    return pd.DataFrame(rows)


def frontier(strengths: Iterable[float] = tuple(np.logspace(-2, 3, 41))) -> pd.DataFrame:
    """Five actions, uniform reference, Bradley-Terry rewards: dpo is the RLHF optimum (F2); ipo by F4; maxpo mixes (below it)."""
    rewards = np.array([0.0, 0.5, 1.0, 1.5, 2.0])
    reference = np.full(5, 0.2)
    p = 1 / (1 + np.exp(rewards[None] - rewards[:, None]))
    rows = []
    for strength in strengths:
        for objective in ("rlhf", "dpo", "ipo", "maxpo"):
            if objective in ("rlhf", "dpo"):
                logits = rewards / strength
            elif objective == "ipo":
                logits = (2 * p - 1).mean(axis=1) / (2 * strength)
            else:
                logits = np.log(0.2 + 0.8 / strength * (rewards == 2.0))  # mass moved to the best action only
            policy = np.exp(logits - np.logaddexp.reduce(logits))
            rows.append(
                {
                    "world": "bradley_terry",
                    "objective": objective,
                    "strength": strength,
                    "status": "converged",
                    "kl_policy_reference": kl(policy, reference),
                    "expected_reward": float(policy @ rewards),
                    "win_rate": float(policy @ p @ reference),
                }
            )
    return pd.DataFrame(rows)


def ablation() -> pd.DataFrame:
    rows = []
    for pair_loss in ("dpo", "ipo", "maxpo"):
        for regulariser in ("none", "forward_kl", "chosen_nll"):
            for world in ("determinism", "partial_support"):
                good = regulariser == "forward_kl"
                diverges = not good and world == "determinism" and pair_loss != "ipo"
                rows.append(
                    {
                        "pair_loss": pair_loss,
                        "regulariser": regulariser,
                        "world": world,
                        "status": "diverges" if diverges else "converged" if good else "not_unique",
                        "kl_policy_reference": np.inf if diverges else 0.4,
                        "kl_reference_policy": np.inf if diverges else 0.3,
                        "expected_reward": 0.7,
                        "off_support_drift": 0.0 if good or world == "determinism" else 0.6,
                    }
                )
    return pd.DataFrame(rows)


def reference_samples(seeds: int = 100) -> pd.DataFrame:
    """F11 for four actions: an action that was never sampled has no mass left, so KL(ref||policy) is infinite."""
    reference = np.array([0.5, 0.3, 0.15, 0.05])
    rows = []
    for size in (3, 10, 30, 100, 300):
        for seed in range(seeds):
            counts = np.random.default_rng([size, seed]).multinomial(size, reference)
            rows.append(
                {
                    "samples": size,
                    "seed": seed,
                    "objective": "maxpo",
                    "strength": 0.1,
                    "kl_reference_policy": kl(reference, counts / size),
                    "unsampled_mass": float(reference[counts == 0].sum()),
                }
            )
    return pd.DataFrame(rows)


EXPERIMENTS = {
    "determinism": determinism,
    "strength": lambda: determinism(np.logspace(-3, 2, 21), (0.8, 1.0)),
    "partial_support": partial_support,
    "finite_data": finite_data,
    "frontier": frontier,
    "ablation": ablation,
    "reference_samples": reference_samples,
}


def write_bandit(folder: Path, experiment: str, frame: pd.DataFrame | None = None) -> Path:
    return write_run(
        folder / experiment,
        kind="bandit",
        id=f"bandit/{experiment}",
        config={"experiment": experiment},
        seeds={"data": 0},
        tables={"results": EXPERIMENTS[experiment]() if frame is None else frame},
    )


def write_bandits(folder: Path) -> Path:
    for experiment in EXPERIMENTS:
        write_bandit(folder, experiment)
    return folder


@dataclass(frozen=True)
class Levels:
    """Where a method ends up on near-deterministic labels at strength .1; ``noisy`` scales KL on noisy labels."""

    kl: float
    reward: float
    log_ratio: float = -1.0
    training_accuracy: float = 0.9
    held_out_accuracy: float = 0.7
    benchmark: float = 0.5
    noisy: float = 0.5
    response: float = 0.0  # fall of log10 KL per decade of strength


# Temperature of each kind of labels, and how likely a label is to go with the better answer.
TEMPERATURES = {"near_deterministic": (0.01, 0.998), "sharp": (0.2, 0.95), "soft": (0.7, 0.85), "noisy": (2.0, 0.7)}

# As the theory predicts it.
PREDICTED = {
    "dpo": Levels(10.0, 2.0, log_ratio=-12.0, training_accuracy=0.99, held_out_accuracy=0.7, benchmark=0.35),
    "ipo": Levels(
        6.0, 2.0, -8.0, training_accuracy=0.85, held_out_accuracy=0.72, benchmark=0.4, noisy=0.8, response=0.3
    ),
    "maxpo": Levels(
        2.0, 2.0, -0.3, training_accuracy=0.8, held_out_accuracy=0.75, benchmark=0.5, noisy=0.95, response=0.5
    ),
}


@dataclass
class Truth:
    """What ``write_language_model`` writes."""

    methods: Mapping[str, Levels] = field(default_factory=lambda: PREDICTED)
    strengths: tuple[float, ...] = (0.02, 0.1)
    labels: tuple[str, ...] = ("near_deterministic", "noisy")
    prompts: int = 64
    noise: float = 0.3
    seeds: tuple[int, ...] = (0,)
    seed_noise: float = (
        0.0  # training noise: standard deviation of a run's levels, as a share of each (absolute for the reward)
    )
    top_p: float = 1.0  # the nucleus that the pairs show
    learning_rate: float = 3e-5
    reference_samples: int = 320
    data_seed: int = 0
    spread: float = 0.0  # standard deviation of what the held-out reference samples themselves do to log_ratio
    model: str = "tiny-random"
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)


def write_language_model(folder: Path, truth: Truth | None = None) -> Path:
    truth = truth or Truth()
    for method, levels in truth.methods.items():
        for labels in truth.labels:
            for strength in truth.strengths:
                for seed in truth.seeds:
                    _write_one(folder, truth, method, levels, labels, strength, seed)
    return folder


def _write_one(
    folder: Path, truth: Truth, method: str, levels: Levels, labels: str, strength: float, seed: int
) -> None:
    name = f"{method}-{strength:g}-{labels}-{seed}" + (f"-{truth.top_p}" if truth.top_p < 1 else "")
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    n = truth.prompts
    base_reward = np.random.default_rng(1).normal(0.3, 1.0, n)  # the reference's, the same in every run
    temperature, certainty = TEMPERATURES.get(labels, (0.01, 0.99))
    # KL is linear in the log-odds of the labels' certainty, from `noisy` to 1
    odds = [math.log(p / (1 - p)) for p in (0.7, certainty, 0.998)]
    scale = levels.noisy + (1 - levels.noisy) * (odds[1] - odds[0]) / (odds[2] - odds[0])
    scale *= (0.1 / strength) ** levels.response
    training = truth.seed_noise * rng.normal(size=3) if truth.seed_noise else np.zeros(3)
    scale *= 1 + training[0]
    rows: list[tuple[int, str, str, int, float]] = []

    def add(step: int, split: str, metric: str, values: np.ndarray) -> None:
        rows.extend((step, split, metric, item, float(value)) for item, value in enumerate(values))

    def accuracy(level: float) -> np.ndarray:
        return (np.arange(n) < round(level * n)).astype(float)

    for step, progress in ((0, 0.0), (10, 0.5), (20, 1.0)):
        noise = truth.noise if step else 0.0
        kl_values = scale * levels.kl * progress**2 * (1 + noise * rng.uniform(-1, 1, n))
        add(step, "held_out_prompts", "kl_policy_reference", kl_values)
        add(step, "held_out_prompts", "k1", kl_values)
        add(step, "held_out_prompts", "length", np.full(n, 32.0))
        reward = base_reward + (levels.reward - 0.3 + training[1]) * progress + noise * rng.normal(0, 1, n)
        add(step, "held_out_prompts", "reward", reward)
        # rises, then falls: what nothing optimises
        add(
            step,
            "held_out_prompts",
            "second_reward",
            base_reward + progress * (1 - progress) + noise * rng.normal(0, 1, n),
        )
        ratio = levels.log_ratio * (1 + training[2]) * progress * (1 + noise * rng.uniform(-1, 1, n))
        ratio += truth.spread * progress * np.random.default_rng(2).normal(size=n)
        add(step, "held_out_reference_samples", "log_ratio", ratio)
        add(step, "held_out_reference_samples", "kl_reference_policy", np.abs(ratio))
        for split, level in (
            ("training_pairs", levels.training_accuracy),
            ("held_out_pairs", levels.held_out_accuracy),
        ):
            add(step, split, "preference_accuracy", accuracy(0.5 + (level - 0.5) * progress))
            add(step, split, "margin", rng.normal(progress, 1, n))
            add(step, split, "chosen_log_ratio", rng.normal(-3 * progress, 1, n))
            add(step, split, "rejected_log_ratio", rng.normal(-5 * progress, 1, n))
        add(step, "other_text", "nll", np.full(n, 90.0) + 5 * progress + noise * rng.normal(0, 1, n))
        add(step, "other_text", "tokens", np.full(n, 30.0))
        if step != 10:
            level = 0.5 + (levels.benchmark - 0.5) * progress
            for task in ("hellaswag", "truthfulqa"):
                add(step, f"benchmark/{task}", "acc", np.roll(accuracy(level), 3) if step else accuracy(level))
    steps = np.arange(1, 21)
    curves = {
        "loss": np.exp(-steps / 8),
        "accuracy": 0.5 + (levels.training_accuracy - 0.5) * (1 - np.exp(-steps / 6)),
        "margin": 3 * steps / 20,
        "plain_margin": 30 * steps / 20,
        "chosen_logps": -90 - 4 * steps / 20,
        "rejected_logps": -90 - 9 * steps / 20,
        "saturated_share": np.full(20, 0.8),
        "grad_norm": np.full(20, 3.0),
    }
    metrics = [
        (int(step), key, float(value))
        for key, values in curves.items()
        for step, value in zip(steps, values, strict=True)
    ]
    key = "tau" if method.startswith("ipo") else "beta"
    hyperparameters = {key: strength, **truth.hyperparameters}
    label = f"{method}({', '.join(f'{name}={value}' for name, value in hyperparameters.items())})"
    write_run(
        folder / name,
        kind="llm",
        id=f"llm/{name}",
        config={
            "objective": {"name": method, "hyperparameters": hyperparameters, "label": label},
            "labels": {
                "name": labels,
                "temperature": temperature,
                "mean_max_probability": certainty,
            },
            "training": {"steps": 20, "batch_size": 16, "learning_rate": truth.learning_rate},
            "reference": {"samples": truth.reference_samples},
            "model": {"name": truth.model},
            "sampling": {"top_p": truth.top_p},
            "seed": truth.data_seed,
            "training_seed": seed,
        },
        seeds={"training": seed},
        tables={
            "metrics": pd.DataFrame(metrics, columns=["step", "name", "value"]),
            "evaluations": pd.DataFrame(rows, columns=["step", "split", "metric", "item", "value"]),
        },
    )


def write_costs(
    folder: Path, memory: Mapping[tuple[str, str], float], seconds: Mapping[tuple[str, str], float]
) -> Path:
    """Cost runs: peak memory (bytes) and processor seconds per step, by (objective, reference)."""
    for (objective, reference), peak in memory.items():
        rng = np.random.default_rng(len(objective))
        rows = []
        for step in range(10):
            rows.append((step, "peak_memory_bytes", peak))
            rows.append((step, "step_cpu_seconds", seconds[objective, reference] * (1 + 0.05 * rng.uniform(-1, 1))))
        write_run(
            folder / f"cost-{objective}-{reference}",
            kind="llm_cost",
            id=f"cost/{objective}/{reference}",
            config={
                "objective": {"name": objective, "hyperparameters": {}, "label": objective},
                "reference": reference,
            },
            seeds={},
            tables={"metrics": pd.DataFrame(rows, columns=["step", "name", "value"])},
        )
    return folder

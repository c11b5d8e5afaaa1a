"""What the exact bandit predicts for a language model: the bandit whose actions are K scored completions of the reference per prompt.

In it every policy's KL and reward are sums, so the RLHF optimum pi_ref exp(r/beta)/Z (theory F1), the most reward at any KL, is known
exactly. It stands for the language model as far as K draws do: weights that rest on few of them, and a KL that never exceeds log K,
are the limit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import PchipInterpolator
from scipy.special import logsumexp

from analysis.evidence import Evidence, MissingEvidence, Setting
from analysis.records import Run

TABLE = "reference_rewards"  # of a best_of_n record: item, draw, reward
COMMAND = "python -m llm_runs online online_quick --out out/online_quick"
ENOUGH = 4.0  # draws on which a prompt's weights rest, in the mean, for a prediction to be believed


@dataclass(frozen=True)
class Curve:
    """RLHF optima by falling beta, means over prompts: KL to the reference (nats), reward, and the effective number of draws."""

    beta: NDArray[np.float64]
    kl: NDArray[np.float64]
    reward: NDArray[np.float64]
    draws: NDArray[np.float64]

    @property
    def believed(self) -> NDArray[np.bool_]:
        """Where enough draws carry the weights."""
        return self.draws >= ENOUGH

    def bound(self, kl: ArrayLike) -> NDArray[np.float64]:
        """The most reward at these KLs; NaN beyond the curve.

        It rises like the square root of KL near 0, so it is interpolated (monotone cubic) over that root.
        """
        distinct = np.concatenate([[True], np.diff(self.kl) > 1e-12])
        curve = PchipInterpolator(np.sqrt(self.kl[distinct]), self.reward[distinct], extrapolate=False)
        found: NDArray[np.float64] = curve(np.sqrt(np.maximum(np.asarray(kl, dtype=float), 0.0)))
        return found


def rlhf(rewards: ArrayLike, betas: ArrayLike) -> Curve:
    """RLHF optima of the bandit with these rewards (prompts, K), each action of mass 1/K; `betas` (B,), infinity for the reference.

    Per prompt w = softmax(r/beta); KL = sum w log(K w); effective draws 1/sum w^2.
    """
    r, beta = np.asarray(rewards, dtype=float), np.sort(np.asarray(betas, dtype=float).ravel())[::-1]
    scaled = r[None] / beta[:, None, None]
    log_weights = scaled - logsumexp(scaled, axis=-1, keepdims=True)
    weights = np.exp(log_weights)
    kl = (weights * (log_weights + math.log(r.shape[1]))).sum(-1)
    return Curve(
        beta,
        np.maximum(kl.mean(-1), 0.0),
        (weights * r[None]).sum(-1).mean(-1),
        (1.0 / (weights**2).sum(-1)).mean(-1),
    )


def whole(rewards: ArrayLike, points: int = 200) -> Curve:
    """The curve from the reference to a point mass on the best of the draws."""
    spread = float(np.ptp(np.asarray(rewards, dtype=float), axis=-1).max()) or 1.0
    return rlhf(rewards, np.concatenate([[np.inf], np.geomspace(1e3, 1e-4, points) * spread]))


def predicted_beta(setting: Setting) -> float | None:
    """The beta at whose RLHF optimum a method ends in the exact bandit, or at which it aims; None where no closed form is known.

    Labels drawn with p = sigmoid(gap/T) are Bradley-Terry's of the reward r/T, so DPO's optimum is that of beta T (theory F2). t rounds
    from the last policy on make it beta T/t; extrapolation by alpha divides by sum_s (1 - alpha^s)/(1 - alpha) in place of t. PPO and
    ESPO maximise r - beta KL, and what RSO accepts follows its own beta's optimum.
    """
    values = setting.hyperparameters
    if setting.objective in ("rlhf_ppo", "espo", "rso"):
        return float(values["beta"])
    iterated = setting.objective in ("iterative_dpo", "accelerated")
    if setting.objective != "dpo" and not (iterated and str(values.get("objective", "")).startswith("dpo(")):
        return None
    temperature = setting.runs[0].config["labels"].get("temperature")
    if temperature is None or "beta" not in values:
        return None
    strength = float(values["beta"]) * float(temperature)
    if not iterated or values.get("reference") == "fixed":
        return strength
    alpha = float(values.get("extrapolation", 0.0))
    return strength / sum((1 - alpha**s) / (1 - alpha) for s in range(1, int(values["rounds"]) + 1))


def reference_rewards(evidence: Evidence) -> tuple[Run, NDArray[np.float64]]:
    """The record that holds scored completions of the reference, and their rewards (prompts, K).

    Raises:
        MissingEvidence: no record of best_of_n has them.
    """
    for setting in evidence.settings:
        for run in setting.runs:
            if TABLE in run.tables:
                frame = run.table(TABLE).pivot(index="item", columns="draw", values="reward")
                return run, frame.to_numpy(dtype=float)
    raise MissingEvidence("scored completions of the reference (best_of_n)", COMMAND)

"""Predictions from scored completions: by hand, against the exact solver of the bandits, and against its loops."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from analysis.empirical_bandit import predicted_beta, reference_rewards, rlhf, whole
from analysis.evidence import Evidence, MissingEvidence, Setting
from toy_bandits import Bandit, loops
from toy_bandits.metrics import expected_reward, kl_policy_reference
from toy_bandits.optimum import reward_bound

REWARDS = np.random.default_rng(3).normal(0.4, 1.5, (5, 12))


def setting(method: str, temperature: float | None = 0.5, **hyperparameters: Any) -> Setting:
    run: Any = SimpleNamespace(config={"labels": {"name": "noisy", "temperature": temperature}})
    return Setting(method, method, 0.1, hyperparameters, "noisy", (run,))


def world(rewards: np.ndarray, temperature: float) -> Bandit:
    """The bandit of these completions, with Bradley-Terry labels of reward/temperature."""
    r = torch.tensor(rewards)
    preferences = torch.sigmoid((r.unsqueeze(-1) - r.unsqueeze(-2)) / temperature)
    return Bandit(reference=torch.full_like(r, 1 / r.shape[-1]), preferences=preferences, rewards=r)


def test_two_completions_by_hand() -> None:
    curve = rlhf([[0.0, 1.0], [0.0, 0.0]], [1.0])
    w = math.e / (1 + math.e)
    assert curve.reward == pytest.approx([w / 2])
    assert curve.kl == pytest.approx([(w * math.log(2 * w) + (1 - w) * math.log(2 * (1 - w))) / 2])
    assert curve.draws == pytest.approx([(1 / (w * w + (1 - w) ** 2) + 2) / 2])


def test_the_curve_goes_from_the_reference_to_the_best_of_the_draws() -> None:
    curve = whole(REWARDS)
    assert (curve.kl[0], curve.reward[0]) == pytest.approx((0.0, REWARDS.mean()))
    assert (curve.kl[-1], curve.reward[-1]) == pytest.approx((math.log(12), REWARDS.max(-1).mean()))
    assert (np.diff(curve.kl) >= -1e-12).all()
    assert curve.believed[0]
    assert not curve.believed[-1]


def test_the_bound_is_that_of_the_exact_bandit_and_no_policy_lies_above_it() -> None:
    problem, curve = world(REWARDS, 1.0), whole(REWARDS)
    random = torch.tensor(np.random.default_rng(0).normal(0, 2, (40, 5, 12))).log_softmax(-1)
    each = world(np.broadcast_to(REWARDS, (40, 5, 12)).copy(), 1.0)
    kl = kl_policy_reference(each, random).numpy()
    np.testing.assert_allclose(curve.bound(kl), reward_bound(each, random).numpy(), atol=2e-4)
    assert (expected_reward(each, random).numpy() <= curve.bound(kl) + 2e-4).all()
    assert kl_policy_reference(problem, problem.log_reference).item() == pytest.approx(0, abs=1e-12)
    assert np.isnan(curve.bound([math.log(12) + 0.1])).all()


@pytest.mark.parametrize(
    ("method", "hyperparameters", "loop", "steps"),
    [
        ("iterative_dpo", {"reference": "moving", "rounds": 3}, "iterative_dpo", 3),
        ("iterative_dpo", {"reference": "fixed", "rounds": 3}, "iterative_dpo", 3),
        ("accelerated", {"reference": "moving", "extrapolation": 0.3, "rounds": 4}, "accelerated", 4),
    ],
)
def test_rounds_end_where_the_exact_loop_ends(
    method: str, hyperparameters: dict[str, Any], loop: str, steps: int
) -> None:
    temperature, beta = 0.5, 4.0
    own = {key: value for key, value in hyperparameters.items() if key != "rounds"}
    if loop == "accelerated":
        del own["reference"]
    exact = loops.get(loop, objective=f"dpo(beta={beta})", iterations=steps, **own)
    frame = loops.record(exact, world(REWARDS, temperature)).iloc[-1]
    found = predicted_beta(setting(method, temperature, objective=f"dpo(beta={beta})", beta=beta, **hyperparameters))
    assert found is not None
    point = rlhf(REWARDS, [found])
    assert frame["kl_policy_reference"] == pytest.approx(point.kl[0], rel=1e-5)
    assert frame["expected_reward"] == pytest.approx(point.reward[0], rel=1e-5)


def test_other_methods_strengths() -> None:
    assert predicted_beta(setting("dpo", 0.5, beta=0.1)) == pytest.approx(0.05)
    assert predicted_beta(setting("rlhf_ppo", beta=0.2)) == 0.2
    assert predicted_beta(setting("rso", beta=0.5, objective="rso_hinge(gamma=0.05)")) == 0.5
    assert predicted_beta(setting("dpo", None, beta=0.1)) is None
    assert predicted_beta(setting("maxpo", beta=0.1)) is None
    assert predicted_beta(setting("best_of_n", samples=8)) is None
    assert predicted_beta(setting("iterative_dpo", objective="ipo(tau=0.1)", tau=0.1, rounds=2)) is None


def test_the_pairs_of_other_objectives_predict_nothing() -> None:
    assert predicted_beta(setting("accelerated", objective="dpo(beta=0.1)+forward_kl(weight=0.1)", rounds=2)) is None


def test_missing_completions_name_the_command(tmp_path: Path) -> None:
    with pytest.raises(MissingEvidence, match=r"best_of_n.*python -m llm_runs online"):
        reference_rewards(Evidence.load(tmp_path))

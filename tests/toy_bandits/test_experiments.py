"""The experiments: tables with the agreed columns, against exact answers where there are some."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from oracles import bandit_closed_forms as oracle

from toy_bandits import worlds
from toy_bandits.experiments import EXPERIMENTS
from toy_bandits.experiments.ablation import Ablation
from toy_bandits.experiments.determinism import Determinism
from toy_bandits.experiments.finite_data import FiniteData, overfit_gap, sample
from toy_bandits.experiments.frontier import Frontier
from toy_bandits.experiments.partial_support import PartialSupport
from toy_bandits.experiments.reference_samples import REFERENCE, ReferenceSamples
from toy_bandits.experiments.strength import Strength
from toy_bandits.problem import Bandit

METRICS = {
    "status",
    "kl_policy_reference",
    "kl_reference_policy",
    "win_rate",
    "off_support_mass",
    "gradient_norm",
    "value",
}


def test_every_experiment_is_named_and_its_config_is_its_settings() -> None:
    assert list(EXPERIMENTS) == [
        *("determinism", "strength", "partial_support", "finite_data", "frontier", "ablation", "reference_samples")
    ]
    assert replace(EXPERIMENTS["finite_data"], data_sets=7).config()["data_sets"] == 7


def test_chain_world_is_bradley_terry_with_equal_steps() -> None:
    problem = worlds.chain(torch.tensor([0.8, 1.0]))
    odds = 4.0  # of .8
    np.testing.assert_allclose(problem.preferences[0, 0, 0, 1:], [odds**k / (1 + odds**k) for k in (1, 2, 3)])
    np.testing.assert_array_equal(problem.preferences[1, 0].triu(1)[problem.preferences[1, 0].triu(1) > 0], np.ones(6))


def test_determinism_dpo_is_the_gibbs_policy_and_diverges_at_certainty() -> None:
    frame = Determinism(probabilities=(0.7, 1 - 1e-6, 1.0), strengths=(0.1, 10.0)).results()
    assert METRICS | {"objective", "strength", "probability", "expected_reward"} <= set(frame.columns)
    assert len(frame) == 3 * 3 * 2
    reference, steps = np.array([0.1, 0.2, 0.3, 0.4]), np.array([3.0, 2.0, 1.0, 0.0])
    for row in frame[(frame["objective"] == "dpo") & (frame["probability"] < 1)].itertuples():
        odds = np.log(row.probability) - np.log1p(-row.probability)
        log_policy = oracle.log_softmax(np.log(reference) + steps * odds / row.strength)
        forward = float(reference @ (np.log(reference) - log_policy))
        assert row.kl_reference_policy == pytest.approx(forward, rel=1e-7)
        assert row.status == "converged"
    certain = frame[frame["probability"] == 1.0].set_index("objective")
    assert (certain.loc["dpo", "status"] == "diverges").all()
    assert np.isinf(certain.loc["dpo", "kl_reference_policy"]).all()
    assert np.isfinite(certain.loc[["ipo", "maxpo"], "kl_reference_policy"]).all()
    assert (certain.loc[["ipo", "maxpo"], "status"] == "converged").all()


def test_strength_acts_on_maxpo_and_ipo_but_not_on_dpo_at_certainty() -> None:
    frame = Strength(probabilities=(1.0,), strengths=(1e-3, 0.1, 1.0, 100.0)).results()
    kl = frame.pivot(index="strength", columns="objective", values="kl_policy_reference").sort_index()
    assert (kl["dpo"] == kl["dpo"].iloc[0]).all()
    assert (np.diff(kl["ipo"]) < 0).all()
    assert (np.diff(kl["maxpo"]) < 0).all()
    assert Strength().strengths[-1] / Strength().strengths[0] == pytest.approx(1e5)


def test_partial_support_keeps_the_starts_offsets_except_under_maxpo() -> None:
    experiment = PartialSupport(random_starts=5)
    frame = experiment.results()
    assert {"start_name", "action", "probability_mass", "reference_mass", "on_support"} <= set(frame.columns)
    assert frame.groupby(["objective", "strength", "probability", "start"])["probability_mass"].sum().to_numpy() == (
        pytest.approx(1.0)
    )
    names, starts = experiment.starts()
    assert names[:3] == ["reference", "0,0,3", "0,0,-3"]
    ipo = frame[(frame["objective"] == "ipo") & (frame["strength"] == 0.1) & (frame["probability"] == 1.0)]
    weight = np.array([[0, 1.0, 0], [1.0, 0, 0], [0, 0, 0]])
    win = np.array([[0.5, 1, 0.5], [0, 0.5, 0.5], [0.5, 0.5, 0.5]])
    for start, group in ipo.groupby("start"):
        exact = oracle.ipo_logits(np.array([0.2, 0.5, 0.3]), win, weight, 0.1, starts[start].numpy())
        policy = group.sort_values("action")["probability_mass"]
        np.testing.assert_allclose(policy, np.exp(oracle.log_softmax(exact)), rtol=1e-9)
    unseen = frame[(frame["objective"] == "maxpo") & (frame["action"] == 2)]
    np.testing.assert_allclose(unseen["probability_mass"], 0.3, atol=1e-9)
    assert not ((frame["objective"] == "dpo") & (frame["probability"] == 1.0)).any()


def two_actions(p: float) -> Bandit:
    return Bandit([0.5, 0.5], [[0.5, p], [1 - p, 0.5]], rewards=[1.0, 0.0])


def test_sampled_worlds_hold_as_many_labels_as_asked_and_are_reproducible() -> None:
    data = sample(worlds.chain(0.8), 50, 20, seed=3)
    counts = data.label_weights * 50
    np.testing.assert_allclose(counts, counts.round(), atol=1e-9)
    np.testing.assert_allclose(counts.sum((-3, -2, -1)), 50)
    many = sample(worlds.chain(0.8), 20_000, 1, seed=3)
    torch.testing.assert_close(many.label_weights[0], worlds.chain(0.8).label_weights, atol=0.015, rtol=0)  # 4 s.e.
    torch.testing.assert_close(sample(worlds.chain(0.8), 50, 20, seed=3).label_weights, data.label_weights)
    assert not torch.equal(sample(worlds.chain(0.8), 50, 20, seed=4).label_weights, data.label_weights)


def test_probability_that_dpo_has_no_minimiser_is_that_of_unanimous_labels() -> None:
    """Two actions, N labels: p^N + (1-p)^N by enumeration; and exactly the unanimous data sets, none else."""
    from objectives import get
    from toy_bandits import solve

    p, count, sets = 0.7, 4, 4000
    data = sample(two_actions(p), count, sets, seed=0)
    diverges = solve(data, get("dpo")).status == "diverges"
    wins = (data.label_weights[:, 0, 0, 1] * count).round()
    np.testing.assert_array_equal(diverges, ((wins == 0) | (wins == count)).numpy())
    exact = p**count + (1 - p) ** count
    assert diverges.mean() == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / sets))


def test_finite_data_statuses_follow_fords_criterion_by_linear_programming() -> None:
    experiment = FiniteData(labels=(6, 25), data_sets=40, path_labels=6, path_data_sets=3, path_steps=(0, 2))
    frame = experiment.results()
    minimisers = frame[frame["step"].isna()]
    for count in experiment.labels:
        data = sample(worlds.chain(experiment.probability), count, 40, experiment.seed)
        exists = [
            oracle.has_finite_dpo_minimiser(data.preferences[i, 0].numpy(), data.pairs[i, 0].numpy()) for i in range(40)
        ]
        rows = minimisers[(minimisers["labels"] == count) & (minimisers["objective"] == "dpo")].sort_values("seed")
        np.testing.assert_array_equal(rows["status"] != "diverges", exists)
        assert 0 < sum(exists) < 40
    assert (minimisers.loc[minimisers["objective"] != "dpo", "status"] != "diverges").all()
    paths = frame[frame["step"].notna()]
    assert set(paths["step"]) == {0.0, 2.0}
    assert (paths.loc[paths["step"] == 0, "kl_policy_reference"].abs() < 1e-12).all()
    assert (paths.loc[paths["step"] == 2, "kl_policy_reference"] > 0).all()


def test_overfit_gap_is_agreement_with_own_labels_less_agreement_with_new_ones() -> None:
    world, data = two_actions(0.7), two_actions(1.0)
    logits = torch.tensor([[800.0, 0.0]], dtype=torch.float64)
    assert float(overfit_gap(world, data, logits)) == pytest.approx(0.3)
    assert float(overfit_gap(world, data, torch.zeros(1, 2, dtype=torch.float64))) == 0.0
    assert float(overfit_gap(world, world, logits)) == 0.0


def test_no_policy_of_the_frontier_crosses_the_rlhf_optimum() -> None:
    experiment = Frontier(strengths=tuple(np.logspace(-3, 2, 11)))
    frame = experiment.results()
    assert set(frame["world"]) == {"bradley_terry", "near_deterministic", "partial_support"}
    assert set(frame["objective"]) == {"dpo", "ipo", "maxpo", "rlhf"}
    for world, rows in frame.groupby("world"):
        # any policy's reward - beta KL is at most beta log E_ref exp(r / beta), for every beta
        problem = experiment.worlds()[world]
        reference, rewards = problem.reference[0].numpy(), problem.rewards[0].numpy()
        for beta in np.logspace(-2, 2, 9):
            top = rewards.max()
            bound = top + beta * np.log(np.sum(reference * np.exp((rewards - top) / beta)))
            assert (rows["expected_reward"] - beta * rows["kl_policy_reference"] <= bound + 1e-12).all()
    dpo, rlhf = (
        frame[(frame["world"] == "bradley_terry") & (frame["objective"] == name)].sort_values("strength")
        for name in ("dpo", "rlhf")
    )
    np.testing.assert_allclose(dpo["expected_reward"], rlhf["expected_reward"], rtol=1e-7)  # F2


def test_ablation_forward_kl_does_the_work() -> None:
    frame = Ablation().results()
    assert len(frame) == 18
    assert {"pair_loss", "regulariser", "world", "off_support_drift"} <= set(frame.columns)
    assert (frame["status"] != "unsolved").all()
    regularised = frame[frame["regulariser"] == "forward_kl"]
    assert (regularised["status"] == "converged").all()
    np.testing.assert_allclose(regularised["off_support_drift"], 0.0, atol=1e-9)
    status = frame.set_index(["pair_loss", "regulariser", "world"])["status"]
    assert status["dpo", "none", "determinism"] == "diverges"
    assert status["ipo", "none", "determinism"] == "converged"
    assert status["dpo", "none", "partial_support"] == "not_unique"
    assert (
        status["ipo", "chosen_nll", "partial_support"] == "diverges"
    )  # nothing holds up the action that no pair shows
    assert status["maxpo", "none", "determinism"] == "diverges"


def test_reference_samples_kl_is_infinite_exactly_when_an_action_was_never_sampled() -> None:
    frame = ReferenceSamples(samples=(20, 2000), data_sets=30).results()
    missing = frame["unsampled_mass"] > 0
    np.testing.assert_array_equal(np.isinf(frame["kl_reference_policy"]), missing)
    assert missing[frame["samples"] == 20].mean() > 0.5
    assert not missing[frame["samples"] == 2000].any()
    # with many samples: the answer for the true reference, whose unseen actions keep their mass
    first = 0.75 * oracle.maxpo_two_actions(2 / 3, 0.9, 0.75 * 0.1)
    policy = np.array([first, 0.75 - first, *REFERENCE[2:]])
    forward = float(np.array(REFERENCE) @ np.log(np.array(REFERENCE) / policy))
    median = frame.loc[frame["samples"] == 2000, "kl_reference_policy"].median()
    assert median == pytest.approx(forward, rel=0.05)


def test_tables_are_tidy() -> None:
    frame = Determinism(probabilities=(0.7,), strengths=(0.1,)).results()
    assert isinstance(frame, pd.DataFrame)
    assert not frame.isna().any().any()
    assert frame.dtypes[["strength", "probability", "value"]].eq(np.float64).all()

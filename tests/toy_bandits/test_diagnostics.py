"""Diagnostics: scores of hand-made tables, probes against facts worked out elsewhere."""

from __future__ import annotations

import io
import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import minimize

import objectives
from objectives import Objective, ObjectiveError
from objectives.terms import Part, Term
from toy_bandits import BanditError, diagnostics, worlds
from toy_bandits.diagnostics import DIAGNOSTICS, Diagnostic
from toy_bandits.diagnostics.base import Case, answers

INF = float("inf")


def table(**columns: object) -> pd.DataFrame:
    frame = pd.DataFrame(columns)
    return frame.assign(status=frame.get("status", "converged"))


def certain(noisy: float, sure: float) -> pd.DataFrame:
    return table(world=["determinism/1", "determinism/6"], kl_reference_policy=[noisy, sure])


def swept(*kl: float, limit: float = 2.0) -> pd.DataFrame:
    return table(world="w", order=range(len(kl)), kl_policy_reference=kl, kl_limit=limit)


def starts(*apart: float, status: str = "not_unique") -> pd.DataFrame:
    return table(world=[f"w{i}" for i in range(len(apart))], log_apart=apart, status=status)


HAND_MADE = [
    ("determinism", certain(1.5, INF), 0.0),
    ("determinism", certain(INF, INF), 0.0),
    ("determinism", certain(1.5, 2.0), 0.75),
    ("determinism", certain(0.0, 0.0), 1.0),
    ("determinism", certain(2.0, 1.0), 1.0),
    ("strength", swept(2.0, 1.0, 0.5, 0.0), 1.0),
    ("strength", swept(2.0, 2.0, 2.0), 0.0),
    ("strength", swept(0.0, 1.0, 2.0), 0.0),
    ("strength", swept(1.0, 0.5, 0.0), 0.5),
    ("strength", swept(1.0, 2.0, 0.0), 0.5 / 3.0),  # half of the range; of three nats travelled, one is progress
    ("off_support", table(kept=[1.0, 1.0]), 1.0),
    ("off_support", table(kept=[0.0, 0.5]), 0.25),
    ("uniqueness", starts(0.0, 0.0), 1.0),
    ("uniqueness", starts(math.log(4.0), 0.0), 0.625),
    ("uniqueness", starts(0.0, status="diverges"), 0.0),
    ("leak", table(kept=[1.0, 0.5]), 0.75),
    ("length_bias", table(shift=[0.0, -0.5, 0.5]), 2.0 / 3.0),
    ("length_bias", table(shift=[-1.0, 1.0]), 0.0),
    ("likelihood", table(kept=[0.25, 0.75]), 0.5),
    ("noise", table(noise=[0.0, 0.0, 0.1, 0.2], gain=[0.5, 0.3, 0.4, 0.2]), 0.75),
    ("noise", table(noise=[0.0, 0.1, 0.2], gain=[0.4, 0.5, -0.1]), 0.5),
    ("noise", table(noise=[0.0, 0.1], gain=[-0.4, 0.5]), 0.0),
    ("finite_data", table(labels=[5, 5, 10], gap=[0.0, 0.0, 0.0], memorised_gap=[0.3, 0.3, 0.1]), 1.0),
    ("finite_data", table(labels=[5, 5, 10], gap=[0.4, 0.2, 0.1], memorised_gap=[0.3, 0.3, 0.1]), 0.0),
    ("finite_data", table(labels=[5, 5, 10], gap=[0.1, 0.2, 0.05], memorised_gap=[0.3, 0.3, 0.1]), 0.5),
    ("finite_reference", table(samples=[4, 4, 16], apart=[0.5, 0.7, 0.0]), 0.7),
    ("intransitive", table(moved=[0.0, 0.0]), 1.0),
    ("intransitive", table(moved=[1.0, 0.5]), 0.25),
    ("neglected_best", table(before=[0.5, 0.0], after=[0.75, 1.0]), 0.75),
    ("neglected_best", table(before=[0.5], after=[0.25]), 0.0),
    ("many_actions", table(actions=[2, 16, 32], efficiency=[0.8, 0.5, 0.3]), 0.5),
    ("many_actions", table(actions=[2, 16], efficiency=[0.5, 0.9]), 1.0),
    ("many_actions", table(actions=[2, 16], efficiency=[-0.5, 0.9]), 0.0),
    ("regret", table(efficiency=[1.0, 0.5, -3.0]), 0.5),
]


@pytest.mark.parametrize(("name", "frame", "expected"), HAND_MADE)
def test_scores_of_hand_made_tables(name: str, frame: pd.DataFrame, expected: float) -> None:
    assert diagnostics.score(diagnostics.get(name), frame).value == pytest.approx(expected, abs=1e-12)


def test_every_diagnostic_has_hand_made_tables() -> None:
    assert {name for name, _, _ in HAND_MADE} == set(DIAGNOSTICS)


@pytest.mark.parametrize("diagnostic", DIAGNOSTICS.values(), ids=lambda diagnostic: diagnostic.id)
def test_it_says_what_it_is(diagnostic: Diagnostic) -> None:
    assert "1: " in diagnostic.formula and "0: " in diagnostic.formula
    assert len(diagnostic.why) > 80
    assert all(
        fact in {*(f"F{i}" for i in (*range(1, 12),)), *(f"C{i}" for i in range(1, 10))} for fact in diagnostic.facts
    )
    assert len(diagnostic.label) <= 18


def test_unsolved_problems_are_left_out_and_too_many_leave_no_score() -> None:
    diagnostic = diagnostics.get("regret")
    few = table(efficiency=[0.5] * 19 + [0.0], status=["converged"] * 19 + ["unsolved"])
    answer = diagnostics.score(diagnostic, few)
    assert (answer.value, answer.problems, answer.unsolved) == (0.5, 20, 1)
    many = table(efficiency=[0.5, 0.0], status=["converged", "unsolved"])
    answer = diagnostics.score(diagnostic, many)
    assert math.isnan(answer.value)
    assert answer.reason == "1 of 2 problems unsolved"


def test_a_table_that_lost_its_worlds_gives_no_score() -> None:
    assert math.isnan(diagnostics.score(diagnostics.get("determinism"), certain(1.0, 2.0).iloc[:1]).value)
    for diagnostic in DIAGNOSTICS.values():
        frame = next(frame for name, frame, _ in HAND_MADE if name == diagnostic.id)
        assert math.isnan(diagnostic.score(frame.iloc[:0])), diagnostic.id


def test_intervals_are_of_data_sets() -> None:
    """The standard error of a mean of 64 independent numbers, by hand."""
    rng = np.random.default_rng(0)
    apart = rng.uniform(size=64)
    answer = diagnostics.score(diagnostics.get("finite_reference"), table(samples=4, data_set=range(64), apart=apart))
    half = 1.96 * apart.std(ddof=1) / 8
    assert answer.value == pytest.approx(1 - apart.mean())
    assert (answer.high - answer.low) / 2 == pytest.approx(half, rel=0.15)
    assert math.isnan(diagnostics.score(diagnostics.get("regret"), table(efficiency=[0.5, 0.6])).low)


# --- probes against facts --------------------------------------------------------------------------------------------


def value(name: str, label: str) -> float:
    _, answer = diagnostics.measure(diagnostics.get(name), objectives.parse(label))
    assert not answer.reason
    return answer.value


@pytest.mark.parametrize("beta", [0.01, 1.0, 10.0])
def test_dpo_is_not_regularised_at_determinism_whatever_beta(beta: float) -> None:
    """F2."""
    assert value("determinism", f"dpo(beta={beta})") == 0.0


def test_ipo_at_determinism_is_least_squares() -> None:
    """F4: on the complete graph of four actions the log-ratios are row means of (2p - 1)/(2 tau), worked out here with numpy."""
    reference = np.array([0.1, 0.2, 0.3, 0.4])
    signs = np.sign(np.arange(4)[None, :] - np.arange(4)[:, None])

    def distance(p: float) -> float:
        h = (signs * (2 * p - 1) / 0.2).mean(1)
        return float(np.log((reference * np.exp(h)).sum()) - reference @ h)

    assert value("determinism", "ipo(tau=0.1)") == pytest.approx(distance(0.9) / distance(1.0), rel=1e-9)


def test_the_strength_acts_at_certain_labels_but_not_dpos() -> None:
    """C2."""
    assert value("strength", "dpo") == 0.0
    assert value("strength", "maxpo") > 0.95
    assert value("strength", "ipo") > 0.99
    assert value("strength", "dpo+forward_kl") > 0.95


def test_the_other_direction_of_strength_is_known() -> None:
    """orpo's lam lets go; its probe runs from large to small."""
    frame, _ = diagnostics.measure(diagnostics.get("strength"), objectives.get("orpo"))
    assert frame is not None
    assert frame.sort_values("order")["strength"].iloc[0] == pytest.approx(100.0)


def test_mass_of_the_unseen_is_that_of_the_worked_example() -> None:
    """F5: from (.2, .5, .3) IPO reaches (.877, .015, .108), so .108 of .3 is kept; F6: MaxPO keeps all."""
    frame, _ = diagnostics.measure(diagnostics.get("off_support"), objectives.get("ipo", tau=0.1))
    assert frame is not None
    assert frame.set_index("world").loc["partial_support/0", "kept"] == pytest.approx(0.108 / 0.3, abs=2e-3)
    for label in ("maxpo(beta=0.02)", "maxpo(beta=0.5)", "dpo+forward_kl"):
        assert value("off_support", label) == pytest.approx(1.0, abs=1e-7)


def test_shared_features_leak_and_forward_kl_holds_most() -> None:
    """F7: by a search over the two parameters of one world with scipy, independent of the solver."""
    frame, _ = diagnostics.measure(diagnostics.get("leak"), objectives.get("maxpo", beta=0.1))
    assert frame is not None
    features = np.array([[1, 0], [0, 1], [1, 0], [0, 0]], dtype=float)
    logits = features @ [0.0, 0.5]
    reference = np.exp(logits) / np.exp(logits).sum()

    def policy(theta: np.ndarray) -> np.ndarray:
        weights = reference * np.exp(features @ theta)
        return weights / weights.sum()

    def loss(theta: np.ndarray) -> float:
        pi = policy(theta)
        first = pi[0] / (pi[0] + pi[1])
        return float(-(0.9 * first + 0.1 * (1 - first)) - 0.1 * reference @ np.log(pi))

    pi = policy(minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-14}).x)
    unseen = pi[2:].sum() / reference[2:].sum()
    expected = min(unseen, 1 / unseen)
    assert frame.set_index("world").loc["shared_features/0", "kept"] == pytest.approx(expected, abs=1e-6)
    assert value("leak", "dpo+forward_kl") > value("leak", "dpo") + 0.2


def test_length_is_left_alone_by_the_rlhf_optimum_and_shifted_by_a_charge_for_tokens() -> None:
    """F1, F2: dpo. rdpo's optimum is dpo's with the reward r - alpha length, by its documentation; here with tilted masses."""
    assert value("length_bias", "dpo(beta=0.5)") == pytest.approx(1.0, abs=1e-8)
    frame, _ = diagnostics.measure(diagnostics.get("length_bias"), objectives.get("rdpo", beta=0.5, alpha=0.2))
    assert frame is not None
    world = worlds.get("sequences/0")  # all responses are worth the same
    reference, lengths = world.truth.reference[0].numpy(), world.lengths.numpy()
    tilted = reference * np.exp(-0.2 * lengths / 0.5)
    before, after = reference @ lengths, tilted @ lengths / tilted.sum()
    expected = (after - before) / (before - lengths.min())
    assert frame.set_index("world").loc["sequences/0", "shift"] == pytest.approx(expected, rel=1e-6)


def test_one_answer_or_a_continuum() -> None:
    """F5 against F6."""
    assert value("uniqueness", "maxpo") == pytest.approx(1.0, abs=1e-5)
    assert value("uniqueness", "ipo") < 0.1
    assert value("uniqueness", "dpo") < 0.1


def test_dpo_is_the_rlhf_optimum_under_bradley_terry() -> None:
    """F2 with F1; IPO, MaxPO and SFT are not."""
    assert value("regret", "dpo(beta=0.5)") == pytest.approx(1.0, abs=1e-9)
    assert value("many_actions", "dpo(beta=0.5)") == pytest.approx(1.0, abs=1e-9)
    assert value("regret", "sft") < value("regret", "maxpo") < value("regret", "ipo") < 0.999


def test_cycles_cancel_in_least_squares() -> None:
    assert value("intransitive", "ipo") == pytest.approx(1.0, abs=1e-9)
    assert value("intransitive", "dpo") == pytest.approx(1.0, abs=1e-9)
    assert value("intransitive", "simpo") < 0.95  # has no reference to stay at


def test_samples_of_the_reference_matter_to_those_who_take_them() -> None:
    """F11: dpo takes none, and so has no score."""
    frame, answer = diagnostics.measure(diagnostics.get("finite_reference"), objectives.get("dpo"))
    assert frame is None and math.isnan(answer.value) and not answer.applies
    assert answer.reason == "takes no reference samples"
    frame, answer = diagnostics.measure(diagnostics.get("finite_reference"), objectives.get("maxpo"))
    assert frame is not None
    apart = frame.groupby("samples")["apart"].mean()
    assert apart.is_monotonic_decreasing
    assert apart[4] / apart[1024] == pytest.approx(16.0, rel=0.4)  # the square root of 256 times the samples
    assert answer.low < answer.value < answer.high


def test_weaker_penalties_find_the_neglected_and_overfit_more() -> None:
    assert value("neglected_best", "dpo(beta=0.1)") > value("neglected_best", "dpo(beta=1)") + 0.2
    assert value("finite_data", "ipo(tau=1)") > value("finite_data", "ipo(tau=0.1)") + 0.2


def test_a_score_is_a_function_of_the_stored_table() -> None:
    for name in ("off_support", "uniqueness", "determinism", "strength"):
        diagnostic = diagnostics.get(name)
        frame, answer = diagnostics.measure(diagnostic, objectives.get("dpo"))
        assert frame is not None
        stored = io.BytesIO()
        frame.to_parquet(stored)
        assert diagnostics.score(diagnostic, pd.read_parquet(stored)) == answer or math.isnan(answer.low)
        assert diagnostics.score(diagnostic, pd.read_parquet(stored)).value == answer.value


def test_an_objective_that_needs_what_a_bandit_lacks_has_no_score_and_a_reason() -> None:
    for label, name, reason in (
        ("dpo+pretraining", "regret", "needs pretraining, which a bandit does not have"),
        ("sft", "strength", "has no hyper-parameter that is its strength"),
        ("mrpo", "off_support", "weights names 2 references"),
    ):
        frame, answer = diagnostics.measure(diagnostics.get(name), objectives.parse(label))
        assert frame is None
        assert math.isnan(answer.value)
        assert reason in answer.reason


def test_all_see_the_same_labels_where_labels_are_enough() -> None:
    """infonca with two candidates and a one-hot target is dpo (F8), though a bandit could show it the rewards."""
    assert value("determinism", "infonca(beta=0.1)") == value("determinism", "dpo(beta=0.1)") == 0.0
    assert value("regret", "exo_rw") == pytest.approx(1.0, abs=1e-6)  # needs rewards, and is told them


def test_worlds_of_equal_shape_are_solved_together_as_they_are_alone() -> None:
    cases = [
        Case(name, worlds.get(name).problem, worlds.get(name).truth)
        for name in ("partial_support/0", "three_actions/1", "partial_support/7", "partial_support/1")
    ]
    objective = objectives.get("maxpo")
    together = list(answers(objective, cases))
    for answer, case in zip(together, cases, strict=True):
        (alone,) = answers(objective, [case])
        assert answer.case is case
        torch.testing.assert_close(answer.log_policy, alone.log_policy, rtol=0, atol=1e-8)
        assert list(answer.status) == list(alone.status)


def broken(loss: object) -> Objective:
    term = Term("mine", "pairs", loss)  # type: ignore[arg-type]
    return Objective((Part("mine", "mine()", {}, (term,), lambda: broken(loss)),))


def test_a_broken_loss_is_named_with_world_objective_and_cell() -> None:
    with pytest.raises(
        ObjectiveError, match=r"^world partial_support/0: mine: a loss must return one value per example"
    ):
        diagnostics.measure(diagnostics.get("off_support"), broken(lambda batch: batch.chosen_logps.mean()))

    def spoilt(batch: objectives.PairBatch) -> torch.Tensor:
        return torch.where(batch.ref_chosen_logps < -2.5, float("nan"), batch.rejected_logps)

    with pytest.raises(
        BanditError,
        match=r"^world neglected_best/1: mine: the loss mine is nan at the start, context 0, pair \(0, 1\)$",
    ):
        diagnostics.measure(diagnostics.get("neglected_best"), broken(spoilt))


def test_unknown_diagnostic() -> None:
    with pytest.raises(BanditError, match="unknown diagnostic 'determinsm'; did you mean 'determinism'"):
        diagnostics.get("determinsm")


def test_diagnostics_and_strengths_are_solved_together_as_they_are_alone() -> None:
    chosen, strengths = [diagnostics.get(name) for name in ("finite_data", "strength", "uniqueness", "leak")], [0.05, 2]
    for label in ("ipo", "simpo"):
        objective = objectives.get(label)
        together = diagnostics.measure_at(chosen, objective, strengths, interval=False)
        assert [len(of) for of in together] == [2, 1, 2, 2]
        for diagnostic, of in zip(chosen, together, strict=True):
            for strength, (_, found) in zip(strengths, of, strict=False):
                _, alone = diagnostics.measure(diagnostic, objective.with_strength(strength), interval=False)
                assert found.value == pytest.approx(alone.value, abs=1e-7)
                assert (found.problems, found.unsolved) == (alone.problems, alone.unsolved)

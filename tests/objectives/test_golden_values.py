"""Every objective against values made without this code base: the worked numbers, and mpmath at 60 digits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from mpmath import exp, log, mpf
from oracles import objective_values as oracle
from oracles.objective_values import PAIR_LOSSES, WORKED, Pair

import objectives
from objectives import CandidateBatch, ObjectiveError, PairBatch, UnpairedBatch

# Made with an independent numpy program: log-probs (-9, -14.5), reference (-11, -13.8), lengths 6 and 9.
WORKED_NUMBERS = {
    "dpo(beta=0.5)": 0.230509,
    "cdpo(beta=0.5, label_smoothing=0.1)": 0.365509,
    "robust_dpo(beta=0.5, label_smoothing=0.1)": 0.061759,
    "ipo(tau=0.5)": 2.89,
    "ipo(tau=0.5, aggregation='mean')": 0.346790,
    "exo_pref(beta=0.5, label_smoothing=0.001)": 0.914463,
    "nca(beta=0.5)": 1.236584,
    "sppo(beta=0.5)": 1.09,
    "apo_zero(beta=0.5)": 0.682324,
    "apo_down(beta=0.5)": 0.936929,
    "discopop(beta=0.5, temperature=0.05)": 0.259240,
    "simpo(beta=2, gamma=1)": 1.155821,
    "orpo(lam=0.1)": 1.562519,
    "chipo(beta=0.5)": 0.008227,
    "rpo(beta=0.5, eta=0.005)": 0.253009,
    "dpop(beta=0.5, lam=5)": 0.230509,
    "minor_dpo(beta=0.5)": 0.313262,
    "fdpo(beta=0.5, divergence='forward_kl')": 0.329978,
    "fdpo(beta=0.5, divergence='js')": 0.478575,
    "fdpo(beta=0.5, divergence='alpha', alpha=0.5)": 0.299751,
}
# Objectives whose inputs are not whole responses of pairs have tests of their own below.
OTHER_INPUTS = {"exo_rw", "wpo", "tdpo", "ld_dpo", "sampo", "mrpo", "forward_kl", "pretraining", "reverse_kl"}


def row(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def batch_of(*pairs: Pair) -> PairBatch:
    return PairBatch(
        chosen_logps=row(*(p.w for p in pairs)),
        rejected_logps=row(*(p.l for p in pairs)),
        ref_chosen_logps=row(*(p.ref_w for p in pairs)),
        ref_rejected_logps=row(*(p.ref_l for p in pairs)),
        chosen_lengths=row(*(p.len_w for p in pairs)),
        rejected_lengths=row(*(p.len_l for p in pairs)),
        win_rates=torch.full((len(pairs),), oracle.WIN_RATE, dtype=torch.float64),
    )


def random_pairs(count: int, spread: float, seed: int) -> list[Pair]:
    """Policies within ``spread`` nats of their reference, in both directions."""
    generator = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        ref_w, ref_l = generator.uniform(-30, -spread - 1, 2)
        drift_w, drift_l = generator.uniform(-spread, spread, 2)
        len_w, len_l = generator.integers(3, 20, 2)
        pairs.append(Pair(ref_w + drift_w, ref_l + drift_l, ref_w, ref_l, int(len_w), int(len_l)))
    return pairs


@pytest.mark.parametrize(("label", "expected"), WORKED_NUMBERS.items())
def test_worked_numbers(label: str, expected: float) -> None:
    assert objectives.parse(label).pair_losses(batch_of(WORKED)).item() == pytest.approx(expected, abs=6e-7)


def test_kto_worked_numbers() -> None:
    batch = UnpairedBatch(
        logps=row(-9.0, -14.5),
        ref_logps=row(-11.0, -13.8),
        desirable=torch.tensor([True, False]),
        mismatched_logps=row(-8.0, -9.0),
        ref_mismatched_logps=row(-8.5, -9.1),
    )  # z0 = (.5 + .1)/2 = .3
    losses = objectives.get("kto", beta=0.5).terms[0].loss(batch)
    assert losses.tolist() == pytest.approx([0.299433, 0.377541], abs=6e-7)


@pytest.mark.parametrize("label", PAIR_LOSSES)
def test_against_mpmath(label: str) -> None:
    pairs = [WORKED, *random_pairs(8, 0.5, seed=1), *random_pairs(8, 4.0, seed=2)]
    objective = objectives.parse(label)
    # One pair a batch: of the batch-coupled ones, means over several pairs have their own tests.
    got = torch.stack([objective.pair_losses(batch_of(pair))[0] for pair in pairs])
    expected = row(*(float(PAIR_LOSSES[label](pair)) for pair in pairs))
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


def test_every_objective_has_a_golden_value() -> None:
    covered = {objectives.parse(label).parts[0].name for label in PAIR_LOSSES}
    assert covered | OTHER_INPUTS == set(objectives.names())


# --- candidates ------------------------------------------------------------------------------------------------------

RATIOS = [[0.4, -1.2, 0.1], [2.0, 0.3, -0.5]]
REWARDS = [[1.0, 0.2, -0.4], [0.0, 0.7, 0.1]]
CANDIDATES = CandidateBatch(
    logps=torch.tensor(RATIOS, dtype=torch.float64) - 7.0,
    ref_logps=torch.full((2, 3), -7.0, dtype=torch.float64),
    rewards=torch.tensor(REWARDS, dtype=torch.float64),
)


def test_exo_rw() -> None:
    losses = objectives.get("exo_rw", beta_policy=0.5, beta_reward=0.25).terms[0].loss(CANDIDATES)
    for i in range(2):
        q = oracle.softmax([mpf(ratio) / 2 for ratio in RATIOS[i]])
        p = oracle.softmax([mpf(reward) * 4 for reward in REWARDS[i]])
        assert losses[i].item() == pytest.approx(
            float(sum(a * log(a / b) for a, b in zip(q, p, strict=True))), rel=1e-12
        )


def test_infonca_and_nca() -> None:
    infonca = objectives.get("infonca", beta=0.5, alpha=0.25).terms[0].loss(CANDIDATES)
    nca = objectives.get("nca", beta=0.5, alpha=0.25).terms[0].loss(CANDIDATES)
    for i in range(2):
        ratios = [exp(mpf(ratio)) for ratio in RATIOS[i]]
        p = oracle.softmax([mpf(reward) * 4 for reward in REWARDS[i]])
        q = oracle.softmax([mpf(ratio) / 2 for ratio in RATIOS[i]])
        cross_entropy = -sum(a * log(b) for a, b in zip(p, q, strict=True))
        assert infonca[i].item() == pytest.approx(float(cross_entropy), rel=1e-12)
        assert nca[i].item() == pytest.approx(float(oracle.nca(ratios, p, 0.5)), rel=1e-12)


def test_a_pair_has_no_rewards() -> None:
    with pytest.raises(ObjectiveError, match=r"exo_rw needs CandidateBatch\.rewards: a score of every candidate"):
        objectives.get("exo_rw").pair_losses(batch_of(WORKED))


# --- unpaired labels -------------------------------------------------------------------------------------------------


def test_bco_reference_point_is_the_weighted_mean_reward() -> None:
    """Three examples of implicit reward 1, -1, 3 with weights .25, .5, .25: delta = .5; losses L(.5), L(1.5), L(2.5)."""
    batch = UnpairedBatch(
        logps=row(-8.0, -12.0, -4.0),
        ref_logps=row(-10.0, -10.0, -10.0),
        desirable=torch.tensor([True, False, True]),
        weights=row(0.25, 0.5, 0.25),
    )
    losses = objectives.get("bco", beta=0.5).terms[0].loss(batch)
    assert losses.tolist() == pytest.approx([logistic(0.5), logistic(1.5), logistic(2.5)], rel=1e-12)


@pytest.mark.parametrize(("drift", "z0"), [(0.8, 0.8), (-0.8, 0.0)])
def test_kto_reference_point_is_never_negative(drift: float, z0: float) -> None:
    batch = UnpairedBatch(
        logps=row(-9.0),
        ref_logps=row(-10.0),
        desirable=torch.tensor([True]),
        mismatched_logps=row(-5.0 + drift),
        ref_mismatched_logps=row(-5.0),
    )
    objective = objectives.get("kto", beta=1.0, desirable_weight=3.0)
    expected = 3.0 * (1 - 1 / (1 + math.exp(-(1.0 - z0))))
    assert objective.terms[0].loss(batch).item() == pytest.approx(expected, rel=1e-12)


def test_kto_needs_mismatched_pairs_or_a_number() -> None:
    with pytest.raises(ObjectiveError, match=r"kto needs UnpairedBatch\.mismatched_logps: .*other examples' prompts"):
        objectives.get("kto").pair_losses(batch_of(WORKED))


def test_pairs_as_unpaired_labels_keep_their_weights() -> None:
    """Expectation over pairs of the sum of both losses, whether by value() or by pair_losses()."""
    pairs = batch_of(*random_pairs(5, 2.0, seed=3))
    pairs = PairBatch(**pairs.tensors() | {"weights": row(0.1, 0.2, 0.3, 0.15, 0.25)})
    for label in ("bco(beta=0.5)", "kto(beta=0.5, z0=0.1)", "nca(beta=0.5)"):
        objective = objectives.parse(label)
        value = objective.value({"pairs": pairs})
        assert pairs.weights is not None
        torch.testing.assert_close(value, (pairs.weights * objective.pair_losses(pairs)).sum(), rtol=1e-13, atol=0)


# --- tokens ----------------------------------------------------------------------------------------------------------

TOKENS = PairBatch(
    chosen_logps=row(-6.0),
    rejected_logps=row(-3.0),
    ref_chosen_logps=row(-7.0),
    ref_rejected_logps=row(-2.5),
    chosen_token_logps=row(-1.0, -2.0, -3.0, -9.0).unsqueeze(0),
    ref_chosen_token_logps=row(-1.5, -3.0, -2.5, -9.0).unsqueeze(0),
    chosen_mask=row(1, 1, 1, 0).unsqueeze(0),
    rejected_token_logps=row(-1.0, -2.0).unsqueeze(0),
    ref_rejected_token_logps=row(-0.5, -2.0).unsqueeze(0),
    rejected_mask=row(1, 1).unsqueeze(0),
    chosen_log_collisions=row(-0.5, -0.5, -1.0, 0.0).unsqueeze(0),
    rejected_log_collisions=row(-0.5, -1.0).unsqueeze(0),
    chosen_token_kl=row(0.7),
    rejected_token_kl=row(1.9),
)


def logistic(z: float) -> float:
    return math.log1p(math.exp(-z))


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        # chosen ratios per token .5, 1, -.5; rejected -.5, 0; two tokens in common: 1.5 + alpha (-.5) - (-.5)
        ("ld_dpo(beta=1, alpha=0.3)", logistic(1.85)),
        ("ld_dpo(beta=1, alpha=0)", logistic(2.0)),
        ("ld_dpo(beta=1, alpha=1)", logistic(1.5)),
        ("sampo(beta=1, selection='expected')", logistic(2 / 3 + 0.5)),
        # D = 1 + .5
        ("tdpo(beta=1, alpha=0.5)", logistic(1.5 - 0.5 * 1.2)),
        ("wpo(beta=1, alignment='none')", math.exp(-2.0 - 1.5) * logistic(1.5)),
        # (-.5 - 1.5 - 2)/3 + (-.5 - 1)/2
        ("wpo(beta=1)", math.exp(-4 / 3 - 0.75) * logistic(1.5)),
    ],
)
def test_token_losses_by_hand(label: str, expected: float) -> None:
    assert objectives.parse(label).pair_losses(TOKENS).item() == pytest.approx(expected, rel=1e-12)


def test_wpo_against_mpmath() -> None:
    u_w = oracle.aligned_weight([-1.0, -2.0, -3.0], [-0.5, -0.5, -1.0])
    u_l = oracle.aligned_weight([-1.0, -2.0], [-0.5, -1.0])
    expected = min(mpf(1), u_w * u_l) * log(1 + exp(mpf("-1.5")))
    assert objectives.get("wpo", beta=1.0).pair_losses(TOKENS).item() == pytest.approx(float(expected), rel=1e-12)


def test_wpo_weight_is_at_most_one() -> None:
    likely = PairBatch(**TOKENS.tensors() | {"chosen_log_collisions": row(-9, -9, -9, 0).unsqueeze(0)})
    assert objectives.get("wpo", beta=1.0).pair_losses(likely).item() == pytest.approx(logistic(1.5), rel=1e-12)


def test_sampo_draws_as_many_tokens_as_the_shorter_response_has() -> None:
    """Two of the chosen response's ratios .5, 1, -.5 and both of the rejected's: margins 1.5 + .5, .5 - .5 + .5 or 1 - .5 + .5."""
    torch.manual_seed(0)
    objective = objectives.get("sampo", beta=1.0)
    seen = {round(-math.log(math.expm1(objective.pair_losses(TOKENS).item())), 9) for _ in range(60)}
    assert seen == {2.0, 0.5, 1.0}


def test_sampo_takes_the_batchs_own_draw() -> None:
    drawn = PairBatch(
        **TOKENS.tensors() | {"chosen_keep": row(0, 1, 1, 1).unsqueeze(0), "rejected_keep": row(1, 1).unsqueeze(0)}
    )
    assert objectives.get("sampo", beta=1.0).pair_losses(drawn).item() == pytest.approx(logistic(0.5 + 0.5), rel=1e-12)


def test_token_losses_say_what_is_missing() -> None:
    for name, field in {
        "ld_dpo": "chosen_mask",
        "wpo": "chosen_mask",
        "tdpo": "rejected_token_kl",
        "mrpo": "chosen_reference_logps",
    }.items():
        with pytest.raises(ObjectiveError, match=rf"{name} needs PairBatch\.{field}: .*; it was not given"):
            objectives.get(name).pair_losses(batch_of(WORKED))


# --- several references, batch-coupled means -------------------------------------------------------------------------


def test_mrpo_is_dpo_against_the_harmonic_mean() -> None:
    chosen, rejected = (-10.0, -10.5), (-12.0, -9.0)
    batch = PairBatch(
        chosen_logps=row(-9.5),
        rejected_logps=row(-12.5),
        chosen_reference_logps=row(*chosen).unsqueeze(0),
        rejected_reference_logps=row(*rejected).unsqueeze(0),
    )

    def harmonic(pair: tuple[float, float]) -> mpf:
        return 1 / (mpf("0.3") / exp(mpf(pair[0])) + mpf("0.7") / exp(mpf(pair[1])))

    objective = objectives.get("mrpo", beta=0.5, weights=(0.3, 0.7), clip=None)
    odds = (exp(mpf("-9.5")) / harmonic(chosen)) / (exp(mpf("-12.5")) / harmonic(rejected))
    assert objective.pair_losses(batch).item() == pytest.approx(float(log(1 + odds ** mpf("-0.5"))), rel=1e-12)
    # With clip .1, log-probs within 10 % of the first reference's: -10.5 stays, -9 is raised no further than -10.8.
    odds = (exp(mpf("-9.5")) / harmonic(chosen)) / (exp(mpf("-12.5")) / harmonic((-12.0, -10.8)))
    clipped = objectives.get("mrpo", beta=0.5, weights=(0.3, 0.7), clip=0.1).pair_losses(batch)
    assert clipped.item() == pytest.approx(float(log(1 + odds ** mpf("-0.5"))), rel=1e-12)
    first = objectives.get("mrpo", beta=0.5, clip=0).pair_losses(batch).item()
    assert first == pytest.approx(logistic(0.5 * (-9.5 + 10.0 - (-12.5 + 12.0))), rel=1e-12)
    with pytest.raises(ObjectiveError, match="mrpo: weights names 3 references, the batch has 2"):
        objectives.get("mrpo", weights=(0.2, 0.3, 0.5)).pair_losses(batch)


def pairs_with_margins(policy: list[float], reference: list[float], weights: list[float] | None = None) -> PairBatch:
    return PairBatch(
        chosen_logps=row(*policy) - 20.0,
        rejected_logps=torch.full((len(policy),), -20.0, dtype=torch.float64),
        ref_chosen_logps=row(*reference) - 20.0,
        ref_rejected_logps=torch.full((len(policy),), -20.0, dtype=torch.float64),
        weights=None if weights is None else row(*weights),
    )


def test_aot_compares_sorted_margins() -> None:
    batch = pairs_with_margins([3.0, -1.0, 0.5], [0.2, 2.0, -4.0])
    losses = objectives.get("aot", beta=1.0).pair_losses(batch)
    # ranks: -1 with -4, .5 with .2, 3 with 2
    assert losses.tolist() == pytest.approx([logistic(1.0), logistic(3.0), logistic(0.3)], rel=1e-12)


def test_aot_with_weights_equals_aot_with_repeated_pairs() -> None:
    policy, reference, counts = [3.0, -1.0, 0.5, 0.7], [0.2, 2.0, -4.0, 1.0], [3, 1, 4, 2]
    repeated = pairs_with_margins(
        [m for m, c in zip(policy, counts, strict=True) for _ in range(c)],
        [m for m, c in zip(reference, counts, strict=True) for _ in range(c)],
    )
    weighted = pairs_with_margins(policy, reference, [c / 10 for c in counts])
    objective = objectives.get("aot", beta=1.0)
    torch.testing.assert_close(
        objective.value({"pairs": weighted}), objective.value({"pairs": repeated}), rtol=1e-12, atol=0
    )


def test_beta_dpo_adapts_beta_to_the_weighted_mean_margin() -> None:
    batch = pairs_with_margins([3.0, -1.0], [0.0, 0.0], [0.25, 0.75])  # mean margin 0
    losses = objectives.get("beta_dpo", beta=0.5, alpha=0.5, threshold=-1.0).pair_losses(batch)
    assert losses.tolist() == pytest.approx([logistic(0.75 * 3.0), logistic(-0.75)], rel=1e-12)
    floor = objectives.get("beta_dpo", beta=0.5, alpha=0.5, threshold=9.0).pair_losses(batch)
    assert floor.tolist() == pytest.approx([logistic(0.003), logistic(-0.001)], rel=1e-12)


def test_beta_dpo_filter_weighs_pairs_by_a_gaussian() -> None:
    batch = pairs_with_margins([0.0, 2.0], [0.0, 0.0])
    tail = math.exp(-0.5)
    emphasis = [2 / (1 + tail), 2 * tail / (1 + tail)]
    mean = 2.0 * emphasis[1] / 2
    losses = objectives.get("beta_dpo", beta=0.5, alpha=0.5, width=2.0).pair_losses(batch)
    beta = 0.5 * (1 + 0.5 * mean)
    expected = [emphasis[0] * math.log(2), emphasis[1] * logistic(2 * beta)]
    assert losses.tolist() == pytest.approx(expected, rel=1e-12)

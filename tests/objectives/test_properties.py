"""What must hold for every objective on any data: finite at the extremes, invariant where the mathematics is, loud on bad input."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import objectives
from objectives import Batch, CandidateBatch, ObjectiveError, PairBatch, UnpairedBatch
from objectives.checks import random_batch

PAIR_LABELS = [
    *(name for name in objectives.names() if "pairs" in objectives.get(name).needs),
    "ipo(aggregation='mean')",
    "maxpo(temperature=20)",
    "sppo(target='estimated')",
    "maxpo(reference_adjusted=True, length_normalized=True)",
    "slic_hf(target='chosen')",
    "chipo(clip=5)",
    "chipo(beta=10)",
    "rpo(aggregation='mean')",
    *(f"fdpo(divergence='{divergence}')" for divergence in ("forward_kl", "js", "alpha")),
    *(f"gpo(beta=10, link='{link}')" for link in ("hinge", "square", "exponential", "truncated_square", "savage")),
    "discopop(beta=10, temperature=2)",
    "alphapo(alpha=-0.5)",
    "nca",
    "infonca(beta=10)",
    "bco",
    "kto(z0=0)",
    "sampo(selection='expected')",
    "wpo(alignment='none')",
    "beta_dpo(width=3)",
]
LOGP = st.one_of(st.floats(-1e4, 0.0), st.sampled_from([0.0, -1e-8, -1e4]))


@pytest.mark.parametrize("label", PAIR_LABELS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    logps=st.lists(st.tuples(LOGP, LOGP, LOGP, LOGP), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_losses_and_gradients_are_finite(
    label: str, logps: list[tuple[float, float, float, float]], dtype: torch.dtype
) -> None:
    template = random_batch("pairs", len(logps), torch.Generator().manual_seed(0), dtype)
    columns = torch.tensor(logps, dtype=dtype).T
    names = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
    batch = replace(template, **dict(zip(names, columns, strict=True)))
    leaves = {name: getattr(batch, name).clone().requires_grad_() for name in names[:2]}
    losses = objectives.parse(label).pair_losses(replace(batch, **leaves))
    assert losses.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert bool(torch.isfinite(losses).all())
    if losses.requires_grad:
        gradients = torch.autograd.grad(losses.sum(), list(leaves.values()), materialize_grads=True)
        assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


def shifted(batch: PairBatch, names: tuple[str, ...], by: float) -> PairBatch:
    return replace(batch, **{name: getattr(batch, name) + by for name in names})


@pytest.mark.parametrize(
    "label", ["dpo", "cdpo", "ipo", "exo_pref", "gpo(link='savage')", "infonca", "aot", "beta_dpo"]
)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(shift=st.floats(-500.0, 0.0), seed=st.integers(0, 10_000))
def test_margins_do_not_see_a_constant_added_to_both_responses(label: str, shift: float, seed: int) -> None:
    batch = random_batch("pairs", 5, torch.Generator().manual_seed(seed))
    assert isinstance(batch, PairBatch)
    objective = objectives.parse(label)
    moved = shifted(batch, ("chosen_logps", "rejected_logps"), shift)
    torch.testing.assert_close(objective.pair_losses(moved), objective.pair_losses(batch), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("label", [label for label in PAIR_LABELS if "ref_logps" in objectives.parse(label).needs])
@settings(max_examples=6, deadline=None, derandomize=True)
@given(shift=st.floats(-500.0, 0.0), seed=st.integers(0, 10_000))
def test_only_ratios_to_the_reference_count(label: str, shift: float, seed: int) -> None:
    """The same shift of policy and reference on the chosen response changes nothing, but for likelihood terms of their own."""
    batch = random_batch("pairs", 5, torch.Generator().manual_seed(seed))
    assert isinstance(batch, PairBatch)
    objective = objectives.parse(label)
    reference_terms = [t for t in objective.terms if "ref_logps" in t.needs and t.source == "pairs" and t.name != "aot"]
    moved = shifted(batch, ("chosen_logps", "ref_chosen_logps"), shift)
    for term in reference_terms:
        torch.testing.assert_close(term.loss(moved), term.loss(batch), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("label", PAIR_LABELS)
def test_repeating_the_batch_changes_no_mean(label: str) -> None:
    """Means over a batch twice as long with the same content, and over doubled weights, are the same: batch-coupled ones too."""
    batch = random_batch("pairs", 6, torch.Generator().manual_seed(1))
    assert isinstance(batch, PairBatch)
    objective = objectives.parse(label)
    twice = PairBatch(**{name: torch.cat([tensor, tensor]) for name, tensor in batch.tensors().items()})
    uniform = replace(batch, weights=torch.full((6,), 1 / 6, dtype=torch.float64))
    expected = objective.pair_losses(batch).mean()
    torch.testing.assert_close(objective.pair_losses(twice).mean(), expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(objective.pair_losses(uniform).mean(), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("label", PAIR_LABELS)
def test_the_value_is_the_mean_of_the_pairs_losses(label: str) -> None:
    """For objectives whose terms are all on pairs: also where several terms share a name, or pairs stand for another source."""
    objective = objectives.parse(label)
    batch = random_batch("pairs", 6, torch.Generator().manual_seed(1))
    assert isinstance(batch, PairBatch)
    samples = random_batch("reference_samples", 6, torch.Generator().manual_seed(2))
    terms = objective.term_values({"pairs": batch, "reference_samples": samples})
    on_pairs = sum(value for name, value in terms.items() if name != "forward_kl")
    torch.testing.assert_close(on_pairs, objective.pair_losses(batch).mean(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("label", PAIR_LABELS)
def test_a_batch_of_problems_gives_what_each_problem_gives(label: str) -> None:
    one, other = (random_batch("pairs", 5, torch.Generator().manual_seed(seed)) for seed in (2, 3))
    weights = torch.rand(2, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    weights = weights / weights.sum(-1, keepdim=True)
    both = PairBatch(
        weights=weights,
        **{name: torch.stack([tensor, other.tensors()[name]]) for name, tensor in one.tensors().items()},
    )
    together = objectives.parse(label).pair_losses(both)
    for i, single in enumerate((one, other)):
        assert isinstance(single, PairBatch)
        alone = objectives.parse(label).pair_losses(replace(single, weights=weights[i]))
        torch.testing.assert_close(together[i], alone, rtol=1e-12, atol=1e-13)


def tensor_hyperparameters() -> list[tuple[str, str]]:
    """Every (objective, hyper-parameter) that takes one value per problem."""
    found = []
    for name in objectives.names():
        for parameter in objectives.describe(name).hyperparameters:
            try:
                parameter.check(name, torch.tensor([0.3, 0.6]))
            except ObjectiveError:
                continue
            found.append((name, parameter.name))
    return found


def test_most_hyperparameters_take_one_value_per_problem() -> None:
    found = set(tensor_hyperparameters())
    assert {("dpo", "beta"), ("exo_rw", "beta_reward"), ("kto", "desirable_weight"), ("chosen_nll", "weight")} <= found
    assert not {("cdpo", "label_smoothing"), ("chipo", "clip"), ("discopop", "temperature")} & found


@pytest.mark.parametrize(("name", "key"), tensor_hyperparameters())
def test_hyperparameters_per_problem(name: str, key: str) -> None:
    """A tensor of one value per problem gives what a loop over problems gives."""
    others = {"divergence": "alpha"} if (name, key) == ("fdpo", "alpha") else {}
    values = torch.tensor([0.3, 0.6], dtype=torch.float64)
    sources = {term.source for term in objectives.get(name, **others, **{key: 0.3}).terms}
    drawn = [{s: random_batch(s, 4, torch.Generator().manual_seed(i)) for s in sources} for i in (5, 6)]
    both = {}
    for source in sources:
        one, other = (d[source].tensors() for d in drawn)
        both[source] = type(drawn[0][source])(**{f: torch.stack([tensor, other[f]]) for f, tensor in one.items()})
    together = objectives.get(name, **others, **{key: values}).value(both)
    alone = [objectives.get(name, **others, **{key: values[i].item()}).value(drawn[i]) for i in range(2)]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-12, atol=1e-13)


# --- what a loss holds fixed -----------------------------------------------------------------------------------------


def gradients(objective: objectives.Objective, batch: Batch, *names: str) -> list[Tensor]:
    """Of the sum of the first term's losses, in the named fields."""
    leaves = {name: batch.tensors()[name].clone().requires_grad_() for name in names}
    losses = objective.terms[0].loss(replace(batch, **leaves))
    return list(torch.autograd.grad(losses.sum(), list(leaves.values()), materialize_grads=True))


def test_reference_points_are_not_trained_through() -> None:
    """bco's and kto's gradients are those with the reference point given as a number; mismatched log-probs get none."""
    batch = random_batch("unpaired", 6, torch.Generator().manual_seed(0))
    assert isinstance(batch, UnpairedBatch)
    ratios = batch.logps - batch.require("ref_logps", "test")
    fixed = objectives.get("bco", beta=0.1, delta=0.1 * ratios.mean().item())
    (ours,), (expected,) = gradients(objectives.get("bco", beta=0.1), batch, "logps"), gradients(fixed, batch, "logps")
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-14)
    raised = replace(batch, ref_mismatched_logps=batch.require("mismatched_logps", "test") - 2.0)
    ours, mismatched = gradients(objectives.get("kto", beta=0.1), raised, "logps", "mismatched_logps")
    (expected,) = gradients(objectives.get("kto", beta=0.1, z0=2.0), raised, "logps")
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-14)
    assert not mismatched.any()


def test_weights_and_drifts_that_carry_no_gradient() -> None:
    batch = random_batch("pairs", 6, torch.Generator().manual_seed(1))
    assert isinstance(batch, PairBatch)
    wpo = gradients(objectives.get("wpo"), batch, "chosen_logps", "chosen_token_logps", "rejected_log_collisions")
    assert [bool(gradient.any()) for gradient in wpo] == [True, False, False]
    tdpo = gradients(objectives.get("tdpo"), batch, "rejected_token_kl", "chosen_token_kl")
    assert [bool(gradient.any()) for gradient in tdpo] == [True, False]


def test_the_adapted_beta_carries_no_gradient() -> None:
    """d loss/d p_w = -beta' s(-beta' D): nothing by way of the mean that beta' follows."""
    batch = random_batch("pairs", 6, torch.Generator().manual_seed(2))
    assert isinstance(batch, PairBatch)
    margin = objectives.margins.reference_adjusted.value(batch, "test")
    beta = 0.1 * (1 + 0.01 * margin.mean().item())
    (ours,) = gradients(objectives.get("beta_dpo", beta=0.1, alpha=0.01), batch, "chosen_logps")
    torch.testing.assert_close(ours, -beta * torch.sigmoid(-beta * margin), rtol=1e-10, atol=1e-14)


def graph_size(losses: Tensor) -> int:
    """Operations that autograd recorded behind the losses."""
    seen, waiting = set(), [losses.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [parent for parent, _ in node.next_functions]
    return len(seen)


@pytest.mark.parametrize("label", [*PAIR_LABELS, "exo_rw"])
def test_no_loop_over_examples(label: str) -> None:
    """The number of operations does not grow with the batch."""
    sizes = []
    for examples in (3, 48):
        objective = objectives.parse(label)
        source = "pairs" if "pairs" in objective.needs_on_pairs else "candidates"
        batch = random_batch(source, examples, torch.Generator().manual_seed(0))
        leaves = {name: tensor.requires_grad_() for name, tensor in batch.tensors().items() if name.endswith("logps")}
        batch = replace(batch, **leaves)
        losses = objective.pair_losses(batch) if isinstance(batch, PairBatch) else objective.terms[0].loss(batch)
        sizes.append(graph_size(losses))
    assert sizes[0] == sizes[1]
    assert 1 < sizes[0] < 120


# --- step 0 ----------------------------------------------------------------------------------------------------------

LOG_2 = math.log(2.0)


@pytest.mark.parametrize(
    ("label", "loss", "chosen_gradient", "rejected_gradient"),
    [
        ("dpo(beta=0.3)", LOG_2, -0.15, 0.15),
        ("cdpo(beta=0.3, label_smoothing=0.1)", LOG_2, -0.12, 0.12),
        ("robust_dpo(beta=0.3, label_smoothing=0.1)", LOG_2, -0.1875, 0.1875),  # -.15 - .3 * .1/.8
        ("ipo(tau=0.5)", 1.0, -2.0, 2.0),
        ("exo_pref(beta=0.3, label_smoothing=0.5e-3)", None, -0.3 / 4 * math.log(0.9995 / 0.0005), None),
        ("sppo(beta=0.5)", 2.0, -2.0, 2.0),
        ("apo_zero(beta=0.3)", 1.0, -0.075, 0.075),
        ("apo_down(beta=0.3)", 1.0, 0.0, 0.075),
        ("nca(beta=0.3)", 2 * LOG_2, -0.075, 0.075),
        ("bco(beta=0.3)", 2 * LOG_2, -0.15, 0.15),
        ("kto(beta=0.3, z0=0)", 1.0, -0.075, 0.075),
        ("chipo(beta=0.3)", LOG_2, -0.3, 0.3),
        ("fdpo(beta=0.3, divergence='forward_kl')", LOG_2, -0.15, 0.15),
        ("fdpo(beta=0.3, divergence='js')", LOG_2, -0.075, 0.075),
        ("gpo(beta=0.3, link='exponential')", 1.0, -0.3, 0.3),
        ("gpo(beta=0.3, link='truncated_square')", 1.0, -0.6, 0.6),
        ("gpo(beta=0.3, link='savage')", 0.25, -0.075, 0.075),
        ("rso_hinge(gamma=0.3)", 1.0, -0.3, 0.3),
        ("aot(beta=0.3)", LOG_2, -0.15, 0.15),
        ("discopop(beta=0.3, temperature=0.05)", None, -0.225 + 1.5 * (1 - LOG_2), None),
    ],
)
def test_step_zero(label: str, loss: float | None, chosen_gradient: float, rejected_gradient: float | None) -> None:
    """Policy = reference: margins are exactly 0, so losses and gradients are known numbers whatever the log-probs."""
    chosen = torch.tensor([-3.0, -700.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-20.0, -1.5], dtype=torch.float64, requires_grad=True)
    batch = PairBatch(
        chosen_logps=chosen,
        rejected_logps=rejected,
        ref_chosen_logps=chosen.detach(),
        ref_rejected_logps=rejected.detach(),
    )
    losses = objectives.parse(label).pair_losses(batch)
    if loss is not None:
        assert losses.tolist() == pytest.approx([loss] * 2, abs=1e-14)
    gradients = torch.autograd.grad(losses.sum(), [chosen, rejected])
    assert gradients[0].tolist() == pytest.approx([chosen_gradient] * 2, abs=1e-12)
    opposite = -chosen_gradient if rejected_gradient is None else rejected_gradient
    assert gradients[1].tolist() == pytest.approx([opposite] * 2, abs=1e-12)


# --- gradients, bad input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", PAIR_LABELS)
def test_gradient_against_finite_differences(label: str) -> None:
    """Of the options too, which the self-check at default hyper-parameters does not reach."""
    objective = objectives.parse(label)
    batch = random_batch("pairs", 4, torch.Generator().manual_seed(11))
    assert isinstance(batch, PairBatch)
    assert batch.ref_chosen_logps is not None
    assert batch.ref_rejected_logps is not None
    drift = torch.rand(2, 4, generator=torch.Generator().manual_seed(12), dtype=torch.float64) - 0.4
    leaves = [
        (batch.ref_chosen_logps + drift[0]).requires_grad_(),
        (batch.ref_rejected_logps + drift[1]).requires_grad_(),
    ]

    def losses(chosen: Tensor, rejected: Tensor) -> Tensor:
        return objective.pair_losses(replace(batch, chosen_logps=chosen, rejected_logps=rejected))

    if not losses(*leaves).requires_grad:
        return
    with objectives.frozen() as rewind:

        def replayed(chosen: Tensor, rejected: Tensor) -> Tensor:
            rewind()
            return losses(chosen, rejected)

        assert torch.autograd.gradcheck(replayed, leaves, eps=1e-6, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "hyperparameters", "message"),
    [
        ("cdpo", {"label_smoothing": 0.5}, r"cdpo: label_smoothing must be in \[0, 0\.5\); got 0\.5"),
        ("cdpo", {"label_smoothing": -0.1}, r"cdpo: label_smoothing must be in \[0, 0\.5\)"),
        ("robust_dpo", {"label_smoothing": 0.5}, r"robust_dpo: label_smoothing must be in \[0, 0\.5\)"),
        ("exo_pref", {"label_smoothing": 0.0}, r"exo_pref: label_smoothing must be in \(0, 0\.5\); got 0\.0"),
        (
            "cdpo",
            {"label_smoothing": torch.tensor([0.1, 0.2])},
            r"cdpo: label_smoothing must be in \[0, 0\.5\); got a tensor",
        ),
        ("chipo", {"clip": 0}, r"chipo: clip must be > 0 or None; got 0"),
        ("chipo", {"clip": -1.0}, r"chipo: clip must be > 0 or None"),
        (
            "mrpo",
            {"weights": (0.5, 0.6)},
            r"mrpo: weights must be a tuple of numbers >= 0 that sum to 1; got \(0\.5, 0\.6\)",
        ),
        ("mrpo", {"weights": (1.5, -0.5)}, r"mrpo: weights must be a tuple"),
        ("mrpo", {"weights": ()}, r"mrpo: weights must be a tuple"),
        ("mrpo", {"weights": 1.0}, r"mrpo: weights must be a tuple"),
        ("mrpo", {"clip": 1.5}, r"mrpo: clip must be in \[0, 1\] or None"),
        ("gpo", {"link": "hinged"}, r"gpo: link must be 'logistic', 'hinge', .*; got 'hinged'"),
        ("fdpo", {"divergence": "js", "alpha": 0.3}, r"fdpo: alpha has no effect with divergence='js'"),
        ("fdpo", {"divergence": "alpha", "alpha": 0}, r"fdpo: alpha must be > 0"),
        ("ld_dpo", {"alpha": 1.1}, r"ld_dpo: alpha must be in \[0, 1\]"),
        ("sft", {"beta": 0.1}, r"sft: unknown hyper-parameter 'beta'\. Known: none"),
        ("kto", {"z0": -1}, r"kto: z0 must be >= 0 or None"),
        ("discopop", {"temperature": 0}, r"discopop: temperature must be > 0"),
        ("simpo", {"gamma": -0.1}, r"simpo: gamma must be >= 0"),
        ("dpo", {"label_smoothing": 0.1}, r"dpo: unknown hyper-parameter 'label_smoothing'"),
    ],
)
def test_bad_hyperparameters(name: str, hyperparameters: dict[str, object], message: str) -> None:
    with pytest.raises(ObjectiveError, match=message):
        objectives.get(name, **hyperparameters)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (
            CandidateBatch,
            {"logps": torch.zeros(3)},
            r"CandidateBatch\.logps: expected shape \(\.\.\., N, M\), got 1 dimension",
        ),
        (
            CandidateBatch,
            {"logps": torch.zeros(3, 2), "weights": torch.ones(2)},
            r"CandidateBatch: shapes do not broadcast: .*logps \(3,\).*weights \(2,\)|weights \(2,\).*logps \(3,\)",
        ),
        (
            CandidateBatch,
            {"logps": torch.zeros(3, 2), "rewards": torch.zeros(3, 4)},
            r"CandidateBatch: rewards has 4 values per example where logps has 2",
        ),
        (
            UnpairedBatch,
            {"logps": torch.zeros(3), "desirable": torch.tensor([1.0, 0.0, 1.0])},
            r"UnpairedBatch\.desirable: expected True or False per example, got torch\.float32",
        ),
        (
            PairBatch,
            {"chosen_logps": torch.zeros(2), "rejected_logps": torch.zeros(2), "weights": torch.tensor([-0.1, 1.1])},
            r"PairBatch\.weights: a probability weight is negative",
        ),
    ],
)
def test_bad_batches(kind: type[Batch], fields: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ObjectiveError, match=message):
        kind(**fields)  # type: ignore[arg-type]

"""The frame around the losses: values of the core objectives, reduction, composition, labels, registry, batches."""

from __future__ import annotations

import math
import re

import pytest
import torch

import objectives
from objectives import ObjectiveError, PairBatch, SampleBatch
from objectives.terms import on_pairs

# Numbers worked outside this code base: log-probs (-9, -14.5), reference (-11, -13.8), lengths 6 and 9.
PAIR = PairBatch(
    chosen_logps=torch.tensor([-9.0], dtype=torch.float64),
    rejected_logps=torch.tensor([-14.5], dtype=torch.float64),
    ref_chosen_logps=torch.tensor([-11.0], dtype=torch.float64),
    ref_rejected_logps=torch.tensor([-13.8], dtype=torch.float64),
    chosen_lengths=torch.tensor([6.0], dtype=torch.float64),
    rejected_lengths=torch.tensor([9.0], dtype=torch.float64),
)


def samples(*logps: float, **fields: torch.Tensor) -> SampleBatch:
    return SampleBatch(logps=torch.tensor(logps, dtype=torch.float64), **fields)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("dpo(beta=0.5)", 0.230509),
        ("ipo(tau=0.5)", 2.89),
        ("ipo(tau=0.5, aggregation='mean')", 0.346790),
        # d = 5.5, D = 2.7; s(5.5) = .995929862, s(2.7/2) = .794129628, d/6 per token: -9/6 + 14.5/9 = .111111, s = .527749
        ("maxpo(beta=0)", -0.995929862),
        ("maxpo(beta=0, reference_adjusted=True, temperature=2)", -0.794129628),
        ("maxpo(beta=0, length_normalized=True)", -0.527749237),
        ("chosen_nll(weight=2)", 18.0),
        ("chosen_nll(weight=2, per_token=True)", 3.0),
    ],
)
def test_worked_numbers(label: str, expected: float) -> None:
    losses = objectives.parse(label).pair_losses(PAIR)
    assert losses.shape == (1,)
    assert losses.item() == pytest.approx(expected, abs=6e-7)


def test_value_is_the_weighted_sum_over_terms_and_examples() -> None:
    pairs = PairBatch(
        chosen_logps=torch.tensor([-1.0, -2.0], dtype=torch.float64),
        rejected_logps=torch.tensor([-2.0, -2.0], dtype=torch.float64),
        weights=torch.tensor([0.25, 0.75], dtype=torch.float64),
    )
    objective = objectives.get("maxpo", beta=0.5, gamma=2.0)
    batches = {"pairs": pairs, "reference_samples": samples(-3.0, -5.0), "pretraining": samples(-7.0)}
    # -(.25 s(1) + .75 s(0)) + .5 * (3 + 5)/2 + 2 * 7, with s(1) = .7310585786
    assert objective.value(batches).item() == pytest.approx(-(0.25 * 0.7310585786 + 0.375) + 2.0 + 14.0, abs=1e-9)
    terms = objective.term_values(batches)
    assert list(terms) == ["maxpo", "forward_kl", "pretraining"]
    assert [round(value.item(), 6) for value in terms.values()] == [-0.557765, 2.0, 14.0]


def test_full_token_forward_kl_takes_the_kl_and_not_the_log_probs() -> None:
    objective = objectives.forward_kl(weight=0.5, tokens="full")
    assert objective.needs == {"reference_samples", "reference_token_kl"}
    batch = samples(-3.0, -5.0, token_kl=torch.tensor([0.2, 0.6], dtype=torch.float64))
    assert objective.value({"reference_samples": batch}).item() == pytest.approx(0.2)
    with pytest.raises(ObjectiveError, match=r"needs SampleBatch\.token_kl: .* stored reference token distributions"):
        objective.value({"reference_samples": samples(-3.0)})


def test_reverse_kl_takes_the_policys_kl_of_rollouts() -> None:
    batch = samples(-3.0, -5.0, policy_kl=torch.tensor([0.2, 0.6], dtype=torch.float64))
    assert objectives.reverse_kl(weight=0.5).value({"rollouts": batch}).item() == pytest.approx(0.2)
    with pytest.raises(
        ObjectiveError, match=r"reverse_kl needs SampleBatch\.policy_kl: .* along a sample of the policy"
    ):
        objectives.reverse_kl().value({"rollouts": samples(-3.0)})


def test_hyperparameters_per_problem_give_what_a_loop_over_problems_gives() -> None:
    beta = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    chosen = torch.tensor([[-1.0, -2.0], [-3.0, -0.5], [-0.1, -4.0]], dtype=torch.float64)
    batch = PairBatch(
        chosen_logps=chosen,
        rejected_logps=torch.full((3, 2), -1.5, dtype=torch.float64),
        ref_chosen_logps=torch.full((3, 2), -1.0, dtype=torch.float64),
        ref_rejected_logps=torch.full((3, 2), -1.2, dtype=torch.float64),
    )
    for name, key in (("dpo", "beta"), ("ipo", "tau"), ("maxpo", "temperature")):
        together = objectives.get(name, **{key: beta}).pair_losses(batch)
        for i in range(3):
            one = PairBatch(**{field: tensor[i] for field, tensor in batch.tensors().items()})
            alone = objectives.get(name, **{key: beta[i].item()}).pair_losses(one)
            torch.testing.assert_close(together[i], alone, rtol=1e-14, atol=0)
    reference = samples(-1.0, -3.0)
    weighted = objectives.forward_kl(weight=beta).value({"reference_samples": reference})
    torch.testing.assert_close(weighted, 2.0 * beta)


def test_dpo_of_the_reference_is_log_two_with_gradient_half_beta() -> None:
    chosen = torch.tensor([-9.0], dtype=torch.float64, requires_grad=True)
    batch = PairBatch(
        chosen_logps=chosen,
        rejected_logps=torch.tensor([-2.0], dtype=torch.float64),
        ref_chosen_logps=torch.tensor([-9.0], dtype=torch.float64),
        ref_rejected_logps=torch.tensor([-2.0], dtype=torch.float64),
    )
    loss = objectives.get("dpo", beta=0.3).pair_losses(batch)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-15)
    (gradient,) = torch.autograd.grad(loss.sum(), chosen)
    assert gradient.item() == pytest.approx(-0.15, abs=1e-15)


# --- needs and composition -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "needs"),
    [
        ("dpo", {"pairs", "ref_logps"}),
        ("ipo(aggregation='mean')", {"pairs", "ref_logps", "lengths"}),
        ("maxpo", {"pairs", "reference_samples"}),
        ("maxpo(beta=0)", {"pairs"}),
        ("maxpo(gamma=1)", {"pairs", "reference_samples", "pretraining"}),
        ("maxpo(tokens='full')", {"pairs", "reference_samples", "reference_token_kl"}),
        (
            "maxpo(reference_adjusted=True, length_normalized=True)",
            {"pairs", "reference_samples", "ref_logps", "lengths"},
        ),
        ("maxpo+chosen_nll(per_token=True)", {"pairs", "reference_samples", "lengths"}),
    ],
)
def test_needs_follow_from_the_terms(label: str, needs: set[str]) -> None:
    assert objectives.parse(label).needs == needs


@pytest.mark.parametrize(
    ("label", "needs"),
    [
        ("dpo", {"pairs", "ref_logps"}),
        ("nca", {"pairs", "ref_logps"}),
        ("bco+forward_kl", {"pairs", "ref_logps", "reference_samples"}),
        ("kto(z0=0)", {"pairs", "ref_logps"}),
        ("kto", {"unpaired", "ref_logps", "mismatched_logps"}),
        ("exo_rw", {"candidates", "ref_logps", "rewards"}),
    ],
)
def test_what_pairs_can_stand_for(label: str, needs: set[str]) -> None:
    objective = objectives.parse(label)
    assert objective.needs_on_pairs == needs
    if needs == {"pairs", "ref_logps"}:
        assert objective.value({"pairs": PAIR}).item() == pytest.approx(objective.pair_losses(PAIR).item())


def test_composition() -> None:
    composed = objectives.get("dpo", beta=0.5) + objectives.forward_kl(weight=0.1)
    assert composed.name == "dpo+forward_kl"
    assert composed.label == "dpo(beta=0.5)+forward_kl(weight=0.1)"
    assert composed.hyperparameters == {"dpo.beta": 0.5, "forward_kl.weight": 0.1, "forward_kl.tokens": "sampled"}
    value = composed.value({"pairs": PAIR, "reference_samples": samples(-3.0, -5.0)})
    assert value.item() == pytest.approx(0.230509 + 0.1 * 4.0, abs=6e-7)
    assert composed.pair_losses(PAIR).item() == pytest.approx(0.230509, abs=6e-7)
    with_nll = composed + objectives.chosen_nll(weight=0.01)
    assert with_nll.pair_losses(PAIR).item() == pytest.approx(0.230509 + 0.09, abs=6e-7)


def test_a_part_is_not_added_twice() -> None:
    with pytest.raises(ObjectiveError, match="forward_kl is already part of maxpo\\+forward_kl"):
        objectives.get("maxpo") + objectives.forward_kl() + objectives.forward_kl()


@pytest.mark.parametrize(
    "label",
    [
        "dpo(beta=0.1)",
        "ipo(tau=0.01, aggregation='mean')",
        "maxpo(beta=0.05, temperature='auto', tokens='full')",
        "maxpo(beta=0.123456789, temperature=29.87654321)",
        "mrpo(beta=0.1, weights=(0.25, 0.75), clip=None)",
        "kto(beta=1e-08, z0=0)",
        "dpo(beta=0.1)+forward_kl(weight=0.1)+chosen_nll(weight=0.2, per_token=True)",
    ],
)
def test_labels_are_read_back(label: str) -> None:
    assert objectives.parse(label).label == label


def test_every_registered_default_has_a_label_that_is_read_back() -> None:
    for name in objectives.names():
        objective = objectives.get(name)
        again = objectives.parse(objective.label)
        assert (again.name, again.label, again.hyperparameters) == (name, objective.label, objective.hyperparameters)


@pytest.mark.parametrize("text", ["dpo(0.1)", "dpo-ipo", "", "dpo(beta=open)", "dpo(**{})", "1 + dpo", "dpo("])
def test_text_that_names_no_objective(text: str) -> None:
    with pytest.raises(ObjectiveError):
        objectives.parse(text)


def test_temperature_auto_waits_for_a_number() -> None:
    objective = objectives.get("maxpo", beta=0.0, temperature="auto") + objectives.chosen_nll(weight=0.1)
    assert objective.needs_temperature
    with pytest.raises(ObjectiveError, match="with_temperature"):
        objective.pair_losses(PAIR)
    resolved = objective.with_temperature(5.5)
    assert not resolved.needs_temperature
    assert resolved.label == "maxpo(beta=0, temperature=5.5)+chosen_nll(weight=0.1)"
    assert resolved.pair_losses(PAIR).item() == pytest.approx(-0.7310585786 + 0.9, abs=1e-9)


# --- registry --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hyperparameters", "message"),
    [
        ("dpp", {}, r"unknown objective 'dpp'; did you mean .*'dpo'.* Known: .*ipo.*maxpo"),
        ("dpo", {"bета": 1.0}, r"dpo: unknown hyper-parameter 'bета'.* Known: beta"),
        ("dpo", {"betas": 1.0}, r"dpo: unknown hyper-parameter 'betas'; did you mean 'beta'\?"),
        ("dpo", {"beta": -0.1}, r"dpo: beta must be > 0; got -0\.1"),
        ("dpo", {"beta": 0}, r"dpo: beta must be > 0; got 0"),
        ("dpo", {"beta": float("nan")}, r"dpo: beta must be > 0; got nan"),
        ("dpo", {"beta": float("inf")}, r"dpo: beta must be > 0; got inf"),
        ("dpo", {"beta": "0.1"}, r"dpo: beta must be > 0; got '0\.1'"),
        ("dpo", {"beta": True}, r"dpo: beta must be > 0; got True"),
        ("dpo", {"beta": torch.tensor([0.1, 0.0])}, r"dpo: beta must be > 0; got a tensor with values 0\.\.0\.1"),
        ("ipo", {"aggregation": "max"}, r"ipo: aggregation must be 'sum', 'mean'; got 'max'"),
        ("maxpo", {"beta": -1}, r"maxpo: beta must be >= 0"),
        ("maxpo", {"temperature": "car"}, r"maxpo: temperature must be > 0 or 'auto'; got 'car'"),
        ("maxpo", {"reference_adjusted": 1}, r"maxpo: reference_adjusted must be True or False; got 1"),
        ("maxpo", {"beta": 0, "tokens": "full"}, r"maxpo: tokens='full' has no effect at beta=0"),
        ("forward_kl", {"weight": -1}, r"forward_kl: weight must be >= 0; got -1"),
    ],
)
def test_bad_hyperparameters(name: str, hyperparameters: dict[str, object], message: str) -> None:
    with pytest.raises(ObjectiveError, match=message):
        objectives.get(name, **hyperparameters)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    from objectives import registry as module

    monkeypatch.setattr(module, "_specs", dict(module.specs()))


@pytest.mark.usefixtures("registry")
def test_a_third_party_registers_in_a_few_lines() -> None:
    @objectives.register("cubic", formula="(beta D - 1)^4")
    def cubic(beta: objectives.Positive = 0.5) -> objectives.Term:
        """Fourth power of the distance to one."""

        def loss(batch: PairBatch) -> torch.Tensor:
            return (beta * objectives.margins.reference_adjusted.value(batch, "cubic") - 1) ** 4

        return objectives.Term("cubic", "pairs", loss, needs=frozenset({"ref_logps"}))

    assert "cubic" in objectives.names()
    assert objectives.get("cubic").pair_losses(PAIR).item() == pytest.approx(0.35**4)
    assert objectives.describe("cubic").summary == "Fourth power of the distance to one."
    with pytest.raises(ObjectiveError, match="'cubic' is already registered"):
        objectives.register("cubic", formula="x")(cubic)


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("name", "formula", "message"),
    [("not a name", "x", "must be an identifier"), ("nameless", "", "formula is required")],
)
def test_bad_registrations(name: str, formula: str, message: str) -> None:
    with pytest.raises(ObjectiveError, match=message):
        objectives.register(name, formula=formula)


def test_a_term_of_an_unknown_source_is_refused() -> None:
    with pytest.raises(ObjectiveError, match="mine: unknown source 'pair'; a term's source is one of pairs, "):
        objectives.Term("mine", "pair", lambda batch: batch.chosen_logps)


@pytest.mark.usefixtures("registry")
def test_a_loss_that_reduces_is_refused() -> None:
    @objectives.register("reduced", formula="mean of d")
    def reduced() -> objectives.Term:
        return objectives.Term("reduced", "pairs", lambda batch: (batch.chosen_logps - batch.rejected_logps).mean())

    with pytest.raises(ObjectiveError, match="reduced: a loss must return one value per example"):
        objectives.get("reduced").value({"pairs": PAIR})


def test_describe() -> None:
    description = objectives.describe("maxpo")
    assert description.needs == ("pairs", "reference_samples")
    assert {h.name: h.default for h in description.hyperparameters}["temperature"] == 1.0
    text = str(description)
    for part in ("arXiv 2312.16430", "beta = 0.1  (>= 0)", "1/beta", "temperature = 1.0  (> 0 or 'auto')"):
        assert part in text
    with pytest.raises(ObjectiveError, match="did you mean 'maxpo'"):
        objectives.describe("maxp")


def test_every_objective_is_described() -> None:
    for name in objectives.names():
        description = objectives.describe(name)
        assert description.summary, name
        assert re.search(r"arXiv \d{4}\.\d{5}|note|standard", description.paper), name


# --- batches ---------------------------------------------------------------------------------------------------------


def test_what_is_missing_is_named_with_who_supplies_it() -> None:
    bare = PairBatch(chosen_logps=torch.tensor([-1.0]), rejected_logps=torch.tensor([-2.0]))
    with pytest.raises(
        ObjectiveError, match=r"dpo needs PairBatch\.ref_chosen_logps: the reference policy's log-probs"
    ):
        objectives.get("dpo").pair_losses(bare)
    with pytest.raises(ObjectiveError, match="needs a batch of 'reference_samples'; given: pairs"):
        objectives.get("maxpo").value({"pairs": bare})
    with pytest.raises(ObjectiveError, match="forward_kl has no term on pairs; its sources: reference_samples"):
        objectives.forward_kl().pair_losses(bare)


def test_bad_batches() -> None:
    two, three = torch.tensor([-1.0, -2.0]), torch.tensor([-1.0, -2.0, -3.0])
    with pytest.raises(ObjectiveError, match=r"shapes do not broadcast: .*chosen_logps \(2,\), rejected_logps \(3,\)"):
        PairBatch(chosen_logps=two, rejected_logps=three)
    with pytest.raises(ObjectiveError, match=r"PairBatch\.chosen_logps: expected a torch tensor, got list"):
        PairBatch(chosen_logps=[-1.0], rejected_logps=two)  # type: ignore[arg-type]
    with pytest.raises(ObjectiveError, match=r"expected shape \(\.\.\., N\), got a single number"):
        SampleBatch(logps=torch.tensor(-1.0))
    maxpo = objectives.get("maxpo", beta=0)
    for bad, message in ((0.5, "positive log-probability"), (float("nan"), "NaN"), (float("-inf"), "infinity")):
        with pytest.raises(ObjectiveError, match=f"maxpo: PairBatch.rejected_logps holds .*{message}"):
            maxpo.pair_losses(PairBatch(chosen_logps=two, rejected_logps=torch.tensor([bad, -1.0])))


def test_half_precision_is_lifted_before_log_probs_are_subtracted() -> None:
    chosen = torch.tensor([-801.0], dtype=torch.bfloat16)  # rounds to -800 in bfloat16
    batch = PairBatch(chosen_logps=chosen, rejected_logps=torch.tensor([-800.5], dtype=torch.float32))
    assert batch.chosen_logps.dtype == torch.float32
    losses = objectives.get("maxpo", beta=0).pair_losses(batch)
    assert losses.dtype == torch.float32
    assert losses.item() == pytest.approx(-1 / (1 + math.exp(-0.5)), abs=1e-6)


@pytest.mark.parametrize("label", ["infonca(beta=0.3)", "infonca(beta=0.3) + sft"])
def test_the_form_on_pairs_is_what_the_loss_is_there(label: str) -> None:
    objective = objectives.parse(label)
    generator = torch.Generator().manual_seed(0)
    fields = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
    logps = {name: -3.0 * torch.rand(2, 7, generator=generator, dtype=torch.float64) for name in fields}
    lengths = {f"{side}_lengths": torch.ones(2, 7, dtype=torch.float64) for side in ("chosen", "rejected")}
    batch = objectives.PairBatch(**logps, **lengths)
    changed = on_pairs(objective)
    assert {term.source for term in changed.terms} == {"pairs"}
    torch.testing.assert_close(changed.pair_losses(batch), objective.pair_losses(batch), rtol=1e-12, atol=1e-12)
    if len(objective.parts) == 1:
        per_problem = torch.tensor([0.1, 2.0], dtype=torch.float64)
        one, other = (each.with_strength(per_problem).pair_losses(batch) for each in (changed, objective))
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)

"""Value and gradient against trl's trainers, whose own loss code runs here on given token log-probs instead of a model's.

Every known difference is asserted as a difference.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import objectives
from objectives import PairBatch, UnpairedBatch

pytest.importorskip("trl")
from trl import DPOTrainer, KTOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

N, T = 7, 6


@dataclass
class Tokens:
    """Token log-probs (2 N, T), first the chosen then the rejected, of policy and reference; 0 outside the mask."""

    policy: Tensor
    reference: Tensor
    mask: Tensor
    collisions: Tensor

    @classmethod
    def random(cls, seed: int, spread: float = 1.0) -> Tokens:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(2, T + 1, (2 * N, 1), generator=generator)
        mask = (torch.arange(T) < lengths).double()
        policy, reference, collisions = (
            -spread * torch.rand(2 * N, T, generator=generator, dtype=torch.float64) * mask for _ in range(3)
        )
        return cls(policy.requires_grad_(), reference, mask, collisions)

    def pairs(self) -> PairBatch:
        chosen, rejected = self.policy.chunk(2)
        ref_chosen, ref_rejected = self.reference.chunk(2)
        chosen_mask, rejected_mask = self.mask.chunk(2)
        chosen_collisions, rejected_collisions = self.collisions.chunk(2)
        return PairBatch(
            chosen_logps=chosen.sum(-1),
            rejected_logps=rejected.sum(-1),
            ref_chosen_logps=ref_chosen.sum(-1),
            ref_rejected_logps=ref_rejected.sum(-1),
            chosen_lengths=chosen_mask.sum(-1),
            rejected_lengths=rejected_mask.sum(-1),
            chosen_token_logps=chosen,
            rejected_token_logps=rejected,
            ref_chosen_token_logps=ref_chosen,
            ref_rejected_token_logps=ref_rejected,
            chosen_mask=chosen_mask,
            rejected_mask=rejected_mask,
            chosen_log_collisions=chosen_collisions,
            rejected_log_collisions=rejected_collisions,
        )


class Scores:
    """Stands for a model: answers any input with given token log-probs."""

    training = True

    def __init__(self, log_probs: Tensor, collisions: Tensor | None = None) -> None:
        zeros = torch.zeros_like(log_probs)
        self.outputs = SimpleNamespace(
            log_probs=log_probs,
            log_sum_sq_probs=collisions,
            entropy=zeros,
            mean_logits=zeros,
            is_top1=torch.zeros_like(log_probs, dtype=torch.bool),
        )

    def __call__(self, **inputs: Any) -> SimpleNamespace:
        return self.outputs


class Policy(torch.nn.Module):
    """What the trainers ask of ``self.model`` besides its scores."""

    is_gradient_checkpointing = False


ACCELERATOR = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)


def trl_dpo(tokens: Tokens, loss_type: str, beta: float, **settings: Any) -> Tensor:
    """The loss of trl's DPOTrainer on these token log-probs."""
    trainer = SimpleNamespace(
        loss_types=[loss_type],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=0.0,
        f_divergence_type="reverse_kl",
        f_alpha_divergence_coef=1.0,
        ld_alpha=None,
        use_weighting=False,
        args=SimpleNamespace(discopop_tau=0.05, gradient_checkpointing_kwargs=None),
        aux_loss_enabled=False,
        precompute_ref_logps=False,
        ref_model=Scores(tokens.reference),
        model=Policy(),
        accelerator=ACCELERATOR,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    vars(trainer).update(settings)
    prompt = torch.zeros(2 * N, 1, dtype=torch.long)  # one prompt token, so that every response token is predicted
    completion_mask = torch.cat([prompt, tokens.mask.long()], dim=1)
    inputs = {
        "input_ids": torch.zeros_like(completion_mask),
        "attention_mask": torch.ones_like(completion_mask),
        "completion_mask": completion_mask,
    }
    loss: Tensor = DPOTrainer._compute_loss(trainer, Scores(tokens.policy, tokens.collisions), inputs, False)
    return loss


def assert_same(ours: Tensor, theirs: Tensor, leaf: Tensor, rtol: float = 1e-10) -> None:
    """Values agree, and gradients in the log-probs of tokens (those of padding are 0 and have no parameters behind them)."""
    torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=rtol, atol=rtol)
    ours_gradient, theirs_gradient = (
        torch.autograd.grad(value, leaf, retain_graph=True)[0] * (leaf != 0) for value in (ours, theirs)
    )
    assert float(theirs_gradient.abs().max()) > 1e-4
    torch.testing.assert_close(ours_gradient, theirs_gradient, rtol=rtol, atol=rtol)


DPO_LOSSES = [
    ("dpo(beta=0.3)", "sigmoid", 0.3, {}),
    ("rso_hinge(gamma=0.3)", "hinge", 0.3, {}),
    ("gpo(beta=0.3, link='hinge')", "hinge", 0.3, {}),
    ("ipo(tau=0.3, aggregation='mean')", "ipo", 0.3, {}),
    ("exo_pref(beta=0.3, label_smoothing=0.01)", "exo_pair", 0.3, {"label_smoothing": 0.01}),
    ("nca(beta=0.3)", "nca_pair", 0.3, {}),
    ("robust_dpo(beta=0.3, label_smoothing=0.1)", "robust", 0.3, {"label_smoothing": 0.1}),
    ("bco(beta=0.3, delta=0)", "bco_pair", 0.3, {}),
    ("sppo(beta=0.3)", "sppo_hard", 0.3, {}),
    ("aot(beta=0.3)", "aot", 0.3, {}),
    ("apo_zero(beta=0.3)", "apo_zero", 0.3, {}),
    ("apo_down(beta=0.3)", "apo_down", 0.3, {}),
    ("discopop(beta=0.3, temperature=0.05)", "discopop", 0.3, {}),
    ("fdpo(beta=0.3, divergence='forward_kl')", "sigmoid", 0.3, {"f_divergence_type": "forward_kl"}),
    ("fdpo(beta=0.3, divergence='js')", "sigmoid", 0.3, {"f_divergence_type": "js_divergence"}),
    ("ld_dpo(beta=0.3, alpha=0.4)", "sigmoid", 0.3, {"ld_alpha": 0.4}),
]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("label", "loss_type", "beta", "settings"), DPO_LOSSES)
def test_dpo_trainer(label: str, loss_type: str, beta: float, settings: dict[str, Any], seed: int) -> None:
    tokens = Tokens.random(seed)
    ours = objectives.parse(label).value({"pairs": tokens.pairs()})
    # trl holds exo's smoothing in float32.
    tolerance = 1e-6 if loss_type == "exo_pair" else 1e-10
    assert_same(ours, trl_dpo(tokens, loss_type, beta, **settings), tokens.policy, tolerance)


def test_difference_ipo_sums_where_trl_averages() -> None:
    tokens = Tokens.random(2)
    summed = objectives.get("ipo", tau=0.3).value({"pairs": tokens.pairs()})
    assert abs(summed.item() / trl_dpo(tokens, "ipo", 0.3).item() - 1) > 0.02


@pytest.mark.parametrize("alpha", [0.3, 0.7])
def test_difference_fdpo_alpha_is_one_minus_trls(alpha: float) -> None:
    """Same loss with trl's coefficient 1 - alpha; another one with alpha itself. trl computes it in float32."""
    tokens = Tokens.random(3)
    ours = objectives.get("fdpo", beta=0.3, divergence="alpha", alpha=alpha).value({"pairs": tokens.pairs()})
    settings = {"f_divergence_type": "alpha_divergence"}
    with_complement = trl_dpo(_float32(tokens), "sigmoid", 0.3, **settings, f_alpha_divergence_coef=1 - alpha)
    torch.testing.assert_close(ours.float(), with_complement, rtol=2e-6, atol=0)
    with_alpha = trl_dpo(_float32(tokens), "sigmoid", 0.3, **settings, f_alpha_divergence_coef=alpha)
    assert abs(ours.item() - with_alpha.item()) > 1e-3


def _float32(tokens: Tokens) -> Tokens:
    return Tokens(
        tokens.policy.detach().float().requires_grad_(), tokens.reference.float(), tokens.mask, tokens.collisions
    )


def test_difference_bco_has_a_reference_point_that_trls_pair_loss_lacks() -> None:
    tokens = Tokens.random(4)
    ours = objectives.get("bco", beta=0.3).value({"pairs": tokens.pairs()})
    assert abs(ours.item() - trl_dpo(tokens, "bco_pair", 0.3).item()) > 1e-3


def test_wpo_and_its_difference_that_the_weight_is_at_most_one() -> None:
    """Where no weight passes 1 both agree; trl 1.16 does not cap it, the paper does."""
    tokens = Tokens.random(5, spread=1.0)
    small = Tokens(tokens.policy, tokens.reference, tokens.mask, 0.0 * tokens.collisions)
    wpo = objectives.get("wpo", beta=0.3)
    assert_same(wpo.value({"pairs": small.pairs()}), trl_dpo(small, "sigmoid", 0.3, use_weighting=True), tokens.policy)
    large = Tokens(tokens.policy, tokens.reference, tokens.mask, -3.0 * tokens.mask)
    assert trl_dpo(large, "sigmoid", 0.3, use_weighting=True) > 2 * wpo.value({"pairs": large.pairs()})
    torch.testing.assert_close(
        wpo.value({"pairs": large.pairs()}), objectives.get("dpo", beta=0.3).value({"pairs": large.pairs()})
    )


def test_difference_sft_averages_over_responses_where_trl_averages_over_tokens() -> None:
    tokens = Tokens.random(6)
    sft = objectives.get("sft")
    assert abs(sft.value({"pairs": tokens.pairs()}).item() - trl_dpo(tokens, "sft", 0.3).item()) > 1e-3
    even = Tokens(tokens.policy, tokens.reference, torch.ones_like(tokens.mask), tokens.collisions)
    assert_same(sft.value({"pairs": even.pairs()}), trl_dpo(even, "sft", 0.3), tokens.policy)


# --- CPO, SimPO, AlphaPO, ORPO ---------------------------------------------------------------------------------------


def trl_cpo(chosen: Tensor, rejected: Tensor, **settings: Any) -> Tensor:
    """Per-pair losses of trl's CPOTrainer, without its likelihood term."""
    trainer = SimpleNamespace(alpha=0.0, label_smoothing=0.0, simpo_gamma=0.5, accelerator=ACCELERATOR)
    vars(trainer).update(settings)
    losses: Tensor = CPOTrainer.cpo_loss(trainer, chosen, rejected)[0]
    return losses.mean()


@pytest.mark.parametrize(
    ("label", "averaged", "settings"),
    [
        ("cpo(beta=0.3, alpha=0)", False, {"loss_type": "sigmoid", "beta": 0.3}),
        ("simpo(beta=2, gamma=0.5)", True, {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.5}),
        ("alphapo(beta=2, gamma=0.5)", True, {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.5, "alpha": 0.25}),
        (
            "alphapo(beta=2, gamma=0.5, alpha=-0.25)",
            True,
            {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.5, "alpha": -0.25},
        ),
        ("slic_hf(delta=1, lam=0)", False, {"loss_type": "hinge", "beta": 1.0}),
    ],
)
def test_cpo_trainer(label: str, averaged: bool, settings: dict[str, Any]) -> None:
    tokens = Tokens.random(7)
    batch = tokens.pairs()
    assert batch.chosen_lengths is not None
    assert batch.rejected_lengths is not None
    chosen, rejected = batch.chosen_logps, batch.rejected_logps
    if averaged:
        chosen, rejected = chosen / batch.chosen_lengths, rejected / batch.rejected_lengths
    assert_same(objectives.parse(label).value({"pairs": batch}), trl_cpo(chosen, rejected, **settings), tokens.policy)


def test_difference_simpo_gamma_is_absolute() -> None:
    """trl too takes gamma absolute (it divides by beta first); a ratio gamma/beta is another loss."""
    batch = Tokens.random(8).pairs()
    absolute, ratio = (objectives.get("simpo", beta=2.0, gamma=g).value({"pairs": batch}) for g in (0.5, 0.25))
    assert abs(absolute.item() - ratio.item()) > 1e-2


def test_orpo_trainer() -> None:
    """The odds-ratio part; trl returns lam * log s(.), to be subtracted from its NLL (which it takes over the prompt too)."""
    tokens = Tokens.random(9)
    batch = tokens.pairs()
    assert batch.chosen_lengths is not None
    assert batch.rejected_lengths is not None
    trainer = SimpleNamespace(beta=0.1, accelerator=ACCELERATOR)
    chosen, rejected = batch.chosen_logps / batch.chosen_lengths, batch.rejected_logps / batch.rejected_lengths
    theirs = ORPOTrainer.odds_ratio_loss(trainer, chosen, rejected)[0].double()
    ours = objectives.get("orpo", lam=0.1).pair_losses(batch) + chosen  # the NLL per token taken off
    torch.testing.assert_close(ours, -theirs, rtol=2e-5, atol=1e-6)  # trl computes in float32
    ours_gradient, theirs_gradient = (
        torch.autograd.grad(x.sum(), tokens.policy, retain_graph=True)[0] for x in (ours, -theirs)
    )
    torch.testing.assert_close(ours_gradient, theirs_gradient, rtol=2e-4, atol=1e-6)


# --- KTO -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss_type", "z0"), [("kto", None), ("apo_zero_unpaired", 0.0)])
def test_kto_trainer(loss_type: str, z0: float | None) -> None:
    """z0 from the same mismatched log-ratios; apo_zero_unpaired is kto with z0 = 0."""
    tokens, mismatched = Tokens.random(10), Tokens.random(11)
    mismatched.policy = mismatched.policy.detach() * 0.5  # raises the mismatched log-ratios: z0 > 0
    desirable = torch.rand(2 * N, generator=torch.Generator().manual_seed(0)) < 0.5
    assert 0 < desirable.sum() < 2 * N
    batch = UnpairedBatch(
        logps=tokens.policy.sum(-1),
        ref_logps=tokens.reference.sum(-1),
        desirable=desirable,
        mismatched_logps=mismatched.policy.sum(-1),
        ref_mismatched_logps=mismatched.reference.sum(-1),
    )
    trainer = SimpleNamespace(
        beta=0.3,
        loss_type=loss_type,
        desirable_weight=1.5,
        undesirable_weight=0.8,
        calculate_KL=loss_type == "kto",
        precompute_ref_logps=True,
        aux_loss_enabled=False,
        model=Policy(),
        accelerator=ACCELERATOR,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
        _compute_kl_logps=lambda model, inputs: mismatched.policy.sum(-1),
    )
    completion_mask = torch.cat([torch.zeros(2 * N, 1), tokens.mask], dim=1).long()
    inputs = {
        "label": desirable,
        "input_ids": torch.zeros_like(completion_mask),
        "attention_mask": torch.ones_like(completion_mask),
        "completion_mask": completion_mask,
        "ref_logps": tokens.reference.sum(-1),
        "ref_KL_logps": mismatched.reference.sum(-1),
    }
    theirs = KTOTrainer._compute_loss(trainer, Scores(tokens.policy), inputs, False)
    objective = objectives.get("kto", beta=0.3, desirable_weight=1.5, undesirable_weight=0.8, z0=z0)
    assert_same(objective.value({"unpaired": batch}), theirs, tokens.policy)
    if z0 is None:
        assert trainer._metrics["train"]["kl"][0] > 0.1


def test_difference_rpo_sums_with_beta_where_libraries_take_the_token_mean() -> None:
    """trl mixes loss types: sigmoid plus eta times sft is rpo with aggregation='mean', for responses of one length."""
    tokens = Tokens.random(12)
    even = Tokens(tokens.policy, tokens.reference, torch.ones_like(tokens.mask), tokens.collisions)
    mixed = trl_dpo(even, "sigmoid", 0.3, loss_types=["sigmoid", "sft"], loss_weights=[1.0, 0.4])
    by_mean, by_sum = (
        objectives.get("rpo", beta=0.3, eta=0.4, aggregation=how).value({"pairs": even.pairs()})
        for how in ("mean", "sum")
    )
    assert_same(by_mean, mixed, tokens.policy)
    assert abs(by_sum.item() - mixed.item()) > 1e-2

"""Objectives that must coincide, value and gradient: one mathematics, reached by different code paths."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import objectives
from objectives import CandidateBatch, PairBatch
from objectives.checks import random_batch


def losses_and_gradients(label: str, batch: PairBatch) -> tuple[Tensor, Tensor]:
    """Losses (N,) and their gradients in the two log-probs (2, N)."""
    leaves = [batch.chosen_logps.clone().requires_grad_(), batch.rejected_logps.clone().requires_grad_()]
    losses = objectives.parse(label).pair_losses(replace(batch, chosen_logps=leaves[0], rejected_logps=leaves[1]))
    gradients = torch.autograd.grad(losses.sum(), leaves, materialize_grads=True)
    return losses.detach(), torch.stack(gradients)


def pairs(seed: int) -> PairBatch:
    """Policies within a few nats of the reference."""
    batch = random_batch("pairs", 50, torch.Generator().manual_seed(seed))
    assert isinstance(batch, PairBatch)
    assert batch.ref_chosen_logps is not None
    assert batch.ref_rejected_logps is not None
    drift = torch.randn(2, 50, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    chosen, rejected = batch.ref_chosen_logps + 2 * drift[0], batch.ref_rejected_logps + 2 * drift[1]
    return replace(batch, chosen_logps=chosen.clamp(max=0), rejected_logps=rejected.clamp(max=0))


IDENTITIES = [
    ("dpo(beta=0.3)", "infonca(beta=0.3)"),
    ("dpo(beta=0.3)", "cdpo(beta=0.3, label_smoothing=0)"),
    ("dpo(beta=0.3)", "robust_dpo(beta=0.3, label_smoothing=0)"),
    ("dpo(beta=0.3)", "rpo(beta=0.3, eta=0)"),
    ("dpo(beta=0.3)", "dpop(beta=0.3, lam=0)"),
    ("dpo(beta=0.3)", "fdpo(beta=0.3)"),
    ("dpo(beta=0.3)", "gpo(beta=0.3)"),
    ("dpo(beta=0.3)", "rdpo(beta=0.3, alpha=0)"),
    ("dpo(beta=0.3)", "tdpo(beta=0.3, alpha=0)"),
    ("dpo(beta=0.3)", "beta_dpo(beta=0.3, alpha=0)"),
    ("rso_hinge(gamma=0.3)", "gpo(beta=0.3, link='hinge')"),
    ("simpo(beta=2, gamma=0.5)", "alphapo(beta=2, gamma=0.5, alpha=0)"),
    ("maxpo(beta=0, temperature=1)", "maxpo(beta=0)"),
    ("dpo(beta=0.1)+chosen_nll(weight=0.0005)", "rpo(beta=0.1, eta=0.005)"),
    ("simpo(beta=0.3, gamma=0)+sft", "simpo(beta=0.3, gamma=0)+chosen_nll(weight=1, per_token=True)"),
    ("slic_hf(delta=1, lam=0.2, target='chosen')", "slic_hf(delta=1, lam=0)+chosen_nll(weight=0.2)"),
]


@pytest.mark.parametrize(("one", "other"), IDENTITIES)
def test_identity(one: str, other: str) -> None:
    for got, expected in zip(losses_and_gradients(one, pairs(0)), losses_and_gradients(other, pairs(0)), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("tau", [0.05, 0.3])
def test_squared_gpo_is_a_multiple_of_ipo(tau: float) -> None:
    """With beta = 2 tau it is 4 tau^2 times IPO."""
    squared = losses_and_gradients(f"gpo(beta={2 * tau}, link='square')", pairs(1))
    identity = losses_and_gradients(f"ipo(tau={tau})", pairs(1))
    for got, expected in zip(squared, identity, strict=True):
        torch.testing.assert_close(got, 4 * tau**2 * expected, rtol=1e-12, atol=1e-13)


def test_alphapo_tends_to_simpo() -> None:
    batch = pairs(2)
    limit = losses_and_gradients("simpo(beta=2, gamma=1)", batch)[0]
    distances = [
        float((losses_and_gradients(f"alphapo(beta=2, gamma=1, alpha={alpha})", batch)[0] - limit).abs().max())
        for alpha in (1e-3, 1e-4)
    ]
    assert distances[0] < 0.1
    assert distances[1] == pytest.approx(distances[0] / 10, rel=0.05)


def test_exo_pref_is_exo_rw_of_two_candidates_with_smoothed_rewards() -> None:
    """The reward gap log((1-e)/e) at beta_reward 1 makes the target (1 - e, e)."""
    batch = pairs(3)
    candidates = batch.as_candidates()
    gap = math.log(0.99 / 0.01)
    scored = CandidateBatch(
        logps=candidates.logps,
        ref_logps=candidates.ref_logps,
        rewards=torch.tensor([gap, 0.0], dtype=torch.float64).expand_as(candidates.logps),
    )
    ours = objectives.get("exo_rw", beta_policy=0.3, beta_reward=1.0).terms[0].loss(scored)
    theirs = objectives.get("exo_pref", beta=0.3, label_smoothing=0.01).pair_losses(batch)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_ld_dpo_and_sampo_are_dpo_where_lengths_agree() -> None:
    batch = pairs(4)
    ones = torch.ones_like(batch.require("chosen_mask", "test"))
    chosen, rejected = (batch.require(f"{side}_token_logps", "test") for side in ("chosen", "rejected"))
    ref_chosen, ref_rejected = (batch.require(f"ref_{side}_token_logps", "test") for side in ("chosen", "rejected"))
    batch = replace(
        batch,
        chosen_mask=ones,
        rejected_mask=ones,
        chosen_keep=None,
        rejected_keep=None,
        chosen_logps=chosen.sum(-1),
        rejected_logps=rejected.sum(-1),
        ref_chosen_logps=ref_chosen.sum(-1),
        ref_rejected_logps=ref_rejected.sum(-1),
    )
    expected = objectives.get("dpo", beta=0.3).pair_losses(batch)
    for label in ("ld_dpo(beta=0.3, alpha=0.2)", "sampo(beta=0.3)", "sampo(beta=0.3, selection='expected')"):
        torch.testing.assert_close(objectives.parse(label).pair_losses(batch), expected, rtol=1e-11, atol=1e-12)


def test_mrpo_with_one_reference_is_dpo() -> None:
    batch = pairs(5)
    single = replace(
        batch,
        chosen_reference_logps=batch.require("ref_chosen_logps", "test").unsqueeze(-1),
        rejected_reference_logps=batch.require("ref_rejected_logps", "test").unsqueeze(-1),
    )
    for clip in (None, 0.1):
        mrpo = objectives.get("mrpo", beta=0.3, weights=(1.0,), clip=clip).pair_losses(single)
        torch.testing.assert_close(mrpo, objectives.get("dpo", beta=0.3).pair_losses(batch), rtol=1e-12, atol=1e-13)


def test_aot_of_one_pair_is_dpo() -> None:
    batch = pairs(6)
    one = PairBatch(**{name: tensor[:1] for name, tensor in batch.tensors().items()})
    aot, dpo = (objectives.get(name, beta=0.3).pair_losses(one) for name in ("aot", "dpo"))
    torch.testing.assert_close(aot, dpo, rtol=1e-13, atol=0)

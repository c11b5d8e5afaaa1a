"""The coefficients that margins declare, from which an exact solver differentiates, against autograd."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import objectives
from objectives import Margin, PairBatch, PairTerm, margins
from objectives.checks import random_batch

AFFINE = {
    margin.name: margin
    for margin in [
        *(margins.select(adjusted=a, normalized=n) for a in (False, True) for n in (False, True)),
        margins.chosen_ratio,
        margins.rejected_ratio,
        margins.length_shifted(0.3),
        margins.against_win_rate(margins.chosen_ratio, 0.5),
        margins.against_win_rate(margins.rejected_ratio, 0.5),
        *(
            term.margin
            for name in objectives.names()
            for term in objectives.get(name).terms
            if isinstance(term, PairTerm) and term.margin is not None and term.margin.coefficients is not None
        ),
    ]
}


@pytest.mark.parametrize("margin", AFFINE.values(), ids=AFFINE)
def test_coefficients_are_the_gradient(margin: Margin) -> None:
    """c_w p_w - c_l p_l + constant: the gradient is (c_w, -c_l), at any log-probs."""
    batch = random_batch("pairs", 5, torch.Generator().manual_seed(0))
    assert isinstance(batch, PairBatch)
    assert margin.coefficients is not None
    chosen, rejected = (torch.as_tensor(c, dtype=torch.float64).expand(5) for c in margin.coefficients(batch))
    for seed in (1, 2):
        other = random_batch("pairs", 5, torch.Generator().manual_seed(seed))
        assert isinstance(other, PairBatch)
        leaves = other.chosen_logps.clone().requires_grad_(), other.rejected_logps.clone().requires_grad_()
        value = margin.value(replace(batch, chosen_logps=leaves[0], rejected_logps=leaves[1]), "test")
        gradients = torch.autograd.grad(value.sum(), leaves, materialize_grads=True)
        torch.testing.assert_close(gradients[0], chosen, rtol=1e-14, atol=0)
        torch.testing.assert_close(gradients[1], -rejected, rtol=1e-14, atol=0)

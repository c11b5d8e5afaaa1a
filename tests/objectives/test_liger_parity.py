"""Value and gradient against Liger-Kernel's chunked losses, which fuse the vocabulary head: gradients reach its weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import objectives
from objectives import PairBatch, UnpairedBatch

chunked = pytest.importorskip("liger_kernel.chunked_loss")

N, T, HIDDEN, VOCABULARY = 5, 7, 6, 11
IGNORED = -100


class Head:
    """A random vocabulary head over random hidden states: chosen responses first, then rejected; the reference has its own weight."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.weight = normal(VOCABULARY, HIDDEN).requires_grad_()
        self.reference_weight = self.weight.detach() + 0.3 * normal(VOCABULARY, HIDDEN)
        self.hidden = normal(2 * N, T, HIDDEN)
        lengths = torch.randint(2, T + 1, (2 * N, 1), generator=generator)
        self.mask = torch.arange(T) < lengths
        tokens = torch.randint(0, VOCABULARY, (2 * N, T), generator=generator)
        self.target = torch.where(self.mask, tokens, IGNORED)

    def logps(self, weight: Tensor) -> Tensor:
        """(2 N,): summed over the response's tokens."""
        tokens = (self.hidden @ weight.T).log_softmax(-1).gather(-1, self.target.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        return (tokens * self.mask).sum(-1)

    def pairs(self) -> PairBatch:
        chosen, rejected = self.logps(self.weight).chunk(2)
        ref_chosen, ref_rejected = self.logps(self.reference_weight).chunk(2)
        chosen_lengths, rejected_lengths = self.mask.sum(-1).double().chunk(2)
        return PairBatch(
            chosen_logps=chosen,
            rejected_logps=rejected,
            ref_chosen_logps=ref_chosen,
            ref_rejected_logps=ref_rejected,
            chosen_lengths=chosen_lengths,
            rejected_lengths=rejected_lengths,
        )


def assert_same(ours: Tensor, theirs: Tensor, weight: Tensor, tolerance: float = 1e-5) -> None:
    """Liger sums its loss in float32, whatever the inputs."""
    torch.testing.assert_close(ours, theirs.double(), rtol=tolerance, atol=tolerance)
    ours_gradient, theirs_gradient = (torch.autograd.grad(value, weight)[0] for value in (ours, theirs))
    assert float(theirs_gradient.abs().max()) > 1e-3
    torch.testing.assert_close(ours_gradient, theirs_gradient, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("label", "settings"),
    [
        ("dpo(beta=0.3)", {"loss_type": "sigmoid"}),
        ("rso_hinge(gamma=0.3)", {"loss_type": "hinge"}),
        ("exo_pref(beta=0.3, label_smoothing=0.01)", {"loss_type": "exo_pair", "label_smoothing": 0.01}),
        ("nca(beta=0.3)", {"loss_type": "nca_pair"}),
        ("robust_dpo(beta=0.3, label_smoothing=0.1)", {"loss_type": "robust", "label_smoothing": 0.1}),
        ("bco(beta=0.3, delta=0)", {"loss_type": "bco_pair"}),
        ("sppo(beta=0.3)", {"loss_type": "sppo_hard"}),
        ("apo_zero(beta=0.3)", {"loss_type": "apo_zero"}),
        ("apo_down(beta=0.3)", {"loss_type": "apo_down"}),
        ("discopop(beta=0.3)", {"loss_type": "discopop", "discopop_tau": 0.05}),
    ],
)
def test_dpo(label: str, settings: dict[str, Any]) -> None:
    head = Head(0)
    loss = chunked.LigerFusedLinearDPOLoss(beta=0.3, compiled=False, average_log_prob=False, **settings)
    theirs = loss(head.weight, head.hidden, head.target, ref_input=head.hidden, ref_weight=head.reference_weight)
    theirs = theirs[0] if isinstance(theirs, tuple) else theirs
    assert_same(objectives.parse(label).value({"pairs": head.pairs()}), theirs, head.weight)


def test_simpo_gamma_is_absolute_in_both() -> None:
    """Liger documents its gamma as the target margin itself; a ratio gamma/beta would be another loss."""
    head = Head(1)
    loss = chunked.LigerFusedLinearSimPOLoss(beta=2.0, gamma=0.5, alpha=0.0, compute_nll_loss=False, compiled=False)
    theirs = loss(head.weight, head.hidden, head.target)
    theirs = theirs[0] if isinstance(theirs, tuple) else theirs
    assert_same(objectives.get("simpo", beta=2.0, gamma=0.5).value({"pairs": head.pairs()}), theirs, head.weight)


def test_cpo_without_its_likelihood() -> None:
    head = Head(2)
    loss = chunked.LigerFusedLinearCPOLoss(
        beta=0.3, alpha=0.0, compute_nll_loss=False, compiled=False, average_log_prob=False
    )
    theirs = loss(head.weight, head.hidden, head.target)
    theirs = theirs[0] if isinstance(theirs, tuple) else theirs
    assert_same(objectives.get("cpo", beta=0.3, alpha=0).value({"pairs": head.pairs()}), theirs, head.weight)


def test_difference_likelihood_averages_over_the_batchs_tokens() -> None:
    """Liger's NLL is one mean over all chosen tokens, ours the mean over responses of token means: equal for equal lengths only."""
    head = Head(3)
    loss = chunked.LigerFusedLinearORPOLoss(beta=0.1, compiled=False)

    def both() -> tuple[Tensor, Tensor]:
        theirs = loss(head.weight, head.hidden, head.target)
        theirs = theirs[0] if isinstance(theirs, tuple) else theirs
        return objectives.get("orpo", lam=0.1).value({"pairs": head.pairs()}), theirs

    ours, theirs = both()
    assert abs(ours.item() - theirs.item()) > 1e-3
    head.mask = torch.ones_like(head.mask)
    head.target = torch.randint(0, VOCABULARY, head.target.shape, generator=torch.Generator().manual_seed(0))
    assert_same(*both(), head.weight, tolerance=1e-5)


def test_kto() -> None:
    head = Head(4)
    desirable = torch.arange(2 * N) % 3 != 0
    batch = UnpairedBatch(
        logps=head.logps(head.weight),
        ref_logps=head.logps(head.reference_weight),
        desirable=desirable,
        mismatched_logps=torch.full((2 * N,), -3.0, dtype=torch.float64),
        ref_mismatched_logps=torch.full((2 * N,), -3.4, dtype=torch.float64),
    )
    loss = chunked.LigerFusedLinearKTOLoss(beta=0.3, compiled=False, use_ref_model=True)
    theirs = loss(
        head.hidden,
        head.weight,
        head.target,
        preference_labels=desirable,
        ref_input=head.hidden,
        ref_weight=head.reference_weight,
        kl=torch.tensor(0.4, dtype=torch.float64),
    )
    theirs = theirs[0] if isinstance(theirs, tuple) else theirs
    assert_same(objectives.get("kto", beta=0.3).value({"unpaired": batch}), theirs, head.weight)

"""Self-checks of any registered objective, a third party's too: gradients, extremes, per-example shape, margins at step 0."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from objectives.batches import Batch, PairBatch, SampleBatch
from objectives.errors import ObjectiveError
from objectives.registry import get
from objectives.terms import Objective

EXTREMES = (0.0, -1e-3, -1.0, -50.0, -800.0, -1e4)


@dataclass(frozen=True)
class CheckResult:
    """One self-check: its name, whether it passed, and if not why."""

    objective: str
    check: str
    passed: bool
    reason: str = ""


def check(name: str) -> list[CheckResult]:
    """Run every self-check on ``name`` at its default hyper-parameters.

    Raises:
        ObjectiveError: an unknown name.
    """
    objective = get(name)
    if objective.needs_temperature:
        objective = objective.with_temperature(1.0)
    return [_run(objective, title, function) for title, function in CHECKS.items()]


def _run(objective: Objective, title: str, function: Callable[[Objective], str]) -> CheckResult:
    try:
        reason = function(objective)
    except Exception as error:  # a third party's loss may raise anything; the report must go on
        reason = f"{type(error).__name__}: {error}"
    return CheckResult(objective.name, title, not reason, reason)


def random_batch(source: str, examples: int, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Batch:
    """A batch of ``source`` with every field set: log-probs in (-40, -1), lengths 4..12."""

    def logps() -> Tensor:
        return (-1 - 39 * torch.rand(examples, generator=generator, dtype=torch.float64)).to(dtype)

    def lengths() -> Tensor:
        return torch.randint(4, 13, (examples,), generator=generator).to(dtype)

    if source == "pairs":
        return PairBatch(
            chosen_logps=logps(),
            rejected_logps=logps(),
            ref_chosen_logps=logps(),
            ref_rejected_logps=logps(),
            chosen_lengths=lengths(),
            rejected_lengths=lengths(),
        )
    if source in ("reference_samples", "pretraining"):
        return SampleBatch(logps=logps(), lengths=lengths(), token_kl=-logps())
    raise ObjectiveError(f"no random batch for the source {source!r}")


def _sources(objective: Objective) -> list[str]:
    return list(dict.fromkeys(term.source for term in objective.terms))


def _differentiable(batch: Batch) -> dict[str, Tensor]:
    """What depends on the policy: its log-probs and the KL of its token distributions, not the reference's."""
    return {
        name: tensor
        for name, tensor in batch.tensors().items()
        if (name.endswith("logps") and not name.startswith("ref_")) or name == "token_kl"
    }


def _gradient(objective: Objective) -> str:
    """Finite differences in float64 against autograd, at random log-probs."""
    generator = torch.Generator().manual_seed(0)
    for source in _sources(objective):
        batch = random_batch(source, 6, generator)
        inputs = _differentiable(batch)

        def losses(
            *values: Tensor, batch: Batch = batch, inputs: dict[str, Tensor] = inputs, source: str = source
        ) -> Tensor:
            moved = replace(batch, **dict(zip(inputs, values, strict=True)))
            return sum(
                (term.loss(moved) for term in objective.terms if term.source == source),
                start=torch.zeros(6, dtype=torch.float64),
            )

        leaves = tuple(tensor.clone().requires_grad_() for tensor in inputs.values())
        torch.autograd.gradcheck(losses, leaves, eps=1e-6, atol=1e-6, rtol=1e-5)
    return ""


def _extremes(objective: Objective) -> str:
    """Losses and gradients stay finite for log-probs from 0 to -1e4, in float32 and bfloat16."""
    for dtype in (torch.float32, torch.bfloat16):
        for source, batch in _extreme_batches(objective, dtype):
            inputs = {key: tensor.clone().requires_grad_() for key, tensor in _differentiable(batch).items()}
            moved = replace(batch, **inputs)
            for term in objective.terms:
                if term.source != source:
                    continue
                losses = term.loss(moved)
                if not bool(torch.isfinite(losses).all()):
                    return f"{term.name}: a loss is not finite for log-probs in 0..-1e4 ({dtype})"
                gradients = torch.autograd.grad(losses.sum(), list(inputs.values()), allow_unused=True)
                if any(g is not None and not bool(torch.isfinite(g).all()) for g in gradients):
                    return f"{term.name}: a gradient is not finite for log-probs in 0..-1e4 ({dtype})"
    return ""


def _extreme_batches(objective: Objective, dtype: torch.dtype) -> Iterator[tuple[str, Batch]]:
    """Batches that hold every combination of extreme log-probs."""
    for source in _sources(objective):
        names = [
            n for n in random_batch(source, 1, torch.Generator()).tensors() if n.endswith("logps") or n == "token_kl"
        ]
        grid = torch.cartesian_prod(*[torch.tensor(EXTREMES)] * len(names)).reshape(-1, len(names)).to(dtype)
        template = random_batch(source, len(grid), torch.Generator().manual_seed(1), dtype)
        columns = {n: (-grid[:, i] if n == "token_kl" else grid[:, i]) for i, n in enumerate(names)}
        yield source, replace(template, **columns)


def _per_example(objective: Objective) -> str:
    """A loss of one example does not depend on the others' order: permuting the batch permutes the losses."""
    generator = torch.Generator().manual_seed(2)
    for source in _sources(objective):
        batch = random_batch(source, 7, generator)
        order = torch.randperm(7, generator=generator)
        permuted = replace(batch, **{name: tensor[order] for name, tensor in batch.tensors().items()})
        for term in objective.terms:
            if term.source != source:
                continue
            losses = term.loss(batch)
            if losses.shape != (7,):
                return f"{term.name}: expected one loss per example, shape (7,); got {tuple(losses.shape)}"
            if not torch.allclose(losses[order], term.loss(permuted), rtol=1e-12, atol=1e-12):
                return f"{term.name}: losses change when the examples change places"
    return ""


def _step_zero(objective: Objective) -> str:
    """With policy = reference, a loss that compares with the reference does not depend on what the log-probs are (margin 0)."""
    for term in objective.terms:
        if term.source != "pairs" or "ref_logps" not in term.needs:
            continue
        starts = [_at_reference(seed) for seed in (3, 4)]
        margin = getattr(term, "margin", None)
        if margin is not None and not bool((margin.value(starts[0], term.name) == 0).all()):
            return f"{term.name}: the margin {margin.name} is not exactly 0 where policy and reference agree"
        first, second = (term.loss(start) for start in starts)
        if not torch.equal(first, second):
            return f"{term.name}: where policy and reference agree, the loss still depends on the log-probs"
    return ""


def _at_reference(seed: int) -> PairBatch:
    """A batch whose policy is the reference; batches of other seeds differ in their log-probs alone."""
    batch = random_batch("pairs", 8, torch.Generator().manual_seed(0))
    moved = random_batch("pairs", 8, torch.Generator().manual_seed(seed))
    assert isinstance(batch, PairBatch)
    assert isinstance(moved, PairBatch)
    chosen, rejected = moved.chosen_logps, moved.rejected_logps
    return replace(
        batch, chosen_logps=chosen, rejected_logps=rejected, ref_chosen_logps=chosen, ref_rejected_logps=rejected
    )


CHECKS: dict[str, Callable[[Objective], str]] = {
    "gradient": _gradient,
    "extremes": _extremes,
    "per example": _per_example,
    "step-0 margin": _step_zero,
}

"""Self-checks of any registered objective, a third party's too: gradients, extremes, per-example shape, margins at step 0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from objectives.batches import Batch, CandidateBatch, PairBatch, SampleBatch, UnpairedBatch
from objectives.registry import get
from objectives.terms import Objective
from objectives.values import frozen

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
    """A batch of ``source`` with every field set: log-probs in (-40, -1), lengths 4..12, 3 candidates, 2 references."""
    return BUILDERS[source](Draw(examples, generator, dtype))


@dataclass(frozen=True)
class Draw:
    """Random log-probs and lengths for ``examples`` examples."""

    examples: int
    generator: torch.Generator
    dtype: torch.dtype

    def uniform(self, low: float, high: float, *trailing: int) -> Tensor:
        """(examples, *trailing) in (low, high)."""
        unit = torch.rand(self.examples, *trailing, generator=self.generator, dtype=torch.float64)
        return (low + (high - low) * unit).to(self.dtype)

    def logps(self, *trailing: int) -> Tensor:
        """Log-probs of whole responses."""
        return self.uniform(-40.0, -1.0, *trailing)


def _random_pairs(draw: Draw) -> PairBatch:
    fields: dict[str, Tensor] = {}
    positions = torch.arange(12)
    for side in ("chosen", "rejected"):
        lengths = torch.randint(4, 13, (draw.examples,), generator=draw.generator)
        mask = (positions < lengths.unsqueeze(-1)).to(draw.dtype)
        fields |= {
            f"{side}_logps": draw.logps(),
            f"ref_{side}_logps": draw.logps(),
            f"{side}_lengths": lengths.to(draw.dtype),
            f"{side}_mask": mask,
            f"{side}_keep": (draw.uniform(0.0, 1.0, 12) < 0.5).to(draw.dtype),
            f"{side}_token_logps": draw.uniform(-5.0, -0.1, 12),
            f"ref_{side}_token_logps": draw.uniform(-5.0, -0.1, 12),
            f"{side}_log_collisions": draw.uniform(-2.0, -0.1, 12),
            f"{side}_token_kl": -draw.logps(),
            f"{side}_reference_logps": draw.logps(2),
        }
    return PairBatch(win_rates=draw.uniform(0.5, 1.0), **fields)


def _random_samples(draw: Draw) -> SampleBatch:
    return SampleBatch(
        logps=draw.logps(), lengths=draw.uniform(4.0, 12.0).round(), token_kl=-draw.logps(), policy_kl=-draw.logps()
    )


def _random_candidates(draw: Draw) -> CandidateBatch:
    return CandidateBatch(logps=draw.logps(3), ref_logps=draw.logps(3), rewards=draw.uniform(-1.0, 1.0, 3))


def _random_unpaired(draw: Draw) -> UnpairedBatch:
    return UnpairedBatch(
        logps=draw.logps(),
        ref_logps=draw.logps(),
        mismatched_logps=draw.logps(),
        ref_mismatched_logps=draw.logps(),
        desirable=draw.uniform(0.0, 1.0) < 0.5,
    )


BUILDERS: dict[str, Callable[[Draw], Batch]] = {
    "pairs": _random_pairs,
    "reference_samples": _random_samples,
    "pretraining": _random_samples,
    "rollouts": _random_samples,
    "candidates": _random_candidates,
    "unpaired": _random_unpaired,
}


def _sources(objective: Objective) -> list[str]:
    return list(dict.fromkeys(term.source for term in objective.terms))


def _differentiable(batch: Batch) -> dict[str, Tensor]:
    """What depends on the policy: its log-probs and the KL of its token distributions, not the reference's."""
    return {
        name: tensor
        for name, tensor in batch.tensors().items()
        if name.endswith(("logps", "_kl")) and not name.startswith("ref_") and "reference" not in name
    }


def _gradient(objective: Objective) -> str:
    """Finite differences in float64 against autograd, at random log-probs; what a loss holds fixed is held fixed in both."""
    generator = torch.Generator().manual_seed(0)
    for source in _sources(objective):
        batch = random_batch(source, 6, generator)
        inputs = _differentiable(batch)
        with frozen() as rewind:

            def losses(
                *values: Tensor, batch: Batch = batch, inputs: dict[str, Tensor] = inputs, source: str = source
            ) -> Tensor:
                rewind()
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
        for source in _sources(objective):
            batch = _extreme_batch(source, dtype)
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


def _extreme_batch(source: str, dtype: torch.dtype) -> Batch:
    """Every combination of extreme log-probs of whole responses; random extremes for tokens, candidates and references."""
    generator = torch.Generator().manual_seed(1)
    extremes = torch.tensor(EXTREMES)
    main = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
    grid = torch.cartesian_prod(*[extremes] * len(main))
    template = random_batch(source, len(grid), generator, dtype)
    fields = {
        name: extremes[torch.randint(len(EXTREMES), tensor.shape, generator=generator)].to(dtype)
        for name, tensor in template.tensors().items()
        if name.endswith(("logps", "_kl"))
    }
    fields |= {name: -value for name, value in fields.items() if name.endswith("_kl")}
    if source == "pairs":
        fields |= {name: grid[:, i].to(dtype) for i, name in enumerate(main)}
    return replace(template, **fields)


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
        if not any(need.startswith("ref_") for need in term.needs):
            continue
        starts = [_at_reference(term.source, seed) for seed in (3, 4)]
        margin = getattr(term, "margin", None)
        if margin is not None and not bool((margin.value(starts[0], term.name) == 0).all()):
            return f"{term.name}: the margin {margin.name} is not exactly 0 where policy and reference agree"
        first, second = (term.loss(start) for start in starts)
        if not torch.equal(first, second):
            return f"{term.name}: where policy and reference agree, the loss still depends on the log-probs"
    return ""


def _at_reference(source: str, seed: int) -> Batch:
    """A batch whose policy is the reference, responses of equal length; other seeds change the log-probs of responses alone."""
    batch = random_batch(source, 8, torch.Generator().manual_seed(0))
    moved = random_batch(source, 8, torch.Generator().manual_seed(seed)).tensors()
    fields = batch.tensors()
    fields |= {n: moved[n] for n in fields if n.endswith("logps") and "token" not in n}
    fields |= {f"ref_{n}": tensor for n, tensor in fields.items() if f"ref_{n}" in fields}
    fields |= {n: torch.zeros_like(tensor) for n, tensor in fields.items() if n.endswith("_kl")}
    fields |= {n.replace("chosen", "rejected"): fields[n] for n in ("chosen_lengths", "chosen_mask") if n in fields}
    return replace(batch, **fields)


CHECKS: dict[str, Callable[[Objective], str]] = {
    "gradient": _gradient,
    "extremes": _extremes,
    "per example": _per_example,
    "step-0 margin": _step_zero,
}

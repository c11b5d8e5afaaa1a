"""`solve` for policies with parameters: Newton in theta, and what can be proved of the answer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from objectives import Objective
from toy_bandits import batching
from toy_bandits.certificates import LONG_DRIFT, ROUNDING, reach
from toy_bandits.checks import check_losses
from toy_bandits.details import Details
from toy_bandits.errors import BanditError
from toy_bandits.newton import FLAT_CURVATURE
from toy_bandits.policies.derivatives import PolicyFunction
from toy_bandits.policies.newton import Minimum, minimise, scaled_hessian
from toy_bandits.policies.recession import TOLERANCE, Recession, analyse
from toy_bandits.policies.softmaxes import Softmaxes
from toy_bandits.problem import Array, Bandit
from toy_bandits.solution import STATUSES, Answer, Certificate, Solution, in_words
from toy_bandits.uniqueness import only_minimum

if TYPE_CHECKING:
    from toy_bandits.policies.base import Policy

CELLS = 4_000_000
"""Size of the tables held at a time; larger batches are solved in pieces."""
SAME_VALUE = 1e-10
SAME_POLICY = 1e-6
NUDGE = 0.5
"""How far, in parameters, an answer without curvature is pushed to see whether it is one of many."""
ELSEWHERE = 1e-2
"""Change of a probability from which on the pushed answer counts as another."""
FOLLOW = 30.0
CONVERGED, DIVERGES, NOT_UNIQUE, UNSOLVED = range(4)
"""Indices into `toy_bandits.solver.STATUSES`."""


@dataclass(frozen=True, kw_only=True)
class PolicySolution(Solution):
    """`toy_bandits.Solution` of a policy with parameters theta (..., P).

    `gradient_norm` is that of the gradient in theta, `logits` are log-probs of the responses, and `Certificate.dimension` counts the
    directions of theta that change the policy but not the objective.

    Attributes:
        parameters: (..., P); for "diverges" a far point on the direction.
        parameter_direction: (..., P), along which the objective falls for ever; 0 unless the status is "diverges".
            `Certificate.direction` is how fast each response's log-prob falls along it, 0 for those that survive.
    """

    parameters: Tensor
    parameter_direction: Tensor


@dataclass
class PolicyAnswer(Answer):
    """Solutions of a flattened batch."""

    parameters: Tensor
    parameter_direction: Tensor
    curvature: Tensor


@dataclass(frozen=True)
class PolicyDetails(Details):
    """The same of a policy with parameters: rates where its divergence is a straight line of logits, KL where it is one number."""

    linear: bool
    lowest: Tensor

    @cached_property
    def curvature(self) -> Any:
        """That in the parameters, (...)."""
        return self._plain(self.lowest)

    @classmethod
    def of(
        cls, whole: dict[str, Tensor], problem: Bandit, objective: Objective, shape: torch.Size, linear: bool
    ) -> PolicyDetails:
        """From the fields of a whole batch's answers."""
        own = {f.name: whole[f.name] for f in fields(Details) if f.name in whole}
        alone = torch.zeros_like(whole["logits"], dtype=torch.long)  # no actions move freely by themselves
        lowest = whole["curvature"]
        return cls(problem=problem, objective=objective, shape=shape, linear=linear, lowest=lowest, groups=alone, **own)

    @cached_property
    def rate(self) -> tuple[Any, Any]:
        """Rate and slope, each (...); NaN over a token tree."""
        if self.linear:
            return super().rate
        unknown = torch.full_like(self.logits[:, 0, 0], math.nan)
        return self._plain(unknown), self._plain(unknown)

    def _range(self, index: Tensor) -> tuple[float, float]:
        return math.nan, math.nan


def solve_policy(
    policy: Policy,
    problem: Bandit,
    objective: Objective,
    start: Array | None,
    *,
    starts: int,
    seed: int,
    progress: bool,
) -> PolicySolution:
    """As `toy_bandits.solve`, over the parameters of ``policy``; ``start`` (..., P) are parameters."""
    shape, flat, spread, form, begin = prepared(policy, problem, objective, start)
    cells = (
        form.features.shape[0] * form.paths.shape[0] * max(form.parameters, form.paths.shape[0]) + form.parameters**2
    )
    answers = []
    for index in torch.split(torch.arange(len(begin), device=begin.device), max(1, CELLS // cells)):
        some = _Batch(flat.take(index), batching.take(spread, index), form.take(index), begin[index])
        answers.append(_solve(some, policy, starts, seed, progress))
    return assemble(problem, answers, shape, lambda whole: PolicyDetails.of(whole, flat, spread, shape, form.linear))


def prepared(
    policy: Policy, problem: Bandit, objective: Objective, start: Array | None
) -> tuple[torch.Size, Bandit, Objective, Softmaxes, Tensor]:
    """The batch's shape, and problems, objective, policy and first parameters (B, P) laid out along one dimension.

    Raises:
        BanditError: policy or start do not fit the problem, or leading dimensions do not broadcast.
    """
    given = None if start is None else torch.as_tensor(start).detach().to(problem.reference)
    shape = batching.common_shape(problem.batch_shape, objective, () if given is None else given.shape[:-1])
    flat = policy.measured(problem).flattened(shape).with_contexts()
    form = policy.softmaxes(flat)
    if given is None:
        begin = policy.first(flat, form)
    elif given.ndim < 1 or given.shape[-1] != form.parameters:
        raise BanditError(f"start: expected parameters of shape (..., {form.parameters}), got {tuple(given.shape)}")
    elif not bool(torch.isfinite(given).all()):
        raise BanditError("start: parameters must be finite")
    else:
        begin = given.expand(*shape, form.parameters).reshape(-1, form.parameters)
    return shape, flat, batching.flattened(objective, shape, problem.reference.device), form, begin


@dataclass
class _Batch:
    """Flattened problems with all that belongs to them."""

    problem: Bandit
    objective: Objective
    form: Softmaxes
    start: Tensor

    def take(self, index: Tensor) -> _Batch:
        return _Batch(
            self.problem.take(index), batching.take(self.objective, index), self.form.take(index), self.start[index]
        )

    def function(self, index: Tensor | None = None) -> PolicyFunction:
        some = self if index is None else self.take(index)
        return PolicyFunction(some.problem, some.objective, some.form)


def _solve(batch: _Batch, policy: Policy, starts: int, seed: int, progress: bool) -> PolicyAnswer:
    """Each group of problems of one structure by itself, put together again in order."""
    check_losses(batch.problem, batch.objective, batch.form.log_policy(batch.start))
    function = batch.function()
    if batch.form.linear:
        groups = analyse(function.tabular, batch.form)
    else:
        everything = torch.arange(len(batch.start), device=batch.start.device)
        groups = [(everything, Recession(batch.form.effective, 0, batch.start.new_zeros(batch.form.parameters)))]
    answers = []
    for index, proof in groups:
        some = batch.take(index)
        begin = some.start + reach(function.tabular)[index, None] * proof.direction
        if function.convex or not proof.basis.shape[-1]:
            found = _minimise(some, begin, proof.basis, progress)
            minima, tie = torch.ones_like(found.iterations), torch.zeros_like(found.converged)
        else:
            found, minima, tie = _best_of(some, policy, begin, proof.basis, starts, seed, progress)
        answers.append(_judge(some, proof, found, minima, tie))
    order = torch.cat([index for index, _ in groups]).argsort()
    return PolicyAnswer(*(torch.cat([getattr(a, f.name) for a in answers])[order] for f in fields(PolicyAnswer)))


def _minimise(batch: _Batch, start: Tensor, basis: Tensor, progress: bool = False) -> Minimum:
    return minimise(batch.function, start, basis, progress=progress)


def _best_of(
    batch: _Batch, policy: Policy, begin: Tensor, basis: Tensor, starts: int, seed: int, progress: bool
) -> tuple[Minimum, Tensor, Tensor]:
    """The best minimum from several starts, the number of distinct minima, and whether the best is tied with another."""
    candidates = _starts(batch, policy, begin, basis, starts, seed)
    total, count = candidates.shape[:2]
    index = torch.arange(count, device=begin.device).repeat(total)
    repeated = batch.take(index)
    found = _minimise(repeated, candidates.flatten(0, 1), basis, progress)
    value = torch.where(found.converged | found.escaping, found.value, torch.inf).reshape(total, count)
    best = value.amin(0)
    as_good = value <= best + SAME_VALUE * (1.0 + best.abs())
    finite = found.converged.reshape(total, count)
    lowest = _curvature(repeated.function(), found, basis).reshape(total, count)
    # Of equally good ends the first start's; an attained minimum before one at infinity.
    order = torch.arange(total, device=begin.device)[:, None]
    chosen = torch.where(as_good, torch.where(finite, 0, total) + order, 3 * total).argmin(0)
    policies = repeated.form.log_policy(found.parameters).exp().reshape(total, count, -1)
    apart = (policies.unsqueeze(0) - policies.unsqueeze(1)).abs().amax(-1) > SAME_POLICY
    # Ends in a flat valley differ in place without being different minima: their value tells.
    curved = lowest > FLAT_CURVATURE
    higher = (value.unsqueeze(0) - value.unsqueeze(1)).abs() > SAME_VALUE * (1.0 + best.abs())
    differ = torch.where(curved.unsqueeze(0) & curved.unsqueeze(1), apart, higher)
    earlier = torch.ones(total, total, dtype=torch.bool, device=begin.device).triu(1).unsqueeze(-1)
    minimal = finite & (lowest > -FLAT_CURVATURE)
    minima = (minimal & ~(~differ & earlier & minimal.unsqueeze(1)).any(0)).sum(0)
    here = torch.arange(count, device=begin.device)
    tie = (as_good & minimal & apart[chosen, :, here].T & curved & curved[chosen, here]).any(0)
    return found.take(chosen * count + here), minima, tie


def _starts(batch: _Batch, policy: Policy, begin: Tensor, basis: Tensor, starts: int, seed: int) -> Tensor:
    """(S, B, P): the given start, the policy's own, each of several responses made likely, random ones; all within ``begin`` + basis."""
    form, generator = batch.form, torch.Generator(device="cpu").manual_seed(seed)
    own = policy.first(batch.problem, form)
    features = form.features.flatten(0, 1)
    on_top = min(form.paths.shape[0], starts // 2)
    wins = batch.problem.label_weights.sum(-1) - batch.problem.label_weights.sum(-2)
    wanted = form.on_path[wins.sum(1).argsort(-1, descending=True)[:, :on_top]]  # (B, S, E)
    edges = 5.0 * wanted.unsqueeze(-2).expand(-1, -1, form.features.shape[0], -1).flatten(-2)
    shifts = list((edges @ torch.linalg.pinv(features).T).unbind(1))
    size = features.norm(dim=-1).square().mean().sqrt()
    for i in range(starts - on_top):
        noise = torch.randn(form.parameters, generator=generator, dtype=begin.dtype).to(begin)
        shifts.append((2.0 * math.sqrt(1.0 + i) / size * noise).expand_as(begin))
    moved = torch.stack([begin, *(own + shift for shift in [torch.zeros_like(begin), *shifts])])
    return begin + (moved - begin) @ basis @ basis.T


def _curvature(function: PolicyFunction, found: Minimum, basis: Tensor) -> Tensor:
    """(B,): smallest eigenvalue of the Hessian along the basis, its diagonal scaled to 1; 1 where there is no direction."""
    if not basis.shape[-1]:
        return torch.ones_like(found.value)
    scaled, _ = scaled_hessian(basis.T @ function(found.parameters).hessian @ basis)
    lowest: Tensor = torch.linalg.eigvalsh(scaled)[:, 0]
    return lowest


def _judge(batch: _Batch, proof: Recession, found: Minimum, minima: Tensor, tie: Tensor) -> PolicyAnswer:
    """Status and certificate of each problem from what is proved and what was found."""
    function, theta = batch.function(), found.parameters
    lowest = _curvature(function, found, proof.basis)
    known = torch.full_like(found.converged, proof.diverges)
    runs_away, away = _runs_away(batch, function, proof, found, lowest)
    diverges = known | runs_away
    converged = found.converged & ~diverges
    flat = torch.zeros_like(found.iterations)
    if not proof.unique:
        flat = _flat(batch, function, proof, found, converged & (lowest <= FLAT_CURVATURE))
        flat = flat.clamp(min=int(proof.unbounded))
    dimension = torch.where(diverges, 0, proof.free + flat)
    status = torch.full_like(dimension, UNSOLVED)
    status = torch.where(converged, torch.where((dimension > 0) | tie, NOT_UNIQUE, CONVERGED), status)
    status = torch.where(diverges, DIVERGES, status)
    along = torch.where(known[:, None], proof.direction, away)
    falling = _falling(batch.form, along)
    log_policy = batch.form.log_policy(theta)
    lost = falling < -TOLERANCE * (1.0 + falling.abs().amax((-2, -1), keepdim=True))
    numbers = converged & (proof.exists & (dimension == proof.free)) if proof.unique else torch.zeros_like(converged)
    return PolicyAnswer(
        parameters=theta,
        parameter_direction=along,
        logits=log_policy,
        log_policy=torch.where(lost, -torch.inf, log_policy).log_softmax(-1),
        direction=falling / falling.abs().amax((-2, -1), keepdim=True).clamp(min=1e-300),
        status=status,
        gradient_norm=found.gradient_norm,
        value=torch.full_like(found.value, -torch.inf) if proof.bottomless and proof.diverges else found.value,
        proved=known
        | numbers
        | (diverges & proof.restless)
        | (converged & proof.exists & _sole(batch, function, proof, log_policy))
        | (converged & proof.exists & (proof.free > 0 or proof.unbounded)),
        dimension=dimension,
        tie=tie,
        minima=torch.where(diverges, 0, minima),
        curvature=lowest,
        newton_step=found.step.norm(dim=-1),
        iterations=found.iterations,
        stability=torch.full_like(found.value, torch.nan),
        reason=torch.where(status == UNSOLVED, 1, 0),
    )


def _sole(batch: _Batch, function: PolicyFunction, proof: Recession, log_policy: Tensor) -> Tensor:
    """(B,): proved that there is no other stationary policy, where parameters reach all of them."""
    _, contexts, actions = log_policy.shape
    if function.convex or not batch.form.linear or proof.basis.shape[-1] < contexts * (actions - 1):
        return torch.zeros_like(log_policy[:, 0, 0], dtype=torch.bool)
    return only_minimum(function.tabular, log_policy.exp())


def _falling(form: Softmaxes, along: Tensor) -> Tensor:
    """(B, X, A): how the log-prob of each response changes, per unit, far along a direction (B, P) of the parameters: 0 or less."""
    moved = torch.einsum("xep,bp->bxe", form.features, along)
    return (moved - form.at_nodes(moved, "amax")) @ form.on_path.T


def _runs_away(
    batch: _Batch, function: PolicyFunction, proof: Recession, found: Minimum, lowest: Tensor
) -> tuple[Tensor, Tensor]:
    """Which iterations went off for ever, and in which direction (B, P): where no curvature is left, followed much further, the value
    must not rise again."""
    none = torch.zeros_like(found.parameters)
    suspects = found.escaping | (found.converged & (lowest <= FLAT_CURVATURE))
    if proof.exists or proof.diverges or not bool(suspects.any()):
        return torch.zeros_like(suspects), none
    basis = proof.basis
    first = function(batch.start)
    size = first.gradient.norm(dim=-1) + first.hessian.flatten(1).norm(dim=-1)
    values, vectors = torch.linalg.eigh(basis.T @ function(found.parameters).hessian @ basis)
    level = values.abs() <= FLAT_CURVATURE * size.unsqueeze(-1)
    along = torch.einsum("bij,bj->bi", vectors, level * torch.einsum("bij,bi->bj", vectors, found.drift @ basis))
    drift = along @ basis.T
    form = batch.form
    change = (form.log_policy(found.parameters) - form.log_policy(found.parameters - drift)).abs().amax((-2, -1))
    further = function(found.parameters + FOLLOW * drift).value
    falls = further <= found.value + ROUNDING * (1.0 + found.value.abs())
    confirmed = suspects & (change > LONG_DRIFT) & falls
    direction = drift / drift.norm(dim=-1, keepdim=True).clamp(min=1e-300)
    return confirmed, torch.where(confirmed[:, None], direction, none)


def _flat(batch: _Batch, function: PolicyFunction, proof: Recession, found: Minimum, which: Tensor) -> Tensor:
    """(B,): the dimension of the set of minimisers around each answer: how many directions have no curvature, if the search, started
    again a little off along one of them, ends elsewhere at the same value."""
    count = torch.zeros_like(found.iterations)
    index = which.nonzero()[:, 0]
    if not len(index):
        return count
    some, theta, basis = batch.take(index), found.parameters[index], proof.basis
    scaled, scale = scaled_hessian(basis.T @ some.function()(theta).hessian @ basis)
    values, vectors = torch.linalg.eigh(scaled)
    level = values.abs() <= FLAT_CURVATURE
    policies, confirmed = some.form.log_policy(theta).exp(), torch.zeros_like(index, dtype=torch.bool)
    for column in range(int(level.sum(-1).max())):
        move = (vectors[..., column] / scale) @ basis.T
        for sign in (-NUDGE, NUDGE):
            again = _minimise(some, theta + sign * move / move.norm(dim=-1, keepdim=True), basis)
            same = (again.value - found.value[index]).abs() <= SAME_VALUE * (1.0 + again.value.abs())
            moved = (some.form.log_policy(again.parameters).exp() - policies).abs().amax((-2, -1)) > ELSEWHERE
            confirmed |= level[:, column] & again.converged & same & moved
    count[index] = torch.where(confirmed, level.sum(-1), 0)
    return count


def assemble(
    problem: Bandit, answers: list[PolicyAnswer], shape: torch.Size, details: Callable[[dict[str, Tensor]], Details]
) -> PolicySolution:
    """Pieces joined and given the leading dimensions ``shape``."""
    whole = {f.name: torch.cat([getattr(answer, f.name) for answer in answers]) for f in fields(PolicyAnswer)}

    def joined(name: str) -> Tensor:
        tensor = whole[name].reshape([*shape, *whole[name].shape[1:]])
        return tensor.squeeze(-2) if whole[name].ndim == 3 and not problem.has_contexts else tensor

    def plain(name: str) -> Any:
        tensor = joined(name)
        return tensor if shape else tensor.item()

    status = STATUSES[joined("status").cpu().numpy()]
    log_policy = joined("log_policy")
    return PolicySolution(
        policy=log_policy.exp(),
        log_policy=log_policy,
        logits=joined("logits"),
        status=status if shape else str(status),
        gradient_norm=joined("gradient_norm"),
        value=joined("value"),
        certificate=Certificate(
            direction=joined("direction"),
            details=details(whole),
            stability=plain("stability"),
            reason=in_words(joined("reason")),
            **{name: plain(name) for name in ("proved", "dimension", "minima", "newton_step", "iterations")},
        ),
        problem=problem.expand(shape),
        parameters=joined("parameters"),
        parameter_direction=joined("parameter_direction"),
    )

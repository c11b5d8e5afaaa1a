"""The best minimum of each problem: from one start where the objective is convex, else from several."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from toy_bandits import newton, packed
from toy_bandits.derivatives import CrossEntropyPiece, Function
from toy_bandits.newton import FLAT_CURVATURE, Minimum, centred, curvature
from toy_bandits.packed import Known, Packed, PackedMinimum
from toy_bandits.problem import Bandit
from toy_bandits.uniqueness import only_stationary

COLUMNS = 2000
"""Contexts up to which several starts are gone from at a time."""
SAME_VALUE = 1e-10
SAME_POLICY = 1e-6


@dataclass
class Found:
    """Of B problems: the best minimum, how many distinct minima were found (B,), whether another one is as good as the best (B,), and
    whether it is proved that there is no other one (B,) although the objective is not convex."""

    minimum: Minimum
    minima: Tensor
    tie: Tensor
    sole: Tensor

    def put(self, index: Tensor, part: Found) -> None:
        """Write the problems ``index``, given as a batch of their own."""
        self.minimum.put(index, part.minimum)
        self.minima[index], self.tie[index], self.sole[index] = part.minima, part.tie, part.sole


def search(function: Function, begin: Tensor, groups: Tensor, bounded: Tensor, starts: int, seed: int) -> Found:
    """Minimise from ``begin`` (B, X, A), and unless the function is convex from further ``starts``.

    Args:
        function: of the B problems.
        begin: the first start.
        groups: (B, X, A) integer labels of sets of actions that move freely, each named by its first action.
        bounded: (B,): known to have a minimiser, or to start at its limit.
        starts: how many further ones.
        seed: of the random ones among them.
    """
    layout = Packed.of(function)
    index = bounded.nonzero()[:, 0]
    if layout is None or len(index) == 0:
        return _by_problem(function, begin, groups, bounded, starts, seed)
    if len(index) == len(bounded):
        found, missed = _by_context(layout, function, begin, groups, starts, seed)
        rest = missed.nonzero()[:, 0]
    else:
        contexts = begin.shape[1]
        columns = (index.unsqueeze(-1) * contexts + torch.arange(contexts, device=index.device)).flatten()
        part = function.take(index)
        some, missed = _by_context(layout.take(columns), part, begin[index], groups[index], starts, seed)
        found = _empty(begin)
        found.put(index, some)
        rest = torch.cat([index[missed], (~bounded).nonzero()[:, 0]])
    if len(rest):
        function.take(rest).require_finite(begin[rest])
        found.put(rest, _by_problem(function.take(rest), begin[rest], groups[rest], bounded[rest], starts, seed))
    return found


def further_starts(problem: Bandit, begin: Tensor, groups: Tensor, starts: int, seed: int) -> Iterator[Tensor]:
    """(B, X, A) each: the reference, each of several actions on top, random ones; the means of the groups as in ``begin``."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    on_top = min(begin.shape[-1], starts // 2)
    wins = problem.label_weights.sum(-1) - problem.label_weights.sum(-2)
    order = wins.argsort(-1, descending=True)
    means = begin - centred(begin, groups)
    if not torch.equal(begin, problem.log_reference):
        yield centred(problem.log_reference, groups) + means
    for i in range(on_top):
        shift = torch.zeros_like(begin).scatter(-1, order[..., i : i + 1], 5.0)
        yield centred(problem.log_reference + shift, groups) + means
    for i in range(starts - on_top):
        noise = torch.randn(begin.shape[1:], generator=generator, dtype=begin.dtype).to(begin)
        yield centred(problem.log_reference + 2.0 * math.sqrt(1.0 + i) * noise, groups) + means


def _empty(begin: Tensor) -> Found:
    """To be filled in."""
    count = len(begin)
    number, flag = begin.new_zeros(count), torch.zeros(count, dtype=torch.bool, device=begin.device)
    whole = torch.zeros(count, dtype=torch.long, device=begin.device)
    copies = [torch.zeros_like(begin) for _ in range(3)]
    minimum = Minimum(
        logits=copies[0],
        value=number.clone(),
        gradient_norm=number.clone(),
        step=copies[1],
        drift=copies[2],
        converged=flag.clone(),
        escaping=flag.clone(),
        curved=flag.clone(),
        iterations=whole.clone(),
    )
    return Found(minimum, whole.clone(), flag.clone(), flag.clone())


@dataclass
class _Slot:
    """One minimum of some columns, with all that is reported of it."""

    end: PackedMinimum
    valid: Tensor
    policy: Tensor

    def known(self) -> Known:
        """Where an iteration may stop early: near minima, not saddles."""
        return Known(self.end.logits, self.valid & self.end.curved)


def _by_context(
    layout: Packed, function: Function, begin: Tensor, groups: Tensor, starts: int, seed: int
) -> tuple[Found, Tensor]:
    """The objective is a sum over contexts, so each is minimised on its own. Also: which problems (B,) were not solved."""
    problems, contexts, actions = begin.shape

    def columns(tensor: Tensor) -> Tensor:
        return tensor.reshape(-1, actions).T.contiguous()

    labels = columns(groups)
    end = packed.minimise(layout, columns(begin), labels)
    missed = ~end.converged
    minima = torch.ones_like(end.iterations)
    tie, sole = torch.zeros_like(missed), torch.zeros_like(missed)
    if not layout.convex and (starts or not torch.equal(begin, function.problem.log_reference)):
        if starts:  # a proof spares them
            sole = end.converged & end.curved & only_stationary(layout, end.logits.softmax(0))
        rest = (~sole).nonzero()[:, 0]
        if len(rest):
            which, place = (rest // contexts).unique(return_inverse=True)  # type: ignore[no-untyped-call]
            place = place * contexts + rest % contexts
            further = further_starts(function.problem.take(which), begin[which], groups[which], starts, seed)
            candidates = [columns(start)[:, place] for start in further]
            some, minima[rest], tie[rest], missed[rest] = _best_of(
                layout.take(rest), candidates, labels[:, rest], end.take(rest)
            )
            end.put(rest, some)
    counts = function.problem.contexts > 0

    def problemwise(tensor: Tensor) -> Tensor:
        return tensor.T.reshape(begin.shape) if tensor.ndim > 1 else tensor.reshape(problems, contexts)

    moved = problemwise(end.logits) - begin
    minimum = Minimum(
        logits=begin + centred(moved, groups),
        value=problemwise(end.value).sum(-1) + _constant(function),
        gradient_norm=problemwise(end.gradient_norm).square().sum(-1).sqrt(),
        step=centred(problemwise(end.step), groups),
        drift=torch.zeros_like(begin),  # bounded: it goes nowhere far
        converged=problemwise(end.converged).all(-1),
        escaping=torch.zeros_like(problemwise(missed)[:, 0]),
        curved=problemwise(end.curved).all(-1),
        iterations=problemwise(end.iterations).amax(-1),
    )
    several = torch.where(counts, problemwise(minima), 1).prod(-1)
    found = Found(minimum, several, (counts & problemwise(tie)).any(-1), (~counts | problemwise(sole)).all(-1))
    return found, problemwise(missed).any(-1)


def _best_of(
    layout: Packed, starts: list[Tensor], labels: Tensor, first: PackedMinimum
) -> tuple[PackedMinimum, Tensor, Tensor, Tensor]:
    """The best of the minima reached from each start (A, N) and the ``first``; how many there are, whether another one is as good as the
    best, and which columns (N,) have an iteration that came to no end."""
    missed = ~first.converged
    slots = [_Slot(first, first.converged, first.logits.softmax(0))]
    together = max(1, COLUMNS // labels.shape[1])
    for few in (starts[i : i + together] for i in range(0, len(starts), together)):
        for end in _from_several(layout, few, labels, [slot.known() for slot in slots]):
            missed |= ~(end.converged | end.merged)
            _keep(slots, end)
    value = torch.stack([torch.where(slot.valid, slot.end.value, math.inf) for slot in slots])
    best = value.amin(0)
    as_good = value <= best + SAME_VALUE * (1.0 + best.abs())
    chosen = as_good.to(torch.uint8).argmax(0)  # of equally good ones that of the earliest start
    minima = torch.stack([slot.valid & ~slot.end.saddle for slot in slots]).sum(0)
    result = first
    for number, slot in enumerate(slots[1:], 1):
        columns = (chosen == number).nonzero()[:, 0]
        result.put(columns, slot.end.take(columns))
    return result, minima, as_good.sum(0) > 1, missed


def _from_several(layout: Packed, starts: list[Tensor], labels: Tensor, known: list[Known]) -> Iterator[PackedMinimum]:
    """From each start (A, N), all of them side by side."""
    if len(starts) > 1:
        index = torch.arange(labels.shape[1], device=labels.device).repeat(len(starts))
        layout, labels, known = layout.take(index), labels[:, index], [minimum.take(index) for minimum in known]
    ends = packed.minimise(layout, torch.cat(starts, dim=1), labels, known).tensors()
    for parts in zip(*(tensor.chunk(len(starts), dim=-1) for tensor in ends), strict=True):
        yield PackedMinimum(*parts)


def _keep(slots: list[_Slot], end: PackedMinimum) -> None:
    """Put the minima that are new into the slots, in the order of their starts."""
    fresh = end.converged & ~end.merged
    if not bool(fresh.any()):
        return
    policy = end.logits.softmax(0)
    for slot in slots:
        fresh &= ~(slot.valid & ((slot.policy - policy).abs().amax(0) <= SAME_POLICY))
    for slot in slots:
        free = (fresh & ~slot.valid).nonzero()[:, 0]
        if len(free):
            for mine, new in zip((*slot.end.tensors(), slot.policy), (*end.tensors(), policy), strict=True):
                mine[..., free] = new[..., free]
            slot.valid = slot.valid.index_fill(0, free, True)
            fresh = fresh.index_fill(0, free, False)
    if bool(fresh.any()):
        slots.append(_Slot(end, fresh, policy))


def _constant(function: Function) -> Tensor | float:
    """(B,): the part of the value that no logit changes."""
    return sum((piece.constant for piece in function.pieces if isinstance(piece, CrossEntropyPiece)), start=0.0)


def _by_problem(function: Function, begin: Tensor, groups: Tensor, bounded: Tensor, starts: int, seed: int) -> Found:
    """Any function, from all starts at once: the best minimum, the number of distinct minima, whether the best is tied with another."""
    count = begin.shape[0]
    if function.convex:
        minimum = newton.minimise(function.take, begin, groups, bounded)
        no = torch.zeros_like(minimum.converged)
        return Found(minimum, torch.ones_like(minimum.iterations), no, no.clone())
    candidates = torch.stack([begin, *further_starts(function.problem, begin, groups, starts, seed)])
    total = len(candidates)
    index = torch.arange(count, device=begin.device).repeat(total)
    found = newton.minimise(
        lambda which: function.take(index[which]), candidates.flatten(0, 1), groups[index], bounded[index]
    )
    value = found.value.reshape(total, count)
    settled = (found.converged | found.escaping).reshape(total, count)
    value = torch.where(settled, value, math.inf)
    best = value.amin(0)
    as_good = value <= best + SAME_VALUE * (1.0 + best.abs())
    finite = found.converged.reshape(total, count)
    # Of equally good ends the first start's; an attained minimum before one at infinity.
    rank = torch.where(
        as_good, torch.where(finite, 0, total) + torch.arange(total, device=begin.device)[:, None], 3 * total
    )
    chosen = rank.argmin(0)
    policy = found.logits.softmax(-1).reshape(total, count, -1)
    apart = (policy.unsqueeze(0) - policy.unsqueeze(1)).abs().amax(-1) > SAME_POLICY
    earlier = (
        torch.ones(total, total, dtype=torch.bool, device=begin.device).triu(1).unsqueeze(-1)
    )  # [s, t]: s before t
    repeats = (~apart & earlier & finite.unsqueeze(1)).any(0)
    distinct = (finite & ~repeats).flatten().nonzero()[:, 0]
    minima = torch.zeros_like(index[:count])
    if len(distinct):
        which = index[distinct]
        lowest = curvature(function.take(which)(found.logits[distinct]), groups[which])
        minima.index_add_(0, which, (lowest > -FLAT_CURVATURE).long())
    tie = (as_good & finite & apart[chosen, :, torch.arange(count, device=begin.device)].T).any(0)
    best_of_each = found.take(chosen * count + torch.arange(count, device=begin.device))
    return Found(best_of_each, minima, tie, torch.zeros_like(tie))

"""Newton for objectives made of pair links and cross entropies only, many problems at a time.

Such an objective is a sum over contexts, and the Hessian of each context is the Laplacian of a weighted graph on its actions: the pairs'
curvatures, and for a cross entropy of mass m the weights m pi_a pi_b. So contexts are problems of their own here, and everything is laid
out by pairs a < b with the problems last: every operation is one pass over all of them.

Laplacian systems are solved by eliminating one action after another from the graph (Grassmann, Taksar and Heyman 1985): where no weight
is negative, nothing is ever subtracted, and the solution has full relative precision whatever the sizes of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor

from objectives.links import Link, Side
from toy_bandits.derivatives import CrossEntropyPiece, Derivatives, Function, PairPiece, symmetric_laplacian
from toy_bandits.newton import FLAT_CURVATURE, GRADIENT_TOLERANCE, STEP_TOLERANCE, curvature, newton_step

LARGEST = 32
"""Number of actions up to which this layout is the faster one."""
CELLS = 120_000
"""Numbers in the tables worked on at a time: several of them fit into a core's cache."""
MAX_ITERATIONS = 60
FIRST_RADIUS = 10.0
MODERATE = 20.0
"""Log odds up to which a pair's own minimum says where the whole objective's is."""
TOLERANCE = 0.1 * GRADIENT_TOLERANCE
"""Gradient norm of one context: tighter, as a problem may have many."""
SMALLEST_PIVOT = 1e-15
"""Relative to the sum of absolute weights: below, a pivot is rounding."""


@dataclass
class PackedPairs:
    """A pair piece: link(scale (u_a - u_b) + shift) with weight `forward`, link(scale (u_b - u_a) + back) with weight `backward`."""

    link: Link
    scale: Tensor
    """(1,) or (N,)"""
    forward: Tensor
    backward: Tensor
    shift: Tensor
    """(P, N), like the weights"""
    back: Tensor | None
    """None: -shift."""

    @cached_property
    def net(self) -> Tensor:
        """(P, N): how much more the one order of a pair weighs than the other."""
        return self.forward - self.backward

    @property
    def point_symmetric(self) -> bool:
        """Whether the two orders' losses add up to a constant, so that one of them is enough, with the net weight."""
        return self.link.even_slope and self.back is None

    @cached_property
    def constant(self) -> Tensor:
        """(N,): what the two orders add up to, where they do."""
        middle = self.link.value(torch.zeros_like(self.backward[:1]))
        return 2.0 * (middle * self.backward).sum(0)

    def at(self, difference: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Value (N,), and derivatives in ``difference`` (P, N): first and second."""
        argument = torch.addcmul(self.shift, difference, self.scale)
        if self.point_symmetric:
            value, first, second = self.link.both(argument)[0]
            return (
                self.constant + (self.net * value).sum(0),
                self.net * first * self.scale,
                self.net * second * self.scale.square(),
            )
        right, wrong = self._orders(argument, difference)
        value = torch.addcmul(self.forward * right[0], self.backward, wrong[0]).sum(0)
        slope = torch.addcmul(self.forward * right[1], self.backward, wrong[1], value=-1.0).mul_(self.scale)
        return value, slope, torch.addcmul(self.forward * right[2], self.backward, wrong[2]).mul_(self.scale.square())

    def positive_curvature(self, difference: Tensor) -> Tensor:
        """(P, N): the second derivative, negative ones of either order left out."""
        right, wrong = self._orders(torch.addcmul(self.shift, difference, self.scale), difference)
        both = torch.addcmul(self.forward * right[2].clamp(min=0.0), self.backward, wrong[2].clamp(min=0.0))
        return both.mul_(self.scale.square())

    def _orders(self, argument: Tensor, difference: Tensor) -> tuple[Side, Side]:
        if self.back is None:
            return self.link.both(argument)
        return self.link.at(argument), self.link.at(self.back - difference * self.scale)

    def take(self, columns: Tensor) -> PackedPairs:
        """Those of some columns."""
        scale = self.scale if len(self.scale) == 1 else self.scale[columns]
        back = None if self.back is None else self.back[:, columns]
        return PackedPairs(
            self.link, scale, self.forward[:, columns], self.backward[:, columns], self.shift[:, columns], back
        )


@dataclass
class Point:
    """Of N columns: logits (A, N), and there value (N,), gradient (A, N), weights (P, N) of the Laplacian that is the Hessian."""

    logits: Tensor
    value: Tensor
    gradient: Tensor
    weights: Tensor

    def where(self, mask: Tensor, other: Point) -> Point:
        """These where the mask (N,) holds, else the other's."""
        mine, others = self.tensors(), other.tensors()
        return Point(*(torch.where(mask, *parts) for parts in zip(mine, others, strict=True)))

    def take(self, columns: Tensor) -> Point:
        """Those of some columns."""
        return Point(*(tensor[..., columns] for tensor in self.tensors()))

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All fields."""
        return self.logits, self.value, self.gradient, self.weights


class Packed:
    """The objective of N columns, each one context of one problem; logits (A, N)."""

    def __init__(self, actions: int, pairs: list[PackedPairs], masses: Tensor | None) -> None:
        self.actions = actions
        self.pairs = pairs
        self.masses = masses
        self.convex = all(part.link.convex for part in pairs)
        device = (pairs[0].forward if pairs else masses).device  # type: ignore[union-attr]
        self.first, self.second = torch.triu_indices(actions, actions, 1, device=device)
        count = len(self.first)
        # Where pair (a, b) stands, for the symmetric table; the diagonal holds any, and is never read.
        table = torch.zeros(actions, actions, dtype=torch.long, device=device)
        table[self.first, self.second] = table[self.second, self.first] = torch.arange(count, device=device)
        self.table = table.flatten()
        if actions <= LARGEST:
            self.incidence = torch.zeros(actions, count, dtype=torch.float64, device=device)
            order = torch.arange(count, device=device)
            self.incidence[self.first, order], self.incidence[self.second, order] = 1.0, -1.0
            self.sides = torch.cat([self.incidence.clamp(min=0.0), self.incidence.clamp(max=0.0)], dim=-1)
            rows = torch.arange(actions, device=device).unsqueeze(-1)
            self.layout = torch.cat([rows, actions + table], dim=-1).flatten()

    @staticmethod
    def of(function: Function) -> Packed | None:
        """The columns (problem by problem, their contexts side by side) of a function; None where it has other pieces."""
        problem = function.problem
        problems, contexts, actions = problem.reference.shape
        pairs: list[PackedPairs] = []
        masses: Tensor | None = None
        for piece in function.pieces:
            if isinstance(piece, PairPiece):
                pairs.append(_packed_pairs(function, piece))
            elif isinstance(piece, CrossEntropyPiece):
                masses = piece.masses if masses is None else masses + piece.masses
            else:
                return None
        if masses is not None:
            masses = masses.expand(problems, contexts, actions).reshape(-1, actions).T.contiguous()
        return Packed(actions, pairs, masses)

    def take(self, columns: Tensor) -> Packed:
        """Those of some columns."""
        made = object.__new__(Packed)
        made.__dict__.update(self.__dict__)
        made.pairs = [part.take(columns) for part in self.pairs]
        made.masses = None if self.masses is None else self.masses[:, columns]
        return made

    def __call__(self, logits: Tensor) -> Point:
        """At logits (A, N)."""
        value = torch.zeros_like(logits[0])
        gradient, weights = torch.zeros_like(logits), None
        if self.pairs:
            difference = self._differences(logits)
            values, slopes, curvatures = zip(*(part.at(difference) for part in self.pairs), strict=True)
            value, gradient, weights = _total(values), self._net(_total(slopes)), _total(curvatures)
        if self.masses is not None:
            log_policy = logits.log_softmax(0)
            own, spread = self._cross_entropy(log_policy.exp())
            value, gradient = value - (self.masses * log_policy).sum(0), gradient + own
            weights = spread if weights is None else weights.add_(spread)
        assert weights is not None
        return Point(logits, value, gradient, weights)

    def _differences(self, logits: Tensor) -> Tensor:
        return logits.index_select(0, self.first) - logits.index_select(0, self.second)

    def _positive_weights(self, point: Point) -> Tensor:
        """(P, N): the Hessian's weights without the negative curvature of each piece's pairs."""
        if self.convex:
            return point.weights
        difference = self._differences(point.logits)
        weights = _total([part.positive_curvature(difference) for part in self.pairs])
        return weights if self.masses is None else weights + self._cross_entropy(point.logits.softmax(0))[1]

    def _net(self, slopes: Tensor) -> Tensor:
        """(P, N) slopes in the differences of pairs -> (A, N) in the logits."""
        return self.incidence @ slopes if self.actions <= LARGEST else self.ends(slopes, slopes)

    def ends(self, first: Tensor, second: Tensor) -> Tensor:
        """(A, N): the sum of ``first`` (P, N) over the pairs that an action is the first of, less that of ``second`` over the others."""
        if self.actions <= LARGEST:
            return self.sides @ torch.cat([first, second])
        rows, columns = (
            table[self.table].reshape(self.actions, self.actions, -1).movedim(-1, 0) for table in (first, second)
        )
        return (rows.triu(1).sum(-1) - columns.tril(-1).sum(-1)).T

    def guess(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits (A, N) nearer to the minimum than ``logits`` where all pairs have a logistic loss and odds that are not extreme: every
        pair's loss replaced by the parabola at its own minimum, where its argument is the log of the odds."""
        if any(part.link.logistic_shares is None or part.back is not None for part in self.pairs):
            return logits
        difference = self._differences(logits)
        weights, slopes = torch.zeros_like(difference), torch.zeros_like(difference)
        known = torch.ones_like(logits[0], dtype=torch.bool)
        for part in self.pairs:
            assert part.link.logistic_shares is not None
            agree, disagree = part.link.logistic_shares
            right = agree * part.forward + disagree * part.backward
            wrong = disagree * part.forward + agree * part.backward
            total, odds = right + wrong, (right / wrong).log_()
            known &= ((odds.abs() <= MODERATE) | (total == 0)).all(0)
            curvature = torch.where(total == 0, 0.0, right * wrong / total).mul_(part.scale)
            slopes += torch.where(
                total == 0, 0.0, curvature * (torch.addcmul(part.shift, difference, part.scale) - odds)
            )
            weights += curvature.mul_(part.scale)
        gradient = self._net(slopes)
        if self.masses is not None:
            own, spread = self._cross_entropy(logits.softmax(0))
            gradient, weights = gradient + own, weights.add_(spread)
        step, failed = self.step(Point(logits, gradient[0], gradient, weights), labels)
        return torch.where(known & ~failed & torch.isfinite(step).all(0), logits + step, logits)

    def _cross_entropy(self, policy: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient (A, N) and weights (P, N) of the cross entropy."""
        assert self.masses is not None
        whole = self.masses.sum(0) * policy
        return whole - self.masses, whole.index_select(0, self.first) * policy.index_select(0, self.second)

    def step(self, point: Point, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Newton's step (A, N), each set of actions of one label (A, N) held at one of them, and which columns have no step that is
        known to descend (N,)."""
        if self.actions > LARGEST:
            return self._dense_step(point, labels), torch.zeros_like(point.value, dtype=torch.bool)
        if bool(labels.any()):
            step, failed = self._solve(point.weights, point.gradient, self._grounded(labels))
        else:
            step, failed = self._solve(point.weights, point.gradient)
        if bool(failed.any()):
            # Again without the negative curvatures, and with care for actions that nothing holds.
            columns = failed.nonzero()[:, 0]
            step[:, columns], failed[columns] = self._solve(
                self.take(columns)._positive_weights(point.take(columns)),
                point.gradient[:, columns],
                self._grounded(labels[:, columns]),
            )
        return step, failed

    def _grounded(self, labels: Tensor) -> Tensor:
        """(A, N): the first action of every set, which is what the set is called by."""
        return labels == torch.arange(self.actions, device=labels.device).unsqueeze(-1)

    def _dense_step(self, point: Point, labels: Tensor) -> Tensor:
        """By factorisations of whole matrices, faster for many actions."""
        hessian = self._dense(point.weights)
        convex = hessian if self.convex else self._dense(self._positive_weights(point))
        derivatives = Derivatives(point.value, point.gradient.T.unsqueeze(1), hessian, convex)
        return newton_step(derivatives, labels.T.unsqueeze(1)).squeeze(1).T

    def _dense(self, weights: Tensor) -> Tensor:
        """The Laplacians (N, 1, A, A)."""
        table = weights[self.table].reshape(self.actions, self.actions, -1).movedim(-1, 0).unsqueeze(1).contiguous()
        table.diagonal(dim1=-2, dim2=-1).zero_()
        return symmetric_laplacian(table)

    def _solve(self, weights: Tensor, gradient: Tensor, grounded: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """-L^-1 gradient (A, N), 0 at the ``grounded`` actions (only the first, unless given), and which columns are not positive definite
        to working precision (N,).

        A grounded action's own elimination is skipped: it is the first of its set, so that nothing of the set is left by then.
        """
        count = weights.shape[-1]
        # Row a: minus the gradient at a, then its weights to all actions; the right-hand side is eliminated with them.
        system = (
            torch.cat([-gradient, weights]).index_select(0, self.layout).reshape(self.actions, self.actions + 1, count)
        )
        pivots = torch.ones_like(gradient)
        shares: list[Tensor] = []
        for k in range(self.actions - 1, 0, -1):
            row = system[k, 1 : k + 1]
            pivot = torch.sum(row, 0, out=pivots[k])
            inverse = pivot.reciprocal()
            if grounded is not None:
                inverse = torch.where(grounded[k] | (pivot <= 0), 0.0, inverse)
            share = system[k, : k + 1] * inverse
            system[:k, : k + 1].addcmul_(row.unsqueeze(1), share.unsqueeze(0))
            shares.append(share)
        solution = torch.zeros(self.actions + 1, count, dtype=weights.dtype, device=weights.device)
        solution[0] = 1.0  # what the right-hand side is multiplied by
        for k, share in zip(range(1, self.actions), reversed(shares), strict=True):
            torch.sum(share * solution[: k + 1], 0, out=solution[k + 1])
        step = solution[1:]
        if grounded is None and self.convex:
            return step, ~torch.isfinite(step.sum(0))
        size = self._degree(weights.abs())
        bad = ~(pivots > SMALLEST_PIVOT * size)
        if grounded is not None:
            bad &= ~grounded & ((size != 0) | (gradient != 0))
        return step, bad[1:].any(0) | ~torch.isfinite(step.sum(0))

    def _degree(self, weights: Tensor) -> Tensor:
        """(P, N) -> (A, N): sums over the pairs of each action."""
        return self.incidence.abs() @ weights

    def curved(self, point: Point, labels: Tensor, least: float = FLAT_CURVATURE) -> Tensor:
        """(N,): proved that the Hessian, with the first action of every set held and its diagonal scaled to 1, has no eigenvalue below
        ``least``: by the pivots of the Hessian less ``least`` times its diagonal."""
        if self.actions > LARGEST:
            hessian = self._dense(point.weights)
            derivatives = Derivatives(point.value, point.gradient.T.unsqueeze(1), hessian, hessian)
            return curvature(derivatives, labels.T.unsqueeze(1)) > least
        grounded = self._grounded(labels)
        table = point.weights[self.table].reshape(self.actions, self.actions, -1)
        table.diagonal(dim1=0, dim2=1).zero_()
        leak = -least * table.sum(1)
        proved = torch.ones(table.shape[-1], dtype=torch.bool, device=table.device)
        for k in range(self.actions - 1, -1, -1):
            row = table[k, :k]
            pivot = row.sum(0) + leak[k]
            proved &= grounded[k] | (pivot > SMALLEST_PIVOT * (row.abs().sum(0) + leak[k].abs()))
            share = torch.where(grounded[k], 0.0, row / pivot)
            table[:k, :k].addcmul_(row.unsqueeze(1), share.unsqueeze(0))
            leak[:k].addcmul_(share, leak[k])
        return proved


def _total(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(list(parts)).sum(0)


def _packed_pairs(function: Function, piece: PairPiece) -> PackedPairs:
    """The weights and constants of a pair piece by unordered pairs, columns last."""
    problem = function.problem
    _, contexts, actions = problem.reference.shape
    first, second = torch.triu_indices(actions, actions, 1, device=problem.reference.device)

    def packed(table: Tensor, one: Tensor, other: Tensor) -> Tensor:
        """(B, X, A, A) -> (P, N)."""
        return table.reshape(-1, actions * actions).T[one * actions + other]

    forward, backward = packed(piece.weights, first, second), packed(piece.weights, second, first)
    shift, back = packed(piece.constants, first, second), packed(piece.constants, second, first)
    # A pair that is shown one way round only has no constant of its own for the other: the mirror image serves as well as any.
    shift, back = torch.where(forward > 0, shift, -back), torch.where(backward > 0, back, -shift)
    columns = piece.scale.repeat_interleave(contexts) if len(piece.scale) > 1 else piece.scale
    return PackedPairs(piece.link, columns, forward, backward, shift, None if torch.equal(shift, -back) else back)


@dataclass
class Known:
    """Minima that are known of some of N columns, to which an iteration need not be followed to the end."""

    logits: Tensor
    """(A, N)"""
    valid: Tensor
    """(N,): where there is one."""

    def take(self, columns: Tensor) -> Known:
        """Those of some columns."""
        return Known(self.logits[:, columns], self.valid[columns])

    def reached(self, logits: Tensor, step: Tensor, labels: Tensor) -> Tensor:
        """(N,): Newton's next step ends at the minimum, to a twentieth of its length."""
        away = logits - self.logits
        away = away - away.gather(0, labels)
        distance = away.abs().amax(0)
        return self.valid & (distance <= 1.0) & ((away + step).abs().amax(0) <= 0.05 * distance)


@dataclass
class PackedMinimum:
    """Where the iteration of each of N columns ended."""

    logits: Tensor
    """(A, N)"""
    value: Tensor
    gradient_norm: Tensor
    step: Tensor
    """(A, N): the next Newton step."""
    converged: Tensor
    """(N,)"""
    merged: Tensor
    """(N,): on its way to a known minimum. A column neither converged nor merged is for another method."""
    curved: Tensor
    """(N,): proved that no curvature is below `FLAT_CURVATURE`, see `Packed.curved`."""
    saddle: Tensor
    """(N,): not proved that no curvature is below -`FLAT_CURVATURE`."""
    iterations: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """All fields."""
        return tuple(getattr(self, field.name) for field in fields(self))

    def take(self, columns: Tensor) -> PackedMinimum:
        """Those of some columns."""
        return PackedMinimum(*(tensor[..., columns] for tensor in self.tensors()))

    def put(self, columns: Tensor, part: PackedMinimum) -> None:
        """Write some columns, given by themselves."""
        for target, values in zip(self.tensors(), part.tensors(), strict=True):
            target[..., columns] = values


def minimise(packed: Packed, start: Tensor, labels: Tensor, known: Sequence[Known] = ()) -> PackedMinimum:
    """Damped Newton from ``start`` (A, N), each set of actions of one label (A, N; named by its first action) held at one of them."""
    count = start.shape[1]
    none = torch.zeros(count, dtype=torch.bool, device=start.device)
    result = PackedMinimum(
        logits=start.clone(),
        value=start.new_zeros(count),
        gradient_norm=start.new_full((count,), math.inf),
        step=torch.zeros_like(start),
        converged=none.clone(),
        merged=none.clone(),
        curved=none.clone(),
        saddle=none.clone(),
        iterations=torch.zeros(count, dtype=torch.long, device=start.device),
    )
    width = max(1 if packed.actions > LARGEST else 64, CELLS // len(packed.first))
    late: list[Tensor] = []
    for columns in torch.split(torch.arange(count, device=start.device), width):
        late.append(_iterate(packed, columns, labels, known, result, first=True, hand_over=count > width))
    rest = torch.cat(late)
    for columns in torch.split(rest, width) if len(rest) else ():
        _iterate(packed, columns, labels, known, result, first=False, hand_over=False)
    return result


def _iterate(
    packed: Packed,
    columns: Tensor,
    labels: Tensor,
    known: Sequence[Known],
    result: PackedMinimum,
    *,
    first: bool,
    hand_over: bool,
) -> Tensor:
    """Iterate some columns from where ``result`` has them, and write back. Returns those that were left for later: the last few."""
    few = len(columns) // 8 if hand_over else 0
    whole = len(columns) == len(labels[0])
    function, labels = (packed, labels) if whole else (packed.take(columns), labels[:, columns])
    known = known if whole else [minimum.take(columns) for minimum in known]
    begin = result.logits[:, columns]
    now = function(function.guess(begin, labels) if first and packed.convex and packed.pairs else begin)
    step, failed = function.step(now, labels)
    length, radius = torch.ones_like(now.value), torch.full_like(now.value, FIRST_RADIUS)
    for iteration in range(MAX_ITERATIONS + 1):
        size = step.abs().amax(0)
        spread = 1.0 + now.logits.abs().amax(0)
        norm = now.gradient.square().sum(0).sqrt()
        converged = ((norm <= TOLERANCE) & (size <= STEP_TOLERANCE * spread)) | (size <= 1e-13 * spread)
        converged &= ~failed & torch.isfinite(now.value)
        merged = torch.zeros_like(converged)
        for minimum in known:
            merged |= minimum.reached(now.logits, step, labels)
        merged &= ~failed & ~converged
        done = converged | merged | failed | ~(length * size > 1e-16 * spread)
        left = len(columns) - int(done.sum())
        if left <= max(few, len(columns) * 3 // 4) or iteration == MAX_ITERATIONS:
            which = columns[done]
            result.logits[:, which] = now.logits[:, done]
            result.value[which], result.gradient_norm[which] = now.value[done], norm[done]
            result.step[:, which] = step[:, done]
            result.converged[which], result.merged[which] = converged[done], merged[done]
            result.iterations[which] += iteration
            if not packed.convex:
                _classify(function, now, labels, converged, columns, result)
            keep = (~done).nonzero()[:, 0]
            columns, now = columns[keep], now.take(keep)
            if left <= few or iteration == MAX_ITERATIONS:
                result.logits[:, columns] = now.logits
                result.iterations[columns] += iteration
                return columns if hand_over else columns[:0]
            function, labels = function.take(keep), labels[:, keep]
            known = [minimum.take(keep) for minimum in known]
            step, failed, length, radius, size = step[:, keep], failed[keep], length[keep], radius[keep], size[keep]
        length = torch.minimum(length, radius / size)
        then = function(now.logits + length * step)
        accepted = _descends(now, then, step, length)
        reached = torch.maximum(radius, 4.0 * length * size)
        if bool(accepted.all()):
            now, radius = then, reached
            length = torch.ones_like(length)
        else:
            now = then.where(accepted, now)
            radius = torch.where(accepted, reached, radius)
            length = torch.where(accepted, 1.0, 0.25 * length)
        step, failed = function.step(now, labels)
    raise AssertionError("unreachable")


def _classify(
    function: Packed, now: Point, labels: Tensor, converged: Tensor, columns: Tensor, result: PackedMinimum
) -> None:
    """What the curvature says about the columns that converged."""
    index = converged.nonzero()[:, 0]
    if len(index) == 0:
        return
    curved = function.curved(now.take(index), labels[:, index])
    result.curved[columns[index]] = curved
    index = index[~curved]
    if len(index):
        result.saddle[columns[index]] = ~function.curved(now.take(index), labels[:, index], -FLAT_CURVATURE)


def _descends(now: Point, then: Point, step: Tensor, length: Tensor) -> Tensor:
    """The rule of `newton`: Armijo's, or where values agree to rounding a slope along the step that has shrunk."""
    before = (now.gradient * step).sum(0)
    after = (then.gradient * step).sum(0)
    armijo = (then.value <= now.value + 1e-4 * length * before) & (then.value < now.value)
    rounding = 1e-15 * (1.0 + now.value.abs())
    flat = (then.value <= now.value + rounding) & (after.abs() <= 0.9 * before.abs())
    return torch.isfinite(then.value) & (armijo | flat)

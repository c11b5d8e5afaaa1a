"""Which minimisers exist for a log-linear policy, proved from the losses' behaviour at infinity by linear programs.

Along a direction delta of the parameters the logits move by t = features @ delta, and every difference t_a - t_b linearly. Terms with
known slopes at infinity do not grow along delta exactly if certain inequalities t_y >= t_b hold: a pair whose loss grows when b leaves y
behind asks for it, and -log pi(y) asks for it of every b. In the cone of these directions

- some loss falls for ever, and the objective is convex: no minimiser exists ("diverges");
- nothing falls for ever: a minimiser exists; where the cone holds only directions along which no term changes, and the losses are
  strictly convex, the minimisers are one point plus these directions.

Of unpaired labels the signs of the losses' slopes are known (`toy_bandits.restless`), and with g_y those slopes the field along delta is
sum_y g_y (t_y - E_pi t). It is negative at every policy if, in each context, t is largest at the actions of negative slope and smallest
at those of positive slope (both, so constant, where a sign is not known), and not constant everywhere: such inequalities again.

With one feature per action this is `toy_bandits.structure`. The direction reported is the shortest along which every loss that can
fall does so by at least a unit, the hard-margin one, to which gradient flow turns where tails are exponential
(arXiv 1710.10345, theorem 3; with labels that are not separable, arXiv 1803.07300).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import linprog, nnls
from torch import Tensor

from objectives.values import watched
from toy_bandits.derivatives import CrossEntropyPiece, Function, PairPiece
from toy_bandits.following import held_fixed
from toy_bandits.policies.softmaxes import RANK_TOLERANCE, Softmaxes, row_space
from toy_bandits.restless import slope_signs

LARGEST = 1e6
"""Bound of the parameters in the linear programs, relative to the largest feature difference."""
TOLERANCE = 1e-7


@dataclass(frozen=True)
class Recession:
    """What is proved of some problems that share which labels are possible and which losses grow."""

    basis: Tensor
    """(P, R): orthonormal directions that the search needs: those that some term sees and, if it diverges, that stay finite."""
    free: int
    """How many directions change the policy but no term."""
    direction: Tensor
    """(P,): where the problem diverges, a direction along which it does; else 0."""
    exists: bool = False
    diverges: bool = False
    unique: bool = False
    """Strictly convex in the directions that a term sees."""
    unbounded: bool = False
    """Minimisers exist and reach to infinity."""
    bottomless: bool = False
    """The infimum is -infinity."""
    restless: bool = False
    """The gradient is zero at no policy."""


def analyse(function: Function, policy: Softmaxes) -> list[tuple[Tensor, Recession]]:
    """Index (K,) of problems and what is proved of them, for all problems of the batch."""
    terms = _Terms(function)
    slopes = np.sign(terms.slope.cpu().numpy())
    patterns = [
        slopes,
        terms.falls.cpu().numpy(),
        terms.compared.cpu().numpy(),
        terms.masses.cpu().numpy() > 0,
        terms.relevant.cpu().numpy(),
    ]
    patterns += [] if terms.signs is None else [part.cpu().numpy() for part in terms.signs]
    negative = (terms.slope < 0).flatten(1).any(-1).cpu().numpy()
    rows = np.concatenate([pattern.reshape(len(slopes), -1).astype(np.int8) for pattern in patterns], axis=1)
    # A term without lower bound: what wins depends on the slopes themselves, so each problem is on its own.
    own = np.where(negative, np.arange(1, len(rows) + 1), 0)
    _, first, group = np.unique(np.column_stack([rows, own]), axis=0, return_index=True, return_inverse=True)
    found: list[tuple[list[int], Recession]] = []
    alike: dict[tuple[object, ...], int] = {}
    for label, problem in enumerate(first):
        proof, members = _analyse(terms, int(problem), policy), np.flatnonzero(group == label).tolist()
        # Where every direction that matters is seen, problems of different labels can be searched together.
        together = not (proof.diverges or proof.restless) and proof.basis.shape == policy.effective.shape
        key = (proof.exists, proof.unique, proof.unbounded) if together else (label, "alone")
        if key in alike:
            found[alike[key]][0].extend(members)
        else:
            alike[key] = len(found)
            found.append((members, replace(proof, basis=policy.effective) if together else proof))
    device = function.problem.reference.device
    return [(torch.tensor(members, device=device), proof) for members, proof in found]


class _Terms:
    """What the pieces of an objective ask for; tables (B, X, A, A) over [a, b]."""

    def __init__(self, function: Function) -> None:
        problem = function.problem
        weights = problem.label_weights
        self.slope = torch.zeros_like(weights)
        """Growth of the terms when [a] leaves [b] behind, per nat."""
        self.compared, self.falls = (
            torch.zeros_like(weights, dtype=torch.bool),
            torch.zeros_like(weights, dtype=torch.bool),
        )
        self.masses = torch.zeros_like(problem.reference)
        self.relevant = problem.contexts > 0
        self.known = self.convex = self.strict = True
        for piece in function.pieces:
            if isinstance(piece, PairPiece):
                link = piece.link
                given = weights * _per_table(piece.term.weight) > 0
                self.compared |= given | given.transpose(-1, -2)
                rate = weights * _per_table(piece.term.weight) * _per_table(piece.term.scale)
                sides = ((rate, link.slope_plus, link.attains_plus), (rate.mT, link.slope_minus, link.attains_minus))
                for size, slope, attains in sides:
                    level = (size > 0) & torch.as_tensor(_per_table(slope) == 0)
                    self.slope += torch.where((size > 0) & ~level, size * _per_table(slope), 0.0)
                    self.falls |= level & (not attains)
                self.convex &= link.convex
                self.strict &= not (link.attains_plus or link.attains_minus)
            elif isinstance(piece, CrossEntropyPiece):
                self.masses = self.masses + piece.masses
            else:
                self.known = False
        self.signs = slope_signs(function)
        """Of unpaired labels: the signs of the losses' slopes in each log-prob, and where they are known, (B, X, A)."""
        self.field = False
        """Whether some part of a loss is held fixed, so that there is a field to follow and no function to minimise."""
        if self.signs is not None:
            few = torch.tensor([0], device=problem.reference.device)
            with watched() as used:
                function.take(few)(problem.log_reference[few])
            self.field = held_fixed(function, used)


def _per_table(value: float | Tensor) -> float | Tensor:
    return value.reshape(-1, 1, 1, 1) if isinstance(value, Tensor) and value.ndim else value


def _analyse(terms: _Terms, i: int, policy: Softmaxes) -> Recession:
    effective = policy.effective
    zero = effective.new_zeros(policy.parameters)
    differences = policy.features.unsqueeze(-2) - policy.features.unsqueeze(-3)  # [x, a, b] = phi_a - phi_b
    if not terms.known:
        against = None
        if terms.signs is not None:
            sign, known = terms.signs
            against = _against(sign[i], known[i], differences, effective)
        if against is None:
            return Recession(effective, 0, zero)
        if not terms.field:  # where its infimum lies is for the search to find
            return Recession(effective, 0, zero, restless=True)
        return Recession(effective[:, :0], 0, against, diverges=True, restless=True)
    slope, relevant = terms.slope[i], terms.relevant[i]
    massive = terms.masses[i] > 0
    asks = (slope.transpose(-1, -2) > 0) | massive.unsqueeze(-1)  # [a, b]: t_a >= t_b
    seen = terms.compared[i] | massive.any(-1)[:, None, None]
    basis = row_space(differences[seen])
    free = row_space(differences[relevant].flatten(0, -2)).shape[-1] - basis.shape[-1]
    if not basis.shape[-1]:
        return Recession(basis, free, zero, exists=True, unique=True)
    if bool((slope < 0).any()):
        found = _sinking(slope, terms.masses[i], differences, basis)
        if found is None:
            return Recession(basis, free, zero)
        return Recession(basis[:, :0], 0, found, diverges=terms.convex, bottomless=True)
    wants = (differences[asks] @ basis).cpu().numpy()
    can_fall = (terms.falls[i] & (slope <= 0)) | massive.unsqueeze(-1)
    falling = (differences[can_fall] @ basis).cpu().numpy()
    falls = _together(wants, falling)
    if falls.any():
        along = _shortest(wants, falling[falls])
        if along is None or not terms.convex:
            return Recession(basis, free, zero)
        direction = basis @ torch.from_numpy(along).to(basis)
        moved = policy.features @ direction
        level = (moved.unsqueeze(-1) - moved.unsqueeze(-2)).abs() <= TOLERANCE * (1.0 + moved.abs().max())
        return Recession(row_space(differences[seen & level]), 0, direction, diverges=True)
    coercive = (
        np.linalg.matrix_rank(wants, tol=RANK_TOLERANCE * np.abs(wants).max()) == basis.shape[-1]
        if len(wants)
        else False
    )
    coercive = bool(coercive and not _together(wants, wants).any())
    return Recession(
        basis,
        free,
        zero,
        exists=coercive or terms.convex,
        unique=coercive and terms.convex and terms.strict,
        unbounded=terms.convex and not coercive,
    )


def _against(sign: Tensor, known: Tensor, differences: Tensor, basis: Tensor) -> Tensor | None:
    """(P,): a direction against which the field of slopes of these signs (X, A) points at every policy, or None."""
    top, bottom = ((~known) | (known & (sign == side)) for side in (-1.0, 1.0))
    asks = top.unsqueeze(-1) | bottom.unsqueeze(-2)  # [a, b]: t_a >= t_b
    sure = known & (sign != 0)
    wants = (differences[asks] @ basis).cpu().numpy()
    gains = (differences[asks & (sure.unsqueeze(-1) | sure.unsqueeze(-2))] @ basis).cpu().numpy()
    falls = _together(wants, gains)
    along = _shortest(wants, gains[falls]) if falls.any() else None
    return None if along is None else basis @ torch.from_numpy(along).to(basis)


def _together(wants: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """(M,): which rows of ``gains`` (M, R) are positive, all at once, for some delta with wants @ delta >= 0 and gains @ delta >= 0."""
    if not len(gains):
        return np.zeros(0, dtype=bool)
    count, width = gains.shape
    scale = max(np.abs(gains).max(), np.abs(wants).max() if len(wants) else 0.0)
    upper = np.block([[-wants / scale, np.zeros((len(wants), count))], [-gains / scale, np.eye(count)]])
    cost = np.concatenate([np.zeros(width), -np.ones(count)])
    bounds = [(-LARGEST, LARGEST)] * width + [(None, 1.0)] * count
    found = linprog(cost, A_ub=upper, b_ub=np.zeros(len(upper)), bounds=bounds, method="highs")
    return np.zeros(count, dtype=bool) if found.x is None else np.asarray(found.x)[width:] > 0.5


def _shortest(wants: np.ndarray, gains: np.ndarray) -> np.ndarray | None:
    """The shortest delta with wants @ delta >= 0 and gains @ delta >= 1: least distance programming (Lawson and Hanson 1974, ch. 23)."""
    rows = np.vstack([wants, gains])
    asked = np.concatenate([np.zeros(len(wants)), np.ones(len(gains))])
    scale = np.linalg.norm(gains, axis=1).min()
    system = np.vstack([rows.T / scale, asked])
    target = np.concatenate([np.zeros(rows.shape[1]), [1.0]])
    residual = system @ nnls(system, target)[0] - target
    if abs(residual[-1]) <= 1e-12:
        return None
    delta: np.ndarray = -residual[:-1] / residual[-1] / scale
    slack = rows @ delta - asked
    return delta if slack.min() >= -1e-6 * (1.0 + np.abs(rows).max() * np.abs(delta).max()) else None


def _sinking(slope: Tensor, masses: Tensor, differences: Tensor, basis: Tensor) -> Tensor | None:
    """(P,): a direction along which the terms fall linearly, or None. A pair without lower bound is all but always its own proof."""
    context, first, second = (slope != 0).nonzero(as_tuple=True)
    keep = (first < second) | (slope[context, second, first] == 0)
    context, first, second = context[keep], first[keep], second[keep]
    forward, backward = slope[context, first, second].cpu().numpy(), slope[context, second, first].cpu().numpy()
    rows = (differences[context, first, second] @ basis).cpu().numpy()
    count, width = rows.shape
    contexts = masses.sum(-1).nonzero()[:, 0].tolist()
    # z_e >= slope of either side; v_x >= t_b - t_0 of every b.
    upper = []
    for sign, steep in ((1.0, forward), (-1.0, backward)):
        finite = np.where(np.isfinite(steep), steep, 0.0)
        upper.append(np.hstack([sign * finite[:, None] * rows, -np.eye(count), np.zeros((count, len(contexts)))]))
        infinite = sign * rows[np.isinf(steep)]
        upper.append(np.hstack([infinite, np.zeros((len(infinite), count + len(contexts)))]))
    cost = np.concatenate([np.zeros(width), np.ones(count), np.zeros(len(contexts))])
    for column, x in enumerate(contexts):
        relative = (differences[x, :, 0] @ basis).cpu().numpy()  # t_b - t_0
        above = np.zeros((len(relative), len(contexts)))
        above[:, column] = -1.0
        upper.append(np.hstack([relative, np.zeros((len(relative), count)), above]))
        cost[width + count + column] = masses[x].sum().item()
        cost[:width] -= masses[x].cpu().numpy() @ relative
    matrix = np.vstack(upper)
    bounds = [(-1.0, 1.0)] * width + [(None, None)] * (count + len(contexts))
    found = linprog(cost, A_ub=matrix, b_ub=np.zeros(len(matrix)), bounds=bounds, method="highs")
    if found.x is None or found.fun > -TOLERANCE * np.abs(cost).max():
        return None
    return basis @ torch.from_numpy(np.asarray(found.x)[:width]).to(basis)

"""Which minimisers exist, proved from the losses' behaviour at infinity.

Along a direction delta of the logits (per context) every term with known slopes at infinity grows linearly unless some inequalities
delta_a >= delta_b hold: a pair whose loss grows when a falls behind b asks for delta_a >= delta_b, and -log pi(y) asks for
delta_y >= delta_b for all b. Take these inequalities as the arrows of a graph, and call two actions *tied* if any term's value
depends on their difference. Then, in each set of actions that are tied directly or through others:

- every two actions reach each other along arrows: the objective grows in every direction, so a minimiser exists;
- otherwise some direction meets no growth. If, for a convex objective, a loss keeps falling along it, no minimiser exists ("diverges").

Convex or not: where -log pi terms act on a context, a set of actions that share pairs among themselves only and have no mass in these
terms falls for ever ("diverges"): moving it down as a whole changes no pair and lowers the normaliser.

For the logistic loss this is Ford's criterion for Bradley-Terry models (Ford 1957; Hunter 2004): arrows are wins of positive probability.
Moving whole tied sets against each other changes nothing: with more than one per context, minimisers form a continuum.

Slopes may be negative (losses that assume noisier labels than there are). The growth R(delta) = sum_ab slope_ab max(0, delta_a -
delta_b) + ... is then the Lovasz extension of the cut function R(1_S): it is negative somewhere if and only if some set S of actions has
R(1_S) < 0, and then the objective has no lower bound; where R(1_S) > 0 for all S that are no union of tied sets, a minimiser exists.

Falling losses of margins that are not affine: see `separation`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from toy_bandits.derivatives import CrossEntropyPiece, Function, PairPiece
from toy_bandits.separation import separated

ROUNDING = 1e-14
MANY = 12
"""Number of actions up to which all sets of actions are gone through."""
FEW = 32
"""Number of actions up to which loops over actions beat products of matrices."""


@dataclass
class Structure:
    """What is proved of each problem, before any number is computed. Labels (B, X, A) name each set by its first action."""

    tied: Tensor
    """(B, X, A): the set of tied actions that each action belongs to."""
    strong: Tensor
    """(B, X, A): the sets that stay together where the problem diverges: those that reach each other along arrows, or sink together."""
    direction: Tensor
    """(B, X, A): where the problem diverges, a direction along which it does: constant on each strong set, 0 elsewhere."""
    exists: Tensor
    """(B,): proved that a minimiser exists."""
    diverges: Tensor
    """(B,): proved that none exists."""
    unique: Tensor
    """(B,): proved strictly convex up to the tied sets' offsets."""
    bottomless: Tensor
    """(B,): proved that the objective has no lower bound; these diverge."""
    unbounded: Tensor
    """(B,): proved that minimisers exist and reach to infinity: losses that become constant, such as a hinge on certain preferences."""

    @property
    def free(self) -> Tensor:
        """(B,): how many offsets between tied sets the objective does not see, over contexts of positive probability."""
        first = self.tied == torch.arange(self.tied.shape[-1], device=self.tied.device)
        return (first.sum(-1) - 1).sum(-1)


def analyse(function: Function) -> Structure:
    """The structure of every problem of a flattened batch."""
    if _held_together(function):
        return _strong(function)
    problem = function.problem
    shape = problem.label_weights.shape
    slope = problem.reference.new_zeros(shape)  # growth of the terms when [a] leaves [b] behind
    gross = torch.zeros_like(slope)
    compared, falls, arrows = (torch.zeros(shape, dtype=torch.bool, device=slope.device) for _ in range(3))
    masses = torch.zeros_like(problem.reference)
    known = torch.ones(shape[0], dtype=torch.bool, device=slope.device)
    convex, strict = known.clone(), known.clone()
    for piece in function.pieces:
        if isinstance(piece, PairPiece):
            weights = problem.label_weights * column(piece.term.weight)
            against = weights.transpose(-1, -2)
            link = piece.link
            compared |= (weights > 0) | (against > 0)
            ahead, behind = _times(weights, link.slope_plus, piece), _times(against, link.slope_minus, piece)
            slope += ahead + behind
            gross += ahead.abs() + behind.abs()
            falls |= (weights > 0) & (not link.attains_plus) & _is_zero(link.slope_plus)
            falls |= (against > 0) & (not link.attains_minus) & _is_zero(link.slope_minus)
            convex &= link.convex
            strict &= not (link.attains_plus or link.attains_minus)
        elif isinstance(piece, CrossEntropyPiece):
            masses += piece.masses
        else:
            known &= False
            compared |= True
    # The two orders of a pair balance: no growth, and what is strictly convex then falls for ever (robust_dpo at p = 1 - e).
    balanced = (gross > 0) & torch.isfinite(gross) & (slope.abs() <= ROUNDING * gross)
    slope = torch.where(balanced, 0.0, slope)
    falls |= balanced & strict[:, None, None, None]
    asks = (masses > 0).unsqueeze(-1).expand(shape)
    arrows |= asks
    falls |= asks
    normalised = asks.any(-2, keepdim=True)
    grows = known & (slope >= 0).flatten(1).all(-1)
    signed, known = known & ~grows, grows
    relevant = (problem.contexts > 0)[..., None, None]
    tied = closure(compared | normalised | ~relevant)  # a context of probability 0 adds no freedom worth reporting
    reach = closure(arrows | (slope > 0).transpose(-1, -2) | ~relevant)
    strong = reach & reach.transpose(-1, -2)
    coercive = (~tied | strong).flatten(1).all(-1)
    # A pair that still falls while [a] rises above [b], where no arrow asks b to follow.
    escape = (falls & (slope <= 0) & tied & ~reach.transpose(-1, -2)).flatten(1).any(-1)
    diverges = known & convex & ~coercive & escape
    direction = torch.zeros_like(masses)
    if bool(diverges.any()):
        direction = torch.where(diverges[:, None, None], _height(reach & ~strong, strong), direction)
    separate = closure(compared)
    massless = normalised.squeeze(-2) & ~(separate & (masses > 0).unsqueeze(-2)).any(-1)
    sinks = known & ~diverges & massless.flatten(1).any(-1)
    direction = torch.where(sinks[:, None, None], -massless.to(direction.dtype), direction)
    apart = separate | (~massless.unsqueeze(-1) & ~massless.unsqueeze(-2) & normalised)
    strong = torch.where(sinks[:, None, None, None], apart, strong)
    bottomless, coercive_cuts = torch.zeros_like(known), torch.zeros_like(known)
    for index in signed.nonzero()[:, 0].tolist():
        cut, coercive_cuts[index] = _cuts(slope[index], masses[index], tied[index], problem.contexts[index])
        bottomless[index] = cut is not None
        if cut is not None:
            direction[index], strong[index] = cut, cut.unsqueeze(-1) == cut.unsqueeze(-2)
    apart, away = separated(function)
    apart &= ~(diverges | sinks | bottomless)
    direction = direction + torch.where(apart[:, None, None], away, 0.0)
    alone = torch.eye(shape[-1], dtype=torch.bool, device=slope.device)
    strong = torch.where(apart[:, None, None, None], alone, strong)
    known, coercive = known | coercive_cuts, coercive | coercive_cuts
    return Structure(
        tied=_first(tied),
        strong=_first(strong),
        direction=direction,
        exists=known & (coercive | (convex & ~escape)),
        diverges=diverges | sinks | bottomless | apart,
        unique=known & coercive & convex & strict,
        bottomless=bottomless,
        unbounded=grows & convex & ~coercive & ~escape,
    )


def _cuts(slope: Tensor, masses: Tensor, tied: Tensor, contexts: Tensor) -> tuple[Tensor | None, bool]:
    """A direction (X, A) of negative growth, or None; and whether every direction that moves tied actions apart grows.

    Nothing is known (None, False) of more than `MANY` actions: the sets are too many to go through.
    """
    actions = slope.shape[-1]
    if actions > MANY:
        return None, False
    codes = torch.arange(1, 2**actions - 1, device=slope.device)
    inside = (codes.unsqueeze(-1) >> torch.arange(actions, device=slope.device) & 1).to(slope.dtype)
    finite = slope.clamp(max=torch.finfo(slope.dtype).max ** 0.5)
    growth = torch.einsum("sa,xab,sb->xs", inside, finite, 1.0 - inside) + masses @ (1.0 - inside).T
    growth = torch.where(contexts.unsqueeze(-1) > 0, growth, 0.0)
    rounding = 1e-13 * slope.abs().clamp(max=1e100).sum()
    falling = torch.where(growth < -rounding, -growth, 0.0)
    if bool((falling > 0).any()):
        together = falling @ inside
        gaps = (together.unsqueeze(-1) - together.unsqueeze(-2)).clamp(min=0.0)
        behind = together.amax(-1, keepdim=True) - together
        if float((finite * gaps).sum() + (masses * behind).sum()) < 0:
            return together, False
        steepest = torch.zeros_like(masses)
        x, s = divmod(int(falling.argmax()), len(codes))
        steepest[x] = inside[s]
        return steepest, False
    split = torch.einsum("sa,xab,sb->xs", inside, tied.to(slope.dtype), 1.0 - inside) > 0
    return None, bool(((growth > rounding) | ~split | (contexts.unsqueeze(-1) == 0)).all())


def _held_together(function: Function) -> bool:
    """Whether one look shows that in every problem every two actions reach each other: all pairs are compared by a loss that grows one
    way or the other, or every action has a mass, and no loss falls linearly."""
    held = False
    for piece in function.pieces:
        if isinstance(piece, PairPiece):
            link, term = piece.link, piece.term
            slopes = [torch.as_tensor(slope).min().item() for slope in (link.slope_plus, link.slope_minus)]
            if min(slopes) < 0 or not all(bool((torch.as_tensor(v) > 0).all()) for v in (term.weight, term.scale)):
                return False
            held = held or (max(slopes) > 0 and _all_positive(piece.weights))
        elif isinstance(piece, CrossEntropyPiece):
            held = held or bool((piece.masses > 0).all())
        else:
            return False
    return held


def _all_positive(weights: Tensor) -> bool:
    """Whether all entries of tables (..., A, A) off the diagonal are positive; on it they are 0."""
    actions = weights.shape[-1]
    return int(weights.count_nonzero()) == weights.numel() // actions * (actions - 1)


def _strong(function: Function) -> Structure:
    """Of problems that are known to have one strong set of actions in each context."""
    labels = torch.zeros_like(function.problem.reference, dtype=torch.long)
    yes = torch.ones_like(labels[:, 0, 0], dtype=torch.bool)
    strict = all(
        not (piece.link.attains_plus or piece.link.attains_minus)
        for piece in function.pieces
        if isinstance(piece, PairPiece)
    )
    return Structure(
        tied=labels,
        strong=labels,
        direction=torch.zeros_like(function.problem.reference),
        exists=yes,
        diverges=~yes,
        unique=yes if function.convex and strict else ~yes,
        bottomless=~yes,
        unbounded=~yes,
    )


def column(value: float | Tensor) -> float | Tensor:
    """A weight per problem, to broadcast over tables (B, X, A, A)."""
    return value.reshape(-1, 1, 1, 1) if isinstance(value, Tensor) and value.ndim else value


def _times(weights: Tensor, slope: float | Tensor, piece: PairPiece) -> Tensor:
    """weights * slope of the term's loss per nat, with 0 * inf = 0."""
    return torch.where(weights > 0, weights * column(slope) * column(piece.term.scale), 0.0)


def _is_zero(slope: float | Tensor) -> Tensor:
    return torch.as_tensor(column(slope)) == 0


def closure(edges: Tensor) -> Tensor:
    """Reflexive transitive closure of boolean tables (..., A, A): by way of one action after another, of many by repeated squaring."""
    actions = edges.shape[-1]
    reach = edges | torch.eye(actions, dtype=torch.bool, device=edges.device)
    if actions <= FEW:
        for k in range(actions):
            reach |= reach[..., :, k : k + 1] & reach[..., k : k + 1, :]
        return reach
    for _ in range((actions - 1).bit_length()):
        reach = (reach.float() @ reach.float()) > 0
    return reach


def _first(classes: Tensor) -> Tensor:
    """(..., A, A) equivalence -> (..., A): the first member of each action's class."""
    return classes.to(torch.uint8).argmax(-1)


def _height(above: Tensor, strong: Tensor) -> Tensor:
    """Length of the longest chain of strictly lower strong sets below each action, (..., A)."""
    height = torch.zeros(above.shape[:-1], dtype=torch.float64, device=above.device)
    for _ in range(above.shape[-1]):
        own = torch.where(above, height.unsqueeze(-2) + 1.0, 0.0).amax(-1)
        raised = torch.where(strong, own.unsqueeze(-2), 0.0).amax(-1)
        if torch.equal(raised, height):
            break
        height = raised
    return height

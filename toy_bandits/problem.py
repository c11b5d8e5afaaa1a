"""The world: a contextual bandit with known reference policy, preferences, and distribution of compared pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toy_bandits.errors import BanditError

TOLERANCE = 1e-9
"""How far sums may be off; float32 inputs get `TOLERANCE_FLOAT32`."""
TOLERANCE_FLOAT32 = 1e-6
PIECE = 1_000_000
"""Numbers looked at in one pass."""
MINIMAL_NDIM = {
    "reference": 1,
    "preferences": 2,
    "pairs": 2,
    "contexts": 0,
    "rewards": 1,
    "reference_samples": 1,
    "lengths": 1,
    "references": 2,
}

Array = Tensor | np.ndarray | Sequence[Any] | float


class Bandit:
    """One problem, or a batch of problems (leading dimensions ``...``, which broadcast against each other).

    Args:
        reference: pi_ref(y|x), (..., X, A); positive, sums to 1.
        preferences: p(y1 > y2 | x), (..., X, A, A); p + p^T = 1 off the diagonal, which is ignored. Both entries of a pair are used
            as given, so 1 - 1e-12 and 1e-12 keep their full precision.
        pairs: how often each unordered pair is compared, (..., X, A, A): symmetric, >= 0, zero diagonal; normalised to sum 1 over
            the unordered pairs of each context. Default: all pairs alike.
        contexts: rho(x), (..., X). Default: uniform.
        rewards: r(x, y), (..., X, A), for the expected reward; does not enter the preferences (see `from_rewards`).
        reference_samples: empirical masses of a finite sample of pi_ref, (..., X, A), on which off-policy regularisers run.
            Default: pi_ref itself.
        lengths: tokens of each response, (..., X, A), whole numbers >= 1, for objectives that look at lengths. Default: one token each.
        references: K reference policies, the first of them pi_ref, (..., K, X, A), for objectives of several references. Default:
            pi_ref alone.
        name: what errors call the problem, such as a world's id.

    X = 1 may be left out: an input with no dimension to spare, such as a reference of shape (A,), has no contexts. Where all
    inputs leave it out, so do the solutions. Everything becomes float64.

    Raises:
        BanditError: an input is not what it should be; the message says which, where and why.
    """

    reference: Tensor
    preferences: Tensor
    pairs: Tensor
    contexts: Tensor
    rewards: Tensor | None
    reference_samples: Tensor
    lengths: Tensor | None
    references: Tensor | None
    has_contexts: bool
    name: str | None

    def __init__(
        self,
        reference: Array,
        preferences: Array,
        pairs: Array | None = None,
        contexts: Array | None = None,
        rewards: Array | None = None,
        reference_samples: Array | None = None,
        lengths: Array | None = None,
        references: Array | None = None,
        name: str | None = None,
    ) -> None:
        arrays: dict[str, Array | None] = {
            "reference": reference,
            "preferences": preferences,
            "pairs": pairs,
            "contexts": contexts,
            "rewards": rewards,
            "reference_samples": reference_samples,
            "lengths": lengths,
            "references": references,
        }
        self.name = name
        given = {name: _tensor(name, value) for name, value in arrays.items() if value is not None}
        coarse = any(getattr(value, "dtype", None) in (torch.float32, np.float32) for value in arrays.values())
        tolerance = TOLERANCE_FLOAT32 if coarse else TOLERANCE
        self.has_contexts = _mention_contexts(given)
        given = {
            name: tensor.unsqueeze(_context_dimension(name)) if tensor.ndim == MINIMAL_NDIM[name] else tensor
            for name, tensor in given.items()
        }
        lead, contexts_count, actions = _common_shape(given)
        if actions < 2:
            raise BanditError(f"a bandit needs at least two actions; the reference has {actions}")
        device = given["reference"].device
        given.setdefault("pairs", 1.0 - torch.eye(actions, dtype=torch.float64, device=device).expand(1, -1, -1))
        given.setdefault(
            "contexts", torch.full((contexts_count,), 1.0 / contexts_count, dtype=torch.float64, device=device)
        )
        given.setdefault("reference_samples", given["reference"])
        _check_distribution("reference", given["reference"], tolerance, positive=True)
        _check_distribution("reference_samples", given["reference_samples"], tolerance)
        _check_distribution("contexts", given["contexts"], tolerance)
        _check_preferences(given["preferences"], tolerance)
        _check_pairs(given["pairs"], tolerance)
        if "lengths" in given:
            _check_lengths(given["lengths"])
        several = given.pop("references", None)
        for name in ("reference", "contexts", "reference_samples"):
            given[name] = given[name] / given[name].sum(-1, keepdim=True)
        given["pairs"] = given["pairs"] / (0.5 * given["pairs"].sum((-2, -1), keepdim=True))
        # Expanded last: what many problems share is held once.
        full = {
            name: tensor.expand(*lead, contexts_count, *[actions] * MINIMAL_NDIM[name])
            for name, tensor in given.items()
        }
        self.reference = full["reference"]
        self.preferences = full["preferences"]
        self.pairs = full["pairs"]
        self.contexts = full["contexts"]
        self.rewards = full.get("rewards")
        self.lengths = full.get("lengths")
        self.reference_samples = full["reference_samples"]
        self.references = None
        if several is not None:
            _check_references(several, self.reference, tolerance)
            several = several / several.sum(-1, keepdim=True)
            several = several.expand(*lead, several.shape[-3], contexts_count, actions)
            self.references = torch.cat([self.reference.unsqueeze(-3), several[..., 1:, :, :]], dim=-3)

    @classmethod
    def from_rewards(
        cls, reference: Array, rewards: Array, scale: Array = 1.0, *, contexts: Array | None = None, **others: Any
    ) -> Bandit:
        """A Bradley-Terry world: p(y1 > y2) = sigmoid((r(y1) - r(y2)) / scale).

        Args:
            reference, rewards, contexts, others: as for `Bandit`.
            scale: > 0, how noisy the labels are (their temperature), (...) over problems; towards 0 preferences become deterministic.

        Raises:
            BanditError: as for `Bandit`, or a scale that is not positive.
        """
        r, temperature = _tensor("rewards", rewards), _tensor("scale", scale)
        if not bool((temperature > 0).all()):
            raise BanditError(f"scale: must be > 0; got {temperature.min().item():g}")
        if temperature.ndim:
            r = r if r.ndim > 1 else r.unsqueeze(0)
            temperature = temperature[..., None, None, None]
        margins = (r.unsqueeze(-1) - r.unsqueeze(-2)) / temperature
        made = cls(reference, torch.sigmoid(margins), contexts=contexts, rewards=r, **others)
        arrays = {"reference": reference, "rewards": rewards, "contexts": contexts, **others}
        mentioned = _mention_contexts({k: _tensor(k, v) for k, v in arrays.items() if v is not None})
        return made if mentioned else made.without_contexts()

    def without_contexts(self) -> Bandit:
        """The same worlds of one context each, whose solutions leave the dimension X out.

        Raises:
            BanditError: there are several contexts.
        """
        if self.contexts.shape[-1] != 1:
            raise BanditError(f"without_contexts: there are {self.contexts.shape[-1]} contexts")
        made = self._map(lambda tensor, core: tensor)
        made.has_contexts = False
        return made

    def with_contexts(self) -> Bandit:
        """The same worlds, whose solutions have the dimension X even where there is one context."""
        made = self._map(lambda tensor, core: tensor)
        made.has_contexts = True
        return made

    @property
    def batch_shape(self) -> torch.Size:
        """The leading dimensions: () for a single problem."""
        return self.reference.shape[:-2]

    @property
    def actions(self) -> int:
        """A, the number of actions."""
        return self.reference.shape[-1]

    @cached_property
    def log_reference(self) -> Tensor:
        """log pi_ref, (..., X, A)."""
        return self.reference.log()

    @cached_property
    def log_references(self) -> Tensor:
        """(..., K, X, A): logarithms of the K references; of pi_ref alone where no others are given."""
        return self.log_reference.unsqueeze(-3) if self.references is None else self.references.log()

    @cached_property
    def label_weights(self) -> Tensor:
        """(..., X, A, A): probability that the next label says "[a] beats [b]", rho(x) mu(x, {a, b}) p(a > b | x); sums to 1."""
        weights = self.contexts[..., None, None] * self.pairs * self.preferences
        return torch.where(self.pairs > 0, weights, 0.0)

    @cached_property
    def shown(self) -> tuple[Tensor, Tensor, Tensor]:
        """Context, winner and loser of every label that is possible in some problem of the batch, or of that which it was taken from, each
        (N,)."""
        possible = (self.label_weights > 0).reshape(-1, *self.label_weights.shape[-3:]).any(0)
        context, winner, loser = possible.nonzero(as_tuple=True)
        return context, winner, loser

    def expand(self, batch_shape: Sequence[int]) -> Bandit:
        """The problems broadcast to ``batch_shape``."""
        return self._map(lambda tensor, core: tensor.expand([*batch_shape, *core]))

    def flattened(self, batch_shape: Sequence[int]) -> Bandit:
        """The problems expanded to ``batch_shape`` and laid out along one leading dimension."""
        return self._map(lambda tensor, core: tensor.expand([*batch_shape, *core]).reshape(-1, *core))

    def take(self, index: Tensor) -> Bandit:
        """The problems ``index`` of a flattened batch; labels that were looked at keep their places (`shown`)."""
        made = self._map(lambda tensor, core: tensor[index])
        if "shown" in self.__dict__:
            made.__dict__["shown"] = self.shown
        return made

    def moved(self, device: torch.device) -> Bandit:
        """The same problems on another device."""
        return self._map(lambda tensor, core: tensor.to(device))

    def replaced(self, **tensors: Tensor) -> Bandit:
        """The same problems with other tensors, by attribute name, in the shapes of the attributes; they are not checked."""
        made = self._map(lambda tensor, core: tensor)
        for name, tensor in tensors.items():
            setattr(made, name, tensor)
        return made

    def _map(self, function: Any) -> Bandit:
        made = object.__new__(Bandit)
        made.has_contexts, made.name = self.has_contexts, self.name
        for name, trailing in MINIMAL_NDIM.items():
            tensor = getattr(self, name)
            setattr(
                made, name, None if tensor is None else function(tensor, tensor.shape[tensor.ndim - trailing - 1 :])
            )
        return made


def _tensor(name: str, value: Array) -> Tensor:
    try:
        tensor = value.detach() if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
        tensor = tensor.to(torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BanditError(f"{name}: not an array of numbers ({error})") from error
    if tensor.ndim < MINIMAL_NDIM.get(name, 0):
        raise BanditError(f"{name}: expected at least {MINIMAL_NDIM[name]} dimensions, got shape {tuple(tensor.shape)}")
    parts = (_off_diagonal(piece) for piece in _pieces(tensor)) if name == "preferences" else (tensor,)
    if not all(bool(torch.isfinite(part).all()) for part in parts):
        raise BanditError(f"{name}: holds NaN or infinity")
    return tensor


def _mention_contexts(given: dict[str, Tensor]) -> bool:
    """Whether any input has the dimension of contexts, which all may leave out."""
    return any(tensor.ndim > MINIMAL_NDIM[name] for name, tensor in given.items())


def _context_dimension(name: str) -> int:
    """Where an input that leaves X out gets it: before the actions (and, of tables over pairs, before both)."""
    return -2 if name == "references" else -1 - MINIMAL_NDIM[name]


def _pieces(matrices: Tensor) -> Iterator[Tensor]:
    """Tables (..., m, n) a million numbers at a time, so that looking at many needs little memory."""
    flat = matrices.reshape(-1, *matrices.shape[-2:])
    if len(flat):
        yield from torch.split(flat, max(1, PIECE // max(1, flat[0].numel())))


def _off_diagonal(matrices: Tensor) -> Tensor:
    """The matrices with 0 on the diagonal."""
    if matrices.shape[-1] != matrices.shape[-2]:
        raise BanditError(f"preferences: expected square matrices (..., A, A), got shape {tuple(matrices.shape)}")
    return matrices.masked_fill(torch.eye(matrices.shape[-1], dtype=torch.bool, device=matrices.device), 0.0)


def _common_shape(given: dict[str, Tensor]) -> tuple[torch.Size, int, int]:
    shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in given.items())
    actions = given["reference"].shape[-1]
    heads = []
    for name, tensor in given.items():
        trailing = 1 if name == "references" else MINIMAL_NDIM[name]
        head, own = tensor.shape[: tensor.ndim - trailing], tensor.shape[tensor.ndim - trailing :]
        if any(size != actions for size in own):
            raise BanditError(f"{name}: the reference has {actions} actions; shapes: {shapes}")
        heads.append((*head[:-2], head[-1]) if name == "references" else head)
    try:
        common: torch.Size = torch.broadcast_shapes(*heads)  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise BanditError(f"shapes (..., X, A) and (..., X, A, A) do not broadcast: {shapes}") from error
    return common[:-1], common[-1], actions


def _where(mask: Tensor) -> str:
    """The first place where the mask holds, for a message."""
    return str(tuple(mask.nonzero()[0].tolist()))


def _check_distribution(name: str, masses: Tensor, tolerance: float, *, positive: bool = False) -> None:
    bad = masses <= 0 if positive else masses < 0
    if bool(bad.any()):
        value = masses[bad][0].item()
        raise BanditError(f"{name}: must be {'> 0' if positive else '>= 0'} everywhere; got {value:g} at {_where(bad)}")
    off = (masses.sum(-1) - 1).abs()
    if bool((off > tolerance).any()):
        raise BanditError(f"{name}: must sum to 1; sums to {masses.sum(-1).flatten()[off.argmax()].item():.12g}")


def _check_references(references: Tensor, reference: Tensor, tolerance: float) -> None:
    _check_distribution("references", references, tolerance, positive=True)
    apart = (references[..., 0, :, :] - reference).abs() > tolerance
    if bool(apart.any()):
        raise BanditError(f"references: the first must be the reference itself; differs at {_where(apart)}")


def _check_preferences(preferences: Tensor, tolerance: float) -> None:
    try:
        for piece in _pieces(preferences):
            _check_probabilities(piece, tolerance)
    except BanditError:
        _check_probabilities(preferences, tolerance)  # for the place in the whole
        raise


def _check_probabilities(preferences: Tensor, tolerance: float) -> None:
    off_diagonal = _off_diagonal(preferences)
    outside = (off_diagonal < 0) | (off_diagonal > 1)
    if bool(outside.any()):
        raise BanditError(
            f"preferences: a probability must lie in [0, 1]; got {preferences[outside][0].item():g} at {_where(outside)}"
        )
    total = off_diagonal + off_diagonal.transpose(-1, -2)
    apart = _off_diagonal((total - 1).abs()) > tolerance
    if bool(apart.any()):
        raise BanditError(
            f"preferences: p(a > b) + p(b > a) must be 1; got {total[apart][0].item():.12g} at {_where(apart)}"
        )


def _check_lengths(lengths: Tensor) -> None:
    bad = (lengths < 1) | (lengths != lengths.round())
    if bool(bad.any()):
        raise BanditError(f"lengths: must be whole numbers >= 1; got {lengths[bad][0].item():g} at {_where(bad)}")


def _check_pairs(pairs: Tensor, tolerance: float) -> None:
    if bool((pairs < 0).any()):
        raise BanditError(f"pairs: weights must be >= 0; got {pairs.min().item():g} at {_where(pairs < 0)}")
    if bool((pairs.diagonal(dim1=-2, dim2=-1) != 0).any()):
        raise BanditError("pairs: an action cannot be compared with itself; the diagonal must be 0")
    apart = (pairs - pairs.transpose(-1, -2)).abs() > tolerance * pairs.amax((-2, -1), keepdim=True)
    if bool(apart.any()):
        raise BanditError(f"pairs: must be symmetric (weights of unordered pairs); differs at {_where(apart)}")
    empty = pairs.sum((-2, -1)) == 0
    if bool(empty.any()):
        raise BanditError(f"pairs: every context needs at least one pair with positive weight; none at {_where(empty)}")

"""An objective is a sum of terms; a term is (data source, weight, per-example loss).

A loss never reduces, logs or loads. The reduction, the same for a bandit's exact expectation and for a minibatch, is `Objective.value`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from objectives.batches import Batch, PairBatch
from objectives.errors import ObjectiveError
from objectives.links import Link
from objectives.margins import Margin
from objectives.strength import Strength
from objectives.values import Value, stop_gradient
from objectives.values import per_example as per_example

SOURCES = ("pairs", "reference_samples", "pretraining", "candidates", "unpaired", "rollouts")


@dataclass(frozen=True, eq=False)
class Term:
    """One expectation of the objective: ``weight * E_source[loss]``.

    ``loss(batch)`` maps the source's batch to (..., N), one value per example. ``needs`` names what the batch must carry beyond
    the policy's log-probs: "ref_logps", "lengths", "reference_token_kl", "rewards", "token_logps", ... (see the batches).
    ``coupled``: whether an example's loss depends on the others of its batch (through weighted means), so that its value changes with
    the batch and with how it is split over devices. ``accepts_pairs``: of another source, whether labelled pairs can stand for it;
    ``on_pairs``: the pair loss that it is there, if it is one.
    """

    name: str
    source: str
    loss: Callable[[Any], Tensor]
    weight: Value = 1.0
    needs: frozenset[str] = frozenset()
    coupled: bool = False
    accepts_pairs: bool = False
    on_pairs: Term | None = None

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ObjectiveError(
                f"{self.name}: unknown source {self.source!r}; a term's source is one of {', '.join(SOURCES)}"
            )

    @property
    def needs_on_pairs(self) -> frozenset[str]:
        """Source and fields to supply where labelled pairs are to stand for candidates or unpaired labels if they can."""
        if self.accepts_pairs:
            return self.needs - {"rewards"} | {"pairs"}
        return self.needs | {self.source}

    def losses(self, batch: Batch) -> Tensor:
        """(..., N): the loss of every example. A reduced loss would silently ignore the weights and is refused.

        Raises:
            ObjectiveError: the loss is not of this shape, or needs what the batch does not carry.
        """
        losses = self.loss(batch)
        shape = tuple(losses.shape) if isinstance(losses, Tensor) else None
        if not shape or shape[-1] != batch.shape[-1] or not _fits(shape, batch.shape):
            expected = f"({', '.join(map(str, batch.shape))}{',' if len(batch.shape) == 1 else ''})"
            raise ObjectiveError(
                f"{self.name}: a loss must return one value per example, (..., {batch.shape[-1]}), here {expected}; it returned "
                f"{type(losses).__name__ if shape is None else shape}"
            )
        return losses

    @property
    def text(self) -> str:
        """What the term is, in words."""
        return f"a loss of its own, {self.name}, on {self.source}{self._weighted}"

    @property
    def _weighted(self) -> str:
        if isinstance(self.weight, Tensor):
            return ", weight per problem"
        return "" if self.weight == 1 else f", weight {self.weight:g}"


def _fits(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Whether a tensor of this shape broadcasts to the whole batch's."""
    return len(shape) <= len(whole) and all(
        size in (1, full) for size, full in zip(shape[::-1], whole[::-1], strict=False)
    )


@dataclass(frozen=True, eq=False)
class PairTerm(Term):
    """``link(scale * margin - offset)`` on labelled pairs; its parts stay visible, so that an exact solver can differentiate and
    bound it in closed form."""

    margin: Margin | None = None
    link: Link | None = None
    scale: Value = 1.0
    offset: Value = 0.0

    @property
    def text(self) -> str:
        """Link and margin, in words."""
        assert self.margin is not None
        assert self.link is not None
        return f"link {self.link.name} of the margin {self.margin.symbol} ({self.margin.name}) on {self.source}{self._weighted}"

    def argument(self, batch: PairBatch) -> Tensor:
        """(..., N): what the link is applied to."""
        assert self.margin is not None
        return per_example(self.scale) * self.margin.value(batch, self.name) - per_example(self.offset)


def pair_term(
    name: str, margin: Margin, link: Link, *, scale: Value = 1.0, offset: Value = 0.0, weight: Value = 1.0
) -> PairTerm:
    """The pair loss ``link(scale * margin - offset)``."""

    def loss(batch: PairBatch) -> Tensor:
        assert term.link is not None
        return term.link.value(term.argument(batch))

    term = PairTerm(
        name=name,
        source="pairs",
        loss=loss,
        weight=weight,
        needs=margin.needs,
        margin=margin,
        link=link,
        scale=scale,
        offset=offset,
    )
    return term


@dataclass(frozen=True, eq=False)
class WeightedPairTerm(Term):
    """sg exp(``log_weight``) times the loss of ``pair``: labels count by what the policy itself makes of them, and that carries no
    gradient.

    ``log_weight(batch)`` (..., N) is the same for both orders of a pair.
    """

    pair: PairTerm | None = None
    log_weight: Callable[[PairBatch], Tensor] | None = None


def weighted_pair_term(
    pair: PairTerm, log_weight: Callable[[PairBatch], Tensor], needs: frozenset[str]
) -> WeightedPairTerm:
    """The loss of ``pair`` under weights that are held fixed; ``needs`` of the weights."""

    def loss(batch: PairBatch) -> Tensor:
        return stop_gradient(log_weight(batch).exp()) * pair.loss(batch)

    return WeightedPairTerm(pair.name, "pairs", loss, pair.weight, pair.needs | needs, pair=pair, log_weight=log_weight)


@dataclass(frozen=True, eq=False)
class UnpairedTerm(Term):
    """Of unpaired labels: ``desirable_weight`` link(t) of the desirable and ``undesirable_weight`` link(-t) of the undesirable, with t
    rising in the response's own log-ratio and else only in a reference point that is held fixed. The link falls everywhere."""

    link: Link | None = None
    desirable_weight: Value = 1.0
    undesirable_weight: Value = 1.0


@dataclass(frozen=True, eq=False)
class Part:
    """One named component of an objective, as the registry made it from ``hyperparameters``."""

    name: str
    label: str
    hyperparameters: Mapping[str, Any]
    terms: tuple[Term, ...]
    rebuild: Callable[..., Objective]
    strength: Strength | None = None


@dataclass(frozen=True, eq=False)
class Objective:
    """A sum of terms with a name. Made by `objectives.get`; objectives compose with ``+``."""

    parts: tuple[Part, ...]

    @property
    def name(self) -> str:
        """``dpo``, or ``dpo+forward_kl`` for a composition."""
        return "+".join(part.name for part in self.parts)

    @property
    def label(self) -> str:
        """The name with its strength and whatever differs from the defaults, e.g. ``dpo(beta=0.1)+forward_kl(weight=0.1)``;
        `objectives.parse` reads it back."""
        return "+".join(part.label for part in self.parts)

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Of a single objective ``{"beta": 0.1}``; of a composition with the part's name in front, ``{"dpo.beta": 0.1}``."""
        if len(self.parts) == 1:
            return dict(self.parts[0].hyperparameters)
        return {f"{part.name}.{key}": value for part in self.parts for key, value in part.hyperparameters.items()}

    @property
    def terms(self) -> tuple[Term, ...]:
        """All terms, those of weight 0 left out."""
        return tuple(term for part in self.parts for term in part.terms)

    @property
    def needs(self) -> frozenset[str]:
        """What a producer must supply: the sources, and what their batches must carry ("ref_logps", "lengths", ...)."""
        return frozenset().union(*(term.needs | {term.source} for term in self.terms))

    @property
    def needs_on_pairs(self) -> frozenset[str]:
        """`needs` of a producer that has labelled pairs: they stand for candidates (one-hot) and unpaired labels where that is possible."""
        return frozenset().union(*(term.needs_on_pairs for term in self.terms))

    @property
    def needs_temperature(self) -> bool:
        """Whether a ``temperature="auto"`` waits for its number: see `with_temperature`."""
        return any(part.hyperparameters.get("temperature") == "auto" for part in self.parts)

    def with_temperature(self, temperature: float) -> Objective:
        """The same objective with ``temperature="auto"`` replaced by a number (nats): the standard deviation of the plain margin
        between two reference samples of one prompt; 1 in a bandit."""
        parts: list[Part] = []
        for part in self.parts:
            auto = part.hyperparameters.get("temperature") == "auto"
            parts += part.rebuild(**{**part.hyperparameters, "temperature": temperature}).parts if auto else (part,)
        return Objective(tuple(parts))

    @property
    def strength(self) -> Strength | None:
        """The hyper-parameter that is the strength of regularisation; of a sum the last part's that has one: ``forward_kl.weight`` of
        dpo+forward_kl. None where no part has one (sft)."""
        part = self._with_strength
        if part is None or part.strength is None or len(self.parts) == 1:
            return None if part is None else part.strength
        return replace(part.strength, parameter=f"{part.name}.{part.strength.parameter}")

    @property
    def _with_strength(self) -> Part | None:
        return next((part for part in reversed(self.parts) if part.strength is not None), None)

    def with_strength(self, value: Value) -> Objective:
        """The same objective at another strength: a number, or a tensor with one per problem.

        Raises:
            ObjectiveError: it has no strength, or the value lies outside the hyper-parameter's domain.
        """
        changed = self._with_strength
        if changed is None or changed.strength is None:
            raise ObjectiveError(f"{self.name} has no hyper-parameter that is its strength of regularisation")
        parameters = {**changed.hyperparameters, changed.strength.parameter: value}
        parts = [
            p for part in self.parts for p in (changed.rebuild(**parameters).parts if part is changed else (part,))
        ]
        return Objective(tuple(parts))

    def __add__(self, other: Objective) -> Objective:
        if not isinstance(other, Objective):
            return NotImplemented
        repeated = {part.name for part in self.parts} & {part.name for part in other.parts}
        if repeated:
            raise ObjectiveError(
                f"{', '.join(sorted(repeated))} is already part of {self.name}: change its hyper-parameters instead"
            )
        return Objective(self.parts + other.parts)

    def __repr__(self) -> str:
        return f"Objective({self.label})"

    def term_values(self, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        """Weighted expectation of each term, by term name, each of shape (...).

        Args:
            batches: one batch per source of the objective; candidates and unpaired labels, where not given, are made of the pairs.

        Raises:
            ObjectiveError: a source or a field is missing, a log-prob is not finite or is positive.
        """
        given: dict[str, Batch] = {}
        for source in dict.fromkeys(term.source for term in self.terms):
            given[source] = _of_source(source, batches, self.name)
            given[source].check(self.name)
        values: dict[str, Tensor] = {}
        for term in self.terms:
            batch = given[term.source]
            values[term.name] = values.get(term.name, 0.0) + term.weight * batch.mean(term.losses(batch))
        return values

    def value(self, batches: Mapping[str, Batch]) -> Tensor:
        """The objective, (...): sum over terms of weight * sum_i w_i loss_i. See `term_values`."""
        values = list(self.term_values(batches).values())
        return sum(values[1:], start=values[0])

    def pair_losses(self, batch: PairBatch) -> Tensor:
        """(..., N): one loss per pair, not reduced: the sum of the terms whose source is the pairs, or can be made of them
        (a pair is two candidates with a one-hot target, or a desirable and an undesirable example).

        Raises:
            ObjectiveError: the objective has no such term, or the batch lacks what it needs.
        """
        terms = [term for term in self.terms if term.source == "pairs" or term.source in FROM_PAIRS]
        if not terms:
            raise ObjectiveError(
                f"{self.name} has no term on pairs; its sources: {', '.join(sorted({t.source for t in self.terms}))}"
            )
        batch.check(self.name)
        losses = []
        for term in terms:
            given = _of_source(term.source, {"pairs": batch}, self.name)
            per_pair = term.losses(given)
            if term.source == "unpaired":  # first every chosen, then every rejected response
                chosen, rejected = per_pair.chunk(2, dim=-1)
                per_pair = chosen + rejected
            losses.append(per_example(term.weight) * per_pair)
        return sum(losses[1:], start=losses[0])


def unweighted(objective: Objective) -> Objective:
    """The objective with weights of the policy's own making (`WeightedPairTerm`) left out."""
    return _with_terms(objective, lambda t: t.pair if isinstance(t, WeightedPairTerm) and t.pair is not None else t)


def on_pairs(objective: Objective) -> Objective:
    """The objective as it is where all that is known are labelled pairs: terms with a form of their own there (`Term.on_pairs`) take it."""
    return _with_terms(objective, lambda term: term.on_pairs or term)


def _with_terms(objective: Objective, change: Callable[[Term], Term]) -> Objective:
    """The objective with every term changed, also at other hyper-parameters."""

    def changed(part: Part) -> Part:
        terms = tuple(map(change, part.terms))
        return replace(part, terms=terms, rebuild=lambda **values: _with_terms(part.rebuild(**values), change))

    return Objective(tuple(map(changed, objective.parts)))


FROM_PAIRS: dict[str, Callable[[PairBatch], Batch]] = {
    "candidates": PairBatch.as_candidates,
    "unpaired": PairBatch.as_unpaired,
}


def _of_source(source: str, batches: Mapping[str, Batch], objective: str) -> Batch:
    if source in batches:
        return batches[source]
    pairs = batches.get("pairs")
    if source in FROM_PAIRS and isinstance(pairs, PairBatch):
        return FROM_PAIRS[source](pairs)
    raise ObjectiveError(f"{objective} needs a batch of {source!r}; given: {', '.join(batches) or 'nothing'}")

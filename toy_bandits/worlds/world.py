"""A world: settings, what they probe, and the bandit that they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from toy_bandits.errors import BanditError
from toy_bandits.problem import Bandit
from toy_bandits.worlds import draws, parts
from toy_bandits.worlds.cells import MOST, Cells

CELLS = {
    "actions": "how many, where no other cell lists them",
    "contexts": "how many (alike), or their probabilities",
    "responses": "token sequences as actions: a list of texts, or tree {vocabulary, depth}, comb {depth}",
    "features": "a table, or normal {dimension, scale, seed}",
    "reference": "probabilities, or uniform, normal {scale, seed}, neglects {action, mass}, log_linear {weights | scale, seed}, "
    "tokens {scale, seed}",
    "references": "a list of further references, made as the first",
    "rewards": "a table, or falling (evenly from 1 to 0), normal {scale, seed}, log_linear {weights | scale, seed}, "
    "length {slope, scale, seed}",
    "preferences": "a table p(row beats column), or bradley_terry {scale}, order {probability | error}, "
    "wins {pairs: [[winner, loser, probability]]}, cycle {probability | error}",
    "label_noise": "probability that a label is turned round",
    "pairs": "[[action, action, weight]], or all, chain, ring, star, reference, sparse {degree, seed}, among {blocks}, "
    "each_context {compared, seed}",
    "connected": "true: refuse a pair graph that is not connected",
    "labels": "finite data {count, data_sets, seed}; count is per context",
    "reference_samples": "finite samples of the reference {count, data_sets, seed}",
}
"""What may stand in a world, and how."""


@dataclass(frozen=True, eq=False)
class World:
    """One world of the laboratory.

    Attributes:
        id: stable, such as ``partial_support/3``; a number once given is never given again.
        summary: what it is, in a line.
        probes: which failure its family shows.
        facts: the facts of the theory (F1, F2, ...) or the claims (C1, ...) that it rests on.
        tags: for choosing worlds.
        settings: its cells, as they stand in the file.
        problem: what an objective sees: (X, A) with X always there, and a leading dimension of data sets where data are finite.
        truth: the same world without label noise, with infinite data: what a policy is judged by. No leading dimensions.
        features: (X, A, F), for log-linear policies; the reference is log-linear in them where `settings` says so.
        responses: the token sequences that the actions stand for.
    """

    id: str
    summary: str
    probes: str
    facts: tuple[str, ...]
    tags: tuple[str, ...]
    settings: Mapping[str, Any]
    problem: Bandit
    truth: Bandit
    features: Tensor | None = None
    responses: tuple[tuple[str, ...], ...] | None = None

    @property
    def references(self) -> Tensor | None:
        """(K, X, A), where the world has several: the first of them the problem's own."""
        return self.truth.references

    @property
    def family(self) -> str:
        """The part of the id before the number."""
        return self.id.split("/")[0]

    @property
    def lengths(self) -> Tensor:
        """(A,): tokens of each response; 1 where actions are no token sequences."""
        found = [len(response) for response in self.responses or [()] * self.problem.actions]
        return torch.tensor(found, dtype=torch.float64).clamp(min=1.0)

    @property
    def fact(self) -> str:
        """The facts in one text."""
        return ", ".join(self.facts)

    def __str__(self) -> str:
        return f"{self.id}: {self.summary}"


def build(world_id: str, about: Mapping[str, Any], cells: Cells) -> World:
    """The world that ``cells`` describe.

    Raises:
        BanditError: a cell is unknown, missing, of the wrong kind or contradicts another; the message names world and cell.
    """
    cells.only(*CELLS)
    responses = parts.responses(cells)
    weights = _contexts(cells)
    size = parts.Size(len(weights), _actions(cells, responses))
    if (numbers := size.contexts * size.actions**2) > MOST:
        raise cells.error("actions", f"their pairs in all contexts must be at most {MOST}, not {numbers}")
    features = parts.features(cells, size)
    scores = parts.Scores(size, features, responses)
    reference = parts.reference(cells, "reference", scores)
    rewards = parts.rewards(cells, scores)
    preferences = parts.preferences(cells, size, rewards)
    pairs = parts.pairs(cells, size, reference)
    if cells.flag("connected"):
        _check_connected(cells, pairs)
    noise = cells.number("label_noise", 0.0, low=0.0, high=0.5)
    others: dict[str, Any] = {
        "lengths": None if responses is None else [len(response) for response in responses],
        "references": _references(cells, reference, scores),
        "name": f"world {world_id}",
    }
    try:
        truth = Bandit(reference, preferences, pairs, weights, rewards, **others)
        seen = preferences + noise * (1.0 - 2.0 * preferences)
        problem = _finite(cells, truth, Bandit(reference, seen, pairs, weights, rewards, **others))
    except BanditError as error:
        raise BanditError(f"{cells.where}: {error}") from error
    return World(
        id=world_id,
        settings=dict(cells.values),
        problem=problem,
        truth=truth,
        features=features,
        responses=responses,
        **about,
    )


def _contexts(cells: Cells) -> Tensor:
    """(X,): probabilities of the contexts."""
    if isinstance(cells.values.get("contexts"), list):
        weights = parts.numbers(cells, "contexts", (len(cells.raw("contexts")),))
        total = weights.sum().item()
        if bool((weights < 0).any()) or abs(total - 1) > 1e-9:
            raise cells.error("contexts", f"probabilities must be >= 0 and sum to 1; they sum to {total:.12g}")
        return weights
    count = cells.whole("contexts", at_least=1, at_most=MOST) if "contexts" in cells else 1
    return torch.full((count,), 1.0 / count, dtype=torch.float64)


def _actions(cells: Cells, responses: tuple[tuple[str, ...], ...] | None) -> int:
    """The number of actions, on which all cells that list them must agree."""
    listed = {"responses": len(responses)} if responses is not None else {}
    if "actions" in cells:
        listed["actions"] = cells.whole("actions", at_least=2, at_most=MOST)
    for key in ("reference", "rewards"):
        value = cells.values.get(key)
        if isinstance(value, list) and value:
            listed[key] = len(value[0]) if isinstance(value[0], list) else len(value)
    if not listed:
        raise BanditError(f"{cells.where}: actions is missing: how many there are")
    if len(set(listed.values())) > 1:
        raise BanditError(f"{cells.where}: the number of actions differs: {listed}")
    (count,) = set(listed.values())
    if count < 2:
        raise BanditError(f"{cells.where}: {next(iter(listed))}: a world needs at least two actions; got {count}")
    return count


def _check_connected(cells: Cells, pairs: Tensor) -> None:
    for context, table in enumerate(pairs):
        _, part = connected_components(table.numpy() > 0, directed=False)
        if part.any():
            raise cells.error(
                "pairs",
                f"the graph must be connected, but no pairs lead from action 0 to {int(part.argmax())} in context {context}",
            )


def _finite(cells: Cells, truth: Bandit, seen: Bandit) -> Bandit:
    """The problem with its data drawn, where the world's data are finite."""
    settings = {
        key: Cells.of(f"{cells.where}: {key}", cells.raw(key)).only("count", "data_sets", "seed")
        for key in ("labels", "reference_samples")
        if key in cells
    }
    drawn = {
        key: {
            "count": of.whole("count", at_least=1, at_most=2**53),  # shares of it are floats
            "data_sets": of.whole("data_sets", at_least=1, at_most=MOST // truth.label_weights.numel()),
            "seed": of.whole("seed"),
        }
        for key, of in settings.items()
    }
    if len({of["data_sets"] for of in drawn.values()}) > 1:
        raise cells.error("reference_samples", "data_sets must be as many as those of labels")
    if not drawn:
        return seen
    preferences, pairs = draws.labels(seen, **drawn["labels"]) if "labels" in drawn else (seen.preferences, seen.pairs)
    samples = draws.reference_samples(truth, **drawn["reference_samples"]) if "reference_samples" in drawn else None
    return Bandit(
        truth.reference,
        preferences,
        pairs,
        truth.contexts,
        truth.rewards,
        samples,
        truth.lengths,
        truth.references,
        truth.name,
    )


def _references(cells: Cells, reference: Tensor, scores: parts.Scores) -> Tensor | None:
    if "references" not in cells:
        return None
    value = cells.raw("references")
    if not isinstance(value, list) or not value:
        raise cells.error("references", f"expected a list of references, got {value!r}")
    others = Cells(f"{cells.where}: references", {str(i): each for i, each in enumerate(value)})
    return torch.stack([reference, *(parts.reference(others, key, scores) for key in others.values)])

"""The parts of a world made from its cells: numbers as they stand in the file, or a rule with settings and a seed.

Shapes: X contexts, A actions, F features, K references. All float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toy_bandits.errors import BanditError
from toy_bandits.worlds.cells import MOST, Cells

END = "."
"""The token that ends a response; a response as long as the tree is deep needs none."""

LARGEST = 100.0
_MOST_RESPONSES = 2048  # a table of pairs of more is larger than any that is read


@dataclass(frozen=True)
class Size:
    """How many contexts and actions a world has."""

    contexts: int
    actions: int


def numbers(cells: Cells, key: str, *shapes: tuple[int, ...]) -> Tensor:
    """The cell's numbers, in the first of the shapes that they fill; leading dimensions are added where they are fewer."""
    value = cells.raw(key)
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise cells.error(key, f"not a table of numbers: {value!r:.200}") from error
    if array.shape not in shapes:
        expected = " or ".join(str(shape) for shape in shapes)
        raise cells.error(key, f"expected numbers of shape {expected}, got {array.shape}")
    if not np.isfinite(array).all():
        raise cells.error(key, "holds NaN or infinity")
    return torch.from_numpy(array)


def _normal(cells: Cells, *shape: int) -> Tensor:
    """Normal numbers of a seed and a scale."""
    cells.only("scale", "seed")
    scale = cells.number("scale", 1.0, low=0.0, high=LARGEST)
    return torch.from_numpy(scale * np.random.default_rng(cells.whole("seed")).standard_normal(shape))


def responses(cells: Cells) -> tuple[tuple[str, ...], ...] | None:
    """The token sequences that are the actions: a list of texts with blanks between tokens, or a rule.

    No response may begin with another one, for then a model could not end the shorter.
    """
    if "responses" not in cells:
        return None
    if isinstance(cells.raw("responses"), list):
        found = tuple(tuple(text.split()) for text in cells.texts("responses"))
    else:
        rule, settings = cells.one("responses", "tree", "comb")
        found = tuple(_tree(settings) if rule == "tree" else _comb(settings))
    for first, second in pairwise(sorted(found)):  # sorted, a prefix stands right before a response that begins with it
        if second[: len(first)] == first:
            raise cells.error("responses", f"{' '.join(second)!r} begins with the response {' '.join(first)!r}")
    return found


def _tree(settings: Cells) -> list[tuple[str, ...]]:
    """All texts over the vocabulary a, b, ...: up to ``depth`` tokens, the one that ends a shorter text among them."""
    settings.only("vocabulary", "depth")
    vocabulary = [chr(ord("a") + i) for i in range(settings.whole("vocabulary", at_least=1, at_most=_MOST_RESPONSES))]
    depth = settings.whole("depth", at_least=1, at_most=_MOST_RESPONSES)
    count = 0
    for length in range(1, depth + 1):
        count += len(vocabulary) ** length
        if count > _MOST_RESPONSES:
            raise settings.error("depth", f"the tree has more than {_MOST_RESPONSES} texts")
    shorter = [(*text, END) for length in range(1, depth) for text in product(vocabulary, repeat=length)]
    return [*shorter, *product(vocabulary, repeat=depth)]


def _comb(settings: Cells) -> list[tuple[str, ...]]:
    """``depth`` + 1 texts: after every further b one may end; the last two are of one length."""
    settings.only("depth")
    depth = settings.whole("depth", at_least=1, at_most=_MOST_RESPONSES)
    return [*((*["b"] * length, END) for length in range(depth)), ("b",) * depth]


def features(cells: Cells, size: Size) -> Tensor | None:
    """(X, A, F), the same in every context where only (A, F) is given."""
    if "features" not in cells:
        return None
    if isinstance(cells.raw("features"), list):
        width = _width(cells.raw("features"))
        shapes = (size.actions, width), (size.contexts, size.actions, width)
        return numbers(cells, "features", *shapes).expand(size.contexts, size.actions, width)
    _, normal = cells.one("features", "normal")
    dimension = normal.whole("dimension", at_least=1, at_most=MOST // (size.contexts * size.actions))
    others = Cells(normal.where, {key: value for key, value in normal.values.items() if key != "dimension"})
    return _normal(others, size.contexts, size.actions, dimension)


def _width(value: Any) -> int:
    """Length of the innermost lists."""
    while isinstance(value, list) and value and isinstance(value[0], list):
        value = value[0]
    return len(value) if isinstance(value, list) else 0


@dataclass(frozen=True)
class Scores:
    """What rewards and references may be made of."""

    size: Size
    features: Tensor | None
    responses: tuple[tuple[str, ...], ...] | None

    def log_linear(self, cells: Cells) -> Tensor:
        """(X, A): features times weights, given or drawn."""
        cells.only("weights", "scale", "seed")
        if self.features is None:
            raise BanditError(f"{cells.where}: needs the world's features, and it has none")
        width = self.features.shape[-1]
        given = "weights" in cells
        weights = numbers(cells, "weights", (width,)) if given else _normal(cells, width)
        return self.features @ weights

    def per_token(self, cells: Cells) -> Tensor:
        """(X, A): log-probs of the responses, the next token drawn from a softmax of normal logits that differ for every prefix."""
        if self.responses is None:
            raise BanditError(f"{cells.where}: needs the world's responses, and it has none")
        following: dict[tuple[str, ...], list[str]] = {}
        for response in self.responses:
            for i, token in enumerate(response):
                options = following.setdefault(response[:i], [])
                if token not in options:
                    options.append(token)
        branches = [(prefix, token) for prefix, options in following.items() for token in options]
        drawn = _normal(cells, len(branches))
        log_probs: dict[tuple[str, ...], Tensor] = {}
        start = 0
        for prefix, options in following.items():
            conditional = drawn[start : start + len(options)].log_softmax(-1)
            start += len(options)
            log_probs |= {(*prefix, token): conditional[i] for i, token in enumerate(options)}
        sums = [sum(log_probs[r[: i + 1]] for i in range(len(r))) for r in self.responses]
        return torch.stack([torch.as_tensor(total) for total in sums]).expand(self.size.contexts, -1)


def reference(cells: Cells, key: str, scores: Scores) -> Tensor:
    """(X, A): a distribution that is given, or made by a rule."""
    size = scores.size
    if isinstance(cells.raw(key), list):
        masses = numbers(cells, key, (size.actions,), (size.contexts, size.actions))
        if bool((masses <= 0).any()):
            raise cells.error(key, f"every action needs a probability > 0; got {masses.min().item():g}")
        total = masses.sum(-1)
        if bool(((total - 1).abs() > 1e-9).any()):
            worst = total.flatten()[(total.flatten() - 1).abs().argmax()].item()
            raise cells.error(key, f"probabilities must sum to 1; they sum to {worst:.12g}")
        return masses.expand(size.contexts, size.actions)
    rule, settings = cells.one(key, "uniform", "normal", "neglects", "log_linear", "tokens")
    if rule == "uniform":
        settings.only()
        return torch.full((size.contexts, size.actions), 1.0 / size.actions, dtype=torch.float64)
    if rule == "neglects":
        settings.only("action", "mass")
        action = settings.whole("action")
        if action >= size.actions:
            raise settings.error("action", f"there are {size.actions} actions, counted from 0; got {action}")
        mass = settings.number("mass", low=1e-300, high=1.0 - 1e-9)
        masses = torch.full((size.contexts, size.actions), (1.0 - mass) / (size.actions - 1), dtype=torch.float64)
        masses[:, action] = mass
        return masses
    if rule == "normal":
        return _normal(settings, size.contexts, size.actions).softmax(-1)
    return (scores.log_linear(settings) if rule == "log_linear" else scores.per_token(settings)).softmax(-1)


def rewards(cells: Cells, scores: Scores) -> Tensor:
    """(X, A): numbers that are given, or made by a rule."""
    size = scores.size
    if isinstance(cells.raw("rewards"), list):
        given = numbers(cells, "rewards", (size.actions,), (size.contexts, size.actions))
        return given.expand(size.contexts, size.actions)
    rule, settings = cells.one("rewards", "normal", "falling", "log_linear", "length")
    if rule == "normal":
        return _normal(settings, size.contexts, size.actions)
    if rule == "falling":
        settings.only()
        return torch.linspace(1.0, 0.0, size.actions, dtype=torch.float64).expand(size.contexts, -1)
    if rule == "log_linear":
        return scores.log_linear(settings)
    settings.only("slope", "scale", "seed")
    if scores.responses is None:
        raise BanditError(f"{settings.where}: needs the world's responses, and it has none")
    slope = settings.number("slope", 0.0, low=-LARGEST, high=LARGEST)
    noise = Cells(settings.where, {key: value for key, value in settings.values.items() if key != "slope"})
    lengths = torch.tensor([len(response) for response in scores.responses], dtype=torch.float64)
    return slope * lengths + _normal(noise, size.contexts, size.actions)


def preferences(cells: Cells, size: Size, reward: Tensor) -> Tensor:
    """(X, A, A): p(a > b | x); both entries of a pair in full precision, so that a probability may be 1 - 1e-12."""
    shape = size.contexts, size.actions, size.actions
    if isinstance(cells.raw("preferences"), list):
        return numbers(cells, "preferences", shape[1:], shape).expand(shape)
    rule, settings = cells.one("preferences", "bradley_terry", "order", "wins", "cycle")
    gaps = reward.unsqueeze(-1) - reward.unsqueeze(-2)
    if rule == "bradley_terry":
        settings.only("scale")
        return torch.sigmoid(gaps / settings.number("scale", 1.0, low=1e-9, high=1e9))
    table = torch.full(shape, 0.5, dtype=torch.float64)
    if rule == "wins":
        settings.only("pairs")
        for winner, loser, win, loss in _wins(settings, size):
            table[:, winner, loser], table[:, loser, winner] = win, loss
        return table
    settings.only("probability", "error")
    win, loss = _chance(settings)
    if rule == "order":  # the better reward wins
        return torch.where(gaps > 0, win, torch.where(gaps < 0, loss, table))
    if size.actions % 2 == 0:
        raise BanditError(f"{settings.where}: a cycle needs an odd number of actions; got {size.actions}")
    ahead = (torch.arange(size.actions) - torch.arange(size.actions).unsqueeze(-1)) % size.actions
    beats = (ahead > 0) & (ahead <= size.actions // 2)  # each beats the half that follows it
    return torch.where(beats, win, torch.where(beats.T, loss, table))


def _chance(settings: Cells) -> tuple[float, float]:
    """The winner's and the loser's probability, from ``probability``, or from ``error`` = 1 - probability where that is tiny."""
    if ("probability" in settings) == ("error" in settings):
        raise BanditError(f"{settings.where}: give either probability or error (= 1 - probability)")
    if "error" in settings:
        loss = settings.number("error", low=0.0, high=1.0)
        return 1.0 - loss, loss
    win = settings.number("probability", low=0.0, high=1.0)
    return win, 1.0 - win


def _wins(settings: Cells, size: Size) -> list[tuple[int, int, float, float]]:
    found = []
    for entry in _entries(settings, "pairs"):
        if len(entry) != 3:
            raise settings.error("pairs", f"expected [winner, loser, probability], got {entry!r}")
        winner, loser = _actions(settings, "pairs", entry, size)
        chance = Cells(f"{settings.where}: pairs {entry!r}", {"probability": entry[2]})
        found.append((winner, loser, *_chance(chance)))
    return found


def _entries(cells: Cells, key: str) -> list[list[Any]]:
    value = cells.raw(key)
    if not isinstance(value, list) or not value or not all(isinstance(entry, list) for entry in value):
        raise cells.error(key, f"expected a list of lists, got {value!r}")
    return value


def _actions(cells: Cells, key: str, entry: list[Any], size: Size) -> list[int]:
    """The first two members of an entry: two different actions."""
    found = entry[:2]
    for action in found:
        if isinstance(action, bool) or not isinstance(action, int) or not 0 <= action < size.actions:
            raise cells.error(key, f"actions count from 0 to {size.actions - 1}; got {action!r} in {entry!r}")
    if len(set(found)) != 2:
        raise cells.error(key, f"an action cannot be compared with itself: {entry!r}")
    return found


def pairs(cells: Cells, size: Size, masses: Tensor) -> Tensor:
    """(X, A, A): how often each pair is compared; symmetric. ``masses`` (X, A): the reference."""
    actions = size.actions
    if "pairs" not in cells:
        return _complete(range(actions), actions).expand(size.contexts, -1, -1)
    if isinstance(cells.raw("pairs"), list):
        table = torch.zeros(actions, actions, dtype=torch.float64)
        for entry in _entries(cells, "pairs"):
            if len(entry) not in (2, 3):
                raise cells.error("pairs", f"expected [action, action] or [action, action, weight], got {entry!r}")
            first, second = _actions(cells, "pairs", entry, size)
            weight = entry[2] if len(entry) == 3 else 1
            chance = Cells(f"{cells.where}: pairs {entry!r}", {"weight": weight})
            table[first, second] = table[second, first] = chance.number("weight", low=0.0, high=1e9)
    else:
        rule, settings = cells.one("pairs", *GRAPHS, "reference", "sparse", "among", "each_context")
        if rule == "reference":  # two independent draws of the reference, unequal
            settings.only()
            both = masses.unsqueeze(-1) * masses.unsqueeze(-2)
            return both - torch.diag_embed(both.diagonal(dim1=-2, dim2=-1))
        if rule == "each_context":
            return _each_context(settings, size)
        if rule == "sparse":
            table = _sparse(settings, actions)
        elif rule == "among":
            settings.only("blocks")
            table = torch.zeros(actions, actions, dtype=torch.float64)
            for block in _entries(settings, "blocks"):
                for first, second in pairwise(block) if len(block) > 1 else []:
                    _actions(settings, "blocks", [first, second], size)
                table += _complete(block, actions)
            table.clamp_(max=1.0)
        else:
            settings.only()
            table = GRAPHS[rule](actions)
    if not bool((table > 0).any()):
        raise cells.error("pairs", "at least one pair must be compared")
    return table.expand(size.contexts, -1, -1)


def _each_context(settings: Cells, size: Size) -> Tensor:
    """All pairs among the first ``compared`` actions of a shuffle that differs by context; the others are never shown there."""
    settings.only("compared", "seed")
    compared = settings.whole("compared", at_least=2)
    if compared > size.actions:
        raise settings.error("compared", f"there are only {size.actions} actions; got {compared}")
    generator = np.random.default_rng(settings.whole("seed"))
    shown = [sorted(generator.permutation(size.actions)[:compared].tolist()) for _ in range(size.contexts)]
    return torch.stack([_complete(actions, size.actions) for actions in shown])


def _sparse(settings: Cells, actions: int) -> Tensor:
    """A ring with random chords up to an average ``degree``; all pairs where that is as many. Connected."""
    settings.only("degree", "seed")
    degree = settings.whole("degree", at_least=2)
    if degree >= actions - 1:
        return _complete(range(actions), actions)
    generator = np.random.default_rng(settings.whole("seed"))
    edges = {(i, i + 1) for i in range(actions - 1)} | {(0, actions - 1)}
    while 2 * len(edges) < degree * actions:
        first, second = sorted(generator.integers(actions, size=2).tolist())
        if first != second:
            edges.add((first, second))
    return _edges(actions, sorted(edges))


def _complete(members: Any, actions: int) -> Tensor:
    inside = torch.zeros(actions, dtype=torch.float64)
    inside[list(members)] = 1.0
    return torch.outer(inside, inside).fill_diagonal_(0.0)


def _edges(actions: int, edges: list[tuple[int, int]]) -> Tensor:
    table = torch.zeros(actions, actions, dtype=torch.float64)
    for first, second in edges:
        table[first, second] = table[second, first] = 1.0
    return table


def _chain(actions: int) -> Tensor:
    return _edges(actions, list(pairwise(range(actions))))


def _ring(actions: int) -> Tensor:
    return _edges(actions, [*pairwise(range(actions)), (actions - 1, 0)] if actions > 2 else [(0, 1)])


def _star(actions: int) -> Tensor:
    return _edges(actions, [(0, other) for other in range(1, actions)])


def _all(actions: int) -> Tensor:
    return _complete(range(actions), actions)


GRAPHS: dict[str, Callable[[int], Tensor]] = {"all": _all, "chain": _chain, "ring": _ring, "star": _star}

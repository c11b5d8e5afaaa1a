"""The one registry: names to factories, with what a reader needs to know about each.

A third party registers with the decorator, in a module that an entry point of the group ``preference_objectives`` names, or in a file
that the environment variable ``PREFERENCE_OBJECTIVES_PLUGINS`` names.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from objectives import third_parties
from objectives.domains import HyperParameter, hyperparameters, unknown_name
from objectives.errors import ObjectiveError
from objectives.strength import Strength
from objectives.terms import Objective, Part, Term

Factory = Callable[..., Term | tuple[Term, ...]]
COUPLING = (
    "an example's loss depends on its whole batch, by means under the batch's weights: exact where the batch is the whole distribution "
    "(a bandit); under data parallelism each device sees its own part, so gather the batch or accept per-device means"
)


@dataclass(frozen=True)
class Spec:
    """What the registry knows of an objective besides its code."""

    name: str
    factory: Factory
    family: str
    formula: str
    paper: str
    equation: str
    defaults: str
    optimum: str
    watch: str
    differences: str
    strength: Strength | None

    @property
    def hyperparameters(self) -> tuple[HyperParameter, ...]:
        """What the factory's signature declares."""
        return hyperparameters(self.factory)


@dataclass(frozen=True)
class Description:
    """`describe`'s answer; ``str()`` gives it as text."""

    name: str
    summary: str
    family: str
    formula: str
    paper: str
    equation: str
    needs: tuple[str, ...]
    needs_on_pairs: tuple[str, ...]
    hyperparameters: tuple[HyperParameter, ...]
    defaults: str
    coupled: bool
    composition: tuple[str, ...]
    optimum: str
    watch: str
    differences: str
    strength: Strength | None

    @property
    def source(self) -> str:
        """Paper and equation."""
        return ", ".join(filter(None, (self.paper, self.equation))) or "not given"

    @property
    def coupling(self) -> str:
        """How a batch-coupled objective behaves, and what data parallelism does to it; empty for the others."""
        return COUPLING if self.coupled else ""

    def __str__(self) -> str:
        rows = [
            ("formula", self.formula),
            ("source", self.source),
            ("family", self.family),
            *(("made of" if i == 0 else "", part) for i, part in enumerate(self.composition)),
            ("needs", ", ".join(self.needs)),
            ("or", ", ".join(self.needs_on_pairs) if self.needs_on_pairs != self.needs else ""),
            *(
                ("default" if i == 0 else "", f"{h.name} = {h.default!r}  ({h.allowed})")
                for i, h in enumerate(self.hyperparameters)
            ),
            ("origin", self.defaults),
            ("strength", self.strength.text if self.strength else ""),
            ("optimum", self.optimum),
            ("watch", self.watch),
            ("coupling", self.coupling),
            ("variants", self.differences),
        ]
        return "\n".join([f"{self.name}: {self.summary}", *(f"  {key:<9} {text}" for key, text in rows if text)])


_specs: dict[str, Spec] = {}
_third_parties_loaded = False


def register(
    name: str,
    *,
    formula: str,
    family: str = "pairwise",
    paper: str = "",
    equation: str = "",
    defaults: str = "",
    optimum: str = "",
    watch: str = "",
    differences: str = "",
    strength: Strength | None = None,
) -> Callable[[Factory], Factory]:
    """Decorator for a factory: its arguments, with defaults and domains, are the hyper-parameters; it returns one term or several.

    Args:
        name: an identifier, unique in the registry.
        formula: the per-example loss, in the notation of the documentation.
        family: the heading under which lists show it.
        paper, equation: the source, e.g. ``arXiv 2305.18290`` and ``eq. 7``. defaults: where the default values come from.
        optimum: the analytic optimum, where known. watch: what to look out for. differences: variants, and where libraries differ.
        strength: the hyper-parameter that is the strength of regularisation; not given: ``beta`` where there is one, larger holding the
            policy closer.

    Raises:
        ObjectiveError: the name is taken or is not an identifier, a hyper-parameter has no default, or the strength is not one of them.
    """
    if not name.isidentifier():
        raise ObjectiveError(f"an objective's name must be an identifier such as 'my_loss'; got {name!r}")
    if not formula:
        raise ObjectiveError(f"{name}: a formula is required")

    def decorate(factory: Factory) -> Factory:
        if name in _specs:
            raise ObjectiveError(f"an objective {name!r} is already registered by {_specs[name].factory.__module__}")
        declared = [parameter.name for parameter in hyperparameters(factory)]
        swept = strength or (Strength() if Strength.parameter in declared else None)
        if swept is not None and swept.parameter not in declared:
            raise ObjectiveError(f"{name}: strength: {unknown_name('hyper-parameter', swept.parameter, declared)}")
        spec = Spec(name, factory, family, formula, paper, equation, defaults, optimum, watch, differences, swept)
        for parameter in spec.hyperparameters:
            parameter.check(name, parameter.default)
        _specs[name] = spec
        return factory

    return decorate


def specs() -> dict[str, Spec]:
    """Everything registered, third parties' included, by name.

    Raises:
        ObjectiveError: a third party's file cannot be loaded.
    """
    global _third_parties_loaded
    if not _third_parties_loaded:
        _third_parties_loaded = True
        try:
            third_parties.load()
        except ObjectiveError:
            _third_parties_loaded = False  # so that the next call says it again
            raise
    return dict(sorted(_specs.items()))


def names() -> list[str]:
    """The registered names, sorted."""
    return list(specs())


def _spec(name: str) -> Spec:
    known = specs()
    if name not in known:
        raise ObjectiveError(unknown_name("objective", name, list(known)))
    return known[name]


def get(name: str, **hyperparameters: Any) -> Objective:
    """The objective ``name``; hyper-parameters not given take their defaults.

    A number may be a tensor of shape (...) that holds one value per problem of a batch.

    Raises:
        ObjectiveError: an unknown name or hyper-parameter (with the nearest ones), or a value outside its domain.
    """
    spec = _spec(name)
    declared = {parameter.name: parameter for parameter in spec.hyperparameters}
    for key in hyperparameters:
        if key not in declared:
            raise ObjectiveError(f"{name}: {unknown_name('hyper-parameter', key, list(declared))}")
    values = {key: p.check(name, hyperparameters.get(key, p.default)) for key, p in declared.items()}
    made = spec.factory(**values)
    terms = made if isinstance(made, tuple) else (made,)
    kept = tuple(term for term in terms if not (isinstance(term.weight, int | float) and term.weight == 0))
    label = _label(name, values, declared)
    return Objective((Part(name, label, values, kept, lambda **changed: get(name, **changed), spec.strength),))


def _label(name: str, values: dict[str, Any], declared: dict[str, HyperParameter]) -> str:
    """``name(first, and those that differ from their defaults)``."""
    first = next(iter(values), None)
    shown = {
        key: value
        for key, value in values.items()
        if key == first or isinstance(value, Tensor) or value != declared[key].default
    }
    return f"{name}({', '.join(f'{key}={_readable(value)}' for key, value in shown.items())})"


def _readable(value: Any) -> str:
    if isinstance(value, Tensor):
        return repr(value.tolist())
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return repr(value)


_LONGEST_LABEL = 10_000  # characters


def parse(text: str) -> Objective:
    """The objective that a label names: ``dpo(beta=0.1)+forward_kl(weight=0.1)``; hyper-parameters left out take their defaults.

    Raises:
        ObjectiveError: the text is not such a sum, or names something unknown.
    """
    try:
        if len(text) > _LONGEST_LABEL:
            raise SyntaxError
        return _parse(ast.parse(text.strip(), mode="eval").body, text)
    except (SyntaxError, RecursionError, MemoryError) as error:  # the latter two where it is nested without end
        raise _no_objective(text) from error
    except ValueError as error:
        if isinstance(error, ObjectiveError):
            raise
        raise _no_objective(text) from error  # a zero byte


def _parse(node: ast.expr, text: str) -> Objective:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _parse(node.left, text) + _parse(node.right, text)
    if isinstance(node, ast.Name):
        return get(node.id)
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and not node.args
        and all(k.arg for k in node.keywords)
    ):
        try:
            values = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
        except (ValueError, TypeError) as error:  # the latter from sets of lists and the like
            raise ObjectiveError(f"hyper-parameters in {text!r} must be literal values") from error
        return get(node.func.id, **values)
    raise _no_objective(text)


def _no_objective(text: str) -> ObjectiveError:
    return ObjectiveError(f"not an objective: {text!r:.300}; write it as dpo(beta=0.1)+forward_kl(weight=0.1)")


def describe(objective: str | Objective) -> Description:
    """Formula, source, needs, defaults and known facts of an objective: by name, or a sum such as ``dpo+forward_kl`` by label or object.

    Raises:
        ObjectiveError: an unknown name.
    """
    if isinstance(objective, str):
        if objective not in specs() and any(sign in objective for sign in "+("):
            objective = parse(objective)
        else:
            return _describe(_spec(objective))
    parts = [_describe(_spec(part.name)) for part in objective.parts]
    if len(parts) == 1:
        return parts[0]

    def joined(field: str) -> str:
        """What the parts say of ``field``, each under its name."""
        return "; ".join(f"{part.name}: {getattr(part, field)}" for part in parts if getattr(part, field))

    return Description(
        name=objective.name,
        summary=f"The sum of {' and '.join(part.label for part in objective.parts)}.",
        family="composition",
        formula=joined("formula"),
        paper=joined("source"),
        equation="",
        needs=tuple(sorted(objective.needs)),
        needs_on_pairs=tuple(sorted(objective.needs_on_pairs)),
        hyperparameters=tuple(replace(h, name=f"{part.name}.{h.name}") for part in parts for h in part.hyperparameters),
        defaults=joined("defaults"),
        coupled=any(part.coupled for part in parts),
        composition=_composition(objective),
        optimum=joined("optimum"),
        watch=joined("watch"),
        differences=joined("differences"),
        strength=objective.strength,
    )


def _composition(objective: Objective) -> tuple[str, ...]:
    """Each term in words."""
    return tuple(dict.fromkeys(term.text for term in objective.terms))


def _describe(spec: Spec) -> Description:
    name = spec.name
    objective = get(name)
    summary = (spec.factory.__doc__ or "").strip().split("\n")[0]
    return Description(
        name=name,
        summary=summary,
        family=spec.family,
        formula=spec.formula,
        paper=spec.paper,
        equation=spec.equation,
        needs=tuple(sorted(objective.needs)),
        needs_on_pairs=tuple(sorted(objective.needs_on_pairs)),
        hyperparameters=spec.hyperparameters,
        defaults=spec.defaults,
        coupled=any(term.coupled for term in objective.terms),
        composition=_composition(objective),
        optimum=spec.optimum,
        watch=spec.watch,
        differences=spec.differences,
        strength=spec.strength,
    )

"""One page per objective, written from the registry, so that it cannot drift from the code."""

from __future__ import annotations

from pathlib import Path

from objectives.batches import NEEDS
from objectives.registry import Description, describe, names, specs

NOT_STATED = "Not stated."


def page(name: str) -> str:
    """The Markdown page of one objective, under fixed headings."""
    description = describe(name)
    sections = [
        ("What it optimises", _what(description)),
        ("Formula", description.formula),
        ("What it needs", _needs(description)),
        ("Hyper-parameters", _hyperparameters(description)),
        ("What its optimum is", description.optimum or NOT_STATED),
        ("What to watch", "\n\n".join(filter(None, (description.watch, description.coupling))) or NOT_STATED),
        ("Where libraries differ", description.differences or "No difference known."),
        ("Source", description.source),
    ]
    body = "\n\n".join(f"## {heading}\n\n{text}" for heading, text in sections)
    return f"# {name}\n\n{body}\n"


def _what(description: Description) -> str:
    made_of = "\n".join(f"- {part}" for part in description.composition)
    return f"{description.summary} Family: {description.family}.\n\nMade of:\n\n{made_of}"


def _needs(description: Description) -> str:
    lines = [f"- `{need}`: {NEEDS.get(need, 'see the objective')}" for need in description.needs]
    if description.needs_on_pairs != description.needs:
        instead = ", ".join(f"`{need}`" for need in description.needs_on_pairs)
        lines.append(f"\nLabelled pairs can stand for them; then {instead} are enough.")
    return "\n".join(lines)


def _hyperparameters(description: Description) -> str:
    if not description.hyperparameters:
        return "None."
    rows = "\n".join(f"| `{h.name}` | `{h.default!r}` | {h.allowed} |" for h in description.hyperparameters)
    table = f"| name | default | allowed |\n|---|---|---|\n{rows}"
    strength = f"\n\nStrength of regularisation: {description.strength.text}." if description.strength else ""
    return f"{table}\n\nDefaults: {description.defaults or NOT_STATED}{strength}"


def index() -> str:
    """The Markdown page that lists all objectives by family."""
    rows = sorted((describe(name) for name in names()), key=lambda d: (d.family, d.name))
    table = "\n".join(f"| {d.family} | [{d.name}]({d.name}.md) | {', '.join(d.needs)} | {d.summary} |" for d in rows)
    notation = (
        "Notation, for a pair (w chosen, l rejected), log-probs summed over response tokens: p_w = log pi(w|x); "
        "a = p_w - log pi_ref(w|x), b the same for l; D = a - b; d = p_w - p_l; \\|w\\|, \\|l\\| lengths in tokens; s = sigmoid; "
        "L(z) = -log s(z); sg = stop-gradient."
    )
    needs = "\n".join(f"- `{need}`: {text}" for need, text in NEEDS.items())
    return (
        "# Objectives\n\nWritten by `python -m objectives docs` from the registry.\n\n"
        f"{notation}\n\n| family | name | needs | summary |\n|---|---|---|---|\n{table}\n\n"
        f"## What the needs mean\n\n{needs}\n\nEvery batch may carry `weights`, a probability per example; without them all weigh alike.\n"
    )


def write(folder: Path, only: list[str] | None = None) -> list[Path]:
    """Write the index and a page for each objective (or for those of ``only``) below ``folder``; return what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = {f"{name}.md": page(name) for name in only or names()}
    if only is None:
        pages["README.md"] = index()
    for file, text in pages.items():
        temporary = folder / f".{file}.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(folder / file)  # so that no half page is ever read
    return sorted(folder / file for file in pages)


def built_in() -> list[str]:
    """The objectives that this package brings, without those of third parties."""
    return [name for name, spec in specs().items() if spec.factory.__module__.startswith("objectives.")]

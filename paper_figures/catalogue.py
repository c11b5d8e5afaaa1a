"""What the paper shows, in the order of its numbers: figures, then tables, each a module of this package."""

from __future__ import annotations

GROUPS = {
    "bandits": (
        "determinism",
        "strength",
        "partial_support",
        "finite_data",
        "frontier_bandit",
        "ablation",
        "reference_samples",
        "factorial_table",
    ),
    "language_model": (
        "finding",
        "frontier_llm",
        "off_support",
        "kept",
        "benchmarks",
        "overoptimisation",
        "training",
        "likelihoods",
        "claims_table",
        "benchmarks_table",
    ),
    "online": ("predictions",),
}
_NUMBERED = (
    "finding",
    "determinism",
    "strength",
    "partial_support",
    "finite_data",
    "frontier_bandit",
    "ablation",
    "reference_samples",
    "frontier_llm",
    "off_support",
    "kept",
    "benchmarks",
    "overoptimisation",
    "training",
    "likelihoods",
    "predictions",
)
TABLES = ("claims_table", "benchmarks_table", "factorial_table")
FIGURES = tuple(name for name in _NUMBERED if name not in GROUPS["online"])
PAPER = (*FIGURES, *TABLES)  # "all": what every reproduction has the records of
KNOWN = (*PAPER, *GROUPS["online"])


def number(name: str) -> tuple[str, int]:
    """("Figure", n) or ("Table", n): a figure keeps its number whichever others are drawn."""
    return ("Table", TABLES.index(name) + 1) if name in TABLES else ("Figure", _NUMBERED.index(name) + 1)

"""The page: HTML from a template that escapes everything, the rest of the data and the plot library compressed beside it.

Nothing runs but the page's own script and plotly, both named by their sha256 in the Content-Security-Policy, and nothing may be loaded: not
from a network, not from a file.
"""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import json
from collections import Counter
from importlib import resources
from typing import Any

import jinja2

from analysis.claims.model import Finding
from analysis.records import code_version
from analysis.report.benchmarks import COLUMNS, SEEDS_COLUMNS
from analysis.report.content import Content

_ASSETS = resources.files("analysis.report") / "assets"
_KINDS = {
    "bandit": "exact bandits",
    "llm": "language-model runs",
    "llm_evaluation": "evaluations of models",
    "llm_cost": "measurements of cost",
    "imported": "imported runs",
}

_MARKS = {"HOLDS": "✓", "FAILS": "✗", "MIXED": "±", "OPEN": "?"}


def render(content: Content, title: str, command: str) -> bytes:
    """The page as UTF-8; the same content gives the same bytes.

    Args:
        content: of `analysis.report.content.gather`.
        title: of the page.
        command: that makes it again, for the reader.
    """
    script = _asset("report.js")
    plotly = _plotly() if content.panels or content.cards or content.curves else ""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(_asset("report.html")).render(
        content=content,
        title=title,
        command=command,
        kinds=[
            (_KINDS.get(kind, kind), n) for kind, n in sorted(Counter(one.run.kind for one in content.shown).items())
        ],
        parts=[(part, _TITLES[part], present) for part, present in _parts(content).items()],
        notes=_NOTES if content.samples else _NOTES | {"samples": _NO_TEXTS},
        claims=_claims(content.findings),
        marks=_MARKS,
        code=code_version(),
        policy=_policy(script, plotly),
        style=_asset("report.css"),
        script=script,
        data=_packed(json.dumps(_data(content), ensure_ascii=False, separators=(",", ":"), allow_nan=False)),
        plotly=_packed_plotly() if plotly else "",
    )
    return page.encode()


_NOTES = {
    "claims": "",
    "frontiers": "Reward for the distance from the reference. Point at a marker for run, strength and step.",
    "cards": (
        "Scores of an objective in exact bandits: 1 is the better end. Brackets: 95 % intervals over data sets; scores without "
        "are exact."
    ),
    "curves": "What was logged, and what was measured on held-out data along training.",
    "benchmarks": (
        "Over seeds: 95 % intervals over training seeds and items. Each run: "
        "95 % bootstrap intervals over items, without training noise. Before is the reference (step 0), after the last step, their "
        "difference of the same items. Adjusted p: Holm, over all tests of a table. McNemar: exact, of 0/1 scores; permutation: before and "
        "after swapped by item. A dash: there is nothing to pair with, or nothing varies."
    ),
    "samples": "What the reference and the trained model write after the same prompts, with the same random numbers.",
    "runs": "Configuration, seeds, versions, checksums: all that a run's run.json holds.",
    "skipped": "",
}
_TITLES = {
    "claims": "Claims",
    "frontiers": "Frontiers",
    "cards": "Profile cards",
    "curves": "Training curves",
    "benchmarks": "Benchmarks",
    "samples": "Samples of text",
    "runs": "Runs and their manifests",
    "skipped": "Skipped and left out",
}
_NO_TEXTS = (
    "No record here has texts: exported records leave them out (python -m analysis export), and so does --samples 0."
)


def _parts(content: Content) -> dict[str, bool]:
    """Which parts of the page the records fill, in their order."""
    return {
        "claims": bool(content.findings),
        "frontiers": bool(content.panels),
        "cards": bool(content.cards),
        "curves": bool(content.curves),
        "benchmarks": bool(content.benchmarks),
        "samples": any(one.run.kind in ("llm", "llm_evaluation") for one in content.shown),
        "runs": bool(content.shown),
        "skipped": bool(content.skipped or content.left_out),
    }


def _data(content: Content) -> dict[str, Any]:
    """What the script reads."""
    return {
        "runs": [
            {
                "id": one.id,
                "kind": one.run.kind,
                "method": one.method,
                "label": one.label,
                "apart": bool(one.apart),
                "strength": one.strength,
                "labels": one.labels,
                "seed": one.seed,
                "folder": str(one.run.folder),
                "manifest": one.run.manifest,
            }
            for one in content.shown
        ],
        "panels": content.panels,
        "cards": content.cards,
        "curves": content.curves,
        "benchmarks": {"columns": COLUMNS, "rows": content.benchmarks},
        "over_seeds": {"columns": SEEDS_COLUMNS, "rows": content.over_seeds},
        "samples": content.samples,
        "texts": content.texts,
    }


def _claims(findings: list[Finding]) -> list[tuple[Any, list[Finding]]]:
    grouped: dict[str, list[Finding]] = {}
    for one in findings:
        grouped.setdefault(one.claim.id, []).append(one)
    return [(found[0].claim, found) for found in grouped.values()]


def _policy(*scripts: str) -> str:
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
        if script
    )
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


@functools.cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


@functools.cache
def _packed_plotly() -> str:
    return _packed(_plotly())


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _packed(text: str) -> str:
    """Compressed and in base64: nothing in it can end the element that holds it."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode() if text else ""

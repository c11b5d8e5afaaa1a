"""Drawing one figure from records, and writing it: PDF, PNG, and a JSON file that names the records it came from."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import matplotlib as mpl
from matplotlib.figure import Figure

from analysis.evidence import Evidence
from analysis.records import Run, atomic_write
from paper_figures import style

GROUPS = {
    "bandits": (
        "determinism",
        "strength",
        "partial_support",
        "finite_data",
        "frontier_bandit",
        "ablation",
        "reference_samples",
    ),
    "language_model": ("frontier_llm", "off_support", "training", "likelihoods"),
    "online": ("predictions",),
}
FIGURES = (
    *GROUPS["bandits"],
    *GROUPS["language_model"],
)  # "all": those of the paper, whose records every reproduction makes
KNOWN = (*FIGURES, *GROUPS["online"])


@dataclass(frozen=True)
class Drawing:
    """A figure, the runs that it shows, and remarks for its caption that depend on the records."""

    figure: Figure
    runs: Sequence[Run]
    remarks: str = ""


def draw_one(name: str, evidence: Evidence, records: Path, out: Path) -> list[Path]:
    """Draw figure ``name`` and write ``name.pdf``, ``name.png`` and ``name.json`` into ``out``; returns their paths.

    The same records give the same bytes.

    Raises:
        MissingEvidence: the records that the figure shows are not there; the message has the command that makes them.
        RecordError: a record is damaged, or a file cannot be written.
    """
    module = importlib.import_module(f"paper_figures.{name}")
    with mpl.rc_context():
        mpl.rcdefaults()  # no matplotlibrc of the user's may change the figure
        mpl.rcParams.update(cast(Any, style.RC))  # matplotlib types the keys as literals
        drawing = module.draw(evidence)
        paths = [
            # Dates and program versions would change the bytes from day to day.
            _save(
                drawing.figure, out / f"{name}.pdf", "pdf", {"CreationDate": None, "Producer": None, "Creator": None}
            ),
            _save(drawing.figure, out / f"{name}.png", "png", {"Software": None}),
        ]
    description = {
        "figure": name,
        "caption": " ".join(filter(None, (module.CAPTION, drawing.remarks))),
        "claims": list(module.CLAIMS),
        "command": f"python -m paper_figures {name}",
        "records": [_source(run, records) for run in drawing.runs],
    }
    text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
    paths.append(atomic_write(out / f"{name}.json", text.encode()))
    return paths


def _save(figure: Figure, path: Path, kind: str, metadata: dict[str, Any]) -> Path:
    def write(handle: BinaryIO) -> None:
        figure.savefig(handle, format=kind, dpi=300, metadata=metadata)

    return atomic_write(path, write)


def _source(run: Run, records: Path) -> dict[str, Any]:
    folder = os.path.relpath(run.folder, records).replace(os.sep, "/")
    checksums = {name: entry["sha256"] for name, entry in run.manifest["tables"].items()}
    code = run.manifest.get("code") or {}
    return {"id": run.id, "folder": folder, "commit": code.get("commit"), "sha256": checksums}

"""Drawing one figure or table from records, and writing it with its caption as LaTeX and the records it came from."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, cast

import matplotlib as mpl
from matplotlib.figure import Figure

from analysis.evidence import Evidence
from analysis.records import Run, atomic_write
from paper_figures import latex, style
from paper_figures.catalogue import KNOWN, TABLES, number
from paper_figures.tables import Table

COLLECTION = "figures.tex"


@dataclass(frozen=True)
class Drawing:
    """A figure, the runs that it shows, and remarks for its caption that depend on the records."""

    figure: Figure
    runs: Sequence[Run]
    remarks: str = ""


def draw_one(name: str, evidence: Evidence, records: Path, out: Path) -> list[Path]:
    """Make figure or table ``name`` and write it into ``out``; returns the paths, the one to look at first.

    A figure comes as ``NAME.pdf`` and ``NAME.png``, a table as ``NAME.csv``; both with ``NAME.tex``, the environment that shows it in
    a paper, and ``NAME.json``, the caption and the records with checksums. The same records give the same bytes.

    Raises:
        MissingEvidence: the records that the figure shows are not there; the message has the command that makes them.
        RecordError: a record is damaged, or a file cannot be written.
    """
    module = importlib.import_module(f"paper_figures.{name}")
    made, tex, runs, caption = (_table if name in TABLES else _figure)(name, module, evidence, out)
    kind, place = number(name)
    description = {
        kind.lower(): name,
        "number": place,
        "caption": caption,
        "claims": list(module.CLAIMS),
        "command": f"python -m paper_figures {name}",
        "records": [_source(run, records) for run in runs],
    }
    text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
    made.append(atomic_write(out / f"{name}.tex", tex.encode()))
    made.append(atomic_write(out / f"{name}.json", text.encode()))
    return made


def collect(out: Path) -> Path:
    """Write the LaTeX file that takes in every figure and table of the folder; returns its path."""
    found = [name for name in KNOWN if (out / f"{name}.tex").is_file()]
    names = sorted(found, key=number)
    return atomic_write(out / COLLECTION, latex.collection(names).encode())


def _figure(name: str, module: ModuleType, evidence: Evidence, out: Path) -> tuple[list[Path], str, Sequence[Run], str]:
    with mpl.rc_context():
        mpl.rcdefaults()  # no matplotlibrc of the user's may change the figure
        mpl.rcParams.update(cast(Any, style.RC))  # matplotlib types the keys as literals
        drawing: Drawing = module.draw(evidence)
        paths = [
            # Dates and program versions would change the bytes from day to day.
            _save(
                drawing.figure, out / f"{name}.pdf", "pdf", {"CreationDate": None, "Producer": None, "Creator": None}
            ),
            _save(drawing.figure, out / f"{name}.png", "png", {"Software": None}),
        ]
    caption = _caption(module, drawing.remarks)
    wide = bool(drawing.figure.get_figwidth() > style.SINGLE)
    return paths, latex.figure(name, number(name)[1], caption, wide=wide), drawing.runs, caption


def _table(name: str, module: ModuleType, evidence: Evidence, out: Path) -> tuple[list[Path], str, Sequence[Run], str]:
    made: Table = module.tabulate(evidence)
    caption = _caption(module, made.remarks)
    tex = latex.table(name, number(name)[1], caption, made.columns, made.heads, made.parts)
    path = atomic_write(out / f"{name}.csv", made.frame.to_csv(index=False, lineterminator="\n").encode())
    return [path], tex, made.runs, caption


def _caption(module: ModuleType, remarks: str) -> str:
    return " ".join(filter(None, (module.CAPTION, remarks)))


def _save(figure: Figure, path: Path, kind: str, metadata: dict[str, Any]) -> Path:
    def write(handle: BinaryIO) -> None:
        figure.savefig(handle, format=kind, dpi=300, metadata=metadata)

    return atomic_write(path, write)


def _source(run: Run, records: Path) -> dict[str, Any]:
    folder = os.path.relpath(run.folder, records).replace(os.sep, "/")
    checksums = {name: entry["sha256"] for name, entry in run.manifest["tables"].items()}
    code = run.manifest.get("code") or {}
    return {"id": run.id, "folder": folder, "commit": code.get("commit"), "sha256": checksums}

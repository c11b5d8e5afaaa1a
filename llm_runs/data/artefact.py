"""What is kept of preference data: token ids and the report, each made once for a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from analysis.records import atomic_write
from llm_runs.config import DataConfig
from llm_runs.data import report
from llm_runs.data.loading import Loaded
from llm_runs.errors import InputError
from llm_runs.json_lines import read_object

REPORT = "report.json"


def save(loaded: Loaded, config: DataConfig, folder: Path, training: Path, held_out: Path) -> str:
    """Keep which pairs are in `training` and `held_out` (see `StoredPairs.save`), and the rest in `folder`; returns the report as a page.

    folder/report.md, report.json     the report; the latter comes last, so that it stands for all
    folder/pairs.parquet              a row a pair: lengths, overlap, scores
    folder/candidates.json            all scored completions (`StoredSamples`), where the data have such
    folder/unpaired.json              all completions labelled desirable (reward 1) or undesirable (0), where the data have such
    """
    loaded.training.save(training)
    loaded.held_out.save(held_out)
    for name, samples in loaded.samples.items():
        samples.save(folder / f"{name}.json")
    values = report.describe(loaded, report.write(loaded, folder / "pairs.parquet"), config)
    page = report.markdown(values)
    atomic_write(folder / "report.md", page.encode())
    atomic_write(folder / REPORT, (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode())
    return page


def summary(folder: Path) -> dict[str, Any]:
    """What a training's record says of the data it was trained on: sources, how they were read, the chat template's sha256."""
    path = folder / REPORT
    try:
        values = read_object(path)
        return {
            "sources": [
                {
                    key: source[key]
                    for key in ("source", "kind", "format", "fingerprint", "records", "pairs", "left_out")
                }
                for source in values["sources"]
            ],
            "rendering": values["rendering"],
            "truncation": values["truncation"],
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error}); delete {folder} to read the data again") from error

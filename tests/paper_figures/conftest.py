"""Synthetic records and everything drawn from them, once for all files."""

from __future__ import annotations

from pathlib import Path

import pytest
import synthetic_records as synthetic

from paper_figures.__main__ import main


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    synthetic.write_bandits(folder / "bandits")
    synthetic.write_language_model(folder / "llm", synthetic.Truth(prompts=24))
    return folder


@pytest.fixture(scope="session")
def drawn(records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("figures")
    assert main(["all", "--records", str(records), "--out", str(out)]) == 0
    return out

"""A finished run, as small as they come."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from llm_runs.__main__ import main
from trust.commands import SMALL, as_words

SETTINGS = as_words(
    SMALL
    | {
        "sft.save_every": 0,
        "training.save_every": 0,
        "training.save_model": False,
        "objectives": ["dpo(beta=0.1)"],
    }
)
SLUG = "dpo_beta=0.1-noisy-seed0"


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trust") / "out"
    assert main(["run", "tiny", "--out", str(out), "--set", *SETTINGS]) == 0
    return out


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "out"))

"""A tiny random Llama and a tokenizer trained here: real transformers objects, nothing to download."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm_runs import models, texts


@pytest.fixture(scope="session", autouse=True)
def _loaded() -> None:
    """What was imported stays: trainings and evaluations look for garbage, which would take half a second each time."""
    gc.freeze()


@pytest.fixture(scope="session")
def corpus() -> list[texts.Text]:
    return texts.synthetic(800, seed=3)


@pytest.fixture(scope="session")
def tiny_folder(corpus: list[texts.Text], tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, tokenizer = models.tiny_random([text.text for text in corpus], seed=0)
    return models.save(model, tokenizer, tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tokenizer(tiny_folder: Path) -> PreTrainedTokenizerBase:
    return models.load_tokenizer(tiny_folder)


@pytest.fixture
def fresh_model(tiny_folder: Path) -> Callable[[], PreTrainedModel]:
    """Makes copies of the model, which a test may train."""
    return lambda: models.load_model(tiny_folder)


@pytest.fixture
def model(fresh_model: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    return fresh_model()

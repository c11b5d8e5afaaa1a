"""Objectives on candidates or unpaired labels train on labelled pairs, which stand for both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_training import CONFIG, PAIRS, llama

import objectives
from llm_runs import reference
from llm_runs.config import ReferenceConfig
from llm_runs.models import tiny_random
from llm_runs.reference import ReferenceLogps
from llm_runs.training import TrainingError, train


@pytest.fixture(scope="module")
def stored() -> ReferenceLogps:
    return reference.compute(llama(), tiny_random(["a"], vocabulary=300)[1], PAIRS, [], ReferenceConfig())


def weights_after(label: str, stored: ReferenceLogps, out: Path) -> dict[str, torch.Tensor]:
    model = llama()
    train(model, objectives.parse(label), PAIRS, reference=stored, config=CONFIG, seed=0, out=out)
    return dict(model.state_dict())


def test_infonca_on_pairs_takes_dpos_steps(stored: ReferenceLogps, tmp_path: Path) -> None:
    dpo = weights_after("dpo(beta=0.3)", stored, tmp_path / "dpo")
    infonca = weights_after("infonca(beta=0.3)", stored, tmp_path / "infonca")
    start = llama().state_dict()
    assert max(float((dpo[name] - start[name]).abs().max()) for name in dpo) > 1e-3
    for name, weight in dpo.items():
        torch.testing.assert_close(infonca[name], weight, rtol=0, atol=1e-10)


@pytest.mark.parametrize("label", ["nca(beta=0.1)", "bco", "kto(z0=0)", "sppo(beta=0.1)", "orpo", "aot", "beta_dpo"])
def test_others_train(label: str, stored: ReferenceLogps, tmp_path: Path) -> None:
    after, start = weights_after(label, stored, tmp_path), llama().state_dict()
    assert max(float((after[name] - start[name]).abs().max()) for name in after) > 1e-3
    assert all(bool(torch.isfinite(weight).all()) for weight in after.values())


def test_what_pairs_cannot_stand_for_is_refused(stored: ReferenceLogps, tmp_path: Path) -> None:
    for label, missing in (
        ("exo_rw", "candidates, rewards"),
        ("kto", "mismatched_logps, unpaired"),
        ("tdpo", "token_kl"),
    ):
        with pytest.raises(TrainingError, match=f"the objective needs {missing}, which training does not supply"):
            weights_after(label, stored, tmp_path)


def test_batch_coupled_objectives_warn_of_small_microbatches(stored: ReferenceLogps, tmp_path: Path) -> None:
    split = replace(CONFIG, micro_batch_size=4)
    with pytest.warns(UserWarning, match=r"bco\(beta=0\.1\) takes means over its batch, which here are over 4 pairs"):
        train(llama(), objectives.get("bco"), PAIRS, reference=stored, config=split, seed=0, out=tmp_path)

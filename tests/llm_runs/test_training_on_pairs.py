"""Objectives on candidates or unpaired labels train on labelled pairs, which stand for both."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
        ("exo_rw", "candidates"),
        ("mrpo", "several references: name the others in reference.models"),
        ("reverse_kl", "policy_kl, rollouts"),
    ):
        with pytest.raises(TrainingError, match=f"the objective needs {missing}"):
            weights_after(label, stored, tmp_path)


def test_batch_coupled_objectives_refuse_small_microbatches(stored: ReferenceLogps, tmp_path: Path) -> None:
    split = replace(CONFIG, micro_batch_size=4)
    with pytest.raises(
        TrainingError, match=r"bco\(beta=0\.1\) takes means over its batch, so a step in 2 forward passes"
    ):
        train(llama(), objectives.get("bco"), PAIRS, reference=stored, config=split, seed=0, out=tmp_path)


def alignment(prompt: Sequence[int], completion: Sequence[int]) -> float:
    """Geometric mean over the response's tokens of pi(y_t)/sum_v pi(v)^2, by one unpadded sequence in probabilities."""
    with torch.no_grad():
        logits = llama()(torch.tensor([[*prompt, *completion]])).logits[0]
    probabilities = logits[len(prompt) - 1 : -1].softmax(-1)
    taken = probabilities[range(len(completion)), list(completion)]
    return float((taken / (probabilities**2).sum(-1)).prod() ** (1 / len(completion)))


def test_wpo_weighs_pairs_by_the_policys_own_tokens(stored: ReferenceLogps, tmp_path: Path) -> None:
    """At step 0 every margin is 0, so the loss is log 2 times the mean weight."""
    metrics = train(llama(), objectives.get("wpo"), PAIRS, reference=stored, config=CONFIG, seed=0, out=tmp_path)
    weights = [min(1.0, alignment(p.prompt_ids, p.chosen_ids) * alignment(p.prompt_ids, p.rejected_ids)) for p in PAIRS]
    assert min(weights) < 0.9
    first = metrics[(metrics.step == 1) & (metrics.name == "loss")].value.item()
    assert first == pytest.approx(math.log(2) * sum(weights) / len(weights), rel=1e-5)

"""Equal budgets read off records, and a choice that is reported on other prompts than those that made it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import synthetic_records as synthetic

from analysis.evidence import Evidence
from analysis.measured import measured_points, training_paths
from analysis.overoptimisation import humps
from analysis.tuning import budget_note, budgets, halves, select, selected_table

LABELS = "near_deterministic"


def test_budgets_count_strengths_rates_and_seeds(tmp_path: Path) -> None:
    for rate in (3e-5, 1e-4):
        truth = synthetic.Truth(prompts=8, seeds=(0, 1), labels=(LABELS,), learning_rate=rate)
        synthetic.write_language_model(tmp_path / str(rate), truth)
    evidence = Evidence.load(tmp_path)
    found = budgets(evidence).set_index("method")
    assert set(found.index) == {"dpo", "ipo", "maxpo"}
    assert found["equal"].all()
    assert tuple(found.loc["dpo", ["strengths", "learning_rates", "steps", "settings", "seeds", "runs"]]) == (
        2,
        2,
        1,
        4,
        2,
        8,
    )
    assert "equal tuning budgets on near_deterministic labels: 2 strength(s) x 2 learning rate(s)" in budget_note(
        evidence, LABELS
    )
    extra = synthetic.Truth({"dpo": synthetic.PREDICTED["dpo"]}, (0.5,), (LABELS,), prompts=8)
    evidence = Evidence.load(synthetic.write_language_model(tmp_path / "extra", extra).parent)
    assert not budgets(evidence)["equal"].any()
    assert budget_note(evidence, LABELS).startswith("caveat: unequal tuning budgets")


def test_the_best_of_many_equal_settings_is_reported_without_the_winners_luck(tmp_path: Path) -> None:
    """Ten settings whose runs differ by chance alone: on the choosing half the best lies above the truth, on the other half not."""
    level = dataclasses.replace(synthetic.PREDICTED["dpo"], reward=1.0)
    lucky, fair = [], []
    for prompts in (24, 28, 32, 36):
        folder = tmp_path / str(prompts)
        truth = synthetic.Truth({"dpo": level}, tuple(np.linspace(0.1, 1, 10)), (LABELS,), prompts=prompts, noise=2.0)
        found = Evidence.load(synthetic.write_language_model(folder, truth)).method("dpo", LABELS)
        base = found[0].values("held_out_prompts", "reward", 0)
        selection, report = halves(base.columns)
        chosen = select(found)
        assert chosen is not None
        assert chosen.tried == 10
        values = chosen.setting.values("held_out_prompts", "reward")
        lucky.append((values - base).loc[:, selection].to_numpy().mean() - 0.7)
        fair.append((values - base).loc[:, report].to_numpy().mean() - 0.7)
        assert chosen.reward.estimate == pytest.approx(values.loc[:, report].to_numpy().mean())
    assert np.mean(lucky) > 0.4
    assert abs(np.mean(fair)) < 0.4


def test_the_budget_of_kl_is_kept_and_none_within_it_is_none(tmp_path: Path) -> None:
    levels = {"maxpo": synthetic.PREDICTED["maxpo"]}  # KL 2 at .1 and 2 * 5 ** .5 = 4.5 at .02
    evidence = Evidence.load(
        synthetic.write_language_model(tmp_path, synthetic.Truth(levels, prompts=64, seeds=(0, 1)))
    )
    found = evidence.method("maxpo", LABELS)
    within = select(found, kl_budget=3.0)
    assert within is not None
    assert within.setting.strength == 0.1
    assert within.kl.low < 2.0 < within.kl.high
    assert select(found, kl_budget=0.5) is None
    table = selected_table(evidence, LABELS)
    assert list(table["method"]) == ["maxpo"]
    assert table["seeds"].item() == 2


def test_the_best_is_chosen_over_learning_rates_too(tmp_path: Path) -> None:
    for rate, reward in ((3e-5, 1.0), (1e-5, 3.0)):
        levels = {"dpo": dataclasses.replace(synthetic.PREDICTED["dpo"], reward=reward)}
        truth = synthetic.Truth(
            levels, labels=(LABELS,), prompts=64, learning_rate=rate, seeds=(0, 1) if rate > 2e-5 else (0,)
        )
        synthetic.write_language_model(tmp_path / f"{rate:g}", truth)
    evidence = Evidence.load(tmp_path)
    table = selected_table(evidence, LABELS)
    assert (
        table["learning_rate"].tolist() == [1e-5] and table["tried"].tolist() == [4] and table["steps"].tolist() == [20]
    )
    assert table["reward"].item() == pytest.approx(3.0, abs=0.4)
    assert budgets(evidence)["learning_rates"].tolist() == [2]


def test_the_search_is_that_of_the_runs_in_use(tmp_path: Path) -> None:
    """Another model with more runs in all, but fewer at one learning rate, is not what methods are compared by."""
    synthetic.write_language_model(tmp_path / "used", synthetic.Truth(prompts=8, labels=(LABELS,), seeds=(0, 1, 2)))
    for rate in (3e-5, 1e-5):
        other = synthetic.Truth(prompts=8, labels=(LABELS,), seeds=(0, 1), learning_rate=rate, model="another")
        synthetic.write_language_model(tmp_path / f"other-{rate:g}", other)
    evidence = Evidence.load(tmp_path)
    assert budget_note(evidence, LABELS).startswith("equal tuning budgets")
    assert "2 strength(s) x 1 learning rate(s)" in budget_note(evidence, LABELS)
    assert selected_table(evidence, LABELS)["tried"].tolist() == [2, 2, 2]


def test_paths_and_points_come_off_the_records(tmp_path: Path) -> None:
    truth = synthetic.Truth({"dpo": synthetic.PREDICTED["dpo"]}, (0.02, 0.1), (LABELS,), prompts=64, seeds=(0, 1, 2))
    evidence = Evidence.load(synthetic.write_language_model(tmp_path, truth))
    found = evidence.method("dpo", LABELS)
    assert measured_points(found).kl_values.shape == (5, 3, 64)  # the reference once, two checkpoints of each
    assert measured_points(found, along="strengths").where["step"].tolist() == [0, 20, 20]
    assert measured_points(found[:1], along="steps").kl.shape == (3, 64)
    with pytest.raises(ValueError, match="is of one setting"):
        measured_points(found, along="steps")
    paths = training_paths(found)
    assert len(paths) == 2 * 3 * 3
    ends = paths[paths["step"] == 20].groupby("strength")["kl"].mean()
    assert ends.loc[0.1] == pytest.approx(10.0, rel=0.05)
    # the second reward lies x (1 - x) above the reference's at progress x: 0, 1/4 at half-way, 0 at the end
    hump = humps(found)
    assert list(hump["points"]) == [3, 3]
    assert hump["over_optimised"].all()
    for side in ("rise", "fall"):
        assert ((hump[f"{side}_low"] < 0.25) & (hump[f"{side}_high"] > 0.25)).all()
    assert np.allclose(hump["peak_kl"], paths[paths["step"] == 10].groupby("strength")["kl"].mean(), rtol=1e-6)

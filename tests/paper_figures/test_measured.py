"""The figures and tables of measured runs show the numbers of their records, with one seed and with several."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import synthetic_records as synthetic
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer

from analysis.evidence import NEAR_DETERMINISTIC, Evidence
from paper_figures import (
    benchmarks,
    benchmarks_table,
    claims_table,
    factorial_table,
    finding,
    kept,
    likelihoods,
    off_support,
    reference_samples,
    selection,
    strength,
)
from paper_figures.overoptimisation import gain

KINDS = ("near_deterministic", "sharp", "soft", "noisy")
METHODS = {**synthetic.PREDICTED, "simpo": synthetic.Levels(1.0, 1.0, -2.0), "sft": synthetic.Levels(0.5, 0.6, -0.1)}


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """Five objectives on four kinds of labels, three training seeds."""
    folder = tmp_path_factory.mktemp("records")
    synthetic.write_bandit(folder, "determinism")
    truth = synthetic.Truth(methods=METHODS, labels=KINDS, strengths=(0.1,), prompts=24, seeds=(0, 1, 2))
    synthetic.write_language_model(folder / "llm", truth)
    return Evidence.load(folder)


@pytest.fixture(scope="module")
def one_seed(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """A single training run of each method, on one prompt: nothing that an interval could rest on."""
    folder = tmp_path_factory.mktemp("one")
    synthetic.write_bandit(folder, "determinism")
    synthetic.write_language_model(folder / "llm", synthetic.Truth(strengths=(0.1,), prompts=1))
    return Evidence.load(folder)


def measured(axis: Axes) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of every errorbar: its points (n, 2), and the lengths of its bars."""
    found = []
    for container in axis.containers:
        assert isinstance(container, ErrorbarContainer)
        line, _, bars = container.lines
        segments = [np.asarray(segment) for bar in bars for segment in bar.get_segments()]
        lengths = np.array([np.ptp(segment, axis=0).max() if len(segment) else 0.0 for segment in segments])
        found.append((np.asarray(line.get_xydata(), dtype=float), lengths))
    return found


def test_kinds_of_labels_go_from_certain_to_noisy(evidence: Evidence) -> None:
    assert selection.label_kinds(evidence) == list(KINDS)


def test_the_finding_shows_the_recorded_kl_at_the_recorded_certainty(evidence: Evidence) -> None:
    right = finding.draw(evidence).figure.axes[1]
    for index, (points, lengths) in enumerate(measured(right)):
        settings = finding.at_one_strength(evidence, ("dpo", "ipo", "maxpo")[index])
        doubts = [1 - synthetic.TEMPERATURES[setting.labels][1] for setting in settings]
        np.testing.assert_allclose(points[:, 0], np.array(doubts) * 1.05 ** (index - 1))
        kl = [
            np.mean(
                [
                    run.table("evaluations").query("metric == 'kl_reference_policy' and step == 20")["value"].mean()
                    for run in one.runs
                ]
            )
            for one in settings
        ]
        np.testing.assert_allclose(points[:, 1], kl)
        assert (lengths > 0).all()
    assert "Means over 3 training seeds" in finding.draw(evidence).remarks


@pytest.mark.parametrize("module", [finding, off_support, benchmarks])
def test_no_interval_is_invented(module: object, one_seed: Evidence) -> None:
    drawing = module.draw(one_seed)  # type: ignore[attr-defined]
    shown = [bars for axis in drawing.figure.axes for bars in measured(axis)]
    assert shown
    for points, lengths in shown:
        assert np.isfinite(points).all()
        assert not np.nansum(lengths)
    assert "One training seed" in drawing.remarks


def test_every_objective_has_its_row_off_the_support(evidence: Evidence) -> None:
    left, right = off_support.draw(evidence).figure.axes
    names = [tick.get_text() for tick in left.get_yticklabels()]
    assert names == ["DPO", "IPO", "MaxPO", "SFT", "SimPO"]
    for axis, kind in ((left, NEAR_DETERMINISTIC), (right, "noisy")):
        for points, _ in measured(axis):
            ((value, place),) = points
            name = ("dpo", "ipo", "maxpo", "sft", "simpo")[round(place)]
            (setting,) = evidence.language_model(name, kind)
            assert value == pytest.approx(setting.items("held_out_reference_samples", "log_ratio").mean())


def test_what_is_kept_stands_at_the_reward_that_was_earned(tmp_path: Path) -> None:
    for top_p in (1.0, 0.5):
        synthetic.write_language_model(tmp_path / f"{top_p}", synthetic.Truth(prompts=24, seeds=(0, 1), top_p=top_p))
    evidence = Evidence.load(tmp_path)
    full, part = kept.draw(evidence).figure.axes
    assert [axis.get_title(loc="left") for axis in (full, part)] == [
        "(a) pairs from all samples",
        "(b) pairs from top-p = 0.5",
    ]
    for axis, support in ((full, "full"), (part, "top_p=0.5")):
        for (points, _), method in zip(measured(axis), ("dpo", "ipo", "maxpo"), strict=True):
            settings = evidence.method(method, NEAR_DETERMINISTIC, support)
            for column, (split, metric) in enumerate(
                (("held_out_prompts", "reward"), ("held_out_reference_samples", "log_ratio"))
            ):
                np.testing.assert_allclose(points[:, column], [one.items(split, metric).mean() for one in settings])


def test_the_strength_is_shown_on_the_model_beside_the_bandit(tmp_path: Path) -> None:
    synthetic.write_bandit(tmp_path, "strength")
    assert len(strength.draw(Evidence.load(tmp_path)).figure.axes) == 2
    synthetic.write_language_model(tmp_path / "llm", synthetic.Truth(prompts=24))
    evidence = Evidence.load(tmp_path)
    axis = strength.draw(evidence).figure.axes[2]
    for (points, _), method in zip(measured(axis), ("dpo", "ipo", "maxpo"), strict=True):
        settings = evidence.method(method, NEAR_DETERMINISTIC)
        np.testing.assert_allclose(points[:, 0], [0.02, 0.1])
        np.testing.assert_allclose(
            points[:, 1], [one.items("held_out_prompts", "kl_policy_reference").mean() for one in settings]
        )


def test_samples_seen_several_times_are_shown_beside_those_seen_once(tmp_path: Path) -> None:
    synthetic.write_bandit(tmp_path, "reference_samples")
    assert len(reference_samples.draw(Evidence.load(tmp_path)).figure.axes) == 2
    levels = synthetic.PREDICTED["maxpo"]
    for tokens in ("full", "sampled"):
        for samples, lost in (
            (320, -0.5),
            (40, -9.0 if tokens == "sampled" else -0.6),
        ):  # 20 steps of 16: once, 8 times
            truth = synthetic.Truth(
                {"maxpo": dataclasses.replace(levels, log_ratio=lost)},
                strengths=(0.1,),
                labels=(NEAR_DETERMINISTIC,),
                prompts=24,
                reference_samples=samples,
                hyperparameters={"tokens": tokens},
            )
            synthetic.write_language_model(tmp_path / f"{tokens}-{samples}", truth)
    axis = reference_samples.draw(Evidence.load(tmp_path)).figure.axes[2]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["once", "8 times"]
    (full, _), (sampled, _) = measured(axis)
    np.testing.assert_allclose(full[:, 1], [-0.5, -0.6], atol=0.2)
    np.testing.assert_allclose(sampled[:, 1], [-0.5, -9.0], atol=1.0)


def test_saturation_is_drawn_where_there_is_any(evidence: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(likelihoods.draw(evidence).figure.axes) == 3 * len(KINDS)
    monkeypatch.setattr(likelihoods, "_saturated", lambda setting: pd.DataFrame({"step": [1], "value": [0.0]}))
    drawing = likelihoods.draw(evidence)
    assert len(drawing.figure.axes) == 2 * len(KINDS)
    assert "No pair is saturated" in drawing.remarks
    assert [axis.get_title(loc="left")[4:] for axis in drawing.figure.axes[::2]] == [
        f"{kind.replace('_', '-')} labels" for kind in KINDS
    ]


def test_benchmark_changes_are_in_points_and_paired(evidence: Evidence) -> None:
    drawing = benchmarks.draw(evidence)
    assert [axis.get_title(loc="left").split("\n")[0] for axis in drawing.figure.axes] == [
        "(a) hellaswag",
        "(b) truthfulqa",
    ]
    points, lengths = measured(drawing.figure.axes[0])[0]
    assert points[0, 0] == pytest.approx(100 * (round(0.35 * 24) - 12) / 24)  # DPO's accuracy from .5 to .35
    assert lengths[0] > 0


def test_gains_are_in_standard_deviations_of_the_reference(evidence: Evidence) -> None:
    (setting,) = evidence.language_model("dpo", NEAR_DETERMINISTIC)
    before = setting.items("held_out_prompts", "reward", 0)
    after = setting.items("held_out_prompts", "reward", 20)
    assert gain(setting, "reward", 20).estimate == pytest.approx((after.mean() - before.mean()) / before.std())


def test_the_benchmark_table_holds_before_after_and_the_interval(evidence: Evidence) -> None:
    table = benchmarks_table.tabulate(evidence)
    assert len(table.parts) == 2  # benchmarks
    assert [len(rows) for rows in table.parts] == [5, 5]
    first = table.parts[0][0]
    assert first[0] == "hellaswag (n = 24)"
    assert first[2:4] == ["50.0", f"{100 * round(0.35 * 24) / 24:.1f}"]
    row = table.frame.iloc[0]
    assert f"{100 * row['low']:+.1f}".replace("-", "−") in first[4]
    assert (table.frame["adjusted_p"] >= table.frame["p"]).all()


def test_the_claims_table_has_every_claim_with_its_verdict(evidence: Evidence) -> None:
    table = claims_table.tabulate(evidence)
    assert [rows[0][0] for rows in table.parts] == [f"C{n}" for n in range(1, 10)]
    verdicts = {"holds", "fails", "mixed", "not enough evidence"}
    assert {row[3] for rows in table.parts for row in rows} <= verdicts
    assert table.parts[0][0][3] == "holds"  # C1 in the bandit, from closed forms


def test_the_factorial_table_says_what_diverges(tmp_path: Path) -> None:
    synthetic.write_bandit(tmp_path, "ablation")
    table = factorial_table.tabulate(Evidence.load(tmp_path))
    rows = {(rows[0][0], row[1]): row[2:] for rows in table.parts for row in rows}
    assert rows["DPO", "none"] == ["∞", "0.300*", "moves by 0.6"]
    assert rows["DPO", "forward KL"] == ["0.300", "0.300", "kept"]
    assert len(rows) == 9
    assert isinstance(table.frame, pd.DataFrame)

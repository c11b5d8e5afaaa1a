"""The figures and tables of measured runs show the numbers of their records, with one seed and with several."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import synthetic_records as synthetic
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer

from analysis.evidence import NEAR_DETERMINISTIC, Evidence
from paper_figures import benchmarks, benchmarks_table, claims_table, factorial_table, finding, off_support, selection
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

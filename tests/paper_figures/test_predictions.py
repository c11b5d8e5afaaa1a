"""The figure of measured runs beside the exact bandit's predictions, from synthetic records with a known truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analysis.empirical_bandit import rlhf, whole
from analysis.evidence import Evidence
from analysis.records import write_run
from paper_figures import predictions, style
from paper_figures.__main__ import main

ITEMS, DRAWS = 6, 64
REWARDS = np.random.default_rng(1).normal(0.0, 1.0, (ITEMS, DRAWS))
COLUMNS = ["step", "split", "metric", "item", "value"]


def write(
    folder: Path, name: str, hyperparameters: dict[str, Any], path: list[tuple[float, float]], **tables: Any
) -> None:
    """A run whose checkpoints have these mean KLs and rewards."""
    rows = [
        (step, "held_out_prompts", metric, item, value)
        for step, point in enumerate(path)
        for metric, value in zip(("kl_policy_reference", "reward"), point, strict=True)
        for item in range(ITEMS)
    ]
    write_run(
        folder / name,
        kind="llm",
        id=f"test/{name}",
        config={
            "objective": {"name": name, "hyperparameters": hyperparameters, "label": name},
            "labels": {"name": "noisy", "temperature": 0.5},
        },
        seeds={"data": 0},
        tables={"evaluations": pd.DataFrame(rows, columns=COLUMNS), **tables},
    )


@pytest.fixture
def records(tmp_path: Path) -> Path:
    start = (0.0, float(REWARDS.mean()))
    half = whole(REWARDS).bound([0.4])[0]
    write(tmp_path, "dpo", {"beta": 4.0}, [start, (0.4, float((half + start[1]) / 2))])
    write(tmp_path, "rlhf_ppo", {"beta": 0.001}, [start, (0.2, 0.5)])
    scored = pd.DataFrame(
        [(item, draw, REWARDS[item, draw]) for item in range(ITEMS) for draw in range(DRAWS)],
        columns=["item", "draw", "reward"],
    )
    path = [(0.0, 9.0), start, (0.4, float((half + start[1]) / 2))]
    write(tmp_path, "best_of_n", {"samples": DRAWS}, path, reference_rewards=scored)
    return tmp_path


def figure(records: Path) -> Figure:
    with mpl.rc_context(style.RC):
        found = predictions.draw(Evidence.load(records)).figure
        found.set_dpi(300)
        FigureCanvasAgg(found).draw()
    return found


def test_the_optimum_and_the_methods_ends_are_those_of_the_draws(records: Path) -> None:
    left, right = figure(records).axes
    curve = whole(REWARDS)
    bound = next(line for line in left.lines if line.get_label() == style.look("rlhf").label)
    np.testing.assert_allclose(bound.get_xdata(), curve.kl[curve.believed])
    np.testing.assert_allclose(bound.get_ydata(), curve.reward[curve.believed])
    open_markers = [line for line in left.lines if line.get_fillstyle() == "none"]
    (end,) = open_markers  # PPO's, on a single draw, is not shown
    point = rlhf(REWARDS, [4.0 * 0.5])
    np.testing.assert_allclose(end.get_xydata(), [[point.kl[0], point.reward[0]]])
    share = next(line for line in right.lines if line.get_color() == style.look("dpo").colour)
    np.testing.assert_allclose(share.get_xydata(), [[0.4, 0.5]], atol=1e-6)
    best = next(line for line in right.lines if line.get_color() == style.look("best_of_n").colour)
    np.testing.assert_allclose(
        best.get_xydata(), [[0.4, 0.5]], atol=1e-6
    )  # against n = 1, not the reference's evaluation


def test_the_command_writes_it_with_its_numbers(records: Path, tmp_path: Path) -> None:
    assert main(["online", "--records", str(records), "--out", str(tmp_path / "out")]) == 0
    description = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert "DPO, β = 0.1: predicted" not in description["caption"]  # the strength is 4
    assert "DPO, β = 4: predicted KL" in description["caption"]
    assert "what 64 completions of a prompt can show, the best of them alone: PPO, β = 0.001" in description["caption"]
    assert {source["id"] for source in description["records"]} == {"test/dpo", "test/rlhf_ppo", "test/best_of_n"}
    drawn = figure(records)
    renderer = drawn.canvas.get_renderer()  # type: ignore[attr-defined]
    box, page = drawn.legends[0].get_window_extent(renderer), drawn.bbox
    assert page.x0 <= box.x0
    assert box.x1 <= page.x1
    for axis in drawn.axes:
        assert axis.get_xlabel()
        assert axis.get_ylabel()


def test_exact_loops_of_the_records_are_drawn_too(records: Path) -> None:
    frame = pd.DataFrame(
        {
            "step": [0, 1, 2],
            "kl_policy_reference": [0.0, 0.3, 0.6],
            "expected_reward": [1.0, 1.5, 2.0],
            "reward_bound": [1.0, 2.0, 2.0],
        }
    )
    write_run(
        records / "loop",
        kind="bandit",
        id="bandit/espo",
        config={"loop": "espo"},
        seeds={},
        tables={"results": frame},
    )
    _, right = figure(records).axes
    (line,) = [line for line in right.lines if line.get_color() == style.look("espo").colour]
    np.testing.assert_allclose(line.get_xydata(), [[0.3, 0.5], [0.6, 1.0]])


def test_without_scored_completions_the_command_that_makes_them_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "dpo", {"beta": 4.0}, [(0.0, 0.0), (0.4, 1.0)])
    assert main(["predictions", "--records", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "make them with: python -m llm_runs online online_quick" in capsys.readouterr().err

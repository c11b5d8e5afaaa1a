"""Frontiers: below the bound, on it where theory says so, finite where no minimiser exists; and the command that draws them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import objectives
from analysis.records import read_run
from toy_bandits import BanditError, frontiers, loops, worlds
from toy_bandits.__main__ import main
from toy_bandits.frontiers import points, summary


def swept(name: str, world: str, per_decade: int = 2) -> pd.DataFrame:
    return frontiers.sweep(worlds.get(world), objectives.parse(name), per_decade)


@pytest.mark.parametrize("world", ["bradley_terry/1", "bradley_terry/3", "bradley_terry/6", "bradley_terry/4"])
def test_dpo_in_a_bradley_terry_world_lies_on_the_bound(world: str) -> None:
    frame = swept("dpo", world)
    assert len(frame) == 11
    assert frame["reward_regret"].abs().max() < 1e-12  # F2: its optimum is F1's
    # and it does move: from nearly the reference to nearly the best actions alone
    assert frame["kl_policy_reference"].min() < 1e-2
    assert frame["kl_policy_reference"].max() > 1.0


@pytest.mark.parametrize(("name", "least"), [("maxpo", 0.01), ("ipo", 1e-4), ("sft", 0.01)])
def test_others_lie_below_it(name: str, least: float) -> None:
    frame = swept(name, "bradley_terry/1")
    assert frame["reward_regret"].min() > -1e-12
    assert frame["reward_regret"].max() > least


def test_without_a_minimiser_the_point_is_that_of_the_limit() -> None:
    frame = swept("dpo", "determinism/6")
    assert (frame["status"] == "diverges").all()
    np.testing.assert_allclose(frame["kl_policy_reference"], -np.log(0.1), rtol=1e-12)  # all mass on the first action
    np.testing.assert_allclose(frame["expected_reward"], 1.0, rtol=1e-12)
    measures = ["reward_bound", "reward_regret", "win_rate_bound", "win_rate_regret"]
    assert np.isfinite(frame[measures].to_numpy()).all()


def test_the_direction_of_the_strength_is_the_objectives_own() -> None:
    ipo, orpo = swept("ipo", "bradley_terry/1"), swept("orpo", "bradley_terry/1")
    np.testing.assert_allclose(ipo["held"], np.linspace(0, 1, 11), atol=1e-12)
    np.testing.assert_allclose(orpo["held"], np.linspace(1, 0, 11), atol=1e-12)
    assert ipo["strength"].max() / ipo["strength"].min() == pytest.approx(1e5)
    kl = ipo.sort_values("held")["kl_policy_reference"]
    assert (kl.diff().dropna() < 0).all()


def test_finite_data_give_one_point_per_data_set_judged_by_the_truth() -> None:
    frame = swept("ipo", "finite_labels/2", per_decade=1)
    assert len(frame) == 6 * 64
    assert frame.groupby("strength")["data_set"].nunique().eq(64).all()
    assert frame["reward_regret"].min() > -1e-12
    # With tau large all data sets leave the policy at the reference.
    strongest = frame[frame["strength"] == frame["strength"].max()]
    assert strongest["kl_policy_reference"].max() < 1e-3


def test_a_policy_above_the_bound_names_world_objective_and_strength(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        """A solution whose second policy has too much mass."""

        def __init__(self, problem: object, objective: objectives.Objective) -> None:
            self.log_policy = worlds.get("determinism/6").truth.log_reference.repeat(6, 1, 1)
            self.log_policy[1] += 1e-9
            self.status = np.array(["converged"] * 6)
            self.gradient_norm = self.value = torch.zeros(6)

    monkeypatch.setattr(points, "solve", Wrong)
    with pytest.raises(BanditError, match=r"^determinism/6: ipo at tau = 0\.01: an expected reward of .* lies above"):
        swept("ipo", "determinism/6", per_decade=1)


def test_the_win_rates_optimum_bounds_the_win_rate_only() -> None:
    world = worlds.get("bradley_terry/3")
    for measure, regret in (("expected_reward", "reward_regret"), ("win_rate", "win_rate_regret")):
        frame = frontiers.optima(world, measure)
        assert frame[regret].abs().max() < 1e-12
    # near-deterministic: a response that always beats the reference's is worth no more for a larger reward
    assert frontiers.optima(world, "expected_reward")["win_rate_regret"].max() > 1e-3


def test_loops_and_paths_begin_at_the_reference_and_stay_below() -> None:
    world = worlds.get("bradley_terry/1")
    loop = frontiers.along_loop(world, loops.get("rlhf_ppo", iterations=5))
    path = frontiers.along_path(world, objectives.get("dpo"), steps=(0, 30), per_decade=1)
    for frame, rows in ((loop, 6), (path, 12)):
        assert len(frame) == rows
        assert frame.loc[frame["step"] == 0, "kl_policy_reference"].max() < 1e-15
        assert frame.loc[frame["step"] == 0, "reward_regret"].abs().max() < 1e-12
        assert frame["reward_regret"].min() > -1e-12
        assert frame.loc[frame["step"] > 0, "kl_policy_reference"].min() > 1e-6


def test_the_summary_counts_statuses_and_says_nothing_below_rounding() -> None:
    frame = pd.DataFrame(
        {
            "kind": ["sweep"] * 3 + ["optimum"],
            "name": ["dpo"] * 3 + ["win_rate"],
            "status": ["converged", "diverges", "converged", None],
            "kl_policy_reference": [0.5, 2.0, 1.0, 9.0],
            "reward_regret": [1e-12, 0.25, 0.125, 0.0],
        }
    )
    (row,) = summary.table(frame).to_dict("records")
    assert row["policies"] == "2 converged, 1 diverges"
    assert row["KL"] == "0.5 to 2"
    assert (row["reward below the bound: most"], row["reward: median"]) == ("0.25", "0.12")
    assert summary.table(frame.head(1)).iloc[0]["reward: median"] == "0"


# The command


def test_the_command_writes_records_figures_and_page_and_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["frontier", "dpo", "dpo+forward_kl(weight=0.1)", "mrpo", "--worlds", "determinism/7"]
    arguments += ["--per-decade", "1", "--out", str(tmp_path)]
    assert main(arguments) == 0
    assert "left out: mrpo in determinism/7: weights names 2 references" in capsys.readouterr().out
    sweeps = tmp_path / "determinism-7" / "sweep"
    assert sorted(folder.name for folder in sweeps.iterdir()) == ["dpo", "dpo+forward_kl-weight=0.1"]
    run = read_run(sweeps / "dpo")
    assert (run.id, run.config["world"]) == ("bandit/frontier/determinism/7/sweep/dpo", "determinism/7")
    assert len(run.table("results")) == 6
    for name in ("reward.png", "reward.pdf", "win_rate.png", "win_rate.pdf"):
        assert (tmp_path / f"determinism-7-{name}").stat().st_size > 5000
    page = (tmp_path / "frontiers.md").read_text()
    assert "6 diverges" in page and "## Left out" in page
    written = (sweeps / "dpo" / "run.json").stat().st_mtime_ns
    (sweeps / "dpo+forward_kl-weight=0.1" / "run.json").unlink()  # as if stopped before it
    picture = (tmp_path / "determinism-7-reward.pdf").read_bytes()
    assert main(arguments) == 0
    assert (sweeps / "dpo" / "run.json").stat().st_mtime_ns == written
    assert (sweeps / "dpo+forward_kl-weight=0.1" / "run.json").exists()
    assert (tmp_path / "determinism-7-reward.pdf").read_bytes() == picture


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dppo"], "unknown objective 'dppo'; did you mean 'dpo'"),
        (["dpo", "--worlds", "determinism/99"], "unknown world 'determinism/99'"),
        (["dpo", "--per-decade", "0"], "--per-decade: must be at least 1; got 0"),
        (
            ["pretraining", "--worlds", "determinism/7"],
            "pretraining in determinism/7: a bandit has no pretraining text",
        ),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["frontier", *arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error

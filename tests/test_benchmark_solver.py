"""What the benchmark of the solver makes of its measurements, on numbers worked by hand, and its peers' formulas."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import objectives
from benchmarks import solver as benchmark
from toy_bandits.solver import solve

COLUMNS = ["objective", "method", "problems", "microseconds", "gradient_norm", "share", "steps"]


def test_ratios_count_the_adam_that_solves_most(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        ("dpo", "solve", 100, 20.0, 1e-13, 1.0, math.nan),
        ("dpo", "L-BFGS, gradient by hand", 10, 1000.0, 1e-10, 1.0, math.nan),
        ("dpo", "L-BFGS, autograd", 10, 9000.0, 1e-10, 1.0, math.nan),
        ("dpo", "Adam, learning rate 0.01", 10, 500.0, math.nan, 0.1, 9),
        ("dpo", "Adam, learning rate 0.1", 10, 4000.0, math.nan, 0.9, 9),
    ]
    table = benchmark.ratios(pd.DataFrame(rows, columns=COLUMNS))
    assert table["value"].tolist() == [20.0, 50.0, 450.0, 200.0]
    assert benchmark.report(table)
    printed = capsys.readouterr().out
    assert "microseconds a problem 20.00 (at most 40: met)" in printed
    assert "times as fast as L-BFGS, gradient by hand 50.00 (at least 100: MISSED)" in printed
    assert "times as fast as Adam 200.00 (at least 100: met)" in printed


@pytest.mark.parametrize("name", benchmark.CASES)
def test_peers_minimise_the_same_objective(name: str) -> None:
    case, problem = benchmark.CASES[name], benchmark.worlds(2, 4)
    solution = solve(problem, objectives.parse(case.objective), starts=0)
    function = benchmark.peer(problem, case)
    value, gradient = function(solution.logits)
    assert gradient.abs().max() <= 1e-10
    z = torch.linspace(-3.0, 7.0, 5, dtype=torch.float64)
    np.testing.assert_allclose(benchmark.NUMPY[case.loss](z.numpy()), case.loss(z).numpy(), rtol=1e-12)
    np.testing.assert_allclose(benchmark.NUMPY[case.slope](z.numpy()), case.slope(z).numpy(), rtol=1e-12)
    one, flat = problem.take(torch.tensor([1])), np.random.default_rng(0).standard_normal(4)
    (by_hand, slopes), (by_autograd, others) = (
        loss(one, case)(flat) for loss in (benchmark.by_hand, benchmark.by_autograd)
    )
    assert by_hand == pytest.approx(by_autograd, rel=1e-12)
    np.testing.assert_allclose(slopes, others, rtol=1e-10, atol=1e-12)
    for loss in (benchmark.by_hand, benchmark.by_autograd):
        ((_, norm), (found, again)) = benchmark.by_lbfgs_each(problem, case, loss, 0, 2)
        assert max(norm, again) <= 1e-6
    benchmark.agree(solution, problem, case, 1, found)
    with pytest.raises(SystemExit, match="L-BFGS has"):
        benchmark.agree(solution, problem, case, 1, value[1].item() - 1e-3)


def test_settings_that_make_no_sense_are_an_error(tmp_path: Path) -> None:
    assert benchmark.main(["--out", str(tmp_path), "--problems", "3"]) == 2

"""What the benchmark of training makes of its measurements, on numbers worked by hand; the measurements themselves are not tests."""

from __future__ import annotations

import pandas as pd
import pytest

pytest.importorskip("trl")
from benchmarks import __main__ as command
from benchmarks import training, training_steps


def test_longest_sequence_between_and_beyond_the_measured_lengths() -> None:
    cost = pd.DataFrame(
        [("length", n, "a", 1.0, n * 1e6, "") for n in (100, 200, 400)]
        + [("length", n, "b", 1.0, 2e8 + n * 1e6, "") for n in (100, 200, 400)]
        + [("pairs", 1, "a", 1.0, 5.0, "")],
        columns=["against", "at", "variant", "seconds", "added_bytes", "error"],
    )
    found = training.longest_table(cost, 5e8).set_index("variant")["tokens"]
    assert found.to_dict() == pytest.approx({"a": 500, "b": 300})


def test_ratios_and_targets(capsys: pytest.CaptureFixture[str]) -> None:
    variants = [*training_steps.TRL, *training_steps.OURS]
    steps = pd.DataFrame(
        [
            (shape, variant, 0, step, seconds, 0.0)
            for shape in ("128:128", "204:52")
            for variant in variants
            for step, seconds in ((1, float("nan")), (2, 12.0 if variant == training.BASELINE else 3.0))
        ],
        columns=["shape", "variant", "round", "step", "seconds", "loss"],
    )
    memory = pd.DataFrame(
        [
            (shape, variant, 8.0 if variant == training.BASELINE else 2.0, 9.0)
            for shape in ("128:128", "204:52")
            for variant in variants
        ],
        columns=["shape", "variant", "added_bytes", "peak_bytes"],
    )
    table = training.ratios("cpu", steps, memory)
    faster = table[table["quantity"] == "times as fast"].set_index(["shape", "variant"])["value"]
    assert faster["128:128", "dpo, precomputed reference"] == 4
    assert faster["128:128", training.BASELINE] == 1
    assert table.loc[table["quantity"] == "share of added bytes", "value"].max() == 1
    assert training._report(table)  # 4 < 6.5, and the total memory is not halved
    printed = capsys.readouterr().out
    assert "128:128  dpo, precomputed reference: times as fast 4.00 (at least 3.8: met)" in printed
    assert "204:52  maxpo, pairs as reference samples: times as fast 4.00 (at least 6.5: MISSED)" in printed
    assert "share of added bytes 0.25 (at most 0.5: met)" in printed
    assert "share of peak bytes 1.00 (at most 0.5: MISSED)" in printed


def test_variants_that_disagree_are_an_error() -> None:
    case = training.Case("cpu", 128, 128, 4)
    rows = [("128:128", training.BASELINE, 0, 1, 1.0, 0.5)]
    training._check_agreement(case, "dpo, live reference", training.Measured([], [0.50005], 0, 0), rows)
    with pytest.raises(
        SystemExit, match=r"has loss 0\.501 at step 1 of 128:128, but trl dpo, no recomputation has 0\.5"
    ):
        training._check_agreement(case, "dpo, live reference", training.Measured([], [0.501], 0, 0), rows)


def test_stored_tokens_bound_the_exact_kl() -> None:
    table = training.kl_table()
    errors = table["relative_error"].tolist()
    assert errors == sorted(errors, reverse=True)
    assert 0 < errors[-1] < 0.05


def test_unknown_benchmarks_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["trianing"]) == 2
    assert (
        "no benchmark 'trianing'; there are: data, objectives, soak, solver, sweep, training" in capsys.readouterr().err
    )
    assert training.main(["--out", "x", "--steps", "1"]) == 2
    assert "--steps must be at least 2" in capsys.readouterr().err

"""Figures drawn from synthetic records: complete, labelled, legible, and the same bytes every time."""

from __future__ import annotations

import functools
import hashlib
import importlib
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import synthetic_records as synthetic
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from PIL import Image

from analysis.claims import CLAIMS
from analysis.evidence import Evidence
from analysis.records import write_run
from paper_figures import FIGURES, PAPER, draw_one, style
from paper_figures.__main__ import main
from paper_figures.catalogue import GROUPS, KNOWN
from paper_figures.strength import response

ROOT = Path(__file__).parents[2]


@functools.cache
def figure_of(name: str, records: Path) -> Figure:
    with mpl.rc_context(style.RC):
        figure: Figure = importlib.import_module(f"paper_figures.{name}").draw(Evidence.load(records)).figure
        figure.set_dpi(300)  # as it is saved
        FigureCanvasAgg(figure).draw()
    return figure


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_has_its_files_and_names_its_records(name: str, drawn: Path, records: Path) -> None:
    pdf = (drawn / f"{name}.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert b"CreationDate" not in pdf
    with Image.open(drawn / f"{name}.png") as image:
        width = image.size[0] / 300
        assert width == pytest.approx(style.SINGLE, abs=0.01) or width == pytest.approx(style.DOUBLE, abs=0.01)
        ink = np.asarray(image.convert("L")) < 250
    assert ink.mean() > 0.01  # not an empty page
    for edge in (ink[:2], ink[-2:], ink[:, :2], ink[:, -2:]):
        assert not edge.any()  # nothing is cut off
    description = json.loads((drawn / f"{name}.json").read_text())
    assert len(description["caption"]) > 100
    assert re.fullmatch(r"C\d", description["claims"][0])
    for source in description["records"]:
        for table, checksum in source["sha256"].items():
            content = (records / source["folder"] / f"{table}.parquet").read_bytes()
            assert hashlib.sha256(content).hexdigest() == checksum


@pytest.mark.parametrize("name", ["determinism", "frontier_llm", "ablation", "likelihoods"])
def test_the_same_records_give_the_same_bytes(name: str, drawn: Path, records: Path, tmp_path: Path) -> None:
    mpl.rcParams["lines.linewidth"] = 7  # a user's own settings must not show either
    try:
        paths = draw_one(name, Evidence.load(records), records, tmp_path)
    finally:
        mpl.rcdefaults()
    assert {path.name for path in paths} == {f"{name}.pdf", f"{name}.png", f"{name}.tex", f"{name}.json"}
    for path in paths:
        assert path.read_bytes() == (drawn / path.name).read_bytes(), path.name


def test_another_process_locale_and_hash_seed_give_the_same_bytes(drawn: Path, records: Path, tmp_path: Path) -> None:
    names = ("finding", "ablation", "off_support", "claims_table")
    settings = {
        "PYTHONHASHSEED": "7",
        "LC_ALL": "de_DE.UTF-8",
        "LANG": "tr_TR.UTF-8",
        "TZ": "Pacific/Auckland",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-m", "paper_figures", *names, "--records", records, "--out", tmp_path / "out"],
        env={**os.environ, **settings},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made = [path for path in sorted((tmp_path / "out").iterdir()) if path.name != "figures.tex"]
    assert len(made) == 3 * 4 + 3
    for path in made:
        assert path.read_bytes() == (drawn / path.name).read_bytes(), path.name


def test_every_claim_names_figures_that_exist_and_speak_of_it() -> None:
    for claim in CLAIMS:
        for name in claim.figures:
            assert name in KNOWN
            assert claim.id in importlib.import_module(f"paper_figures.{name}").CLAIMS, (claim.id, name)


def named(ticks: list[mpl.text.Text]) -> bool:
    """Whether ticks carry names, not numbers, and so need no label of the axis."""
    return any(re.search("[a-z]", tick.get_text()) for tick in ticks)


@pytest.mark.parametrize("name", FIGURES)
def test_axes_have_labels_and_text_is_legible(name: str, records: Path) -> None:
    figure = figure_of(name, records)
    for axis in figure.axes:
        if axis.axison:
            shared = axis.get_subplotspec() is not None and not axis.get_subplotspec().is_first_col()
            assert axis.get_ylabel() or shared or named(axis.get_yticklabels()) or not axis.yaxis.get_visible(), name
            below = axis.get_subplotspec() is not None and not axis.get_subplotspec().is_last_row()
            assert axis.get_xlabel() or below or named(axis.get_xticklabels())
    for text in figure.findobj(mpl.text.Text):
        if text.get_text().strip() and text.get_visible():
            assert text.get_fontsize() >= 7, text.get_text()


def texts_of(figure: Figure) -> list[tuple[str, Bbox]]:
    """Every printed text with its box in pixels."""
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    hidden = {text for axis in figure.axes if not axis.axison for text in axis.findobj(mpl.axis.Axis)}
    unseen = {text for axis in hidden for text in axis.findobj(mpl.text.Text)}
    for axis in figure.axes:
        for one in (axis.xaxis, axis.yaxis):
            low, high = sorted(one.get_view_interval())
            ticks = [*one.get_major_ticks(), *one.get_minor_ticks()]
            # ticks outside the view are there, but not drawn
            unseen |= {
                text for tick in ticks if not low <= tick.get_loc() <= high for text in tick.findobj(mpl.text.Text)
            }
    found = []
    for text in figure.findobj(mpl.text.Text):
        if text.get_text().strip() and text.get_visible() and text not in unseen:
            found.append((text.get_text(), text.get_window_extent(renderer)))
    return found


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_covers_another_or_leaves_the_page(name: str, records: Path) -> None:
    figure = figure_of(name, records)
    texts = texts_of(figure)
    assert len(texts) > 8
    for text, box in texts:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, text
    for (one, first), (other, second) in itertools.combinations(texts, 2):
        apart = first.x1 <= second.x0 or second.x1 <= first.x0 or first.y1 <= second.y0 or second.y1 <= first.y0
        assert apart, (one, other)


@pytest.mark.parametrize("name", FIGURES)
def test_legends_cover_no_data(name: str, records: Path) -> None:
    figure = figure_of(name, records)
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    legends = [*figure.legends, *(axis.get_legend() for axis in figure.axes if axis.get_legend())]
    for legend in legends:
        box = legend.get_window_extent(renderer)
        for axis in figure.axes:
            for line in axis.lines:
                if line.get_transform() == axis.transData and len(line.get_xdata()) > 2:
                    points = axis.transData.transform(
                        np.column_stack([line.get_xdata(), line.get_ydata()]).astype(float)
                    )
                    points = points[np.isfinite(points).all(axis=1)]
                    inside = (points > [box.x0, box.y0]) & (points < [box.x1, box.y1])
                    assert not inside.all(axis=1).any(), (line.get_label(), axis.get_title(loc="left"))


def test_methods_differ_in_colour_marker_and_line() -> None:
    looks = list(style.LOOKS.values())
    assert len({look.colour for look in looks}) == len(looks)
    assert len({look.marker for look in looks}) == len(looks)
    assert len({str(look.line) for look in looks}) == len(looks)


def test_the_response_is_the_derivative_by_log_strength() -> None:
    """KL = 3 - 2 ln(strength) has the response 2 everywhere."""
    strengths = np.logspace(-2, 1, 7)
    frame = synthetic.determinism((0.1,), (0.9,)).iloc[[0] * 7].assign(strength=strengths)
    x, y = response(frame.assign(kl_policy_reference=3 - 2 * np.log(strengths)))
    np.testing.assert_allclose(x, strengths)
    np.testing.assert_allclose(y, 2.0)


def test_dpo_at_certainty_is_drawn_as_divergence_and_the_others_as_points(records: Path) -> None:
    figure = figure_of("determinism", records)
    texts = [[text.get_text() for text in axis.texts] for axis in figure.axes]
    assert ["diverges" in found for found in texts] == [True, False, False]


def test_missing_records_name_the_command_and_the_others_are_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    synthetic.write_bandit(tmp_path / "records", "determinism")
    assert main(["all", "--records", str(tmp_path / "records"), "--out", str(tmp_path / "out")]) == 1
    shown = capsys.readouterr()
    assert "determinism: " in shown.out
    assert (tmp_path / "out" / "determinism.pdf").exists()
    lines = {line.split(":")[0]: line for line in shown.err.splitlines()}
    assert r"\input{determinism}" in (tmp_path / "out" / "figures.tex").read_text()
    assert r"\input{strength}" not in (tmp_path / "out" / "figures.tex").read_text()
    assert set(lines) == set(PAPER) - {"determinism", "claims_table"}  # verdicts need no records
    assert "python -m toy_bandits run strength --out out/bandits" in lines["strength"]
    assert "python -m llm_runs run quick" in lines["frontier_llm"]
    assert not (tmp_path / "out" / "strength.pdf").exists()


def test_bad_input_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["determinsm", "--records", str(tmp_path), "--out", str(tmp_path)]) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert "determinsm" in shown
    assert "did you mean determinism?" in shown
    assert main(["--records", str(tmp_path / "absent"), "--out", str(tmp_path)]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_a_damaged_record_is_skipped_aloud_and_not_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = synthetic.write_bandit(tmp_path / "records", "determinism")
    with (folder / "results.parquet").open("ab") as handle:
        handle.write(b"x")
    assert main(["determinism", "--records", str(tmp_path / "records"), "--out", str(tmp_path / "out")]) == 1
    shown = capsys.readouterr().err
    assert "results.parquet: is damaged" in shown
    assert "not drawn" in shown


def test_a_group_draws_its_figures_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synthetic.write_bandit(tmp_path / "records", "ablation")
    assert main(["bandits", "--records", str(tmp_path / "records"), "--out", str(tmp_path / "out")]) == 1
    shown = capsys.readouterr()
    assert "ablation: " in shown.out
    assert {line.split(":")[0] for line in shown.err.splitlines()} == set(GROUPS["bandits"]) - {
        "ablation",
        "factorial_table",
    }


def test_records_without_rewards_are_said_to_lack_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = synthetic.write_language_model(tmp_path / "records", synthetic.Truth(prompts=8))
    for run in Evidence.load(folder).runs:
        tables = {name: run.table(name) for name in run.tables}
        tables["evaluations"] = tables["evaluations"].query("metric != 'reward'")
        write_run(run.folder, kind=run.kind, id=run.id, config=run.config, seeds=run.seeds, tables=tables)
    assert main(["frontier_llm", "--records", str(folder), "--out", str(tmp_path / "out")]) == 1
    assert "frontier_llm: not drawn: dpo has no evaluations of reward" in capsys.readouterr().err


def test_likelihoods_on_labels_of_ones_own_are_drawn_too(tmp_path: Path) -> None:
    truth = synthetic.Truth(methods={"dpo": synthetic.PREDICTED["dpo"]}, labels=("given",), prompts=8)
    synthetic.write_language_model(tmp_path, truth)
    figure = figure_of("likelihoods", tmp_path)
    assert len(figure.axes) == 3
    assert "given labels" in figure.axes[0].get_title(loc="left")


def test_likelihoods_of_other_objectives_are_drawn_too(tmp_path: Path) -> None:
    """Without the three methods of the claims, each objective of the records at its last strength; values as recorded."""
    levels = {"simpo": synthetic.Levels(1.0, 1.0)}
    synthetic.write_language_model(tmp_path, synthetic.Truth(methods=levels, labels=("noisy",), strengths=(0.02, 0.1)))
    figure = figure_of("likelihoods", tmp_path)
    assert len(figure.axes) == 3
    (run,) = [run for run in Evidence.load(tmp_path).runs if run.config["objective"]["hyperparameters"]["beta"] == 0.1]
    frame = run.table("evaluations")
    chosen = frame[(frame["metric"] == "chosen_log_ratio") & (frame["split"] == "training_pairs")]
    drawn = figure.axes[0].lines[0]
    np.testing.assert_allclose(drawn.get_ydata(), chosen.groupby("step")["value"].mean())
    np.testing.assert_allclose(figure.axes[2].lines[0].get_ydata(), np.full(20, 0.8))

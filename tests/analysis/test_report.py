"""The report's content and page, without a browser: what is shown, what is refused, and that texts stay texts."""

from __future__ import annotations

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from report_records import HOSTILE, card, language_model

from analysis.__main__ import main
from analysis.records import read_run
from analysis.report.content import Content, gather
from analysis.report.curves import thin
from analysis.report.page import render
from analysis.report.runs import Shown, differences, families


def data_of(page: str) -> dict[str, Any]:
    """What the page's script unpacks."""
    packed = re.search(r'id="data">([^<]*)<', page)
    assert packed is not None
    return dict(json.loads(gzip.decompress(base64.b64decode(packed[1]))))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("records")
    for method, kl in (("dpo", 3.0), ("maxpo", 1.0)):
        for seed in (0, 1):
            language_model(out / f"{method}-{seed}", method, seed=seed, kl=kl)
    card(out / "card")
    return out


@pytest.fixture(scope="module")
def content(folder: Path) -> Content:
    return gather([folder], 3)


def test_every_part_has_what_the_records_say(content: Content, folder: Path) -> None:
    assert [one.id for one in content.shown] == [
        "bandit/profile/maxpo",
        *(f"test/{m}-{s}" for m in ("dpo", "maxpo") for s in (0, 1)),
    ]
    (panel, bandit) = content.panels
    assert bandit["title"] == "exact bandit, bradley_terry/1"
    path = panel["series"][0]
    frames = [read_run(folder / f"dpo-{seed}").table("evaluations") for seed in (0, 1)]
    last = [f[(f["step"] == 20) & (f["metric"] == "kl_policy_reference")]["value"].mean() for f in frames]
    assert (path["label"], path["strength"][0], path["step"]) == ("dpo(beta=0.1)", 0.1, [0, 10, 20])
    assert [content.shown[place].id for place in path["runs"]] == ["test/dpo-0", "test/dpo-1"]
    assert path["x"][-1] == pytest.approx(np.mean(last), rel=1e-4)
    assert path["x_low"][-1] < min(last) and max(last) < path["x_high"][-1]  # two seeds: a wide interval
    assert path["x_low"][0] is None  # the reference's own KL is 0 of every prompt: no interval is invented
    assert [one["x"][-1] for one in panel["each"][:2]] == pytest.approx(last, rel=1e-4)
    benchmark = content.benchmarks[0]
    assert (content.shown[benchmark[0]].id, benchmark[1:4]) == ("test/dpo-0", ["facts", "acc", "0.5"])
    assert benchmark[7] == "McNemar" and len(content.benchmarks) == content.tests == 4
    seeds = content.over_seeds[0]
    assert seeds[:5] == ["dpo(beta=0.1), near_deterministic (T = 0.01)", "2", "facts", "acc", "0.5"]
    assert seeds[6].startswith("0.167 [")  # 2 of 12 questions
    text = content.samples[0]
    assert (text["prompts"], len(text["rows"])) == (6, 3)
    assert content.texts[text["rows"][0][1]] != content.texts[text["rows"][0][2]]  # before and after
    (shown_card,) = content.cards
    assert shown_card["rows"][0]["scores"] == [[0.9, None, None, ""], [0.2, 0.1, 0.3, ""]]
    assert shown_card["rows"][1]["scores"][1] == [None, None, None, "no beta"]
    assert {"loss", "held_out_prompts/reward"} <= {entry["name"] for entry in content.curves}
    assert content.findings and not content.skipped


def test_the_page_is_whole_and_the_same_every_time(content: Content, tmp_path: Path) -> None:
    page = render(content, "A title", "a command")
    assert page == render(content, "A title", "a command")
    found = data_of(page.decode())
    assert found["runs"][1]["manifest"] == content.shown[1].run.manifest
    assert not re.search(r'(src|href)="(https?:)?//', page.decode())  # nothing is fetched
    assert page.decode().count("not enough evidence") > 3  # verdicts need no script


def test_texts_of_models_and_records_never_become_markup(tmp_path: Path) -> None:
    language_model(tmp_path / "a", HOSTILE, texts=(HOSTILE, HOSTILE), name=HOSTILE)
    (tmp_path / "b" / "x").mkdir(parents=True)
    (tmp_path / "b" / "x" / "run.json").write_text(
        json.dumps({"format_version": 1, "kind": "llm", "id": "i", "config": HOSTILE})
    )
    page = render(gather([tmp_path], 9), HOSTILE, HOSTILE).decode()
    assert HOSTILE not in page and "<img" not in page
    assert page.count("<script") == 3  # data, plotly, ours


def test_damaged_runs_are_skipped_with_a_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.html"
    for name in ("interrupted", "newer", "changed"):
        language_model(tmp_path / "runs" / name, "dpo")
    language_model(tmp_path / "runs" / "good", "dpo")
    (tmp_path / "runs" / "interrupted" / "run.json").unlink()
    manifest = tmp_path / "runs" / "newer" / "run.json"
    manifest.write_text(manifest.read_text().replace('"format_version": 1', '"format_version": 99'))
    table = tmp_path / "runs" / "changed" / "metrics.parquet"
    table.write_bytes(table.read_bytes()[:-1] + b"?")
    assert main(["report", str(tmp_path / "runs"), "--out", str(out)]) == 0
    said, page = capsys.readouterr(), out.read_text()
    for words in ("interrupted: has tables but no run.json", "has format 99, newer", "metrics.parquet"):
        assert words in said.err and words in page
    assert len(data_of(page)["runs"]) == 1 and "3 folder(s) skipped" in said.out
    assert main(["report", str(tmp_path / "runs"), "--out", str(out), "--strict"]) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["report", "nowhere", "--out", "r.html"], "nowhere: there is no such folder"),
        (["report", ".", "--out", "r.html"], "no run to report on"),
        (["report", ".", "--out", "."], "is a folder; --out is the page's file"),
    ],
)
def test_bad_arguments_are_one_line(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line and not list(tmp_path.iterdir())


def test_runs_of_another_reward_get_a_plot_of_their_own(tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        language_model(tmp_path / name, "dpo", name=name, seed=seed)
    language_model(tmp_path / "c", "dpo", name="c", reward="vader")
    found = gather([tmp_path], 0)
    assert [[len(line["runs"]) for line in panel["series"]] for panel in found.panels] == [[2], [1]]
    assert any("reward.name = 'vader'" in line and "not on one plot" in line for line in found.left_out)
    assert "reward.name = 'tfidf'" in found.panels[0]["note"]


def test_bits_are_not_drawn_beside_nats(tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        language_model(tmp_path / name, "dpo", name=name, seed=seed)
    language_model(tmp_path / "c", "dpo", name="c", units={"kl_policy_reference": "bits per token", "loss": "bits"})
    found = gather([tmp_path], 0)
    assert [[len(line["runs"]) for line in panel["series"]] for panel in found.panels] == [[2], [1]]  # the frontier
    (kl,) = [one for one in found.curves if one["name"] == "held_out_prompts/kl_policy_reference"]
    assert (len(kl["lines"]), kl["unit"]) == (2, "nats per completion")
    (line,) = [line for line in found.left_out if line.startswith("left out kl_policy_reference")]
    assert "'bits per token'" in line and "'nats per completion'" in line and str(tmp_path / "c") in line


def test_values_that_are_not_finite_are_named_and_cost_only_their_part(tmp_path: Path) -> None:
    language_model(tmp_path / "a", "dpo", name="a", kl=float("nan"))
    language_model(tmp_path / "b", "ipo", name="b")
    found = gather([tmp_path], 0)
    assert [len(panel["series"]) for panel in found.panels] == [1]
    assert any(str(tmp_path / "a") in line and "not finite" in line for line in found.left_out)
    (kl,) = [one for one in found.curves if one["name"] == "held_out_prompts/kl_policy_reference"]
    assert kl["lines"][0][2][1:] == [None, None]  # a gap, not a line across it


def test_one_seed_twice_is_said(tmp_path: Path) -> None:
    for name in ("a", "b"):
        language_model(tmp_path / name, "dpo", name=name)
    found = gather([tmp_path], 0)
    assert [line["runs"] for line in found.panels[0]["series"]] == [[1]]
    assert any(str(tmp_path / "a") in line and "same objective, labels and seeds" in line for line in found.left_out)


def test_another_learning_rate_is_another_line_and_never_one_more_seed(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        training = {"learning_rate": 3e-5, "steps": 20}
        language_model(tmp_path / f"usual-{seed}", "dpo", name=f"usual-{seed}", seed=seed, training=training)
    slow = {"learning_rate": 1e-5, "steps": 20}
    language_model(tmp_path / "slow", "dpo", name="slow", seed=0, kl=0.5, training=slow)
    found = gather([tmp_path], 0)
    (panel,) = found.panels
    lines = {line["label"]: line for line in panel["series"]}
    assert {label: len(line["runs"]) for label, line in lines.items()} == {
        "dpo(beta=0.1)": 3,
        "dpo(beta=0.1), learning_rate = 1e-05": 1,
    }
    assert {line["method"] for line in panel["bands"]} == {"dpo", "dpo, learning_rate = 1e-05"}
    assert not [line for line in found.left_out if "written later" in line]


def test_the_training_seed_is_read_where_either_version_writes_it() -> None:
    for folder in ("certainty/runs/sft-mixed-seed1", "certainty/runs/dpo_beta=0.1-noisy-seed1"):
        records = Path(__file__).parents[2] / "paper_figures" / "records" / "evidence"
        assert Shown(read_run(records / folder)).seed == 1


def test_thinning_keeps_spikes_ends_and_gaps() -> None:
    steps, values = np.arange(10_000), np.sin(np.arange(10_000) / 500.0)
    values[4321], values[7000], values[8888] = 50.0, -60.0, np.nan
    kept, thinned = thin(steps, values, 100)
    assert len(kept) <= 100 and (kept[0], kept[-1]) == (0, 9999)
    assert {4321, 7000, 8888} <= set(kept.tolist())
    np.testing.assert_array_equal(thinned, values[kept])
    assert thin(steps[:50], values[:50], 100)[0] is not None and len(thin(steps[:50], values[:50], 100)[0]) == 50


def test_families_say_how_they_differ(tmp_path: Path) -> None:
    shown = [
        Shown(read_run(language_model(tmp_path / str(n), "dpo", name=str(n), reward=r))) for n, r in enumerate("aab")
    ]
    groups = families(shown)
    assert [len(group) for group in groups] == [2, 1]
    assert differences(groups) == ["reward.name = 'a'", "reward.name = 'b'"]
    assert differences(groups[:1]) == [""]


def test_a_run_that_was_scored_once_has_its_score_and_no_difference(tmp_path: Path) -> None:
    rows = [(1, "benchmark/facts", "acc", item, float(item < 3)) for item in range(4)]
    language_model(
        tmp_path / "a", "dpo", evaluations=pd.DataFrame(rows, columns=["step", "split", "metric", "item", "value"])
    )
    found = gather([tmp_path], 0)
    (row,) = found.benchmarks
    assert row[1:4] == ["facts", "acc", "–"] and row[4].startswith("0.75 [") and row[5:] == ["–", "4", "–", "–", "–"]
    assert found.tests == 0

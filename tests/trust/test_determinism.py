"""The same configuration, seeds, versions and device give the same bits; every purpose has a seed of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from forkserver import CONTEXT

from analysis.records import read_run
from llm_runs import experiment, texts
from llm_runs.__main__ import main
from llm_runs.config import RunConfig, SeedsConfig
from llm_runs.experiment import Experiment
from toy_bandits.__main__ import main as bandits
from trust import crashes
from trust.conftest import SETTINGS, SLUG

HASHED = "strings of sets and dictionaries come in an order of their own in every process"


def _child(call: Callable[[list[str]], int], words: list[str], note: Path) -> None:
    note.write_text(json.dumps(hash(HASHED)))
    raise SystemExit(call(words))


def _elsewhere(call: Callable[[list[str]], int], words: list[str], note: Path) -> None:
    """In another process, where strings have other hashes."""
    process = CONTEXT.Process(target=_child, args=(call, words, note))
    process.start()
    process.join(200)
    assert process.exitcode == 0
    assert json.loads(note.read_text()) != hash(HASHED)


def test_a_whole_run_has_the_same_bits_in_another_process(finished: Path, tmp_path: Path) -> None:
    """Weights of the reference, samples, labels, log-probabilities, metrics and evaluations; only times differ."""
    _elsewhere(main, ["run", "tiny", "--out", str(tmp_path / "out"), "--set", *SETTINGS], tmp_path / "note")
    one, other = crashes.tree(finished), crashes.tree(tmp_path / "out")
    assert crashes.differences(one, other) == []
    assert {"reference/model.safetensors", "samples/pairs.jsonl", f"runs/{SLUG}/evaluations.parquet"} <= set(one)


def test_bandits_have_the_same_bits_in_another_process(tmp_path: Path) -> None:
    for name in ("one", "other"):
        words = ["run", "ablation", "determinism", "--out", str(tmp_path / name)]
        if name == "one":
            assert bandits(words) == 0
        else:
            _elsewhere(bandits, words, tmp_path / "note")
    assert crashes.differences(crashes.tree(tmp_path / "one"), crashes.tree(tmp_path / "other")) == []


def test_the_record_has_every_seed(finished: Path) -> None:
    assert read_run(finished / "runs" / SLUG).seeds == dict.fromkeys(
        ("splits", "fine_tuning", "sampling", "labels", "order", "initialisation"), 0
    )


def test_a_purpose_has_a_seed_of_its_own_and_no_other_changes() -> None:
    config = RunConfig(seed=5, training_seeds=(8,))
    before = {"splits": 5, "fine_tuning": 5, "sampling": 5, "labels": 8, "order": 8, "initialisation": 8}
    assert config.seeds_of(8) == before
    for name in before:
        own = RunConfig(seed=5, training_seeds=(8,), seeds=SeedsConfig(**{name: 3}))
        assert own.seeds_of(8) == before | {name: 3}
    assert RunConfig(seed=5).seed_of("initialisation") == 5  # of the random model, which all trainings share


@pytest.mark.parametrize(
    ("name", "changed"), [("labels", {"labels"}), ("order", set()), ("sampling", set()), ("splits", {"splits"})]
)
def test_a_seed_changes_what_it_is_of(
    name: str, changed: set[str], copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the samples that are there: labels drawn with another seed differ, texts split with another seed too; nothing else."""
    monkeypatch.setattr(experiment, "_lock", lambda *_, **__: None)
    kept = experiment.kept_config(copy)
    import dataclasses

    other = dataclasses.replace(kept, seeds=SeedsConfig(**{name: 99}))
    found: dict[str, set[str]] = {"labels": set(), "splits": set()}
    for config in (kept, other):
        made = Experiment(config, copy)
        made.__dict__["unlabelled"] = {"training": made.pairs(made.label_sets[0], "training")}
        found["labels"].add(str(made.labelled(made.label_sets[0], "training")))
        found["splits"].add(
            str(texts.split(made._pool, {"sft": 40}, experiment.derived_seed(config.seed_of("splits"), "texts"))["sft"])
        )
    assert {purpose for purpose, values in found.items() if len(values) == 2} == changed

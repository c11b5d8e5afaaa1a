"""Small files that commands keep for themselves: a damaged one is one line, or counts as none where its work can be done again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_runs import checkpoints, sampling, training
from llm_runs.data.artefact import summary
from llm_runs.errors import InputError
from llm_runs.experiment import kept_config
from llm_runs.reference import FORMAT, ReferenceLogps
from llm_runs.sweeps.queue import submitted
from llm_runs.sweeps.states import Folder, State, Task

DAMAGED = [
    (b"[" * 5000, "nested too deeply"),
    (b"[]", "a JSON list instead of an object"),
    (b'{"a": "\xff"}', "not UTF-8 text"),
    (b'{"a": 1, "a": 2}', "the key 'a' stands twice"),
]


@pytest.mark.parametrize(("content", "words"), DAMAGED)
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("config.json", kept_config),
        ("report.json", summary),
        ("samples.json", lambda folder: sampling.provenance(folder / "samples.jsonl")),
        ("sweep/plan.json", lambda folder: Folder(folder).plan()),
        ("reference.json", ReferenceLogps.load),
    ],
)
def test_a_damaged_one_is_one_line(
    name: str, read: Callable[[Path], Any], content: bytes, words: str, tmp_path: Path
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        read(tmp_path)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_missing_in_one_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "reference.json").write_text(json.dumps({"format": FORMAT}))
    (tmp_path / "report.json").write_text(json.dumps({"sources": [7]}))
    for name, read in (("reference.json", ReferenceLogps.load), ("report.json", summary)):
        with pytest.raises(InputError, match=name):
            read(tmp_path)


@pytest.mark.parametrize(("content", "words"), DAMAGED)
def test_what_can_be_done_again_counts_as_not_done(content: bytes, words: str, tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for path in (folder.own / "tasks" / "run.json", folder.jobs / "slurm.json", tmp_path / checkpoints.SEAL):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    assert folder.state("run") is None
    assert submitted(folder) == {}
    assert not checkpoints.is_whole(tmp_path)


def test_values_of_another_kind_in_a_plan_or_a_state(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    task = {"id": "a", "title": "", "folder": "a", "key": "k"}
    folder.set_state("a", State("done", "k", parts=("noisy",)))
    path = folder.own / "tasks" / "a.json"
    right = json.loads(path.read_text())
    for change in ({"parts": [["noisy"]]}, {"pid": "7"}, {"state": None}, {"other": 1}):
        path.write_text(json.dumps(right | change))
        assert folder.state("a") is None
        assert not folder.done(Task(**task))
    for change in ({"parts": [["noisy"]]}, {"folder": 7}, {"id": []}, {"other": 1}):
        (folder.own / "plan.json").write_text(
            json.dumps({"format": 1, "name": "grid", "locks": True, "tasks": [task | change]})
        )
        with pytest.raises(InputError, match=r"plan\.json: damaged"):
            folder.plan()


@pytest.mark.parametrize(("content", "words"), DAMAGED)
def test_the_mark_of_a_training(content: bytes, words: str, tmp_path: Path) -> None:
    """It says whose checkpoints are there: with a damaged one none is taken."""
    checkpoint = tmp_path / "checkpoint-1"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    checkpoints.seal(checkpoint)
    assert training._resumable(tmp_path / "other", "one") is None
    (tmp_path / "training.json").write_text(json.dumps({"identity": "one"}))
    assert training._resumable(tmp_path, "one") == str(checkpoint)
    (tmp_path / "training.json").write_bytes(content)
    with pytest.raises(training.TrainingError, match=rf"training\.json: damaged \(.*{words}"):
        training._resumable(tmp_path, "one")


@pytest.mark.parametrize("line", ["[" * 5000, "7", '{"index": 1e999}', '{"index": 1}'])
def test_a_damaged_line_of_samples_on_the_way_ends_what_is_taken(line: str, tmp_path: Path) -> None:
    path = tmp_path / ".samples.jsonl.partial"
    path.write_text(json.dumps({"key": "k"}) + "\n" + line + "\n")
    assert sampling._read_partial(path, "k") == {}

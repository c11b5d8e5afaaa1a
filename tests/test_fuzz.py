"""Every reader against mutated files (200 each; 10,000 with -m slow), structures drawn by hypothesis, files made with ill will."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from fuzzing import judging, readers
from fuzzing.mutations import TEXT, Mutation
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_runs import gguf_header
from llm_runs.config import RunConfig
from llm_runs.data import formats, sources
from llm_runs.data.problems import PreferenceFileError, Problem
from llm_runs.errors import InputError
from llm_runs.rewards import TfidfReward
from llm_runs.strict import ConfigError, build

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("family", sorted(readers.FAMILIES))
def test_mutated_files_are_read_right_or_refused_in_a_line(family: str, tmp_path: Path) -> None:
    for reader in readers.every((family,)):
        outcome = judging.fuzz(reader, 200, tmp_path, seed=1)
        assert not outcome.failures, "\n".join(outcome.failures)
        assert outcome.refused > 0


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(readers.FAMILIES))
def test_ten_thousand_mutated_files(family: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fuzzing", "--count", "10000", "--readers", family, "--out", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


class Careless(ValueError):
    """An error that does not look after its message, as the packages' own do."""


# -- the judge -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda path: 1 / 0, "ZeroDivisionError"),
        (lambda path: _raise(Careless("first\nsecond of own.txt")), "several lines"),
        (lambda path: _raise(Careless("no name")), "does not name the file"),
        (lambda path: _raise(Careless("own.txt " + "x" * 4000)), "4008 characters"),
        (lambda path: _forever(), "not done in 1 s"),
    ],
)
def test_the_judge_sees(wrong: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "SECONDS", 1)
    reader = judging.Reader("own", [("own.txt", b"x")], TEXT, wrong, (Careless,))
    (tmp_path / "own.txt").write_bytes(b"x")
    assert words in str(judging.judge(reader, tmp_path / "own.txt")[1])


def test_the_judge_sees_memory_and_wrong_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(path: Path) -> int:
        return len(bytearray(b"x") * 200_000_000) if path.read_bytes() != b"x" else 0

    def wrong(path: Path, result: int) -> None:
        assert result == 1

    monkeypatch.setattr(judging, "MEGABYTES", 100)
    outcome = judging.fuzz(judging.Reader("own", [("own.txt", b"x")], TEXT, greedy, (InputError,)), 60, tmp_path)
    assert any("MB within" in failure for failure in outcome.failures)
    reader = judging.Reader("own", [("own.txt", b"x")], TEXT, lambda path: 2, (InputError,), wrong)
    assert "wrong:" in judging.fuzz(reader, 1, tmp_path).failures[0]


def _raise(error: Exception) -> None:
    raise error


def _forever() -> None:
    while True:
        pass


def test_every_kind_of_mutation_changes_something() -> None:
    import random

    from fuzzing import mutations

    kinds: set[Mutation] = {*mutations.BINARY, *mutations.TEXT, *mutations.YAML}
    seed = b'{"a": 1, "b": "x"}\nkey: value\n'
    for kind in kinds:
        assert any(kind(random.Random(i), seed, [b"other"]) != seed for i in range(5)), kind.__name__


# -- structures ----------------------------------------------------------------------------------------------------

_TEXT = st.text(max_size=20) | st.sampled_from(
    ["", " ", "\n\nHuman: a\n\nAssistant: b", "\x00", "ü", "user", "assistant"]
)
_SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | _TEXT
_MESSAGES = st.lists(st.dictionaries(st.sampled_from(["role", "content", "name"]), _TEXT, max_size=3), max_size=4)
_VALUE = st.recursive(
    _SCALAR, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=3), max_leaves=8
)
_FIELDS = sorted({field for form in formats.FORMATS.values() for field in (*form.required, *form.optional)})


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    form=st.sampled_from(sorted(formats.FORMATS)),
    values=st.dictionaries(st.sampled_from(_FIELDS), _VALUE | _MESSAGES, max_size=8),
    required=st.lists(_VALUE | _MESSAGES, min_size=4, max_size=4),
)
def test_records_of_any_structure(form: str, values: dict[str, Any], required: list[Any]) -> None:
    """A record becomes an example whose texts are its own, or a problem of one line."""
    given_values = values | dict(zip(formats.FORMATS[form].required, required, strict=False))
    try:
        example = formats.FORMATS[form].read(formats.Fields(given_values))
    except Problem as problem:
        _is_one_line(problem)
        return
    said = json.dumps(given_values)
    for name in ("chosen", "rejected", "answer"):
        text = getattr(example, name, None)
        if isinstance(text, str) and form != "hh_rlhf":
            assert json.dumps(text)[1:-1] in said


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    values=st.dictionaries(
        st.sampled_from(
            ["name", "seed", "model", "data", "labels", "training", "evaluation", "objectives", "guards", "online"]
        ),
        _VALUE
        | st.dictionaries(
            st.sampled_from(["name", "steps", "batch_size", "kl", "at", "lora", "temperature"]), _VALUE, max_size=4
        ),
        max_size=5,
    )
)
def test_configurations_of_any_structure(values: dict[str, Any]) -> None:
    try:
        config = build(RunConfig, values, "")
    except ConfigError as error:
        _is_one_line(error)
        return
    assert build(RunConfig, config.to_dict(), "") == config


def _is_one_line(error: Exception) -> None:
    assert "\n" not in str(error) and len(str(error)) < 1000


# -- ill will ------------------------------------------------------------------------------------------------------


def refused(path: Path) -> str:
    """The one line with which a preference file is refused."""
    try:
        problems = [str(each) for _, each in sources.open_source(str(path)).records if isinstance(each, Problem)]
    except PreferenceFileError as error:
        problems = [str(error)]
    assert problems, "it was read"
    assert "\n" not in problems[0]
    return problems[0]


def test_a_bomb_of_gzip_is_refused_before_it_is_large(tmp_path: Path) -> None:
    """A gigabyte without a line break in a megabyte."""
    path = tmp_path / "bomb.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b'{"prompt": "')
        for _ in range(256):
            file.write(b"x" * 2**22)
    judging._peak()
    before = judging._peak()
    assert re.search(r"bomb\.jsonl\.gz, line 1: longer than 64 MiB", refused(path))
    assert judging._peak() - before < 300


def test_an_array_beyond_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_LARGEST_JSON", 1000)
    path = tmp_path / "large.json"
    path.write_text("[" + ",".join(['{"prompt": "p", "chosen": "a", "rejected": "b"}'] * 50) + "]")
    assert "save it as JSON lines" in refused(path)


def test_a_quotation_mark_that_is_never_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_LONGEST_LINE", 10_000)
    path = tmp_path / "open.csv"
    path.write_text('prompt,chosen,rejected\np,a,"' + "b\n" * 20_000)
    assert re.search(r"open\.csv, line \d+: not valid CSV: field larger than", refused(path))


def test_a_key_that_stands_twice(tmp_path: Path) -> None:
    path = tmp_path / "double.jsonl"
    path.write_text('{"prompt": "p", "chosen": "a", "rejected": "b", "chosen": "c"}\n')
    assert "'chosen' stands twice" in refused(path)


def test_a_bomb_in_a_reward(tmp_path: Path) -> None:
    """An .npz that unpacks to hundreds of megabytes where a vocabulary is expected."""
    path = tmp_path / "reward.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in ("words", "idf", "weights", "intercept"):
            header = io.BytesIO()
            import numpy as np

            np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**15,)})
            archive.writestr(f"{name}.npy", header.getvalue() + b"0" * 1000)
    with pytest.raises(InputError, match=r"reward\.npz"):
        TfidfReward.load(path)


@pytest.mark.parametrize("place", [8, 16])
def test_counts_of_a_gguf_file_are_compared_with_its_size(place: int, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF\x03\0\0\0" + b"\0" * (place - 8) + (2**61).to_bytes(8, "little") + b"\0" * 100)
    with pytest.raises(gguf_header.GGUFError, match="do not fit into the file"):
        gguf_header.read(path)

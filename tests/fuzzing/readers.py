"""The readers that are fuzzed, with valid files to begin from."""

from __future__ import annotations

import bz2
import contextlib
import csv
import functools
import gzip
import hashlib
import io
import json
import lzma
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import preference_samples
import pyarrow as pa

import objectives
from analysis import records
from fuzzing.judging import Reader
from fuzzing.mutations import BINARY, TEXT, YAML
from llm_runs import benchmarks, data, gguf_header, labelling, rewards, sampling, saved_batches, strict, texts
from llm_runs.config import DataConfig, GuardsConfig, RunConfig
from llm_runs.data import prompts
from llm_runs.data.problems import PreferenceFileError
from llm_runs.errors import InputError
from llm_runs.examples import TokenPair, TokenSample
from llm_runs.models import tiny_random
from llm_runs.sweeps.spec import SweepConfig
from llm_runs.watch import Watch
from toy_bandits.errors import BanditError
from toy_bandits.worlds import registry as worlds

ROOT = Path(__file__).parents[2]
_ROWS = 5


def lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _plain() -> list[dict[str, Any]]:
    return [
        {"prompt": f"Wie war Film {i}? ü", "chosen": f" good {i}\nthen", "rejected": f" bad, {i}", "chosen_score": i + 0.5, "id": f"p{i}"}
        for i in range(_ROWS)
    ]  # fmt: skip


# -- preference files --------------------------------------------------------------------------------------------


@functools.cache
def tokenizer() -> Any:
    return tiny_random(["a good film and a bad film"], vocabulary=300)[1]


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        yield Path(name)


def load_preferences(path: Path, folder: Path, **config: Any) -> list[tuple[str, str, str]]:
    """All pairs as texts, through everything that `run` does with one's own data."""
    # Nearly every prompt is held out or none, by hash; with .5 both sides have some for the seeds here.
    given = DataConfig(preferences=str(path), held_out_fraction=0.5, **config)
    quiet = Watch(GuardsConfig(round_trip="ignore"))
    loaded = data.load(given, tokenizer(), 10_000, folder=folder, seed=0, say=lambda line: None, watch=quiet)
    return [(p.prompt, p.chosen, p.rejected) for side in (loaded.training, loaded.held_out) for p in side]


def _read_preferences(path: Path) -> list[tuple[str, str, str]]:
    with _folder() as folder:
        return load_preferences(path, folder)


def _nothing_half_imported(seed: bytes, expected: Callable[[], list[Any]]) -> Callable[[Path], None]:
    """After a refusal, the corrected file is read whole in the same folder: nothing of the damaged one is left."""
    draw = random.Random(0)

    def check(path: Path) -> None:
        if draw.random() > 0.02:
            return
        damaged = path.read_bytes()
        with _folder() as folder:
            with contextlib.suppress(PreferenceFileError):
                load_preferences(path, folder)
            path.write_bytes(seed)
            found = load_preferences(path, folder)
        path.write_bytes(damaged)
        assert sorted(found) == sorted(expected()), "pairs of the damaged file are left"

    return check


def _texts_are_of_the_file(path: Path, found: list[tuple[str, str, str]]) -> None:
    """By a reading of its own, which knows nothing of formats: every text that was read stands in the file as a JSON string, and no line
    that has a prompt, chosen and rejected was passed over or changed."""
    rows = [json.loads(line) for line in path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
    wanted = [tuple(row[key] for key in ("prompt", "chosen", "rejected")) for row in rows]
    assert sorted(found) == sorted(wanted)


def _preferences(
    name: str,
    file: str,
    content: bytes,
    kinds: Any = TEXT,
    check: Callable[[Path, Any], None] = lambda path, found: None,
    more: list[tuple[str, bytes]] | None = None,
) -> Reader:
    expected = functools.cache(lambda: _in_a_file(file, content))
    # 8 ms a mutant: all ten thousand for the ways in which files are stored, 3,000 for the forms of the records in them.
    weight = 1.0 if name in ("jsonl", "json", "csv", "parquet", "compressed") else 0.3
    return Reader(
        name, [(file, content), *(more or [])], kinds, _read_preferences, (PreferenceFileError,), check,
        _nothing_half_imported(content, expected) if not more else lambda path: None, weight=weight,
    )  # fmt: skip


def _in_a_file(name: str, content: bytes) -> list[tuple[str, str, str]]:
    with _folder() as folder:
        (folder / name).write_bytes(content)
        return load_preferences(folder / name, folder / "data")


def _csv(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _parquet(rows: list[dict[str, Any]], **options: Any) -> bytes:
    buffer = io.BytesIO()
    pd.DataFrame(rows).to_parquet(buffer, index=False, **options)
    return buffer.getvalue()


def _zstd(content: bytes) -> bytes:
    return pa.compress(content, codec="zstd", asbytes=True)  # type: ignore[no-any-return]


def preference_readers() -> list[Reader]:
    plain = _plain()
    chat = [
        {"prompt": [{"role": "user", "content": f"Ask {i}"}], "chosen": [{"role": "assistant", "content": "Yes."}],
         "rejected": [{"role": "assistant", "content": f"No {i}."}]} for i in range(_ROWS)
    ]  # fmt: skip
    unpaired = [{"prompt": f"p {i // 2}", "completion": f"c {i}", "label": bool(i % 2)} for i in range(2 * _ROWS)]
    shp = [
        {"history": f"post {i}", "human_ref_A": f"A {i}", "human_ref_B": f"B {i}", "labels": i % 2,
         "score_A": 3, "score_B": 2, "score_ratio": 1.5}
        for i in range(_ROWS)
    ]  # fmt: skip
    scored = [{"prompt": f"p {i}", "completions": ["a", "b", "c"], "scores": [1, 2.5, -3]} for i in range(_ROWS)]
    jsonl = lines(plain)
    return [
        _preferences("jsonl", "pairs.jsonl", jsonl, check=_texts_are_of_the_file),
        _preferences("json", "pairs.json", json.dumps(plain, indent=1).encode()),
        _preferences("csv", "pairs.csv", _csv(plain), more=[("pairs.tsv", _csv(plain, "\t"))]),
        _preferences("parquet", "pairs.parquet", _parquet(plain), BINARY, more=[
            ("plain.parquet", _parquet(plain, compression=None, use_dictionary=False)), ("nested.parquet", _parquet(chat)),
        ]),
        _preferences("compressed", "pairs.jsonl.gz", gzip.compress(jsonl), BINARY, more=[
            ("pairs.jsonl.bz2", bz2.compress(jsonl)), ("pairs.jsonl.xz", lzma.compress(jsonl)), ("pairs.jsonl.zst", _zstd(jsonl)),
        ]),
        _preferences("conversations", "chat.jsonl", lines(chat)),
        _preferences("hh_rlhf", "hh.jsonl", lines(preference_samples.hh_rlhf(_ROWS))),
        _preferences("ultrafeedback", "ultra.jsonl", lines(preference_samples.ultrafeedback(_ROWS))),
        _preferences("candidates", "scored.jsonl", lines(scored)),
        _preferences("kto", "kto.jsonl", lines(unpaired)),
        _preferences("shp", "shp.jsonl", lines(shp)),
        _folders(jsonl),
        Reader("prompts", [("prompts.jsonl", lines([{"prompt": row["prompt"]} for row in plain]))], TEXT,
               lambda path: prompts.read(str(path), tokenizer(), 10_000, DataConfig().reading), (PreferenceFileError,)),
    ]  # fmt: skip


def _folders(jsonl: bytes) -> Reader:
    """A folder of two parts, one of them damaged; and one that `datasets` saved, any of whose files is damaged."""

    def read(path: Path) -> Any:
        with _folder() as folder:
            (folder / "pairs").mkdir()
            (folder / "pairs" / "train-1.jsonl").write_bytes(lines(_plain()[:2]))
            shutil.copy(path, folder / "pairs" / path.name)
            return load_preferences(folder / "pairs", folder / "data")

    return Reader("folder", [("train-2.jsonl", jsonl)], TEXT, read, (PreferenceFileError,))


def saved_dataset() -> Reader:
    """A folder that `datasets` saved, any of whose files is damaged."""
    import datasets

    with _folder() as folder:
        datasets.Dataset.from_list(_plain()).save_to_disk(str(folder / "saved"))
        whole = [(path.name, path.read_bytes()) for path in sorted((folder / "saved").iterdir())]

    def read(path: Path) -> Any:
        with _folder() as folder:
            (folder / "saved").mkdir()
            for name, content in whole:
                (folder / "saved" / name).write_bytes(path.read_bytes() if name == path.name else content)
            return load_preferences(folder / "saved", folder / "data")

    return Reader("saved_dataset", whole, BINARY, read, (PreferenceFileError,), names_file=False, weight=0.25)


# -- settings ----------------------------------------------------------------------------------------------------


def _shipped(folder: str, longest: int = 10_000) -> list[tuple[str, bytes]]:
    paths = sorted((ROOT / folder).glob("*.yaml"))
    return [(path.name, content) for path in paths if len(content := path.read_bytes()) < longest]


def _is_a_config(path: Path, config: RunConfig) -> None:
    """What was read is written out and read again to the same."""
    assert strict.build(RunConfig, config.to_dict(), "") == config


def setting_readers() -> list[Reader]:
    def sweep(path: Path) -> Any:
        shutil.copy(ROOT / "llm_runs/configs/tiny.yaml", path.parent / "beside.yaml")
        return SweepConfig.load(path)

    seeds = []
    for name, content in _shipped("toy_bandits/worlds/data"):
        head, mark, rest = content.partition(b"\nworlds:")
        parts = rest.split(b"\n  ")
        entries = [i for i, part in enumerate(parts) if part[:1].isdigit()]
        seeds.append((name, head + mark + b"\n  ".join(parts[: entries[2]] if len(entries) > 2 else parts)))
    labels = [objectives.get(name).label for name in ("dpo", "ipo", "simpo", "kto", "exo_pref", "slic_hf")]
    labels += ["maxpo(beta=0.1, temperature='auto', tokens='full')", "dpo(beta=0.1) + forward_kl(weight=0.1)"]
    return [
        Reader("configs", _shipped("llm_runs/configs"), YAML, RunConfig.load, (InputError,), _is_a_config),
        Reader("sweeps", _shipped("llm_runs/configs/sweeps"), YAML, sweep, (InputError,)),
        Reader("worlds", seeds, YAML, worlds.load_file, (BanditError, objectives.ObjectiveError), weight=1.0),
        Reader("objectives", [("label.txt", label.encode()) for label in labels], TEXT,
               lambda path: objectives.parse(path.read_text(encoding="utf-8", errors="replace")),
               (objectives.ObjectiveError,), names_file=False),
    ]  # fmt: skip


# -- benchmarks --------------------------------------------------------------------------------------------------

_TASK = """task: fuzzed
dataset_path: json
dataset_kwargs:
  data_files: {test: QUESTIONS}
test_split: test
output_type: multiple_choice
doc_to_text: "{{query}}"
doc_to_choice: "{{choices}}"
doc_to_target: gold
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
metadata: {version: 1.0}
"""
_QUESTIONS = [{"query": f"q {i}", "choices": ["a", "b"], "gold": i % 2} for i in range(3)]


class _NoTasks:
    all_tasks: tuple[str, ...] = ()


def task_reader() -> Reader:
    """Task files of lm-eval. Its own thousands of tasks, among which a name that is not found is looked for, are left out: 20 s a look."""
    plain, questions = benchmarks._manager, Path(tempfile.mkdtemp(prefix="fuzz-")) / "questions.jsonl"
    questions.write_bytes(lines(_QUESTIONS))

    def manager(include: Any, *, defaults: bool = False) -> Any:
        return _NoTasks() if defaults else plain(include)

    def read(path: Path) -> None:
        benchmarks._manager = manager
        with _folder() as folder:
            shutil.copy(path, folder / path.name)
            try:
                benchmarks.check(["fuzzed"], folder)
            finally:
                benchmarks._manager = plain

    seed = _TASK.replace("QUESTIONS", str(questions)).encode()
    return Reader("lm_eval_tasks", [("fuzzed.yaml", seed)], YAML, read, (InputError,), names_file=False, weight=0.1)


def question_reader() -> Reader:
    return Reader("questions", [("own.jsonl", lines(_QUESTIONS))], TEXT, benchmarks._jsonl_task, (InputError,))


# -- records and other files of our own --------------------------------------------------------------------------


def record_reader() -> Reader:
    """A record with one damaged file; every other mutant of a table has the checksum that belongs to it, so that it is really read."""
    frame = pd.DataFrame({"step": [1, 2], "name": ["loss", "loss"], "value": [0.5, 0.25]})
    with _folder() as folder:
        records.write_run(
            folder, kind="llm", id="fuzz/1", config={"a": [1, {"b": 2.0}]}, seeds={"data": 0}, tables={"metrics": frame}
        )
        whole = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".json", ".parquet")}
    manifest = json.loads(whole["run.json"])
    del manifest[
        "sha256"
    ]  # its own checksum, which earlier versions did not write: it would hide all that comes after it
    whole["run.json"] = json.dumps(manifest, indent=2).encode()
    draw = random.Random(0)

    def read(path: Path) -> Any:
        files = whole | {path.name: path.read_bytes()}
        if path.suffix == ".parquet" and draw.random() < 0.5:
            old, new = (hashlib.sha256(content["metrics.parquet"]).hexdigest().encode() for content in (whole, files))
            files["run.json"] = whole["run.json"].replace(old, new)
        with _folder() as folder:
            for name, content in files.items():
                (folder / name).write_bytes(content)
            found, skipped = records.find_runs(folder)
            assert len(found) + len(skipped) == 1, "a record that is neither read nor reported"
            run = records.read_run(folder)
            return {name: run.table(name) for name in run.tables}, files["run.json"] == whole["run.json"]

    def check(path: Path, found: Any) -> None:
        tables, checksums_are_whole = found
        if checksums_are_whole:
            pd.testing.assert_frame_equal(tables["metrics"], frame)

    return Reader(
        "records", list(whole.items()), [*TEXT, *BINARY], read, (records.RecordError,), check, names_file=False
    )


def own_readers() -> list[Reader]:
    pair = TokenPair(
        (1, 2), (3,), (4, 5), "p", "c", "r", id="0", chosen_reward=1.0, rejected_reward=0.5, probability=0.7
    )
    sample = TokenSample((1, 2), (3,), "p", "c", logp=-1.5, reward=0.5)
    with _folder() as folder:
        pairs = labelling.write_pairs(folder / "pairs.jsonl", [pair] * 3).read_bytes()
        samples = sampling.write_samples(folder / "samples.jsonl", [sample] * 3).read_bytes()
        reward_texts = [texts.Text(f"good nice {i}", 1) for i in range(9)] + [
            texts.Text(f"bad ugly {i}", 0) for i in range(9)
        ]
        rewards.TfidfReward.fit(reward_texts, RunConfig().reward).save(folder / "reward.npz")
        reward = (folder / "reward.npz").read_bytes()
        import torch

        batch = saved_batches.save_batch(folder, {"a": torch.ones(3)}, {"pairs": {0: pair}}, {"step": 1, "reason": "x"})
        saved, tensors = batch.read_bytes(), batch.with_suffix(".safetensors").read_bytes()
    review = lines([{"text": f"a film {i}", "label": i % 2} for i in range(4)])

    def shown(path: Path) -> str:
        other = path.with_suffix(".json" if path.suffix == ".safetensors" else ".safetensors")
        other.write_bytes(saved if other.suffix == ".json" else tensors)
        try:
            return saved_batches.describe(path)
        finally:
            other.unlink()

    return [
        Reader("pairs", [("pairs.jsonl", pairs)], TEXT, labelling.read_pairs, (InputError,)),
        Reader("samples", [("samples.jsonl", samples)], TEXT, sampling.read_samples, (InputError,)),
        Reader("texts", [("texts.jsonl", review)], TEXT, lambda path: texts.read(str(path)), (InputError,)),
        Reader("rewards", [("reward.npz", reward)], BINARY, rewards.TfidfReward.load, (InputError,)),
        Reader("batches", [("batch.json", saved), ("batch.safetensors", tensors)], [*TEXT, *BINARY], shown, (InputError,),
               names_file=False),
    ]  # fmt: skip


def gguf_reader() -> Reader:
    """Headers: a model's metadata with a vocabulary, and two tensors."""
    import gguf
    import numpy as np

    with _folder() as folder:
        writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
        writer.add_context_length(256)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_token_list(["a", "b", "ü"])
        writer.add_token_types([1, 1, 3])
        writer.add_bos_token_id(1)
        writer.add_chat_template("{{ messages }}")
        writer.add_tensor("token_embd.weight", np.ones((3, 4), dtype=np.float32))
        writer.add_tensor("output_norm.weight", np.ones(4, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        content = (folder / "model.gguf").read_bytes()
    return Reader("gguf", [("model.gguf", content)], BINARY, gguf_header.read, (InputError,))


FAMILIES: dict[str, Callable[[], list[Reader]]] = {
    "preferences": preference_readers,
    "saved_dataset": lambda: [saved_dataset()],
    "settings": setting_readers,
    "tasks": lambda: [task_reader()],
    "questions": lambda: [question_reader()],
    "records": lambda: [record_reader()],
    "own": own_readers,
    "gguf": lambda: [gguf_reader()],
}


def every(names: tuple[str, ...] = ()) -> list[Reader]:
    """The readers, or those with these names (of readers or families)."""
    found = []
    for family, make in FAMILIES.items():
        found += [reader for reader in make() if not names or family in names or reader.name in names]
    return found

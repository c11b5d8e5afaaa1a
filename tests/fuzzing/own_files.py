"""Files that a run leaves for itself: pairs, samples, rewards, batches; texts of one's own; headers of GGUF models."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from pathlib import Path

import numpy as np
import torch

from fuzzing import seeds
from fuzzing.judging import Reader
from fuzzing.mutations import BINARY, TEXT
from fuzzing.seeds import lines
from llm_runs import checkpoints, gguf_header, labelling, rewards, sampling, saved_batches, texts
from llm_runs.config import RunConfig
from llm_runs.data.artefact import summary
from llm_runs.data.store import Store, Writer
from llm_runs.data.stored import PlacedPair, StoredPairs, pair_kind
from llm_runs.errors import InputError
from llm_runs.examples import TokenPair, TokenSample
from llm_runs.experiment import kept_config
from llm_runs.reference import ReferenceLogps, ScoredCompletion, sequence_digest
from llm_runs.sweeps.states import Folder, State, Task


def own_readers() -> list[Reader]:
    pair = TokenPair(
        (1, 2), (3,), (4, 5), "p", "c", "r", id="0", chosen_reward=1.0, rejected_reward=0.5, probability=0.7
    )
    sample = TokenSample((1, 2), (3,), "p", "c", logp=-1.5, reward=0.5)
    with seeds.folder() as folder:
        pairs = labelling.write_pairs(folder / "pairs.jsonl", [pair] * 3).read_bytes()
        samples = sampling.write_samples(folder / "samples.jsonl", [sample] * 3).read_bytes()
        reward_texts = [texts.Text(f"good nice {i}", 1) for i in range(9)] + [
            texts.Text(f"bad ugly {i}", 0) for i in range(9)
        ]
        rewards.TfidfReward.fit(reward_texts, RunConfig().reward).save(folder / "reward.npz")
        reward = (folder / "reward.npz").read_bytes()
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


def store_reader() -> Reader:
    """Pairs on disk and which of them are trained on, with one damaged file; every other manifest lacks its own checksum, as earlier ones
    did, so that it is looked into. Arrow files are not read where their checksum is wrong."""
    pairs = [TokenPair((1, n), (2, 3), (4,), f"p {n}", "c", "r", str(n), chosen_reward=n / 7) for n in range(40)]
    with seeds.folder() as folder:
        writer = Writer(folder / "given", "key", pair_kind())
        for pair in pairs:
            writer.append(PlacedPair(pair, f"line {pair.id}"))
        writer.end_part({"count": len(pairs)}, complete=True)
        StoredPairs(Store(folder / "given", pair_kind()), np.arange(0, len(pairs), 2)).save(folder / "training.json")
        whole = {path.name: path.read_bytes() for path in [*folder.glob("given/*"), *folder.glob("training.*")]}

    def read(path: Path) -> list[TokenPair]:
        content = path.read_bytes()
        if path.name == "manifest.json" and zlib.crc32(content) % 2:
            content = re.sub(rb',\s*"sha256": "\w+"\s*}\s*$', b"}", content)
        with seeds.folder() as folder:
            (folder / "given").mkdir()
            for name, kept in whole.items():
                below = folder if name.startswith("training") else folder / "given"
                (below / name).write_bytes(content if name == path.name else kept)
            return list(StoredPairs.open(folder / "training.json"))

    def check(path: Path, found: list[TokenPair]) -> None:
        assert found == pairs[::2]

    files = list(whole.items())
    return Reader("stored_pairs", files, [*TEXT, *BINARY], read, (InputError,), check, names_file=False)


def reference_reader() -> Reader:
    """What is kept of the reference, with one damaged file."""
    rows = []
    for number in range(20):
        logps = torch.tensor([-0.5, -number / 7])
        digest = sequence_digest((1, number), (2, 3))
        rows.append(ScoredCompletion(digest, logps, logps.sum(), None))
    key = {"model": "m", "top_k": 2}
    with seeds.folder() as folder:
        ReferenceLogps.of(key, rows).save(folder)
        places = [path for path in folder.rglob("*") if path.is_file()]
        whole = {"-".join(path.relative_to(folder).parts): path.read_bytes() for path in places}

    def read(path: Path) -> ReferenceLogps:
        with seeds.folder() as folder:
            (folder / "rows").mkdir()
            for name, kept in whole.items():
                (folder / name.replace("rows-", "rows/")).write_bytes(path.read_bytes() if name == path.name else kept)
            found = ReferenceLogps.load(folder, key)
            assert [found.logp((1, number), (2, 3)) for number in range(20)] == [float(row.logp) for row in rows]
            return found

    files = list(whole.items())
    return Reader("reference_logps", files, [*TEXT, *BINARY], read, (InputError,), names_file=False)


def kept_reader() -> Reader:
    """Small files that commands keep for themselves: a folder's configuration, a sweep's plan and states, a checkpoint's checksums, what
    samples were drawn with, the report on data."""
    task = Task("reference", "the reference", "noisy", "0" * 64, parts=("noisy",))
    sources = [
        dict.fromkeys(("source", "kind", "format", "fingerprint"), "x") | {"records": 3, "pairs": 2, "left_out": {}}
    ]
    config = {"config": RunConfig().to_dict(), "files": {"a.jsonl": "0" * 64}, "stats": {"a.jsonl": [1, 2]}}
    with seeds.folder() as folder:
        Folder(folder).write_plan("grid", [task], locks=True)
        Folder(folder).set_state("reference", State("done", task.key, "said", parts=("noisy",)))
        (folder / "model.safetensors").write_bytes(b"weights")
        checkpoints.seal(folder)
        whole = {
            "config.json": json.dumps(config, indent=1).encode(),
            "plan.json": (folder / "sweep" / "plan.json").read_bytes(),
            "reference.json": (folder / "sweep" / "tasks" / "reference.json").read_bytes(),
            checkpoints.SEAL: json.dumps({"model.safetensors": hashlib.sha256(b"weights").hexdigest()}).encode(),
            "samples.json": json.dumps({"engine": "transformers", "seed": 0, "samples": 8}, indent=1).encode(),
            "report.json": json.dumps({"sources": sources, "rendering": {}, "truncation": {}}, indent=1).encode(),
        }

    def read(path: Path) -> object:
        with seeds.folder() as folder:
            place = {"plan.json": folder / "sweep", "reference.json": folder / "sweep" / "tasks"}.get(path.name, folder)
            place.mkdir(parents=True, exist_ok=True)
            (place / path.name).write_bytes(path.read_bytes())
            (folder / "model.safetensors").write_bytes(b"weights")
            if path.name == "config.json":
                return kept_config(folder)
            if path.name == "plan.json":
                return Folder(folder).plan()
            if path.name == "reference.json":
                return Folder(folder).done(task)
            if path.name == checkpoints.SEAL:
                return checkpoints.is_whole(folder)
            return summary(folder) if path.name == "report.json" else sampling.provenance(folder / "samples.jsonl")

    def check(path: Path, found: object) -> None:
        if path.name == checkpoints.SEAL and found:
            right = json.loads(whole[path.name]).items()
            assert json.loads(path.read_bytes()).items() <= right, "a checkpoint of other weights is taken for whole"

    return Reader("kept_files", list(whole.items()), TEXT, read, (InputError,), check)


def gguf_reader() -> Reader:
    """Headers: a model's metadata with a vocabulary, and two tensors."""
    import gguf

    with seeds.folder() as folder:
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

"""Records, and what other programs logged or measured."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import records
from analysis.importing import event_files, lm_eval_results, trainer_state
from fuzzing import seeds
from fuzzing.judging import Reader
from fuzzing.mutations import BINARY, TEXT
from fuzzing.seeds import lines


def _every_other(content: bytes) -> bool:
    """Of half of all contents, always the same."""
    return zlib.crc32(content) % 2 == 0


def record_reader() -> Reader:
    """A record with one damaged file; every other mutant of a table has the checksum that belongs to it, so that it is really read."""
    frame = pd.DataFrame({"step": [1, 2], "name": ["loss", "loss"], "value": [0.5, 0.25]})
    with seeds.folder() as folder:
        records.write_run(
            folder, kind="llm", id="fuzz/1", config={"a": [1, {"b": 2.0}]}, seeds={"data": 0}, tables={"metrics": frame}
        )
        whole = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".json", ".parquet")}
    manifest = json.loads(whole["run.json"])
    # Its own checksum, which earlier versions did not write, would hide all that comes after it.
    del manifest["sha256"]
    whole["run.json"] = json.dumps(manifest, indent=2).encode()

    def read(path: Path) -> Any:
        files = whole | {path.name: path.read_bytes()}
        if path.suffix == ".parquet" and _every_other(files[path.name]):
            old, new = (hashlib.sha256(content["metrics.parquet"]).hexdigest().encode() for content in (whole, files))
            files["run.json"] = whole["run.json"].replace(old, new)
        with seeds.folder() as folder:
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


def _events(scalars: dict[str, Any]) -> bytes:
    """An event file: its version, and of each tag three steps."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    events = [Event(wall_time=0.0, file_version="brain.Event:2")]
    for step in (1, 2, 3):
        values = [Summary.Value(tag=tag, **value) for tag, value in scalars.items()]
        events.append(Event(step=step, wall_time=float(step), summary=Summary(value=values)))
    return b"".join(map(_record, (event.SerializeToString() for event in events)))


def _record(data: bytes) -> bytes:
    """A record of an event file: length, content, and a checksum of each."""
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))


def _with_right_checksums(content: bytes) -> bytes:
    """An event file whose records have the checksums that belong to them, as far as their lengths lead to the next."""
    whole = b""
    while len(content) >= 16 and (length := struct.unpack("<Q", content[:8])[0]) <= len(content) - 16:
        whole += _record(content[12 : 12 + length])
        content = content[16 + length :]
    return whole + content


def event_reader() -> Reader:
    """Event files of TensorBoard, with scalars of both kinds; half of the mutants have right checksums, so that they are looked into."""
    from tensorboard.compat.proto.summary_pb2 import SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.compat.proto.types_pb2 import DT_FLOAT

    scalar = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="scalars"))
    half = TensorProto(dtype=DT_FLOAT, tensor_shape=TensorShapeProto(), float_val=[0.5])
    plain = {"train/loss": {"simple_value": 0.25}, "train/epoch": {"simple_value": 1.0}}
    whole = [
        ("events.out.tfevents.1", _events(plain)),
        ("events.out.tfevents.2", _events({"loss": {"tensor": half, "metadata": scalar}})),
    ]

    def read(path: Path) -> Any:
        damaged = path.read_bytes()
        if looked_into := _every_other(damaged):
            path.write_bytes(_with_right_checksums(damaged))
        return event_files.read(path).tables["metrics"], looked_into

    def check(path: Path, found: Any) -> None:
        table, looked_into = found
        if not looked_into:  # then every value that was read is one that was written
            rows = set(table[["step", "name", "value"]].itertuples(index=False, name=None))
            assert rows <= {
                (step, name, value) for step in (1, 2, 3) for name, value in (("loss", 0.25), ("tensorboard/loss", 0.5))
            }

    return Reader("event_files", whole, BINARY, read, (records.RecordError,), check)


def import_readers() -> list[Reader]:
    """Results of lm-eval with the scores of their items, and the Trainer's log: whichever of the files is damaged."""
    state = {
        "global_step": 3,
        "log_history": [{"step": i, "epoch": 0.1, "loss": 1.0 / i, "rewards/margins": 0.5} for i in (1, 2, 3)],
    }
    stamp = "2026-01-01T00-00-00.000000"
    scores = {"alias": "own", "acc,none": 0.5, "acc_stderr,none": 0.1}
    results = {
        "results": {"own": scores},
        "versions": {"own": 1},
        "n-shot": {"own": 0},
        "n-samples": {"own": {"effective": 4}},
    }
    results |= {"model_name": "some/model", "date": 1.5}
    items = [
        {
            "doc_id": i,
            "doc": {"q": i},
            "target": "a",
            "filter": "none",
            "metrics": ["acc"],
            "acc": float(i % 2),
            "doc_hash": str(i),
        }
        for i in range(4)
    ]
    whole = {
        f"results_{stamp}.json": json.dumps(results, indent=1).encode(),
        f"samples_own_{stamp}.jsonl": lines(items),
    }

    def read_results(path: Path) -> Any:
        with seeds.folder() as folder:
            for name, content in whole.items():
                (folder / name).write_bytes(path.read_bytes() if name == path.name else content)
            return lm_eval_results.read(folder / f"results_{stamp}.json").tables

    log = [("trainer_state.json", json.dumps(state, indent=1).encode())]
    return [
        Reader("lm_eval_results", list(whole.items()), TEXT, read_results, (records.RecordError,), names_file=False),
        Reader("trainer_states", log, TEXT, lambda path: trainer_state.read(path).tables, (records.RecordError,)),
    ]

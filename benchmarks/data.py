"""Preference files of any size: memory and speed of preparing them, of reading pairs at random, and of training on them.

    python -m benchmarks data --out results/                                  10,000, 100,000 and a million pairs
    python -m benchmarks data --out results/ --pairs 10000000                 ten million: 9 GB of disk, two hours of a core
    python -m benchmarks data --out results/ --pairs 1000000 --format parquet

Made-up pairs of texts (about 39 tokens of prompt, 2 x 47 of completions) are written to a file, streamed; then, each in a process
of its own: prepared as `run` prepares one's own preferences (read, checked, tokenised, stored, looked through for duplicates,
split, reported on), read at random, and trained on with simpo. Memory is what the process itself holds (anonymous pages, looked at every
5 ms) beyond what it held before; pages of mapped files belong to the system, which takes them back. Each size has its bound.
Every measurement is kept in OUT/unfinished as soon as it is made. 1 if a bound is missed.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
from tqdm.auto import tqdm

import objectives
from analysis.records import atomic_write, code_version, write_run
from benchmarks.kept import Kept
from benchmarks.own_process import EndedEarly, in_a_process
from llm_runs import data, models, texts, training
from llm_runs.config import DataConfig, ReadingConfig, TrainingConfig
from llm_runs.data.stored import StoredPairs

SIZES = (10_000, 100_000, 1_000_000)
FIXED, A_PAIR = 400e6, 40  # bytes: the bound on the memory of a process is FIXED + A_PAIR for each pair
_READS = 20_000
_STEPS = 10
_WORDS = 5000  # different ones


@dataclass(frozen=True)
class Measured:
    """Of one process."""

    added_bytes: int  # the most that it held beyond what it held before
    seconds: float  # of CPU
    count: int  # pairs that were prepared, read, or trained on


def write_source(path: Path, count: int) -> None:
    """Made-up pairs, of which one in a hundred repeats an earlier one; streamed, so that any number can be written."""
    if path.suffix == ".parquet":
        schema = pa.schema([(name, pa.string()) for name in ("prompt", "chosen", "rejected")])

        def stream(file: Any) -> None:
            with pa.parquet.ParquetWriter(file, schema) as writer:
                rows: list[dict[str, str]] = []
                for row in _made_up(count):
                    rows.append(row)
                    if len(rows) == 10_000:
                        writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))
                        rows.clear()
                if rows:
                    writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))

        atomic_write(path, stream)
        return
    atomic_write(path, lambda file: file.writelines((json.dumps(row) + "\n").encode() for row in _made_up(count)))


def _made_up(count: int) -> Iterator[dict[str, str]]:
    draw = random.Random(0)
    words = [text.text.split()[0].lower() + str(number % 97) for number, text in enumerate(texts.synthetic(_WORDS))]
    for number in tqdm(range(count), desc="writing pairs", unit="pair", leave=False, disable=None):
        seed = number if number % 100 else draw.randrange(number + 1)
        of_pair = random.Random(seed)
        prompt = f"Review {seed}: " + " ".join(of_pair.choices(words, k=8))
        sides = [" " + " ".join(of_pair.choices(words, k=of_pair.randrange(8, 18))) for _ in range(2)]
        yield {"prompt": prompt, "chosen": sides[0] + " good.", "rejected": sides[1] + " bad."}


# -- in processes of their own -------------------------------------------------------------------------------------


def prepare(source: Path, folder: Path) -> int:
    """What a run does with one's own preferences; returns how many pairs there are."""
    _, tokenizer = models.tiny_random((text.text for text in texts.synthetic(500)), 0)
    config = DataConfig(preferences=str(source), reading=ReadingConfig(duplicates="drop"))
    loaded = data.load(config, tokenizer, 512, folder=folder / "data", seed=0, say=lambda words: None)
    data.save(loaded, config, folder / "data", folder / "training.json", folder / "held_out.json")
    return len(loaded.training) + len(loaded.held_out)


def read(source: Path, folder: Path) -> int:
    """Pairs at random."""
    pairs = StoredPairs.open(folder / "training.json")
    places = np.random.default_rng(0).integers(0, len(pairs), _READS)
    assert sum(len(pairs[int(place)].chosen_ids) for place in places) > 0
    return _READS


def train(source: Path, folder: Path) -> int:
    """A few steps on the stored pairs, in a random order of all of them."""
    pairs = StoredPairs.open(folder / "training.json")
    model, _ = models.tiny_random((text.text for text in texts.synthetic(500)), 0)
    config = TrainingConfig(steps=_STEPS, batch_size=16)
    training.train(model, objectives.get("simpo"), pairs, config=config, seed=0, out=folder / "training")
    return _STEPS * config.batch_size


PARTS: dict[str, Callable[[Path, Path], int]] = {"prepare": prepare, "read": read, "train": train}


class _Watch:
    """Looks at the process's own memory, in a thread."""

    def __init__(self) -> None:
        self.before = self.peak = _anonymous()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._end.wait(0.005):
            self.peak = max(self.peak, _anonymous())

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self.peak = max(self.peak, _anonymous())


def _anonymous() -> int:
    """Bytes of memory that are this process's own."""
    return 1024 * int(Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0])


def _watched(part: str, source: Path, folder: Path) -> dict[str, Any]:
    start = time.process_time()
    with _Watch() as watch:
        count = PARTS[part](source, folder)
    return asdict(Measured(watch.peak - watch.before, time.process_time() - start, count))


def _measured(part: str, source: Path, folder: Path) -> Any:
    try:
        return in_a_process(_watched, part, source, folder, libraries=["benchmarks.data"])
    except EndedEarly as error:
        raise SystemExit(f"error: {part}: {error}") from None


def main(given: list[str] | None = None) -> int:
    """Measure, print memory beside its bound, write a record; 1 if a bound is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="python -m benchmarks data"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the record; the data are made in it, and deleted"
    )
    parser.add_argument("--pairs", type=int, nargs="+", default=list(SIZES), metavar="N")
    parser.add_argument("--format", choices=("jsonl", "parquet"), default="jsonl", help="of the file")
    arguments = parser.parse_args(sys.argv[1:] if given is None else given)
    if min(arguments.pairs) < 100:
        print("error: --pairs must be at least 100", file=sys.stderr)
        return 2
    settings = {"pairs": arguments.pairs, "format": arguments.format}
    kept = Kept(arguments.out / "unfinished", {"code": code_version(), "format": arguments.format})
    rows = []
    for count in arguments.pairs:
        work = arguments.out / "work"
        source = work / f"{count}.{arguments.format}"
        names = [f"{part}, {count} pairs" for part in PARTS]
        if not all(kept.has(name) for name in names):
            shutil.rmtree(work, ignore_errors=True)
            kept.forget(names)
            write_source(source, count)
        for part, name in zip(PARTS, names, strict=True):
            found = Measured(**kept.get(name, partial(_measured, part, source, work)))
            rows.append({"pairs": count, "part": part, "bound_bytes": FIXED + A_PAIR * count, **asdict(found)})
        shutil.rmtree(work, ignore_errors=True)
    table = pd.DataFrame(rows)
    missed = report(table)
    write_run(
        arguments.out,
        kind="benchmark",
        id="benchmark/data",
        config=settings,
        seeds={"data": 0},
        tables={"results": table},
        extra={"peak_of_children": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss},
    )
    kept.clear()
    return int(missed)


def report(table: pd.DataFrame) -> bool:
    """Print every measurement; whether a bound is missed."""
    print("      pairs  part     memory added, MB  bound     pairs a second of CPU time")
    for row in table.to_dict("records"):
        met = row["added_bytes"] <= row["bound_bytes"]
        rate = row["count"] / row["seconds"]
        bound = f"{row['bound_bytes'] / 1e6:,.0f}: {'met' if met else 'MISSED'}"
        print(f"{row['pairs']:>11,}  {row['part']:<8} {row['added_bytes'] / 1e6:>15,.0f}  {bound:<14} {rate:>12,.0f}")
    return bool((table["added_bytes"] > table["bound_bytes"]).any())


if __name__ == "__main__":
    sys.exit(main())

"""Whether hours of work in one process leave anything behind: memory, open files, threads, processes, temporary files.

    python -m benchmarks soak --hours 2 --out results/soak       repeat, then judge
    python -m benchmarks soak --out results/soak --judge         judge what an unfinished or stopped soak has so far

One process repeats, with a new seed every time, a language-model run (the steps of `quick` at the size of `tiny`: texts, reward,
fine-tuning, samples, labels, reference log-probs, two objectives on two kinds of labels with checkpoints, evaluations, records) and
bandit suites (two experiments, and two diagnostics of a card), each in a fresh folder that is deleted afterwards. After each repetition
what the process holds is a line of `OUT/rows.jsonl`. The first half warms up caches and the allocator; over the second half the slope
against time is Theil-Sen's (the median of all pairs' slopes, deaf to outliers) with its 95 % interval. Flat means: the interval's upper
end is at most 20 MB an hour for memory and 0.5 an hour for what is counted. 1 if anything is not flat, 2 if it cannot be told.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
from scipy.stats import theilslopes

from analysis.records import write_run

# What is watched, and the most that the upper end of its slope's interval may be, an hour.
BOUNDS = {
    "memory, MB": 20.0,
    "open files": 0.5,
    "threads": 0.5,
    "child processes": 0.5,
    "temporary files": 0.5,
}
FEWEST = 12  # repetitions: below, the second half's interval means nothing

_RUN = (
    "objectives=[dpo(beta=0.1), \"maxpo(beta=0.1, temperature='auto', tokens='full')\"]",
    "sft.steps=10",
    "data.reward_texts=300",
    "data.sft_texts=300",
    "training.steps=4",
    "training.save_every=2",
    "evaluation.at=[2]",
)


class Failed(Exception):
    """A repetition did not end well; the message says where its output is."""


def repetition(number: int, folder: Path, log: Path) -> None:
    """One language-model run and the bandit suites in `folder`; all they print goes to `log`, which is replaced."""
    from llm_runs.__main__ import main as llm_runs
    from toy_bandits.__main__ import main as toy_bandits

    commands = (
        (llm_runs, ["run", "tiny", "--out", f"{folder}/language_model", "--set", *_RUN, f"seed={number}"]),
        (toy_bandits, ["run", "determinism", "partial_support", "--out", f"{folder}/bandits"]),
        (
            toy_bandits,
            f"profile maxpo --only off_support determinism --compare dpo --workers 1 --out {folder}/card".split(),
        ),
    )
    with log.open("w") as output, contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        for command, arguments in commands:
            if (status := command(arguments)) != 0:
                raise Failed(f"repetition {number}: {' '.join(arguments)} ended with status {status}; see {log}")


def held(temporary: Path) -> dict[str, float]:
    """What this process holds now, by the names of `BOUNDS`; temporary files are those in `temporary`."""
    gc.collect()
    process = psutil.Process()
    return {
        "memory, MB": process.memory_info().rss / 1e6,
        "open files": process.num_fds(),
        "threads": process.num_threads(),
        "child processes": len(process.children(recursive=True)),
        "temporary files": sum(1 for _ in temporary.rglob("*")),
    }


@contextlib.contextmanager
def own_temporary_folder(folder: Path) -> Iterator[Path]:
    """Temporary files of this process and its children go to `folder`, where nobody else's are counted."""
    folder.mkdir(parents=True, exist_ok=True)
    before, set_before = os.environ.get("TMPDIR"), tempfile.tempdir
    os.environ["TMPDIR"], tempfile.tempdir = str(folder), str(folder)
    try:
        yield folder
    finally:
        tempfile.tempdir = set_before
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before


def soak(out: Path, hours: float) -> None:
    """Repeat until the hours are over, writing a row a repetition.

    Raises:
        Failed: a repetition did; the rows so far are kept.
    """
    rows = out / "rows.jsonl"
    out.mkdir(parents=True, exist_ok=True)
    if rows.exists():
        raise SystemExit(
            f"error: {rows} is there: a soak is one process from beginning to end; --judge it, or delete it"
        )
    began, number = time.monotonic(), 0
    with own_temporary_folder(out / "temporary") as temporary, rows.open("w") as lines:
        while (elapsed := time.monotonic() - began) < 3600 * hours:
            cpu = time.process_time()
            repetition(number, out / "repetition", out / "last.log")
            shutil.rmtree(out / "repetition")
            number += 1
            row = {
                "repetition": number,
                "hours": (time.monotonic() - began) / 3600,
                "wall seconds": time.monotonic() - began - elapsed,
                "CPU seconds": time.process_time() - cpu,
                **held(temporary),
            }
            lines.write(json.dumps(row) + "\n")
            lines.flush()
            print(
                f"{row['hours']:.2f} of {hours:g} hours, repetition {number}: {row['memory, MB']:.0f} MB, "
                f"{row['open files']:.0f} open files",
                file=sys.stderr,
                flush=True,
            )


def read(out: Path) -> pd.DataFrame:
    """The rows of a soak. Raises SystemExit where there are none."""
    path = out / "rows.jsonl"
    if not path.is_file():
        raise SystemExit(f"error: no soak in {out}: {path} is missing")
    return pd.DataFrame([json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")])


def judge(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a watched quantity: at the middle, at the end, its slope an hour over the second half with interval, bound, verdict.

    Args:
        rows: of `soak`, at least `FEWEST`.
    """
    half = rows.iloc[len(rows) // 2 :]
    found: list[dict[str, Any]] = []
    for name, bound in BOUNDS.items():
        slope, _, low, high = theilslopes(half[name], half["hours"], alpha=0.95)
        found.append(
            {
                "quantity": name,
                "at the middle": half[name].iloc[0],
                "at the end": half[name].iloc[-1],
                "slope an hour": slope,
                "low": low,
                "high": high,
                "bound": bound,
                "flat": bool(high <= bound),
            }
        )
    return pd.DataFrame(found)


def report(out: Path, hours: float | None) -> int:
    """Judge a soak's rows, print the verdicts, write the record; the exit status."""
    rows = read(out)
    if len(rows) < FEWEST:
        print(
            f"error: {len(rows)} repetitions in {out}: too few to tell, {FEWEST} are needed; soak longer",
            file=sys.stderr,
        )
        return 2
    verdicts, lasted = judge(rows), float(rows["hours"].iloc[-1])
    print(f"{len(rows)} repetitions in {lasted:.2f} hours; the second half, an hour:")
    for one in verdicts.to_dict("records"):
        print(
            f"  {one['quantity']}: {one['at the middle']:.6g} -> {one['at the end']:.6g}, slope {one['slope an hour']:.3g} "
            f"[{one['low']:.3g}, {one['high']:.3g}], at most {one['bound']:g}: {'flat' if one['flat'] else 'NOT FLAT'}"
        )
    write_run(
        out,
        kind="benchmark",
        id="benchmark/soak",
        config={"hours": hours, "lasted": lasted, "overrides": list(_RUN)},
        seeds={"data": 0},
        tables={"results": verdicts, "repetitions": rows},
    )
    return int(not verdicts["flat"].all())


def main(given: list[str] | None = None) -> int:
    """Soak, judge, write a record; 1 if something is not flat."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="python -m benchmarks soak"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the rows and the record")
    parser.add_argument("--hours", type=float, default=2.0, help="of wall time (default: 2)")
    parser.add_argument("--judge", action="store_true", help="only judge the rows that are there")
    arguments = parser.parse_args(sys.argv[1:] if given is None else given)
    if arguments.hours <= 0:
        print("error: --hours must be above 0", file=sys.stderr)
        return 2
    if not arguments.judge:
        try:
            soak(arguments.out, arguments.hours)
        except Failed as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    return report(arguments.out, None if arguments.judge else arguments.hours)


if __name__ == "__main__":
    sys.exit(main())

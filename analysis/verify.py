"""Does a run reproduce? `python -m analysis verify RUN`: its record's checksums, versions, data, and a part of it done again.

What is done again is the producer's to do, so it is asked, as a command of its own: `python -m toy_bandits verify` or
`python -m llm_runs verify`, whose lines are passed on.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from analysis.records import MANIFEST, RecordError, elsewhere, read_run

EXAMPLES = """\
examples:
  python -m analysis verify out/tiny/runs/dpo_beta=0.1-noisy-seed0       one run: record, data, labels, and its first two steps again
  python -m analysis verify out/tiny/runs/dpo_beta=0.1-noisy-seed0 --steps 6
  python -m analysis verify out/bandits/determinism                       solved again, every row
  python -m analysis verify out                                           every run below

Each line begins with ok, note or FAIL. Another version of a package, or another device, is a note: results may differ in the last bits.
Exit code: 0 all reproduce, 1 some do not, 2 bad input.
"""
PRODUCERS = {"bandit": "toy_bandits", "llm": "llm_runs", "llm_evaluation": "llm_runs", "llm_cost": "llm_runs"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("folder", metavar="RUN", type=Path, help=f"folder of a run ({MANIFEST}), or of many")
    parser.add_argument(
        "--steps", type=int, default=2, metavar="N", help="training steps to do again (default 2; 0: none)"
    )


def command(options: argparse.Namespace) -> bool:
    """Verify the run, or every run below the folder, and print what was found; whether all reproduce.

    Raises:
        RecordError: no run there.
    """
    folder: Path = options.folder
    if not folder.is_dir():
        raise RecordError(folder, "there is no such folder")
    folders = sorted(path.parent for path in folder.rglob(MANIFEST)) if not (folder / MANIFEST).is_file() else [folder]
    if not folders:
        raise RecordError(folder, f"no run at or below it: there is no {MANIFEST}")
    verdicts = [_verify(each, options.steps) for each in folders]
    if len(folders) > 1:
        print(f"{sum(verdicts)} of {len(folders)} runs reproduce")
    return all(verdicts)


def _verify(folder: Path, steps: int) -> bool:
    print(f"-- {folder}", flush=True)
    try:
        run = read_run(folder)
    except RecordError as error:
        print(f"FAIL record: {error}", flush=True)
        return _verdict(False)
    print(f"ok   record: {', '.join(run.tables)} and {MANIFEST} are what was written", flush=True)
    for line in elsewhere(run):
        print(f"note {line}", flush=True)
    if (run.manifest.get("code") or {}).get("dirty"):
        print("note version: the code had changes that were not committed", flush=True)
    producer = PRODUCERS.get(run.kind)
    if producer is None:
        print(f"note a record of kind {run.kind!r} is verified by its checksums only", flush=True)
        return _verdict(True)
    given = ["--steps", str(steps)] if producer == "llm_runs" else []
    done = subprocess.run([sys.executable, "-m", producer, "verify", str(folder), *given], check=False)
    if done.returncode not in (0, 1):
        print(f"FAIL python -m {producer} verify could not do it (above)", flush=True)
    return _verdict(done.returncode == 0)


def _verdict(good: bool) -> bool:
    print("reproduces" if good else "does NOT reproduce", flush=True)
    return good

"""The command: see the package's own words."""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import warnings
from pathlib import Path

import fuzzing
from fuzzing import judging, readers

ROOM = (
    6 * 2**30
)  # bytes of address space beyond what the libraries took: memory without bound ends in an error, not in the machine


def main() -> int:
    """Fuzz; 1 where something failed."""
    parser = argparse.ArgumentParser(
        description=fuzzing.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="python -m fuzzing"
    )
    parser.add_argument("--count", type=int, default=200, help="mutants a reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", nargs="+", default=[], metavar="NAME", help="readers or families; default: all")
    parser.add_argument("--out", type=Path, help="folder for mutants that failed (default: a new temporary one)")
    parser.add_argument("--again", type=Path, metavar="FOLDER", help="read a mutant that failed once more")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    if chosen.again:
        (path,) = chosen.again.iterdir()
        (reader,) = [r for r in readers.every() if r.name == chosen.again.name.rsplit("-", 2)[0]]
        print(judging.judge(reader, path)[1] or "sound")
        return 0
    out = chosen.out or Path(tempfile.mkdtemp(prefix="fuzzing-"))
    found = readers.every(tuple(chosen.readers))
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, resource.RLIM_INFINITY))
    failed = False
    for reader in found:
        outcome = judging.fuzz(reader, chosen.count, out, chosen.seed)
        print(
            f"{outcome.name}: {outcome.count:,} mutants, {outcome.read:,} read, {outcome.refused:,} refused, "
            f"{len(outcome.failures)} failed; {outcome.seconds:.0f} CPU s, {outcome.megabytes:.0f} MB",
            flush=True,
        )
        for failure in outcome.failures:
            print("  " + failure.replace("\n", "\n  "), flush=True)
        failed |= bool(outcome.failures)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

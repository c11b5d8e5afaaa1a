"""The command ``python -m analysis report``."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from analysis.records import RecordError, write_unlocked
from analysis.report.content import gather
from analysis.report.page import render

EXAMPLES = """\
examples:
  python -m analysis report out --out report.html                              everything below out/
  python -m analysis report out/bandits out/language_model --out report.html
  python -m analysis import ~/dpo/trainer_state.json --out out/imported        runs of other programs first become records
  python -m analysis report out/language_model out/imported --out report.html

One page for any browser, without a network: verdicts of the claims, profile cards, frontiers, training curves, benchmarks, samples of text,
and every run's manifest. Prompts and completions are shown where the records have them: look before you publish, or give --samples 0.
What was skipped stands at the end of the page and on the standard error.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "report",
        help="all that some records say, on one self-contained page",
        description="Write one HTML page of all runs below the folders.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="+", metavar="RUNS", help="runs, or folders of runs")
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="the page, such as report.html")
    parser.add_argument("--title", default="Preference objectives: report", help="of the page")
    parser.add_argument(
        "--samples", type=int, default=8, metavar="N", help="prompts of each run whose texts are shown (default: 8)"
    )
    parser.add_argument("--strict", action="store_true", help="end with 1 where anything was skipped or left out")


def command(options: argparse.Namespace) -> int:
    """Write the page; 0, or with ``--strict`` 1 where something is missing on it.

    Raises:
        RecordError: a folder does not exist or has no run, or the page cannot be written.
    """
    if options.out.is_dir():
        raise RecordError(options.out, "is a folder; --out is the page's file, such as report.html")
    bars: list[tqdm[Any]] = []

    def progress(what: str, total: int) -> Callable[[], object]:
        bars.append(tqdm(total=total, desc=what, leave=False, disable=None))
        return bars[-1].update

    content = gather(options.folders, options.samples, progress)
    for bar in bars:
        bar.close()
    for line in (*content.skipped, *content.left_out):
        print(line, file=sys.stderr)
    if not content.shown:
        shown = ", ".join(options.folders)
        raise RecordError(shown, "no run to report on; runs are made by toy_bandits, llm_runs and analysis import")
    again = shlex.join(["python", "-m", "analysis", "report", *options.folders, "--out", str(options.out)])
    page = render(content, options.title, again)
    write_unlocked(options.out, page)
    print(f"{options.out}: {len(content.shown)} run(s), {len(page) / 1e6:.2f} MB")
    if content.skipped or content.left_out:
        print(
            f"{len(content.skipped)} folder(s) skipped, {len(content.left_out)} thing(s) left out: see above and the page's end"
        )
    return int(options.strict and bool(content.skipped or content.left_out))

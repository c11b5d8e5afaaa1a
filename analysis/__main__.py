"""Command line: ``python -m analysis``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis import comparison_table, evaluation_table, verify
from analysis.claims import CLAIMS, adjusted_findings
from analysis.claims.table import explain, render
from analysis.evaluations import MissingEvaluations
from analysis.evidence import Evidence
from analysis.importing import command as importing
from analysis.records import RecordError, copy_run, find_runs, sole
from analysis.report import command as report

DEFAULT = "out"
TEXTS = "samples"  # the table of prompts and completions
EXAMPLES = """\
examples:
  python -m analysis claims                         the verdicts from the records in out/
  python -m analysis claims out/bandits out/language_model     from several folders
  python -m analysis claims --explain C3            the reasoning behind one verdict
  python -m analysis claims --format markdown > claims.md
  python -m analysis compare out/evidence           methods against each other, at equal KL, at equal reward
  python -m analysis evaluation out/language_model   tuned models before and after: measures, KL, benchmarks with tests
  python -m analysis verify out/bandits              whether the runs below reproduce
  python -m analysis report out --out report.html    all of it on one page: frontiers, curves, cards, texts, manifests
  python -m analysis import my-trl-run --out out/imported      runs of other programs as records
  python -m analysis export out --out records       the records without texts, small enough to publish
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when done, 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis",
        description="Turn run records into verdicts.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    claims = commands.add_parser(
        "claims",
        help="the table of claims: verdict, effect size, interval",
        description="Judge every claim from the records found in the folders.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    claims.add_argument(
        "folders", nargs="*", default=[DEFAULT], metavar="FOLDER", help="where the records lie (default: out)"
    )
    claims.add_argument("--explain", metavar="CLAIM", help="the reasoning behind one claim, such as C3")
    claims.add_argument(
        "--format", choices=("text", "markdown", "csv"), default="text", help="of the table (default: text)"
    )
    export = commands.add_parser(
        "export",
        help="copy the records of a folder without their texts",
        description="Copy every record below FOLDER into DIR, without the table of text samples (prompts belong to others).",
    )
    export.add_argument("folder", metavar="FOLDER", type=Path)
    export.add_argument("--out", metavar="DIR", type=Path, required=True)
    evaluation = commands.add_parser(
        "evaluation",
        help="tuned models before and after: measures, estimators of the KL, benchmarks with paired tests",
        description="Compare each model with its reference, item by item.",
        epilog=evaluation_table.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    evaluation_table.add_arguments(evaluation)
    verifying = commands.add_parser(
        "verify",
        help="whether a run reproduces: checksums, versions, data, and a part of it done again",
        description="Check a run's record and data, and do a part of it again.",
        epilog=verify.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verify.add_arguments(verifying)
    report.add_parser(commands)
    importing.add_parser(commands)
    compare = commands.add_parser(
        "compare",
        help="methods against each other: frontiers, matched comparisons, over-optimisation, tuning budgets, aggregates",
        description="Compare methods, with intervals over training seeds and items.",
        epilog=comparison_table.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    comparison_table.add_arguments(compare)
    options = parser.parse_args(arguments)
    try:
        if options.command == "export":
            _export(options.folder, options.out)
        elif options.command == "report":
            return report.command(options)
        elif options.command == "import":
            return importing.command(options)
        elif options.command == "compare":
            for line in comparison_table.command(options):
                print(line, file=sys.stderr)
        elif options.command == "evaluation":
            for line in evaluation_table.command(options):
                print(line, file=sys.stderr)
        elif options.command == "verify":
            return int(not verify.command(options))
        else:
            _claims(options.folders, options.explain, options.format)
    except (RecordError, MissingEvaluations, comparison_table.NothingToCompare, _UnknownClaim) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as head, has seen enough
        return 0
    return 0


def _export(source: Path, out: Path) -> None:
    runs, skipped = find_runs(source)
    for line in skipped:
        print(line, file=sys.stderr)
    for run in runs:
        folder = out / run.folder.relative_to(source)
        with sole(folder):
            copy_run(run, folder, without=(TEXTS,))
    print(f"{len(runs)} records copied to {out}")


class _UnknownClaim(ValueError):
    """A claim that does not exist was asked for."""


def _claims(folders: Sequence[str], explained: str | None, style: str) -> None:
    chosen = [claim for claim in CLAIMS if explained is None or claim.id.lower() == explained.lower()]
    if not chosen:
        raise _UnknownClaim(
            f"there is no claim {explained!r}; the claims are {', '.join(claim.id for claim in CLAIMS)}"
        )
    if list(folders) == [DEFAULT] and not Path(DEFAULT).is_dir():
        raise RecordError(
            DEFAULT, "there is no such folder; name the folder of your records, or make them: see README.md"
        )
    evidence = Evidence.load(*folders)
    # all claims are one family of tests, whichever of them is explained
    findings = [finding for finding in adjusted_findings(CLAIMS, evidence) if finding.claim in chosen]
    print(explain(chosen[0], findings, evidence) if explained else render(findings, style))
    for line in (*evidence.skipped, *evidence.left_out):
        print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

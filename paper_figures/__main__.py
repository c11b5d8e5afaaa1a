"""Command line: ``python -m paper_figures``."""

from __future__ import annotations

import argparse
import difflib
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from analysis.evidence import Evidence
from analysis.records import RecordError, sole
from paper_figures.catalogue import GROUPS, KNOWN, PAPER, number
from paper_figures.drawing import collect, draw_one

SHIPPED = Path(__file__).parent / "records"


def _listing(group: str, title: str) -> str:
    listed = ", ".join(GROUPS[group])
    return textwrap.fill(f"{title}: {listed}", 110, subsequent_indent="    ", break_on_hyphens=False)


EXAMPLES = f"""\
{_listing("bandits", "of the bandits")}
{_listing("language_model", "of the language model")}
{_listing("online", 'of online runs (not in "all")')}

examples:
  python -m paper_figures all --out figures                    every figure and table, from out/ (else from the shipped records)
  python -m paper_figures determinism strength --out figures   two of them
  python -m paper_figures bandits --out figures                those of the bandits ("language_model": the others)
  python -m paper_figures --records myruns --out figures       from other records
  python -m paper_figures online frontier_llm --records out/online_quick --out figures      of python -m llm_runs online

A figure comes as NAME.pdf and NAME.png, a table as NAME.csv; both with NAME.tex (the LaTeX environment with caption and label) and
NAME.json (caption, number, and the records with checksums). \\input{{figures}} takes all of DIR into a paper.
The same records give the same bytes. Exit code: 0 all drawn, 1 some figures lack their records, 2 bad input.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when all figures were drawn, 1 when some lack records, 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m paper_figures",
        description="Make the figures and tables of the paper from run records.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="*", default=["all"], metavar="NAME", help="figures, tables or groups of them (default: all)"
    )
    parser.add_argument("--records", type=Path, help="folder of run records (default: out, else the shipped records)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the figures")
    options = parser.parse_args(arguments)
    try:
        names = _names(options.names)
        records = options.records or _default_records()
        evidence = Evidence.load(records)
        for line in (*evidence.skipped, *evidence.left_out):
            print(line, file=sys.stderr)
        with sole(options.out):
            return _draw(names, evidence, records, options.out)
    except (RecordError, _UnknownFigure) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


class _UnknownFigure(ValueError):
    """A figure that does not exist was asked for."""


def _names(asked: Sequence[str]) -> list[str]:
    groups = {"all": PAPER, **GROUPS}
    for name in asked:
        if name not in KNOWN and name not in groups:
            near = difflib.get_close_matches(name, [*KNOWN, *groups], n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise _UnknownFigure(f"there is no figure or table {name!r}{hint}; there are {', '.join(KNOWN)}")
    return list(dict.fromkeys(figure for name in asked for figure in groups.get(name, (name,))))


def _default_records() -> Path:
    own = Path("out")
    return own if own.is_dir() and any(own.rglob("run.json")) else SHIPPED


def _draw(names: Sequence[str], evidence: Evidence, records: Path, out: Path) -> int:
    missing = 0
    for name in names:
        try:
            paths = draw_one(name, evidence, records, out)
        except RecordError:
            raise
        except (ValueError, KeyError) as error:  # no such records, or records that do not hold what the figure shows
            missing += 1
            reason = f"the records lack column {error}" if isinstance(error, KeyError) else str(error)
            print(f"{name}: not drawn: {reason}", file=sys.stderr)
        else:
            files = ", ".join(path.name for path in paths[1:-1])
            print(f"{name}: {paths[0]}, {files} ({' '.join(map(str, number(name)))})")
    print(f"to take them into a paper: {collect(out)}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())

"""``python -m objectives``: list, describe and check the registered objectives."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import objectives
from objectives import documentation
from objectives.checks import check

EXAMPLES = """examples:
  python -m objectives list
  python -m objectives describe maxpo
  python -m objectives describe "dpo + forward_kl(weight=0.2)"
  python -m objectives check            every registered objective
  python -m objectives check dpo ipo    these two
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 on success, 1 if a check failed, 2 on bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m objectives",
        description="The registry of preference objectives.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="a table of all objectives by family, with what each needs")
    describing = commands.add_parser("describe", help="formula, source, needs, defaults and optimum of an objective")
    describing.add_argument("name", help="a name, or a sum of them")
    checking = commands.add_parser("check", help="self-checks: gradients, extremes, per-example losses, step-0 margin")
    checking.add_argument("names", nargs="*", metavar="NAME")
    writing = commands.add_parser("docs", help="write a page per objective, from the registry")
    writing.add_argument(
        "--out", type=Path, default=Path("docs/objectives"), metavar="DIR", help="default: %(default)s"
    )
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "list":
            return _list()
        if chosen.command == "describe":
            print(objectives.describe(chosen.name))
            return 0
        if chosen.command == "docs":
            print(f"{len(documentation.write(chosen.out))} pages in {chosen.out}")
            return 0
        return _check(chosen.names or objectives.names())
    except (objectives.ObjectiveError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _list() -> int:
    rows = sorted((objectives.describe(name) for name in objectives.names()), key=lambda d: (d.family, d.name))
    family_width = max(len("family"), *(len(row.family) for row in rows))
    name_width = max(len("name"), *(len(row.name) for row in rows))
    needs_width = max(len("needs"), *(len(", ".join(row.needs)) for row in rows))
    print(f"{'family':<{family_width}}  {'name':<{name_width}}  {'needs':<{needs_width}}  summary")
    for row in rows:
        needs = ", ".join(row.needs)
        print(f"{row.family:<{family_width}}  {row.name:<{name_width}}  {needs:<{needs_width}}  {row.summary}")
    return 0


def _check(names: list[str]) -> int:
    failed = 0
    for result in (result for name in names for result in check(name)):
        print(f"{'ok  ' if result.passed else 'FAIL'}  {result.objective:<24} {result.check}")
        if not result.passed:
            failed += 1
            print(f"      {result.reason}")
    print(f"{failed} failed" if failed else "all passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""The command ``python -m analysis import``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection
from pathlib import Path

from tqdm import tqdm

from analysis.importing import event_files, lm_eval_results, trainer_state
from analysis.importing.imported import Imported, slug
from analysis.records import MANIFEST, RecordError, sole

EXAMPLES = """\
examples:
  python -m analysis import dpo-run/checkpoint-900/trainer_state.json --out out/imported      a log of transformers' Trainer
  python -m analysis import dpo-run --out out/imported --trainer dpo --beta 0.1               trl's DPOTrainer: its numbers as ours
  python -m analysis import results_2026-11-26T10-00-00.json --out out/imported               lm-eval (its samples_*.jsonl beside it)
  python -m analysis import results_tuned.json --before results_base.json --out out/imported  paired, item by item
  python -m analysis import runs/ --out out/imported                                          all that is found: logs, results, event files
  python -m analysis report out/imported out/language_model --out report.html

Each run becomes a record OUT/NAME of kind "imported", with the sha256 of its files. Numbers are named as ours only where they mean the same
(docs/report.md has the list); all others keep their name behind their source's (trl/, trainer/, tensorboard/).
"""

Reader = Callable[[str | None], Imported]


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "import",
        help="runs of trl, transformers' Trainer, lm-eval and TensorBoard as records",
        description="Make records of other programs' logs and results, to be reported beside the suite's own.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        type=Path,
        help="trainer_state.json, results_*.json, an event file, or a folder in which these are looked for",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="where the records go, a folder each")
    parser.add_argument("--name", help="of the run, where there is only one (default: from its folder or model)")
    parser.add_argument("--before", metavar="FILE", type=Path, help="lm-eval results of the reference, to pair with")
    parser.add_argument("--trainer", choices=("dpo",), help="the log is of trl's DPOTrainer, with summed log-probs")
    parser.add_argument("--beta", type=float, help="its beta: trl's rewards divided by it are log-ratios")


def command(options: argparse.Namespace) -> int:
    """Write the records; 0 when done.

    Raises:
        RecordError: a source that was named does not exist, is damaged or of no known kind, or nothing was found.
    """
    if options.beta is not None and not (options.trainer and 0 < options.beta < float("inf")):
        raise RecordError("--beta", "must be positive, and needs --trainer dpo, which says what it belongs to")
    readers: list[tuple[Path, bool, Reader]] = []
    for source in options.sources:
        readers += _readers(source, options)
    if options.name is not None and len(readers) > 1:
        raise RecordError("--name", f"{len(readers)} runs were found; a name is for one")
    if options.before is not None and not any(_is_results(path) for path, _, _ in readers):
        raise RecordError(options.before, "--before is for results of lm-eval, and no source is one")
    written: list[Path] = []
    for path, searched, reader in tqdm(readers, desc="importing", leave=False, disable=None):
        try:
            found = reader(options.name)
        except RecordError as error:
            if not searched:
                raise
            print(f"skipped {error}", file=sys.stderr)  # one of many below a folder
            continue
        folder = _free(options.out / slug(found.name), written)
        with sole(folder):
            _check_source(folder, found)
            found.write(folder)
        written.append(folder)
        for note in found.notes:
            print(f"{path}: {note}", file=sys.stderr)
        print(f"{path} -> {folder}: {', '.join(f'{len(frame)} {table}' for table, frame in found.tables.items())}")
    if not written:
        raise RecordError(", ".join(map(str, options.sources)), "nothing could be imported")
    return 0


def _readers(source: Path, options: argparse.Namespace) -> list[tuple[Path, bool, Reader]]:
    """(path, whether it was found below a folder, what reads it) of everything that a source names."""

    def log(path: Path) -> Reader:
        return lambda name: trainer_state.read(path, name, trainer=options.trainer, beta=options.beta)

    def results(path: Path) -> Reader:
        return lambda name: lm_eval_results.read(path, name, before=options.before)

    def events(path: Path) -> Reader:
        return lambda name: event_files.read(path, name, trainer=options.trainer, beta=options.beta)

    if source.is_dir():
        before = None if options.before is None else options.before.resolve()
        found = [(path, True, log(path)) for path in trainer_state.find(source)]
        found += [(path, True, results(path)) for path in lm_eval_results.find(source) if path.resolve() != before]
        found += [(path, True, events(path)) for path in event_files.find(source)]
        if not found:
            raise RecordError(source, "holds no trainer_state.json, no results*.json of lm-eval and no event file")
        return found
    if not source.exists():
        raise RecordError(source, "there is no such file or folder")
    if "tfevents" in source.name:
        return [(source, False, events(source))]
    return [(source, False, results(source) if _is_results(source) else log(source))]


def _is_results(path: Path) -> bool:
    return path.name.startswith("results") and path.suffix == ".json"


def _free(folder: Path, written: Collection[Path]) -> Path:
    """The folder; where another source of this call has it, one with a number."""
    free, number = folder, 2
    while free in written:
        free, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    return free


def _check_source(folder: Path, found: Imported) -> None:
    """Raise RecordError where the folder holds a record of something else, which must not be lost."""
    if (folder / MANIFEST).exists() and not found.is_of(folder):
        raise RecordError(
            folder, f"holds the record of another source than {found.files[0]}; give --name or another --out"
        )

"""Records of several objectives made side by side, in processes of one thread each."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import as_completed
from pathlib import Path

from tqdm import tqdm

import objectives
from objectives import Objective
from toy_bandits.diagnostics import DIAGNOSTICS
from toy_bandits.pool import pool
from toy_bandits.profile import measuring
from toy_bandits.profile.measuring import FRONTIER


def prepare(
    everyone: Sequence[Objective],
    out: Path,
    only: Sequence[str],
    *,
    workers: int,
    again: bool = False,
) -> bool:
    """Make the records that `measuring.profile` would find missing below ``out``, and say whether they were made here.

    Args:
        everyone: the objectives.
        out: as in `measuring.profile`, and so are ``only`` and ``again``.
        workers: how many processes; with one, or one record to make, this does nothing.

    Raises:
        BanditError, ObjectiveError: as `measuring.profile` does.
        RecordError: a record cannot be written.
    """
    chosen = [*(only or DIAGNOSTICS), FRONTIER]
    missing = [(each, name) for each in everyone for name in chosen if again or not measuring.done(each, out, name)]
    if workers == 1 or len(missing) < 2:
        return False
    with (
        pool(workers) as processes,
        tqdm(total=len(missing), unit="probe", disable=None, leave=False) as bar,
    ):
        # A label says all of an objective; the objective itself, which is made of functions, does not travel.
        pending = {processes.submit(_make, each.label, out, name): each.label for each, name in missing}
        try:
            for future in as_completed(pending):
                future.result()
                bar.set_description(pending[future])
                bar.update()
        except BaseException:
            processes.shutdown(wait=False, cancel_futures=True)
            raise
    return True


def _make(label: str, out: Path, name: str) -> None:
    measuring.make(objectives.parse(label), out, name)

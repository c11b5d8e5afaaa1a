"""Kill commands at random moments, give them again until they are done, and compare with what an undisturbed one made.

    python tests/trust/crashes.py                          200 kills over all commands; a quarter of an hour
    python tests/trust/crashes.py --kills 50 --only run    of one command
    python tests/trust/crashes.py --seed 7                 other moments

A chain of attempts: the command is started, killed (SIGKILL) at its n-th change of a file (n drawn from the seed; see `points.py`) or after
a random time, started again in what it left, and so on; at last it is let go to its end. Then every file must be what the undisturbed
command made, bit for bit, but for times, and nothing else may be left. The commands are in `commands.py`.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])

import pandas as pd
import torch
from forkserver import CONTEXT

from trust import commands, points
from trust.commands import LONG, SCENARIOS, Scenario

WORK = "work"  # the folder that every attempt writes in: configurations have its path
PATIENCE = 300  # seconds for one attempt
_TIMES = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00")
_VARYING = ("step_seconds", "step_cpu_seconds", "peak_memory_bytes")


@dataclass
class Found:
    """What the kills of one scenario came to.

    Attributes:
        kills: how many.
        places: what was being done, by kind.
        wrong: what was not as it should be.
        seconds: of all attempts.
    """

    name: str
    chains: int = 0
    kills: int = 0
    places: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0


def attempt(scenario: Scenario, folder: Path, log: Path, *, fatal: int | None, delay: float | None = None) -> Attempt:
    """One start of the command in a process of its own."""
    report = log.with_suffix(".point")
    report.unlink(missing_ok=True)
    process = CONTEXT.Process(target=_child, args=(scenario.call, folder, log, report, fatal))
    began = time.monotonic()
    process.start()
    process.join(PATIENCE if delay is None else delay)
    if process.exitcode is None and delay is not None:
        process.kill()
        process.join()
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"{scenario.name}: still running after {PATIENCE} s\n{log.read_text()[-2000:]}")
    place = report.read_text() if report.is_file() else ""
    return Attempt(process.exitcode, place, time.monotonic() - began)


@dataclass(frozen=True)
class Attempt:
    """How a start ended: -9 where it was killed, the place if it was at one (else how many there were), and its seconds."""

    code: int
    place: str
    seconds: float


def _child(call: Callable[[Path], None], folder: Path, log: Path, report: Path, fatal: int | None) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    os.environ |= {"PREFERENCE_OBJECTIVES_HOME": str(folder / "home"), "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
    torch.set_num_threads(1)  # whatever a machine or an attempt would have: sums depend on it
    armed = points.arm(fatal, (folder,), report)
    call(folder)
    report.write_text(str(armed.count))


def undisturbed(scenario: Scenario, place: Path, finished: dict[str, Path]) -> tuple[Path, int, float]:
    """The finished folder of a scenario, how many places it has to be killed at, and the seconds that it took; made once."""
    known = place / f"{scenario.name}.json"
    if known.is_file():
        finished[scenario.name] = place / scenario.name
        return place / scenario.name, *json.loads(known.read_text())
    shutil.rmtree(place / WORK, ignore_errors=True)
    folder = _begin(scenario, place / WORK, finished)
    done = attempt(scenario, folder, place / f"{scenario.name}.log", fatal=None)
    said = (place / f"{scenario.name}.log").read_text()
    assert done.code == 0, f"{scenario.name} failed undisturbed\n{said[-3000:]}"
    finished[scenario.name] = folder = folder.rename(place / scenario.name)
    known.write_text(json.dumps([int(done.place), done.seconds]))
    return folder, int(done.place), done.seconds


def _begin(scenario: Scenario, folder: Path, finished: dict[str, Path]) -> Path:
    if scenario.start is None:
        folder.mkdir(parents=True)
    else:
        shutil.copytree(finished[scenario.start], folder, symlinks=True)
    return folder


def chain(
    scenario: Scenario,
    place: Path,
    finished: dict[str, Path],
    total: int,
    seconds: float,
    kills: int,
    draw: random.Random,
) -> Found:
    """Kill a scenario so many times in a row, then let it end, and compare."""
    found = Found(scenario.name, chains=1)
    folder = _begin(scenario, place / WORK, finished)
    log = place / "killed.log"
    try:
        for _ in range(kills):
            by_time = scenario.delays and draw.random() < 0.25
            # Early places are drawn more often, so that a chain does not come to its end before it has been killed often enough.
            fatal = None if by_time else 1 + int(total * draw.random() ** 2)
            delay = draw.uniform(0.02, seconds) if by_time else None
            done = attempt(scenario, folder, log, fatal=fatal, delay=delay)
            found.seconds += done.seconds
            if done.code == 0:
                break
            if done.code != -9:
                found.wrong.append(f"ended with {done.code} after {found.kills} kills:\n{log.read_text()[-1500:]}")
                return found
            found.kills += 1
            found.places[kind_of(done.place)] += 1
        done = attempt(scenario, folder, log, fatal=None)
        found.seconds += done.seconds
        if done.code:
            found.wrong.append(f"ended with {done.code} at last:\n{log.read_text()[-1500:]}")
            return found
        expected, now = tree(finished[scenario.name], scenario.ignored), tree(folder, scenario.ignored)
        found.wrong += differences(expected, now)
        return found
    finally:
        if not found.wrong:
            shutil.rmtree(folder)
        else:
            folder.rename(place / f"wrong-{scenario.name}-{draw.randrange(10**6)}")


def kind_of(place: str) -> str:
    """What a process was killed in, in a word."""
    words = place.split()
    return "any time" if not words else words[1] if words[1] != "half" else "half a file"


def tree(folder: Path, ignored: str = r"$^") -> dict[str, str]:
    """Of every file below a folder what it says, times left out: a checksum by path."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and not re.search(ignored, name):
            found[name] = hashlib.sha256(_lasting(path)).hexdigest()
    return found


def _lasting(path: Path) -> bytes:
    content = path.read_bytes()
    if path.name == "run.json":
        manifest = json.loads(content)
        del manifest["times"], manifest["sha256"], manifest["code"]
        manifest["extra"].pop("cpu_seconds", None)
        manifest["tables"].get("metrics", {}).pop("sha256", None)  # seconds and memory are in it
        return json.dumps(manifest, sort_keys=True).encode()
    if path.name.startswith("metrics") and path.suffix == ".parquet":
        table = pd.read_parquet(io.BytesIO(content))
        return table[~table["name"].isin(_VARYING)].to_csv(float_format="%.17g").encode()
    if path.name == "README.md":
        return _TIMES.sub(b"TIME", content)
    return content


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """What differs between two trees, in words."""
    words = [f"missing: {name}" for name in expected if name not in found]
    words += [f"left over: {name}" for name in found if name not in expected]
    return words + [f"differs: {name}" for name in expected if name in found and expected[name] != found[name]]


def table(results: Sequence[Found]) -> str:
    """A line for each command."""
    rows = [
        {
            "command": each.name,
            "chains": each.chains,
            "kills": each.kills,
            "wrong": len(each.wrong),
            "seconds": round(each.seconds),
            "killed in": ", ".join(f"{place} {count}" for place, count in each.places.most_common()),
        }
        for each in results
    ]
    sums = pd.DataFrame(rows)[["chains", "kills", "wrong", "seconds"]].sum()
    total = {"command": "all"} | sums.to_dict()
    return pd.DataFrame([*rows, total]).fillna("").to_string(index=False)


def carry_out(
    names: Sequence[str],
    kills: int,
    seed: int,
    place: Path,
    *,
    in_a_row: int = 6,
    say: Callable[[str], object] = lambda line: None,
) -> list[Found]:
    """So many kills, spread over the named scenarios. What an earlier call did in the same place with the same seed counts."""
    commands.index(place / "index")
    draw, finished = random.Random(seed), dict[str, Path]()
    wanted = list(names)
    for name in wanted:  # what they begin in comes first
        while (start := SCENARIOS[name].start) is not None and start not in wanted:
            wanted.insert(wanted.index(name), start)
            name = start
    warm = CONTEXT.Process(target=int)  # the server imports everything before its first process begins
    warm.start()
    warm.join()
    about = {}
    for name in (name for name in SCENARIOS if name in wanted):
        _, total, seconds = undisturbed(SCENARIOS[name], place, finished)
        about[name] = total, seconds
        say(f"{name}: undisturbed in {seconds:.1f} s, {total} places to be killed at")
    results = {name: Found(name) for name in names}
    journal = place / f"kills-{seed}.json"
    if journal.is_file():
        for each in json.loads(journal.read_text()):
            results[each["name"]] = Found(**each | {"places": Counter(each["places"])})
        draw.seed(f"{seed}, after {sum(each.kills for each in results.values())}")
        shutil.rmtree(place / WORK, ignore_errors=True)
    while sum(each.kills for each in results.values()) < kills:
        name = min(results, key=lambda each: results[each].kills)
        some = min(in_a_row, kills - sum(each.kills for each in results.values()))
        found, so_far = chain(SCENARIOS[name], place, finished, *about[name], some, draw), results[name]
        so_far.chains += 1
        so_far.kills += found.kills
        so_far.seconds += found.seconds
        so_far.places.update(found.places)
        so_far.wrong += found.wrong
        journal.write_text(json.dumps([vars(each) for each in results.values()]))
        say(f"{name}: {found.kills} kills, {'; '.join(found.wrong) or 'as undisturbed'}")
    return list(results.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 1 where anything was not as undisturbed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=LONG, choices=list(SCENARIOS), metavar="COMMAND")
    parser.add_argument("--in-a-row", type=int, default=6, metavar="N", help="kills before it is let go (default 6)")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="folder to work in, kept, and continued in (default: a temporary one)"
    )
    chosen = parser.parse_args(arguments)
    place = chosen.keep or Path(tempfile.mkdtemp(prefix="crashes-"))
    place.mkdir(parents=True, exist_ok=True)
    results = carry_out(
        chosen.only,
        chosen.kills,
        chosen.seed,
        place.resolve(),
        in_a_row=chosen.in_a_row,
        say=lambda line: print(line, flush=True),
    )
    print(table(results))
    wrong = any(each.wrong for each in results)
    if not wrong and chosen.keep is None:
        shutil.rmtree(place)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())

"""What no input may do to a reader: a traceback, an error of more than a line or without the file's name, a wrong value, a hang, or
memory far beyond its own size."""

from __future__ import annotations

import contextlib
import random
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzzing.mutations import Mutation, mutate

SECONDS = 20  # a hang
MEGABYTES = 600  # beyond what the process had: no input is over a megabyte
LONGEST = 3000  # characters of a message
_WINDOW = 25  # inputs between two looks at the memory


@dataclass(frozen=True)
class Reader:
    """What is read, and how.

    Attributes:
        name: for people.
        seeds: valid files, by name; mutants keep their name.
        kinds: of mutations.
        read: of the file (in a folder of its own); returns anything.
        errors: the package's own.
        check: raises AssertionError where what was read cannot be right; given file and result.
        after_refusal: the same, once the file has been refused.
        names_file: whether messages name the file.
    """

    name: str
    seeds: Sequence[tuple[str, bytes]]
    kinds: Sequence[Mutation]
    read: Callable[[Path], Any]
    errors: tuple[type[Exception], ...]
    check: Callable[[Path, Any], None] = lambda path, result: None
    after_refusal: Callable[[Path], None] = lambda path: None
    names_file: bool = True


@dataclass
class Outcome:
    """What came of one reader's mutants."""

    name: str
    count: int = 0
    read: int = 0
    refused: int = 0
    seconds: float = 0.0
    megabytes: float = 0.0  # the most that the process had beyond its beginning
    failures: list[str] = field(default_factory=list)


class Hang(BaseException):
    """Not an Exception, so that no reader can take it for its own."""


@contextlib.contextmanager
def _within(seconds: int) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise Hang(f"not done in {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _peak() -> float:
    """MB of the most memory since the last call, where the system says."""
    try:
        status = Path("/proc/self/status").read_text()
        Path("/proc/self/clear_refs").write_text("5")
        return int(status.partition("VmHWM:")[2].split()[0]) / 1e3
    except (OSError, IndexError, ValueError):
        return 0.0


def judge(reader: Reader, path: Path) -> tuple[bool, str | None]:
    """Whether the file was read, and what was wrong with that, if anything."""
    try:
        with _within(SECONDS):
            result = reader.read(path)
    except reader.errors as error:
        message = str(error)
        if "\n" in message or "\r" in message:
            return False, f"the message has several lines: {message!r:.500}"
        if len(message) > LONGEST:
            return False, f"the message has {len(message)} characters: {message:.300}..."
        if reader.names_file and path.name not in message:
            return False, f"the message does not name the file: {message!r:.500}"
        return False, _assertions(lambda: reader.after_refusal(path))
    except (Exception, Hang, RecursionError, MemoryError):
        return False, traceback.format_exc(limit=-6)
    return True, _assertions(lambda: reader.check(path, result))


def _assertions(check: Callable[[], None]) -> str | None:
    try:
        check()
    except Exception:
        return "wrong: " + traceback.format_exc(limit=-4)
    return None


def mutant(reader: Reader, seed: int, number: int) -> tuple[str, bytes]:
    """Mutant `number` of a reader, always the same: its file name and content."""
    draw = random.Random(f"{seed}/{reader.name}/{number}")
    name, content = draw.choice(list(reader.seeds))
    return name, mutate(draw, reader.kinds, content, [other for _, other in reader.seeds])


def fuzz(reader: Reader, count: int, folder: Path, seed: int = 0, stop_after: int = 20) -> Outcome:
    """Read so many mutants; those that fail are kept in `folder`, as name-seed-number."""
    outcome = Outcome(reader.name)
    began = time.process_time()
    for name, content in reader.seeds:  # valid files are read
        path = folder / "work" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        read, problem = judge(reader, path)
        if problem or not read:
            outcome.failures.append(f"the valid {name}: {problem or 'refused'}")
        path.unlink()
    _peak()  # forget what this process had before
    base = _peak()
    for number in range(count):
        name, content = mutant(reader, seed, number)
        path = folder / "work" / name
        path.write_bytes(content)
        read, problem = judge(reader, path)
        outcome.count += 1
        outcome.read += read
        outcome.refused += not read and problem is None
        if number % _WINDOW == 0:
            peak = _peak()
            outcome.megabytes = max(outcome.megabytes, peak - base)
            if peak - base > MEGABYTES:
                problem = problem or f"{peak - base:.0f} MB within {_WINDOW} inputs before this"
        if problem is not None:
            kept = folder / f"{reader.name}-{seed}-{number}"
            kept.mkdir(parents=True, exist_ok=True)
            (kept / name).write_bytes(content)
            outcome.failures.append(f"{kept / name}: {problem}")
            if len(outcome.failures) >= stop_after:
                break
        path.unlink(missing_ok=True)
    outcome.seconds = time.process_time() - began
    return outcome

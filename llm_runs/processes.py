"""The processes of one launch (`torchrun -m llm_runs ...`): which one this is, who does what, and how all stop together.

Without a launcher there is one process, and everything here is done by it at once. All processes follow the same plan in the same order;
what is computed is shared out by batches (`spread`), so that every batch is the one that a single process would have made, and what is
written is written by the first (`by_first`) or by each in turn (`in_turn`), who then finds what the first made.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from analysis import records
from llm_runs.errors import InputError

TIMEOUT = timedelta(
    minutes=30
)  # for which a process waits for the others of a computation; a dead one is noticed at once
_GRACE = 5.0  # seconds in which the reason of a process that died must have reached the others

T = TypeVar("T")
R = TypeVar("R")


class Stopped(InputError):
    """Another process of the launch stopped; the message says which, and why."""


def launched() -> int:
    """How many processes the launcher started, whether or not they have joined; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def size() -> int:
    """How many processes work together."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    import torch.distributed as dist

    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return rank() == 0


_store: Any = None  # a torch.distributed.Store: short messages between the processes, outside of any computation
_turns = 0


def speaks_here() -> bool:
    """Whether this process is the one on its machine that repeats why another one stopped."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def hush() -> None:
    """Leave the terminal to the first process. To be called before anything that shows progress is imported."""
    if launched() > 1 and int(os.environ.get("RANK", "0")):
        os.environ["TQDM_DISABLE"] = "1"
        warnings.simplefilter("ignore")
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - for as long as the process lives


def join() -> None:
    """Join the other processes of the launch, where there are some and this has not been done.

    Raises:
        InputError: more processes on this machine than GPUs.
    """
    global _store
    if launched() == 1:
        return
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    if dist.is_initialized():
        return
    number, cuda = int(os.environ.get("RANK", "0")), torch.cuda.is_available()
    if cuda:
        local, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= there:
            raise InputError(
                f"process {number} is number {local} on {socket.gethostname()}, which has {there} GPUs: start as many "
                "processes on each machine as it has GPUs"
            )
        torch.cuda.set_device(local)
    _store, number, count = next(iter(rendezvous("env://", timeout=TIMEOUT)))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=PrefixStore("group", _store),
        rank=number,
        world_size=count,
        timeout=TIMEOUT,
    )


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Where one process fails in the block, the others stop too and know why.

    Raises:
        Stopped: another process failed first. (Whatever fails in this process is raised as it is.)
    """
    try:
        yield
    except BaseException as error:
        if _store is None or isinstance(error, SystemExit | Stopped):
            raise
        lost = _is_loss(error)  # no more than the echo of another process's end
        reason = _reason(_GRACE) if lost else None
        if lost and reason is None:
            raise Stopped(
                "another process of the launch is gone without a word (killed, out of memory, or its machine is down); give the same "
                "command again to continue"
            ) from error
        text = str(error) if isinstance(error, InputError) else " ".join(f"{type(error).__name__}: {error}".split())
        own = f"process {rank()} on {socket.gethostname()} stopped: {text}"
        with contextlib.suppress(Exception):
            reason = reason or str(_store.compare_set("error", "", own).decode())
        if reason not in (None, own):
            raise Stopped(reason) from error
        raise


def _is_loss(error: BaseException) -> bool:
    """Whether an exception is what torch raises where it can no longer reach another process."""
    import torch.distributed as dist

    text = str(error).lower()
    known = any(word in text for word in ("gloo", "nccl", "connection", "broken pipe", "tcpstore"))
    return isinstance(error, dist.DistError | ConnectionError) or (isinstance(error, RuntimeError) and known)


def _reason(patience: float = 0) -> str | None:
    """Why another process stopped, where one did, or does within so many seconds."""
    until = time.monotonic() + patience
    with contextlib.suppress(Exception):  # the store went with its process
        while True:
            if _store.check(["error"]):
                return str(_store.get("error").decode())
            if time.monotonic() >= until:
                break
            time.sleep(0.2)
    return None


def barrier() -> None:
    """Wait for all processes."""
    if size() > 1:
        gather(None)


def by_first(work: Callable[[], object]) -> None:
    """What one process does for all, such as writing a file; the others wait until it is done."""
    if is_first():
        work()
    barrier()


@contextlib.contextmanager
def sole(folder: Path) -> Iterator[None]:
    """Be the only launch that writes in `folder`.

    Raises:
        LockError: another one is at work there.
    """
    with contextlib.ExitStack() as held:
        by_first(lambda: held.enter_context(records.sole(folder)))
        yield


def in_turn(work: Callable[[], T]) -> T:
    """What every process does, the others when the first is done, whose files they then find. It may take any time.

    Raises:
        Stopped: the first process failed.
    """
    global _turns
    if size() == 1 or _store is None:
        return work()
    _turns += 1
    key = f"turn/{_turns}"
    if is_first():
        result = work()
        _store.set(key, "done")
        return result
    while not _store.check([key]):  # not by waiting in a computation, which ends after TIMEOUT
        if reason := _reason():
            raise Stopped(reason)
        time.sleep(0.2)
    return work()


def gather(value: T) -> list[T]:
    """This value of every process, in their order."""
    import torch.distributed as dist

    if size() == 1:
        return [value]
    found: list[Any] = [None] * size()
    dist.all_gather_object(found, value)
    return found


def all_of(condition: bool, device: Any) -> bool:
    """Whether it holds in every process, asked on `device`, where they compute."""
    import torch
    import torch.distributed as dist

    if size() == 1:
        return condition
    flag = torch.tensor(int(condition), device=device)
    dist.all_reduce(flag, dist.ReduceOp.MIN)
    return bool(flag)


def own_rounds(count: int) -> Iterator[tuple[int, bool]]:
    """Which of `count` pieces of work this process does, and whether it counts: piece k is that of process k modulo their number.

    Every process is given equally many, because weights that are sharded over the processes are gathered by all of them together: where
    pieces run out, the last is done again, for nothing.
    """
    for start_of_round in range(0, count, size()):
        index = start_of_round + rank()
        yield min(index, count - 1), index < count


def spread(pieces: Sequence[T], work: Callable[[T], R]) -> list[R]:
    """`work` of every piece, each done by one process; all results, in the order of the pieces, in every process."""
    own: list[R] = []
    for index, counts in own_rounds(len(pieces)):
        result = work(pieces[index])
        if counts:
            own.append(result)
    every = gather(own)
    return [every[index % len(every)][index // len(every)] for index in range(len(pieces))]


def check_alike(facts: Mapping[str, Any]) -> None:
    """InputError, in every process, where some of the facts of one process are not those of the first; each is named."""
    every = gather(dict(facts))
    problems = []
    for number, theirs in enumerate(every):
        for name in dict.fromkeys([*every[0], *theirs]):
            first, other = every[0].get(name), theirs.get(name)
            if first != other:
                problems.append(f"process {number} has {name} {other!r}, process 0 has {first!r}")
    if problems:
        more = f", and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise InputError(
            f"the processes of this launch differ: {'; '.join(problems[:8])}{more}. Give all the same command, files and environment"
        )


def check_shared(folder: Path) -> None:
    """InputError, in every process, where the folder is not one and the same for all of them, such as on disks of different machines."""
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / f".shared-{gather(secrets.token_hex(4))[0]}"
    by_first(mark.touch)
    patience = time.monotonic() + 60  # network file systems show a new file late
    while not (seen := mark.exists()) and time.monotonic() < patience:
        time.sleep(0.5)
    missing = [host for host, there in gather((socket.gethostname(), seen)) if not there]
    by_first(lambda: mark.unlink(missing_ok=True))
    if missing:
        raise InputError(
            f"{folder} on {socket.gethostname()} is not the folder of process 0: give an --out that all machines share (not so on "
            f"{', '.join(dict.fromkeys(missing))})"
        )


def uneven(setting: str, value: int, unit: int, what: str) -> str | None:
    """What to say where `value` of `setting` is no multiple of `unit`, with the nearest values that are; None where it is one."""
    if value % unit == 0:
        return None
    below = value // unit * unit
    nearest = f"{below} or {below + unit}" if below else f"{unit}"
    return f"{setting} ({value}) must be a multiple of {what}, {unit}: the nearest is {nearest}"

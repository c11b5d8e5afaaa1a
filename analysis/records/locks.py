"""One process at a time in a folder. A lock is the system's (flock): it goes with its process, however that ends.

Locks hold between machines where the file system passes them on: NFS from version 4, Lustre mounted with flock. Where it does not,
`PREFERENCE_OBJECTIVES_NO_LOCKS=1` does without, and it is on you to give one command at a time.
"""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import multiprocessing.connection
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from analysis.records.files import (
    LOCK,
    RecordError,
    atomic_write,
    clear_unfinished,
    clear_unfinished_of,
    make_folder,
    os_errors,
)

SWITCH = "PREFERENCE_OBJECTIVES_NO_LOCKS"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class LockError(RecordError):
    """Locks do not work here, or another process holds one."""


@contextlib.contextmanager
def sole(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Be the only process that writes in `folder`, which is made if needed, and clear away what killed ones left half-written.

    Raises:
        LockError: another process is at work there (the message says which, where and since when), or locks do not work there.
        RecordError: the folder cannot be written.
    """
    folder = Path(folder)
    new = not folder.exists()
    make_folder(folder)
    path = folder / LOCK
    try:
        with contextlib.ExitStack() as stack:
            with os_errors(path, "cannot be written"):
                held = stack.enter_context(locked(path, wait=False, use=not os.environ.get(SWITCH)))
            if not held:
                raise LockError(
                    folder, f"{_holder(path)} is at work there: wait for it, or end it, and give the command again"
                )
            clear_unfinished(folder)
            yield
    except BaseException:
        if new:
            with contextlib.suppress(OSError):  # nothing came of it
                folder.rmdir()
        raise


def write_unlocked(path: str | os.PathLike[str], content: bytes | Callable[[BinaryIO], object]) -> Path:
    """`atomic_write` of a file in a folder that this process has no lock of; clears away what killed writers of this file left.

    Several may write it at once: the last one's stays. The lock, of the file alone and held for the write, is so that none takes the
    unfinished file of another for one that was left. Where locks do not work nothing is cleared away.

    Raises:
        RecordError: the file system refused; a file that was there before is left as it was.
    """
    path = Path(path)
    make_folder(path.parent)
    with contextlib.ExitStack() as stack:
        try:
            with os_errors(path, "cannot be written"):
                use = not os.environ.get(SWITCH)
                stack.enter_context(locked(path.with_name(f".{path.name}{LOCK}"), use=use))
        except LockError:
            use = False
        if use:
            clear_unfinished_of(path)
        return atomic_write(path, content)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True, use: bool = True) -> Iterator[bool]:
    """Hold the lock `path` of this machine, and of others where the file system passes locks on; yields whether it is held.

    The file says who holds it, and is removed when the lock is given back.

    Args:
        path: a file, made if needed.
        wait: until it is free; else yield False at once where another holds it.
        use: False: do without.

    Raises:
        LockError: the file system has no locks.
    """
    if not use:
        yield True
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _acquire(path, wait)
    if descriptor is None:
        yield False
        return
    try:
        _sign(descriptor)
        yield True
    finally:
        with contextlib.suppress(OSError):  # while it is held, so that nobody waits for a file without a name
            path.unlink()
        os.close(descriptor)  # which gives the lock back


def check_locks(folder: Path) -> None:
    """LockError where locks in `folder` do not work: taking one fails, or a second process gets it, too."""
    path = folder / "try.lock"
    with locked(path):
        pid = os.fork()
        if pid == 0:
            status = 2
            with contextlib.suppress(BaseException):
                descriptor = _acquire(path, wait=False)
                status = int(descriptor is not None)
            os._exit(status)
        _, status = os.waitpid(pid, 0)
    if os.waitstatus_to_exitcode(status) == 1:
        raise _without_locks(path, "two processes got the same lock")


def end_with_parent() -> None:
    """To be called in a process that works for another: when that one is gone, this one must not go on writing in its folder."""
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            multiprocessing.connection.wait([parent.sentinel])
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


def _acquire(path: Path, wait: bool) -> int | None:
    """The open file that holds the lock, or None where another holds it."""
    import fcntl

    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
            os.close(descriptor)  # its holder removed the file before giving the lock back: try the new one
            continue
        except BlockingIOError:
            os.close(descriptor)
            if not wait:
                return None
            time.sleep(0.5)
        except OSError as error:
            os.close(descriptor)
            if error.errno in _NO_LOCKS:
                raise _without_locks(path, error.strerror or str(error)) from error
            raise


def _sign(descriptor: int) -> None:
    """Say in the lock's file who holds it. In place: who reads half of it learns less, nothing else."""
    words = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    about = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%F %T %z"), "command": words}
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, (json.dumps(about) + "\n").encode(), 0)


def _holder(path: Path) -> str:
    """Who holds a lock, in words."""
    try:
        about = json.loads(path.read_bytes())
        return f"process {about['pid']} on {about['host']}, since {about['since']} ({about['command']}),"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _without_locks(path: Path, reason: str) -> LockError:
    return LockError(
        path.parent,
        f"locks do not work there ({reason}): put --out on another file system (NFS: version 4; Lustre: mounted with flock), or set "
        f"{SWITCH}=1 (of a sweep: --no-locks) and give one command at a time",
    )

"""Files and folders that are written whole or not at all. Every write of the packages goes through here; a test looks for others.

A file is written in full under a temporary name in its own folder, synced to the disk, and renamed; then the folder is synced. Whoever is
killed on the way leaves the earlier file as it was, and a temporary one that `clear_unfinished` removes.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

LOCK = ".lock"  # in a folder that a process works in, see `locks`
_UNFINISHED = re.compile(r"\..+\.\d+\.[0-9a-f]{8}\.tmp")


class RecordError(ValueError):
    """A record cannot be written or read. The message names the file and the reason."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        self.path = Path(path)
        self.reason = " ".join(reason.split())  # one line, also where a library said several
        super().__init__(f"{self.path}: {self.reason}")


def atomic_write(path: str | os.PathLike[str], content: bytes | Callable[[BinaryIO], object]) -> Path:
    """Write a file whole or not at all: temporary file in the same folder, fsync, rename, fsync of the folder. Folders are made as needed.

    Args:
        path: the file.
        content: its bytes, or a function that writes them into the open binary file it is given.

    Raises:
        RecordError: the file system refused; a file that was there before is left as it was.
    """
    path = Path(path)
    make_folder(path.parent)
    temporary = stage(path, content)
    try:
        with os_errors(path, "cannot be written"):
            temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def atomic_folder(folder: str | os.PathLike[str], make: Callable[[Path], object], *, replace: bool = False) -> Path:
    """`folder`, filled by `make(temporary folder)`: it appears whole or not at all, with every file synced to the disk.

    Args:
        folder: the folder. Where it is there already (another process was faster), it stays as it is.
        make: writes into the folder that it is given.
        replace: put the new folder in the place of one that is there.

    Raises:
        RecordError: the file system refused; a folder that was there before is left as it was.
    """
    folder = Path(folder)
    make_folder(folder.parent)
    temporary, before = (folder.with_name(_temporary_name(folder.name)) for _ in range(2))
    try:
        with os_errors(folder, "cannot be written"):
            temporary.mkdir()
            make(temporary)
            for root, _, files in os.walk(temporary):
                for name in files:
                    sync_file(Path(root) / name)
                sync_folder(Path(root))
            if replace and folder.exists():
                folder.rename(before)
            try:
                temporary.rename(folder)
            except OSError:
                if before.exists():
                    before.rename(folder)
                if replace or not folder.is_dir():
                    raise
            sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)
    return folder


def clear_unfinished(folder: str | os.PathLike[str]) -> None:
    """Remove what killed processes left half-written at and below `folder`, but for subfolders that may be another process's.

    To be called by who holds the lock of `folder` (`locks.sole`).
    """
    for root, folders, files in os.walk(folder):
        for name in [name for name in folders if _UNFINISHED.fullmatch(name)]:
            shutil.rmtree(Path(root) / name, ignore_errors=True)
        folders[:] = [
            name for name in folders if not _UNFINISHED.fullmatch(name) and not (Path(root) / name / LOCK).exists()
        ]
        for name in files:
            if _UNFINISHED.fullmatch(name):
                with contextlib.suppress(OSError):
                    (Path(root) / name).unlink()


def clear_unfinished_of(path: Path) -> None:
    """Remove what killed processes left half-written of the file `path`, and nothing else in its folder."""
    for found in path.parent.iterdir() if path.parent.is_dir() else ():
        if _UNFINISHED.fullmatch(found.name) and found.name.startswith(f".{path.name}."):
            with contextlib.suppress(OSError):
                found.unlink()


def make_folder(folder: Path) -> None:
    """Make a folder with its parents. RecordError where that is refused."""
    with os_errors(folder, "cannot make the folder"):
        folder.mkdir(parents=True, exist_ok=True)


def stage(path: Path, content: bytes | Callable[[BinaryIO], object]) -> Path:
    """Write ``content``, synced to disk, into a new temporary file beside ``path``."""
    temporary = path.with_name(_temporary_name(path.name))
    try:
        with os_errors(path, "cannot be written"), temporary.open("xb") as handle:
            if callable(content):
                content(handle)
            else:
                handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    return temporary


def publish(temporary: Path, path: Path) -> Path:
    """Give a file that another library has written in full its name: synced, renamed, the folder synced."""
    with os_errors(path, "cannot be written"):
        sync_file(temporary)
        temporary.replace(path)
    sync_folder(path.parent)
    return path


def sync_file(path: Path) -> None:
    """Have a written file on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` durable, where the platform can sync a folder."""
    with contextlib.suppress(OSError):
        sync_file(folder)


@contextlib.contextmanager
def os_errors(path: Path, what: str) -> Iterator[None]:
    """Turn a refusal of the file system into a RecordError of one line."""
    try:
        yield
    except OSError as error:
        raise RecordError(path, f"{what} ({error.strerror or error}); earlier results are left as they were") from error


def _temporary_name(name: str) -> str:
    return f".{name}.{os.getpid()}.{secrets.token_hex(4)}.tmp"

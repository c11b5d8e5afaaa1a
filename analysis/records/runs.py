"""Run records: one folder per run, ``run.json`` beside tidy Parquet tables; written whole or not at all, verified when read.

    FOLDER/run.json          manifest: format, kind, id, config, seeds, versions, times, and a sha256 of every table and of itself
    FOLDER/<table>.parquet   tidy tables (``results`` for bandits; ``metrics``, ``evaluations``, ``samples`` for language models)

All tables are first written in full under temporary names, then renamed, ``run.json`` last. A full disk or an
interruption while writing therefore leaves an earlier record in the same folder as it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import io
import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.records.files import RecordError, atomic_write, make_folder, os_errors, stage, sync_folder

if TYPE_CHECKING:
    import pandas as pd  # loaded where tables are: not for those who only lock and look

from analysis.records.redaction import redact

FORMAT_VERSION = 1
MANIFEST = "run.json"

_VERSIONED_PACKAGES = (
    "numpy",
    "scipy",
    "pandas",
    "pyarrow",
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "datasets",
    "lm_eval",
)
_TABLE_NAME = re.compile(r"[a-z][a-z0-9_]*")
# A folder with one of these and no manifest is an interrupted run, worth a line; other Parquet files are somebody's data.
_RUN_TABLES = ("results.parquet", "metrics.parquet", "evaluations.parquet")


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished run: its folder and its manifest; tables are read (and verified) on demand."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def kind(self) -> str:
        """``bandit``, ``llm`` or ``llm_cost``."""
        return str(self.manifest["kind"])

    @property
    def id(self) -> str:
        """Stable, human-readable name."""
        return str(self.manifest["id"])

    @property
    def config(self) -> dict[str, Any]:
        """Every setting that the result depends on."""
        return dict(self.manifest["config"])

    @property
    def seeds(self) -> dict[str, int]:
        """Random seeds by purpose."""
        return dict(self.manifest["seeds"])

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the tables."""
        return tuple(self.manifest["tables"])

    @functools.cached_property
    def kept(self) -> dict[str, object]:
        """For readers that ask for the same thing many times: what they made of a table, as long as this object lives."""
        return {}

    def table(self, name: str) -> pd.DataFrame:
        """The table ``name``.

        Raises:
            RecordError: the run has no such table, or its file is missing, changed or unreadable.
        """
        if name not in self.manifest["tables"]:
            raise RecordError(
                self.folder / MANIFEST, f"has no table {name!r}; it has {', '.join(self.tables) or 'none'}"
            )
        path = _table_path(self.folder, name)
        content = _read_bytes(path)
        _verify(path, hashlib.sha256(content).hexdigest(), self.manifest["tables"][name]["sha256"])
        import pandas as pd

        try:
            return pd.read_parquet(io.BytesIO(content), engine="pyarrow")
        except Exception as error:  # pyarrow raises several unrelated types on a malformed file
            raise RecordError(path, f"is not a readable Parquet table ({error})") from error


def write_run(
    folder: str | os.PathLike[str],
    *,
    kind: str,
    id: str,
    config: Mapping[str, Any],
    seeds: Mapping[str, int],
    tables: Mapping[str, pd.DataFrame],
    data_fingerprint: str | None = None,
    device: str = "cpu",
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write one finished run into ``folder`` (made if needed; an earlier record there is replaced) and return it.

    Args:
        folder: the run's folder.
        kind: ``"bandit"``, ``"llm"`` or ``"llm_cost"``.
        id: a stable, human-readable name, such as ``"bandit/determinism"``.
        config: every setting that the result depends on; plain JSON values, dataclasses and paths.
        seeds: every random seed, by purpose.
        tables: tidy tables by name (lower case letters, digits, underscores); the index is not kept.
        data_fingerprint: ``fingerprint`` of the input data, where there is any.
        device: where it ran, in words.
        extra: anything else worth keeping that results do not depend on (times, notes).

    Raises:
        RecordError: a value cannot be written as JSON or Parquet, or the file system refused (disk full, no permission).
    """
    folder = Path(folder)
    manifest_path = folder / MANIFEST
    make_folder(folder)
    staged: dict[Path, Path] = {}  # final path -> temporary path; all complete before the first rename
    try:
        entries = {}
        for name, frame in tables.items():
            path = _table_path(folder, name)
            content = _parquet_bytes(path, frame)
            staged[path] = stage(path, content)
            entries[name] = {
                "sha256": hashlib.sha256(content).hexdigest(),
                "rows": len(frame),
                "columns": list(map(str, frame.columns)),
            }
        manifest = {
            "format_version": FORMAT_VERSION,
            "kind": kind,
            "id": id,
            "status": "complete",
            "config": config,
            "seeds": seeds,
            "data_fingerprint": data_fingerprint,
            "device": device,
            **circumstances(),
            "times": {"written": datetime.now(UTC).isoformat(timespec="seconds")},
            "tables": entries,
            "extra": extra or {},
        }
        text = _manifest_text(redact(_plain(manifest, manifest_path)))
        staged[manifest_path] = stage(manifest_path, text.encode())  # last in, last renamed
        for path, temporary in staged.items():
            with os_errors(path, "cannot be written"):
                temporary.replace(path)
        sync_folder(folder)
    finally:
        for temporary in staged.values():
            temporary.unlink(missing_ok=True)
    return folder


def read_run(folder: str | os.PathLike[str]) -> Run:
    """The run in ``folder``, after checking the manifest and the checksum of every table.

    Raises:
        RecordError: no manifest, not JSON, a newer format, an unfinished run, or a missing or changed table.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    for name, entry in manifest["tables"].items():
        path = _table_path(folder, name)
        try:
            with path.open("rb") as handle:
                digest = hashlib.file_digest(handle, "sha256").hexdigest()
        except FileNotFoundError:
            raise RecordError(path, "is missing, though run.json lists it; make the run again") from None
        except OSError as error:
            raise RecordError(path, f"cannot be read ({error.strerror})") from error
        _verify(path, digest, entry["sha256"])
    return Run(folder, manifest)


def find_runs(folder: str | os.PathLike[str]) -> tuple[list[Run], list[str]]:
    """Every run at or below ``folder``, in the order of their paths, and one line for each skipped folder saying why.

    Raises:
        RecordError: ``folder`` does not exist.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RecordError(folder, "there is no such folder")
    runs: list[Run] = []
    skipped: list[str] = []
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if MANIFEST in files:
            try:
                runs.append(read_run(root))
            except RecordError as error:
                skipped.append(f"skipped {error}")
        elif any(name in files for name in _RUN_TABLES):
            skipped.append(f"skipped {root}: has tables but no {MANIFEST}; the run was interrupted")
    return sorted(runs, key=lambda run: str(run.folder)), sorted(skipped)


def copy_run(run: Run, folder: str | os.PathLike[str], without: Collection[str] = ()) -> Path:
    """Copy a finished run into ``folder``, leaving out the tables ``without``; the rest stays byte for byte what it was.

    Raises:
        RecordError: a table of the run is missing or changed, or the file system refused.
    """
    folder = Path(folder)
    kept = {name: entry for name, entry in run.manifest["tables"].items() if name not in without}
    for name, entry in kept.items():
        content = _read_bytes(_table_path(run.folder, name))
        _verify(_table_path(run.folder, name), hashlib.sha256(content).hexdigest(), entry["sha256"])
        atomic_write(_table_path(folder, name), content)
    return atomic_write(folder / MANIFEST, _manifest_text({**run.manifest, "tables": kept}).encode()).parent


def is_complete(folder: str | os.PathLike[str], config: Mapping[str, Any]) -> bool:
    """Whether ``folder`` holds an undamaged run of exactly this ``config``, so that resuming may skip it.

    Raises:
        RecordError: the folder holds a run of a newer format, which must not be overwritten unseen.
    """
    folder = Path(folder)
    try:
        run = read_run(folder)
    except RecordError as error:
        if isinstance(error, _NewerFormat):
            raise
        return False
    return bool(run.manifest["config"] == redact(_plain(config, folder / MANIFEST)))


def fingerprint(value: Any) -> str:
    """sha256, in hexadecimal: of a file's bytes for a ``Path``, of ``bytes`` as they are, else of the canonical JSON.

    Canonical JSON has sorted keys and no spaces, so that equal configs have equal fingerprints.
    """
    if isinstance(value, Path):
        try:
            with value.open("rb") as handle:
                return hashlib.file_digest(handle, "sha256").hexdigest()
        except OSError as error:
            raise RecordError(value, f"cannot be read ({error.strerror})") from error
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    plain = _plain(value, "fingerprint")
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def code_version() -> dict[str, str | bool | None]:
    """The code that runs: ``commit`` and ``dirty`` when it is a git checkout (else None), and the package's ``version``."""
    commit = dirty = None
    source = Path(__file__).resolve()
    root = source.parent.parent.parent
    # An installed package may lie inside somebody else's checkout: only a tree that tracks this very file counts.
    if _git(root, "ls-files", "--error-unmatch", str(source)) is not None:
        commit = _git(root, "rev-parse", "HEAD")
        changes = _git(root, "status", "--porcelain", "--untracked-files=no")
        dirty = None if changes is None else bool(changes)
    distributions = importlib.metadata.packages_distributions().get("analysis", [])
    version = importlib.metadata.version(distributions[0]) if distributions else None
    return {"commit": commit, "dirty": dirty, "version": version}


class _NewerFormat(RecordError):
    """A run written by a newer version of this package."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """What ``run.json`` in ``folder`` says, after checking its own checksum, but none of the tables.

    Raises:
        RecordError: as `read_run`, but for tables.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise RecordError(folder, "there is no such folder")
    try:
        manifest: dict[str, Any] = json.loads(_read_bytes(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, RecordError):
            raise
        raise RecordError(path, f"is damaged: not valid JSON ({error})") from error
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if not isinstance(version, int):
        raise RecordError(path, "is not a run record: it has no format_version")
    if version > FORMAT_VERSION:
        raise _NewerFormat(
            path, f"has format {version}, newer than the {FORMAT_VERSION} this version reads; update the package"
        )
    for key, expected in (("kind", str), ("id", str), ("config", dict), ("seeds", dict), ("tables", dict)):
        if not isinstance(manifest.get(key), expected):
            raise RecordError(path, f"is damaged: {key!r} is missing or not a {expected.__name__}")
    if manifest.get("status") != "complete":
        raise RecordError(path, f"the run did not finish (status {manifest.get('status')!r})")
    for name, entry in manifest["tables"].items():
        _table_path(folder, name)
        if not isinstance(entry, dict) or not isinstance(entry.get("sha256"), str):
            raise RecordError(path, f"is damaged: table {name!r} has no checksum")
    try:
        digest = _digest(manifest)
    except RecursionError as error:
        raise RecordError(path, "is damaged: nested too deeply") from error
    if manifest.get("sha256", digest) != digest:  # records of earlier versions have none
        raise RecordError(path, "is damaged: it is not what was written (wrong checksum); make the run again")
    return manifest


def _manifest_text(manifest: dict[str, Any]) -> str:
    """A manifest as it is written: with its own checksum."""
    return json.dumps({**manifest, "sha256": _digest(manifest)}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _digest(manifest: dict[str, Any]) -> str:
    """The checksum of a manifest, itself left out."""
    return fingerprint({key: value for key, value in manifest.items() if key != "sha256"})


def _table_path(folder: Path, name: str) -> Path:
    if not _TABLE_NAME.fullmatch(name):  # a name from a manifest must never lead out of the folder
        raise RecordError(folder / MANIFEST, f"{name!r} is not a table name (lower case letters, digits, underscores)")
    return folder / f"{name}.parquet"


def _parquet_bytes(path: Path, frame: pd.DataFrame) -> bytes:
    import pandas as pd

    buffer = io.BytesIO()
    # Numbers byte by byte, the rest by dictionary: two thirds of the size that the defaults give.
    numbers = [name for name in frame.columns if pd.api.types.is_float_dtype(frame[name])]
    settings: dict[str, Any] = {
        "compression": "zstd",
        "use_dictionary": [name for name in frame.columns if name not in numbers],
        "column_encoding": dict.fromkeys(numbers, "BYTE_STREAM_SPLIT"),
    }
    try:
        frame.to_parquet(buffer, engine="pyarrow", index=False, **settings)
    except Exception as error:  # pyarrow raises several unrelated types on what it cannot store
        raise RecordError(path, f"the table cannot be stored as Parquet ({error})") from error
    return buffer.getvalue()


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise RecordError(path, "is missing; the run was interrupted or this is not a run folder") from None
    except OSError as error:
        raise RecordError(path, f"cannot be read ({error.strerror})") from error


def _verify(path: Path, digest: str, expected: str) -> None:
    if digest != expected:
        raise RecordError(
            path, f"is damaged: its sha256 is {digest[:12]}..., run.json says {expected[:12]}...; make the run again"
        )


def _plain(value: Any, path: str | os.PathLike[str], where: str = "") -> Any:
    """``value`` as plain JSON types: dataclasses, mappings, sequences, sets, paths and numpy scalars are converted."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise RecordError(path, f"{where or 'the value'} is {value}, which JSON cannot hold")
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item, path, f"{where}.{key}".lstrip(".")) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        value = sorted(value)
    if isinstance(value, list | tuple):
        return [_plain(item, path, f"{where}[{index}]") for index, item in enumerate(value)]
    if callable(getattr(value, "tolist", None)):  # numpy and torch scalars and arrays
        return _plain(value.tolist(), path, where)
    raise RecordError(path, f"{where or 'the value'} is a {type(value).__name__}, which JSON cannot hold")


@functools.cache
def machine() -> dict[str, Any]:
    """What the last bits of a sum depend on besides versions: the processor's name, and how many threads share the work."""
    name = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return {"cpu": name, "threads": os.environ.get("OMP_NUM_THREADS") or str(os.cpu_count())}


def circumstances() -> dict[str, Any]:
    """What made a record, in its manifest: code, packages, Python, platform, machine."""
    return {
        "code": code_version(),
        "packages": package_versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": machine(),
    }


def elsewhere(run: Run) -> list[str]:
    """What of a run's circumstances is different here, a line each. None: made again, it must be the same bits."""
    then, here = _named(run.manifest), _named(circumstances())
    return [f"{name} {then[name]} then, {here.get(name)} here" for name in then if then[name] != here.get(name)]


def _named(manifest: Mapping[str, Any]) -> dict[str, Any]:
    found = {f"version: {name}": version for name, version in (manifest.get("packages") or {}).items()}
    found |= {f"machine: {name}": what for name, what in (manifest.get("machine") or {"cpu": "unknown"}).items()}
    commit = str((manifest.get("code") or {}).get("commit"))[:12]
    return found | {"version: python": manifest.get("python"), "version: code of commit": commit}


def package_versions() -> dict[str, str]:
    """The versions of the packages that results depend on, where they are installed."""
    versions = {}
    for name in _VERSIONED_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _git(folder: Path, *arguments: str) -> str | None:
    """The output of a git command, or None where there is no git or it fails."""
    try:
        done = subprocess.run(
            ["git", "-C", folder, *arguments], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None

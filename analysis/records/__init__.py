"""Run records, and how files are written: `runs` has the records, `files` the writes, `locks` who may write, `redaction` what is not."""

from analysis.records.files import RecordError, atomic_folder, atomic_write, publish
from analysis.records.locks import LockError, sole, write_unlocked
from analysis.records.redaction import redact
from analysis.records.runs import (
    FORMAT_VERSION,
    MANIFEST,
    Run,
    code_version,
    copy_run,
    elsewhere,
    find_runs,
    fingerprint,
    is_complete,
    package_versions,
    read_manifest,
    read_run,
    write_run,
)

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST",
    "LockError",
    "RecordError",
    "Run",
    "atomic_folder",
    "atomic_write",
    "code_version",
    "copy_run",
    "elsewhere",
    "find_runs",
    "fingerprint",
    "is_complete",
    "package_versions",
    "publish",
    "read_manifest",
    "read_run",
    "redact",
    "sole",
    "write_run",
    "write_unlocked",
]

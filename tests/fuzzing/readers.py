"""The readers that are fuzzed, by family; a module of each kind of file has them with the valid files to begin from."""

from __future__ import annotations

from collections.abc import Callable

from fuzzing import own_files, preferences, results, settings
from fuzzing.judging import Reader

FAMILIES: dict[str, Callable[[], list[Reader]]] = {
    "preferences": preferences.preference_readers,
    "saved_dataset": lambda: [preferences.saved_dataset()],
    "settings": settings.setting_readers,
    "tasks": lambda: [settings.task_reader()],
    "questions": lambda: [settings.question_reader()],
    "records": lambda: [results.record_reader()],
    "own": own_files.own_readers,
    "stored_pairs": lambda: [own_files.store_reader()],
    "reference_logps": lambda: [own_files.reference_reader()],
    "kept_files": lambda: [own_files.kept_reader()],
    "gguf": lambda: [own_files.gguf_reader()],
    "imports": results.import_readers,
    "event_files": lambda: [results.event_reader()],
}


def every(names: tuple[str, ...] = ()) -> list[Reader]:
    """The readers, or those with these names (of readers or families)."""
    found = []
    for family, make in FAMILIES.items():
        if names and family not in names and set(names) <= set(FAMILIES):
            continue  # making the valid files takes seconds
        found += [reader for reader in make() if not names or family in names or reader.name in names]
    return found

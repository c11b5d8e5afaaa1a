"""Result files of lm-eval (``results_*.json``) with the samples beside them (``samples_*.jsonl``): one score an item."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.importing.imported import Imported, loads, plain_settings, read_json
from analysis.records import RecordError, fingerprint

BENCHMARK = "benchmark/"
SCORES = "benchmark_scores"
_ABOUT = (
    "model_name",
    "model_source",
    "lm_eval_version",
    "transformers_version",
    "date",
    "git_hash",
    "fewshot_as_multiturn",
)
TOLERANCE = 1e-6  # between the mean of the samples and the score of the results

_STAMP = re.compile(r"_(\d{4}-\d{2}-\d{2}T[\d.-]+)$")

Rows = list[tuple[str, str, int, float]]  # task, metric, item, value


def find(folder: Path) -> list[Path]:
    """The result files below a folder."""
    return sorted(path for path in folder.rglob("results*.json") if path.is_file())


def read(path: Path, name: str | None = None, *, before: Path | None = None) -> Imported:
    """Per-item scores as evaluations (step 1; those of ``before``, the reference's results, step 0), else the tasks' scores.

    Raises:
        RecordError: a file is damaged or no result of lm-eval, the samples do not give the score of the results, or the two results
            were not measured in the same way on the same items.
    """
    after = _Results(path)
    earlier = None if before is None else _Results(before)
    if earlier is not None:
        _check_same(earlier, after)
    rows = [(1, f"{BENCHMARK}{task}", metric, item, value) for task, metric, item, value in after.rows]
    if earlier is not None:
        known = {(task, metric) for task, metric, _, _ in after.rows}
        rows = [
            (0, f"{BENCHMARK}{task}", metric, item, value)
            for task, metric, item, value in earlier.rows
            if (task, metric) in known
        ] + rows
    tables: dict[str, pd.DataFrame] = {}
    if rows:
        tables["evaluations"] = pd.DataFrame(rows, columns=["step", "split", "metric", "item", "value"])
    if after.scores:
        tables[SCORES] = pd.DataFrame(after.scores, columns=["task", "metric", "value", "standard_error", "n"])
    if not tables:
        raise RecordError(path, "holds no score that is a number")
    notes = after.notes + ([] if earlier is None else [f"before: {note}" for note in earlier.notes])
    files = after.files + ([] if earlier is None else earlier.files)
    about = plain_settings(after.found, _ABOUT) | {"benchmarks": after.tasks}
    if earlier is not None:
        about["before"] = plain_settings(earlier.found, _ABOUT)
    return Imported(name or default_name(path, after.found), "lm_eval", tuple(files), tables, {}, about, tuple(notes))


def default_name(path: Path, found: dict[str, Any]) -> str:
    """The model's name with the date of the results, which tells several results of one model apart."""
    model = str(found.get("model_name") or path.resolve().parent.name).rstrip("/").rpartition("/")[2]
    return f"{model}{path.stem.removeprefix('results')}"


class _Results:
    """A result file with its samples, checked against each other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found = read_json(path)
        results = self.found.get("results")
        if not isinstance(results, dict) or not all(isinstance(scores, dict) for scores in results.values()):
            raise RecordError(path, "is no result file of lm-eval: it has no results by task")
        self.files: list[Path] = [path]
        self.rows: Rows = []
        self.scores: list[tuple[str, str, float, float, float]] = []  # task, metric, value, standard error, n
        self.notes: list[str] = []
        self.tasks: dict[str, dict[str, Any]] = {}
        for task, scores in sorted(results.items()):
            samples = self._samples_file(task)
            have: set[str] = set()
            hashes = None
            if samples is not None:
                self.files.append(samples)
                have, hashes = self._read_samples(task, samples, scores)
            self.tasks[task] = {
                "version": _plain(self._of("versions", task)),
                "n_shot": _plain(self._of("n-shot", task)),
                "items": hashes,
            }
            self._scores(task, scores, have)

    def _of(self, key: str, task: str) -> Any:
        found = self.found.get(key)
        return found.get(task) if isinstance(found, dict) else None

    def _samples_file(self, task: str) -> Path | None:
        """lm-eval gives both files the same time in their names; where the results were renamed, the one file of the task."""
        if stamp := _STAMP.search(self.path.stem):
            try:
                path = self.path.with_name(f"samples_{task}_{stamp[1]}.jsonl")
                return path if path.is_file() else None
            except (OSError, ValueError):  # a task whose name no file can have
                return None
        found = [path for path in self.path.parent.glob("samples_*.jsonl") if _task_of(path) == task]
        return found[0] if len(found) == 1 else None

    def _read_samples(self, task: str, path: Path, scores: dict[str, Any]) -> tuple[set[str], str]:
        """Adds the items' rows; the metrics that the samples have, and a fingerprint of the items."""
        found: dict[str, dict[int, float]] = {}
        documents: dict[int, Any] = {}
        try:
            lines = path.read_text(encoding="utf-8").split("\n")  # JSON text may hold other line separators
        except (OSError, UnicodeDecodeError) as error:
            raise RecordError(path, f"cannot be read ({error})") from error
        strange: set[str] = set()
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                sample = loads(line)
                item, filter_name, metrics = int(sample["doc_id"]), str(sample.get("filter", "none")), sample["metrics"]
                for metric in metrics:
                    ours = metric if filter_name == "none" else f"{metric},{filter_name}"
                    value = sample[metric]
                    if not isinstance(value, int | float):
                        strange.add(ours)
                        continue
                    if item in found.setdefault(ours, {}):
                        raise ValueError(f"item {item} has {ours} twice")
                    found[ours][item] = float(value)
                documents[item] = sample.get("doc_hash") or fingerprint(sample.get("doc"))
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
                reason = f"no key {error}" if isinstance(error, KeyError) else str(error)
                raise RecordError(path, f"line {number} is no sample of lm-eval: {reason}") from error
        for metric in sorted(strange):
            found.pop(metric, None)
        self._check_means(task, path, scores, found)
        self.rows += [
            (task, metric, item, value)
            for metric, values in sorted(found.items())
            for item, value in sorted(values.items())
        ]
        return set(found), fingerprint(sorted(documents.items()))

    def _check_means(self, task: str, path: Path, scores: dict[str, Any], found: dict[str, dict[int, float]]) -> None:
        """The samples must give the score that the results state, where that is a mean over items."""
        listed = (self._of("configs", task) or {}).get("metric_list") or []
        means = {
            entry.get("metric") for entry in listed if isinstance(entry, dict) and entry.get("aggregation") == "mean"
        }
        for metric, values in found.items():
            bare, _, filter_name = metric.partition(",")
            stated = scores.get(f"{bare},{filter_name or 'none'}")
            if bare in means and isinstance(stated, int | float) and values:
                mean = sum(values.values()) / len(values)  # NaN where an item is
                if not math.isclose(mean, stated, abs_tol=TOLERANCE, rel_tol=TOLERANCE):
                    raise RecordError(
                        path,
                        f"does not belong to {self.path.name}, or is damaged: {metric} of its {len(values)} items is {mean:.6g}, the "
                        f"results state {stated:.6g}",
                    )

    def _scores(self, task: str, scores: dict[str, Any], have: set[str]) -> None:
        """What the results state and no sample tells."""
        counts = self._of("n-samples", task)
        n = counts.get("effective") if isinstance(counts, dict) else None
        for key, value in sorted(scores.items()):
            metric, comma, filter_name = key.partition(",")
            ours = metric if filter_name in ("", "none") else key
            if not comma or metric.endswith("_stderr") or ours in have:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                self.notes.append(f"left out {task} {ours}: it is no number")
                continue
            error = scores.get(f"{metric}_stderr,{filter_name}")
            error = float(error) if isinstance(error, int | float) else math.nan
            self.scores.append((task, ours, float(value), error, float(n) if isinstance(n, int) else math.nan))


def _check_same(before: _Results, after: _Results) -> None:
    """Raise RecordError where the tasks that both have were not measured in the same way on the same items."""
    shared = sorted(set(before.tasks) & set(after.tasks))
    if not shared:
        raise RecordError(
            before.path, f"has no task in common with {after.path.name}: {', '.join(sorted(after.tasks))}"
        )
    for task in shared:
        for key, words in (("version", "version of the task"), ("n_shot", "number of examples"), ("items", "items")):
            one, two = before.tasks[task][key], after.tasks[task][key]
            if one != two and None not in (one, two):
                values = "" if key == "items" else f" ({one} and {two})"
                raise RecordError(
                    before.path,
                    f"{task}: another {words} than in {after.path.name}{values}; before and after must be measured alike",
                )


def _task_of(path: Path) -> str:
    return _STAMP.sub("", path.stem.removeprefix("samples_"))


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else None

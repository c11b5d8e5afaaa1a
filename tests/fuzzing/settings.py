"""Settings of runs and sweeps, worlds, labels of objectives; tasks and questions of benchmarks."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import objectives
from fuzzing import seeds
from fuzzing.judging import Reader
from fuzzing.mutations import TEXT, YAML
from fuzzing.seeds import ROOT, lines
from llm_runs import benchmarks, strict
from llm_runs.config import RunConfig
from llm_runs.errors import InputError
from llm_runs.sweeps.spec import SweepConfig
from toy_bandits.errors import BanditError
from toy_bandits.worlds import registry as worlds


def _shipped(folder: str, longest: int = 10_000) -> list[tuple[str, bytes]]:
    paths = sorted((ROOT / folder).glob("*.yaml"))
    return [(path.name, content) for path in paths if len(content := path.read_bytes()) < longest]


def _is_a_config(path: Path, config: RunConfig) -> None:
    """What was read is written out and read again to the same."""
    assert strict.build(RunConfig, config.to_dict(), "") == config


def setting_readers() -> list[Reader]:
    def sweep(path: Path) -> Any:
        shutil.copy(ROOT / "llm_runs/configs/tiny.yaml", path.parent / "beside.yaml")
        return SweepConfig.load(path)

    trimmed = []  # a world's file with its first two worlds: all would make each mutant slow
    for name, content in _shipped("toy_bandits/worlds/data"):
        head, mark, rest = content.partition(b"\nworlds:")
        parts = rest.split(b"\n  ")
        entries = [i for i, part in enumerate(parts) if part[:1].isdigit()]
        trimmed.append((name, head + mark + b"\n  ".join(parts[: entries[2]] if len(entries) > 2 else parts)))
    labels = [objectives.get(name).label for name in ("dpo", "ipo", "simpo", "kto", "exo_pref", "slic_hf")]
    labels += ["maxpo(beta=0.1, temperature='auto', tokens='full')", "dpo(beta=0.1) + forward_kl(weight=0.1)"]
    return [
        Reader("configs", _shipped("llm_runs/configs"), YAML, RunConfig.load, (InputError,), _is_a_config),
        Reader("sweeps", _shipped("llm_runs/configs/sweeps"), YAML, sweep, (InputError,)),
        Reader("worlds", trimmed, YAML, worlds.load_file, (BanditError, objectives.ObjectiveError)),
        Reader("objectives", [("label.txt", label.encode()) for label in labels], TEXT,
               lambda path: objectives.parse(path.read_text(encoding="utf-8", errors="replace")),
               (objectives.ObjectiveError,), names_file=False),
    ]  # fmt: skip


# -- benchmarks --------------------------------------------------------------------------------------------------

_TASK = """task: fuzzed
dataset_path: json
dataset_kwargs:
  data_files: {test: QUESTIONS}
test_split: test
output_type: multiple_choice
doc_to_text: "{{query}}"
doc_to_choice: "{{choices}}"
doc_to_target: gold
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
metadata: {version: 1.0}
"""
_QUESTIONS = [{"query": f"q {i}", "choices": ["a", "b"], "gold": i % 2} for i in range(3)]


class _NoTasks:
    all_tasks: tuple[str, ...] = ()


def task_reader() -> Reader:
    """Task files of lm-eval. Its own thousands of tasks, among which a name that is not found is looked for, are left out: 20 s a look."""
    plain, questions = benchmarks._manager, Path(tempfile.mkdtemp(prefix="fuzz-")) / "questions.jsonl"
    questions.write_bytes(lines(_QUESTIONS))

    def manager(include: Any, *, defaults: bool = False) -> Any:
        return _NoTasks() if defaults else plain(include)

    def read(path: Path) -> None:
        benchmarks._manager = manager
        with seeds.folder() as folder:
            shutil.copy(path, folder / path.name)
            try:
                benchmarks.check(["fuzzed"], folder)
            finally:
                benchmarks._manager = plain

    seed = _TASK.replace("QUESTIONS", str(questions)).encode()
    return Reader("lm_eval_tasks", [("fuzzed.yaml", seed)], YAML, read, (InputError,), names_file=False)


def question_reader() -> Reader:
    return Reader("questions", [("own.jsonl", lines(_QUESTIONS))], TEXT, benchmarks._jsonl_task, (InputError,))

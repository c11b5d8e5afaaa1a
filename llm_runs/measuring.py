"""One policy measured: everything that `evaluation` and `benchmarks` have of it, as tables of a record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from transformers import PreTrainedModel

from llm_runs import benchmarks, memory
from llm_runs.config import EvaluationConfig
from llm_runs.evaluation import Evaluator


def measure(
    evaluator: Evaluator, model: PreTrainedModel, step: int, config: EvaluationConfig, tasks: Sequence[str] = ()
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All evaluations of a policy, with the benchmarks `tasks`, and its samples: step, item, prompt, completion, reward."""
    with memory.lower("evaluation.batch_size", config.batch_size):
        frames = [evaluator.evaluate(model, step)]
    if tasks:
        frames.append(
            benchmarks.run(
                model,
                evaluator.tokenizer,
                tasks,
                step=step,
                limit=config.benchmark_limit,
                include=config.benchmark_include,
                batch_size=config.batch_size,
            )
        )
    texts = [(step, item, each.prompt, each.completion, each.reward) for item, each in enumerate(evaluator.samples)]
    return pd.concat(frames, ignore_index=True), pd.DataFrame(
        texts, columns=["step", "item", "prompt", "completion", "reward"]
    )


def name_of(source: str) -> str:
    """A name for the folder of a model's evaluation; `runs/x/model` and `x/checkpoint-9` are named with their folder."""
    path = Path(source)
    generic = path.name == "model" or path.name.startswith("checkpoint-")
    return f"{path.parent.name}-{path.name}" if generic and path.parent.name else path.name

"""Small records for the tests of the report: a language-model run with everything a page shows, and a profile card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.records import write_run

# What a model might write: it must be shown as it is, and never run.
HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>\"'&amp;{{ 7 * 7 }}"


def language_model(
    folder: Path,
    method: str,
    *,
    name: str | None = None,
    seed: int = 0,
    kl: float = 2.0,
    reward: str = "tfidf",
    strength: float = 0.1,
    labels: str = "near_deterministic",
    texts: tuple[str, str] = ("it was a film", "it was a wonderful film"),
    units: Mapping[str, str] | None = None,
    evaluations: pd.DataFrame | None = None,
    items: int = 12,
    steps: int = 20,
    training: Mapping[str, Any] | None = None,
) -> Path:
    rng = np.random.default_rng([seed, int(100 * strength)])
    rows: list[tuple[int, str, str, int, float]] = []
    base = np.random.default_rng(5).normal(0, 1, items)
    for step, progress in ((0, 0.0), (steps // 2, 0.5), (steps, 1.0)):
        noise = rng.uniform(0.5, 1.5, items)
        for metric, values in (
            ("kl_policy_reference", kl * progress * noise if progress else np.zeros(items)),
            ("reward", base + progress * noise),
            ("second_reward", base - progress * noise),
        ):
            rows += [(step, "held_out_prompts", metric, item, float(value)) for item, value in enumerate(values)]
        if step in (0, steps):
            gained = np.arange(items) < (items // 2 + 2 * bool(step))
            rows += [(step, "benchmark/facts", "acc", item, float(value)) for item, value in enumerate(gained)]
    curve = [(step, "loss", float(np.exp(-step / 8) + 0.05 * rng.normal())) for step in range(1, steps + 1)]
    samples = [
        (step, item, f"The film number {item}", text, float(step > 0))
        for step, text in ((0, texts[0]), (steps, texts[1]))
        for item in range(6)
    ]
    config: dict[str, Any] = {
        "objective": {"name": method, "hyperparameters": {"beta": strength}, "label": f"{method}(beta={strength:g})"},
        "labels": {"name": labels, "temperature": 0.01},
        "model": {"name": "tiny"},
        "data": {"completion_tokens": 8},
        "reward": {"name": reward},
    }
    if units is not None:
        config["units"] = dict(units)
    if training is not None:
        config["training"] = dict(training)
    return write_run(
        folder,
        kind="llm",
        id=f"test/{name or f'{method}-{seed}'}",
        config=config,
        seeds={"training": seed},
        tables={
            "metrics": pd.DataFrame(curve, columns=["step", "name", "value"]),
            "evaluations": pd.DataFrame(rows, columns=["step", "split", "metric", "item", "value"])
            if evaluations is None
            else evaluations,
            "samples": pd.DataFrame(samples, columns=["step", "item", "prompt", "completion", "reward"]),
        },
    )


def card(folder: Path, label: str = "maxpo") -> Path:
    """A profile record as ``python -m toy_bandits profile`` writes it, with two diagnostics and one baseline."""
    nan = float("nan")
    scores = [
        (label, "determinism", "Bounded when labels are certain", 0.9, nan, nan, 4, 0, ""),
        ("dpo", "determinism", "Bounded when labels are certain", 0.2, 0.1, 0.3, 4, 0, ""),
        (label, "strength", "Strength acts", 0.7, nan, nan, 4, 1, ""),
        ("dpo", "strength", "Strength acts", nan, nan, nan, 0, 0, "no beta"),
        (label, "noise", "Survives noise", 0.6, 0.5, 0.7, 4, 0, ""),
        ("dpo", "noise", "Survives noise", 0.8, 0.7, 0.9, 4, 0, ""),
    ]
    columns = ["objective", "diagnostic", "title", "score", "low", "high", "problems", "unsolved", "reason"]
    frontier = pd.DataFrame(
        [
            (name, "bradley_terry/1", strength, kl * factor, kl * factor / (1 + kl), "converged")
            for name, factor in ((label, 1.0), ("dpo", 1.3))
            for strength, kl in ((0.01, 2.0), (0.1, 1.0), (1.0, 0.2))
        ],
        columns=["objective", "world", "strength", "kl_policy_reference", "expected_reward", "status"],
    )
    return write_run(
        folder,
        kind="bandit",
        id=f"bandit/profile/{label}",
        config={"profile": label, "hyperparameters": {}, "compare": ["dpo"], "diagnostics": ["determinism"]},
        seeds={"data": 0},
        tables={
            "results": pd.DataFrame({"x": [1.0]}),
            "scores": pd.DataFrame(scores, columns=columns),
            "frontier": frontier,
        },
    )

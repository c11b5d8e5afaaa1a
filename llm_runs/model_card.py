"""The model card of a trained model, from the record of its run: what was optimised, on what, how far it went, what is not known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from scipy import stats

import objectives
from analysis.records import Run, atomic_write, read_run

FILE = "README.md"
_TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
_SETTINGS = ("batch_size", "learning_rate", "schedule", "warmup_steps", "weight_decay", "max_grad_norm", "lora")
_SHOWN = {  # (split, metric): in this order; benchmarks follow
    ("held_out_prompts", "reward"): "reward",
    ("held_out_prompts", "win_rate"): "win rate against the reference",
    ("held_out_prompts", "second_reward"): "reward that was not optimised",
    ("held_out_prompts", "kl_policy_reference"): "KL(policy ‖ reference)",
    ("held_out_reference_samples", "kl_reference_policy"): "KL(reference ‖ policy)",
    ("held_out_pairs", "preference_accuracy"): "preference accuracy",
    ("training_pairs", "preference_accuracy"): "preference accuracy",
    ("other_text", "nll"): "negative log-likelihood of a text",
}


def write(folder: Path, record: Path) -> Path:
    """Write `folder/README.md`, the card of the model there, from the finished run in `record`; returns its path.

    Raises RecordError where the record cannot be read.
    """
    return atomic_write(folder / FILE, f"{card(read_run(record))}\n".encode())


def card(run: Run) -> ModelCard:
    """The card of a finished run of kind "llm"."""
    config, evaluation = run.config, evaluations(run.table("evaluations"))
    objective = objectives.parse(config["objective"]["label"])
    base, source = config["model"]["name"], config["data"]["preferences"]
    title = f"{Path(base).name}-{objective.name}"
    data = ModelCardData(
        base_model=base if base.count("/") == 1 and not Path(base).exists() else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["preference-optimization", *(part.name for part in objective.parts)],
        model_name=title,
        eval_results=[
            EvalResult(
                task_type="text-generation",
                dataset_type=row["split"],
                dataset_name=row["split"],
                metric_type=row["metric"],
                metric_value=row["value"],
            )
            for row in evaluation
        ]
        or None,
    )
    labels = config["labels"]
    temperature = labels["temperature"]
    sft = config["sft"]["steps"]
    return ModelCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        title=title,
        base=base,
        reference=f"fine-tuned for {sft} steps (the reference)" if sft else "as it is (the reference)",
        steps=config["training"]["steps"],
        label=objective.label,
        parts=_parts(config["objective"]),
        source=source
        or f"completions of the reference on {config['data']['text']}, scored by {config['reward']['name']}",
        pairs=run.manifest["extra"].get("pairs", "an unknown number of"),
        labels=f"{labels['name']} labels" + (f" (temperature {temperature:g})" if temperature is not None else ""),
        fingerprint=run.manifest["data_fingerprint"],
        seeds=", ".join(f"{name} {seed}" for name, seed in run.seeds.items()),
        training=[(name, value) for name in _SETTINGS if (value := config["training"].get(name)) is not None],
        evaluation=evaluation,
        kl_prompts=f"{config['evaluation']['prompts']} held-out prompts of {source or config['data']['text']}",
        label_limit="The labels were given; their quality is not known."
        if source
        else "The reward is a model of sentiment, not a person: what it prefers is not what people prefer.",
        versions=", ".join(f"{name} {version}" for name, version in run.manifest["packages"].items()),
        run=run.id,
        format=run.manifest["format_version"],
        device=run.manifest["device"],
        written=run.manifest["times"]["written"],
    )


def evaluations(table: pd.DataFrame) -> list[dict[str, Any]]:
    """What the card shows of a run's evaluations: a row for each split and metric, with the paired change and its 95 % interval."""
    last = int(table["step"].max())
    benchmarks = {
        (split, metric): str(metric)
        for split, metric in table[["split", "metric"]].drop_duplicates().itertuples(index=False)
        if str(split).startswith("benchmark/")
    }
    rows = []
    for (split, metric), shown in {**_SHOWN, **benchmarks}.items():
        chosen = table[(table["split"] == split) & (table["metric"] == metric) & table["step"].isin((0, last))]
        pairs = chosen.pivot(index="item", columns="step", values="value").reindex(columns=[0, last]).dropna()
        if pairs.empty or last == 0:
            continue
        before, after = pairs[0].to_numpy(), pairs[last].to_numpy()
        rows.append(
            {
                "split": str(split).replace("_", " "),
                "metric": shown,
                "items": len(pairs),
                "before": f"{before.mean():.3g}",
                "after": f"{after.mean():.3g}",
                "change": _interval(after - before),
                "value": float(after.mean()),
            }
        )
    return rows


def _interval(differences: Any) -> str:
    """The mean with its 95 % interval; without one where there are too few items, or nothing varies."""
    mean = float(np.mean(differences))
    if len(differences) < 2 or np.ptp(differences) == 0:
        return f"{mean:+.3g}"
    low, high = stats.t.interval(0.95, len(differences) - 1, loc=mean, scale=stats.sem(differences))
    return f"{mean:+.3g} [{low:+.3g}, {high:+.3g}]"


def _parts(objective: dict[str, Any]) -> list[dict[str, str]]:
    """The objective's parts, with the strengths that were used: an automatic one as the number that it stood for."""
    parsed = objectives.parse(objective["label"])
    used, found = objective["hyperparameters"], []
    for part in parsed.parts:
        about = objectives.describe(part.name)
        several = len(parsed.parts) > 1
        values = {
            name: used.get(f"{part.name}.{name}" if several else name, value)
            for name, value in part.hyperparameters.items()
        }
        strength = about.strength.parameter if about.strength else None
        listed = ", ".join(
            f"{name} = {value}" + (" (strength)" if name == strength else "") for name, value in values.items()
        )
        row = {"name": part.name, "formula": about.formula, "hyperparameters": listed, "paper": about.paper}
        found.append({name: text.replace("|", "\\|") for name, text in row.items()})
    return found

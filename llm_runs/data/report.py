"""What preference data are like, before anything is trained on them: counts, lengths, overlap, how certain the labels are.

The table of pairs is written and read in pieces, a column at a time, so that memory grows by few bytes a pair.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit
from tabulate import tabulate

from analysis.records import atomic_write
from llm_runs.config import DataConfig
from llm_runs.data.loading import Loaded
from llm_runs.data.stored import StoredPairs

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_LABELS = ("min", "5 %", "25 %", "median", "75 %", "95 %", "max")
_TOGETHER = 1 << 20  # pairs that are grouped in memory at a time
_LENGTHS = {"prompt_ids": "prompt_tokens", "chosen_ids": "chosen_tokens", "rejected_ids": "rejected_tokens"}
_HASHES = {"prompt_hash": "prompt", "pair_hash": "pair"}
_GROUP = 1 << 16  # rows that are written together
_KEPT = ("id", "order", "common_prefix", "overlap", "chosen_reward", "rejected_reward", "probability")
_SCHEMA = pa.schema(
    [
        ("side", pa.string()),
        *((name, pa.int32()) for name in _LENGTHS.values()),
        *((name, pa.uint64()) for name in _HASHES.values()),
        ("id", pa.string()),
        ("order", pa.bool_()),
        *((name, pa.float64()) for name in _KEPT[2:]),
    ]
)


@dataclass(frozen=True)
class Table:
    """A Parquet file with one row a pair: side, id, prompt and pair (hashes), order, lengths in tokens, overlap, scores, probability.

    - prompt_tokens, chosen_tokens, rejected_tokens: lengths, the end-of-text token included
    - common_prefix: tokens with which chosen and rejected begin alike, as a share of the shorter one
    - overlap: tokens in common wherever they stand, 2 |A and B| / (|A| + |B|) with multiplicities (Dice)
    - pair: the same for the same two completions of the same prompt in either order; order tells the two apart
    """

    path: Path

    def column(self, name: str) -> np.ndarray[Any, Any]:
        """One column, whole."""
        values: np.ndarray[Any, Any] = pa.parquet.read_table(self.path, columns=[name]).column(0).to_numpy()
        return values

    def groups(self) -> Iterator[pd.DataFrame]:
        """training (or held out), prompt, pair and order, some pairs after the other: all pairs of a prompt are together."""
        with pa.parquet.ParquetFile(self.path) as file:
            count = max(1, -(-file.metadata.num_rows // _TOGETHER))
            for group in range(count):
                parts = []
                for batch in file.iter_batches(columns=["side", "prompt", "pair", "order"]):
                    here = batch.column("prompt").to_numpy() % np.uint64(count) == group
                    training = pa.compute.equal(batch.column("side"), "training").to_numpy(zero_copy_only=False)
                    numbers = {
                        name: batch.column(name).to_numpy(zero_copy_only=False) for name in ("prompt", "pair", "order")
                    }
                    parts.append({name: values[here] for name, values in {"training": training, **numbers}.items()})
                yield pd.DataFrame({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def write(loaded: Loaded, path: Path) -> Table:
    """The table of `loaded`, a piece after the other."""

    def stream(file: Any) -> None:
        with pa.parquet.ParquetWriter(file, _SCHEMA) as writer:
            waiting: list[pa.Table] = []
            for rows in itertools.chain(_rows("training", loaded.training), _rows("held_out", loaded.held_out)):
                waiting.append(rows)
                if sum(map(len, waiting)) >= _GROUP:
                    writer.write_table(pa.concat_tables(waiting))
                    waiting.clear()
            writer.write_table(pa.concat_tables([_SCHEMA.empty_table(), *waiting]))

    atomic_write(path, stream)
    return Table(path)


def _rows(side: str, pairs: StoredPairs) -> Iterator[pa.Table]:
    """The rows of one side, in the order of the store."""
    chosen = np.zeros(len(pairs.store), dtype=bool)
    chosen[pairs.rows] = True
    start = 0
    for columns in pairs.store.columns([*_LENGTHS, *_HASHES, *_KEPT]):
        here = chosen[start : start + len(columns["order"])]
        start += len(here)
        found: dict[str, Any] = {"side": [side] * int(here.sum())}
        for name, values in columns.items():
            found[{**_LENGTHS, **_HASHES}.get(name, name)] = values[here]
        yield pa.table(found, schema=_SCHEMA)


def describe(loaded: Loaded, table: Table, config: DataConfig) -> dict[str, Any]:
    """The report as plain values, for JSON; `table` is `write(loaded, ...)`."""
    reading = config.reading
    chosen, rejected = table.column("chosen_tokens"), table.column("rejected_tokens")
    groups = _groups(table)
    return {
        "sources": [
            {
                "source": account.source,
                "kind": account.kind,
                "format": account.format,
                "detected": account.detected,
                "fingerprint": account.fingerprint,
                "records": account.records,
                "pairs": account.pairs,
                "left_out": dict(account.left_out),
                "examples": account.named,
                "notes": account.notes,
            }
            for account in loaded.accounts
        ],
        "rendering": {"records": dict(loaded.rendered), "chat_template_sha256": loaded.template},
        "truncation": {
            "overlong": reading.overlong,
            "max_prompt_tokens": reading.max_prompt_tokens,
            "max_completion_tokens": reading.max_completion_tokens,
            "prompt_keep": reading.prompt_keep,
            "prompts_cut": loaded.truncated.get("prompts", 0),
            "completions_cut": loaded.truncated.get("completions", 0),
        },
        "split": {
            "rule": "given"
            if len(loaded.accounts) == 2
            else f"hash of the prompt, {config.held_out_fraction:g} held out",
            "left_out_of_training_as_held_out": loaded.shared_prompts,
            "training": {"pairs": len(loaded.training), "prompts": groups["training"]},
            "held_out": {"pairs": len(loaded.held_out), "prompts": groups["held_out"]},
            "prompts_in_both": groups["both"],
        },
        "lengths": {name: _quantiles(table.column(f"{name}_tokens")) for name in ("prompt", "chosen", "rejected")}
        | {"chosen_longer": float((chosen > rejected).mean())},
        "overlap": {name: _quantiles(table.column(name)) for name in ("common_prefix", "overlap")},
        "duplicates": {
            name: groups[name] for name in ("repeated_labels", "pairs_labelled_both_ways", "prompts_with_several_pairs")
        },
        "determinism": _determinism(table, groups),
    }


def markdown(values: Mapping[str, Any]) -> str:
    """The report as a page; `values` is what `describe` returns."""
    parts = ["# Data report"]
    for account in values["sources"]:
        how = "detected" if account["detected"] else "as configured"
        lines = [f"**{account['source']}**: {account['kind']}; format {account['format']} ({how})"]
        lines += [f"{account['records']:,} records, {account['pairs']:,} pairs", *account["notes"]]
        lines += [f"{count:,} records left out: {reason}" for reason, count in account["left_out"].items()]
        lines += [f"  for example {where}" for named in account["examples"].values() for where in named[:1]]
        parts.append("\n".join(f"- {line}" if not line.startswith("  ") else f"  - {line.strip()}" for line in lines))
    parts.append(_rendering(values))
    split = values["split"]
    rows = [[side.replace("_", " "), split[side]["pairs"], split[side]["prompts"]] for side in ("training", "held_out")]
    parts.append("## Split\n\n" + _table(rows, ["", "pairs", "prompts"]))
    text = f"Rule: {split['rule']}. Prompts on both sides: {split['prompts_in_both']}."
    if split["left_out_of_training_as_held_out"]:
        text += (
            f" Training pairs left out because their prompt is held out: {split['left_out_of_training_as_held_out']:,}."
        )
    parts.append(text)
    lengths = {name: values["lengths"][name] for name in ("prompt", "chosen", "rejected")}
    parts.append("## Lengths (tokens)\n\n" + _quantile_table(lengths, "{:.0f}"))
    parts.append(f"Chosen is the longer one in {values['lengths']['chosen_longer']:.1%} of pairs.")
    overlap = {
        "common beginning, share of the shorter": values["overlap"]["common_prefix"],
        "tokens in common (Dice)": values["overlap"]["overlap"],
    }
    parts.append("## Overlap of chosen and rejected\n\n" + _quantile_table(overlap, "{:.2f}"))
    parts.append("## Labels\n\n" + "\n".join(f"- {line}" for line in _label_lines(values)))
    return "\n\n".join(parts) + "\n"


def _quantiles(column: np.ndarray[Any, Any]) -> list[float]:
    return [float(value) for value in np.quantile(column.astype(float, copy=False), QUANTILES)]


def _groups(table: Table) -> dict[str, Any]:
    """What compares pairs with each other: prompts by side, labels that repeat, pairs that are labelled both ways.

    `wins` and `labels` are of every pair that has several labels.
    """
    names = (
        "training",
        "held_out",
        "both",
        "repeated_labels",
        "pairs_labelled_both_ways",
        "prompts_with_several_pairs",
    )
    found: dict[str, Any] = dict.fromkeys((*names, "pairs", "once"), 0)
    wins, labels = [], []
    for rows in table.groups():
        training, held_out = (np.unique(rows.loc[rows["training"] == side, "prompt"]) for side in (True, False))
        found["training"] += len(training)
        found["held_out"] += len(held_out)
        found["both"] += len(np.intersect1d(training, held_out, assume_unique=True))
        counts = rows.groupby("pair")["order"].agg(["size", "sum"])
        found["repeated_labels"] += int(rows.duplicated(["pair", "order"]).sum())
        found["pairs_labelled_both_ways"] += int(((counts["sum"] > 0) & (counts["sum"] < counts["size"])).sum())
        found["prompts_with_several_pairs"] += int((rows.groupby("prompt")["pair"].nunique() > 1).sum())
        found["pairs"] += len(counts)
        found["once"] += int((counts["size"] == 1).sum())
        repeated = counts[counts["size"] > 1]
        wins.append(repeated["sum"].to_numpy())
        labels.append(repeated["size"].to_numpy())
    return found | {"wins": np.concatenate(wins), "labels": np.concatenate(labels)}


def _determinism(table: Table, groups: Mapping[str, Any]) -> dict[str, Any]:
    """How certain labels are, where the data say so: by repeated labels, by given probabilities, by scores."""
    found: dict[str, Any] = {
        "pairs": groups["pairs"],
        "pairs_seen_once": groups["once"] / groups["pairs"],
        "repeated_pairs": len(groups["labels"]),
    }
    if len(groups["labels"]):
        found |= agreement(groups["wins"], groups["labels"])
    known = table.column("probability")
    known = known[~np.isnan(known)]
    if len(known):
        found["given_mean_max_probability"] = float(np.maximum(known, 1 - known).mean())
    gaps = table.column("chosen_reward") - table.column("rejected_reward")
    gaps = gaps[~np.isnan(gaps)]
    if len(gaps):
        found["score_gap"] = _quantiles(gaps)
        found["scored_pairs"] = len(gaps)
        found["score_ties"] = float((gaps == 0).mean())
        found["label_agrees_with_score"] = float(((gaps > 0) + 0.5 * (gaps == 0)).mean())
        if (gaps < 0).any() and (gaps > 0).any():
            temperature = fit_temperature(gaps)
            found["score_temperature"] = temperature
            found["score_mean_max_probability"] = (
                float(expit(np.abs(gaps) / temperature).mean()) if temperature else 1.0
            )
    return found


def agreement(wins: Any, labels: Any) -> dict[str, float | list[float] | None]:
    """How often two labels of one pair agree, from `wins` of one order among `labels` (at least 2) of each pair, both (N,).

    The mean over pairs of (w (w - 1) + l (l - 1)) / (n (n - 1)) estimates E[p^2 + (1 - p)^2] without bias; were p the same
    for all, it would be (1 + sqrt(2 agreement - 1)) / 2. The interval (95 %) is normal, over pairs; None for a single one.
    """
    wins, labels = np.asarray(wins, dtype=float), np.asarray(labels, dtype=float)
    losses = labels - wins
    each = (wins * (wins - 1) + losses * (losses - 1)) / (labels * (labels - 1))
    mean = float(each.mean())
    spread = 1.96 * float(each.std(ddof=1)) / math.sqrt(len(each)) if len(each) > 1 else None
    return {
        "agreement": mean,
        "agreement_interval": None if spread is None else [max(0.0, mean - spread), min(1.0, mean + spread)],
        "repeated_max_probability": (1 + math.sqrt(max(0.0, 2 * mean - 1))) / 2,
    }


def fit_temperature(gaps: Any) -> float:
    """T of P(chosen preferred) = sigmoid(gap / T) with the largest likelihood; `gaps` (N,) are chosen minus rejected scores.

    Infinity where the labels go against the scores as often as with them.
    """
    gaps = np.asarray(gaps, dtype=float)
    scale = float(np.abs(gaps).mean())
    result = minimize_scalar(lambda slope: -log_expit(slope * gaps / scale).sum(), bounds=(0, 50), method="bounded")
    return scale / float(result.x) if result.x > 1e-4 else math.inf


def _rendering(values: Mapping[str, Any]) -> str:
    rendering, cut = values["rendering"], values["truncation"]
    how = ", ".join(f"{count:,} prompts as {kind}" for kind, count in rendering["records"].items())
    if rendering["chat_template_sha256"]:
        how += f" (sha256 {rendering['chat_template_sha256'][:16]})"
    limits = ", ".join(
        f"{name.replace('_', ' ')} {cut[name]}" for name in ("max_prompt_tokens", "max_completion_tokens") if cut[name]
    )
    policy = {"error": "refused", "drop": "left out", "truncate": f"cut (prompts keep their {cut['prompt_keep']})"}
    return (
        f"- rendered: {how}\n- too long ({limits or 'beyond the context'}): {policy[cut['overlong']]}; "
        f"{cut['prompts_cut']:,} prompts and {cut['completions_cut']:,} completions were cut"
    )


def _label_lines(values: Mapping[str, Any]) -> list[str]:
    repeats, sure = values["duplicates"], values["determinism"]
    lines = [f"{sure['pairs_seen_once']:.1%} of {sure['pairs']:,} different pairs have one label only"]
    if sure["pairs_seen_once"] > 0.95:
        lines.append(
            "so a loss sees near-deterministic preferences, whatever the people who labelled would say a second time: "
            "DPO's margin on such pairs has no finite optimum (theory F2, claim C4)"
        )
    lines.append(
        f"{repeats['repeated_labels']:,} labels repeat an earlier one; {repeats['pairs_labelled_both_ways']:,} pairs are labelled "
        f"both ways; {repeats['prompts_with_several_pairs']:,} prompts have several pairs"
    )
    if "agreement" in sure:
        interval = sure["agreement_interval"]
        words = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
        lines.append(
            f"two labels of one pair agree with probability {sure['agreement']:.3f}{words} ({sure['repeated_pairs']:,} repeated pairs), "
            f"as if max(p, 1 - p) were {sure['repeated_max_probability']:.3f}"
        )
    if "given_mean_max_probability" in sure:
        lines.append(f"given probabilities: mean of max(p, 1 - p) {sure['given_mean_max_probability']:.3f}")
    if "scored_pairs" in sure:
        gap = sure["score_gap"]
        lines.append(
            f"{sure['scored_pairs']:,} pairs have scores; chosen minus rejected: median {gap[3]:.3g}, from {gap[0]:.3g} to {gap[-1]:.3g}; "
            f"ties {sure['score_ties']:.1%}; the higher score is the chosen one in {sure['label_agrees_with_score']:.1%}"
        )
    if "score_temperature" in sure:
        lines.append(
            f"labels against scores fit p = sigmoid(gap / {sure['score_temperature']:.3g}): mean of max(p, 1 - p) "
            f"{sure['score_mean_max_probability']:.3f}"
        )
    elif "scored_pairs" in sure and sure["score_gap"][0] > 0:
        lines.append("labels never go against the scores: given them, they are deterministic")
    return lines


def _quantile_table(rows: Mapping[str, Sequence[float]], form: str) -> str:
    return _table([[name, *(form.format(value) for value in row)] for name, row in rows.items()], ["", *_LABELS])


def _table(rows: Sequence[Sequence[Any]], headers: Sequence[str]) -> str:
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True, stralign="right")

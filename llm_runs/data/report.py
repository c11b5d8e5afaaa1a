"""What preference data are like, before anything is trained on them: counts, lengths, overlap, how certain the labels are."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit
from tabulate import tabulate

from llm_runs.config import DataConfig
from llm_runs.data.loading import Loaded
from llm_runs.data.splitting import prompt_key
from llm_runs.examples import TokenPair

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_LABELS = ("min", "5 %", "25 %", "median", "75 %", "95 %", "max")


def frame(loaded: Loaded) -> pd.DataFrame:
    """One row a pair: side, id, prompt and pair (hashes), order, lengths in tokens, overlap, scores, probability.

    - prompt_tokens, chosen_tokens, rejected_tokens: lengths, the end-of-text token included
    - common_prefix: tokens with which chosen and rejected begin alike, as a share of the shorter one
    - overlap: tokens in common wherever they stand, 2 |A and B| / (|A| + |B|) with multiplicities (Dice)
    - pair: the same for the same two completions of the same prompt in either order; order tells the two apart
    """
    rows = [
        _row(side, pair)
        for side, pairs in (("training", loaded.training), ("held_out", loaded.held_out))
        for pair in pairs
    ]
    return pd.DataFrame(rows)


def describe(loaded: Loaded, table: pd.DataFrame, config: DataConfig) -> dict[str, Any]:
    """The report as plain values, for JSON; `table` is `frame(loaded)`."""
    reading = config.reading
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
            **{
                side: {"pairs": len(part), "prompts": int(part["prompt"].nunique())}
                for side, part in ((side, table[table["side"] == side]) for side in ("training", "held_out"))
            },
            "prompts_in_both": len(
                set(table.loc[table["side"] == "training", "prompt"])
                & set(table.loc[table["side"] == "held_out", "prompt"])
            ),
        },
        "lengths": {name: _quantiles(table[f"{name}_tokens"]) for name in ("prompt", "chosen", "rejected")}
        | {"chosen_longer": float((table["chosen_tokens"] > table["rejected_tokens"]).mean())},
        "overlap": {name: _quantiles(table[name]) for name in ("common_prefix", "overlap")},
        "duplicates": _duplicates(table),
        "determinism": _determinism(table),
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


def _row(side: str, pair: TokenPair) -> dict[str, Any]:
    chosen, rejected = pair.chosen_ids, pair.rejected_ids
    prefix = next(
        (place for place, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b),
        min(len(chosen), len(rejected)),
    )
    common = (Counter(chosen) & Counter(rejected)).total()
    first, second = sorted((chosen, rejected))
    return {
        "side": side,
        "id": pair.id,
        "prompt": _hash(prompt_key(pair)),
        "pair": _hash(pair.prompt_ids, first, second),
        "order": chosen == first,
        "prompt_tokens": len(pair.prompt_ids),
        "chosen_tokens": len(chosen),
        "rejected_tokens": len(rejected),
        "common_prefix": prefix / min(len(chosen), len(rejected)),
        "overlap": 2 * common / (len(chosen) + len(rejected)),
        "chosen_reward": pair.chosen_reward,
        "rejected_reward": pair.rejected_reward,
        "probability": pair.probability,
    }


def _hash(*parts: object) -> str:
    return hashlib.blake2b(repr(parts).encode("utf-8", "replace"), digest_size=8).hexdigest()


def _quantiles(column: pd.Series) -> list[float]:
    return [float(value) for value in np.quantile(column.to_numpy(dtype=float), QUANTILES)]


def _duplicates(table: pd.DataFrame) -> dict[str, int]:
    orders = table.groupby("pair")["order"].nunique()
    return {
        "repeated_labels": int(table.duplicated(["pair", "order"]).sum()),
        "pairs_labelled_both_ways": int((orders == 2).sum()),
        "prompts_with_several_pairs": int((table.groupby("prompt")["pair"].nunique() > 1).sum()),
    }


def _determinism(table: pd.DataFrame) -> dict[str, Any]:
    """How certain labels are, where the data say so: by repeated labels, by given probabilities, by scores."""
    counts = table.groupby("pair")["order"].agg(["size", "sum"])
    repeated = counts[counts["size"] > 1]
    found: dict[str, Any] = {
        "pairs": len(counts),
        "pairs_seen_once": float((counts["size"] == 1).mean()),
        "repeated_pairs": len(repeated),
    }
    if len(repeated):
        found |= agreement(repeated["sum"].to_numpy(), repeated["size"].to_numpy())
    known = table["probability"].dropna().to_numpy(dtype=float)
    if len(known):
        found["given_mean_max_probability"] = float(np.maximum(known, 1 - known).mean())
    scored = table.dropna(subset=["chosen_reward", "rejected_reward"])
    if len(scored):
        gaps = (scored["chosen_reward"] - scored["rejected_reward"]).to_numpy(dtype=float)
        found["score_gap"] = _quantiles(pd.Series(gaps))
        found["scored_pairs"] = len(scored)
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

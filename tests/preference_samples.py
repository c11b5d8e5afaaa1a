"""A few records in the exact forms in which well-known preference data sets are published (fields, nesting, quirks); texts made up."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_THINGS = ("plot", "music", "cast", "ending", "script", "light", "sound", "pace")


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def hh_rlhf(count: int = 24) -> list[dict[str, str]]:
    """Anthropic/hh-rlhf: two transcripts; every other one has an earlier turn in common."""
    rows = []
    for number in range(count):
        thing = _THINGS[number % len(_THINGS)]
        start = f"\n\nHuman: How was the {thing} of film {number}?\n\nAssistant:"
        if number % 2:
            start += f" Do you mean the {thing} alone?\n\nHuman: Yes, only that.\n\nAssistant:"
        rows.append(
            {"chosen": f"{start} The {thing} was great, I think.", "rejected": f"{start} Bad {thing}. Go away."}
        )
    return rows


def ultrafeedback(count: int = 16) -> list[dict[str, Any]]:
    """openbmb/UltraFeedback: an instruction with four completions; ratings are texts of numbers, overall_score is a number."""
    return [
        {
            "source": "sharegpt",
            "instruction": f"Review the {_THINGS[number % len(_THINGS)]} of film {number}.",
            "models": ["alpaca-7b", "llama-2-13b-chat", "mpt-30b-chat", "ultralm-13b"],
            "completions": [
                _completion(f"The {_THINGS[number % len(_THINGS)]} was {word}.", model, rating, overall)
                for word, model, rating, overall in (
                    ("awful", "alpaca-7b", "1", 2.0),
                    ("good", "llama-2-13b-chat", "4", 7.5),
                    ("great and moving", "mpt-30b-chat", "5", 8.5),
                    ("dull", "ultralm-13b", "2", 4.0),
                )
            ],
            "correct_answers": ["None"],
            "incorrect_answers": ["None"],
        }
        for number in range(count)
    ]


def _completion(response: str, model: str, rating: str, overall: float) -> dict[str, Any]:
    plain = {"Rating": rating, "Rationale": "Because."}
    typed = {"Type": ["1"], "Rationale": "Because.", "Rating": rating, "Rationale For Rating": "So."}
    return {
        "annotations": {
            "helpfulness": typed,
            "honesty": plain,
            "instruction_following": {**plain},
            "truthfulness": typed,
        },
        "custom_system_prompt": "Be honest.",
        "model": model,
        "principle": "honesty",
        "response": response,
        "critique": "A critique.",
        "fine-grained_score": float(rating),
        "overall_score": overall,
    }


def ultrafeedback_binarized(count: int = 16) -> list[dict[str, Any]]:
    """HuggingFaceH4/ultrafeedback_binarized: the prompt as text, chosen and rejected as whole conversations."""
    rows = []
    for number in range(count):
        thing = _THINGS[number % len(_THINGS)]
        prompt = f"How was the {thing} of film {number}?"
        asked = {"content": prompt, "role": "user"}
        chosen = [asked, {"content": f"The {thing} was great.", "role": "assistant"}]
        rejected = [asked, {"content": f"Bad {thing}.", "role": "assistant"}]
        rows.append(
            {
                "prompt": prompt,
                "prompt_id": f"{number:064x}",
                "chosen": chosen,
                "rejected": rejected,
                "messages": chosen,
                "score_chosen": 8.5,
                "score_rejected": 4.0 + number % 3,
            }
        )
    return rows


def kto(count: int = 16) -> list[dict[str, Any]]:
    """trl-lib/kto-mix-14k: messages, one completion, a label."""
    return [
        {
            "prompt": [{"content": f"How was film {number // 2}?", "role": "user"}],
            "completion": [{"content": "Great." if number % 2 else "Bad, so bad.", "role": "assistant"}],
            "label": bool(number % 2),
        }
        for number in range(count)
    ]


def shp(count: int = 12) -> list[dict[str, Any]]:
    """stanfordnlp/SHP: a post, two comments, and which one has the higher score."""
    return [
        {
            "post_id": f"p{number}",
            "domain": "askfilm_train",
            "upvote_ratio": 0.98,
            "history": f"What did you think of film {number}?",
            "c_root_id_A": f"a{number}",
            "c_root_id_B": f"b{number}",
            "created_at_utc_A": 1636107552,
            "created_at_utc_B": 1636107642,
            "score_A": 57 if number % 2 else 10,
            "score_B": 19 if number % 2 else 20 + 10 * number,
            "human_ref_A": f"Reply A to {number}.",
            "human_ref_B": f"Another reply, B, to {number}.",
            "labels": number % 2,
            "seconds_difference": 90.0,
            "score_ratio": 3.0 if number % 2 else (20 + 10 * number) / 10,
        }
        for number in range(count)
    ]

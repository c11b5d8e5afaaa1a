"""Autoregressive policies over few responses, walked token by token in plain Python: nothing of the packages is used."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Response = tuple[str, ...]


def options(responses: Sequence[Response], prefix: Response) -> list[str]:
    """The tokens that may follow a prefix."""
    after = [r[len(prefix)] for r in responses if len(r) > len(prefix) and r[: len(prefix)] == prefix]
    return list(dict.fromkeys(after))


def ngram_steps(responses: Sequence[Response], n: int, weight: dict[Response, float]) -> list[list[dict[str, float]]]:
    """For each response and position the distribution of the next token, of logits that know the last n tokens."""
    steps = []
    for response in responses:
        steps.append([])
        for i in range(len(response)):
            prefix = response[:i]
            last = prefix[len(prefix) - n :] if n and n <= len(prefix) else (prefix if n else ())
            logits = {token: weight[(*last, token)] for token in options(responses, prefix)}
            total = sum(np.exp(v) for v in logits.values())
            steps[-1].append({token: float(np.exp(v) / total) for token, v in logits.items()})
    return steps


def reference_steps(responses: Sequence[Response], masses: Sequence[float]) -> list[list[dict[str, float]]]:
    """The same for a distribution over the responses, by conditioning."""
    steps = []
    for response in responses:
        steps.append([])
        for i in range(len(response)):
            prefix = response[:i]
            of = {
                token: sum(m for r, m in zip(responses, masses, strict=True) if r[: i + 1] == (*prefix, token))
                for token in options(responses, prefix)
            }
            steps[-1].append({token: mass / sum(of.values()) for token, mass in of.items()})
    return steps


def token_logps(responses: Sequence[Response], steps: list[list[dict[str, float]]]) -> list[list[float]]:
    """Log-prob of every token of every response."""
    return [
        [float(np.log(step[token])) for token, step in zip(response, own, strict=True)]
        for response, own in zip(responses, steps, strict=True)
    ]


def token_kl(reference: list[list[dict[str, float]]], policy: list[list[dict[str, float]]]) -> list[float]:
    """sum_t KL(pi_ref(.|prefix) || pi(.|prefix)) along every response."""
    return [
        sum(q * np.log(q / p[token]) for ref, p in zip(refs, own, strict=True) for token, q in ref.items())
        for refs, own in zip(reference, policy, strict=True)
    ]

"""Baselines: what a rollout's reward is compared with. Both leave the policy gradient's expectation as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from llm_runs.examples import Prompt
from llm_runs.logprobs import collate
from llm_runs.models import autocast

RIDGE = 1.0  # weight of the squared norm of the value function's coefficients, beside a sum of squared errors
BATCH = 64  # prompts per forward pass


def leave_one_out(rewards: Tensor) -> Tensor:
    """(G, K) -> (G, K): the mean of the group's other rewards (arXiv 2402.14740), which does not depend on the rollout itself."""
    return (rewards.sum(-1, keepdim=True) - rewards) / (rewards.shape[-1] - 1)


class ValueFunction:
    """Ridge regression of a rollout's reward on features of its prompt, over all rounds so far: a linear value head in closed form.

    Args:
        width: features per prompt; a constant is added, and left out of the penalty.
    """

    def __init__(self, width: int) -> None:
        self.moments = torch.zeros(width + 1, width + 1, dtype=torch.float64)  # sum of x x^T
        self.targets = torch.zeros(width + 1, dtype=torch.float64)  # sum of x r

    @property
    def known(self) -> bool:
        """Whether it has learned anything."""
        return bool(self.moments[-1, -1] > 0)

    def learn(self, features: Tensor, rewards: Tensor) -> None:
        """Add rollouts: features (N, width) of their prompts, rewards (N,)."""
        x = _with_constant(features)
        self.moments += x.T @ x
        self.targets += x.T @ rewards.double().cpu()

    def predict(self, features: Tensor) -> Tensor:
        """(N, width) -> (N,)."""
        ridge = RIDGE * torch.eye(len(self.targets), dtype=torch.float64)
        ridge[-1, -1] = 0.0
        coefficients: Tensor = torch.linalg.solve(self.moments + ridge, self.targets)
        return _with_constant(features) @ coefficients

    def tensors(self) -> dict[str, Tensor]:
        """Its state."""
        return {"value/moments": self.moments.clone(), "value/targets": self.targets.clone()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what `tensors` gave."""
        self.moments, self.targets = tensors["value/moments"].clone(), tensors["value/targets"].clone()


@torch.no_grad()
def prompt_features(model: Any, prompts: Sequence[Prompt]) -> Tensor:
    """The policy's last hidden state at each prompt's last token, scaled to length 1, (N, width) in float64 on the CPU."""
    found = []
    for start in range(0, len(prompts), BATCH):
        part = prompts[start : start + BATCH]
        # As completions of one token, prompts end in one column.
        batch = collate([prompt[:-1] or prompt for prompt in part], [prompt[-1:] for prompt in part]).to(model.device)
        with autocast(model.device):
            output = model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=(batch.attention_mask.cumsum(-1) - 1).clamp_min(0),
                output_hidden_states=True,
                logits_to_keep=1,
                use_cache=False,
            )
        found.append(output.hidden_states[-1][:, -1].double().cpu())
    features: Tensor = torch.nn.functional.normalize(torch.cat(found), dim=-1)
    return features


def _with_constant(features: Tensor) -> Tensor:
    features = features.double().cpu()
    return torch.cat([features, torch.ones(len(features), 1, dtype=torch.float64)], dim=1)

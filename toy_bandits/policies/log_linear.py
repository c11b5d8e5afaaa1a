"""Log-linear policies: pi(y|x) proportional to pi_ref(y|x) exp(features(x, y) . theta)."""

from __future__ import annotations

import torch
from torch import Tensor

from toy_bandits.errors import BanditError
from toy_bandits.policies.base import Policy
from toy_bandits.policies.softmaxes import Softmaxes
from toy_bandits.problem import Array, Bandit


class LogLinear(Policy):
    """pi(y|x) proportional to pi_ref(y|x) exp(features(x, y) . theta); theta = 0 is the reference.

    Parameters are shared by all contexts and actions, so what is learnt of one pair moves actions that no pair shows.

    Args:
        features: (X, A, F), or (A, F) for the same in every context. F = P, the number of parameters.

    Raises:
        BanditError: not a finite table, or (when solved) of another size than the problem.
    """

    def __init__(self, features: Array) -> None:
        try:
            table = torch.as_tensor(features).detach().to(torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise BanditError(f"LogLinear: features are not an array of numbers ({error})") from error
        if table.ndim not in (2, 3) or not table.numel():
            raise BanditError(f"LogLinear: features must have shape (X, A, F) or (A, F), got {tuple(table.shape)}")
        if not bool(torch.isfinite(table).all()):
            raise BanditError("LogLinear: features hold NaN or infinity")
        self.features = table if table.ndim == 3 else table.unsqueeze(0)

    def softmaxes(self, problem: Bandit) -> Softmaxes:
        """One node per context; its edges are the actions."""
        contexts, actions = problem.reference.shape[-2:]
        if self.features.shape[1] != actions or self.features.shape[0] not in (1, contexts):
            shape = tuple(self.features.shape)
            raise BanditError(
                f"LogLinear: features {shape} do not fit a problem of {contexts} contexts and {actions} actions, (X, A, F)"
            )
        device = problem.reference.device
        return Softmaxes(
            nodes=torch.zeros(actions, dtype=torch.long, device=device),
            paths=torch.arange(actions, device=device).unsqueeze(-1),
            features=self.features.to(device).expand(contexts, -1, -1),
            base=problem.log_reference,
        )

    def first(self, problem: Bandit, form: Softmaxes) -> Tensor:
        """0: the reference itself."""
        return form.base.new_zeros(len(form.base), form.parameters)

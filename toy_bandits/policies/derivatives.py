"""Value, gradient and Hessian of an objective in a policy's parameters: the tabular ones and the chain rule.

With l the log-probs of the responses, J = dl/dtheta, and g and H the objective's gradient and Hessian in l,

    gradient = J^T g,        Hessian = J^T H J + sum_y g_y d2l_y/dtheta2,

and the last sum is minus sum_n G_n Cov_n, where G_n is the sum of g over the responses that pass node n and Cov_n the covariance of the
features under the node's softmax. Terms that look at single tokens are differentiated in theta by autograd.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from objectives import Objective, Term
from objectives.terms import Part
from toy_bandits.derivatives import CrossEntropyPiece, Derivatives, Function, PairPiece
from toy_bandits.policies import tokens
from toy_bandits.policies.softmaxes import Softmaxes
from toy_bandits.problem import Bandit


@dataclass
class PolicyFunction:
    """The objective as a function of the parameters, on a flattened batch of problems."""

    problem: Bandit
    objective: Objective
    policy: Softmaxes
    tabular: Function = field(init=False)
    """The terms that depend on the log-probs of whole responses only."""
    token_terms: list[tuple[Part, Term]] = field(init=False)

    def __post_init__(self) -> None:
        by_token = {
            term: part
            for part in self.objective.parts
            for term in part.terms
            if not self.policy.linear and tokens.looks_at_tokens(self.problem, term)
        }
        self.token_terms = [(part, term) for term, part in by_token.items()]
        parts = (
            replace(part, terms=tuple(term for term in part.terms if term not in by_token))
            for part in self.objective.parts
        )
        self.tabular = Function(self.problem, Objective(tuple(part for part in parts if part.terms)))

    @property
    def convex(self) -> bool:
        """Whether it is known to be convex in the parameters: log-probs are concave in them, and their differences affine if linear."""
        return not self.token_terms and all(
            isinstance(piece, CrossEntropyPiece)
            or (self.policy.linear and isinstance(piece, PairPiece) and piece.link.convex)
            for piece in self.tabular.pieces
        )

    def __call__(self, theta: Tensor) -> Derivatives:
        """At ``theta`` (B, P): value (B,), gradient (B, P), hessian and convex_hessian (B, P, P)."""
        log_edges = self.policy.log_edges(theta)
        outer = self.tabular(log_edges @ self.policy.on_path.T)
        jacobian = self.policy.jacobian(log_edges)
        slopes = outer.gradient.reshape(*log_edges.shape[:2], -1)
        gradient = torch.einsum("bxa,bxap->bp", slopes, jacobian.expand(len(theta), -1, -1, -1))
        hessian, convex = (_sandwich(h, jacobian) for h in (outer.hessian, outer.convex_hessian))
        if not self.policy.linear:
            total = torch.einsum("bxa,an->bxn", slopes, self.policy.through)
            weights = -total[..., self.policy.nodes] * log_edges.exp()
            spread = self.policy.features - self.policy.means(log_edges)[:, :, self.policy.nodes]
            hessian = hessian + _weighted(spread, weights)
            convex = convex + _weighted(spread, weights.clamp(min=0.0))
        found = Derivatives(outer.value, gradient, hessian, convex)
        return self._add_tokens(theta, found) if self.token_terms else found

    def _add_tokens(self, theta: Tensor, found: Derivatives) -> Derivatives:
        leaf = theta.detach().clone().requires_grad_()
        value = sum(
            (
                tokens.value(self.problem, self.objective.name, part, term, self.policy, leaf)
                for part, term in self.token_terms
            ),
            start=torch.zeros_like(found.value),
        )
        (first,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
        rows = [torch.autograd.grad(first[:, i].sum(), leaf, retain_graph=True)[0] for i in range(theta.shape[-1])]
        second = torch.stack(rows, dim=-2)
        second = 0.5 * (second + second.transpose(-1, -2))  # a stopped gradient leaves it without symmetry
        return Derivatives(
            found.value + value.detach(),
            found.gradient + first.detach(),
            found.hessian + second,
            found.convex_hessian + second,
        )


def _weighted(rows: Tensor, weights: Tensor) -> Tensor:
    """sum_xe w_xe row_xe row_xe^T, (B, P, P)."""
    return torch.einsum("bxep,bxe,bxeq->bpq", rows, weights, rows)


def _sandwich(hessian: Tensor, jacobian: Tensor) -> Tensor:
    """J^T H J, (B, P, P), of a Hessian with one block per context or one in all."""
    if hessian.shape[1] != jacobian.shape[1]:
        jacobian = jacobian.flatten(1, 2).unsqueeze(1)
    jacobian = jacobian.expand(hessian.shape[0], -1, -1, -1)
    product: Tensor = (jacobian.transpose(-1, -2) @ hessian @ jacobian).sum(1)
    return product

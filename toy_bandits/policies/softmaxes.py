"""The one form of all policies: softmax nodes over edges, whose logits are affine in the parameters.

A response is a path of edges, and log pi(y|x) the sum over its edges of their log-softmax within their node. Every context has the same
nodes and paths and its own features: logits u = base + features @ theta. One node per context whose edges are the actions is a log-linear
policy; a node per prefix is a policy over tokens.

Shapes: B problems, X contexts, A actions (responses), E edges and N nodes of one context, T edges of the longest path, P parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

RANK_TOLERANCE = 1e-10
"""Singular values below this share of the largest count as 0."""


@dataclass(frozen=True)
class Softmaxes:
    """A policy's nodes, edges and paths in a flattened batch of problems.

    Attributes:
        nodes: (E,) the node that each edge leaves; node 0 is the root.
        paths: (A, T) the edges of each response, -1 after its end.
        features: (X, E, P).
        base: (B, X, E) logits at theta = 0.
    """

    nodes: Tensor
    paths: Tensor
    features: Tensor
    base: Tensor

    @property
    def parameters(self) -> int:
        """P."""
        return self.features.shape[-1]

    @property
    def linear(self) -> bool:
        """Whether each response is one edge of the root: differences of log-probs are then affine in the parameters."""
        return self.paths.shape[-1] == 1

    def take(self, index: Tensor) -> Softmaxes:
        """Those of the problems ``index``."""
        return replace(self, base=self.base[index])

    def based(self, base: Tensor) -> Softmaxes:
        """The same nodes with other logits (B, X, E) at theta = 0."""
        return replace(self, base=base)

    @cached_property
    def on_path(self) -> Tensor:
        """(A, E): 1 where the response takes the edge."""
        table = self.base.new_zeros(self.paths.shape[0], self.nodes.shape[0] + 1)
        table.scatter_(-1, self.paths % (self.nodes.shape[0] + 1), 1.0)  # -1 becomes the last column
        return table[:, :-1]

    @cached_property
    def through(self) -> Tensor:
        """(A, N): 1 where the response passes the node; 0 for the root, whose normaliser every response shares.

        An objective does not change when all log-probs of a context move together, so leaving that normaliser out of the derivatives
        is exact, and spares gradients near 0 a difference of large numbers.
        """
        passes = self.on_path @ self.incidence
        passes[:, 0] = 0.0
        return passes

    @cached_property
    def incidence(self) -> Tensor:
        """(E, N): 1 where the edge leaves the node."""
        table = self.base.new_zeros(self.nodes.shape[0], int(self.nodes.max()) + 1)
        return table.scatter_(-1, self.nodes.unsqueeze(-1), 1.0)

    def log_edges(self, theta: Tensor) -> Tensor:
        """(B, X, E): log-probability of each edge given its node, at ``theta`` (B, P)."""
        return self.normalised(self.base + torch.einsum("xep,bp->bxe", self.features, theta))

    def normalised(self, logits: Tensor) -> Tensor:
        """(..., E) logits less the log-sum-exp of their node."""
        above = logits - self.at_nodes(logits.detach(), "amax")
        return above - self.at_nodes(above.exp(), "sum").log()

    def conditionals(self, log_probs: Tensor) -> Tensor:
        """(..., E): the log-probability of each edge given its node, of a distribution over the responses (..., A)."""
        masses = torch.where(self.on_path.T > 0, log_probs.unsqueeze(-2), -torch.inf).logsumexp(-1)
        return self.normalised(masses)

    def speeds(self, fall: Tensor) -> Tensor:
        """(..., E): how fast the logits of the edges move when the responses' log-probs move by ``fall`` (..., A): as their fastest."""
        fastest = torch.where(self.on_path.T > 0, fall.unsqueeze(-2), -torch.inf).amax(-1)
        return fastest - self.at_nodes(fastest, "amax")

    def at_nodes(self, values: Tensor, reduce: str) -> Tensor:
        """(..., E) values of edges reduced ("amax", "sum") over the edges of the same node, for each edge."""
        nodes = self.nodes.expand(values.shape)
        shape = (*values.shape[:-1], self.incidence.shape[-1])
        start = torch.full(shape, -torch.inf if reduce == "amax" else 0.0, dtype=values.dtype, device=values.device)
        return start.scatter_reduce(-1, nodes, values, reduce).gather(-1, nodes)

    def log_policy(self, theta: Tensor) -> Tensor:
        """(B, X, A) at ``theta`` (B, P)."""
        return self.log_edges(theta) @ self.on_path.T

    def jacobian(self, log_edges: Tensor) -> Tensor:
        """(B, X, A, P), or (1, X, A, P) where it is constant: d log pi(y|x) / d theta, the root's normaliser left out."""
        taken = torch.einsum("ae,xep->xap", self.on_path, self.features).unsqueeze(0)
        if self.linear:
            return taken
        return taken - torch.einsum("an,bxnp->bxap", self.through, self.means(log_edges))

    def means(self, log_edges: Tensor) -> Tensor:
        """(B, X, N, P): the features' expectation at each node."""
        return torch.einsum("en,bxe,xep->bxnp", self.incidence, log_edges.exp(), self.features)

    @cached_property
    def effective(self) -> Tensor:
        """(P, R): orthonormal directions of the parameters that span all that change the policy."""
        sizes = self.incidence.sum(0)
        means = torch.einsum("en,xep->xnp", self.incidence, self.features) / sizes[:, None]
        return row_space((self.features - means[:, self.nodes]).flatten(0, 1))


def row_space(rows: Tensor) -> Tensor:
    """(P, R): an orthonormal basis of the span of ``rows`` (M, P)."""
    if not rows.numel() or not bool(rows.any()):
        return rows.new_zeros(rows.shape[-1], 0)
    _, values, vectors = torch.linalg.svd(rows, full_matrices=False)
    basis: Tensor = vectors[values > RANK_TOLERANCE * values[0]].T
    return basis

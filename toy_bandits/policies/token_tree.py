"""Policies over tokens: a small autoregressive model of finitely many responses, every prefix of which is a softmax."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from objectives import Objective, forward_kl
from toy_bandits.errors import BanditError
from toy_bandits.policies.base import Policy
from toy_bandits.policies.derivatives import PolicyFunction
from toy_bandits.policies.newton import minimise
from toy_bandits.policies.softmaxes import Softmaxes
from toy_bandits.policies.solver import PolicyAnswer, PolicySolution, assemble, prepared, solve_policy
from toy_bandits.policies.tokens import looks_at_tokens
from toy_bandits.problem import Array, Bandit
from toy_bandits.solution import REASONS, STATUSES
from toy_bandits.solver import solve

PREFIX: Literal["prefix"] = "prefix"


class TokenTree(Policy):
    """An autoregressive policy over the token tree of the responses, enumerated exactly.

    Args:
        responses: one token sequence per action, such as ``[("a",), ("b", "a"), ("b", "b")]`` or a text each with blanks between tokens.
            No response may begin with another: end the shorter with a token of its own. All contexts have the same responses.
        context: what the logits of the next token depend on. "prefix": context and whole prefix, so any distribution over the responses
            is possible, and theta = 0 is the reference. n: the last n tokens only, whatever the prompt and the position (an n-gram
            model, shared by all contexts); 0 for the token alone. Tokens that no response has after a prefix are left out of its softmax.

    A model with shared logits cannot be every reference: it then starts from its member closest to the reference in KL(pi_ref || pi),
    the maximum-likelihood fit; losses still compare with the problem's own reference.

    Raises:
        BanditError: responses that are no sequences, empty, repeated or the beginning of another, a bad context, or (when solved) another
            number of responses than the problem has actions, or other lengths than it states.
    """

    def __init__(self, responses: Sequence[Sequence[str] | str], context: Literal["prefix"] | int = PREFIX) -> None:
        if isinstance(context, bool) or not (context == PREFIX or (isinstance(context, int) and context >= 0)):
            raise BanditError(f"TokenTree: context must be 'prefix' or a number of tokens >= 0, got {context!r}")
        self.responses = tuple(tuple(text.split() if isinstance(text, str) else text) for text in responses)
        self.context = context
        if len(self.responses) < 2:
            raise BanditError(f"TokenTree: needs at least two responses, got {len(self.responses)}")
        if not all(self.responses):
            raise BanditError(f"TokenTree: response {self.responses.index(())} has no tokens")
        for first, second in pairwise(
            sorted(self.responses)
        ):  # sorted, a prefix stands right before one that begins with it
            if second[: len(first)] == first:
                raise BanditError(
                    f"TokenTree: response {' '.join(second)!r} begins with {' '.join(first)!r}; end the shorter with a token of its own"
                )
        edges = {response[: i + 1]: None for response in self.responses for i in range(len(response))}
        self.edges = tuple(sorted(edges, key=len))
        """The non-empty prefixes: each is the edge by which its last token leaves the rest."""
        self.grams = tuple(dict.fromkeys(self._gram(edge) for edge in self.edges))
        """What each shared parameter stands for: the last tokens and the next one; all edges where nothing is shared."""

    def _gram(self, edge: tuple[str, ...]) -> tuple[str, ...]:
        return edge if self.context == PREFIX else edge[max(0, len(edge) - 1 - self.context) :]

    @property
    def full(self) -> bool:
        """Whether every prefix has logits of its own, so that the policy is the tabular one in other coordinates."""
        return self.context == PREFIX

    def measured(self, problem: Bandit) -> Bandit:
        """The problem with the true lengths. Raises BanditError where it states others, or another number of responses."""
        if problem.actions != len(self.responses):
            raise BanditError(
                f"TokenTree: {len(self.responses)} responses do not fit a problem of {problem.actions} actions"
            )
        lengths = torch.tensor([len(response) for response in self.responses]).to(problem.reference)
        if problem.lengths is not None and not bool((problem.lengths == lengths).all()):
            raise BanditError(
                f"TokenTree: the problem states other lengths than the responses have, {[len(r) for r in self.responses]}"
            )
        return problem.replaced(lengths=lengths.expand_as(problem.reference))

    def softmaxes(self, problem: Bandit) -> Softmaxes:
        """One node per prefix that goes on."""
        device, contexts = problem.reference.device, problem.contexts.shape[-1]
        number = {edge: i for i, edge in enumerate(self.edges)}
        prefixes = {edge[:-1]: None for edge in self.edges}
        node = {prefix: i for i, prefix in enumerate(prefixes)}
        longest = max(map(len, self.responses))
        paths = torch.full((len(self.responses), longest), -1, device=device)
        for row, response in zip(paths, self.responses, strict=True):
            for i in range(len(response)):
                row[i] = number[response[: i + 1]]
        form = Softmaxes(
            nodes=torch.tensor([node[edge[:-1]] for edge in self.edges], device=device),
            paths=paths,
            features=self._features(contexts).to(problem.reference),
            base=problem.reference.new_zeros(*problem.reference.shape[:-1], len(self.edges)),
        )
        if not self.full:
            return form
        return form.based(form.conditionals(problem.log_reference))

    def _features(self, contexts: int) -> Tensor:
        """(X, E, P): one-hot, with a parameter per context and edge, or per n-gram."""
        if self.full:
            own = torch.eye(contexts * len(self.edges))
            return own.reshape(contexts, len(self.edges), -1)
        index = {gram: i for i, gram in enumerate(self.grams)}
        table = torch.zeros(len(self.edges), len(index))
        for row, edge in zip(table, self.edges, strict=True):
            row[index[self._gram(edge)]] = 1.0
        return table.expand(contexts, -1, -1)

    def first(self, problem: Bandit, form: Softmaxes) -> Tensor:
        """0 for logits of their own, else the maximum-likelihood fit to the reference."""
        zero = form.base.new_zeros(len(form.base), form.parameters)
        if self.full:
            return zero
        exact, likelihood = problem.replaced(reference_samples=problem.reference), forward_kl(weight=1.0)
        return minimise(
            lambda index: PolicyFunction(exact.take(index), likelihood, form.take(index)), zero, form.effective
        ).parameters

    def solve(
        self,
        problem: Bandit,
        objective: Objective,
        start: Array | None = None,
        *,
        starts: int,
        seed: int,
        progress: bool,
    ) -> PolicySolution:
        """What `toy_bandits.solve` with this policy returns; see there.

        With logits for every prefix, and terms that see whole responses only, the answer and its proof are the tabular policy's. Where
        that is "not_unique", so is the point returned: the one that gradient flow on tabular logits reaches from ``start``.
        """
        by_token = any(looks_at_tokens(problem, term) for term in objective.terms)
        if not self.full or by_token:
            return solve_policy(self, problem, objective, start, starts=starts, seed=seed, progress=progress)
        shape, flat, spread, form, begin = prepared(self, problem, objective, start)
        found = solve(flat, spread, form.log_policy(begin), starts=starts, seed=seed, progress=progress)
        theta = (form.conditionals(found.logits.log_softmax(-1)) - form.base).flatten(1)
        why = found.certificate
        falling = form.speeds(why.direction)
        answer = PolicyAnswer(
            parameters=theta,
            parameter_direction=falling.flatten(1),
            logits=found.logits.log_softmax(-1),
            log_policy=found.log_policy,
            direction=why.direction,
            status=torch.from_numpy(np.argmax(found.status[:, None] == STATUSES, axis=-1)),
            gradient_norm=PolicyFunction(flat, spread, form)(theta).gradient.norm(dim=-1),
            value=found.value,
            proved=why.proved,
            dimension=why.dimension,
            tie=why.details.tie,
            minima=why.minima,
            curvature=why.curvature,
            newton_step=why.newton_step,
            iterations=why.iterations,
            stability=why.stability,
            reason=torch.from_numpy(np.argmax(why.reason[:, None] == REASONS, axis=-1)),
        )
        return assemble(problem, [answer], shape, lambda whole: replace(why.details, shape=shape))

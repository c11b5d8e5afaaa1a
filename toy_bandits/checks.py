"""What a loss may not do in a bandit, said with the world, the objective and the cell where it does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from objectives import Batch, Objective, ObjectiveError, Term
from toy_bandits import expectations
from toy_bandits.errors import BanditError
from toy_bandits.problem import Bandit


@contextmanager
def named(problem: Bandit, objective: Objective) -> Iterator[None]:
    """Errors raised inside carry the problem's name, where it has one; what linear algebra says of NaN is said in words."""
    try:
        try:
            yield
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # not in torch's stubs
            raise BanditError(
                f"{objective.name}: a loss or a derivative of it is NaN or infinite at a policy that the search came to: a bandit needs a "
                "loss that is finite at every policy"
            ) from error
    except (BanditError, ObjectiveError) as error:
        prefix = f"{problem.name}: "
        if problem.name is None or str(error).startswith(prefix):
            raise
        raise type(error)(f"{prefix}{error}") from error


def check_losses(problem: Bandit, objective: Objective, log_policy: Tensor) -> None:
    """Refuse an objective whose losses break their contract at ``log_policy`` (B, X, A), in a flattened batch.

    Raises:
        BanditError: a loss, or its gradient in a log-prob, is NaN or infinite; the message names the first such cell. Or a loss does not
            depend on the policy.
        ObjectiveError: a loss is reduced, not one value per example, or needs what the bandit's batches do not carry.
    """
    for source in dict.fromkeys(term.source for term in objective.terms):
        leaf = log_policy.detach().clone().requires_grad_()
        batch = expectations.supplier(objective.name, source)(problem, leaf)
        counted = (
            torch.ones(batch.shape, device=problem.reference.device)
            if batch.weights is None
            else batch.weights.detach().expand(batch.shape)
        )
        for term in objective.terms:
            if term.source != source:
                continue
            losses = _losses(objective, term, batch)
            bad = ~torch.isfinite(losses.detach()).expand(batch.shape) & (counted > 0)
            if bool(bad.any()):
                problem_index, example = bad.nonzero()[0].tolist()
                value = losses.detach().expand(batch.shape)[problem_index, example].item()
                raise BanditError(
                    f"{objective.name}: the loss {term.name} is {value} at the start, {_cell(problem, source, example)}"
                    f"{_which(problem, problem_index)}"
                )
            if not losses.requires_grad:
                raise BanditError(
                    f"{objective.name}: the loss {term.name} does not depend on the policy: autograd finds no log-prob of it in the loss"
                )
            (slope,) = torch.autograd.grad(batch.mean(losses).sum(), leaf, retain_graph=True)
            bad = ~torch.isfinite(slope)
            if bool(bad.any()):
                problem_index, context, action = bad.nonzero()[0].tolist()
                raise BanditError(
                    f"{objective.name}: the gradient of the loss {term.name} is {slope[bad][0].item()} at the start, in the "
                    f"log-prob of action {action} in context {context}{_which(problem, problem_index)}; a bandit needs a "
                    f"loss that autograd can differentiate"
                )


def _losses(objective: Objective, term: Term, batch: Batch) -> Tensor:
    """The term's losses; whatever a third party's code raises is said in one line."""
    try:
        return term.losses(batch)
    except ObjectiveError:
        raise
    except Exception as error:
        hint = (
            "; hyper-parameters hold one value per problem here, which objectives.values.per_example lines up with the examples"
            if any(isinstance(value, Tensor) and value.ndim for value in objective.hyperparameters.values())
            else ""
        )
        said = " ".join(str(error).split())
        raise BanditError(
            f"{objective.name}: the loss {term.name} raised {type(error).__name__}: {said}{hint}"
        ) from error


def _cell(problem: Bandit, source: str, example: int) -> str:
    """What an example of a source stands for."""
    context, winner, loser = (index.tolist() for index in problem.shown)
    if source == "pairs" or (source == "candidates" and problem.rewards is None):
        return f"context {context[example]}, pair ({winner[example]}, {loser[example]})"
    if source == "unpaired":
        side, pair = divmod(example, len(context))
        action = (winner, loser)[side][pair]
        return f"context {context[pair]}, action {action} of the pair ({winner[pair]}, {loser[pair]})"
    if source == "candidates":
        return f"context {example}"
    return "context {}, action {}".format(*divmod(example, problem.actions))


def _which(problem: Bandit, index: int) -> str:
    """Which problem of a batch."""
    return f" (problem {index} of the batch)" if problem.reference.shape[0] > 1 else ""

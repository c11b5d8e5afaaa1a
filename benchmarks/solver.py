"""What an exact optimum in a bandit costs, against scipy's L-BFGS on each problem and batched Adam, down to a gradient norm of 1e-10.

    python -m benchmarks solver --out results/                        all parts (about 3 minutes of CPU time)
    python -m benchmarks solver --out results/ --parts peers          only the ratios
    python -m benchmarks solver --out results/ --parts growth --largest 100000

Time is CPU time of the process (shared cores make wall times useless), on one thread; on a GPU time between synchronisations. L-BFGS
has two forms: with the objective and its gradient worked out by hand in numpy, the fastest there is for one objective, and with the
registry's own loss by autograd, which there is for any. What the peers and `toy_bandits.solve` find must agree, or the run stops.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize
from torch import Tensor
from tqdm.auto import tqdm

import objectives
from analysis.records import write_run
from toy_bandits.expectations import batches
from toy_bandits.problem import Bandit
from toy_bandits.solution import Solution
from toy_bandits.solver import solve

GRADIENT_NORM = 1e-10
RATIO_TARGET = 100.0
MICROSECONDS_TARGET = 40.0
LINEAR_TARGET = 1.25
"""Most that the time per problem may grow from a thousand problems to the largest number."""
SAME_VALUE = 1e-9
SAMPLES = 24
"""Problems that L-BFGS solves."""
ADAM_PROBLEMS, ADAM_STEPS, ADAM_RATES = 256, 4000, (0.01, 0.1)
ROUNDS = 5


@dataclass(frozen=True)
class Case:
    """An objective, its pair loss as a function of z = scale (u_a - u_b [- the same of the reference]) with the loss's derivative, and
    the weight of its forward KL."""

    objective: str
    loss: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    scale: float = 1.0
    adjusted: bool = True
    kl: float = 0.0
    options: tuple[tuple[str, int], ...] = ()


def _softplus(z: Tensor) -> Tensor:
    return torch.nn.functional.softplus(z)


LOGISTIC = (lambda z: _softplus(-z), lambda z: -torch.sigmoid(-z))
SMOOTHED = (lambda z: _softplus(-z) + 0.1 * z, lambda z: 0.1 - torch.sigmoid(-z))
SQUARE = (lambda z: (z - 5.0) ** 2, lambda z: 2.0 * (z - 5.0))
SIGMOID = (lambda z: -torch.sigmoid(z), lambda z: -torch.sigmoid(z) * torch.sigmoid(-z))
CASES = {
    "dpo": Case("dpo(beta=0.1)", *LOGISTIC, scale=0.1),
    "ipo": Case("ipo(tau=0.1)", *SQUARE),
    "cdpo": Case("cdpo(beta=0.1, label_smoothing=0.1)", *SMOOTHED, scale=0.1),
    "dpo + forward KL": Case("dpo(beta=0.1) + forward_kl(weight=0.1)", *LOGISTIC, scale=0.1, kl=0.1),
    "maxpo, one start": Case("maxpo(beta=0.5)", *SIGMOID, adjusted=False, kl=0.5, options=(("starts", 0),)),
    "maxpo": Case("maxpo(beta=0.5)", *SIGMOID, adjusted=False, kl=0.5),
}


def worlds(count: int, actions: int, contexts: int = 1, seed: int = 0, device: str = "cpu") -> Bandit:
    """Random references, and preferences of random rewards with noise on every pair, so that they need not be transitive."""
    generator = torch.Generator().manual_seed(seed)
    reference = torch.randn(count, contexts, actions, generator=generator, dtype=torch.float64).softmax(-1)
    preferences = torch.empty(count, contexts, actions, actions, dtype=torch.float64)
    for piece in preferences.split(max(1, 1_000_000 // (contexts * actions * actions))):
        reward = torch.randn(*piece.shape[:-1], generator=generator, dtype=torch.float64)
        noise = 0.5 * torch.randn(piece.shape, generator=generator, dtype=torch.float64).triu(1)
        piece.copy_(reward.unsqueeze(-1) - reward.unsqueeze(-2) + noise - noise.transpose(-1, -2)).sigmoid_()
    return Bandit(reference.to(device), preferences.to(device))


def cost(action: Callable[[], Any], device: str = "cpu") -> tuple[float, Any]:
    """Seconds, and what the action gives."""
    if device == "cuda":
        torch.cuda.synchronize()
        begin = time.perf_counter()
        result = action()
        torch.cuda.synchronize()
        return time.perf_counter() - begin, result
    begin = time.process_time()
    result = action()
    return time.process_time() - begin, result


def peer(problem: Bandit, case: Case) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Value (B,) and gradient (B, X, A) of a batch at logits (B, X, A), from the definition."""
    reference = problem.log_reference if case.adjusted else torch.zeros_like(problem.log_reference)
    weights = problem.label_weights
    masses = case.kl * problem.contexts.unsqueeze(-1) * problem.reference

    def function(logits: Tensor) -> tuple[Tensor, Tensor]:
        ratio = logits - reference
        z = case.scale * (ratio.unsqueeze(-1) - ratio.unsqueeze(-2))
        slopes = case.scale * weights * case.slope(z)
        value, gradient = (weights * case.loss(z)).sum((-3, -2, -1)), slopes.sum(-1) - slopes.sum(-2)
        if case.kl:
            log_policy = logits.log_softmax(-1)
            value = value - (masses * log_policy).sum((-2, -1))
            gradient = gradient + masses.sum(-1, keepdim=True) * log_policy.exp() - masses
        return value, gradient

    return function


Loss = Callable[[np.ndarray], tuple[float, np.ndarray]]
"""Of logits (X A,): value and gradient."""


def by_hand(problem: Bandit, case: Case) -> Loss:
    """The objective of one problem (batch of one) in numpy, with its gradient worked out: the fastest that a peer can have."""
    reference, labels = problem.reference[0].numpy(), problem.label_weights[0].numpy()
    shape = reference.shape
    shift = np.log(reference) if case.adjusted else np.zeros(shape)
    masses = case.kl * problem.contexts[0].numpy()[:, None] * reference
    loss, slope = NUMPY[case.loss], NUMPY[case.slope]

    def function(flat: np.ndarray) -> tuple[float, np.ndarray]:
        logits = flat.reshape(shape)
        ratio = logits - shift
        z = case.scale * (ratio[..., :, None] - ratio[..., None, :])
        slopes = case.scale * labels * slope(z)
        value, gradient = (labels * loss(z)).sum(), slopes.sum(-1) - slopes.sum(-2)
        if case.kl:
            top = logits.max(-1, keepdims=True)
            log_policy = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
            value = value - (masses * log_policy).sum()
            gradient = gradient + masses.sum(-1, keepdims=True) * np.exp(log_policy) - masses
        return value, gradient.ravel()

    return function


def by_autograd(problem: Bandit, case: Case) -> Loss:
    """The objective of one problem (batch of one) by the registry's own loss: what a peer can have of any objective."""
    objective = objectives.parse(case.objective)
    if objective.needs_temperature:
        objective = objective.with_temperature(1.0)

    def function(flat: np.ndarray) -> tuple[float, np.ndarray]:
        logits = torch.tensor(flat, requires_grad=True)
        log_policy = logits.reshape(problem.reference.shape).log_softmax(-1)
        value = objective.value(batches(problem, objective, log_policy)).sum()
        (gradient,) = torch.autograd.grad(value, logits)
        return value.item(), gradient.numpy()

    return function


def by_lbfgs(function: Loss, begin: np.ndarray, starts: int) -> tuple[float, float]:
    """Best value and gradient norm there, from ``begin`` (X, A) and ``starts`` random starts."""
    generator = np.random.default_rng(0)
    found = []
    for number in range(starts + 1):
        first = begin if number == 0 else begin + 2.0 * math.sqrt(number) * generator.standard_normal(begin.shape)
        end = minimize(
            function,
            first.ravel(),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 100_000, "maxfun": 1_000_000, "ftol": 0.0, "gtol": 1e-12, "maxcor": 20},
        )
        found.append((float(end.fun), float(np.linalg.norm(end.jac))))
    return min(found)


def by_lbfgs_each(
    problem: Bandit, case: Case, loss: Callable[[Bandit, Case], Loss], starts: int, count: int
) -> list[tuple[float, float]]:
    """`by_lbfgs` of the first ``count`` problems of a batch."""
    single = [problem.take(torch.tensor([index])) for index in range(count)]
    return [by_lbfgs(loss(one, case), one.log_reference[0].numpy(), starts) for one in single]


def _numpy_sigmoid(z: np.ndarray) -> np.ndarray:
    result: np.ndarray = 0.5 * (1.0 + np.tanh(0.5 * z))
    return result


NUMPY: dict[Any, Callable[[np.ndarray], np.ndarray]] = {
    LOGISTIC[0]: lambda z: np.logaddexp(0.0, -z),
    LOGISTIC[1]: lambda z: -_numpy_sigmoid(-z),
    SMOOTHED[0]: lambda z: np.logaddexp(0.0, -z) + 0.1 * z,
    SMOOTHED[1]: lambda z: 0.1 - _numpy_sigmoid(-z),
    SQUARE[0]: lambda z: (z - 5.0) ** 2,
    SQUARE[1]: lambda z: 2.0 * (z - 5.0),
    SIGMOID[0]: lambda z: -_numpy_sigmoid(z),
    SIGMOID[1]: lambda z: -_numpy_sigmoid(z) * _numpy_sigmoid(-z),
}
"""The same losses for small arrays, where numpy is the faster one."""


def by_adam(problem: Bandit, case: Case, rate: float) -> tuple[float, int]:
    """Share of the problems with a gradient norm within tolerance after at most `ADAM_STEPS` steps, and how many steps were made."""
    function = peer(problem, case)
    logits = problem.log_reference.clone()
    optimiser = torch.optim.Adam([logits], lr=rate, fused=True)
    share = 0.0
    for step in range(ADAM_STEPS + 1):
        logits.grad = function(logits)[1]
        if step % 50 == 0:
            share = float((logits.grad.flatten(1).norm(dim=-1) <= GRADIENT_NORM).double().mean())
            if share == 1.0:
                return share, step
        optimiser.step()
    return share, ADAM_STEPS


def agree(solution: Solution, problem: Bandit, case: Case, index: int, value: float) -> None:
    """Stop unless the solver's policy has, by the peer's formula, at most L-BFGS's value, and the same where the objective is convex."""
    mine = float(peer(problem, case)(solution.logits.reshape(problem.reference.shape))[0][index])
    apart = mine - value
    tolerance = SAME_VALUE * (1.0 + abs(value))
    if apart > tolerance or (case.loss is not SIGMOID[0] and apart < -tolerance):
        raise SystemExit(f"error: {case.objective}: value {mine} of problem {index}, but L-BFGS has {value}")


def peers_table(count: int, actions: int = 10) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Columns objective, method, problems, microseconds (each problem's), gradient_norm (largest), share (with a norm within 1e-10), steps;
    and the ratios."""
    problem = worlds(count, actions)
    few = problem.take(torch.arange(min(count, ADAM_PROBLEMS)))
    rows: list[tuple[Any, ...]] = []
    for name, case in tqdm(CASES.items(), desc="peers", unit="objective", disable=None):
        objective, options = objectives.parse(case.objective), dict(case.options)
        starts = options.get("starts", 16) if case.loss is SIGMOID[0] else 0
        solve(few, objective, **options)  # warm
        peers = {"L-BFGS, gradient by hand": (by_hand, SAMPLES), "L-BFGS, autograd": (by_autograd, SAMPLES // 4)}
        if starts:
            peers = {"L-BFGS, gradient by hand": (by_hand, SAMPLES // 4)}
        times: dict[str, list[float]] = {method: [] for method in ("solve", *peers)}
        norms: dict[str, np.ndarray] = {}
        for _ in range(ROUNDS):  # in turn, so that a slow moment of the machine meets all
            spent, solution = cost(lambda: solve(problem, objective, **options))  # noqa: B023
            times["solve"].append(spent / count)
            norms["solve"] = solution.gradient_norm.numpy()
            for method, (loss, samples) in peers.items():
                spent, found = cost(lambda: by_lbfgs_each(problem, case, loss, starts, samples))  # noqa: B023
                times[method].append(spent / samples)
                norms[method] = np.array([norm for _, norm in found])
                for index, (value, _) in enumerate(found):
                    agree(solution, problem, case, index, value)
        for method, spread in times.items():
            share = float((norms[method] <= GRADIENT_NORM).mean())
            size = count if method == "solve" else peers[method][1]
            rows.append((name, method, size, 1e6 * statistics.median(spread), norms[method].max(), share, math.nan))
        if starts:
            continue
        for rate in ADAM_RATES:
            spent, (share, steps) = cost(lambda: by_adam(few, case, rate))  # noqa: B023
            label = f"Adam, learning rate {rate:g}"
            rows.append((name, label, len(few.reference), 1e6 * spent / len(few.reference), math.nan, share, steps))
    columns = ["objective", "method", "problems", "microseconds", "gradient_norm", "share", "steps"]
    table = pd.DataFrame(rows, columns=columns)
    return table, ratios(table)


def ratios(table: pd.DataFrame) -> pd.DataFrame:
    """Columns objective, quantity, value, target (NaN: none), at_least. Adam counts with its best rate: most problems solved, then time."""
    rows: list[tuple[str, str, float, float, bool]] = []
    for name, group in table.groupby("objective", sort=False):
        own = group.loc[group["method"] == "solve", "microseconds"].item()
        target = MICROSECONDS_TARGET if name != "maxpo" else math.nan
        rows.append((name, "microseconds a problem", own, target, False))
        for kind in ("L-BFGS, gradient by hand", "L-BFGS, autograd", "Adam"):
            others = group[group["method"].str.startswith(kind)]
            if len(others):
                best = others.sort_values(["share", "microseconds"], ascending=[False, True]).iloc[0]
                rows.append((name, f"times as fast as {kind}", best["microseconds"] / own, RATIO_TARGET, True))
    return pd.DataFrame(rows, columns=["objective", "quantity", "value", "target", "at_least"])


def growth(count: int, actions: int) -> dict[str, float]:
    """In a process of its own: CPU time a problem, and by how much the peak of memory grew beyond inputs and outputs."""
    torch.set_num_threads(1)
    objective = objectives.get("dpo")
    solve(worlds(100, actions), objective)
    problem = worlds(count, actions)
    before = _resident()
    if not _reset_peak():
        before = _peak()
    spent, solution = cost(lambda: solve(problem, objective, progress=True))
    peak = _peak()
    certificate = solution.certificate
    outputs = [getattr(solution, name) for name in ("policy", "log_policy", "logits", "gradient_norm", "value")]
    names = ("proved", "direction", "dimension", "minima", "newton_step", "iterations", "stability")
    outputs += [getattr(certificate, name) for name in names]
    outputs += [
        certificate.details.groups,
        certificate.details.tie,
        problem.log_reference,
    ]  # what further questions are answered from
    size = sum(tensor.numel() * tensor.element_size() for tensor in outputs) + solution.status.nbytes
    inputs = sum(tensor.untyped_storage().nbytes() for tensor in (problem.reference, problem.preferences))
    return {
        "problems": count,
        "microseconds": 1e6 * spent / count,
        "gradient_norm": float(solution.gradient_norm.max()),
        "input_bytes": inputs,
        "output_bytes": size,
        "extra_bytes": max(0, peak - before - size),
    }


def _resident() -> int:
    """Bytes of memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _reset_peak() -> bool:
    """Start the peak anew, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak() -> int:
    """Largest number of bytes since `_reset_peak`, else since the start."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def growth_table(largest: int, actions: int = 10) -> pd.DataFrame:
    """From a thousand problems to the largest number, each in a process of its own. Columns as `growth`."""
    counts = [count for count in (1_000, 10_000, 100_000, 1_000_000) if count <= largest]
    rows = []
    for count in tqdm(counts, desc="growth", unit="process", disable=None):
        command = [sys.executable, "-m", "benchmarks", "solver", "--worker", json.dumps([count, actions])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"error: {count} problems: {done.stderr.strip().splitlines()[-1]}")
        rows.append(json.loads(done.stdout))
    return pd.DataFrame(rows)


def sizes_table() -> pd.DataFrame:
    """One world with many actions or contexts, and many calls of one small problem.

    Columns objective, actions, contexts, problems, milliseconds (each problem's), lbfgs_milliseconds, gradient_norm.
    """
    rows = []
    shapes = ((3, 1, 1), (64, 16, 8), (1024, 1, 1))
    todo = [(shape, name) for shape in shapes for name in ("dpo", "ipo", "maxpo")]
    for (actions, contexts, count), name in tqdm(todo, desc="sizes", unit="case", disable=None):
        case, problem = CASES[name], worlds(count, actions, contexts)
        objective = objectives.parse(case.objective)
        repeats = 20 if actions == 3 else 1
        solve(worlds(1, 3), objective)
        spent, solution = cost(lambda: [solve(problem, objective) for _ in range(repeats)][-1])  # noqa: B023
        peer_time = math.nan
        if actions != 1024:
            peer_time, ((value, _),) = cost(lambda: by_lbfgs_each(problem, case, by_hand, 0, 1))  # noqa: B023
            agree(solution, problem, case, 0, value)
        norm = float(solution.gradient_norm.max())
        rows.append((name, actions, contexts, count, 1e3 * spent / repeats / count, 1e3 * peer_time, norm))
    columns = ["objective", "actions", "contexts", "problems", "milliseconds", "lbfgs_milliseconds", "gradient_norm"]
    return pd.DataFrame(rows, columns=columns)


def gpu_table(count: int, actions: int = 10) -> pd.DataFrame:
    """The same code on both devices. Columns objective, cpu_microseconds, gpu_microseconds, ratio."""
    rows = []
    for name in ("dpo", "ipo", "maxpo, one start"):
        case, times = CASES[name], []
        objective = objectives.parse(case.objective)
        for device in ("cpu", "cuda"):
            problem = worlds(count, actions, device=device)
            solve(worlds(100, actions, device=device), objective, **dict(case.options))
            times.append(1e6 * cost(lambda: solve(problem, objective, **dict(case.options)), device)[0] / count)  # noqa: B023
        rows.append((name, *times, times[0] / times[1]))
    return pd.DataFrame(rows, columns=["objective", "cpu_microseconds", "gpu_microseconds", "ratio"])


def report(table: pd.DataFrame) -> bool:
    """Print every number beside its target; whether one is missed."""
    missed = False
    for row in table.itertuples():
        bound = ""
        if not math.isnan(row.target):
            met = row.value >= row.target if row.at_least else row.value <= row.target
            missed |= not met
            bound = f" ({'at least' if row.at_least else 'at most'} {row.target:g}: {'met' if met else 'MISSED'})"
        print(f"  {row.objective:>18}: {row.quantity} {row.value:,.2f}{bound}")
    return missed


PARTS = ("peers", "growth", "sizes", "gpu")


def main(given: Sequence[str] | None = None) -> int:
    """Measure, print every number beside its target, write the record; 1 if a target is missed."""
    given = sys.argv[1:] if given is None else list(given)
    if given[:1] == ["--worker"]:
        print(json.dumps(growth(*json.loads(given[1]))))
        return 0
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="python -m benchmarks solver"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the record")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--problems", type=int, default=10_000, help="problems of 10 actions (default 10000)")
    parser.add_argument("--largest", type=int, default=1_000_000, help="most problems of the growth (default 1000000)")
    arguments = parser.parse_args(given)
    if arguments.problems < SAMPLES or arguments.largest < 1_000:
        print(f"error: --problems must be at least {SAMPLES} and --largest at least 1000", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    tables: dict[str, pd.DataFrame] = {}
    targets = []
    if "peers" in arguments.parts:
        tables["peers"], tables["ratios"] = peers_table(arguments.problems)
        targets.append(tables["ratios"])
    if "growth" in arguments.parts:
        tables["growth"] = growth_table(arguments.largest)
        times = tables["growth"]["microseconds"]
        grown = ("dpo", "growth of the time a problem", times.iloc[-1] / times.iloc[0], LINEAR_TARGET, False)
        targets.append(pd.DataFrame([grown], columns=["objective", "quantity", "value", "target", "at_least"]))
    if "sizes" in arguments.parts:
        tables["sizes"] = sizes_table()
    if "gpu" in arguments.parts and torch.cuda.is_available():
        tables["gpu"] = gpu_table(arguments.problems)
    write_run(
        arguments.out,
        kind="benchmark",
        id="benchmark/solver",
        config={name: value for name, value in vars(arguments).items() if name != "out"},
        seeds={"worlds": 0},
        tables=tables,
        device=f"cpu, {torch.get_num_threads()} thread",
    )
    for name, table in tables.items():
        if name != "ratios":
            print(f"\n{name}\n{table.to_string(index=False, float_format='{:.4g}'.format)}")
    print("\ntargets")
    return int(report(pd.concat(targets)) if targets else False)


if __name__ == "__main__":
    sys.exit(main())

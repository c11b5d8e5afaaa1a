"""Speed and memory, against a peer in the same run, or against a bound.

    python -m benchmarks training --out results/    a training step against trl's DPOTrainer
    python -m benchmarks solver --out results/      exact optima in bandits against L-BFGS and Adam
    python -m benchmarks objectives                 a loss call as a share of a training step
    python -m benchmarks data --out results/        memory and speed of preference files of any size
    python -m benchmarks sweep --out results/       what a sweep costs beside its runs' own time
    python -m benchmarks soak --out results/        two hours of runs in one process: flat memory, no open files left

Each has a --help of its own.
"""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "data": "data",
    "objectives": "objectives_cost",
    "soak": "soak",
    "solver": "solver",
    "sweep": "sweep",
    "training": "training",
}


def main(arguments: list[str]) -> int:
    """Hand the rest of the command line to the named benchmark."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    if arguments[0] not in COMMANDS:
        print(f"error: no benchmark {arguments[0]!r}; there are: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"benchmarks.{COMMANDS[arguments[0]]}")
    result: int = module.main(arguments[1:])
    return result


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What a loss call costs, as a share of a training step: it should stay under 2 %.

    python benchmarks/objectives_cost.py                        every objective on pairs, a small transformer, CPU
    python benchmarks/objectives_cost.py dpo maxpo --device cuda --hidden 2048 --layers 16 --vocabulary 49152
    python benchmarks/objectives_cost.py --out cost.json

The step is forward and backward of a randomly initialised Llama on chosen and rejected responses, with log-probs taken from its head; the
loss call is the objective's value and its gradient in those log-probs. Both are timed in turn, process CPU time on a CPU (shared cores
make wall times useless), device time on a GPU; the medians are reported.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

import objectives
from objectives.checks import random_batch

SHARE = 0.02


def seconds(action: Callable[[], object], device: str) -> float:
    """CPU seconds of the process, or on a GPU seconds between synchronisations."""
    if device == "cpu":
        start = time.process_time()
        action()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    action()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def training_step(arguments: argparse.Namespace) -> Callable[[], Tensor]:
    """Forward and backward of ``pairs`` chosen and rejected responses; the gradient of the log-probs is given, no loss is called."""
    config = LlamaConfig(
        hidden_size=arguments.hidden,
        intermediate_size=4 * arguments.hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=max(1, arguments.hidden // 64),
        vocab_size=arguments.vocabulary,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(arguments.device)
    tokens = torch.randint(0, arguments.vocabulary, (2 * arguments.pairs, arguments.tokens), device=arguments.device)
    toward = torch.randn(2 * arguments.pairs, device=arguments.device)

    def step() -> Tensor:
        logits = model(tokens).logits[:, :-1].log_softmax(-1)
        logps = logits.gather(-1, tokens[:, 1:].unsqueeze(-1)).squeeze(-1).sum(-1)
        logps.backward(toward)
        model.zero_grad(set_to_none=True)
        return logps

    return step


def loss_call(objective: objectives.Objective, pairs: int, device: str) -> Callable[[], object]:
    """Value and gradient in everything that depends on the policy."""
    batches: dict[str, objectives.Batch] = {}
    leaves: list[Tensor] = []
    for source in {"pairs" if term.accepts_pairs else term.source for term in objective.terms}:
        batch = random_batch(source, pairs, torch.Generator().manual_seed(0), torch.float32)
        fields = {name: tensor.to(device) for name, tensor in batch.tensors().items()}
        policy = {n: t.requires_grad_() for n, t in fields.items() if n.endswith("logps") and not n.startswith("ref_")}
        leaves += policy.values()
        batches[source] = replace(batch, **{**fields, **policy})
    return lambda: torch.autograd.grad(objective.value(batches), leaves, allow_unused=True)


def main(given: list[str] | None = None) -> int:
    """Measure, print a table, and return 1 if any loss call takes more than its share."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="objectives_cost.py"
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="objectives or sums of them; default: all")
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128, help="length of a sequence")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, help="also write the numbers as JSON")
    arguments = parser.parse_args(given)
    try:
        chosen = [objectives.parse(name) for name in arguments.names or objectives.names()]
    except objectives.ObjectiveError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    step = training_step(arguments)
    step()
    steps = [seconds(step, arguments.device) for _ in range(5)]
    rows = []
    for objective in tqdm(chosen, desc="measuring", unit="objective", disable=None):
        call = loss_call(objective, arguments.pairs, arguments.device)
        call()
        calls = [seconds(call, arguments.device) for _ in range(arguments.repeats)]
        rows.append({"objective": objective.label, "microseconds": 1e6 * statistics.median(calls)})
    step_seconds = statistics.median(steps)
    print(f"training step: {1e3 * step_seconds:.1f} ms; each loss call, and its share of that:")
    for row in sorted(rows, key=lambda row: row["microseconds"]):
        row["share"] = row["microseconds"] / 1e6 / step_seconds
        print(f"{row['objective']:<40} {row['microseconds']:9.0f} us  {100 * row['share']:6.2f} %")
    if arguments.out:
        settings = {k: v for k, v in vars(arguments).items() if k not in ("out", "names")}
        record = {"settings": settings, "torch": torch.__version__, "step_seconds": step_seconds, "losses": rows}
        arguments.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return int(any(row["share"] > SHARE for row in rows))


if __name__ == "__main__":
    sys.exit(main())

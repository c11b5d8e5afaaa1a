"""Command line: `python -m llm_runs`."""

from __future__ import annotations

import argparse
import contextlib
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm_runs.account import Step
    from llm_runs.config import RunConfig

_EPILOG = """\
examples:
  python -m llm_runs run tiny --out out/tiny                    everything on a tiny random model, in a minute
  python -m llm_runs run quick --out out/language_model         the real thing on a CPU, about half an hour
  python -m llm_runs run h100 --out out/h100                    at full size on one GPU
  python -m llm_runs run quick --out out/mine --set model.name=path/to/model training.steps=48
  python -m llm_runs run quick --out out/own --set data.preferences=pairs.jsonl
  python -m llm_runs run paper_hh --out out/hh --dry-run        what it would do, take and write; nothing is done
  python -m llm_runs train h100 --out out/h100 --only ipo       a part of the trainings, for instance as one of many jobs
  python -m llm_runs online online_tiny --out out/online        PPO, ESPO, RSO, iterated DPO, best of n, and offline beside them
  python -m llm_runs sweep tiny --out out/sweep                 many runs: objectives, strengths, seeds, data settings
  python -m llm_runs evaluate --model tuned --reference base --prompts prompts.jsonl --out out/tuned
  torchrun --nproc_per_node 8 -m llm_runs run h100 --out out/h100     on 8 GPUs; docs/launching.md has more machines and Slurm

Interrupted? Give the same command again: it continues. What is complete is kept.
"""

_EVALUATE_EPILOG = """\
examples:
  python -m llm_runs evaluate --model tuned --reference base --prompts prompts.jsonl --out out/tuned --reward vader
  python -m llm_runs evaluate --model tuned --reference base --prompts prompts.jsonl --out out/tuned \\
      --set data.completion_tokens=128 model.chat_template=true evaluation.benchmarks=[hellaswag_100,arc_easy]
  python -m llm_runs evaluate quick --out out/language_model --model tuned     on the held-out data of that run

The numbers, with intervals and tests: python -m analysis evaluation out/tuned
"""

_ONLINE_EPILOG = """\
examples:
  python -m llm_runs online online_tiny --out out/online                     a tiny random model, in a minute or two
  python -m llm_runs online online_quick --out out/online_quick              SmolLM2-135M on a CPU
  python -m llm_runs online online_quick --out out/online_quick --method rlhf_ppo espo
  python -m llm_runs online online_quick --out out/online_quick --dry-run

Interrupted? Give the same command again: it continues at the last finished round.
"""

_SWEEP_EPILOG = """\
examples:
  python -m llm_runs sweep tiny --out out/sweep --dry-run           the runs, the jobs, and an estimate of their time
  python -m llm_runs sweep tiny --out out/sweep                     on this machine, a few jobs at a time
  python -m llm_runs sweep mine.yaml --out /shared/sweep --slurm    submitted to Slurm; the command ends at once
  python -m llm_runs sweep-status out/sweep                         what is done, running, waiting, failed and why

Interrupted, preempted, or failed? Give the same command again: what is done is kept, the rest goes on. docs/sweeps.md has the file.
"""

_GOALS = {
    "sft": "make the reference policy: supervised fine-tuning on the domain",
    "sample": "sample completions of the reference, for pairs and for the KL term",
    "label": "score the samples and draw preference labels",
    "train": "train the objectives on the labels, evaluating on the way",
    "cost": "measure time and memory of a training step with and without a reference",
    "run": "do all of it",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 1 where what was verified does not reproduce, 2 for bad input, 130 when interrupted."""
    options = _parser().parse_args(arguments)
    from llm_runs import processes

    processes.hush()
    try:
        if not options.light:
            from llm_runs.progress import quiet

            quiet()
        with processes.together():
            status = options.command(options)
    except KeyboardInterrupt:
        print("\ninterrupted; give the same command again to continue", file=sys.stderr)
        return 130
    except ValueError as error:
        if not _is_ours(error):
            raise
        if not isinstance(error, processes.Stopped) or processes.speaks_here():
            print(f"error: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        from llm_runs.errors import of_the_machine

        if not (words := of_the_machine(error)):
            raise
        print(f"error: {words}", file=sys.stderr)
        return 2
    return int(status or 0)


def _is_ours(error: ValueError) -> bool:
    """Whether an error is one that the user can do something about. Looked at late, because the packages take seconds to load."""
    from llm_runs.errors import InputError

    if isinstance(error, InputError):
        return True
    from analysis.records import RecordError
    from objectives import ObjectiveError

    return isinstance(error, RecordError | ObjectiveError)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llm_runs",
        description="Preference objectives on language models: data, reference, training, evaluation.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(light=False)  # True: a command that loads nothing heavy
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    fetch = commands.add_parser("fetch", help="download pinned models and data into the cache, checked by checksum")
    fetch.add_argument("assets", nargs="*", metavar="ASSET", help="default: all of them")
    fetch.set_defaults(command=_fetch)

    show = commands.add_parser("config", help="print a configuration with every key and default")
    _add_config(show)
    show.set_defaults(command=_show)

    for name, text in _GOALS.items():
        command = commands.add_parser(
            name, help=text, description=f"{text}. Earlier steps that are missing come first."
        )
        _add_config(command)
        _add_out(command)
        _add_dry_run(command, launched=True)
        if name in ("train", "run"):
            command.add_argument(
                "--only", default="", metavar="TEXT", help="only trainings with this in their name, e.g. maxpo or seed1"
            )
        command.set_defaults(command=_carry_out, goal=name)

    online = commands.add_parser(
        "online",
        help="run methods that sample from the policy while they train, and the offline trainings beside them",
        description="rlhf_ppo, espo, rso, iterative_dpo, accelerated and best_of_n, from the reference, the reward and the prompts of "
        "the offline trainings, judged on the same held-out prompts. Continues at the last finished round.",
        epilog=_ONLINE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_config(online)
    _add_out(online)
    online.add_argument(
        "--method",
        nargs="+",
        default=[],
        metavar="METHOD",
        help="only these, and no offline trainings: rlhf_ppo, espo, rso, iterative_dpo, accelerated, best_of_n",
    )
    _add_dry_run(online)
    online.set_defaults(command=_online)

    sweep = commands.add_parser(
        "sweep",
        help="do a grid of runs: objectives, strengths, seeds and data settings, here or on Slurm",
        description="Do every run of a sweep file as a resumable job. What runs share (fine-tuning, samples, labels, the reference's "
        "log-probabilities) is computed once.",
        epilog=_SWEEP_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sweep.add_argument(
        "sweep",
        metavar="SWEEP",
        help="a sweep file (YAML), or the name of a shipped one: tiny, strength, evidence, evidence_cpu",
    )
    _add_out(sweep)
    sweep.add_argument("--slurm", action="store_true", help="submit the jobs to Slurm, by the file's section slurm")
    sweep.add_argument(
        "--jobs", type=int, metavar="N", help="jobs at a time (default: the file's, else one for each GPU, else one)"
    )
    sweep.add_argument(
        "--no-locks", action="store_true", help="for folders where locks do not work: see docs/sweeps.md"
    )
    _add_dry_run(sweep)
    sweep.set_defaults(command=_sweep)

    batch = commands.add_parser(
        "batch",
        help="show a batch that was saved because a guard stopped or warned",
        description="What happened, the tensors by range with what in them is not finite, and the examples with their texts.",
        epilog="examples:\n  python -m llm_runs batch out/a/runs/dpo_beta=0.1_-noisy-seed0/failed_batch.json\n"
        "  python -m llm_runs batch out/a/runs/dpo_beta=0.1_-noisy-seed0 --examples 100",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    batch.add_argument(
        "batch", type=Path, metavar="FILE", help="failed_batch.json, warned_....json, or the folder of the former"
    )
    batch.add_argument("--examples", type=int, default=8, metavar="N", help="how many examples (default: 8)")
    batch.set_defaults(command=_batch)

    status = commands.add_parser(
        "sweep-status", help="show what of a sweep is done, running, waiting, and failed and why"
    )
    status.add_argument("out", type=Path, metavar="DIR", help="folder of the sweep")
    status.add_argument("--all", action="store_true", help="a line for every task")
    status.set_defaults(command=_sweep_status, light=True)

    evaluate = commands.add_parser(
        "evaluate",
        help="evaluate any model against its reference: on prompts of your own, or on a run's held-out data",
        description="Evaluate any model against its reference: KLs, reward and win rate, benchmarks, before and after.",
        epilog=_EVALUATE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_config(evaluate, optional=True)
    _add_out(evaluate)
    evaluate.add_argument("--model", required=True, metavar="MODEL", help="folder, .gguf file or hub id")
    evaluate.add_argument("--reference", metavar="MODEL", help="with --prompts: the model that it was tuned from")
    evaluate.add_argument(
        "--prompts",
        metavar="FILE",
        help="your prompts: JSONL, CSV, Parquet, ... with a field prompt (text or messages)",
    )
    evaluate.add_argument(
        "--reward",
        metavar="REWARD",
        help="with --prompts: vader, classifier (see reward.model), or the reward.npz of a run (default: none)",
    )
    evaluate.set_defaults(command=_evaluate)

    verify = commands.add_parser(
        "verify",
        help="do a part of a finished training again and compare; `python -m analysis verify` does this and more",
    )
    verify.add_argument("folder", type=Path, metavar="RUN", help="folder of a run, in its experiment's folder")
    verify.add_argument("--steps", type=int, default=2, metavar="N", help="training steps (default 2; 0: none)")
    verify.set_defaults(command=_verify)
    return parser


def _add_config(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    shipped = "a YAML file, or the name of a shipped one: quick, tiny, h100, paper_hh, ..."
    if optional:
        parser.add_argument("config", nargs="?", metavar="CONFIG", help=f"{shipped}; with --prompts none is needed")
    else:
        parser.add_argument("config", metavar="CONFIG", help=shipped)
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="change values of the configuration, e.g. --set training.steps=10 seed=3",
    )


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder of the run; continued if it exists"
    )


def _add_dry_run(parser: argparse.ArgumentParser, *, launched: bool = False) -> None:
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="only print the plan: steps, estimates of memory and time, every file to be written, what would be downloaded",
    )
    parser.add_argument(
        "--tflops",
        type=float,
        metavar="T",
        help="with --dry-run: sustained TFLOP/s of the device, for the estimate of time",
    )
    if launched:
        parser.add_argument(
            "--processes",
            type=int,
            default=1,
            metavar="N",
            help="with --dry-run: also memory, communication and tokens/s of a training shared by so many GPUs",
        )


def _fetch(options: argparse.Namespace) -> None:
    from llm_runs import assets

    for name in [assets.get(name).name for name in options.assets] or list(assets.ASSETS):
        print(f"{name}: {assets.ASSETS[name].content} ({assets.ASSETS[name].licence})", flush=True)
        print(f"  {assets.fetch(name)}", flush=True)


def _show(options: argparse.Namespace) -> None:
    import yaml

    from llm_runs.config import RunConfig

    config = RunConfig.load(options.config, options.overrides)
    print(yaml.safe_dump(config.to_dict(), sort_keys=False, width=120), end="")


def _carry_out(options: argparse.Namespace) -> None:
    from llm_runs import account, dry_run, pipeline, processes
    from llm_runs.config import RunConfig
    from llm_runs.experiment import Experiment

    config, only = RunConfig.load(options.config, options.overrides), getattr(options, "only", "")
    if options.dry_run:
        print(dry_run.report(config, options.out, options.goal, only, options.tflops, options.processes))
        return
    _join(config, options)
    with _sole(options.out) as release:
        experiment = processes.in_turn(lambda: Experiment(config, options.out))
        account.carry_out(pipeline.plan(experiment, options.goal, only), begin=release)
    if options.goal in ("train", "run"):
        figures = "likelihoods" if config.data.preferences else "likelihoods frontier_llm"  # no reward, no frontier
        print(f"records: {options.out / 'runs'}; next:", flush=True)
        for command, shows in (
            (f"python -m analysis evaluation {options.out}", "before and after: KL, reward, benchmarks with tests"),
            (f"python -m paper_figures {figures} --records {options.out} --out figures", "along training"),
            (f"python -m analysis claims {options.out}", "verdicts"),
        ):
            print(f"  {command}   # {shows}", flush=True)


def _online(options: argparse.Namespace) -> None:
    from llm_runs import account, processes
    from llm_runs.config import RunConfig
    from llm_runs.errors import InputError
    from llm_runs.experiment import Experiment
    from llm_runs.online import runs

    if processes.launched() > 1:
        raise InputError(
            f"online runs are made in one process, but the launcher started {processes.launched()}: start it without one"
        )
    config = RunConfig.load(options.config, options.overrides)
    methods = runs.named(options.method)
    if options.dry_run:
        print(runs.report(config, options.out, methods, options.tflops))
        return
    with _sole(options.out) as release:
        account.carry_out(runs.plan(Experiment(config, options.out), methods), begin=release)
    figures = f"python -m paper_figures frontier_llm predictions --records {options.out} --out figures"
    print(f"records: {options.out / 'runs'}; the curves, and what the exact bandit predicts: {figures}", flush=True)


def _sweep(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from llm_runs.sweeps import estimate, local, slurm, tasks
    from llm_runs.sweeps.spec import SweepConfig

    sweep = SweepConfig.load(options.sweep)
    if options.jobs is not None:
        sweep = replace(sweep, jobs=options.jobs)
    if options.dry_run:
        print(estimate.report(sweep, options.out, slurm=options.slurm, tflops=options.tflops))
        return
    planned = tasks.plan(sweep, options.out, dry=False)
    carry_out = slurm.submit if options.slurm else local.carry_out
    carry_out(sweep, options.out, planned, lambda line: print(line, flush=True), locks=not options.no_locks)
    if not options.slurm:
        print(f"records: {options.out}; next: python -m analysis claims {options.out}", flush=True)


def _batch(options: argparse.Namespace) -> None:
    from llm_runs import saved_batches

    print(saved_batches.describe(options.batch, options.examples))


def _sweep_status(options: argparse.Namespace) -> None:
    from llm_runs.sweeps import status

    print(status.report(options.out, everything=options.all))


def _evaluate(options: argparse.Namespace) -> None:
    from llm_runs import account, pipeline, processes
    from llm_runs.account import Step
    from llm_runs.config import RunConfig
    from llm_runs.errors import InputError
    from llm_runs.experiment import Experiment

    if options.prompts is not None:
        if options.reference is None:
            raise InputError("--prompts needs --reference: the model that yours was tuned from")
        _evaluate_on_prompts(options)
        return
    if options.config is None:
        raise InputError("give --prompts and --reference, or the CONFIG of a run; see evaluate --help")
    if options.reference is not None or options.reward is not None:
        raise InputError("--reference and --reward belong to --prompts; a run has its own")
    config = RunConfig.load(options.config, options.overrides)
    _join(config, options)
    with _sole(options.out) as release:
        experiment = processes.in_turn(lambda: Experiment(config, options.out))
        last = Step(
            f"evaluate {options.model}", "evaluate", lambda: str(pipeline.evaluate_model(experiment, options.model))
        )
        account.carry_out([*pipeline.plan(experiment, "before"), last], begin=release)
    print(f"next: python -m analysis evaluation {options.out}", flush=True)


def _verify(options: argparse.Namespace) -> int:
    from llm_runs import verify

    return int(not verify.verify(options.folder, options.steps, lambda line: print(line, flush=True)))


def _join(config: RunConfig, options: argparse.Namespace) -> None:
    """Join the other processes of the launch; all must have been given the same."""
    from analysis.records import code_version, package_versions
    from llm_runs import processes
    from llm_runs.experiment import flat

    processes.join()
    if processes.size() > 1:
        given = {name: str(value) for name, value in vars(options).items() if name not in ("command", "overrides")}
        versions = {"Python": platform.python_version(), "the code": code_version(), **package_versions()}
        processes.check_alike({**flat(config.to_dict()), **given, **versions})
        processes.check_shared(options.out)


@contextlib.contextmanager
def _sole(out: Path) -> Iterator[Callable[[Step], None]]:
    """Be the only command at work on what the runs in a folder share; yields what gives that up at the first step that shares nothing.

    From there on each run is locked by itself, so that several commands can share a folder's runs.
    """
    from llm_runs import pipeline, processes

    with contextlib.ExitStack() as held:
        held.enter_context(processes.sole(out))

        def release(step: Step) -> None:
            if step.kind not in pipeline.STAGES[:-1]:
                held.close()

        yield release


def _evaluate_on_prompts(options: argparse.Namespace) -> None:
    from llm_runs import account, processes
    from llm_runs.comparison import Comparison
    from llm_runs.config import RunConfig

    overrides = options.overrides if options.config else ["name=evaluation", *options.overrides]
    config = RunConfig.load(options.config, overrides)
    reward = options.reward or "none"
    _join(config, options)
    with processes.sole(options.out):
        comparison = Comparison(options.model, options.reference, options.prompts, options.out, config, reward)
        account.carry_out(comparison.plan())
    print(f"next: python -m analysis evaluation {comparison.folder}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""The commands that are killed, each small enough for a few seconds an attempt."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Scenario:
    """A command that is killed.

    Attributes:
        name: of the command, for the table of results.
        call: does it, given the folder that it may write in; raises or exits where it fails.
        start: a scenario whose finished folder this one begins in.
        ignored: files that are not results, as a pattern of their path.
        delays: whether it may be killed after random times, too.
        long: whether it is one of the long run's; the others are short stand-ins, or make what a command begins with.
    """

    name: str
    call: Callable[[Path], None]
    start: str | None = None
    ignored: str = r"$^"
    delays: bool = True
    long: bool = True


@dataclass(frozen=True)
class Command:
    """A command line; OUT stands for the folder.

    Attributes:
        package: whose `__main__` it is.
        words: before `--out`.
        more: after it.
        out: what `--out` names in the folder.
    """

    package: str
    words: tuple[str, ...]
    more: tuple[str, ...] = ()
    out: str = "out"

    def __call__(self, folder: Path) -> None:
        main: Any = importlib.import_module(f"{self.package}.__main__").main
        words = [word.replace("OUT", str(folder)) for word in (*self.words, "--out", f"OUT/{self.out}", *self.more)]
        sys.argv = [self.package, *words]  # locks say who holds them
        if code := main(words):
            sys.exit(code)


# -- language models ---------------------------------------------------------------------------------------------

Settings = Mapping[str, Any]

# Smaller still than the tiny configuration; a checkpoint after every step.
SMALL: dict[str, Any] = {
    "data.reward_texts": 60,
    "data.sft_texts": 40,
    "data.prompts": 8,
    "sft.steps": 3,
    "sft.save_every": 1,
    "sft.batch_size": 4,
    "reference.samples": 8,
    "sampling.batch_size": 4,
    "labels": [{"name": "noisy", "temperature": 4.0}],
    "training.steps": 3,
    "training.batch_size": 4,
    "training.save_every": 1,
    "training.reference_batch_size": 4,
    "training.save_model": True,
    "evaluation.at": [2],
    "evaluation.prompts": 4,
    "evaluation.held_out_samples": 4,
    "evaluation.held_out_pairs": 4,
    "evaluation.training_pairs": 4,
    "evaluation.other_texts": 4,
    "evaluation.likelihoods": 1,
    "objectives": ["dpo(beta=0.1)", "maxpo(beta=0.1, temperature='auto', tokens='full')"],
}
SMALLEST = SMALL | {
    "sft.steps": 2,
    "training.steps": 2,
    "training.save_model": False,
    "evaluation.at": [],
    "evaluation.prompts": 2,
    "evaluation.other_texts": 2,
    "evaluation.likelihoods": 0,
    "objectives": ["dpo(beta=0.1)"],
}
# The objectives of online runs are their methods.
ONLINE = {key: value for key, value in SMALL.items() if key != "objectives"} | {
    "online.rounds": 2,
    "online.prompts": 4,
}


def as_words(settings: Settings) -> tuple[str, ...]:
    """Settings as they follow `--set`."""
    return tuple(f"{key}={json.dumps(value)}" for key, value in settings.items())


def llm(*words: str, settings: Settings = SMALL, config: str = "tiny") -> Command:
    """A command of llm_runs: its name, and what follows the settings."""
    return Command("llm_runs", (words[0], config), ("--set", *as_words(settings), *words[1:]))


def own_file(folder: Path) -> None:
    """A preference file of one's own. Written once: a file's time is part of what says that it is the same."""
    rows = [
        {"prompt": f"Question {i}: ", "chosen": f"answer {i} is {i * i}", "rejected": f"no answer {i % 7}"}
        for i in range(24)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def own_data(folder: Path) -> None:
    """Training on the pairs of `own_file`."""
    chosen = SMALL | {
        "data.preferences": f"{folder}/pairs.jsonl",
        "training.save_model": False,
        "evaluation.at": [],
        "objectives": ["ipo(tau=0.1)"],
    }
    llm("run", settings={key: value for key, value in chosen.items() if key != "labels"})(folder)


def sweep(folder: Path) -> None:
    """All tasks of a sweep, one after the other in this process, as one of its jobs does them."""
    from llm_runs.sweeps import tasks
    from llm_runs.sweeps.spec import SweepConfig
    from llm_runs.sweeps.states import Folder, only_command
    from llm_runs.sweeps.work import Job

    spec = SweepConfig(
        config="tiny",
        set={key: value for key, value in SMALL.items() if key not in ("objectives", "training.save_model")},
        objectives=("dpo",),
        strengths=(0.1, 1.0),
        data={"noisy": {}},
    )
    out = folder / "out"
    planned = tasks.plan(spec, out, dry=False)
    with only_command(Folder(out), spec.name, planned, locks=True):
        Job(out, [task.id for task in planned])()
    if left := [task.id for task in planned if not Folder(out).done(task)]:
        sys.exit(f"not done: {left}")


# -- downloads ---------------------------------------------------------------------------------------------------


def fetched(folder: Path) -> None:
    """An asset from an index of one file, see `index`."""
    from llm_runs import assets
    from llm_runs.__main__ import main

    wheel = Path(os.environ["TRUST_INDEX"]) / "tiny_data-1.0-py3-none-any.whl"
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    assets.ASSETS["tiny"] = assets.Asset("tiny", "tiny_data", "1.0", digest, 1000, "a test", "none")
    if code := main(["fetch", "tiny"]):
        sys.exit(code)


def index(folder: Path) -> None:
    """An index for `fetched`, which alone pip may look at: to be called before the first process is started."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "METADATA": "Metadata-Version: 2.1\nName: tiny_data\nVersion: 1.0\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(folder / "tiny_data-1.0-py3-none-any.whl", "w") as archive:
        for number in range(4):
            archive.writestr(f"tiny_data/table-{number}.csv", f"{number}\n" * 2000)
        for name, text in about.items():
            archive.writestr(f"tiny_data-1.0.dist-info/{name}", text)
    os.environ |= {
        "TRUST_INDEX": str(folder),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(folder),
        "PIP_CONFIG_FILE": os.devnull,
    }


# -- runs of other programs --------------------------------------------------------------------------------------


def logs(folder: Path) -> None:
    """What `import` reads: a log of transformers' Trainer, results of lm-eval with their items, an event file."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    source = folder / "logs"
    source.mkdir()
    _trainer_log(source, steps=3)
    stamp = "2026-01-01T00-00-00.000000"
    results = {
        "results": {"own": {"alias": "own", "acc,none": 0.5, "acc_stderr,none": 0.25}},
        "versions": {"own": 1},
        "n-shot": {"own": 0},
        "n-samples": {"own": {"effective": 4}},
        "model_name": "some/model",
    }
    items = [
        {"doc_id": i, "doc": {"q": i}, "target": "a", "filter": "none", "metrics": ["acc"], "acc": float(i % 2)}
        for i in range(4)
    ]
    (source / f"results_{stamp}.json").write_text(json.dumps(results))
    (source / f"samples_own_{stamp}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    writer = EventFileWriter(str(source / "events"))
    for step in (1, 2, 3):
        value = Summary.Value(tag="reward", simple_value=step / 2)
        writer.add_event(Event(step=step, wall_time=float(step), summary=Summary(value=[value])))
    writer.close()


def grown_logs(folder: Path) -> None:
    """The Trainer has gone on since `logs` were imported."""
    _trainer_log(folder / "logs", steps=6)


def _trainer_log(folder: Path, steps: int) -> None:
    history = [{"step": i, "epoch": 0.1, "loss": 1.0 / i, "rewards/margins": 0.5} for i in range(1, steps + 1)]
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": steps, "log_history": history}))


# -- all of them -------------------------------------------------------------------------------------------------

_BOARD = ("leaderboard", "dpo", "ipo", "--strengths", "2", "--only", "determinism", "likelihood", "--workers", "1")
_IMPORT = Command("analysis", ("import", "OUT/logs"))
_RECORDS = "paper_figures/records"
_REPORT = ("report", f"{_RECORDS}/language_model/runs/dpo_beta=0.1-noisy-seed0", f"{_RECORDS}/bandits/determinism")
SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("fetch", fetched, delays=False, ignored=r"\.lock$"),  # a lock nobody holds
        Scenario("sft", llm("sft")),
        Scenario("sample", llm("sample"), start="sft"),
        Scenario("label", llm("label"), start="sample"),
        Scenario("train", llm("train"), start="label"),  # from the log-probabilities of the reference, which it keeps
        Scenario("evaluate", llm("evaluate", "--model", "OUT/out/reference"), start="label"),
        Scenario("run", llm("run")),
        Scenario("small run", llm("run", settings=SMALLEST), long=False),
        Scenario("own file", own_file, long=False),
        Scenario("own data", own_data, start="own file"),
        Scenario(
            "online",
            llm("online", "--method", "rlhf_ppo", "iterative_dpo", config="online_tiny", settings=ONLINE),
        ),
        Scenario("sweep", sweep, ignored=r"/sweep/(logs|tasks)/.*(?<!\.tmp)$"),  # seconds are in them
        Scenario("one bandit", Command("toy_bandits", ("run", "ablation")), long=False),
        Scenario("bandits", Command("toy_bandits", ("run", "determinism", "strength", "ablation"))),
        Scenario("leaderboard", Command("toy_bandits", _BOARD)),
        Scenario("loop", Command("toy_bandits", ("loop", "rlhf_ppo", "--set", "iterations=4"))),
        Scenario("figures", Command("paper_figures", ("determinism", "strength", "--records", _RECORDS))),
        Scenario("report", Command("analysis", _REPORT, out="report.html")),
        Scenario("export", Command("analysis", ("export", f"{_RECORDS}/language_model/costs"))),
        Scenario("logs", logs, long=False),
        Scenario("import", _IMPORT, start="logs"),
        Scenario("grown logs", grown_logs, start="import", long=False),
        Scenario("import again", _IMPORT, start="grown logs"),
    )
}
LONG = [scenario.name for scenario in SCENARIOS.values() if scenario.long]

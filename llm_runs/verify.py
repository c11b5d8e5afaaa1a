"""Does a training reproduce? Its data looked at, its labels drawn and its first steps made again: `python -m llm_runs verify RUN`.

On the same device with the same versions the numbers must be the same bits. On a GPU, whose kernels add up in an order of their own, and
between versions, differences up to `TOLERANCE` are named and pass (docs/trust.md).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

import objectives
from analysis.records import Run, elsewhere, fingerprint, read_run
from llm_runs import pipeline
from llm_runs.config import RunConfig
from llm_runs.data.sources import local_files
from llm_runs.data.stored import StoredPairs
from llm_runs.errors import InputError
from llm_runs.experiment import Experiment, Training, flat, kept_config
from llm_runs.json_lines import read_object
from llm_runs.labelling import read_pairs

TOLERANCE = (
    1e-3  # of a metric, relative to its size or to 1: a bound for bf16 arithmetic on a GPU, where nothing else differs
)
VARYING = ("step_seconds", "step_cpu_seconds", "peak_memory_bytes")

Finding = tuple[bool, str]  # whether it is as it should be, and what was looked at or differs


def verify(folder: Path, steps: int, say: Callable[[str], object] = print) -> bool:
    """Whether the run in `folder` reproduces, saying what was found.

    Raises:
        InputError, RecordError: it is not a run whose experiment is there, or its record is damaged.
    """
    good = True
    for right, text in findings(read_run(folder), steps):
        say(f"{'ok  ' if right else 'FAIL'} {text}")
        good &= right
    return good


def findings(run: Run, steps: int) -> Iterator[Finding]:
    """What is looked at of a run, one after the other: settings, files, pairs, labels, steps."""
    out = run.folder.resolve().parents[1]
    if not (out / "config.json").is_file():
        raise InputError(
            f"{run.folder}: {out} is not the folder of its experiment (no config.json), so only its checksums can be verified: "
            "a copied record has lost its data"
        )
    config = kept_config(out)
    files = list(_files(config, out))
    yield from files
    if not all(right for right, _ in files):
        return
    experiment = Experiment(config, out, dry=True)
    one = next((each for each in experiment.trainings() if each.slug == run.folder.resolve().name), None)
    if one is None:
        yield True, f"a record of kind {run.kind} that is no offline training: nothing of it is done again"
        return
    pairs = experiment.pairs_path(one.labels, "training")
    if not pairs.is_file():
        yield False, f"data: {pairs} is missing"
        return
    now = fingerprint(pairs)
    then = run.manifest["data_fingerprint"]
    if now != then:
        yield False, f"data: {pairs} has changed: sha256 {now[:12]}..., {str(then)[:12]}... when it was trained on"
        return
    yield True, f"data: {pairs} is what was trained on"
    if changed := list(_settings(run, experiment, one)):
        yield from ((False, line) for line in changed)
        return
    yield True, "settings and seeds are those of the experiment"
    yield from _pairs(experiment, one)
    if steps:
        yield from _steps(run, experiment, one, steps)


def _files(config: RunConfig, out: Path) -> Iterator[Finding]:
    """The files that the configuration names, read in whole."""
    path = out / "config.json"
    try:
        kept = dict(read_object(path)["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error})") from error
    data = config.data
    for name in (data.text, data.other_text, data.preferences, data.reading.held_out, config.model.template):
        for file in local_files(name):
            if kept.get(str(file)) != fingerprint(file):
                yield False, f"data: the content of {file} has changed"
            else:
                yield True, f"data: {file} is as it was"


def _settings(run: Run, experiment: Experiment, one: Training) -> Iterator[str]:
    """What differs between the record and its experiment."""
    objective = pipeline.resolve(experiment, objectives.parse(one.objective))
    pairs = experiment.pairs(one.labels, "training")
    expected = flat(pipeline.settings_of(experiment.config, one, objective, pairs) | experiment.data_summary)
    recorded = flat(run.config)
    for key in sorted({*expected, *recorded}):
        if recorded.get(key) != expected.get(key):
            yield f"setting {key}: {recorded.get(key)!r} in the record, {expected.get(key)!r} in its experiment"
    seeds = experiment.config.seeds_of(one.labels.seed)
    for name, seed in run.seeds.items():
        if seeds.get(name, seed) != seed:
            yield f"seed {name}: {seed} in the record, {seeds[name]} in its experiment"


def _pairs(experiment: Experiment, one: Training) -> Iterator[Finding]:
    for side in ("training", "held_out"):
        path = experiment.pairs_path(one.labels, side)
        if one.labels.temperature is None:
            StoredPairs.open(path)  # which compares the checksums
            yield True, f"pairs: {path.name} is as it was"
        elif experiment.labelled(one.labels, side) == read_pairs(path):
            yield True, f"labels: drawn again, {path.name} is the same"
        else:
            yield False, f"labels: drawn again, {path.name} is another: its samples, rewards or seed have changed"


def _steps(run: Run, experiment: Experiment, one: Training, steps: int) -> Iterator[Finding]:
    """The first steps again, in a folder of their own."""
    steps = min(steps, experiment.config.training.steps)
    place = Path(tempfile.mkdtemp(prefix="verify-"))
    try:
        again = pipeline.first_steps(experiment, one, place, steps)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    compared = _joined(run.table("metrics"), again, steps)
    if compared.empty:
        yield False, f"steps: the record has no metrics of the first {steps} steps"
        return
    device = pipeline.device_name(experiment.device)
    alike = device == run.manifest["device"] and not elsewhere(run)
    exact = experiment.device.type == "cpu" and alike
    differing = compared[compared["then"] != compared["now"]]
    what = f"steps: {compared['step'].nunique()} of them again ({compared['name'].nunique()} numbers each)"
    if differing.empty:
        yield True, f"{what}: the same bits"
        return
    off = (differing["then"] - differing["now"]).abs() / differing["then"].abs().clip(lower=1.0)
    worst = differing.iloc[int(off.to_numpy().argmax())]
    detail = f"{worst['name']} at step {worst['step']} was {worst['then']:.9g}, is {worst['now']:.9g}"
    if exact or not off.max() <= TOLERANCE:
        yield False, f"{what}: they differ: {detail}"
    else:
        why = "on this device" if alike else f"(made on {run.manifest['device']}, elsewhere: see the notes)"
        yield True, f"{what}: equal up to {off.max():.1g} {why}: {detail}"


def _joined(then: pd.DataFrame, now: pd.DataFrame, steps: int) -> pd.DataFrame:
    kept = [
        frame[(frame["step"] <= steps) & ~frame["name"].isin(VARYING) & ~frame["name"].str.startswith("passes/")]
        for frame in (then, now)
    ]
    first, second = (frame.set_index(["step", "name"])["value"] for frame in kept)
    return pd.DataFrame({"then": first, "now": second}).dropna().reset_index()

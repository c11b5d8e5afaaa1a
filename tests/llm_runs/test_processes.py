"""Several processes give what one gives: losses, gradients, weights, samples, the reference's numbers, evaluations."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from launch import launch
from test_training import CONFIG, PAIRS, SAMPLES, TEXTS, VOCABULARY, llama
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import objectives
from analysis.records import find_runs
from llm_runs import benchmarks, processes, reference, sampling, sft, sharding, training
from llm_runs.checkpoints import last_checkpoint
from llm_runs.config import EvaluationConfig, LoRAConfig, ReferenceConfig, SamplingConfig, SFTConfig, TrainingConfig
from llm_runs.errors import InputError
from llm_runs.evaluation import Evaluator
from llm_runs.examples import Sides, TokenSample
from llm_runs.global_batch import gathered
from llm_runs.microbatches import Microbatches, needs_in_training
from llm_runs.mismatched import Mismatched
from llm_runs.models import load_model, load_tokenizer, save, tiny_random
from llm_runs.reference import ReferenceLogps, ScoredCompletion

TRAINED: dict[str, tuple[str, dict[str, Any]]] = {
    "dpo": ("dpo(beta=0.1)", {}),
    "accumulated": ("dpo(beta=0.1)", {"micro_batch_size": 2}),
    "lora": ("dpo(beta=0.1)", {"lora": LoRAConfig(rank=2, alpha=4.0)}),
    "full": ("maxpo(beta=0.1, temperature=2.0, tokens='full')", {}),
    "regularised": ("ipo(tau=0.2) + chosen_nll(weight=0.5, per_token=True) + pretraining(weight=0.3)", {}),
    "kto": ("kto(beta=0.1)", {}),
    "bco": ("bco(beta=0.1)", {}),
    "beta_dpo": ("beta_dpo(beta=0.1)", {}),
    "aot": ("aot(beta=0.1)", {}),
}
SHARDED: dict[str, tuple[str, dict[str, Any]]] = {
    "fsdp": ("maxpo(beta=0.1, temperature=2.0, tokens='full')", {"sharding": "fsdp"}),
    "fsdp, tied, accumulated": ("dpo(beta=0.1)", {"sharding": "fsdp", "micro_batch_size": 2}),
    "fsdp, recomputed": ("kto(beta=0.1)", {"sharding": "fsdp", "gradient_checkpointing": True}),
}
STEPS = replace(CONFIG, steps=2)
LONGER = replace(CONFIG, steps=4, batch_size=6, reference_batch_size=6, save_every=2)


class Cut(Exception):
    """The power cut of a test."""


def tied() -> PreTrainedModel:
    return llama(tied=True, seed=1)


def trained(
    text: str, changes: dict[str, Any], stored: Path, out: Path, config: TrainingConfig = STEPS, cut: int = 0
) -> dict[str, Any]:
    """Loss by step, weights, and how the weights lay in the process at the first step."""
    kind = next((kind for kind in MODELS if kind in out.name), "untied")
    model, facts = MODELS[kind](), []

    def look(model: PreTrainedModel, step: int) -> None:
        if cut and step == cut:
            raise Cut
        for name, weight in model.named_parameters():
            sharded = isinstance(weight, DTensor)
            placed = [isinstance(each, Shard) for each in weight.placements] if sharded else []
            held = weight.to_local().numel() if sharded else weight.numel()
            facts.append((name, sharded and all(placed), held, weight.numel()))

    metrics = training.train(
        model,
        objectives.parse(text),
        PAIRS,
        reference=ReferenceLogps.load(stored / kind),
        reference_samples=SAMPLES,
        pretraining=TEXTS,
        config=replace(config, **changes),
        seed=0,
        out=out,
        evaluate=look,
        evaluate_at=[cut or 1],
    )
    losses = metrics[metrics["name"].isin(["loss", "grad_norm", "margin", "plain_accuracy", "chosen_logps"])]
    whole = sharding.whole_state(model)
    weights = {name: each.detach().clone() for name, each in (model.state_dict() if whole is None else whole).items()}
    return {"metrics": losses.reset_index(drop=True), "weights": weights, "facts": facts}


MODELS = {"tied": tied, "single": lambda: llama().float(), "untied": llama}


def interrupted(text: str, changes: dict[str, Any], stored: Path, out: Path) -> None:
    with pytest.raises(Cut):
        trained(text, changes, stored, out, LONGER, cut=3)


def all_trainings(stored: Path, out: Path) -> dict[str, Any]:
    """In each of two processes."""
    processes.join()
    found: dict[str, Any] = {
        name: trained(text, changes, stored, out / name) for name, (text, changes) in (TRAINED | SHARDED).items()
    }
    found["continued"] = trained("dpo(beta=0.1)", {}, stored, out / "from one", LONGER)
    interrupted("dpo(beta=0.1)", {}, stored, out / "to one")
    interrupted("dpo(beta=0.1)", {"sharding": "fsdp"}, stored, out / "to three")
    found["drawn"] = drawn_while_training({"sharding": "fsdp"}, stored, out / "drawn")
    found["whole"] = fallen_back(stored, out / "whole")
    found["gathered"] = coupled_gradients()
    found["sft"] = tuned(out / "sft")
    return found


def fallen_back(stored: Path, out: Path) -> str:
    """What is said where accelerate makes whole copies of what was to be sharded, as it does by itself on a CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(sharding.ShardedTrainer, "create_accelerator_and_postprocess")
        with pytest.raises(InputError) as caught:
            trained("dpo(beta=0.1)", {"sharding": "fsdp"}, stored, out)
    return str(caught.value)


def drawn_while_training(changes: dict[str, Any], stored: Path, out: Path) -> list[TokenSample]:
    """Samples of the policy after its first step, which may lie sharded; the trained model is saved."""
    model, tokenizer, found = llama(), tiny_random(["a"], vocabulary=300)[1], []
    model.generation_config.eos_token_id = list(range(10, 30))

    def draw(model: PreTrainedModel, step: int) -> None:
        found.extend(sampling.sample(model, tokenizer, [(3, 4), (5,), (6, 7, 8)], max_tokens=6, seed=1, batch_size=1))

    training.train(
        model,
        objectives.parse("dpo(beta=0.1)"),
        PAIRS,
        reference=ReferenceLogps.load(stored / "untied"),
        config=replace(STEPS, **changes),
        seed=0,
        out=out,
        evaluate=draw,
        evaluate_at=[1],
    )
    save(model, tokenizer, out / "model")
    return found


def coupled_gradients() -> tuple[Tensor, Tensor]:
    """The loss of a batch-coupled objective of which each process has some pairs, and the mean of the processes' gradients."""
    numbers = torch.randn(4, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64) - 4
    numbers.requires_grad_()
    own = numbers[:, processes.rank() :: processes.size()]
    names = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
    batch = objectives.PairBatch(**dict(zip(names, own, strict=True)))
    objective = objectives.parse("beta_dpo(beta=0.1, alpha=0.6, width=1.0) + aot(beta=0.3) + bco(beta=0.2)")
    loss = objective.value(gathered({"pairs": batch}))
    (gradient,) = torch.autograd.grad(loss, numbers)
    return loss.detach(), torch.stack(processes.gather(gradient)).mean(0)


def tuned(out: Path) -> tuple[list[tuple[int, float]], dict[str, Tensor]]:
    model = llama()
    generator = torch.Generator().manual_seed(2)
    samples = [
        TokenSample((1,), tuple(torch.randint(1, VOCABULARY, (length,), generator=generator).tolist()))
        for length in (3, 9, 4, 12, 2, 7, 5, 11) * 4
    ]
    config = SFTConfig(steps=3, batch_size=8, learning_rate=1e-3, warmup_steps=0, save_every=0)
    losses = sft.train(model, samples, config, seed=0, checkpoints=out)
    return losses, {name: weight.detach().clone() for name, weight in model.named_parameters()}


def continued_by_three(stored: Path, out: Path) -> dict[str, Any]:
    processes.join()
    return trained("dpo(beta=0.1)", {"sharding": "fsdp"}, stored, out / "to three", LONGER)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, tokenizer = tmp_path_factory.mktemp("stored"), tiny_random(["a"], vocabulary=300)[1]
    crossed = Mismatched(Sides(PAIRS))
    for name, model in MODELS.items():
        reference.compute(
            model(),
            tokenizer,
            PAIRS,
            SAMPLES,
            ReferenceConfig(top_k=VOCABULARY),
            completions=crossed,
        ).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("launched")


@pytest.fixture(scope="module")
def by_two(stored: Path, folder: Path) -> list[dict[str, Any]]:
    interrupted("dpo(beta=0.1)", {}, stored, folder / "from one")
    return launch(2, folder / "two", all_trainings, stored, folder)


def assert_close(found: dict[str, Any], expected: dict[str, Any], atol: float = 1e-6) -> None:
    pd.testing.assert_frame_equal(found["metrics"], expected["metrics"], atol=atol, rtol=1e-5)
    for name, weight in found["weights"].items():  # of shards only the first process has the whole
        torch.testing.assert_close(weight, expected["weights"][name], atol=atol, rtol=0, msg=name)


@pytest.mark.parametrize("name", [*TRAINED, *SHARDED])
def test_two_processes_train_as_one_does(name: str, by_two: list[dict[str, Any]], stored: Path, tmp_path: Path) -> None:
    text, changes = (TRAINED | SHARDED)[name]
    alone = trained(text, {**changes, "sharding": "none"}, stored, tmp_path / name)
    assert by_two[0][name]["weights"].keys() == alone["weights"].keys()
    for each in by_two:
        assert_close(each[name], alone)
        parts = [(sharded, held / whole) for _, sharded, held, whole in each[name]["facts"]]
        assert len(parts) == len(alone["facts"])
        assert (
            all(sharded and share == 0.5 for sharded, share in parts)
            if name in SHARDED
            else not any(sharded for sharded, _ in parts)
        )


def test_whole_copies_of_what_was_to_be_sharded_are_refused(by_two: list[dict[str, Any]]) -> None:
    for each in by_two:
        assert "the model was to be sharded over 2 processes, but this one holds" in each["whole"]


def test_a_sharded_policy_is_sampled_from_and_saved(
    by_two: list[dict[str, Any]], stored: Path, folder: Path, tmp_path: Path
) -> None:
    alone = drawn_while_training({}, stored, tmp_path)
    assert len({len(each.completion_ids) for each in alone}) > 1  # processes wait for the longest
    for each in by_two:
        assert each["drawn"] == [replace(entry, logp=pytest.approx(entry.logp)) for entry in alone]
    saved, expected = (load_model(place / "model").state_dict() for place in (folder / "drawn", tmp_path))
    assert saved.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(saved[name], weight, atol=1e-6, rtol=0, msg=name)


def test_a_training_goes_on_with_another_number_of_processes(
    by_two: list[dict[str, Any]], stored: Path, folder: Path, tmp_path: Path
) -> None:
    undisturbed = trained("dpo(beta=0.1)", {}, stored, tmp_path / "whole", LONGER)
    assert last_checkpoint(folder / "to one" / "checkpoints").endswith("checkpoint-2")
    for each in (by_two[0]["continued"], trained("dpo(beta=0.1)", {}, stored, folder / "to one", LONGER)):
        assert_close(each, undisturbed)
    for each in launch(3, folder / "three", continued_by_three, stored, folder):
        assert_close(each, undisturbed)


def test_gradients_through_the_batch_of_all_processes_are_those_of_one(by_two: list[dict[str, Any]]) -> None:
    # The processes' pairs come one process after the other, and no coupling looks at the order.
    loss, gradient = coupled_gradients()
    assert gradient.abs().min() < gradient.abs().max()
    for each in by_two:
        torch.testing.assert_close(each["gathered"][0], loss)
        torch.testing.assert_close(each["gathered"][1], gradient)


def test_fine_tuning_weighs_every_token_alike_in_all_processes(by_two: list[dict[str, Any]], tmp_path: Path) -> None:
    losses, weights = tuned(tmp_path)
    for each in by_two:
        assert [loss for _, loss in each["sft"][0]] == pytest.approx([loss for _, loss in losses], abs=1e-5)
        for name, weight in weights.items():
            torch.testing.assert_close(each["sft"][1][name], weight, atol=1e-6, rtol=0, msg=name)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_step_has_the_same_pairs_for_any_number_of_processes(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = needs_in_training(objectives.get("dpo", beta=0.1), candidates=False, unpaired=False) - {"ref_logps"}

    def steps() -> list[list[int]]:
        data = Microbatches(needs, PAIRS, [], [], None, replace(CONFIG, batch_size=4, steps=4), 0)
        cut = [data.order["pairs"][i : i + data.per_step] for i in range(0, len(data), data.per_step)]
        return [[int(pair) for part in step for pair in part] for step in cut]

    alone = steps()
    assert sorted(alone[0] + alone[1]) == list(range(8))  # none twice before all once
    monkeypatch.setattr(processes, "size", lambda: size)
    assert steps() == alone


# -- artefacts -----------------------------------------------------------------------------------------------------

PROMPTS = [tuple(range(10, 10 + length)) for length in (3, 7, 5, 4, 6, 8, 2, 9, 3, 5, 7)]


def artefacts(tiny: Path, out: Path, name: str) -> dict[str, Any]:
    """Samples, the reference's numbers and an evaluation, each shared by all processes."""
    processes.join()
    model, tokenizer = load_model(tiny), load_tokenizer(tiny)
    path = out / f"{name}.jsonl"
    config = SamplingConfig(batch_size=2)
    drawn = sampling.sample_to_file(path, model, tokenizer, PROMPTS, max_tokens=6, seed=3, config=config)
    config_of_reference, folder = ReferenceConfig(top_k=8, batch_size=3), out / f"{name} reference"
    with pytest.MonkeyPatch.context() as patch:  # several pieces, each shared by all processes
        patch.setattr(reference, "_NUMBERS", 300)
        kept = reference.compute(model, tokenizer, PAIRS, SAMPLES, config_of_reference, folder=folder)
    policy = load_model(tiny)
    with torch.no_grad():
        policy.model.norm.weight.mul_(3.0)
    evaluator = Evaluator(
        tokenizer,
        lambda: load_model(tiny),
        kept,
        None,
        prompts=PROMPTS,
        reference_samples=drawn,
        pairs=PAIRS[:5],
        training_pairs=PAIRS[5:],
        other_texts=TEXTS,
        max_tokens=5,
        config=EvaluationConfig(batch_size=3),
        seed=1,
    )
    return {
        "samples": drawn,
        "file": path.read_text(),
        "left": sorted(each.name for each in path.parent.iterdir() if each.name.startswith(f".{name}")),
        "reference": list(kept.rows),
        "pieces": len(list((folder / "rows").glob("*.arrow"))),
        "evaluation": evaluator.evaluate(policy, 4),
        "policy samples": evaluator.samples,
        "continued": _cut_or_continued(out, model, tokenizer),
    }


def numbers(row: ScoredCompletion) -> list[Tensor]:
    top = row.top
    return [row.logps, row.logp, *(() if top is None else (top.ids, top.logps, top.log_tail))]


def _cut_or_continued(
    out: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[TokenSample], int] | None:
    """Two processes are cut off after their first batches; what they left is used by however many come next."""
    path, config, calls, decode = out / "cut.jsonl", SamplingConfig(batch_size=2), [], sampling._decode

    def counted(*arguments: Any) -> Any:
        if processes.size() == 2 and calls:
            raise Cut
        calls.append(1)
        return decode(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "_decode", counted)
        try:
            drawn = sampling.sample_to_file(path, model, tokenizer, PROMPTS, max_tokens=6, seed=3, config=config)
        except Cut:
            return None
    return drawn, len(calls)


def answers(tiny: Path, questions: Path) -> pd.DataFrame:
    """Of a benchmark, whose items two processes share."""
    import datasets

    processes.join()
    datasets.config.HF_DATASETS_CACHE = str(questions.parent / "datasets")
    model, tokenizer = load_model(tiny), load_tokenizer(tiny)
    return benchmarks.run(model, tokenizer, [str(questions)], step=3, batch_size=2)


def test_benchmarks_are_shared_by_items(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    rows = [
        {"query": f"Film {number} was", "choices": [f"good {number}", "a waste of time", "great"], "gold": number % 3}
        for number in range(5)
    ]
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    alone = answers(tiny_folder, questions)
    assert alone["item"].tolist() == [item for item in range(5) for _ in range(2)]
    for each in launch(2, tmp_path / "launch", answers, tiny_folder, questions):
        pd.testing.assert_frame_equal(each, alone)


def test_one_two_and_three_processes_make_the_same(tiny_folder: Path, tmp_path: Path) -> None:
    alone = artefacts(tiny_folder, tmp_path / "one", "samples")
    assert len(alone["samples"]) == len(PROMPTS)
    for size in (2, 3):
        for each in launch(size, tmp_path / f"launch-{size}", artefacts, tiny_folder, tmp_path / "more", f"s{size}"):
            assert each["samples"] == alone["samples"]
            assert each["file"] == alone["file"]
            assert each["left"] == []  # nothing half done
            assert each["policy samples"] == alone["policy samples"]
            assert each["pieces"] == alone["pieces"] > 2
            for found, wanted in zip(each["reference"], alone["reference"], strict=True):
                assert found.digest == wanted.digest
                for one, other in zip(numbers(found), numbers(wanted), strict=True):
                    torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
            pd.testing.assert_frame_equal(each["evaluation"], alone["evaluation"], atol=1e-6, rtol=1e-6)
            if size == 3:  # two of six batches were there, four are shared by three
                assert each["continued"] == (alone["samples"], 2)
    assert len(set(alone["evaluation"]["item"])) == len(PROMPTS)


# -- what is wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"training\.batch_size \(8\) must be a multiple of the number of processes, 3: the nearest is 6 or 9"),
        (
            {"batch_size": 12, "micro_batch_size": 6},
            r"micro_batch_size \(6\) must divide training\.batch_size \(12\) into passes that 3 processes can share evenly: "
            r"the nearest is 2 or 4",
        ),
        (
            {"batch_size": 9},
            r"training\.reference_batch_size \(8\) must be a multiple of the forward passes of a step, 3: the nearest is 6 or 9",
        ),
    ],
)
def test_batches_that_cannot_be_shared_are_named_with_the_nearest_that_can(
    changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "size", lambda: 3)
    with pytest.raises(InputError, match=message):
        Microbatches(frozenset({"pairs", "reference_samples"}), PAIRS, SAMPLES, [], None, replace(CONFIG, **changes), 0)


def command(change: dict[str, Any], *arguments: str) -> None:
    """`python -m llm_runs`, in process 1 with other arguments, versions, or a death of its own."""
    from llm_runs.__main__ import main

    change = change if os.environ["RANK"] == "1" else {}
    if "version" in change:
        real = importlib.metadata.version
        importlib.metadata.version = lambda name: "9.9" if name == change["version"] else real(name)
    if "dies" in change:
        draw = sampling._drawer

        def broken(*given: Any) -> Any:
            if isinstance(change["dies"], Exception):
                raise change["dies"]
            os._exit(2) if change["dies"] else None
            return draw(*given)

        sampling._drawer = broken
    raise SystemExit(main([*arguments, *change.get("more", [])]))


def said(folder: Path) -> list[str]:
    return [(folder / f"stderr-{rank}").read_text() for rank in range(2)]


def sample_tiny(out: Path) -> tuple[str, ...]:
    return "sample", "tiny", "--out", str(out), "--set", "sft.steps=0", "reference.samples=4", "data.prompts=4"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"more": ["--set", "seed=5"]}, "process 1 has seed 5, process 0 has 0"),
        ({"version": "torch"}, "process 1 has torch '9.9', process 0 has '2."),
    ],
)
def test_processes_that_differ_are_refused_at_the_start(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    launch(2, tmp_path, command, change, *sample_tiny(tmp_path / "out"), exits=2)
    assert (
        f"the processes of this launch differ: {message}" in said(tmp_path)[0]
    )  # once on a machine, whoever saw it first
    assert not (tmp_path / "out").exists()  # nothing was begun


def test_when_one_process_dies_the_others_stop_with_its_reason_and_the_next_call_continues(tmp_path: Path) -> None:
    given, start = sample_tiny(tmp_path / "out"), time.monotonic()
    launch(2, tmp_path / "error", command, {"dies": InputError("the lamp is out")}, *given, exits=2)
    first, second = said(tmp_path / "error")
    assert second.startswith("error: the lamp is out\n")
    assert "error: process 1 on" in first
    assert "stopped: the lamp is out\n" in first
    assert "Traceback" not in first + second
    launch(2, tmp_path / "killed", command, {"dies": True}, *given, exits=2)
    assert "error: another process of the launch is gone without a word" in said(tmp_path / "killed")[0]
    assert time.monotonic() - start < 60
    launch(2, tmp_path / "again", command, {}, *given, exits=0)
    samples = [sampling.read_samples(path) for path in (tmp_path / "out" / "samples").glob("*.jsonl")]
    assert [len(each) for each in samples if len(each) == 4]


LAUNCHERS = {
    "torchrun": ("torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"),
    # As with GPUs; without any its processes compute on the CPU (with --cpu it would start one only).
    "accelerate launch": (
        *("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m"),
    ),
}


@pytest.fixture(scope="module")
def made_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("alone")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_makes_the_whole_run_of_one_process(launcher: str, made_alone: Path, tmp_path: Path) -> None:
    """Half a minute of two cores for each of three runs."""
    settings = ("sft.steps=6", "data.prompts=16", "training.steps=4", "objectives=['dpo(beta=0.1)', 'bco(beta=0.1)']")
    shared = ("labels=[{name: noisy, temperature: 4.0}]", "evaluation.at=[2]", "training.save_every=2")
    tables = {}
    for name, given in (("alone", ()), ("launched", LAUNCHERS[launcher])):
        out = made_alone if name == "alone" else tmp_path / name
        command = [
            sys.executable,
            "-m",
            *given,
            "llm_runs",
            "run",
            "tiny",
            "--out",
            str(out),
            "--set",
            *settings,
            *shared,
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("records: ") == 1  # one process speaks
        runs, skipped = find_runs(out / "runs")
        assert not skipped
        for run in runs:
            assert run.manifest["extra"]["processes"] == (1 if name == "alone" else 2)
            metrics = run.table("metrics")
            losses = metrics[metrics["name"].isin(["loss", "margin", "chosen_logps"])].reset_index(drop=True)
            tables.setdefault(run.folder.name, {})[name] = losses, run.table("evaluations"), run.table("samples")
    assert len(tables) == 2
    for found in tables.values():
        for each, alone in zip(found["launched"], found["alone"], strict=True):
            pd.testing.assert_frame_equal(each, alone, atol=1e-4, rtol=1e-4)

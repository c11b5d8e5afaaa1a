"""What SECURITY.md promises: no code in data is run, no path leads out of a folder, no secret is written down."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import objectives
from analysis import records
from analysis.records import redact
from llm_runs import checkpoints, data, models
from llm_runs.__main__ import main
from llm_runs.config import DataConfig, ModelConfig, RunConfig, TrainingConfig
from llm_runs.errors import InputError
from llm_runs.examples import TokenPair
from llm_runs.experiment import Experiment
from llm_runs.rewards import TfidfReward
from llm_runs.sweeps.states import Folder
from llm_runs.training import train
from objectives import yaml_text
from toy_bandits.errors import BanditError
from toy_bandits.worlds import registry as worlds

ROOT = Path(__file__).parents[1]
PACKAGES = ("objectives", "toy_bandits", "llm_runs", "analysis", "paper_figures", "benchmarks")

# -- the code ----------------------------------------------------------------------------------------------------

_MODULES = {
    "pickle",
    "_pickle",
    "cPickle",
    "cloudpickle",
    "dill",
    "joblib",
    "shelve",
    "marshal",
    "tarfile",
    "telnetlib",
}
_CALLS = {
    "eval", "exec", "compile", "os.system", "os.popen", "pty.spawn", "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load",
    "pd.read_pickle", "torch.save", "torch.hub.load", "torch.jit.load", "np.fromfile", "tempfile.mktemp", "shutil.unpack_archive",
    "subprocess.getoutput", "subprocess.getstatusoutput",
}  # fmt: skip
_METHODS = {"to_pickle", "exec_module", "extractall"}
# What may be done in one place each, and why.
EXCEPTIONS = {
    ("llm_runs/assets.py", "extractall"): "a wheel with a pinned checksum, its members checked first",
    ("llm_runs/rewards.py", "exec_module"): "vaderSentiment's own file, of a wheel with a pinned checksum",
    ("objectives/third_parties.py", "exec_module"): "the plugin files that the user names in an environment variable",
}


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _is(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def dangers(source: str) -> list[str]:
    """Every use of something that could run what it reads."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in _MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in _MODULES:
            found.append(str(node.module))
        elif isinstance(node, ast.Call):
            name, given = _name(node.func), {word.arg: word.value for word in node.keywords}
            last = name.rpartition(".")[2]
            if name in _CALLS or last in _METHODS:
                found.append(last if last in _METHODS else name)
            if name in ("torch.load", "load_state_dict_from_url") and not _is(given.get("weights_only"), True):
                found.append("torch.load without weights_only=True")
            if "allow_pickle" in given and not _is(given["allow_pickle"], False):
                found.append("allow_pickle")
            if "shell" in given and not _is(given["shell"], False):
                found.append("shell=True")
            if name.startswith("subprocess.") and node.args and not isinstance(node.args[0], ast.List | ast.Name):
                found.append("a command that is not a list")
            if _is(given.get("trust_remote_code"), True):
                found.append("trust_remote_code=True")
            if _is(given.get("use_safetensors"), False):
                found.append("use_safetensors=False")
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "import cloudpickle as c", "torch.load(p)", "torch.load(p, weights_only=flag)",
        "np.load(p, allow_pickle=True)", "yaml.load(t, Loader=L)", "eval(x)", "exec(x)", "os.system(x)", "subprocess.run('ls ' + x)",
        "subprocess.run(f'ls {x}')", "subprocess.run(['ls'], shell=True)", "pd.read_pickle(p)", "frame.to_pickle(p)", "z.extractall(p)",
        "AutoModel.from_pretrained(p, trust_remote_code=True)", "loader.exec_module(m)", "torch.save(x, p)",
    ],
)  # fmt: skip
def test_the_scan_sees(source: str) -> None:
    assert dangers(source)


def test_the_scan_lets_pass() -> None:
    fine = "torch.load(p, weights_only=True); np.load(p, allow_pickle=False); subprocess.run([a, b]); subprocess.run(command, check=True)"
    assert dangers(fine) == []


def test_nothing_in_the_packages_runs_what_it_reads() -> None:
    met = set()
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            place = file.relative_to(ROOT).as_posix()
            for danger in dangers(file.read_text(encoding="utf-8")):
                assert (place, danger) in EXCEPTIONS, f"{place}: {danger}"
                met.add((place, danger))
    assert met == set(EXCEPTIONS), "an exception that nothing needs any more"


# -- pickles in the place of data --------------------------------------------------------------------------------


class _Evil:
    """Unpickled, it writes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "it-ran"


@pytest.fixture
def evil(mark: Path) -> bytes:
    content = pickle.dumps(_Evil(mark))
    pickle.loads(content)
    assert mark.exists(), "the bait does not work"
    mark.unlink()
    return content


@pytest.fixture
def evil_torch(mark: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"state": _Evil(mark)}, buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save(*models.tiny_random(["a good film"], vocabulary=300), tmp_path_factory.mktemp("model") / "tiny")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "adapter_model.bin"])
def test_a_model_that_is_a_pickle(
    name: str, evil: bytes, evil_torch: bytes, mark: Path, tiny: Path, tmp_path: Path
) -> None:
    for content in (evil, evil_torch):
        folder = tmp_path / "model"
        shutil.copytree(tiny, folder)
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(content)
        with pytest.raises(InputError):
            models.load_model(models.prepare(ModelConfig(name=str(folder)), tmp_path / "out"))
        with pytest.raises(InputError):
            models.load_model(folder)  # also without the first look
        shutil.rmtree(folder)
    assert not mark.exists()


def test_a_pickle_beside_safetensors_is_not_looked_at(
    evil_torch: bytes, mark: Path, tiny: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        (folder / name).write_bytes(evil_torch)
    models.load_model(models.prepare(ModelConfig(name=str(folder)), tmp_path / "out"))
    assert not mark.exists()


PAIRS = [TokenPair((1, 2), (3, i), (4, 5)) for i in range(6, 14)]
SIMPO = objectives.get("simpo")
CONFIG = TrainingConfig(steps=3, batch_size=4, save_every=1, warmup_steps=0)


@pytest.fixture(scope="module")
def interrupted(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that was interrupted after its first checkpoint."""
    out = tmp_path_factory.mktemp("interrupted")
    model = models.load_model(tiny)
    with pytest.raises(KeyboardInterrupt):
        train(model, SIMPO, PAIRS, config=CONFIG, seed=0, out=out, evaluate=_interrupt, evaluate_at=(2,))
    return out


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("optimizer.pt", "pickle"),
        ("optimizer.pt", "torch"),
        ("scheduler.pt", "torch"),
        ("rng_state.pth", "torch"),
        ("training_args.bin", "torch"),
    ],
)
def test_a_checkpoint_with_code_in_it(
    name: str, form: str, interrupted: Path, evil: bytes, evil_torch: bytes, mark: Path, tiny: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(interrupted, tmp_path / "out"))
    checkpoint = Path(checkpoints.last_checkpoint(out / "checkpoints") or "")
    file = checkpoint / name
    assert file.is_file()
    file.write_bytes(evil if form == "pickle" else evil_torch)
    assert (
        checkpoints.last_checkpoint(out / "checkpoints") is None
    )  # its checksum is another; but who writes there can write that, too
    checkpoints.seal(checkpoint)
    arguments: dict[str, Any] = {"config": CONFIG, "seed": 0, "out": out}
    if name == "training_args.bin":  # written by transformers, read by nobody
        train(models.load_model(tiny), SIMPO, PAIRS, **arguments)
    else:
        with pytest.raises(InputError, match=r"checkpoint-1: its optimiser, schedule or random state"):
            train(models.load_model(tiny), SIMPO, PAIRS, **arguments)
    assert not mark.exists()


def _interrupt(model: Any, step: int) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "name", ["pairs.pkl", "pairs.jsonl", "pairs.json", "pairs.csv", "pairs.parquet", "pairs.jsonl.gz", "pairs.npz"]
)
def test_preferences_that_are_a_pickle(name: str, evil: bytes, mark: Path, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(evil)
    with pytest.raises(InputError, match=name):
        data.load(DataConfig(preferences=str(path)), models.load_tokenizer(tiny), 64, folder=tmp_path / "data", seed=0)
    assert not mark.exists()


def test_records_and_arrays_that_are_a_pickle(evil: bytes, mark: Path, tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1.0]})
    folder = records.write_run(tmp_path / "run", kind="bandit", id="x", config={}, seeds={}, tables={"results": frame})
    manifest = json.loads((folder / records.MANIFEST).read_text())
    (folder / "results.parquet").write_bytes(evil)
    manifest["tables"]["results"]["sha256"] = records.fingerprint(evil)
    del manifest["sha256"]  # its own checksum, which earlier versions did not write
    (folder / records.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(records.RecordError, match=r"results\.parquet"):
        records.read_run(folder).table("results")
    (folder / records.MANIFEST).write_bytes(evil)
    with pytest.raises(records.RecordError, match="not valid JSON"):
        records.read_run(folder)
    for content in (evil, _npz_of_objects(mark)):
        (tmp_path / "reward.npz").write_bytes(content)
        with pytest.raises(InputError, match=r"reward\.npz: not a saved reward"):
            TfidfReward.load(tmp_path / "reward.npz")
    assert not mark.exists()


def _npz_of_objects(mark: Path) -> bytes:
    buffer = io.BytesIO()
    objects = np.array([_Evil(mark)], dtype=object)
    np.savez(buffer, words=objects, idf=objects, weights=objects, intercept=objects)
    return buffer.getvalue()


# -- YAML, code of models ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system ['touch MARK']", "!!python/name:os.system", "!!python/module:os"]
)
def test_yaml_makes_no_objects(tag: str, mark: Path, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"name: {tag.replace('MARK', str(mark))}\n")
    with pytest.raises(InputError, match=r"config\.yaml"):
        RunConfig.load(path)
    with pytest.raises(BanditError, match=r"config\.yaml"):
        worlds.load_file(path)
    assert main(["config", "tiny", "--set", f"name={tag.replace('MARK', str(mark))}"]) == 2
    assert not mark.exists()


def test_yaml_that_explodes_is_small_in_memory() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    with pytest.raises(yaml_text.YamlError, match="aliases of aliases"):
        yaml_text.read(bomb)
    with pytest.raises(yaml_text.YamlError, match="contains itself"):
        yaml_text.read("a: &a [*a]")
    with pytest.raises(yaml_text.YamlError, match="nested"):
        yaml_text.read("[" * 200 + "]" * 200)
    with pytest.raises(yaml_text.YamlError, match="'a' stands twice"):
        yaml_text.read("a: 1\nb: 2\na: 3\n")
    assert yaml_text.read("a: &x [1, 2]\nb: *x\n") == {"a": [1, 2], "b": [1, 2]}  # aliases as such are fine


def test_code_of_a_model_is_refused_unless_asked_for_and_then_recorded(tiny: Path, mark: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    (folder / "own.py").write_text(
        "from pathlib import Path\nfrom transformers import LlamaConfig, LlamaForCausalLM\n"
        f"Path({str(mark)!r}).touch()\nclass OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class Own(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    for load in (models.load_model, models.source_settings):
        with pytest.raises(InputError):
            load(folder)
    assert not mark.exists()
    models.source_settings(folder, trust=True)
    assert mark.exists()
    experiment = Experiment(RunConfig.load("tiny", ["model.trust_remote_code=true"]), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"]["model"]["trust_remote_code"] is True
    assert experiment.config.to_dict()["model"]["trust_remote_code"] is True  # which is what records hold


# -- secrets -----------------------------------------------------------------------------------------------------

SECRETS = {
    "HF_TOKEN": "hf_abcdefghijklmnop", "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIKEXAMPLE", "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SESSION_TOKEN": "FwoGZXIvYXdzEXAMPLE", "WANDB_API_KEY": "0123456789abcdef0123", "MY_DB_PASSWORD": "correct horse battery",
}  # fmt: skip


@pytest.fixture
def secret_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("secret_environment")
def test_secrets_are_hidden_wherever_they_stand() -> None:
    given = {
        "a": [f"token {SECRETS['HF_TOKEN']}!", 3, None],
        SECRETS["WANDB_API_KEY"]: "s3://user:pa55word@host/b?x=1&X-Amz-Signature=abc",
    }
    assert redact(given) == {"a": ["token ***!", 3, None], "***": "s3://***@host/b?x=1&X-Amz-Signature=***"}
    for plain in ("a@b.c", "https://host/path@2", "x = y@z", "tokens=5", "https://host/?page=2"):
        assert redact(plain) == plain


_ADDRESS = "training.hub_model_id=https://someone:hunter2hunter2@host/name"


def _assert_no_secret(out: Path, *expected: str) -> None:
    files = [path for path in out.rglob("*") if path.is_file()]
    assert {*expected} <= {path.name for path in files}
    for path in files:
        content = path.read_bytes()
        for secret in (*SECRETS.values(), "hunter2hunter2"):
            assert secret.encode() not in content, f"{path} holds a secret"


@pytest.mark.usefixtures("secret_environment")
def test_no_secret_gets_into_a_folder(tmp_path: Path) -> None:
    """Of a run's beginning, with secrets in the environment and one in an address that the configuration names; and into a record."""
    values = ["sft.steps=0", "data.reward_texts=100", "data.prompts=8", "reference.samples=8", _ADDRESS]
    assert main(["label", "tiny", "--out", str(tmp_path / "run"), "--set", *values]) == 0
    assert (
        main(["label", "tiny", "--out", str(tmp_path / "run"), "--set", *values]) == 0
    )  # the hidden configuration is still its own
    config = {"model": f"s3://{SECRETS['AWS_ACCESS_KEY_ID']}:x@host", "environment": dict(os.environ)}
    records.write_run(
        tmp_path / "record", kind="llm", id=SECRETS["HF_TOKEN"], config=config, seeds={}, tables={}, extra=config
    )
    _assert_no_secret(tmp_path, "config.json", "run.json")


@pytest.mark.slow
@pytest.mark.usefixtures("secret_environment")
def test_no_secret_gets_into_a_whole_run(tmp_path: Path) -> None:
    """With records and the card of a model that is kept."""
    values = [
        "sft.steps=2", "data.reward_texts=100", "data.sft_texts=50", "data.prompts=8", "reference.samples=8", "training.steps=1",
        "training.batch_size=4", "training.save_model=true", "evaluation.at=[]", "evaluation.likelihoods=0", "evaluation.prompts=2",
        "objectives=['dpo(beta=0.1)']", "labels=[{name: noisy, temperature: 4.0}]", _ADDRESS,
    ]  # fmt: skip
    assert main(["run", "tiny", "--out", str(tmp_path), "--set", *values]) == 0
    _assert_no_secret(tmp_path, "config.json", "run.json", "README.md")
    (run,) = records.find_runs(tmp_path / "runs")[0]
    assert run.config["model"]["trust_remote_code"] is False


def test_records_are_complete_whatever_they_hide(tmp_path: Path) -> None:
    config = {"data": "https://me:password1@host/pairs"}
    records.write_run(tmp_path, kind="bandit", id="x", config=config, seeds={}, tables={})
    assert "password1" not in (tmp_path / records.MANIFEST).read_text()
    assert records.is_complete(tmp_path, config)
    assert not records.is_complete(tmp_path, {"data": "https://me:password1@elsewhere/pairs"})


# -- folders -----------------------------------------------------------------------------------------------------


def test_the_jobs_of_a_sweep_are_for_their_owner_alone(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.jobs.mkdir(parents=True, mode=0o777)
    folder.make_private()
    assert stat.S_IMODE(folder.jobs.stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/b", "..", ""])
def test_tables_of_a_record_stay_in_its_folder(name: str, tmp_path: Path) -> None:
    folder = records.write_run(tmp_path / "run", kind="bandit", id="x", config={}, seeds={}, tables={})
    manifest = json.loads((folder / records.MANIFEST).read_text())
    manifest["tables"][name] = {"sha256": "0" * 64}
    (folder / records.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(records.RecordError, match="is not a table name"):
        records.read_run(folder)

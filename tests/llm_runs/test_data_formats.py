"""Every published form of preference data is recognised and read as its authors mean it."""

from __future__ import annotations

from typing import Any

import preference_samples
import pytest
import trl

from llm_runs.data import PreferenceFileError, Problem, formats
from llm_runs.data.formats import Comparison, Fields, Scored, Unpaired


def read(row: dict[str, Any], name: str | None = None, **options: Any) -> Any:
    form = formats.detect(row, "here") if name is None else formats.FORMATS[name]
    return form.read(Fields(row, **options))


@pytest.mark.parametrize(
    ("rows", "name"),
    [
        (preference_samples.hh_rlhf(), "hh_rlhf"),
        (preference_samples.ultrafeedback(), "ultrafeedback"),
        (preference_samples.ultrafeedback_binarized(), "pairs"),
        (preference_samples.kto(), "unpaired"),
        (preference_samples.shp(), "shp"),
        ([{"prompt": "a", "completions": ["b", "c"], "scores": [1, 2]}], "candidates"),
        ([{"prompt": "a", "chosen": "\n\nHuman: b\n\nAssistant: c", "rejected": "d"}], "pairs"),
    ],
)
def test_published_forms_are_recognised(rows: list[dict[str, Any]], name: str) -> None:
    assert {formats.detect(row, "here").name for row in rows} == {name}
    for row in rows:
        read(row)


def test_hh_rlhf() -> None:
    first, second = (read(row) for row in preference_samples.hh_rlhf(2))
    assert first == Comparison(
        "\n\nHuman: How was the plot of film 0?\n\nAssistant:", " The plot was great, I think.", " Bad plot. Go away."
    )
    assert second.prompt.endswith("\n\nHuman: Yes, only that.\n\nAssistant:")
    # The answers begin alike, and the second goes on as if it were a turn of its own.
    tricky = read(
        {"chosen": "\n\nHuman: a\n\nAssistant: The same, yes", "rejected": "\n\nHuman: a\n\nAssistant: The same, no"}
    )
    assert (tricky.chosen, tricky.rejected) == (" The same, yes", " The same, no")
    windows = read({side: f"\r\n\r\nHuman: a\r\n\r\nAssistant: {side}" for side in ("chosen", "rejected")})
    assert windows == Comparison("\n\nHuman: a\n\nAssistant:", " chosen", " rejected")


START = "\n\nHuman: a\n\nAssistant: b"


@pytest.mark.parametrize(
    ("chosen", "rejected", "words"),
    [
        (START, START, "are the same"),
        (
            f"{START}\n\nHuman: c\n\nAssistant: d",
            "\n\nHuman: a\n\nAssistant: e\n\nHuman: f\n\nAssistant: g",
            "parts|goes on after",
        ),
        (START, "\n\nHuman: x\n\nAssistant: b", "no common beginning"),
        (START, "\n\nHuman: a\n\nAssistant:", "'rejected', message 2 is empty"),
        ("\n\nHuman: a\n\nHuman: c\n\nAssistant: b", START, "'chosen', message 2: user and assistant must alternate"),
        (START, f"{START}\n\nHuman: c", "'rejected', message 3: the last message must be one of the assistant"),
        (START, "Answer: b", "'rejected' must begin with"),
        (START, 3, "'rejected' must be a transcript"),
        (START, "\n\nAssistant: b", "'rejected': user and assistant must alternate"),
    ],
)
def test_broken_transcripts(chosen: Any, rejected: Any, words: str) -> None:
    with pytest.raises(Problem, match=words):
        read({"chosen": chosen, "rejected": rejected}, "hh_rlhf")


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [user("q")], "chosen": [assistant("yes")], "rejected": [assistant("no")]},
        {"chosen": [user("q"), assistant("yes")], "rejected": [user("q"), assistant("no")]},
        {"prompt": "q", "chosen": [user("q"), assistant("yes")], "rejected": [user("q"), assistant("no")]},
        {"prompt": "q", "chosen": [assistant("yes")], "rejected": [assistant("no")]},
        {"prompt": [user("q")], "chosen": "yes", "rejected": "no"},
        {"prompt": [user("q")], "chosen": [user("q"), assistant("yes")], "rejected": [user("q"), assistant("no")]},
        {
            "prompt": [user("q") | {"name": None}],
            "chosen": [assistant("yes")],
            "rejected": [assistant("no")],
            "id": None,
        },
    ],
)
def test_all_conversational_spellings_of_a_pair_mean_the_same(row: dict[str, Any]) -> None:
    assert read(row) == Comparison([user("q")], [assistant("yes")], [assistant("no")])


@pytest.mark.parametrize("answers", [("It is blue.", "It is green."), ("Two words", "Twofold")])
def test_implicit_prompts_agree_with_trl_up_to_whole_words(answers: tuple[str, str]) -> None:
    row = {side: f"The sky: what is it? {answer}" for side, answer in zip(("chosen", "rejected"), answers, strict=True)}
    found, theirs = read(row), trl.extract_prompt(row)
    assert found.prompt + found.chosen == row["chosen"]
    assert found.prompt + found.rejected == row["rejected"]
    # trl cuts where the characters part, also inside a word; here the word stays whole.
    assert theirs["prompt"].startswith(found.prompt)
    assert " " not in theirs["prompt"][len(found.prompt) :].strip()
    messages = {side: [user("q"), assistant(side)] for side in ("chosen", "rejected")}
    pair = read(messages)
    assert trl.extract_prompt(messages) == {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": [user("q"), user("r")]}, "'prompt', message 2: user and assistant must alternate"),
        ({"prompt": [user("q"), assistant("r")]}, "'chosen': user and assistant must alternate"),
        ({"prompt": [{"role": "system", "content": "s"}]}, "alternate"),
        ({"prompt": [user(" ")]}, "'prompt' is empty"),
        ({"chosen": [assistant("a"), user("b")]}, "'chosen', message 2: the last message must be one of the assistant"),
        ({"rejected": [user("b")]}, "'rejected': user and assistant must alternate"),
        (
            {"rejected": [{"role": "tool", "content": "b"}]},
            "'rejected', message 1: the role 'tool' is none of system, user, assistant",
        ),
        ({"rejected": [{"role": "assistant", "text": "b"}]}, "'rejected', message 1: each message must be"),
        ({"rejected": "no"}, "'chosen' must be text or a list of messages like 'rejected', which is text"),
        ({"prompt": 5}, "'prompt' must be text or a list of messages, not int"),
        ({"rejected": None}, "the key 'rejected' is missing"),
    ],
)
def test_broken_conversations_name_field_and_message(row: dict[str, Any], words: str) -> None:
    whole = {"prompt": [user("q")], "chosen": [assistant("yes")], "rejected": [assistant("no")]} | row
    with pytest.raises(Problem, match=words):
        read(whole, "pairs")


def test_a_prompt_that_is_not_what_the_conversations_begin_with() -> None:
    row = {"prompt": "other", "chosen": [user("q"), assistant("yes")], "rejected": [user("q"), assistant("no")]}
    with pytest.raises(Problem, match="'prompt' is none of the messages"):
        read(row)


def test_ultrafeedback_scores() -> None:
    row = preference_samples.ultrafeedback(1)[0]
    found = read(row)
    assert isinstance(found, Scored)
    assert found.prompt == [user("Review the plot of film 0.")]
    assert found.scores == (2.0, 7.5, 8.5, 4.0)
    assert found.answers[2] == [assistant("The plot was great and moving.")]
    assert read(row, score="ratings").scores == (1, 4, 5, 2)
    row["completions"][0]["annotations"]["honesty"]["Rating"] = "3"
    assert read(row, score="ratings").scores[0] == 1.5  # (3 + 1 + 1 + 1) / 4
    del row["completions"][1]["overall_score"]
    assert read(row).scores[1] == 4  # the ratings, where there is no overall score
    with pytest.raises(Problem, match=r"'completions\[2\]\.overall_score' is missing; data\.reading\.score=ratings"):
        read(row, score="overall")
    row["completions"][1]["annotations"]["honesty"]["Rating"] = "N/A"
    with pytest.raises(Problem, match=r"'completions\[2\]\.annotations\.honesty\.Rating' must be a number, not 'N/A'"):
        read(row, score="ratings")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"response": ""}, r"'completions\[1\]\.response' is empty"),
        ({"response": None}, r"'completions\[1\]\.response' is missing"),
        ({"overall_score": "high"}, r"'completions\[1\]\.overall_score' must be a number, not 'high'"),
        ({"overall_score": "7.5"}, r"overall_score' must be a number, not the text '7\.5'; write it without quotes"),
        ({"overall_score": float("nan")}, "must be a finite number"),
        ({"overall_score": True}, "must be a finite number"),
        ({"overall_score": None, "annotations": None}, "neither 'overall_score' nor 'annotations'"),
    ],
)
def test_broken_ultrafeedback(change: dict[str, Any], words: str) -> None:
    row = preference_samples.ultrafeedback(1)[0]
    row["completions"][0] |= change
    with pytest.raises(Problem, match=words):
        read(row)
    with pytest.raises(Problem, match="'completions' has 1; at least two"):
        read({"instruction": "a", "completions": preference_samples.ultrafeedback(1)[0]["completions"][:1]})


def test_binarized_ultrafeedback_has_scores() -> None:
    found = read(preference_samples.ultrafeedback_binarized(1)[0])
    assert (found.chosen_score, found.rejected_score, found.id) == (8.5, 4.0, "0" * 64)


def test_candidates() -> None:
    row = {"prompt": "a", "completions": ["b", "c"], "scores": [1, 2.5]}
    assert read(row) == Scored("a", ("b", "c"), (1.0, 2.5))
    for change, words in (
        ({"scores": [1]}, "'scores' has 1 entries, but 'completions' has 2"),
        ({"scores": [1, "2"]}, r"'scores\[2\]' must be a number"),
        ({"completions": ["b", " "]}, r"'completions\[2\]' is empty"),
        ({"completions": "bc"}, "'completions' must be a list"),
    ):
        with pytest.raises(Problem, match=words):
            read(row | change)


def test_unpaired_labels() -> None:
    bad, good = (read(row) for row in preference_samples.kto(2))
    assert good == Unpaired([user("How was film 0?")], [assistant("Great.")], True)
    assert bad.label is False
    assert read({"prompt": "a", "completion": "b", "label": 1}) == Unpaired("a", "b", True)
    for value in ("true", 2, 0.5, None):
        with pytest.raises(Problem, match="'label'"):
            read({"prompt": "a", "completion": "b", "label": value}, "unpaired")
    assert read({"prompt": "a", "completion": "b", "label": "True"}, typed=False).label is True  # CSV has text only


def test_shp_labels_and_scores() -> None:
    second_wins, first_wins = (read(row) for row in preference_samples.shp(2))
    assert first_wins.chosen == [assistant("Reply A to 1.")]
    assert (first_wins.chosen_score, first_wins.rejected_score, first_wins.score_ratio) == (57, 19, 3)
    assert second_wins.chosen == [assistant("Another reply, B, to 0.")]
    assert (second_wins.chosen_score, second_wins.rejected_score) == (20, 10)
    row = preference_samples.shp(1)[0]
    for change, words in (
        ({"labels": "A"}, "'labels' must be true or false"),
        ({"score_A": "57"}, "'score_A' must be a number, not the text"),
        ({"score_ratio": 0.3}, "'score_ratio' must be at least 1"),
        ({"human_ref_B": ""}, "'human_ref_B' is empty"),
        ({"human_ref_B": row["human_ref_A"]}, "are the same"),
    ):
        with pytest.raises(Problem, match=words):
            read(row | change)


def test_columns_of_no_format_are_listed_with_the_nearest() -> None:
    with pytest.raises(PreferenceFileError) as error:
        formats.detect({"question": "a", "choosen": "b", "rejected": "c"}, "mine.csv, row 1")
    message = str(error.value)
    assert message.startswith("mine.csv, row 1: the columns 'question', 'choosen', 'rejected' are no known format")
    assert "'chosen' is missing (nearest: 'choosen'" in message
    assert "data.reading.columns" in message


def test_mapped_columns() -> None:
    row = {"q": "a", "good": "b", "bad": "c"}
    columns = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    formats.check_columns(columns, row, "here")
    assert read(formats.rename(row, columns)) == Comparison("a", "b", "c")
    swapped = formats.rename({"chosen": "b", "rejected": "c"}, {"chosen": "rejected", "rejected": "chosen"})
    assert swapped == {"chosen": "c", "rejected": "b"}
    with pytest.raises(
        PreferenceFileError,
        match=r"here: .* wants the column 'goood' for 'chosen', which is not there; nearest: 'good'",
    ):
        formats.check_columns({"chosen": "goood"}, row, "here")
    with pytest.raises(PreferenceFileError, match="no format has a field 'choosen'; nearest: 'chosen'"):
        formats.check_columns({"choosen": "good"}, row, "here")

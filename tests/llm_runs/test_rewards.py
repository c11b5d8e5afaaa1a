"""Rewards: against words, against scikit-learn on the whole, and through a file without pickle."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from transformers import LlamaConfig, LlamaForSequenceClassification

from llm_runs import assets, models, rewards
from llm_runs.config import RewardConfig
from llm_runs.errors import InputError
from llm_runs.examples import TokenSample
from llm_runs.rewards import TfidfReward
from llm_runs.texts import Text

PROMPTS = ["I thought the movie", "To me the film", "The"]
COMPLETIONS = [" was wonderful and brilliant.", " was terrible, dull and awful.", " plot, in words never seen: qxz."]


@pytest.fixture(scope="module")
def reward(corpus: list[Text]) -> TfidfReward:
    return TfidfReward.fit(corpus, RewardConfig())


def test_it_is_the_log_odds_of_the_whole_text(reward: TfidfReward, corpus: list[Text]) -> None:
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2, max_features=50000),
        LogisticRegression(C=10.0, max_iter=1000),
    )
    model.fit([text.text for text in corpus], [text.label for text in corpus])
    whole = [prompt + completion for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)]
    odds = model.predict_proba(whole)
    np.testing.assert_allclose(reward.score(PROMPTS, COMPLETIONS), np.log(odds[:, 1] / odds[:, 0]), atol=1e-6)


def test_it_prefers_good_words(reward: TfidfReward) -> None:
    good, bad, _ = reward.score(PROMPTS, COMPLETIONS)
    assert good > 0 > bad
    assert rewards.accuracy(
        reward, [Text("wonderful wonderful", 1), Text("awful", 0), Text("awful", 1)]
    ) == pytest.approx(2 / 3)


def test_it_survives_a_file_without_pickle(reward: TfidfReward, tmp_path: Path) -> None:
    path = tmp_path / "reward.npz"
    reward.save(path)
    assert np.array_equal(TfidfReward.load(path).score(PROMPTS, COMPLETIONS), reward.score(PROMPTS, COMPLETIONS))
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            with archive.open(name) as member:
                np.lib.format.read_array(member, allow_pickle=False)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="not a saved reward"):
        TfidfReward.load(path)


def test_nothing_to_score(reward: TfidfReward) -> None:
    assert reward.score([], []).shape == (0,)


def test_it_needs_both_labels(corpus: list[Text]) -> None:
    with pytest.raises(InputError, match="label 1 and texts with label 0"):
        TfidfReward.fit([text for text in corpus if text.label == 1], RewardConfig())


def test_the_second_reward_loads_its_module_from_the_asset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vaderSentiment.py").write_text(
        "class SentimentIntensityAnalyzer:\n"
        "    def polarity_scores(self, text):\n"
        "        return {'compound': text.count('good') - text.count('bad')}\n"
    )
    monkeypatch.setattr(assets, "fetch", lambda name: {"vader": tmp_path}[name])
    assert rewards.VaderReward().score(["good ", "bad "], ["good", "x"]).tolist() == [2, -1]


@pytest.fixture
def classifier(tmp_path: Path, tiny_folder: Path) -> Callable[..., Path]:
    """Saves a random sequence classifier with these labels."""

    def make(**labels: int) -> Path:
        settings = LlamaConfig(
            vocab_size=512, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, pad_token_id=2,
            num_labels=len(labels), id2label={index: name for name, index in labels.items()}, label2id=labels,
        )  # fmt: skip
        torch.manual_seed(0)
        LlamaForSequenceClassification(settings).save_pretrained(tmp_path / "classifier")
        models.load_tokenizer(tiny_folder).save_pretrained(tmp_path / "classifier")
        return tmp_path / "classifier"

    return make


def test_a_classifier_gives_log_odds(classifier: Callable[..., Path]) -> None:
    folder = classifier(NEGATIVE=0, NEUTRAL=1, POSITIVE=2)
    prompts, completions = ["The movie", "It", "The plot was"], [" was great", "", " dull and much too long for me"]
    scores = {
        label: rewards.ClassifierReward(RewardConfig(model=str(folder), label=label, batch_size=2)).score(
            prompts, completions
        )
        for label in ("negative", "NEUTRAL", "POSITIVE")
    }
    probabilities = [1 / (1 + np.exp(-values)) for values in scores.values()]
    assert np.sum(probabilities, axis=0) == pytest.approx(np.ones(3))  # of the labels, they sum to one
    pipeline = transformers.pipeline("text-classification", model=str(folder), tokenizer=str(folder), device="cpu")
    for place, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        theirs = {found["label"]: found["score"] for found in pipeline(prompt + completion, top_k=None)}
        assert probabilities[2][place] == pytest.approx(theirs["POSITIVE"], abs=1e-5)


def test_a_reward_model_has_one_output(classifier: Callable[..., Path]) -> None:
    folder = classifier(LABEL_0=0)
    reward = rewards.ClassifierReward(RewardConfig(model=str(folder)))
    both = reward.score(["a", "a longer prompt"], ["b", "c"])
    assert reward.score(["a"], ["b"])[0] == pytest.approx(both[0], abs=1e-5)  # padding changes nothing


def test_classifiers_that_cannot_be_used(classifier: Callable[..., Path], tmp_path: Path) -> None:
    folder = str(classifier(good=0, bad=1))
    with pytest.raises(InputError, match="has no label 'POSITIVE'; there are: good, bad"):
        rewards.ClassifierReward(RewardConfig(model=folder))
    with pytest.raises(InputError, match=r"reward\.model: cannot load a classifier from .*missing"):
        rewards.ClassifierReward(RewardConfig(model=str(tmp_path / "missing")))


class Bad:
    """A reward that returns what it was given."""

    def __init__(self, scores: object) -> None:
        self.scores = scores

    def score(self, prompts: object, completions: object) -> object:
        return self.scores


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([1.0], "the reward Bad returned 1 scores for 2 completions"),
        ([[1.0, 2.0]], r"an array of shape \(1, 2\) for 2 completions"),
        ([0.5, float("nan")], "returned nan for 1 of 2 completions, first for number 2, 'awful' after 'It was '"),
        ([float("inf"), 0.0], "returned inf .* number 1, 'fine'"),
        (["high", "low"], "something else than numbers"),
        (None, "something else than numbers|nan|shape"),
    ],
)
def test_a_reward_must_give_one_finite_number_for_each_completion(scores: object, message: str) -> None:
    samples = [TokenSample((1,), (2,), "It was ", text) for text in ("fine", "awful")]
    with pytest.raises(rewards.RewardError, match=message):
        rewards.score_samples(Bad(scores), samples)  # type: ignore[arg-type]

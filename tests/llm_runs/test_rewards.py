"""Rewards: against words, against scikit-learn on the whole, and through a file without pickle."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from llm_runs import assets, rewards
from llm_runs.config import RewardConfig
from llm_runs.errors import InputError
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

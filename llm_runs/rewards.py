"""Ground-truth rewards: what scores completions, draws the labels, and later judges the trained policies."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from analysis.records import atomic_write
from llm_runs import assets
from llm_runs.config import RewardConfig
from llm_runs.errors import InputError
from llm_runs.examples import TokenSample
from llm_runs.texts import Text


class RewardError(InputError):
    """A reward that does not give one finite number for each completion; the message says which reward and where."""


class Reward(Protocol):
    """Scores completions of prompts; higher is better."""

    def score(self, prompts: Sequence[str], completions: Sequence[str]) -> NDArray[np.float64]:
        """One number for each prompt with its completion, (N,)."""


class TfidfReward:
    """Logistic regression on TF-IDF features of words and word pairs: the log-odds that prompt + completion is positive.

    A linear score likes gibberish made of positive words, so look at KL and perplexity beside it.
    """

    def __init__(
        self, vocabulary: dict[str, int], idf: NDArray[np.float64], weights: NDArray[np.float64], intercept: float
    ) -> None:
        self.vocabulary, self.idf, self.weights, self.intercept = vocabulary, idf, weights, intercept
        self._vectoriser = _vectoriser(vocabulary=vocabulary)
        self._vectoriser.idf_ = idf

    @classmethod
    def fit(cls, texts: Sequence[Text], config: RewardConfig) -> TfidfReward:
        """Fit on labelled texts. Raises InputError unless both labels occur."""
        labels = [text.label for text in texts]
        if set(labels) != {0, 1}:
            raise InputError("the reward needs texts with label 1 and texts with label 0, and no others")
        vectoriser = _vectoriser(max_features=config.max_features, min_df=2)
        features = vectoriser.fit_transform([text.text for text in texts])
        model = LogisticRegression(C=config.regularisation, max_iter=1000).fit(features, labels)
        vocabulary = {word: int(index) for word, index in vectoriser.vocabulary_.items()}
        return cls(vocabulary, vectoriser.idf_, model.coef_[0], float(model.intercept_[0]))

    def score(self, prompts: Sequence[str], completions: Sequence[str]) -> NDArray[np.float64]:
        """Log-odds of the positive label, (N,)."""
        texts = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
        if not texts:
            return np.zeros(0)
        return np.asarray(self._vectoriser.transform(texts) @ self.weights + self.intercept, dtype=np.float64)

    def save(self, path: Path) -> None:
        """Write one .npz file of plain arrays (the vocabulary as UTF-8 JSON bytes); no pickle."""
        words = np.frombuffer(json.dumps(self.vocabulary).encode(), dtype=np.uint8)
        arrays: dict[str, Any] = {
            "words": words,
            "idf": self.idf,
            "weights": self.weights,
            "intercept": np.array(self.intercept),
        }
        atomic_write(path, lambda file: np.savez_compressed(file, allow_pickle=False, **arrays))

    @classmethod
    def load(cls, path: Path) -> TfidfReward:
        """Read what `save` wrote."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                words = json.loads(arrays["words"].tobytes())
                idf, weights = (np.asarray(arrays[name], dtype=np.float64) for name in ("idf", "weights"))
                if sorted(words.values()) != list(range(len(idf))) or idf.shape != weights.shape or idf.ndim != 1:
                    raise ValueError("its words, frequencies and weights do not belong together")
                if not (np.isfinite(idf).all() and np.isfinite(weights).all() and np.isfinite(arrays["intercept"])):
                    raise ValueError("it holds numbers that are not finite")
                return cls(words, idf, weights, float(arrays["intercept"]))
        except Exception as error:  # a damaged archive raises a dozen kinds, of zlib's, zipfile's and numpy's
            raise InputError(f"{path}: not a saved reward ({error}); delete it to have it fitted again") from error


def _vectoriser(**settings: Any) -> TfidfVectorizer:
    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, **settings)


class VaderReward:
    """vaderSentiment's compound score in [-1, 1] of prompt + completion (Hutto and Gilbert 2014)."""

    def __init__(self) -> None:
        (path,) = assets.fetch("vader").rglob("vaderSentiment.py")
        spec = importlib.util.spec_from_file_location("vaderSentiment", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self._analyser = module.SentimentIntensityAnalyzer()

    def score(self, prompts: Sequence[str], completions: Sequence[str]) -> NDArray[np.float64]:
        """Compound scores, (N,)."""
        pairs = zip(prompts, completions, strict=True)
        return np.array(
            [self._analyser.polarity_scores(prompt + completion)["compound"] for prompt, completion in pairs]
        )


class ClassifierReward:
    """A sequence classifier (log-odds of one label against all others) or a reward model (its one output) of prompt + completion.

    Raises InputError for a model that cannot be loaded as safetensors, or a label that it does not have.
    """

    def __init__(self, config: RewardConfig, device: torch.device | str = "cpu") -> None:
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(config.model, trust_remote_code=False)
            self.model = AutoModelForSequenceClassification.from_pretrained(
                config.model, use_safetensors=True, trust_remote_code=False
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(
                f"reward.model: cannot load a classifier from {config.model!r}: {reason}. Give a folder with safetensors, or a hub id "
                "that this machine can reach"
            ) from error
        self.model.to(device).eval()
        self.batch_size = config.batch_size
        labels = {str(name).casefold(): int(index) for index, name in self.model.config.id2label.items()}
        if len(labels) > 1 and config.label.casefold() not in labels:
            names = ", ".join(map(str, self.model.config.id2label.values()))
            raise InputError(f"reward.label: {config.model} has no label {config.label!r}; there are: {names}")
        self._label = labels.get(config.label.casefold(), 0)

    @torch.no_grad()
    def score(self, prompts: Sequence[str], completions: Sequence[str]) -> NDArray[np.float64]:
        """Log-odds of the label, or the reward model's output, (N,)."""
        texts = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
        scores = np.zeros(len(texts))
        for start in range(0, len(texts), self.batch_size):
            part = texts[start : start + self.batch_size]
            inputs = self.tokenizer(part, padding=True, truncation=True, return_tensors="pt").to(self.model.device)
            logits = self.model(**inputs).logits.double()
            own = logits[:, self._label]
            if logits.shape[1] > 1:
                others = torch.cat([logits[:, : self._label], logits[:, self._label + 1 :]], dim=1)
                own = own - others.logsumexp(-1)
            scores[start : start + len(part)] = own.cpu().numpy()
        return scores


def score_samples(reward: Reward, samples: Sequence[TokenSample]) -> list[TokenSample]:
    """The samples with their rewards. Raises RewardError unless there is one finite number for each."""
    if not samples:
        return []
    scores = _checked(
        reward, reward.score([entry.prompt for entry in samples], [entry.completion for entry in samples]), samples
    )
    return [replace(entry, reward=score) for entry, score in zip(samples, scores.tolist(), strict=True)]


def _checked(reward: Reward, scores: Any, samples: Sequence[TokenSample]) -> NDArray[np.float64]:
    name = type(reward).__name__
    try:
        found = np.asarray(scores, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise RewardError(f"the reward {name} returned something else than numbers ({error})") from error
    if found.shape != (len(samples),):
        count = f"{len(found)} scores" if found.ndim == 1 else f"an array of shape {found.shape}"
        raise RewardError(
            f"the reward {name} returned {count} for {len(samples)} completions; score(prompts, completions) must return one "
            "number for each, in their order"
        )
    if not (finite := np.isfinite(found)).all():
        first = int(np.argmin(finite))
        raise RewardError(
            f"the reward {name} returned {found[first]} for {int((~finite).sum())} of {len(samples)} completions, first for number "
            f"{first + 1}, {samples[first].completion[:80]!r} after {samples[first].prompt[-80:]!r}; every score must be finite"
        )
    return found


def accuracy(reward: Reward, texts: Sequence[Text]) -> float:
    """Share of labelled texts whose score has the sign of their label."""
    scores = reward.score([text.text for text in texts], [""] * len(texts))
    return float(np.mean((scores > 0) == np.array([text.label == 1 for text in texts])))

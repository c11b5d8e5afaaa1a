"""Samples are draws from the model's exact distribution, reproducible, and survive interruption."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TopPLogitsWarper

from llm_runs import sampling
from llm_runs.config import SamplingConfig
from llm_runs.errors import InputError
from llm_runs.examples import TokenSample

PROMPTS = [tuple(range(10, 10 + length)) for length in (3, 7, 5, 4, 6)]


def next_token(model: PreTrainedModel, ids: tuple[int, ...]) -> np.ndarray:
    """The next-token distribution from a forward pass of one unpadded sequence."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1].double().softmax(-1).numpy()


def sharpen(model: PreTrainedModel, factor: float = 12.0) -> None:
    """Random weights give almost uniform distributions; make them peaked, so that mistakes show."""
    with torch.no_grad():
        model.model.norm.weight.mul_(factor)


def test_logps_are_those_of_a_plain_forward_pass(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    sharpen(model)
    drawn = sampling.sample(model, tokenizer, PROMPTS, max_tokens=6, seed=0, batch_size=5)
    assert [entry.prompt_ids for entry in drawn] == PROMPTS
    for entry in drawn:  # prompts of unequal length: padding must not matter
        logp, ids = 0.0, entry.prompt_ids
        for token in entry.completion_ids:
            logp += np.log(next_token(model, ids)[token])
            ids = (*ids, token)
        assert entry.logp == pytest.approx(logp, abs=1e-3)
        assert entry.completion == tokenizer.decode(entry.completion_ids, skip_special_tokens=True)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.6), (0.7, 0.8)])
def test_frequencies_are_the_models_probabilities(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, temperature: float, top_p: float
) -> None:
    sharpen(model, 6.0)
    model.generation_config.top_k = 2  # what a model's own settings say must not matter
    draws = 4000
    drawn = sampling.sample(
        model,
        tokenizer,
        PROMPTS[1:2] * draws,
        max_tokens=1,
        seed=1,
        batch_size=1000,
        temperature=temperature,
        top_p=top_p,
    )
    logits = torch.tensor(np.log(next_token(model, PROMPTS[1])) / temperature)[None]
    kept = TopPLogitsWarper(top_p)(None, logits) if top_p < 1 else logits  # another implementation of the nucleus
    probabilities = kept[0].softmax(-1).numpy()
    assert all(probabilities[entry.completion_ids[0]] > 0 for entry in drawn)
    counts = np.bincount([entry.completion_ids[0] for entry in drawn], minlength=len(probabilities))
    frequent = probabilities * draws >= 5
    assert frequent.sum() >= 5
    observed = np.append(counts[frequent], counts[~frequent].sum())
    expected = np.append(probabilities[frequent], probabilities[~frequent].sum()) * draws
    some = expected > 0
    assert stats.chisquare(observed[some], expected[some]).pvalue > 1e-4
    # whatever the temperature, the noted log-probability is that at temperature 1
    token, logp = drawn[0].completion_ids[0], drawn[0].logp
    assert logp == pytest.approx(np.log(next_token(model, PROMPTS[1])[token]), abs=1e-4)


def test_a_completion_ends_with_an_end_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    ends = {tokenizer.eos_token_id, *range(100, 160)}
    model.generation_config.eos_token_id = list(range(100, 160))  # some models have several
    drawn = sampling.sample(model, tokenizer, PROMPTS * 20, max_tokens=12, seed=0)
    ended = [entry for entry in drawn if entry.completion_ids[-1] in ends]
    assert len(ended) > 20
    for entry in drawn:
        assert not ends & set(entry.completion_ids[:-1])
        assert entry in ended or len(entry.completion_ids) == 12


def test_the_same_seed_gives_the_same_samples(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    first, again, other = (sampling.sample(model, tokenizer, PROMPTS, max_tokens=6, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_an_interrupted_file_goes_on_where_it_was(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, config = PROMPTS * 4, SamplingConfig(batch_size=6)

    def draw(name: str, seed: int = 0) -> list[TokenSample]:
        return sampling.sample_to_file(
            tmp_path / name, model, tokenizer, prompts, max_tokens=5, seed=seed, config=config, key="k"
        )

    whole = draw("whole.jsonl")
    decode, calls = sampling._decode, []

    def interrupted(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return decode(*arguments)

    monkeypatch.setattr(sampling, "_decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        draw("cut.jsonl")
    assert not (tmp_path / "cut.jsonl").exists()
    partial = tmp_path / ".cut.jsonl.partial"
    partial.write_text(partial.read_text() + '{"prompt_ids": [1, 2')  # the line that was being written
    assert draw("cut.jsonl") == whole
    assert len(calls) == 3 + 2  # 20 prompts are four batches: two were kept
    assert sampling.read_samples(tmp_path / "cut.jsonl") == whole
    assert not partial.exists()


def test_unfinished_samples_of_another_seed_are_not_used(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    config, path = SamplingConfig(batch_size=2), tmp_path / "samples.jsonl"
    wrong = sampling.sample(model, tokenizer, PROMPTS, max_tokens=5, seed=9, batch_size=2)
    lines = [json.dumps({"key": "of another run"}), *map(sampling._to_line, wrong[:4])]
    (tmp_path / ".samples.jsonl.partial").write_text("\n".join(lines) + "\n")
    drawn = sampling.sample_to_file(path, model, tokenizer, PROMPTS, max_tokens=5, seed=0, config=config)
    assert drawn == sampling.sample(model, tokenizer, PROMPTS, max_tokens=5, seed=0, batch_size=2)


def test_damaged_samples_are_named(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    sampling.write_samples(path, [TokenSample((1,), (2,))])
    path.write_text(path.read_text() + '{"prompt_ids": [1]}\n')
    with pytest.raises(InputError, match=r"samples\.jsonl, line 2"):
        sampling.read_samples(path)


def test_seeds_of_different_uses_differ() -> None:
    seeds = {sampling.derived_seed(seed, use) for seed in range(50) for use in ("labels", "sampling", "texts")}
    assert len(seeds) == 150
    assert max(seeds) < 2**63  # what torch takes

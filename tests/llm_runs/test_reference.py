"""The cache of reference log-probabilities: right numbers, found by content, refused when stale."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm_runs import models, reference
from llm_runs.config import ReferenceConfig
from llm_runs.examples import Sides, TokenPair, TokenSample
from llm_runs.models import tiny_random
from llm_runs.reference import ReferenceCacheError, ReferenceLogps

CONFIG = ReferenceConfig(top_k=8, batch_size=2)
PAIRS = [TokenPair((5, 6), (7, 8, 9), (10,)), TokenPair((20,), (21, 22), (23, 24, 25, 26))]
SAMPLES = [
    TokenSample((5, 6), (30, 31)),
    TokenSample((40, 41, 42), (43, 44, 45, 46, 47)),
    TokenSample((5, 6), (7, 8, 9)),
]


@pytest.fixture(scope="module")
def tiny() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model, tokenizer = tiny_random(["a good film", "a bad film"] * 5)
    torch.manual_seed(3)
    for parameter in model.parameters():  # far from uniform predictions
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model, tokenizer


@pytest.fixture(scope="module")
def computed(tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> ReferenceLogps:
    return reference.compute(*tiny, PAIRS, SAMPLES, CONFIG)


def log_softmax_rows(model: PreTrainedModel, prompt: tuple[int, ...], completion: tuple[int, ...]) -> torch.Tensor:
    """Rows of log-probabilities that predict the completion, from one plain forward pass in float64."""
    with torch.no_grad():
        logits = copy.deepcopy(model).double()(input_ids=torch.tensor([[*prompt, *completion]])).logits[0]
    return (logits - logits.exp().sum(-1, keepdim=True).log())[len(prompt) - 1 : -1]


def test_pair_logps_are_those_of_a_plain_forward_pass(tiny, computed) -> None:
    chosen, rejected = computed.pair_logps(PAIRS)
    for index, pair in enumerate(PAIRS):
        for value, ids in ((chosen[index], pair.chosen_ids), (rejected[index], pair.rejected_ids)):
            rows = log_softmax_rows(tiny[0], pair.prompt_ids, ids)
            assert value.item() == pytest.approx(sum(rows[t, token].item() for t, token in enumerate(ids)), abs=1e-4)


def test_flipped_labels_use_the_same_numbers(computed) -> None:
    chosen, rejected = computed.pair_logps([pair.flip() for pair in PAIRS])
    original_chosen, original_rejected = computed.pair_logps(PAIRS)
    assert torch.equal(chosen, original_rejected)
    assert torch.equal(rejected, original_chosen)


def test_each_distinct_completion_is_scored_once(computed) -> None:
    assert len(computed) == 6  # four of the pairs, two new samples; the third sample is a chosen completion
    assert sum(len(row.logps) for row in computed.rows) == 3 + 1 + 2 + 4 + 2 + 5


def test_distributions_are_the_top_tokens_and_the_rest(tiny, computed) -> None:
    for sample in SAMPLES:
        rows = log_softmax_rows(tiny[0], sample.prompt_ids, sample.completion_ids)
        stored = computed.distributions(sample)
        assert stored.ids.shape == (len(sample.completion_ids), CONFIG.top_k)
        expected, ids = rows.sort(descending=True)
        assert torch.equal(stored.ids.long(), ids[:, : CONFIG.top_k])
        torch.testing.assert_close(stored.logps.double(), expected[:, : CONFIG.top_k], atol=1e-4, rtol=0)
        torch.testing.assert_close(
            stored.log_tail.double().exp(), expected[:, CONFIG.top_k :].exp().sum(-1), atol=1e-5, rtol=1e-4
        )


def assert_same(found: ReferenceLogps, wanted: ReferenceLogps) -> None:
    """To the bit, whatever the order."""
    rows = [{row.digest: row for row in each.rows} for each in (found, wanted)]
    assert set(rows[0]) == set(rows[1])
    for digest, row in rows[1].items():
        other = rows[0][digest]
        assert torch.equal(other.logps, row.logps)
        assert torch.equal(other.logp, row.logp)
        assert (other.top is None) == (row.top is None)
        if row.top is not None and other.top is not None:
            for name in ("ids", "logps", "log_tail"):
                assert torch.equal(getattr(other.top, name), getattr(row.top, name))


def test_saved_cache_reads_back_exactly(tiny, computed, tmp_path: Path) -> None:
    read = ReferenceLogps.load(computed.save(tmp_path / "cache"), key=reference.reference_key(*tiny, CONFIG))
    assert_same(read, computed)
    assert read.key == computed.key
    assert torch.equal(torch.stack(read.pair_logps(PAIRS)), torch.stack(computed.pair_logps(PAIRS)))


def test_other_weights_settings_or_tokenizer_are_refused(tiny, computed, tmp_path: Path) -> None:
    model, tokenizer = tiny
    folder = computed.save(tmp_path / "cache")
    changed = copy.deepcopy(model)
    changed.model.norm.weight.data[3] += 1e-4
    with pytest.raises(ReferenceCacheError, match=r"model is .*, expected"):
        ReferenceLogps.load(folder, key=reference.reference_key(changed, tokenizer, CONFIG))
    with pytest.raises(ReferenceCacheError, match="top_k is 8, expected 16"):
        ReferenceLogps.load(folder, key=reference.reference_key(model, tokenizer, ReferenceConfig(top_k=16)))
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["<extra>"])
    with pytest.raises(ReferenceCacheError, match="tokenizer"):
        ReferenceLogps.load(folder, key=reference.reference_key(model, other, CONFIG))
    with pytest.raises(ReferenceCacheError, match="dtype is float32, expected bfloat16"):
        ReferenceLogps.load(folder, key=reference.reference_key(copy.deepcopy(model).bfloat16(), tokenizer, CONFIG))


def test_token_logps_are_kept(tiny, computed) -> None:
    for pair in PAIRS:
        rows = log_softmax_rows(tiny[0], pair.prompt_ids, pair.chosen_ids)
        expected = [rows[t, token].item() for t, token in enumerate(pair.chosen_ids)]
        assert computed.logps_of_tokens(pair.prompt_ids, pair.chosen_ids).tolist() == pytest.approx(expected, abs=1e-4)


def test_files_of_a_model_have_a_fingerprint_of_their_own(tiny, computed, tmp_path: Path) -> None:
    model, tokenizer = tiny
    first = models.save(model, tokenizer, tmp_path / "first")
    copied = models.save(model, tokenizer, tmp_path / "copied")
    changed = copy.deepcopy(model)
    changed.model.norm.weight.data[3] += 1e-4
    other = models.save(changed, tokenizer, tmp_path / "other")
    prints = [models.source_fingerprint(folder) for folder in (first, copied, other)]
    assert prints[0] == prints[1] != prints[2]
    cuts = [
        {"source": prints[0], "data": reference.data_fingerprint(samples)}
        for samples in (SAMPLES, SAMPLES[::-1], SAMPLES[1:])
    ]
    assert cuts[0] == cuts[1]
    folder = reference.compute(*tiny, PAIRS, SAMPLES, CONFIG, **cuts[0]).save(tmp_path / "cache")
    expected = [
        reference.reference_key(None, tokenizer, CONFIG, **cut) for cut in (*cuts, cuts[0] | {"source": prints[2]})
    ]
    assert len(ReferenceLogps.load(folder, expected[1])) == len(computed)
    for key, message in ((expected[2], "data is .*, expected"), (expected[3], "source is .*, expected")):
        with pytest.raises(ReferenceCacheError, match=message):
            ReferenceLogps.load(folder, key)


def test_completions_of_other_data_are_refused(computed) -> None:
    with pytest.raises(ReferenceCacheError, match="other data"):
        computed.pair_logps([TokenPair((5, 6), (7, 8, 9), (11,))])
    with pytest.raises(ReferenceCacheError, match="other data"):  # same tokens, cut elsewhere
        computed.logp((5, 6, 7), (8, 9))
    with pytest.raises(ReferenceCacheError, match="no stored token distributions"):
        computed.distributions(TokenSample((20,), (21, 22)))


def test_missing_and_damaged_files_are_named(computed, tmp_path: Path) -> None:
    with pytest.raises(ReferenceCacheError, match=r"reference\.json is missing"):
        ReferenceLogps.load(tmp_path / "nothing")
    folder = computed.save(tmp_path / "cache")
    for name in ("rows/part-00000.arrow", "index.npy"):
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)
        with pytest.raises(ReferenceCacheError, match=f"{name}: damaged .*wrong checksum"):
            ReferenceLogps.load(folder)
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)
    assert len(ReferenceLogps.load(folder)) == len(computed)
    (folder / "rows" / "part-00000.arrow").unlink()
    with pytest.raises(ReferenceCacheError, match=r"part-00000\.arrow: cannot be read"):
        ReferenceLogps.load(folder)
    (folder / "reference.json").write_text("{")
    with pytest.raises(ReferenceCacheError, match=r"reference\.json: damaged"):
        ReferenceLogps.load(folder)
    (folder / "reference.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ReferenceCacheError, match="format 3"):
        ReferenceLogps.load(folder)


def test_pieces_give_the_same_numbers_and_an_interrupted_computation_goes_on(
    tiny, computed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Piece by piece into a folder: batches of two are cut otherwise, so that sums may differ in their last bits."""
    monkeypatch.setattr(reference, "_NUMBERS", 40)
    real, calls = reference._score, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(reference, "_score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reference.compute(*tiny, PAIRS, SAMPLES, CONFIG, folder=tmp_path)
    with pytest.raises(ReferenceCacheError, match="is missing"):
        ReferenceLogps.load(tmp_path)
    found = reference.compute(*tiny, PAIRS, SAMPLES, CONFIG, folder=tmp_path)
    pieces = len(
        list(reference._pieces([(s, True) for s in SAMPLES] + [(s, False) for s in Sides(PAIRS)], CONFIG.top_k))
    )
    assert len(calls) == pieces + 1 > 4  # two pieces were kept, the third was begun again
    for sample in (*SAMPLES, *Sides(PAIRS)):
        sequence = sample.prompt_ids, sample.completion_ids
        torch.testing.assert_close(
            found.logps_of_tokens(*sequence), computed.logps_of_tokens(*sequence), atol=1e-5, rtol=0
        )
        assert found.logp(*sequence) == pytest.approx(computed.logp(*sequence), abs=1e-5)
    for sample in SAMPLES:  # also where a pair's completion is one of the samples
        for name in ("ids", "logps", "log_tail"):
            one, other = (getattr(each.distributions(sample), name) for each in (found, computed))
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_one_piece_on_disk_is_what_is_computed_in_memory(tiny, computed, tmp_path: Path) -> None:
    assert_same(reference.compute(*tiny, PAIRS, SAMPLES, CONFIG, folder=tmp_path), computed)


def test_digests_are_sorted_bucket_by_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0).integers(0, 2**64, 500, dtype=np.uint64)
    places = np.concatenate([draw, draw[:50], np.array([0, 2**64 - 1], dtype=np.uint64)])
    monkeypatch.setattr(reference, "_TOGETHER", 7)
    found, numbers = reference.sorted_places(places)
    order = np.argsort(places, kind="stable")
    np.testing.assert_array_equal(numbers, order)
    np.testing.assert_array_equal(found, places[order])


def test_margin_deviation_by_hand() -> None:
    """Prompt 1: d = +-2; prompt 2: three samples at 0, 1, 3, so d^2 = 1, 9, 4; prompt 3 has one sample and says nothing."""
    samples = [
        TokenSample((1,), (2,), logp=-5.0),
        TokenSample((1,), (3,), logp=-7.0),
        *(TokenSample((2,), (i,), logp=value) for i, value in enumerate((-3.0, -2.0, 0.0))),
        TokenSample((3,), (2,), logp=-90.0),
    ]
    assert reference.margin_deviation(samples) == pytest.approx(math.sqrt((4 + 1 + 9 + 4) / 4))


def test_margin_deviation_estimates_the_spread_of_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    logps = (-80 + 20 * torch.randn(4000, 2, generator=generator)).tolist()
    samples = [TokenSample((i, i // 7), (0,), logp=value) for i, pair in enumerate(logps) for value in pair]
    assert reference.margin_deviation(samples) == pytest.approx(20 * math.sqrt(2), rel=0.03)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([TokenSample((1,), (2,), logp=-1.0), TokenSample((2,), (2,), logp=-2.0)], "two reference samples"),
        ([TokenSample((1,), (2,)), TokenSample((1,), (3,))], "no log-probability"),
        ([TokenSample((1,), (2,), logp=-1.0)] * 2, "same log-probability"),
    ],
)
def test_margin_deviation_says_what_is_missing(samples: list[TokenSample], message: str) -> None:
    with pytest.raises(ReferenceCacheError, match=message):
        reference.margin_deviation(samples)

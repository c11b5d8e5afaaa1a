"""Labels follow the reward difference at their temperature."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from llm_runs import labelling
from llm_runs.errors import InputError
from llm_runs.examples import TokenPair, TokenSample


def pairs(gap: float, count: int) -> list[TokenPair]:
    samples = []
    for index in range(count):
        samples += [
            TokenSample((index,), (1, 2), "p", "first", reward=gap),
            TokenSample((index,), (3,), "p", "second", reward=0.0),
        ]
    return labelling.pair_up(samples)


def first_won(pair: TokenPair) -> bool:
    return not pair.flipped


def test_noisy_labels_have_the_stated_probability() -> None:
    labelled = labelling.label(pairs(gap=1.0, count=4000), temperature=2.0, seed=0)
    expected = 1 / (1 + math.exp(-0.5))
    share = np.mean([first_won(pair) for pair in labelled])
    assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / 4000)
    assert labelling.mean_max_probability(labelled) == pytest.approx(expected)
    for pair in labelled:  # the probability is that of the label as it is
        assert pair.probability == pytest.approx(expected if first_won(pair) else 1 - expected)


def test_low_temperature_is_deterministic() -> None:
    for gap in (0.3, -0.3):
        labelled = labelling.label(pairs(gap, 200), temperature=0.01, seed=0)
        assert {first_won(pair) for pair in labelled} == {gap > 0}
        assert all((pair.chosen_reward or 0) > (pair.rejected_reward or 0) for pair in labelled)


def test_extreme_gaps_do_not_overflow() -> None:
    (pair,) = labelling.label(pairs(-1e6, 1), temperature=1e-6, seed=0)
    assert (pair.probability, first_won(pair)) == (1.0, False)


def test_flipping_swaps_everything() -> None:
    (pair,) = pairs(gap=-2.0, count=1)
    (labelled,) = labelling.label([pair], temperature=0.01, seed=0)
    assert (labelled.chosen, labelled.chosen_ids, labelled.chosen_reward) == ("second", (3,), 0.0)
    assert (labelled.rejected, labelled.rejected_ids, labelled.rejected_reward) == ("first", (1, 2), -2.0)
    assert labelled.id == pair.id
    assert labelled.flip().flip() == labelled


def test_seeds_and_common_random_numbers() -> None:
    unlabelled = pairs(gap=0.5, count=500)
    cold, warm = (labelling.label(unlabelled, temperature, seed=1) for temperature in (0.5, 5.0))
    assert cold == labelling.label(unlabelled, 0.5, seed=1)
    assert [p.flipped for p in cold] != [p.flipped for p in labelling.label(unlabelled, 0.5, seed=2)]
    # at a gap > 0, whoever wins at the high temperature wins at the low one too
    assert all(first_won(c) for c, w in zip(cold, warm, strict=True) if first_won(w))


def test_equal_completions_make_no_pair_and_prompts_must_agree() -> None:
    same = [TokenSample((0,), (1,), reward=0.0), TokenSample((0,), (1,), reward=0.0)]
    different = [TokenSample((0,), (1,)), TokenSample((0,), (2,))]
    assert [pair.id for pair in labelling.pair_up(same + different)] == ["1"]
    with pytest.raises(ValueError, match="different prompts"):
        labelling.pair_up([TokenSample((0,), (1,)), TokenSample((5,), (2,))])
    with pytest.raises(ValueError, match="rewards"):
        labelling.label(labelling.pair_up(different), 1.0, seed=0)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    labelled = labelling.label(pairs(gap=1.0, count=5), temperature=1.0, seed=0)
    labelling.write_pairs(path, labelled)
    assert labelling.read_pairs(path) == labelled
    path.write_text(path.read_text().replace('"prompt_ids"', '"prompt_idz"', 1))
    with pytest.raises(InputError, match=r"pairs\.jsonl, line 1"):
        labelling.read_pairs(path)

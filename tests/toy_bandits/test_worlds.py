"""The worlds are what their descriptions say: numbers by hand, by numpy, by enumeration; and the facts that they rest on hold in them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import connected_components

import objectives
from toy_bandits import BanditError, solve, worlds
from toy_bandits.worlds.page import page

# An id once given is never given again: worlds may be added at the end of a family, none may go.
GIVEN = {
    "three_actions": 3, "bradley_terry": 8, "determinism": 9, "partial_support": 8, "intransitive": 5, "label_noise": 5,
    "finite_labels": 7, "finite_reference": 6, "neglected_best": 6, "many_actions": 10, "shared_features": 6, "sequences": 6,
    "several_references": 4,
}  # fmt: skip
DOCS = Path(__file__).parents[2] / "docs" / "worlds.md"


def softmax(values: np.ndarray) -> np.ndarray:
    return np.exp(values) / np.exp(values).sum(-1, keepdims=True)


def test_ids_are_stable_and_every_world_is_described() -> None:
    ids = worlds.names()
    assert len(set(ids)) == len(ids)
    counts = Counter(world_id.split("/")[0] for world_id in ids)
    assert all(counts[family] >= count for family, count in GIVEN.items())
    assert {f"{family}/{i}" for family, count in GIVEN.items() for i in range(count)} <= set(ids)
    for world_id in ids:
        world = worlds.get(world_id)
        assert world.id == world_id and world.summary and world.probes and world.facts
        assert world.problem.reference.ndim - len(world.problem.batch_shape) == 2 and world.problem.has_contexts
        assert world.truth.batch_shape == ()
        assert (world.problem.batch_shape == (64,)) == ("batch" in world.tags)


def test_tags_choose_worlds() -> None:
    chosen = worlds.names("deterministic")
    assert "determinism/6" in chosen and "determinism/1" not in chosen
    assert all("deterministic" in worlds.get(world_id).tags for world_id in chosen)
    for world_id in chosen:  # and the tag says the truth: some compared pair is certain
        truth = worlds.get(world_id).truth
        assert bool(((truth.preferences == 1) & (truth.pairs > 0)).any())


def test_the_sizes_asked_for() -> None:
    sizes = [worlds.get(f"many_actions/{i}").problem.actions for i in range(10)]
    assert sizes == [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
    shape = worlds.get("bradley_terry/7").problem.reference.shape
    assert shape == (16, 64)


def test_drawn_numbers_are_those_of_the_seeds() -> None:
    world = worlds.get("bradley_terry/6")
    reference = softmax(np.random.default_rng(0).standard_normal((4, 8)))
    rewards = np.random.default_rng(1).standard_normal((4, 8))
    np.testing.assert_allclose(world.problem.reference, reference, rtol=1e-13)
    np.testing.assert_allclose(world.problem.rewards, rewards, rtol=1e-13)
    gaps = rewards[:, :, None] - rewards[:, None, :]
    np.testing.assert_allclose(world.problem.preferences, 1 / (1 + np.exp(-gaps)), rtol=1e-12)
    np.testing.assert_allclose(world.problem.contexts, [0.4, 0.3, 0.2, 0.1], rtol=1e-15)


def test_a_probability_of_one_less_a_trillionth_keeps_its_digits() -> None:
    preferences = worlds.get("determinism/5").problem.preferences[0]
    assert preferences[3, 0].item() == 1e-12
    assert preferences[0, 3].item() == 1 - 1e-12


def test_noise_turns_labels_round() -> None:
    world = worlds.get(
        "label_noise/2"
    )  # one in ten; the better wins with .99, so it is seen to win with .9 * .99 + .1 * .01
    assert world.problem.preferences[0, 0, 4].item() == pytest.approx(0.892, abs=1e-15)
    assert world.problem.preferences[0, 4, 0].item() == pytest.approx(0.108, abs=1e-15)
    assert world.truth.preferences[0, 0, 4].item() == 0.99


def test_neglected_actions() -> None:
    reference = worlds.get("neglected_best/2").problem.reference[0].tolist()
    assert reference == pytest.approx([0.001] + [0.999 / 4] * 4, rel=1e-12)
    assert worlds.get("neglected_best/2").problem.rewards[0].argmax() == 0


def test_a_cycle_beats_the_half_that_follows() -> None:
    preferences = worlds.get("intransitive/3").problem.preferences[0]
    wins = [[j for j in range(5) if j != i and preferences[i, j] == 0.9] for i in range(5)]
    assert wins == [[1, 2], [2, 3], [3, 4], [0, 4], [0, 1]]


@pytest.mark.parametrize("world_id", ["many_actions/5", "many_actions/9"])
def test_sparse_graphs_are_connected_and_have_the_degree(world_id: str) -> None:
    graph = worlds.get(world_id).problem.pairs[0].numpy() > 0
    seen, front = {0}, [0]
    while front:
        front = [b for a in front for b in np.flatnonzero(graph[a]).tolist() if b not in seen and not seen.add(b)]  # type: ignore[func-returns-value]
    assert len(seen) == len(graph)
    assert graph.sum() == 6 * len(graph)


def test_growing_worlds_are_nested() -> None:
    small, large = (worlds.get(f"many_actions/{i}") for i in (3, 6))
    assert torch.equal(small.problem.rewards, large.problem.rewards[:, :16])


def test_pairs_as_the_reference_draws_them() -> None:
    world = worlds.get("bradley_terry/5")
    reference = world.problem.reference[0].numpy()
    unordered = sum(2 * reference[a] * reference[b] for a in range(8) for b in range(a))
    assert world.problem.pairs[0, 2, 5].item() == pytest.approx(2 * reference[2] * reference[5] / unordered, rel=1e-12)


def test_log_linear_references_lie_in_the_features_span() -> None:
    small = worlds.get("shared_features/0")  # features (1,0), (0,1), (1,0), (0,0), weights (0, .5)
    np.testing.assert_allclose(small.problem.reference[0], softmax(np.array([0, 0.5, 0, 0])), rtol=1e-13)
    world = worlds.get("shared_features/3")
    assert world.features is not None and world.features.shape == (16, 6, 4)
    centred = (world.features - world.features.mean(1, keepdim=True)).reshape(-1, 4).numpy()
    logits = world.problem.log_reference
    target = (logits - logits.mean(1, keepdim=True)).flatten().numpy()
    weights, *_ = np.linalg.lstsq(centred, target, rcond=None)
    np.testing.assert_allclose(centred @ weights, target, atol=1e-12)
    np.testing.assert_allclose(weights, 0.7 * np.random.default_rng(14).standard_normal(4), rtol=1e-10)


def test_token_references_multiply_along_the_response() -> None:
    world = worlds.get("sequences/0")
    assert world.responses == (("a",), ("b", "a"), ("b", "b", "a"), ("b", "b", "b", "a"), ("b", "b", "b", "b"))
    assert world.lengths.tolist() == [1, 2, 3, 4, 4]
    steps = softmax(0.7 * np.random.default_rng(18).standard_normal((4, 2)))  # (a, b) after "", b, bb, bbb
    on = np.cumprod(steps[:, 1])
    expected = [steps[0, 0], on[0] * steps[1, 0], on[1] * steps[2, 0], on[2] * steps[3, 0], on[3]]
    np.testing.assert_allclose(world.problem.reference[0], expected, rtol=1e-12)


def test_trees_are_whole_and_free_of_prefixes() -> None:
    world = worlds.get("sequences/2")
    assert world.responses is not None and len(world.responses) == 2 + 4 + 8 + 16
    assert Counter(world.lengths.tolist()) == {2.0: 2, 3.0: 4, 4.0: 24}
    for a in world.responses:
        assert not any(a != b and b[: len(a)] == a for b in world.responses)
    assert world.problem.reference.sum().item() == pytest.approx(1, abs=1e-12)
    saturated = worlds.get("sequences/5")
    assert (saturated.problem.log_reference[0, 0] - saturated.problem.log_reference[0, 24]) > 30  # tens of nats


def test_several_references() -> None:
    world = worlds.get("several_references/3")
    assert world.references is not None and world.references.shape == (3, 4, 4)
    assert torch.equal(world.references[0], world.problem.reference)
    np.testing.assert_allclose(world.references.sum(-1), 1, rtol=1e-12)


def test_finite_labels_are_counts_of_whole_labels() -> None:
    world = worlds.get("finite_labels/2")
    assert world.problem.batch_shape == (64,)
    counts = world.problem.label_weights * 20
    np.testing.assert_allclose(counts, counts.round(), atol=1e-9)
    np.testing.assert_allclose(counts.sum((-3, -2, -1)), 20, rtol=1e-12)
    assert len({tuple(table.flatten().round().tolist()) for table in counts}) > 60  # different data sets
    mean = world.problem.label_weights.mean(0)
    error = (world.truth.label_weights * (1 - world.truth.label_weights) / (64 * 20)).sqrt()
    assert bool(((mean - world.truth.label_weights).abs() <= 5 * error).all())


def test_finite_references_are_counts_of_whole_samples() -> None:
    world = worlds.get("finite_reference/1")
    counts = world.problem.reference_samples * 16
    np.testing.assert_allclose(counts, counts.round(), atol=1e-12)
    np.testing.assert_allclose(world.problem.reference, world.truth.reference.expand(64, 1, 7), rtol=0)
    assert bool((world.problem.reference_samples == 0).any())


def test_dpo_overfits_without_bound_where_ford_says_so() -> None:
    for number in (0, 2, 5):
        problem = worlds.get(f"finite_labels/{number}").problem
        status = solve(problem, objectives.get("dpo", beta=0.1)).status
        for table, found in zip(problem.label_weights.squeeze(1).numpy(), status, strict=True):
            _, weak = connected_components(table > 0, connection="weak")
            _, strong = connected_components(table > 0, connection="strong")
            finite = len(set(weak)) == len(set(strong))  # every connected part is strongly connected by its wins
            assert (found != "diverges") == finite


def test_the_example_of_f5() -> None:
    world = worlds.get("partial_support/0")
    ipo = objectives.get("ipo", tau=0.1)
    for start, expected in (
        (None, (0.877, 0.015, 0.108)),
        ([[0.0, 0.0, 3.0]], (0.276, 0.005, 0.719)),
        ([[0.0, 0.0, -3.0]], (0.977, 0.017, 0.006)),
    ):
        assert solve(world.problem, ipo, start).policy[0].tolist() == pytest.approx(expected, abs=6e-4)
    maxpo = solve(world.problem, objectives.get("maxpo", beta=0.1), [[0.0, 0.0, 3.0]])
    assert maxpo.policy[0, 2].item() == pytest.approx(0.3, abs=1e-9)


@pytest.mark.parametrize("name", ["dpo", "ipo", "maxpo"])
def test_a_symmetric_cycle_leaves_the_uniform_policy(name: str) -> None:
    solution = solve(worlds.get("intransitive/0").problem, objectives.get(name))
    np.testing.assert_allclose(solution.policy[0], 1 / 3, atol=1e-9)


@pytest.mark.parametrize("number", [0, 1, 3, 4, 5, 6])
def test_dpo_is_the_rlhf_optimum_in_the_worlds_that_its_derivation_assumes(number: int) -> None:
    world = worlds.get(f"bradley_terry/{number}")
    scale = {3: 0.1}.get(number, 1.0)
    solution = solve(world.problem, objectives.get("dpo", beta=2.0))
    tilted = world.truth.reference.numpy() * np.exp(world.truth.rewards.numpy() / (2.0 * scale))
    np.testing.assert_allclose(solution.policy, tilted / tilted.sum(-1, keepdims=True), rtol=1e-7)


def test_unknown_ids_suggest_near_ones() -> None:
    with pytest.raises(BanditError, match=r"unknown world 'partial_suport/3'; did you mean 'partial_support/3'"):
        worlds.get("partial_suport/3")


def test_the_page_is_up_to_date() -> None:
    assert DOCS.read_text(encoding="utf-8") == page(), "run: python -m toy_bandits worlds --page docs/worlds.md"

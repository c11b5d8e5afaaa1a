"""Which hyper-parameter is the strength of regularisation, and how it is set."""

from __future__ import annotations

import itertools

import pytest
import torch

import objectives
from objectives import ObjectiveError, Strength, registry
from objectives.documentation import built_in


def test_every_built_in_objective_but_sft_has_one() -> None:
    without = {name for name in built_in() if objectives.get(name).strength is None}
    assert without == {"sft"}


@pytest.mark.parametrize(
    ("label", "parameter", "rising"),
    [
        ("dpo", "beta", True),
        ("ipo", "tau", True),
        ("orpo", "lam", False),
        ("cpo", "alpha", True),
        ("dpo+forward_kl", "forward_kl.weight", True),
        ("forward_kl+dpo", "dpo.beta", True),
        ("dpo+sft", "dpo.beta", True),
    ],
)
def test_parameter_and_direction(label: str, parameter: str, rising: bool) -> None:
    objective = objectives.parse(label)
    assert objective.strength is not None
    assert (objective.strength.parameter, objective.strength.rising) == (parameter, rising)
    assert objective.with_strength(0.25).hyperparameters[parameter] == 0.25


def test_setting_it_keeps_everything_else() -> None:
    objective = objectives.parse("maxpo(beta=0.1, temperature=2)+chosen_nll(weight=0.3)")
    changed = objective.with_strength(torch.tensor([0.5, 5.0]))
    assert changed.hyperparameters["chosen_nll.weight"].tolist() == [0.5, 5.0]
    assert changed.hyperparameters["maxpo.temperature"] == 2
    assert changed.hyperparameters["maxpo.beta"] == 0.1
    with pytest.raises(ObjectiveError, match="dpo: beta must be > 0; got -1"):
        objectives.get("dpo").with_strength(-1.0)
    with pytest.raises(ObjectiveError, match="sft has no hyper-parameter that is its strength"):
        objectives.get("sft").with_strength(1.0)


def test_the_grid_covers_its_decades_evenly_by_ratio() -> None:
    grid = Strength(low=1e-2, high=1e1).grid(4)
    assert len(grid) == 13
    assert (grid[0], grid[-1]) == pytest.approx((1e-2, 1e1), rel=1e-12)
    assert {round(b / a, 9) for a, b in itertools.pairwise(grid)} == {round(10**0.25, 9)}


def test_a_third_party_declares_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_specs", dict(registry._specs))

    def factory(beta: objectives.Positive = 1.0, hold: objectives.Positive = 0.5) -> objectives.Term:
        return objectives.pair_term(
            "theirs", objectives.margins.plain, objectives.links.square, scale=beta, weight=hold
        )

    with pytest.raises(ObjectiveError, match="theirs: strength: unknown hyper-parameter 'holt'; did you mean 'hold'"):
        objectives.register("theirs", formula="x", strength=Strength("holt"))(factory)
    objectives.register("theirs", formula="x", strength=Strength("hold", rising=False, low=0.1, high=10))(factory)
    objectives.register("default", formula="x")(factory)
    assert objectives.get("theirs").strength == Strength("hold", rising=False, low=0.1, high=10)
    assert objectives.get("default").strength == Strength("beta")
    assert "hold, 0.1 to 10: larger values let the policy go further" in str(objectives.describe("theirs"))

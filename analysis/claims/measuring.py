"""What the claims read off language-model runs: aligned values, and what the forward-KL term alone changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis import seeds
from analysis.claims.model import Part
from analysis.evidence import FULL, METHODS, Evidence, MissingEvidence, Setting
from analysis.statistics import Interval

FORWARD_KL = "forward_kl"
Table = Callable[[Setting], pd.DataFrame]  # a setting's values, seeds by items


def values(split: str, metric: str, step: int | None = None) -> Table:
    """Reads this metric at this step (default: the last) off a setting; ValueError where it was not evaluated."""

    def read(setting: Setting) -> pd.DataFrame:
        table = setting.values(split, metric, step)
        if table.empty:
            raise ValueError(f"{setting.label} has no {metric} on {split.replace('_', ' ')}")
        return table

    return read


kl = values("held_out_prompts", "kl_policy_reference")
reward = values("held_out_prompts", "reward")
log_ratio = values("held_out_reference_samples", "log_ratio")


def gain(setting: Setting) -> pd.DataFrame:
    """Reward after training less that of the reference."""
    return reward(setting) - values("held_out_prompts", "reward", 0)(setting)


def level(read: Table, settings: Sequence[Setting]) -> Interval:
    """Mean over the settings."""
    (block,) = seeds.aligned([read(setting) for setting in settings])
    return seeds.interval(block, of=seeds.weighted(*[1 / len(settings)] * len(settings)))


def same_items(settings: Iterable[Setting]) -> bool:
    """Whether the settings were measured on the same held-out items, so that differences between them may be paired by item."""
    return len({one.held_out for one in settings}) == 1


def _blocks(
    read: Table, groups: Sequence[tuple[Sequence[Setting], float]]
) -> tuple[list[NDArray[np.float64]], NDArray[np.float64], bool]:
    """Blocks for `seeds.interval`, the weights of their means, and whether they are to be resampled apart.

    Settings measured on the same held-out items are one block. Where there are several, item 3 of one is not item 3 of another: nothing
    is paired between blocks.
    """
    settings = [one for group, _ in groups for one in group]
    weights = np.array([weight / len(group) for group, weight in groups for _ in group])
    places: dict[str, list[int]] = {}
    for place, one in enumerate(settings):
        places.setdefault(one.held_out, []).append(place)
    blocks = [seeds.aligned([read(settings[place]) for place in found])[0] for found in places.values()]
    return blocks, weights[[place for found in places.values() for place in found]], len(blocks) > 1


def contrast(
    read: Table, plus: Sequence[Setting], minus: Sequence[Setting], *others: tuple[Sequence[Setting], float]
) -> Interval:
    """Mean over ``plus`` less mean over ``minus``; ``others`` add further means with a weight.

    Paired by seed and item where all were measured on the same held-out items; else seeds and items are resampled apart for each set of
    items.
    """
    blocks, weights, apart = _blocks(read, [(plus, 1.0), (minus, -1.0), *others])
    return seeds.interval(*blocks, of=seeds.weighted(*weights), apart=apart)


def with_and_without(
    evidence: Evidence, method: str, labels: str, support: str = FULL
) -> tuple[list[Setting], list[Setting]]:
    """Settings of a pair loss with the forward-KL term and the same without it, strength by strength; empty lists where there are none.

    Of several forms of the term (weights, sampled or full-token) the one run with the most seeds and strengths is taken; among those
    the one whose weight is nearest to the pair loss's strength, as MaxPO weighs its own KL by beta; then the full-token form.
    """
    regularised = with_term(evidence, method, labels, support)
    try:
        bare = evidence.language_model(method, labels, support)
    except MissingEvidence:
        bare = []
    if not (bare and regularised):
        return [], []
    forms: dict[str, list[tuple[Setting, Setting]]] = {}
    for one in regularised:
        for alone in (alone for alone in bare if own_parameters(one) == alone.hyperparameters):
            forms.setdefault(_term(one), []).append((one, alone))
    if not forms:
        return [], []
    best = max(
        forms.values(),
        key=lambda found: (
            max(len(one.seeds) for one, _ in found),
            len(found),
            -float(np.mean([_unlike_maxpo(one, alone) for one, alone in found])),
            all(one.tokens == "full" for one, _ in found),
        ),
    )
    return [one for one, _ in best], [alone for _, alone in best]


def with_term(evidence: Evidence, method: str, labels: str, support: str = FULL) -> list[Setting]:
    """Settings of a pair loss with the forward-KL term, in all its forms; none where there are none."""
    try:
        return evidence.language_model(f"{method}+{FORWARD_KL}", labels, support)
    except MissingEvidence:
        return []


def weight_of(setting: Setting) -> float:
    """The weight of the forward-KL term; NaN where there is none."""
    return float(setting.hyperparameters.get(f"{FORWARD_KL}.weight", np.nan))


def own_parameters(regularised: Setting) -> dict[str, object]:
    """The hyper-parameters of the pair loss alone, as they are without the term: also how IPO sums over tokens."""
    return {
        key.removeprefix(f"{regularised.objective.removesuffix(f'+{FORWARD_KL}')}."): value
        for key, value in regularised.hyperparameters.items()
        if not key.startswith(f"{FORWARD_KL}.")
    }


def _term(regularised: Setting) -> str:
    """The form of the term: its weight, and what else it was given."""
    return str(sorted((k, v) for k, v in regularised.hyperparameters.items() if k.startswith(f"{FORWARD_KL}.")))


def _unlike_maxpo(regularised: Setting, alone: Setting) -> float:
    """How far, in factors, the term's weight is from the pair loss's strength; infinite where one is not known."""
    return float(np.nan_to_num(abs(np.log(weight_of(regularised) / alone.strength)), nan=np.inf))


def ablation(
    evidence: Evidence, labels: str, read: Table, what: str, unit: str = "nats", support: str = FULL
) -> list[str]:
    """The measured ablation in sentences: what adding the forward-KL term to each pair loss does to ``what``."""
    lines = []
    for method in METHODS:
        regularised, bare = with_and_without(evidence, method, labels, support)
        if bare:
            try:
                change = contrast(read, regularised, bare)
            except ValueError:
                continue
            strengths = ", ".join(f"{one.strength:g}" for one in bare)
            lines.append(
                f"{method} + forward KL less {method} alone (strength {strengths}): {what} {change} {unit}".rstrip()
            )
    return lines


def bandit_ablation(evidence: Evidence) -> list[str]:
    """The exact ablation in one sentence: which pair losses are finite and keep off-support mass, by regulariser (fact F7)."""
    from analysis.claims.c8 import ablation_cells  # C8 is a claim about this very table

    try:
        cells = ablation_cells(evidence.bandit("ablation"))
    except (MissingEvidence, ValueError, KeyError):
        return []
    found = []
    for regulariser, rows in cells.groupby("regulariser"):
        good = rows.loc[rows["finite"] & rows["kept"], "pair_loss"]
        where = "alone" if regulariser == "none" else f"with {regulariser}"
        found.append(f"{where}: {len(good)} of {len(rows)} pair losses")
    return ["finite in every world and off-support mass kept (experiment ablation), " + "; ".join(found)]


def logarithms(
    read: Table, plus: Sequence[Setting], minus: Sequence[Setting], *others: tuple[Sequence[Setting], float]
) -> Interval:
    """As `contrast` for the logarithm of each setting's mean: a change as a share, free of how far a method goes at all."""
    blocks, weights, apart = _blocks(read, [(plus, 1.0), (minus, -1.0), *others])
    return seeds.interval(*blocks, of=lambda means: np.asarray(weights @ np.log(means)), apart=apart)


def rewards_note(found: dict[str, Setting]) -> list[str]:
    """What each method's reward is where it is compared, and a caveat where they are not matched."""
    shown = ", ".join(f"{setting.label} {level(reward, [setting])}" for setting in found.values())
    notes = [f"rewards: {shown}"]
    for method in ("dpo", "ipo"):
        gap = contrast(reward, [found["maxpo"]], [found[method]])
        if gap.above_zero or gap.below_zero:
            notes.append(f"caveat: maxpo's reward is not matched to {method}'s, the difference is {gap}")
    return notes


def over(parts: Iterable[Part]) -> list[str]:
    """What the parts' intervals cover, in one sentence."""
    counts = sorted({part.value.seeds for part in parts if not part.exact})
    if counts == [1]:
        return ["one training seed: the intervals cover prompts and items only, not training noise"]
    if counts[0] == 1:
        return [
            f"{counts[-1]} training seeds where all that is compared has them; parts of one seed leave out training noise"
        ]
    shown = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return [
        f"{shown} training seeds: the intervals cover seeds and items (Student's t, degrees of freedom after Satterthwaite)"
    ]

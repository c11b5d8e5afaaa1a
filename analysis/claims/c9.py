"""C9: how much reference data the off-policy KL needs (theory fact F11)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from analysis.claims.c3 import KEPT_NATS
from analysis.claims.measuring import contrast, kl, log_ratio, over, reward, same_items
from analysis.claims.model import Claim, Domain, Judgement, above, exact
from analysis.evidence import NEAR_DETERMINISTIC, SAMPLED_FORM, Evidence, MissingEvidence, Setting
from analysis.statistics import difference_of_means, trend

# An action that the pairs favour can keep mass without a sample; in the experiment's world that is rare.
LOSES = 0.95


def bandit(evidence: Evidence) -> Judgement:
    """KL from the true reference falls with the number of its samples, and is infinite while an action was never sampled."""
    frame = evidence.bandit("reference_samples")
    frame = frame[frame["objective"] == "maxpo"] if (frame["objective"] == "maxpo").any() else frame
    medians = frame.groupby("samples")["kl_reference_policy"].median()
    tau = trend(medians.index, medians)
    parts = [exact("rank correlation of the median KL(ref||policy) with the number of samples", bool(tau < 0), tau)]
    missing = frame["unsampled_mass"] > 0
    if missing.any():
        infinite = ~np.isfinite(frame.loc[missing, "kl_reference_policy"])
        parts.append(
            exact(
                "share of data sets with an unsampled action whose KL(ref||policy) is infinite",
                bool(infinite.mean() >= LOSES),
                infinite.mean(),
            )
        )
    if (~missing).any():
        finite = np.isfinite(frame.loc[~missing, "kl_reference_policy"])
        parts.append(
            exact(
                "share of data sets with every action sampled whose KL(ref||policy) is finite",
                bool(finite.all()),
                finite.mean(),
            )
        )
    fewest, most = int(medians.index.min()), int(medians.index.max())
    lost = frame.groupby("samples")["unsampled_mass"]
    few, many = lost.get_group(fewest), lost.get_group(most)
    parts.append(
        above(
            f"reference mass never sampled at N = {fewest} less at N = {most}",
            difference_of_means(few, many, over="data sets"),
        )
    )
    return Judgement(parts, [f"{frame['seed'].nunique()} data sets for each of {len(medians)} sizes"])


def language_model(evidence: Evidence) -> Judgement:
    """The full-token form of the forward KL against the sampled form, and samples seen once against several times."""
    settings = [one for one in evidence.language_model(None, NEAR_DETERMINISTIC, repeated=True) if one.tokens]
    parts, notes = [], []
    for one, two, statement, bound in [*_forms(settings), *_passes(settings)]:
        what = f"{statement}: log-likelihood of a held-out reference sample"
        parts.append(above(what, contrast(log_ratio, [one], [two]), "nats", bound))
        if not same_items((one, two)):
            notes.append(
                f"{statement}: other held-out prompts on either side, so nothing is paired; {_seeds(one)} and {_seeds(two)}"
            )
        for name, read, unit in (("KL(policy||ref)", kl, " nats"), ("reward", reward, "")):
            notes.append(f"{statement}: {name} {contrast(read, [one], [two])}{unit}")
    if not parts:
        raise MissingEvidence("one objective with the sampled and with the full-token forward KL", SAMPLED_FORM)
    return Judgement(parts, [*notes, *over(parts)])


# first, second, what is compared, and what the difference is predicted to exceed
Pair = tuple[Setting, Setting, str, float]


def _forms(settings: list[Setting]) -> Iterator[Pair]:
    """Full-token and sampled form, all else equal."""
    for full in (one for one in settings if one.tokens == "full"):
        for sampled in (one for one in settings if one.tokens == "sampled" and _rest(one) == _rest(full)):
            yield full, sampled, f"{_name(full)}, samples seen {_times(full)}: full-token less sampled form", 0.0


def _passes(settings: list[Setting]) -> Iterator[Pair]:
    """Reference samples seen once and several times, all else equal: the sampled form memorises them, the full-token form does not."""
    for once in settings:
        for often in (one for one in settings if one.label == once.label and one.passes > once.passes):
            name = f"{_name(once)}, {once.tokens} form"
            if once.tokens == "sampled":
                yield once, often, f"{name}: samples seen {_times(once)} less {_times(often)}", 0.0
            else:
                yield often, once, f"{name}: samples seen {_times(often)} less {_times(once)}", -KEPT_NATS


def _seeds(setting: Setting) -> str:
    return f"{len(setting.runs)} seed" + ("s" if len(setting.runs) > 1 else "")


def _name(setting: Setting) -> str:
    return f"{setting.objective}({setting.strength:g})"


def _times(setting: Setting) -> str:
    return "once" if setting.passes <= 1 else f"{setting.passes:.3g} times"


def _rest(setting: Setting) -> tuple[object, ...]:
    others = sorted(
        (key, str(value)) for key, value in setting.hyperparameters.items() if key.rpartition(".")[2] != "tokens"
    )
    return setting.objective, setting.passes, tuple(others)


CLAIM = Claim(
    id="C9",
    title="Reference data",
    prediction="The off-policy KL needs reference samples: an action never sampled loses all its mass, and KL to "
    "the true reference falls with their number; the full-token form keeps more likelihood from the "
    "same samples, and bears seeing them several times.",
    data={
        Domain.BANDIT: "experiment reference_samples: MaxPO with N samples of the reference, many data sets",
        Domain.LANGUAGE_MODEL: "held-out reference samples after MaxPO with the sampled and with the full-token forward KL",
    },
    rule={
        Domain.BANDIT: "median KL(ref||policy) falls with N; it is finite where every action was sampled, and infinite in "
        f"{LOSES:.0%} or more of the data sets where one was not; the mass never sampled falls with N.",
        Domain.LANGUAGE_MODEL: "log-likelihood of held-out reference samples: full-token less sampled form above 0; samples seen once less "
        f"several times above 0 in the sampled form, several times less once above -{KEPT_NATS:g} nat in the full-token form; 95 %. "
        "Paired by seed and sample where both were measured on the same held-out samples; otherwise seeds and samples are resampled apart "
        "for each side.",
    },
    figures=("reference_samples",),
    bandit=bandit,
    language_model=language_model,
)

"""C9: how much reference data the off-policy KL needs (theory fact F11)."""

from __future__ import annotations

import numpy as np

from analysis.claims.measuring import contrast, kl, log_ratio, over, reward
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
    """The full-token form of the forward KL against the sampled form, everything else equal."""
    settings = [one for one in evidence.language_model(None, NEAR_DETERMINISTIC) if _tokens(one)]
    parts, used, notes = [], [], []
    for full in (one for one in settings if _tokens(one) == "full"):
        for sampled in (one for one in settings if _tokens(one) == "sampled" and _rest(one) == _rest(full)):
            statement = f"{full.objective}({full.strength:g}): log-likelihood of a reference sample, full-token less sampled form"
            parts.append(above(statement, contrast(log_ratio, [full], [sampled]), "nats"))
            used += [full, sampled]
            for name, read, unit in (("KL(policy||ref)", kl, "nats"), ("reward", reward, "")):
                difference = contrast(read, [full], [sampled])
                notes.append(f"{full.label} less {sampled.label}: {name} {difference} {unit}".rstrip())
    if not parts:
        raise MissingEvidence("one objective with the sampled and with the full-token forward KL", SAMPLED_FORM)
    return Judgement(parts, [*notes, *over(used)])


def _tokens(setting: Setting) -> str | None:
    return next(
        (str(value) for key, value in setting.hyperparameters.items() if key.rpartition(".")[2] == "tokens"), None
    )


def _rest(setting: Setting) -> tuple[str, list[tuple[str, str]]]:
    others = [(key, str(value)) for key, value in setting.hyperparameters.items() if key.rpartition(".")[2] != "tokens"]
    return setting.objective, sorted(others)


CLAIM = Claim(
    id="C9",
    title="Reference data",
    prediction="The off-policy KL needs reference samples: an action never sampled loses all its mass, and KL to "
    "the true reference falls with their number; the full-token form keeps more likelihood from the "
    "same samples.",
    data={
        Domain.BANDIT: "experiment reference_samples: MaxPO with N samples of the reference, many data sets",
        Domain.LANGUAGE_MODEL: "held-out reference samples after MaxPO with the sampled and with the full-token forward KL",
    },
    rule={
        Domain.BANDIT: "median KL(ref||policy) falls with N; it is finite where every action was sampled, and infinite in "
        f"{LOSES:.0%} or more of the data sets where one was not; the mass never sampled falls with N.",
        Domain.LANGUAGE_MODEL: "log-likelihood of held-out reference samples, full-token less sampled form, above 0; paired "
        "by seed and sample, 95 %.",
    },
    figures=("reference_samples",),
    bandit=bandit,
    language_model=language_model,
)

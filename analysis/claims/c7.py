"""C7: KL-vs-reward frontiers, who dominates whom."""

from __future__ import annotations

from analysis.claims.measuring import FORWARD_KL, over
from analysis.claims.model import Claim, Domain, Judgement, above, exact
from analysis.evidence import FULL, METHODS, NEAR_DETERMINISTIC, NOISY, Evidence, MissingEvidence, seeded
from analysis.frontiers import compare, dominance
from analysis.measured import Points, measured_points
from analysis.tuning import budget_note

EQUAL = 1e-6  # exact rewards that differ by less are equal


def bandit(evidence: Evidence) -> Judgement:
    """In every world: MaxPO's reward less DPO's and IPO's at equal KL, and every method's distance from the exact optimum."""
    frame = evidence.bandit("frontier")
    parts, notes = [], []
    optimal = []
    for world, rows in frame.groupby("world", sort=True):
        points = {
            str(name): (group["kl_policy_reference"].to_numpy(), group["expected_reward"].to_numpy())
            for name, group in rows.groupby("objective")
        }
        for method in ("dpo", "ipo"):
            found = compare(points["maxpo"], points[method], EQUAL)
            if found is None:
                notes.append(f"{world}: maxpo and {method} share no range of KL")
                continue
            statement = f"{world}: maxpo's reward less {method}'s at equal KL"
            parts.append(exact(statement, found.difference >= -EQUAL, found.difference))
            notes.append(
                f"{world}: maxpo at least {method} on {found.share:.0%} of KL {found.low:.2g} to {found.high:.2g} nats"
            )
        for method in METHODS:
            if "rlhf" in points and (found := compare(points["rlhf"], points[method])) is not None:
                notes.append(f"{world}: {method} lies {found.difference:.3g} below the RLHF optimum at equal KL")
                if method == "dpo" and abs(found.difference) < EQUAL:
                    optimal.append(str(world))
    if optimal:
        notes.append(f"dpo's minimiser is the RLHF optimum in {', '.join(optimal)} (fact F2): nothing can lie above it")
    return Judgement(parts, notes)


def language_model(evidence: Evidence) -> Judgement:
    """Mean reward difference at equal KL between MaxPO's frontier and DPO's and IPO's, for each kind of labels and support."""
    parts, notes = [], []
    cells = sorted({(one.labels, one.support) for one in evidence.language_model(support=None)})
    predicted = [(NEAR_DETERMINISTIC, FULL), (NOISY, FULL)]
    for labels, support in [*predicted, *(cell for cell in cells if cell not in predicted)]:
        where = labels if support == FULL else f"{labels}, pairs of {support}"
        try:
            found = {method: evidence.method(method, labels, support) for method in METHODS}
        except MissingEvidence:
            if (labels, support) == predicted[0]:
                raise
            continue
        compared = seeded(found)
        points = {method: measured_points(settings) for method, settings in compared.items()}
        for method in ("dpo", "ipo"):
            value = dominance(points["maxpo"], points[method])
            end = min(points[name].kl.mean(axis=1).max() for name in ("maxpo", method))
            statement = f"{where}: maxpo's reward less {method}'s at equal KL, up to {end:.2g} nats"
            if (labels, support) in predicted:
                parts.append(above(statement, value))
                notes.append(
                    f"{statement}, isotonic frontiers: {dominance(points['maxpo'], points[method], 'isotonic')}"
                )
            else:
                notes.append(f"{statement}: {value}")
            if any(len(compared[name]) < len(found[name]) for name in ("maxpo", method)):
                every, other = (measured_points(found[name]) for name in ("maxpo", method))
                notes.append(f"{statement}, every strength, {_seeds(every, other)}: {dominance(every, other)}")
        reach = "; ".join(
            f"{method} KL up to {one.kl.mean(axis=1).max():.3g} nats, reward up to {one.reward.mean(axis=1).max():.3g}"
            for method, one in points.items()
        )
        strengths = sorted({len(settings) for settings in compared.values()})
        if len(strengths) > 1:
            notes.append(
                f"caveat: {where}: between {strengths[0]} and {strengths[-1]} strengths of a method are compared"
            )
        notes += [f"{where}, {strengths[0]} strength(s) of each compared: {reach}"]
        notes += [budget_note(evidence, labels, METHODS, support)]
    return Judgement(parts, [*notes, *over(parts)], _with_forward_kl(evidence))


def _seeds(one: Points, two: Points) -> str:
    shared = len(set(one.seeds) & set(two.seeds))
    return f"{shared} training seed{'s' if shared > 1 else ''}"


def _with_forward_kl(evidence: Evidence) -> list[str]:
    """Is it the term? DPO with the forward KL against MaxPO and against DPO, at equal KL."""
    try:
        methods = {name: evidence.method(name, NEAR_DETERMINISTIC) for name in (f"dpo+{FORWARD_KL}", "dpo", "maxpo")}
        found = {name: measured_points(settings) for name, settings in seeded(methods).items()}
    except (MissingEvidence, ValueError):
        return []
    first, *others = found
    return [
        f"{first}'s reward less {other}'s at equal KL, near-deterministic labels: {dominance(found[first], found[other])}"
        for other in others
    ]


CLAIM = Claim(
    id="C7",
    title="KL-vs-reward frontier",
    prediction="At equal KL to the reference, MaxPO reaches at least the reward of DPO and IPO.",
    data={
        Domain.BANDIT: "experiment frontier: exact KL and expected reward over five decades of strength, the RLHF optimum as bound",
        Domain.LANGUAGE_MODEL: "mean reward against per-token KL(policy||reference) on held-out prompts, every strength and checkpoint",
    },
    rule={
        Domain.BANDIT: "in every world, the area between MaxPO's frontier and DPO's (IPO's), over the KL range that both "
        "cover, divided by its width, is not below 0.",
        Domain.LANGUAGE_MODEL: "the same mean difference of reward at equal KL, on near-deterministic and on noisy labels, is above 0; "
        "points are chosen on one half of the prompts and measured on the other, both ways round; paired by seed and prompt, 95 %.",
    },
    figures=("frontier_bandit", "frontier_llm", "overoptimisation"),
    bandit=bandit,
    language_model=language_model,
)

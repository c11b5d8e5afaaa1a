"""C4: finite data (theory fact F2, Ford's criterion)."""

from __future__ import annotations

import math

import pandas as pd

from analysis.claims.measuring import over, values
from analysis.claims.model import Claim, Domain, Judgement, Part, above, exact
from analysis.evidence import METHODS, NEAR_DETERMINISTIC, Evidence, Setting, seeded
from analysis.seeds import aligned, interval, weighted
from analysis.statistics import Interval, mean, proportion, trend


def bandit(evidence: Evidence) -> Judgement:
    """With few labels DPO mostly has no finite minimiser; with many it has one; IPO and MaxPO always have one."""
    frame = minimisers(evidence.bandit("finite_data"))
    dpo = divergence(frame, "dpo")
    sizes = [int(size) for size in dpo.index]
    fewest, most = min(sizes), max(sizes)
    few, many = _proportion(dpo, fewest), _proportion(dpo, most)
    parts: list[Part] = [
        above(f"dpo: probability of no finite minimiser at N = {fewest} labels, more likely than not", few, bound=0.5),
        above(
            f"dpo: that probability at N = {fewest} less at N = {most}",
            Interval(few.estimate - many.estimate, few.low - many.high, few.high - many.low, few.n, "data sets"),
        ),
    ]
    tau = trend(dpo.index, dpo["diverges"] / dpo["n"])
    parts.append(exact("dpo: rank correlation of that probability with N", bool(tau < 0), tau))
    for method in ("ipo", "maxpo"):
        other = divergence(frame, method)
        total = int(other["diverges"].sum())
        parts.append(
            exact(f"{method}: data sets of {int(other['n'].sum())} without a finite minimiser", total == 0, total)
        )
    # Where DPO mostly has no finite minimiser it is predicted to overfit most, at each such N. One gap per data set: the strengths
    # of one data set are not independent and are averaged first.
    counts = dpo[["diverges", "n"]].to_numpy()
    mostly = [size for size, (diverging, total) in zip(sizes, counts, strict=True) if 2 * diverging > total]
    gaps = frame[frame["labels"].isin(mostly)].groupby(["objective", "labels", "seed"])["overfit_gap"].mean()
    for method in ("ipo", "maxpo"):
        for size in mostly:
            gap = gaps["dpo"].loc[size] - gaps[method].loc[size]
            parts.append(above(f"dpo's overfitting gap less {method}'s at N = {size}", mean(gap, over="data sets")))
        if not mostly:
            parts.append(above(f"dpo's overfitting gap less {method}'s: at no N", Interval(math.nan)))
    notes = [f"{frame['seed'].nunique()} sampled data sets per N; intervals are over data sets (Wilson, bootstrap)"]
    for size in mostly:
        means = ", ".join(f"{method} {gaps[method].loc[size].mean():.3g}" for method in METHODS)
        notes.append(f"mean overfitting gap at N = {size}: {means}")
    return Judgement(parts, notes)


def minimisers(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of experiment finite_data that are minimisers, not steps of a gradient path."""
    return frame[frame["step"].isna()] if "step" in frame else frame


def divergence(frame: pd.DataFrame, objective: str) -> pd.DataFrame:
    """By number of labels: ``diverges``, the data sets without a finite minimiser at any strength, out of ``n``."""
    rows = frame[frame["objective"] == objective]
    if rows.empty:
        raise ValueError(f"experiment finite_data has no rows of {objective}")
    by_set = (rows["status"] == "diverges").groupby([rows["labels"], rows["seed"]]).any()
    grouped = by_set.groupby(level="labels")
    return pd.DataFrame({"diverges": grouped.sum().astype(int), "n": grouped.size()})


def _proportion(counts: pd.DataFrame, labels: int) -> Interval:
    diverges, total = (int(count) for count in counts.loc[labels, ["diverges", "n"]].to_numpy())
    return proportion(diverges, total, over="data sets")


def language_model(evidence: Evidence) -> Judgement:
    """Preference accuracy on training pairs less held-out pairs: above 0 for DPO and larger than IPO's and MaxPO's."""
    settings = seeded({method: evidence.method(method, NEAR_DETERMINISTIC) for method in METHODS})
    parts = [above("dpo: accuracy on training pairs less held-out pairs", _gap(settings["dpo"]), "")]
    for method in ("ipo", "maxpo"):
        parts.append(above(f"dpo's gap less {method}'s", _gap(settings["dpo"], settings[method]), ""))
    return Judgement(parts, ["mean over the strengths run", *over(parts)])


def _gap(first: list[Setting], second: list[Setting] | None = None) -> Interval:
    """Training less held-out accuracy of ``first``, or its excess over that of ``second``; each split has its own pairs."""
    groups = [first] if second is None else [first, second]
    weights = [sign / len(group) for sign, group in zip((1.0, -1.0), groups, strict=False) for _ in group]
    blocks = aligned(
        *(
            [values(split, "preference_accuracy")(one) for group in groups for one in group]
            for split in ("training_pairs", "held_out_pairs")
        )
    )
    return interval(*blocks, of=weighted(*weights, *(-weight for weight in weights)), over="pairs")


CLAIM = Claim(
    id="C4",
    title="Finite data",
    prediction="Few labels, each seen once, are deterministic: DPO then has no finite minimiser and overfits; IPO and MaxPO do not.",
    data={
        Domain.BANDIT: "experiment finite_data: N labels drawn from a Bradley-Terry world, many data sets",
        Domain.LANGUAGE_MODEL: "preference accuracy on training and on held-out pairs after training, near-deterministic labels",
    },
    rule={
        Domain.BANDIT: "DPO: with the fewest labels more likely than not without a finite minimiser, and falling with N. "
        "IPO, MaxPO: never without one, and a smaller overfitting gap at every N where DPO mostly has no "
        "minimiser; intervals over data sets, 95 %.",
        Domain.LANGUAGE_MODEL: "accuracy on training less held-out pairs: above 0 for DPO, and larger than IPO's and MaxPO's; "
        "over seeds and pairs, 95 %.",
    },
    figures=("finite_data", "training"),
    bandit=bandit,
    language_model=language_model,
)

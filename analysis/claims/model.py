"""What a claim is, and how the verdicts of its parts make the verdict of the whole.

A claim predicts several things; each is a ``Part`` with its own effect size, interval and verdict. The whole

- holds                when every part holds,
- fails                when a part fails and none holds,
- is mixed             when some parts hold and some fail,
- not enough evidence  when records are missing, or no part fails but some interval leaves the answer open.

An interval that contains the boundary leaves its part open: absence of evidence is never counted for either side.

A claim that holds when all its parts do is an intersection-union test (Berger 1982): its p is the largest of its parts', without
a correction for their number. One that fails when any part does takes Holm's smallest. Over the table of claims p is adjusted by
Holm (`adjusted_findings`), and a verdict that does not survive that is "not enough evidence".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum

from analysis.evidence import Evidence, MissingEvidence
from analysis.statistics import LEVEL, Interval, adjusted


class Verdict(StrEnum):
    """What the records say about a claim or one of its parts."""

    HOLDS = "holds"
    FAILS = "fails"
    MIXED = "mixed"
    OPEN = "not enough evidence"


class Domain(StrEnum):
    """Where a claim is tested."""

    BANDIT = "bandits (exact)"
    LANGUAGE_MODEL = "language model"


@dataclass(frozen=True)
class Part:
    """One predicted thing: what was measured, in which unit, and its verdict."""

    statement: str
    verdict: Verdict
    value: Interval
    unit: str = ""
    exact: bool = False  # computed without sampling: an interval would have no meaning
    bound: float = 0.0  # what the value is predicted to lie above or below

    @property
    def p_value(self) -> float:
        """Two-sided p of the value being the bound; NaN where exact or without an interval."""
        return math.nan if self.exact else self.value.p_value(self.bound)

    @property
    def detectable(self) -> float:
        """Distance from the bound (factor, for a ratio) that is seen with a power of 80 %; NaN where exact or without interval."""
        return math.nan if self.exact else self.value.detectable()

    @property
    def power(self) -> str:
        """What could have been seen, in words; empty where there is no such thing."""
        if not math.isfinite(self.detectable):
            return ""
        unit = "" if self.value.ratio else f" {self.unit}".rstrip()
        return f"80 % power at {'a factor of ' if self.value.ratio else ''}{_number(self.detectable)}{unit}"

    @property
    def effect(self) -> str:
        """Effect size with unit and interval, in words."""
        if self.exact:
            return f"{_number(self.value.estimate)} {self.unit} (exact)".replace("  ", " ")
        if not self.value.known:
            return f"{_number(self.value.estimate)} {self.unit} (no interval)".replace("  ", " ")
        low, high = _number(self.value.low), _number(self.value.high)
        return f"{_number(self.value.estimate)} {self.unit} [{low}, {high}]".replace("  ", " ")


@dataclass(frozen=True)
class Finding:
    """A claim in one domain, judged. The first part carries the headline effect."""

    claim: Claim
    domain: Domain
    verdict: Verdict
    parts: tuple[Part, ...] = ()
    notes: tuple[str, ...] = ()
    command: str | None = None  # makes the records that are missing
    ablation: tuple[str, ...] = ()  # measured, what makes the difference
    adjusted_p: float = math.nan  # Holm over the claims judged together

    @property
    def effect(self) -> str:
        """The headline, and the part that decided against it where one did: statement and effect size."""
        shown = list(self.parts[:1])
        if self.verdict is not Verdict.HOLDS:
            against = Verdict.OPEN if self.verdict is Verdict.OPEN else Verdict.FAILS
            shown += [part for part in self.parts[1:] if part.verdict is against][:1]
        return "; ".join(f"{part.statement}: {part.effect}{part.power and f' ({part.power})'}" for part in shown)

    @property
    def p_value(self) -> float:
        """p of the verdict, see the top of this module; NaN where nothing was sampled, or a part fails that was not."""
        if any(part.verdict is Verdict.FAILS and not math.isfinite(part.p_value) for part in self.parts):
            return math.nan
        sampled = [part for part in self.parts if math.isfinite(part.p_value)]
        failing = [part.p_value for part in sampled if part.verdict is Verdict.FAILS]
        if failing:
            return float(
                min(adjusted([*failing, *(1.0 for part in sampled if part.verdict is not Verdict.FAILS)], "holm"))
            )
        return max((part.p_value for part in sampled), default=math.nan)

    @property
    def score(self) -> str:
        """How many of the predicted parts hold, such as ``5 of 6``; empty without parts."""
        if not self.parts:
            return ""
        return f"{sum(part.verdict is Verdict.HOLDS for part in self.parts)} of {len(self.parts)}"


@dataclass(frozen=True)
class Judgement:
    """What a test returns: its parts, and notes that a reader needs (what an interval covers, caveats)."""

    parts: list[Part]
    notes: list[str]
    ablation: list[str] = field(default_factory=list)  # what makes the difference, measured


Test = Callable[[Evidence], Judgement]


@dataclass(frozen=True)
class Claim:
    """One claim of the theory; ``bandit`` and ``language_model`` are None where the claim says nothing about the domain."""

    id: str
    title: str
    prediction: str
    data: dict[Domain, str]
    rule: dict[Domain, str]
    figures: tuple[str, ...]
    bandit: Test | None = None
    language_model: Test | None = None

    def findings(self, evidence: Evidence) -> list[Finding]:
        """The claim judged in every domain that it speaks about."""
        tests = ((Domain.BANDIT, self.bandit), (Domain.LANGUAGE_MODEL, self.language_model))
        return [judge(self, domain, test, evidence) for domain, test in tests if test is not None]


def judge(claim: Claim, domain: Domain, test: Test, evidence: Evidence) -> Finding:
    """Run one test; missing records, or records that cannot be compared, are no evidence and the notes say why."""
    try:
        judgement = test(evidence)
    except MissingEvidence as missing:
        return Finding(claim, domain, Verdict.OPEN, notes=(f"no records of {missing.what}",), command=missing.command)
    except (KeyError, ValueError) as error:  # a column or metric that is absent, unpaired items, NaN in a record
        reason = f"no column {error}" if isinstance(error, KeyError) else str(error)
        return Finding(claim, domain, Verdict.OPEN, notes=(f"the records cannot answer this: {reason}",))
    return Finding(
        claim,
        domain,
        combine(judgement.parts),
        tuple(judgement.parts),
        tuple(judgement.notes),
        ablation=tuple(judgement.ablation),
    )


def adjusted_findings(claims: Iterable[Claim], evidence: Evidence) -> list[Finding]:
    """All claims judged as one family: Holm over the p-values of the findings in which something was sampled.

    A verdict of such a finding, whatever it is, becomes "not enough evidence" where its adjusted p is above 1 - `LEVEL`, and its notes
    say so.
    """
    found = [finding for claim in claims for finding in claim.findings(evidence)]
    family = [place for place, one in enumerate(found) if math.isfinite(one.p_value)]
    values = adjusted([found[place].p_value for place in family], "holm")
    for place, value in zip(family, values, strict=True):
        one = replace(found[place], adjusted_p=float(value))
        if one.verdict is not Verdict.OPEN and value > 1 - LEVEL:
            p = f"p {p_text(one.p_value)}", f"p {p_text(float(value))}"
            alone = "is mixed" if one.verdict is Verdict.MIXED else one.verdict.value
            note = f"alone it {alone} ({p[0]}), but not after Holm over {len(family)} claims ({p[1]})"
            one = replace(one, verdict=Verdict.OPEN, notes=(note, *one.notes))
        found[place] = one
    return found


def combine(parts: Iterable[Part]) -> Verdict:
    """The verdict of the whole, by the rule at the top of this module."""
    verdicts = {part.verdict for part in parts}
    if Verdict.MIXED in verdicts or {Verdict.HOLDS, Verdict.FAILS} <= verdicts:
        return Verdict.MIXED
    if Verdict.FAILS in verdicts:
        return Verdict.FAILS
    return Verdict.HOLDS if verdicts == {Verdict.HOLDS} else Verdict.OPEN


def exact(statement: str, holds: bool, value: float, unit: str = "") -> Part:
    """A part that was computed exactly."""
    return Part(statement, Verdict.HOLDS if holds else Verdict.FAILS, Interval(float(value)), unit, exact=True)


def above(statement: str, value: Interval, unit: str = "", bound: float = 0.0) -> Part:
    """A part that predicts a value above ``bound``: holds when the whole interval does, fails when all of it is below."""
    return Part(statement, _against(value.low - bound, value.high - bound, value.known), value, unit, bound=bound)


def below(statement: str, value: Interval, unit: str = "", bound: float = 0.0) -> Part:
    """A part that predicts a value below ``bound``."""
    return Part(statement, _against(bound - value.high, bound - value.low, value.known), value, unit, bound=bound)


def _against(low: float, high: float, known: bool) -> Verdict:
    if not known:
        return Verdict.OPEN
    return Verdict.HOLDS if low > 0 else Verdict.FAILS if high < 0 else Verdict.OPEN


def p_text(value: float) -> str:
    """A p-value for people: "= 0.031" or "< .001"."""
    return "< .001" if value < 0.001 else f"= {value:.2g}"


def _number(value: float) -> str:
    if not math.isfinite(value):
        return {math.inf: "infinite", -math.inf: "-infinite"}.get(value, "none")
    return f"{value:.3g}" if abs(value) < 1e4 or abs(value) >= 1e6 else f"{value:.0f}"

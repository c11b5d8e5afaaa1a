"""The claims C1-C9, each as a prediction, the data, a test and a verdict, for bandits and language models separately."""

from analysis.claims import c1, c2, c3, c4, c5, c6, c7, c8, c9
from analysis.claims.model import Claim, Domain, Finding, Part, Verdict, adjusted_findings, judge

CLAIMS: tuple[Claim, ...] = tuple(module.CLAIM for module in (c1, c2, c3, c4, c5, c6, c7, c8, c9))

__all__ = ["CLAIMS", "Claim", "Domain", "Finding", "Part", "Verdict", "adjusted_findings", "judge"]

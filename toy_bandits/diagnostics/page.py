"""The documentation of the diagnostics, made from them."""

from __future__ import annotations

from toy_bandits.diagnostics.base import CONFIDENCE, MOST_UNSOLVED, RESAMPLES, Diagnostic
from toy_bandits.diagnostics.registry import DIAGNOSTICS

HEAD = f"""# Diagnostics

<!-- Made by `python -m toy_bandits profile --page docs/diagnostics.md`; edit the modules of toy_bandits/diagnostics instead. -->

A diagnostic is one failure that an objective can have. Its probe solves the objective exactly in a few [worlds](worlds.md) and writes a
tidy table; its score reads that table alone and lies in [0, 1], 1 the better end. `python -m toy_bandits profile NAME --out DIR` runs them
all and draws the card; [Exact bandits](bandits.md) has examples.

- Scores are of the hyper-parameters given. Only the response to strength sweeps the strength, over the range that the objective declares.
- There is no score, never 0 or 1, where the question does not arise (an objective without samples of the reference, or without a
  strength) or where an objective needs what a bandit cannot give. Radar and table leave a gap, and the card says why.
- Problems that the solver leaves "unsolved" are left out and counted; with more than {MOST_UNSOLVED:.0%} of them there is no score.
- Where a probe draws data sets, the score has a {CONFIDENCE:.0%} interval: percentile bootstrap over data sets, {RESAMPLES} resamples
  (`scipy.stats.bootstrap`). The others are exact and have none.
- All objectives see the same labels. One that can also be told rewards (infonca, nca) is not; one that cannot do without (exo_rw) is.
- A high score is not the same as a good objective: what holds the policy (the first five) and what gains reward (the last) pull apart.
"""


def page() -> str:
    """docs/diagnostics.md."""
    rows = [f"| [{d.title}](#{d.id}) | {d.reading} | {', '.join(d.facts)} |" for d in DIAGNOSTICS.values()]
    overview = "\n".join(["| diagnostic | a high score says | rests on |", "|---|---|---|", *rows])
    return "\n".join([HEAD, overview, *(_section(diagnostic) for diagnostic in DIAGNOSTICS.values())]) + "\n"


def _section(diagnostic: Diagnostic) -> str:
    listed = ", ".join(f"`{world}`" for world in diagnostic.worlds)
    return (
        f"\n## {diagnostic.id}\n\n**{diagnostic.title}.** A high score says: {diagnostic.reading}.\n\n{diagnostic.why}\n\n"
        f"**Score.** {diagnostic.formula}\n\nWorlds: {listed}. Rests on {', '.join(diagnostic.facts)}."
    )

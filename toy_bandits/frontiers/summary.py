"""The frontiers in numbers: a Markdown table per world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from toy_bandits.frontiers.pieces import LOOP, SWEEP
from toy_bandits.worlds import World

ON_BOUND = 1e-9
HEAD = """# Frontiers

Exact KL-vs-reward and KL-vs-win-rate frontiers. Below the bound: how much less a policy reaches than the RLHF optimum of the same KL does,
at the strength where that is most and at the median strength; "0" is less than 1e-9. No policy lies above the bound: that is checked for
each, to rounding. Where no minimiser exists ("diverges") the policy is the limit along the direction of divergence.
"""


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per objective and loop of a world: where its policies are, and how far below the bound."""
    rows = []
    for (kind, name), group in frame[frame["kind"].isin([SWEEP, LOOP])].groupby(["kind", "name"], sort=False):
        kl = group["kl_policy_reference"]
        row = {"": name if kind == SWEEP else f"loop: {name}"}
        row["policies"] = _statuses(group) if kind == SWEEP else f"{len(group)} steps"
        row["KL"] = f"{kl.min():.2g} to {kl.max():.2g}"
        for measure, title in (("reward", "reward"), ("win_rate", "win rate")):
            if (column := f"{measure}_regret") in group:
                row[f"{title} below the bound: most"] = _distance(group[column].max())
                row[f"{title}: median"] = _distance(group[column].median())
        rows.append(row)
    return pd.DataFrame(rows)


def page(frames: Mapping[str, pd.DataFrame], worlds: Mapping[str, World], left_out: Sequence[str]) -> str:
    """The Markdown page: a section per world, then what was left out and why."""
    parts = [HEAD]
    for world_id, frame in frames.items():
        parts.append(f"## {world_id}\n\n{worlds[world_id].summary[0].upper()}{worlds[world_id].summary[1:]}.\n")
        parts.append(table(frame).to_markdown(index=False) + "\n")
    if left_out:
        parts.append("## Left out\n\n" + "\n".join(f"- {line}" for line in left_out) + "\n")
    return "\n".join(parts)


def _statuses(group: pd.DataFrame) -> str:
    return ", ".join(f"{count} {status}" for status, count in group["status"].value_counts().items())


def _distance(value: float) -> str:
    return "0" if abs(value) < ON_BOUND else f"{value:.2g}"

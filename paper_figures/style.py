"""One look for all figures: sizes in inches, Okabe-Ito colours, and a marker and line style of its own for each method.

Colours: Okabe and Ito, "Color universal design" (2008). No figure tells methods apart by colour alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from analysis.statistics import Interval

SINGLE = 3.25  # column width, inches: figures are drawn at the size at which they are printed, so 7 pt are 7 pt
DOUBLE = 6.75  # text width

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY = "#777777"

RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same glyphs on every machine
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.grid": True,
    "grid.linewidth": 0.4,
    "grid.color": "#dddddd",
    "axes.axisbelow": True,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "errorbar.capsize": 1.5,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.06,
    "figure.constrained_layout.h_pad": 0.05,
    "pdf.fonttype": 42,  # editable text, accepted by publishers
    "svg.hashsalt": "preference-objectives",
    "path.simplify": False,
    "axes.unicode_minus": True,
}


LineStyle = Literal["-", "--", "-.", ":"]


@dataclass(frozen=True)
class Look:
    """How one method is drawn everywhere."""

    label: str
    colour: str
    marker: str
    line: LineStyle


LOOKS = {
    "dpo": Look("DPO", VERMILLION, "o", "-"),
    "ipo": Look("IPO", BLUE, "s", "--"),
    "maxpo": Look("MaxPO", GREEN, "^", "-."),
    "rlhf": Look("RLHF optimum", BLACK, "", ":"),
    "dpo+forward_kl": Look("DPO + forward KL", ORANGE, "D", (0, (5, 1))),  # type: ignore[arg-type]
    "ipo+forward_kl": Look("IPO + forward KL", SKY, "v", (0, (3, 1, 1, 1))),  # type: ignore[arg-type]
    "maxpo+forward_kl": Look("MaxPO + forward KL", PURPLE, "P", (0, (1, 1))),  # type: ignore[arg-type]
}
# Methods that sample while they train; colours come back, markers do not.
ONLINE = {
    "rlhf_ppo": Look("PPO", ORANGE, "d", "-"),
    "espo": Look("ESPO", PURPLE, "<", "--"),
    "rso": Look("RSO", SKY, "p", "-."),
    "iterative_dpo": Look("iterative DPO", BLUE, "X", "-"),
    "accelerated": Look("accelerated DPO", BLUE, ">", "--"),
    "best_of_n": Look("best of n", GREY, "h", ":"),
}
NAMES = {
    "dpo": "DPO",
    "cdpo": "cDPO",
    "robust_dpo": "robust DPO",
    "ipo": "IPO",
    "maxpo": "MaxPO",
    "slic_hf": "SLiC-HF",
    "rso_hinge": "RSO hinge",
    "exo_pref": "EXO-pref",
    "exo_rw": "EXO-rw",
    "infonca": "InfoNCA",
    "nca": "NCA",
    "bco": "BCO",
    "kto": "KTO",
    "sppo": "SPPO",
    "aot": "AOT",
    "apo_zero": "APO-zero",
    "apo_down": "APO-down",
    "discopop": "DiscoPOP",
    "simpo": "SimPO",
    "orpo": "ORPO",
    "cpo": "CPO",
    "chipo": "χPO",
    "rpo": "RPO",
    "minor_dpo": "MinorDPO",
    "mrpo": "MRPO",
    "dpop": "DPOP",
    "wpo": "WPO",
    "tdpo": "TDPO",
    "fdpo": "f-DPO",
    "gpo": "GPO",
    "rdpo": "R-DPO",
    "ld_dpo": "LD-DPO",
    "sampo": "SamPO",
    "beta_dpo": "β-DPO",
    "alphapo": "AlphaPO",
    "sft": "SFT",
    "forward_kl": "forward KL",
    "chosen_nll": "NLL of chosen",
    "pretraining": "pretraining",
    "reverse_kl": "reverse KL",
}
_SPARE = [
    (colour, marker)
    for shift in range(5)
    for colour, marker in zip((ORANGE, SKY, PURPLE, GREY, BLACK), ("<Xp*v"[shift:] + "<Xp*v"[:shift]), strict=True)
    if (colour, marker) not in {(look.colour, look.marker) for look in LOOKS.values()}
]  # 24 pairs of a colour and a marker that none of the listed has
_UNLISTED = [objective for objective in NAMES if objective not in LOOKS]


def name(objective: str) -> str:
    """An objective's name as papers print it: ``dpo+forward_kl`` is "DPO + forward KL"."""
    return " + ".join(NAMES.get(part, part.replace("_", " ")) for part in objective.split("+"))


def look(objective: str) -> Look:
    """The look of an objective; one that is not listed gets a spare colour and marker, the same every time.

    The registry's own take theirs in the order of `NAMES`, so that no two within 24 of each other look alike.
    """
    if known := LOOKS.get(objective) or ONLINE.get(objective):
        return known
    place = _UNLISTED.index(objective) if objective in _UNLISTED else sum(objective.encode())
    colour, marker = _SPARE[place % len(_SPARE)]
    return Look(name(objective), colour, marker, (0, (2, 1)))  # type: ignore[arg-type]


def order(objectives: Iterable[str]) -> list[str]:
    """Objectives in the order in which figures show them."""
    listed = [*LOOKS, *ONLINE]
    return sorted(set(objectives), key=lambda name: (listed.index(name) if name in listed else len(listed), name))


def shades(colour: str, n: int) -> list[tuple[float, float, float]]:
    """``n`` shades of a colour, light to dark, all dark enough to read on white."""
    base = np.array(to_rgb(colour))
    mixes = np.linspace(0.6, 0.0, n) if n > 1 else np.zeros(1)
    dark = np.linspace(0.0, 0.35, n) if n > 1 else np.zeros(1)
    return [
        (float(red), float(green), float(blue))
        for red, green, blue in ((base * (1 - mix) + mix) * (1 - shade) for mix, shade in zip(mixes, dark, strict=True))
    ]


def panels(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure of the given size in inches and its axes, row by row."""
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, list(axes.ravel())


def error_lengths(intervals: Iterable[Interval]) -> np.ndarray:
    """(2, n): lengths of the bars below and above the estimates; NaN, so no bar, where there is no interval."""
    bars = [(one.estimate - one.low, one.high - one.estimate) if one.known else (np.nan, np.nan) for one in intervals]
    return np.maximum(np.asarray(bars, dtype=np.float64).reshape(-1, 2), 0.0).T


def errorbars(axis: Axes, places: Iterable[float], values: Sequence[Interval], look: Look, **options: Any) -> None:
    """Estimates with their intervals in a method's look; ``options`` take the place of its own."""
    shown: dict[str, Any] = {"color": look.colour, "marker": look.marker, "linestyle": look.line, "elinewidth": 0.7}
    estimates = [value.estimate for value in values]
    axis.errorbar(list(places), estimates, yerr=error_lengths(values), **(shown | options))


def letter(axes: Iterable[Axes]) -> None:
    """(a), (b), ... in front of the panels' titles."""
    for index, axis in enumerate(axes):
        axis.set_title(f"({chr(ord('a') + index)}) {axis.get_title()}", loc="left")
        axis.set_title("", loc="center")

"""Numbers on the page."""

from __future__ import annotations

import math
from typing import Any


def short(value: Any, digits: int = 5) -> float | None:
    """A number with as many significant digits as a plot can show; None where it is not finite, which JSON cannot hold."""
    number = float(value)
    if not math.isfinite(number):
        return None
    rounded = float(f"{number:.{digits}g}")
    return int(rounded) if rounded == int(rounded) and abs(rounded) < 1e9 else rounded


def text(value: Any, digits: int = 3) -> str:
    """A number for a table; a dash where it is not known."""
    number = float(value)
    if math.isnan(number):
        return "–"
    if math.isinf(number):
        return "∞" if number > 0 else "−∞"
    return f"{number:.{digits}g}"


def interval(estimate: Any, low: Any, high: Any) -> str:
    """An estimate with its interval, where there is one."""
    if not (math.isfinite(float(low)) and math.isfinite(float(high))):
        return text(estimate)
    return f"{text(estimate)} [{text(low)}, {text(high)}]"

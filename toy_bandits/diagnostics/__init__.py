"""Diagnostics: one failure of preference objectives each, probed exactly and scored from 0 to 1."""

from toy_bandits.diagnostics.base import Diagnostic, Score, measure, measure_at, refusal, score
from toy_bandits.diagnostics.registry import DIAGNOSTICS, get

__all__ = ["DIAGNOSTICS", "Diagnostic", "Score", "get", "measure", "measure_at", "refusal", "score"]

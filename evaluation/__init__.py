"""Measuring what an edit did: probes are scored, scores become metrics, metrics become tables and plots."""

from __future__ import annotations

from .metrics import Comparison, Summary, compare, summarise
from .runs import RunResult, run
from .scores import FactScores
from .scoring import evaluate

__all__ = ["Comparison", "FactScores", "RunResult", "Summary", "compare", "evaluate", "run", "summarise"]

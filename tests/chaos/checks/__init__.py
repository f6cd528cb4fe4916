"""Pure checkers: a history in, a verdict on each property out."""

from tests.chaos.checks.judging import judge, judge_locks
from tests.chaos.checks.verdict import (
    ASKED,
    PROPERTIES,
    Example,
    Thresholds,
    Verdict,
    exit_code,
    in_words,
    unknown_in,
    worst_of,
)

__all__ = [
    "ASKED",
    "PROPERTIES",
    "Example",
    "Thresholds",
    "Verdict",
    "exit_code",
    "in_words",
    "judge",
    "judge_locks",
    "unknown_in",
    "worst_of",
]

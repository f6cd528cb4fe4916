"""Pure checkers: a history in, a verdict on each property out."""

from tests.chaos.checks.judging import judge
from tests.chaos.checks.verdict import ASKED, PROPERTIES, Example, Thresholds, Verdict, exit_code

__all__ = ["ASKED", "PROPERTIES", "Example", "Thresholds", "Verdict", "exit_code", "judge"]

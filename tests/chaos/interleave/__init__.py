"""Real handlers on a real Postgres and a real Valkey, stepped through every order of their points."""

from .exploring import Exploration, Violation, explore, explore_cases, planned, replay
from .orders import Case, Crash, parse_case

__all__ = ["Case", "Crash", "Exploration", "Violation", "explore", "explore_cases", "parse_case", "planned", "replay"]

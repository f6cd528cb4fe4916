"""Everybody locks rows in one order, so that Postgres never has to end a deadlock."""

from __future__ import annotations

from tests.chaos.checks.evidence import Evidence
from tests.chaos.checks.verdict import Example, Verdict, found


def no_deadlocks(evidence: Evidence) -> Verdict:
    """Postgres has ended none in this database, as far as its counter was seen before a crash that reset it."""
    seen = [(event["deadlocks"], event["t"]) for event in evidence.by_kind["snapshot"] if "deadlocks" in event]
    most, t = max(seen, default=(0, None))
    violations = [Example(f"Postgres had to end {most} deadlocks", t)] if most else []
    missing = None if seen else "nobody has looked at Postgres' counter"
    return found("no_deadlocks", violations, checked=len(seen), counts={"deadlocks": most}, missing=missing)

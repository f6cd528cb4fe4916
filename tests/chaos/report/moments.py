"""When a run's own clock begins."""

from __future__ import annotations

from tests.chaos.checks.evidence import Evidence


def origin_of(evidence: Evidence) -> int:
    """The workload's start (ns), from which schedules count too: the first thing asked or the first fault."""
    firsts = [events[0]["t"] for kind in ("invoke", "fault", "point") if (events := evidence.by_kind[kind])]
    return min(firsts, default=evidence.first_t)

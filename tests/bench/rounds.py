"""What a round is asked for, and what it found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from .cpu import Reading, used_between
from .ground import Appointments, Ground


class CandidateFailed(Exception):
    """The candidate could not be measured at all: it did not start, or broke off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The same for every candidate."""

    measured_s: float
    warm_up_s: float
    rounds: int
    connections: int
    workers: int
    pgbench_clients: int
    pgbench_threads: int
    users: int
    ceiling_per_s: int

    @property
    def appointments_per_round(self) -> int:
        """Enough for a candidate that charges `ceiling_per_s`."""
        return round(self.ceiling_per_s * (self.measured_s + self.warm_up_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one round of one candidate found. Anything in `faults` makes it worthless."""

    candidate: str
    charged: int
    measured_s: float
    charges_per_s: float
    latency_ms: dict[str, float]
    cpu_us_per_charge: dict[str, float]
    faults: tuple[str, ...] = field(default=())


class Candidate(Protocol):
    """Something that charges appointments."""

    name: str

    def measure(self, ground: Ground, plan: Plan, appointments: Appointments) -> Round:
        """One round on appointments that nobody has touched; leaves nothing running. Raises CandidateFailed."""


def percentiles_ms(latencies_s: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 and the longest, in milliseconds."""
    if not latencies_s:
        return {}
    ordered = sorted(latencies_s)
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {
        name: round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000, 3)
        for name, share in shares.items()
    }


def cpu_us_per_charge(
    before: Reading | None, after: Reading | None, *, charged: int, known_s: dict[str, float]
) -> dict[str, float]:
    """Microseconds of CPU that each group spent on one charge; empty where nothing is known."""
    if before is None or after is None or not charged:
        return {}
    used_s = used_between(before, after, known_s=known_s)
    return {name: round(seconds / charged * 1e6, 1) for name, seconds in used_s.items()}

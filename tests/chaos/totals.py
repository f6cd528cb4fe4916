"""What several runs amount to together: counts, the worst, and the bound that no violation in so many leaves."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.checks.evidence import Evidence
from tests.chaos.checks.takeover import takeovers_of
from tests.chaos.standing import Judged

# With no violation in n independent trials their rate is below 3/n at 95 %: (1 - 3/n)^n is about 0.05 (the rule of
# three; Hanley, Lippman-Hand: If nothing goes wrong, is everything all right?, JAMA 1983).
RULE_OF_THREE = 3.0


@dataclass(slots=True)
class Totals:
    """Sums over runs; `excess_ms`: of each takeover, how long after the end of the dead holder's lease."""

    runs: int = 0
    seconds: float = 0.0
    operations: int = 0
    charges: int = 0
    unknowns: int = 0
    unknowns_committed: int = 0
    targeted_faults: int = 0
    holders_killed_inside: int = 0
    stale_writes: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    cells: Counter[tuple[str, str]] = field(default_factory=Counter)
    overlaps: Counter[str] = field(default_factory=Counter)
    excess_ms: list[float] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)  # "seed 7: charged_at_most_once"

    def add(self, judged: Judged) -> None:
        """One more run."""
        counts = {verdict.property: verdict.counts for verdict in judged.verdicts}
        seen = counts["not_vacuous"]
        self.runs += 1
        self.seconds += judged.schedule.duration_s
        for name in (
            "operations",
            "charges",
            "unknowns",
            "unknowns_committed",
            "targeted_faults",
            "holders_killed_inside",
            "stale_writes",
        ):
            setattr(self, name, getattr(self, name) + int(seen[name]))
        evidence = Evidence(judged.events)
        self.kinds.update(fault.kind for fault in evidence.faults)
        self.cells.update((fault.point or "", fault.kind) for fault in evidence.faults if fault.is_targeted)
        for name, value in counts["overlaps_are_explained"].items():
            if name.startswith("by_"):
                self.overlaps[name.removeprefix("by_")] += int(value)
        takeovers, _ = takeovers_of(evidence)
        self.excess_ms += [takeover.excess_ms for takeover in takeovers if takeover.excess_ms is not None]
        self.broken += [f"seed {judged.schedule.seed}: {name}" for name in judged.broken]

    @property
    def faults(self) -> int:
        """Of every kind."""
        return self.kinds.total()

    def as_json(self) -> dict[str, Any]:
        """Everything, with quantiles of the takeovers and the bounds."""
        excess_ms = sorted(self.excess_ms)
        return {
            "runs": self.runs,
            "seconds": round(self.seconds, 1),
            "operations": self.operations,
            "charges": self.charges,
            "unknowns": self.unknowns,
            "unknowns_committed": self.unknowns_committed,
            "faults": self.faults,
            "targeted_faults": self.targeted_faults,
            "fault_kinds": len(self.kinds),
            "kinds": dict(self.kinds.most_common()),
            "cells_hit": len(self.cells),
            "holders_killed_inside": self.holders_killed_inside,
            "stale_writes_refused": self.stale_writes,
            "overlaps_explained": dict(self.overlaps),
            "takeovers": len(excess_ms),
            "takeover_excess_ms": {
                name: round(excess_ms[min(len(excess_ms) - 1, int(share * len(excess_ms)))], 1)
                for name, share in (("p50", 0.5), ("p99", 0.99), ("p100", 1.0))
                if excess_ms
            },
            "violations": len(self.broken),
            "broken": self.broken,
            "bounds": self.bounds(),
        }

    def bounds(self) -> dict[str, float]:
        """The rate of violations is below these at 95 %; none where something was broken."""
        if self.broken:
            return {}
        trials = {
            "operation": self.operations,
            "fault": self.faults,
            "holder killed inside": self.holders_killed_inside,
        }
        return {f"per {name}": RULE_OF_THREE / number for name, number in trials.items() if number}

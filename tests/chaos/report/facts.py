"""The run in numbers, computed from its events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.chaos.checks.evidence import Evidence
from tests.chaos.checks.verdict import Example, Verdict, exit_code
from tests.chaos.report.deaths import is_kill

RULE_OF_THREE = 3.0  # nothing seen in N independent trials: the rate is below 3/N with 95 % confidence
SCHEDULE_FIELDS = (
    "version",
    "seed",
    "instances",
    "duration_s",
    "clients",
    "lease_ttl_s",
    "lock_wait_s",
    "guard",
    "mutant",
    "world",
)


@dataclass(frozen=True, slots=True)
class Facts:
    """What the first screen says of the run. `killed_inside`: kills of a process that held at least one lock.

    `bounds`: of what, how many, the rate at 95 %.
    """

    operations: int
    duration_s: float
    operations_per_s: float
    faults: int
    kinds: int
    targeted: int
    missed: int
    kills: int
    killed_inside: int
    locks_held: int
    unknown: int
    unknown_committed: int | None
    charges: int
    commits: int
    bounds: Sequence[tuple[str, int, float]]


def facts_of(evidence: Evidence, verdicts: Sequence[Verdict]) -> Facts:
    """The numbers; a bound is stated only where every property held."""
    operations = evidence.operations
    began = min((operation.invoked for operation in operations), default=evidence.first_t)
    ended = max((each.answer["t"] for each in operations if each.answer), default=evidence.last_t)
    duration_s = (ended - began) / 1e9
    kills = [event for event in evidence.by_kind["died"] if is_kill(event)]
    inside = [event["held"] for event in kills if event.get("held")]
    commits = evidence.points["committed"]
    return Facts(
        operations=len(operations),
        duration_s=duration_s,
        operations_per_s=len(operations) / duration_s if duration_s > 0 else 0.0,
        faults=len(evidence.faults),
        kinds=len({fault.kind for fault in evidence.faults}),
        targeted=sum(fault.is_targeted for fault in evidence.faults),
        missed=len(evidence.by_kind["missed"]),
        kills=len(kills),
        killed_inside=len(inside),
        locks_held=sum(map(len, inside)),
        unknown=len(evidence.by_kind["unknown"]),
        unknown_committed=_unknown_committed(verdicts),
        charges=sum(int(event.get("charges", 0)) for event in commits),
        commits=len(commits),
        bounds=_bounds(len(inside), len(operations)) if overall(verdicts) is True else (),
    )


def overall(verdicts: Sequence[Verdict]) -> bool | None:
    """False when a property is broken, None when one that is asked for is unknown or none was judged, else True."""
    return {0: True, 1: False, 2: None}[exit_code(verdicts)] if verdicts else None


def errors_of(verdicts: Sequence[Verdict]) -> list[tuple[int, str, Example]]:
    """When, which property, what: every example of a broken property that says when it was, in order of time."""
    found = [
        (example.t, verdict.property, example)
        for verdict in verdicts
        if verdict.holds is False
        for example in verdict.examples
        if example.t is not None
    ]
    return sorted(found, key=lambda each: each[0])


def schedule_of(evidence: Evidence) -> dict[str, Any]:
    """The schedule as a file that `--schedule` takes."""
    head = {key: evidence.run[key] for key in SCHEDULE_FIELDS if evidence.run.get(key) is not None}
    return head | {
        "version": 1,
        "faults": [fault for event in evidence.by_kind["schedule"] for fault in event["faults"]],
    }


def _bounds(killed_inside: int, operations: int) -> list[tuple[str, int, float]]:
    trials = (("holders killed inside", killed_inside), ("operations", operations))
    return [(word, count, RULE_OF_THREE / count) for word, count in trials if count > RULE_OF_THREE]


def _unknown_committed(verdicts: Sequence[Verdict]) -> int | None:
    """As the checker of unknown outcomes counted it from the tables."""
    for verdict in verdicts:
        if verdict.property == "unknown_is_settled" and "committed" in verdict.counts:
            return int(verdict.counts["committed"])
    return None

"""Whoever loses its lease is told, at the latest when the lease is over by its own clock."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache

from tests.chaos.checks.evidence import FOREVER, Event, Evidence
from tests.chaos.checks.holds import Hold
from tests.chaos.checks.promises import CLOCK_RATES, MS, RESUMED_MS, SLOT_MS
from tests.chaos.checks.quiet import is_disturbed
from tests.chaos.checks.spans import Spans
from tests.chaos.checks.verdict import Counts, Example, Verdict, found

# A timer that is late is asked once more, 1 ms later, by a clock that may be slow.
TOLD_WITHIN_NS = round((SLOT_MS + 1) * MS * (1 + CLOCK_RATES))
SUSPENDED = "suspend"


def told_of_loss_in_time(evidence: Evidence) -> Verdict:
    """No holder that ran had a lease that was over for longer than a moment, or lost one that it had left."""
    if not evidence.slack.is_exact:
        return found("told_of_loss_in_time", [], checked=0, missing="the history does not tell when leases end")
    holds = [hold for hold in evidence.holds if hold.until is not None and not hold.is_outside]
    unclear = _with_one_token_at_once(holds)
    ends = {(end["i"], end["life"]): end for kind in ("died", "closing") for end in evidence.by_kind[kind]}
    violations, longest_ns = [], 0
    for hold in holds:
        if id(hold) in unclear:
            continue
        awake_ns = _knew_nothing_ns(hold, ends.get((hold.i, hold.life)), evidence)
        longest_ns = max(longest_ns, awake_ns)
        if awake_ns > TOLD_WITHIN_NS:
            late_ms = awake_ns / 1e6
            violations.append(Example(f"{hold}: its lease had been over for {late_ms:.1f} ms, untold", hold.until))
        forced = _ended_by_force(hold, ends.get((hold.i, hold.life)), evidence)
        if forced is not None:
            violations.append(Example(f"{hold}: ended by force, and not told", forced))
        if hold.lost_after is not None:
            violations.append(Example(f"{hold}: told of its loss after it had left it", hold.lost_after))
    counts: Counts = {"lost": sum(hold.until == hold.ended for hold in holds), "longest_ms": longest_ns / 1e6}
    missing = None if holds else "the history has no lease with an end"
    return found("told_of_loss_in_time", violations, checked=len(holds), counts=counts, missing=missing)


def _with_one_token_at_once(holds: list[Hold]) -> set[int]:
    """Where a process has two leases on a lock with one token, what is told of the one may be the other's.

    Whether that may be, fences_rise tells.
    """
    before: dict[tuple[object, ...], Hold] = {}
    unclear: set[int] = set()
    for hold in holds:
        key = hold.i, hold.life, hold.name, hold.fence
        last = before.get(key)
        if last is not None and (last.left is None or last.left > hold.began):
            unclear |= {id(last), id(hold)}
        before[key] = hold
    return unclear


def _knew_nothing_ns(hold: Hold, end: Event | None, evidence: Evidence) -> int:
    """For how long its process ran after the lease's end, and did not know it."""
    until = hold.until or 0
    if end is not None and hold.left is None and _had_it(end, hold):
        return 0
    left = hold.left if hold.left is not None else evidence.last_t
    if end is not None:
        left = min(left, end["t"])
    if left <= until:
        return 0
    asleep = Spans([*evidence.standstills_of(hold.i), *resuming(hold.i, evidence)])
    return left - until - asleep.within(until, left)


def _ended_by_force(hold: Hold, end: Event | None, evidence: Evidence) -> int | None:
    """When its lease was ended by force, of which it has not heard within the messages' time; None: it has, or was not.

    Asked only where nothing befell it or the store, from before the force was used until it was to have heard.
    """
    left = min(evidence.last_t if hold.left is None else hold.left, FOREVER if end is None else end["t"])
    for t in _forced_of(evidence).get((hold.name, hold.fence), ()):
        told = t + evidence.slack.delay_ns + TOLD_WITHIN_NS
        if hold.began <= t and told < left and not is_disturbed(evidence, hold.i, hold.began, told):
            return t
    return None


@lru_cache(maxsize=1)
def _forced_of(evidence: Evidence) -> dict[tuple[str, int | None], list[int]]:
    """By lock and token, when somebody was told that he has ended this lease by force."""
    found: dict[tuple[str, int | None], list[int]] = defaultdict(list)
    for point in evidence.points.get("forced", ()):
        found[point["name"], point["fence"]].append(point["t"])
    return found


def _had_it(end: Event, hold: Hold) -> bool:
    """Whether its lease was not over when it died: a grant may be confirmed without a point, and so last for longer."""
    return any(
        lock["name"] == hold.name and lock.get("fence") == hold.fence and (lock.get("left_ms") or 0) > 0
        for lock in end.get("held") or ()
    )


def resuming(instance: int | str, evidence: Evidence) -> Iterator[tuple[int, int]]:
    """After its machine was suspended timers are late, until a process has looked at its clocks."""
    for fault in evidence.faults_by_scope.get(f"instance:{instance}", ()):
        if SUSPENDED in fault.kind:
            yield fault.began, fault.ended + RESUMED_MS * MS
    for stall in evidence.by_kind["stall"]:
        if stall.get("suspended") and str(stall["i"]) == str(instance):
            yield stall["from"], stall["to"] + RESUMED_MS * MS

"""Fencing tokens rise from hold to hold, and what is written in the rows is the token of a hold."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator, Sequence

from tests.chaos.checks.causes import granted_after, taken_away
from tests.chaos.checks.evidence import Evidence
from tests.chaos.checks.holds import Hold
from tests.chaos.checks.overlap import NO_HOLDS
from tests.chaos.checks.promises import CLOCK_RATES, KEEP_MS, MS
from tests.chaos.checks.verdict import Example, Verdict, found
from tests.chaos.checks.waits import Process


def fences_rise(evidence: Evidence) -> Verdict:
    """No token comes twice for one lock, and a hold that begins after another has ended has a greater one.

    Where times are exact: whoever asks, and gets the lock at once, gets a greater one than its process has had of any
    lock before it asked, whatever the server has forgotten.
    """
    violations: list[Example] = []
    late_count = 0
    for holds in evidence.holds_by_name.values():
        fenced = [hold for hold in holds if hold.fence is not None]
        for before, after in _repeated([hold for hold in fenced if not hold.is_adopted]):
            if not is_forgotten(before, after, evidence):
                violations.append(Example(f"{after}, the fence of an earlier hold ({before.i})", after.began))
        for before, after in _falling(fenced):
            if is_excused(before, after, evidence):
                late_count += 1
            else:
                violations.append(Example(f"{after}, after {before}", after.began))
    for seen, after in _seen(evidence):
        violations.append(Example(f"{after}, of a process that had seen {seen}", after.began))
    checked = sum(hold.fence is not None for hold in evidence.holds)
    missing = None if checked else NO_HOLDS
    return found("fences_rise", violations, checked=checked, counts={"heard_late": late_count}, missing=missing)


def row_fence_rises(evidence: Evidence) -> Verdict:
    """The token of a charge, which its appointment has too, is that of a hold; or none where it had no lease."""
    charges = evidence.charges
    known = {(hold.name, hold.fence) for hold in evidence.holds}
    violations = []
    fences: dict[int, int | None] = {}
    for charge in charges or ():
        fences[charge.appointment] = charge.fence
        if (
            charge.fence is not None
            and evidence.holds
            and (f"appointment:{charge.appointment}", charge.fence) not in known
        ):
            violations.append(Example(f"appointment {charge.appointment}: fence {charge.fence} was nobody's"))
    for appointment, fence in evidence.rows("appointment_info", "id", "lock_fence") or ():
        if fence != fences.get(appointment) and charges is not None:
            text = f"appointment {appointment}: its row has fence {fence}, its charge {fences.get(appointment)}"
            violations.append(Example(text))
    missing = "the history has no final user_consume" if charges is None else None if evidence.holds else NO_HOLDS
    without = sum(charge.fence is None for charge in charges or ())
    return found(
        "row_fence_rises",
        violations,
        checked=len(charges or ()),
        counts={"without_lease": without},
        missing=missing,
    )


def _repeated(holds: Sequence[Hold]) -> Iterator[tuple[Hold, Hold]]:
    """Each hold, and before it the last one with the same token."""
    seen: dict[int | None, Hold] = {}
    for hold in holds:
        if hold.fence in seen:
            yield seen[hold.fence], hold
        seen[hold.fence] = hold


def _falling(holds: Sequence[Hold]) -> Iterator[tuple[Hold, Hold]]:
    """Each hold, and before it one that had ended when it began and yet has a greater token."""
    running: list[tuple[int, int, Hold]] = []
    greatest: Hold | None = None
    for number, hold in enumerate(holds):
        while running and running[0][0] < hold.began:
            ended = heapq.heappop(running)[2]
            if greatest is None or (ended.fence or 0) > (greatest.fence or 0):
                greatest = ended
        if greatest is not None and (hold.fence or 0) < (greatest.fence or 0):
            yield greatest, hold
        heapq.heappush(running, (hold.ended, number, hold))


def _seen(evidence: Evidence) -> Iterator[tuple[int, Hold]]:
    """Each hold with a token that is no greater than one that its process had seen as it asked, and that one."""
    if not evidence.slack.is_exact:
        return
    had: dict[Process, list[tuple[int, int]]] = defaultdict(list)
    for hold in evidence.holds:  # in the order of their beginnings
        if hold.fence is None or hold.is_adopted or hold.is_outside:
            continue
        known = had[hold.i, hold.life]
        if not hold.was_queued:
            asked = _asked_after(hold, evidence)
            seen = max((fence for began, fence in known if began < asked), default=None)
            if seen is not None and seen >= hold.fence:
                yield seen, hold
        known.append((hold.began, hold.fence))


def _asked_after(hold: Hold, evidence: Evidence) -> int:
    """The earliest moment at which it can have been asked for: its process may have stood still before it said so."""
    stood_still = evidence.standstills_of(hold.i)
    awake_ns = round(hold.waited_ns * (1 + CLOCK_RATES)) + evidence.slack.delay_ns
    asked, later = hold.began - awake_ns, hold.began
    while asked < later:
        later = asked
        asked = stood_still.begin_before(hold.began - awake_ns - stood_still.within(later, hold.began), slack=0)
    return asked


def is_excused(before: Hold, after: Hold, evidence: Evidence) -> bool:
    """Whether the later one of these holds may have the smaller token: it was granted first, or the server forgot."""
    if not evidence.slack.is_exact:
        return heard_late(after, evidence)
    # Nobody holds under a lease that is over, so what was heard after its end says nothing of the order.
    is_empty = after.ended <= after.began
    return is_empty or taken_away(after, before.began, evidence) is not None or is_forgotten(before, after, evidence)


def heard_late(hold: Hold, evidence: Evidence) -> bool:
    """Whether it may have been granted long before its holder heard of it: then the order of hearing proves nothing.

    Another hold fits between only when hearing took a lease, by a standstill or a cut link, or when the store was
    emptied just then.
    """
    from_t = hold.began - min(hold.waited_ns, 2 * evidence.lease_ttl_ns)
    deaf_ns = evidence.standstills_of(hold.i).within(from_t, hold.began)
    deaf_ns += evidence.spans_of(f"link:{hold.i}:redis").within(from_t, hold.began)
    unseen_ns = evidence.slack.unseen_ns
    if deaf_ns >= evidence.lease_ttl_ns - unseen_ns:
        return True
    # It may have been granted when its holder last listened.
    listened = evidence.standstills_of(hold.i).begin_before(hold.began, slack=unseen_ns)
    listened = evidence.spans_of(f"link:{hold.i}:redis").begin_before(listened, slack=unseen_ns)
    return evidence.store_forgot(max(from_t, listened - unseen_ns), hold.began)


def is_forgotten(before: Hold, after: Hold, evidence: Evidence) -> bool:
    """Whether the server's clock had been moved, and what it knew of the first grant was gone by the second one.

    It is gone with the data, some time after the lease's end, and when the clock is moved again: see docs/locks.md.
    """
    if not evidence.slack.is_exact:
        return False
    began = granted_after(before, evidence)
    moves = [
        t
        for fault in evidence.faults_by_scope.get("clock:redis", ())
        if fault.forgets
        for t in {fault.began, fault.ended}  # there, and back
        if t <= after.began
    ]
    is_gone = (
        evidence.store_forgot(began, after.began)
        or after.began - before.ended >= KEEP_MS * MS
        or (len(moves) > 1 and max(moves) >= began)
    )
    return bool(moves) and is_gone

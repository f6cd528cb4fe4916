"""After the last fault everything works again, and at the end nothing is left."""

from __future__ import annotations

from tests.chaos.checks.evidence import FOREVER, OK, UNKNOWN, Evidence, Operation
from tests.chaos.checks.verdict import Counts, Example, Verdict, found

# What the business refuses, however well everything works.
BUSINESS_CODES = frozenset({"insufficient-coupons", "illegal-request", "appointment-not-open"})
HEALED_WITHIN_LEASES = 2
FIRST_ENTRY_GRACE_NS = 2_000_000_000
HUNG_UP = "hung up"
LEFT = ("keys", "waiters", "idle_transactions", "sessions", "threads", "processes")


def alive_after_healing(evidence: Evidence) -> Verdict:
    """Two leases after the last fault every entry is answered by the business, and within 2 s more one was let in."""
    healing = evidence.by_kind["healing"]
    if not healing:
        return found(
            "alive_after_healing", [], checked=0, missing="the history does not tell when all faults were over"
        )
    healed = healing[-1]["t"]
    settled = healed + HEALED_WITHIN_LEASES * evidence.lease_ttl_ns
    asked = [operation for operation in evidence.enters if operation.invoked >= settled and not _hung_up(operation)]
    violations = [
        Example(f"after healing, an entry was answered with {_told(operation)}", operation.invoked, (operation.op,))
        for operation in asked
        if operation.result == UNKNOWN or not (operation.result == OK or operation.outcome in BUSINESS_CODES)
    ]
    first = min(
        (operation.ended for operation in evidence.enters if operation.result == OK and operation.ended >= healed),
        default=FOREVER,
    )
    due = settled + FIRST_ENTRY_GRACE_NS
    if first > due and (first < FOREVER or evidence.last_t > due) and evidence.enters:
        violations.append(Example("nobody was let in soon after healing", healed))
    counts: Counts = {} if first == FOREVER else {"first_entry_ms": (first - healed) / 1e6}
    missing = None if asked and first < FOREVER else "nobody was let in after healing, but nobody had the time to try"
    return found("alive_after_healing", violations, checked=len(asked), counts=counts, missing=missing)


def nothing_left_behind(evidence: Evidence) -> Verdict:
    """Once all is drained there is no key, waiter, idle transaction, session, thread or process."""
    events = evidence.by_kind["left"]
    if not events:
        return found("nothing_left_behind", [], checked=0, missing="the history does not tell what was left")
    left = events[-1]
    violations = [Example(f"{what} left behind: {left[what]}", left["t"]) for what in LEFT if left.get(what)]
    unseen = [what for what in LEFT if what not in left]
    missing = f"the history does not tell whether there were {', '.join(unseen)} left" if unseen else None
    return found("nothing_left_behind", violations, checked=len(LEFT) - len(unseen), missing=missing)


def _hung_up(operation: Operation) -> bool:
    """Whether its client did not wait for an answer."""
    return operation.answer is not None and operation.answer.get("reason") == HUNG_UP


def _told(operation: Operation) -> str:
    if operation.answer is None:
        return "nothing"
    return str(operation.outcome or operation.answer.get("reason") or operation.result)

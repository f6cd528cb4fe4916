"""Is every appointment a register that is consumed once? Exact, in one pass over the operations.

An appointment starts as not consumed. `charged` consumes it and finds it not consumed; `already_charged` finds it
consumed; insufficient-coupons finds it not consumed; an unknown operation may consume it at any time after its
invocation, or never; whatever else was answered says nothing.

So a history of one appointment has at most one moment of change, and it is linearizable exactly when that moment can
be placed. Let `charged` be the operation that was told so. With two of them there is no order. With one, the change
lies between its invocation and its answer, not after the answer of any operation that found it consumed, and not
before the invocation of any that found it not consumed. Any moment T with

    max(invocation of charged, invocations of those that found it unconsumed) <= T
    T <= min(answer of charged, answers of those that found it consumed)

serves: an operation that found it unconsumed takes effect at its invocation, which is not after T; one that found it
consumed at its answer, which is not before T; operations of a common moment may stand in either order. Without such a
T one of these has to come after the change and before it. With no `charged` the change is an unknown one's: the
invocation of the earliest takes the place of that of `charged`, and there is no answer; where nobody found it consumed
there need be no change at all. Bounds are maxima and minima: one pass, no search.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tests.chaos.checks.evidence import (
    ALREADY_CHARGED,
    CHARGED,
    FOREVER,
    NO_TIME,
    UNKNOWN,
    Evidence,
    Operation,
    op_ids,
)
from tests.chaos.checks.verdict import Example, Verdict, found

PROPERTY = "consume_once_linearizable"
NEEDS_UNCONSUMED = "insufficient-coupons"


def consume_once_linearizable(evidence: Evidence) -> Verdict:
    """There is an order of the operations, in keeping with real time, in which each answer is the right one."""
    broken = broken_appointments(evidence.operations)
    examples = _examples(evidence.operations, broken) if broken else []
    missing = None if evidence.operations else "the history has no operation"
    return found(PROPERTY, examples, checked=len(evidence.operations), missing=missing)


def broken_appointments(operations: Iterable[Operation]) -> list[int | None]:
    """The appointments whose operations fit no order. Only entries are answered with these outcomes."""
    charged: dict[int | None, Operation] = {}
    broken: set[int | None] = set()
    no_later: dict[int | None, int] = {}  # than the first answer of those that found it consumed
    no_earlier: dict[int | None, int] = {}  # than the last invocation of those that found it unconsumed
    may_from: dict[int | None, int] = {}  # the first invocation of the unknown ones
    for operation in operations:
        outcome = operation.outcome
        if outcome == ALREADY_CHARGED:
            ended = operation.ended
            if ended < no_later.get(operation.appointment, FOREVER):
                no_later[operation.appointment] = ended
        elif outcome == CHARGED:
            if operation.appointment in charged:
                broken.add(operation.appointment)
            charged[operation.appointment] = operation
        elif operation.result == UNKNOWN:
            if operation.f == "enter" and operation.invoked < may_from.get(operation.appointment, FOREVER):
                may_from[operation.appointment] = operation.invoked
        elif outcome == NEEDS_UNCONSUMED and operation.invoked > no_earlier.get(operation.appointment, NO_TIME):
            no_earlier[operation.appointment] = operation.invoked
    for appointment, charging in charged.items():
        not_before = max(charging.invoked, no_earlier.get(appointment, NO_TIME))
        if not_before > min(charging.ended, no_later.get(appointment, FOREVER)):
            broken.add(appointment)
    for appointment, not_after in no_later.items():
        if appointment not in charged:
            not_before = max(may_from.get(appointment, FOREVER), no_earlier.get(appointment, NO_TIME))
            if not_before > not_after:
                broken.add(appointment)
    return list(broken)


def _examples(operations: Iterable[Operation], broken: Sequence[int | None]) -> list[Example]:
    by_appointment: dict[int | None, list[Operation]] = {appointment: [] for appointment in broken}
    for operation in operations:
        if operation.f == "enter" and operation.appointment in by_appointment:
            by_appointment[operation.appointment].append(operation)
    return [_example(appointment, by_appointment[appointment]) for appointment in broken]


def _example(appointment: int | None, operations: Sequence[Operation]) -> Example:
    charged = [operation for operation in operations if operation.outcome == CHARGED]
    consumed = [operation for operation in operations if operation.outcome == ALREADY_CHARGED]
    unconsumed = [operation for operation in operations if operation.outcome == NEEDS_UNCONSUMED]
    if len(charged) > 1:
        text = f"appointment {appointment}: {len(charged)} operations were told that they charged"
        return Example(text, charged[1].ended, op_ids(charged))
    first = min(consumed, key=lambda operation: operation.ended, default=None)
    last = max(unconsumed, key=lambda operation: operation.invoked, default=None)
    shown = [operation for operation in (*charged, first, last) if operation is not None]
    if not charged and last is None:
        text = f"appointment {appointment}: already charged, but nothing before can have charged"
    else:
        text = f"appointment {appointment}: no moment of the charge fits these answers"
    return Example(text, shown[0].ended, op_ids(shown))

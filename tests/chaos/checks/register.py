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

serves: whoever found it unconsumed takes effect at the later of T and its own invocation's side before T, whoever
found it consumed after T, both inside their intervals; operations with a common moment may stand in either order. If
no such T exists, two operations contradict each other in real time. With no `charged`, the change is an unknown one's:
its invocation takes the place of the first bound (the earliest unknown is the best choice, since it has no answer), or,
where nobody found it consumed, there need be no change at all. Bounds are maxima and minima: one pass, no search.
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
    """The appointments whose operations fit no order."""
    charged: dict[int | None, tuple[int, int]] = {}
    broken: set[int | None] = set()
    no_later: dict[int | None, int] = {}  # than the first answer of those that found it consumed
    no_earlier: dict[int | None, int] = {}  # than the last invocation of those that found it unconsumed
    may_from: dict[int | None, int] = {}  # the first invocation of the unknown ones
    for _, f, appointment, _, invoked, ended, result, outcome, _, _ in operations:
        if f != "enter":
            continue
        if outcome == ALREADY_CHARGED:
            if ended < no_later.get(appointment, FOREVER):
                no_later[appointment] = ended
        elif outcome == CHARGED:
            if appointment in charged:
                broken.add(appointment)
            charged[appointment] = (invoked, ended)
        elif result == UNKNOWN:
            if invoked < may_from.get(appointment, FOREVER):
                may_from[appointment] = invoked
        elif outcome == NEEDS_UNCONSUMED and invoked > no_earlier.get(appointment, NO_TIME):
            no_earlier[appointment] = invoked
    for appointment, (invoked, ended) in charged.items():
        if max(invoked, no_earlier.get(appointment, NO_TIME)) > min(ended, no_later.get(appointment, FOREVER)):
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

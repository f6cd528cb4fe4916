"""Charges against answers: at most one an appointment, none lost that was told of, none made that was denied."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from tests.chaos.checks.evidence import CHARGED, NO_ANSWERS, OK, REFUSED, Charge, Evidence, Operation, op_ids
from tests.chaos.checks.verdict import Example, Verdict, found

NO_CHARGES = "the history has no final user_consume"
NO_ENTRIES = "the history has no final appointment_action"


def charged_at_most_once(evidence: Evidence) -> Verdict:
    """An appointment has at most one charge in the table, and at most one operation was told that it charged."""
    told: dict[int, list[Operation]] = defaultdict(list)
    for operation in _told_charged(evidence):
        if operation.appointment is not None:
            told[operation.appointment].append(operation)
    violations = [
        Example(f"appointment {appointment} has {len(charges)} charges", ops=op_ids(told.get(appointment, [])))
        for appointment, charges in evidence.charges_by_appointment.items()
        if len(charges) > 1
    ]
    violations += [
        Example(
            f"appointment {appointment}: {len(operations)} operations were told that they charged",
            operations[1].ended,
            op_ids(operations),
        )
        for appointment, operations in told.items()
        if len(operations) > 1
    ]
    counts = {"charges": len(evidence.charges or ()), "told": sum(map(len, told.values()))}
    missing = NO_CHARGES if evidence.charges is None else None
    return found(
        "charged_at_most_once",
        violations,
        checked=len(evidence.charges_by_appointment.keys() | told.keys()),
        counts=counts,
        missing=missing,
    )


def refused_not_charged(evidence: Evidence) -> Verdict:
    """Who was refused has neither charge nor ENTER row by it; who was refused but told of a charge has one."""
    violations = [*_refused_with_entry(evidence), *_refused_with_charge(evidence), *_charged_but_not(evidence)]
    refused = sum(operation.result == REFUSED for operation in evidence.enters)
    missing = NO_CHARGES if evidence.charges is None else NO_ENTRIES if evidence.entry_counts is None else None
    return found("refused_not_charged", violations, checked=refused, missing=missing)


def unknown_is_settled(evidence: Evidence) -> Verdict:
    """An unknown operation is in the tables as a whole or not at all: no charge of its payer without the ENTER row."""
    entries = evidence.entry_counts or {}
    unknown = committed = charged = 0
    violations = []
    for pair, (oks, unknowns, _) in evidence.answers.items():
        unknown += len(unknowns)
        committed += max(0, min(len(unknowns), entries.get(pair, 0) - len(oks)))
    for charge in _charges_nobody_was_told_of(evidence):
        oks, unknowns, _ = evidence.answers.get((charge.appointment, charge.payer), NO_ANSWERS)
        charged += bool(unknowns)
        if unknowns and entries.get((charge.appointment, charge.payer), 0) <= len(oks):
            text = f"appointment {charge.appointment}: charged by an unknown operation whose ENTER row is missing"
            violations.append(Example(text, unknowns[0].invoked, op_ids(unknowns)))
    missing = NO_CHARGES if evidence.charges is None else NO_ENTRIES if evidence.entry_counts is None else None
    return found(
        "unknown_is_settled",
        violations if missing is None else [],
        checked=unknown,
        counts={"unknowns": unknown, "committed": committed, "charged": charged},
        missing=missing,
    )


def _told_charged(evidence: Evidence) -> Iterator[Operation]:
    return (operation for operation in evidence.enters if operation.result == OK and operation.outcome == CHARGED)


def _charges_nobody_was_told_of(evidence: Evidence) -> list[Charge]:
    told = {operation.appointment for operation in _told_charged(evidence)}
    return [charge for charge in evidence.charges or () if charge.appointment not in told]


def _refused_with_entry(evidence: Evidence) -> Iterator[Example]:
    for pair, rows in (evidence.entry_counts or {}).items():
        oks, unknowns, refused = evidence.answers.get(pair, NO_ANSWERS)
        if refused and rows > len(oks) + len(unknowns):
            text = f"appointment {pair[0]}, user {pair[1]}: a refused operation left an ENTER row"
            yield Example(text, refused[0].ended, op_ids(refused))


def _refused_with_charge(evidence: Evidence) -> Iterator[Example]:
    """A charge of which nobody was told, and whose payer has no unknown operation, is that of one that was refused."""
    for charge in _charges_nobody_was_told_of(evidence):
        _, unknowns, refused = evidence.answers.get((charge.appointment, charge.payer), NO_ANSWERS)
        if refused and not unknowns:
            text = f"appointment {charge.appointment}: user {charge.payer} was refused, and charged"
            yield Example(text, refused[0].ended, op_ids(refused))


def _charged_but_not(evidence: Evidence) -> Iterator[Example]:
    if evidence.charges is None:
        return
    for operation in evidence.enters:
        answer = operation.answer
        if answer is None or answer["e"] != REFUSED or answer.get("charged") is not True:
            continue
        charges = evidence.charges_by_appointment.get(operation.appointment or 0, ())
        if all(charge.payer != operation.user for charge in charges):
            text = f"appointment {operation.appointment}: refused as charged, and user {operation.user} was not charged"
            yield Example(text, answer["t"], (operation.op,))

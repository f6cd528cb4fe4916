"""What was told is there: each charge and entry that was answered with 2xx is in the tables after all crashes."""

from __future__ import annotations

from collections.abc import Iterator

from tests.chaos.checks.charges import NO_CHARGES, NO_ENTRIES
from tests.chaos.checks.evidence import ALREADY_CHARGED, CHARGED, OK, Charge, Evidence, Operation, Pair, op_ids
from tests.chaos.checks.verdict import Example, Verdict, found


def acknowledged_is_there(evidence: Evidence) -> Verdict:
    """Each charge told of is in user_consume as told, each entry has its row, and is_consume says what is true."""
    told = [operation for operation in evidence.enters if operation.result == OK]
    violations: list[Example] = []
    if evidence.charges is not None:
        violations += _lost_charges(evidence, told)
        violations += _wrong_flags(evidence)
    if evidence.entry_counts is not None:
        violations += _lost_entries(evidence, evidence.entry_counts)
    violations += _lost_grants(evidence)
    missing = NO_CHARGES if evidence.charges is None else NO_ENTRIES if evidence.entry_counts is None else None
    charged = sum(operation.outcome == CHARGED for operation in told)
    return found(
        "acknowledged_is_there", violations, checked=len(told), counts={"charges_told": charged}, missing=missing
    )


def _lost_charges(evidence: Evidence, told: list[Operation]) -> Iterator[Example]:
    for operation in told:
        if operation.outcome not in (CHARGED, ALREADY_CHARGED):
            continue
        charges = evidence.charges_by_appointment.get(operation.appointment or 0, [])
        if not any(_is_as_told(operation, charge) for charge in charges):
            what = "is not there" if not charges else "is another one in the table"
            text = f"appointment {operation.appointment}: a charge that was told of {what}"
            yield Example(text, operation.ended, (operation.op,))


def _is_as_told(operation: Operation, charge: Charge) -> bool:
    """What the answer left out is as told."""
    answer = operation.answer or {}
    told = (answer.get("charge_id"), answer.get("payer"), answer.get("count"))
    is_same = all(value is None or value == there for value, there in zip(told, charge[0:1] + charge[2:4], strict=True))
    return is_same and (operation.outcome != CHARGED or charge.payer == operation.user)


def _lost_entries(evidence: Evidence, entries: dict[Pair, int]) -> Iterator[Example]:
    for pair, (oks, _, _) in evidence.answers.items():
        if entries.get(pair, 0) < len(oks):
            text = f"appointment {pair[0]}, user {pair[1]}: let in {len(oks)} times, {entries.get(pair, 0)} ENTER rows"
            yield Example(text, oks[-1].ended, op_ids(oks))


def _wrong_flags(evidence: Evidence) -> Iterator[Example]:
    for appointment, is_consume in evidence.rows("appointment_info", "id", "is_consume") or ():
        if bool(is_consume) != (appointment in evidence.charges_by_appointment):
            there = "has no charge" if is_consume else "has a charge"
            yield Example(f"appointment {appointment}: is_consume is {bool(is_consume)}, and it {there}")


def _lost_grants(evidence: Evidence) -> Iterator[Example]:
    """Grants whose operation names its reference."""
    rows = evidence.rows("coupon_grant", "user_id", "count", "reference")
    if rows is None:
        return
    granted = {reference: (user, count) for user, count, reference in rows}
    for operation in evidence.operations:
        reference = operation.invocation.get("reference")
        if operation.f != "grant" or operation.result != OK or reference is None:
            continue
        there = granted.get(reference)
        count = operation.invocation.get("count")
        if there is None or (operation.user, count or there[1]) != there:
            yield Example(f"the grant {reference} that was told of is not there", operation.ended, (operation.op,))

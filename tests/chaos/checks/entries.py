"""ENTER rows against answers."""

from __future__ import annotations

from collections.abc import Iterator

from tests.chaos.checks.charges import NO_CHARGES, NO_ENTRIES
from tests.chaos.checks.evidence import NO_ANSWERS, Evidence, op_ids
from tests.chaos.checks.verdict import Example, Verdict, found


def entries_match_answers(evidence: Evidence) -> Verdict:
    """Whoever was let in has one ENTER row for each time, an unknown one at most one, and each payer has one."""
    violations = [*_miscounted(evidence), *_charges_without_entry(evidence)]
    missing = NO_ENTRIES if evidence.entry_counts is None else NO_CHARGES if evidence.charges is None else None
    rows = sum((evidence.entry_counts or {}).values())
    return found("entries_match_answers", violations, checked=rows, missing=missing)


def _miscounted(evidence: Evidence) -> Iterator[Example]:
    counts = evidence.entry_counts
    if counts is None:
        return
    for pair in counts.keys() | evidence.answers.keys():
        oks, unknowns, refused = evidence.answers.get(pair, NO_ANSWERS)
        rows = counts.get(pair, 0)
        if not len(oks) <= rows <= len(oks) + len(unknowns):
            text = (
                f"appointment {pair[0]}, user {pair[1]}: {rows} ENTER rows for {len(oks)} entries"
                f" and {len(unknowns)} unknown ones"
            )
            operations = [*oks, *unknowns, *refused]
            yield Example(text, operations[0].invoked if operations else None, op_ids(operations))


def _charges_without_entry(evidence: Evidence) -> Iterator[Example]:
    counts = evidence.entry_counts
    if counts is None:
        return
    for charge in evidence.charges or ():
        if not counts.get((charge.appointment, charge.payer)):
            yield Example(f"appointment {charge.appointment}: user {charge.payer} paid without an ENTER row")

"""The properties in the words of a reader who has never seen the code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.chaos.checks.verdict import ASKED, Verdict

MOST_OPS = 8
MEANINGS: Mapping[str, str] = {
    "charged_at_most_once": "No appointment was charged twice.",
    "acknowledged_is_there": "Whatever was answered with success is in the tables, after every crash.",
    "refused_not_charged": "Whoever was told that nothing was charged was not charged.",
    "unknown_is_settled": "Each request without an answer either happened entirely or not at all, as the tables tell.",
    "consume_once_linearizable": "All answers about one appointment fit one order in time in which it is charged once.",
    "balances_conserved": "In every snapshot, coupons granted are those spent and those left, and none is below zero.",
    "entries_match_answers": "Each entry that was answered stands in the log, and none that was refused.",
    "holders_do_not_overlap": "Two never held one lock at a time unless a lease had lapsed.",
    "overlaps_are_explained": "Each overlap under faults has a cause in the history.",
    "fences_rise": "Each new holder of a lock got a higher fencing token, across restarts and wipes of Redis.",
    "no_foreign_release": "Nobody released a lease that another held.",
    "takeover_in_time": "Where a waiter stood, it acquired within 50 ms after the dead holder's lease.",
    "alive_after_healing": "Within two leases after the last fault was over, requests succeeded again.",
    "nothing_left_behind": "No key, waiter, open transaction, thread or process was left at the end.",
    "stale_writes_refused": "A register guarded by fencing tokens accepted no write of a holder whose lease was over.",
    "row_fence_rises": "The fencing token that stands in a row never went down.",
    "not_vacuous": "Enough was done and enough went wrong for the other verdicts to mean something.",
}


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table of properties."""

    name: str
    meaning: str
    holds: bool | None
    checked: int
    counts: Sequence[tuple[str, str]]
    examples: Sequence[tuple[str, float | None, str]]  # in words, seconds from the start, operations
    asked: bool  # whether the run is worth less without an answer


def properties_of(verdicts: Sequence[Verdict], began: int) -> list[Row]:
    """What is broken first, then what should be known and is not, then the rest, each in the checkers' order."""
    rows = [_row(verdict, began) for verdict in verdicts]
    return sorted(rows, key=lambda row: (row.holds is not False, row.holds is True or not row.asked))


def _row(verdict: Verdict, began: int) -> Row:
    return Row(
        name=verdict.property,
        meaning=MEANINGS.get(verdict.property, ""),
        holds=verdict.holds,
        checked=verdict.checked,
        counts=[(name.replace("_", " "), _figure(count)) for name, count in verdict.counts.items()],
        examples=[
            (example.text, None if example.t is None else (example.t - began) / 1e9, _shown(example.ops))
            for example in verdict.examples
        ],
        asked=verdict.property in ASKED,
    )


def _shown(ops: Sequence[str]) -> str:
    more = f" and {len(ops) - MOST_OPS:,} more" if len(ops) > MOST_OPS else ""
    return ", ".join(ops[:MOST_OPS]) + more


def _figure(count: int | float) -> str:
    return f"{count:,}" if isinstance(count, int) else f"{count:,.4g}"

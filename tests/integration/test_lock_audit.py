"""lock_audit: one row a call, marked by what became of it, newest first."""

from __future__ import annotations

from db.database import Database
from db.lock_audit import FORCE_RELEASE, REFUSED, UNKNOWN, entries, mark_refused, mark_unknown, note


def noted(database: Database, reason: str) -> int:
    return note(database, actor="7", lock_name="x:1", reason=reason, holder="api-1 host 1 r-1", fencing_token=2**53)


def test_what_was_noted_is_marked_by_what_became_of_it(database: Database) -> None:
    first, second, third = [noted(database, reason) for reason in ("one", "two", "three")]
    mark_refused(database, first)
    mark_unknown(database, second)

    page, more = entries(database, limit=10)

    assert more is None
    assert [(entry.id, entry.action, entry.reason) for entry in page] == [
        (third, FORCE_RELEASE, "three"),
        (second, UNKNOWN, "two"),
        (first, REFUSED, "one"),
    ]
    assert {(entry.actor, entry.lock_name, entry.holder, entry.fencing_token) for entry in page} == {
        ("7", "x:1", "api-1 host 1 r-1", 2**53)
    }
    assert page[0].at >= page[-1].at


def test_pages_follow_each_other_without_gap_or_repeat_while_more_is_written(database: Database) -> None:
    written = [noted(database, str(number)) for number in range(7)]
    seen, before = [], None
    while True:
        page, before = entries(database, limit=3, before=before)
        seen += [entry.id for entry in page]
        noted(database, "meanwhile")
        if before is None:
            break

    assert seen == written[::-1]
    assert entries(database, limit=3, before=min(written)) == ([], None)

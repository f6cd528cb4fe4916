"""Who waits for an appointment's row in Postgres, seen from a session that waits for nobody."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import psycopg2
import pytest

from db.database import Database
from db.recent_charges import recent_charges
from db.row_locks import row_locks
from tests.harness import Rows, wait_until

LOCKING = "SELECT FROM appointment_info WHERE id = %s FOR UPDATE"
Waits = Callable[[str, int], int]


@contextmanager
def session(url: str, name: str) -> Iterator[Any]:
    """A connection with a name that can be seen in pg_stat_activity."""
    connection = psycopg2.connect(url, application_name=name)
    try:
        yield connection
    finally:
        connection.close()


@pytest.fixture
def waits(database_url: str) -> Iterator[Waits]:
    """Starts a session that waits for the row until the end; its pid."""
    with ExitStack() as stack:

        def start(name: str, appointment_id: int) -> int:
            connection = stack.enter_context(session(database_url, name))
            thread = threading.Thread(target=_lock, args=(connection, appointment_id), daemon=True)
            thread.start()
            stack.callback(thread.join, 30)
            stack.callback(connection.cancel)
            pid: int = connection.info.backend_pid
            return pid

        yield start


def _lock(connection: Any, appointment_id: int) -> None:
    with connection.cursor() as cursor, suppress(psycopg2.Error):
        cursor.execute(LOCKING, (appointment_id,))


def test_sessions_that_wait_for_a_row_are_named_in_order_with_whom_they_wait_for(
    database: Database, database_url: str, rows: Rows, waits: Waits
) -> None:
    wanted, another = rows.appointment(1, 2), rows.appointment(1, 2)
    with session(database_url, "holder") as holder, holder.cursor() as cursor:
        cursor.execute(LOCKING, (wanted,))
        cursor.execute(LOCKING, (another,))
        first = waits("first in line", wanted)
        wait_until(lambda: len(row_locks(database, wanted).blocked) == 1, what="the first to wait")
        second = waits("second in line", wanted)
        wait_until(lambda: len(row_locks(database, wanted).blocked) == 2, what="the second to wait")
        waits("elsewhere", another)
        wait_until(lambda: len(row_locks(database, another).blocked) == 1, what="one to wait for another row")

        seen = row_locks(database, wanted)

        assert [(each.pid, each.application_name) for each in seen.blocked] == [
            (first, "first in line"),
            (second, "second in line"),
        ]
        assert seen.blocked[0].blocked_by == (holder.info.backend_pid,)
        assert first in seen.blocked[1].blocked_by
        assert seen.blocked[0].waited_s >= seen.blocked[1].waited_s >= 0
        assert [(each.pid, each.application_name, each.state) for each in seen.blocking] == [
            (holder.info.backend_pid, "holder", "idle in transaction")
        ]
        assert seen.blocking[0].transaction_s is not None


def test_a_row_that_nobody_waits_for_and_one_that_is_not_there_have_nobody(
    database: Database, database_url: str, rows: Rows
) -> None:
    appointment_id = rows.appointment(1, 2)
    with session(database_url, "holder") as holder, holder.cursor() as cursor:
        cursor.execute(LOCKING, (appointment_id,))

        for each in (appointment_id, appointment_id + 1):
            assert row_locks(database, each).blocked == ()
            assert row_locks(database, each).blocking == ()


def test_charges_come_newest_first_and_page_by_page(database: Database, rows: Rows) -> None:
    for appointment_id in (11, 12, 13):
        rows.run(
            "INSERT INTO user_consume (appointment_id, user_id, other_user_id, coupon_id, prop_id, count, lock_fence)"
            " VALUES (%s, 1, 2, 1, 1, 3, 99)",
            appointment_id,
        )

    page, before = recent_charges(database, limit=2)
    rest, end = recent_charges(database, limit=2, before=before)

    assert [each.appointment_id for each in page] == [13, 12]
    assert [each.appointment_id for each in rest] == [11]
    assert end is None
    assert (page[0].payer_id, page[0].other_user_id, page[0].count, page[0].fencing_token) == (1, 2, 3, 99)

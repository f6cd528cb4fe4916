"""One way to run a transaction: what it raises says whether anything was written."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import psycopg2
import pytest
import sqlalchemy as sa

from db.answers import translated, translated_at_commit
from db.database import Database, DatabaseLimits, connector
from db.errors import CommitUnknown, Conflict, DatabaseDown, DatabaseError, TimedOut
from tests.harness import Rows, wait_until
from tests.proxy import Cut, Proxy, postgres_proxy
from tests.servers.processes import unused_port


@pytest.fixture
def notes(rows: Rows) -> Rows:
    """The database with a table to write into, whose `once` may be written once, and `late` is judged at COMMIT."""
    rows.run("CREATE TABLE note (text text UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    return rows


@pytest.fixture
def proxied(database_url: str) -> Iterator[tuple[Proxy, Database]]:
    """The database as seen through a proxy."""
    proxy, url = postgres_proxy(database_url)
    database = Database(url)
    with proxy:
        yield proxy, database
        database.close()


def quick(database_url: str, **limits: float) -> Database:
    """A database with short limits."""
    return Database(database_url, limits=DatabaseLimits(**limits))  # type: ignore[arg-type]


def note(text: str) -> sa.TextClause:
    return sa.text(f"INSERT INTO note VALUES ('{text}')")


def test_what_the_work_returns_is_returned_and_written(database: Database, notes: Rows) -> None:
    def work(connection: sa.Connection) -> str:
        connection.execute(note("a"))
        return "done"

    assert database.transaction(work) == "done"
    assert notes.run("SELECT text FROM note") == [("a",)]


def test_an_error_of_the_work_passes_through_and_nothing_is_written(database: Database, notes: Rows) -> None:
    def work(connection: sa.Connection) -> None:
        connection.execute(note("a"))
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        database.transaction(work)
    assert notes.run("SELECT text FROM note") == []
    # The connection went back to the pool clean.
    assert database.transaction(lambda connection: connection.scalar(sa.text("SELECT 1"))) == 1


def test_a_statement_that_takes_too_long_times_out(database_url: str) -> None:
    with closing(quick(database_url, statement_timeout_s=0.1)) as database, pytest.raises(TimedOut):
        database.transaction(lambda connection: connection.execute(sa.text("SELECT pg_sleep(60)")))


def test_a_row_held_by_another_session_times_out(database_url: str, notes: Rows) -> None:
    notes.run("INSERT INTO note VALUES ('a')")
    with closing(psycopg2.connect(database_url)) as other, closing(quick(database_url, row_lock_timeout_s=0.1)) as own:
        other.cursor().execute("SELECT * FROM note FOR UPDATE")
        with pytest.raises(TimedOut):
            own.transaction(lambda connection: connection.execute(sa.text("SELECT * FROM note FOR UPDATE")))


def test_limits_of_less_than_a_millisecond_are_limits_still(database_url: str) -> None:
    limits = {
        "statement_timeout_s": 0.0001,
        "row_lock_timeout_s": 0.0001,
        "idle_in_transaction_timeout_s": 0.0001,
    }
    with closing(quick(database_url, **limits)) as database, pytest.raises((TimedOut, DatabaseDown)):
        # Postgres takes a timeout of 0 as none.
        database.transaction(lambda connection: connection.execute(sa.text("SELECT pg_sleep(1)")))


def test_a_full_pool_times_out(database_url: str) -> None:
    with closing(quick(database_url, pool_size=1, pool_wait_s=0.1)) as database:

        def work(connection: sa.Connection) -> None:
            with pytest.raises(TimedOut, match="no database connection"):
                database.transaction(lambda inner: None)

        database.transaction(work)


def test_a_dead_port_is_down() -> None:
    with (
        closing(quick(f"postgresql://u@127.0.0.1:{unused_port()}/d", connect_timeout_s=1)) as database,
        pytest.raises(DatabaseDown) as caught,
    ):
        database.transaction(lambda connection: None)
    assert "\n" not in str(caught.value)


def test_a_connection_killed_in_the_middle_is_down_and_nothing_is_written(database: Database, notes: Rows) -> None:
    def work(connection: sa.Connection) -> None:
        connection.execute(note("a"))
        notes.run("SELECT pg_terminate_backend(%s)", connection.scalar(sa.text("SELECT pg_backend_pid()")))
        connection.execute(note("b"))

    with pytest.raises(DatabaseDown):
        database.transaction(work)
    assert notes.run("SELECT text FROM note") == []
    assert database.transaction(lambda connection: connection.scalar(sa.text("SELECT 1"))) == 1


def test_a_holder_that_does_nothing_for_too_long_loses_its_rows_and_is_told(database_url: str, notes: Rows) -> None:
    with closing(quick(database_url, idle_in_transaction_timeout_s=0.1)) as database:

        def work(connection: sa.Connection) -> None:
            connection.execute(note("a"))
            pid = connection.scalar(sa.text("SELECT pg_backend_pid()"))
            wait_until(lambda: not notes.run("SELECT 1 FROM pg_stat_activity WHERE pid = %s", pid))
            connection.execute(note("b"))

        with pytest.raises(DatabaseDown):
            database.transaction(work)
        assert notes.run("SELECT text FROM note") == []


def test_idling_before_commit_is_no_unknown_commit(database_url: str, notes: Rows) -> None:
    with closing(quick(database_url, idle_in_transaction_timeout_s=0.1)) as database:

        def work(connection: sa.Connection) -> None:
            connection.execute(note("a"))
            pid = connection.scalar(sa.text("SELECT pg_backend_pid()"))
            wait_until(lambda: not notes.run("SELECT 1 FROM pg_stat_activity WHERE pid = %s", pid))

        with pytest.raises((DatabaseDown, CommitUnknown)):
            database.transaction(work)
        assert notes.run("SELECT text FROM note") == []


def test_an_error_that_the_server_tells_at_commit_does_not_say_what_became_of_it(
    database: Database, notes: Rows
) -> None:
    notes.run("INSERT INTO note VALUES ('a')")

    with pytest.raises(CommitUnknown):
        database.transaction(lambda connection: connection.execute(note("a")))

    assert notes.run("SELECT count(*) FROM note") == [(1,)]


def test_a_deadlock_is_run_again(database: Database, database_url: str, notes: Rows) -> None:
    notes.run("INSERT INTO note VALUES ('a'), ('b')")
    runs = 0
    with closing(psycopg2.connect(database_url)) as other:
        cursor = other.cursor()
        cursor.execute("SET deadlock_timeout = '1min'")  # so that it is always ours that is told
        other_has_both = threading.Thread(target=lambda: _lock_both(other, "a"))

        def work(connection: sa.Connection) -> None:
            nonlocal runs
            runs += 1
            if runs == 1:
                connection.execute(sa.text("SET LOCAL deadlock_timeout = '10ms'"))
                cursor.execute("SELECT 1 FROM note WHERE text = 'b' FOR UPDATE")
                connection.execute(sa.text("SELECT 1 FROM note WHERE text = 'a' FOR UPDATE"))
                other_has_both.start()
                wait_until(lambda: notes.one("SELECT count(*) FROM pg_locks WHERE NOT granted"), what="the other")
            connection.execute(sa.text("SELECT 1 FROM note WHERE text = 'b' FOR UPDATE"))
            connection.execute(note("c"))

        database.transaction(work)
        other_has_both.join()

    assert runs == 2
    assert notes.run("SELECT text FROM note ORDER BY text") == [("a",), ("b",), ("c",)]


@pytest.mark.parametrize("code", ["40001", "40P01"])
def test_a_conflict_is_run_again_so_often_and_no_more(database_url: str, notes: Rows, code: str) -> None:
    runs: list[int] = []

    def work(connection: sa.Connection) -> None:
        runs.append(1)
        connection.execute(note("a"))
        connection.execute(sa.text(f"DO $$ BEGIN RAISE EXCEPTION 'again' USING ERRCODE = '{code}'; END $$"))

    with closing(quick(database_url, conflict_retries=2)) as database, pytest.raises(Conflict):
        database.transaction(work)

    assert len(runs) == 3
    assert notes.run("SELECT text FROM note") == []


def test_a_statement_that_is_wrong_is_a_database_error_of_one_line(database: Database) -> None:
    with pytest.raises(DatabaseError) as caught:
        database.transaction(lambda connection: connection.execute(sa.text("SELECT 1 FROM nowhere")))

    assert type(caught.value) is DatabaseError
    assert "nowhere" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("cut", "written"), [(Cut.AFTER_ANSWERED, 1), (Cut.BEFORE_FORWARDING, 0)])
def test_a_connection_lost_during_commit_is_unknown(
    proxied: tuple[Proxy, Database], notes: Rows, cut: Cut, written: int
) -> None:
    proxy, database = proxied
    proxy.cut_once(cut, at=b"COMMIT")

    with pytest.raises(CommitUnknown):
        database.transaction(lambda connection: connection.execute(note("a")))

    assert notes.one("SELECT count(*) FROM note") == written


def test_a_pooled_connection_that_died_is_replaced(proxied: tuple[Proxy, Database]) -> None:
    proxy, database = proxied
    select = sa.text("SELECT 1")
    assert database.transaction(lambda connection: connection.scalar(select)) == 1
    proxy.go_away()
    with pytest.raises(DatabaseDown):
        database.transaction(lambda connection: connection.scalar(select))
    with pytest.raises(DatabaseDown):
        database.transaction(lambda connection: connection.scalar(select))

    proxy.come_back()

    assert database.transaction(lambda connection: connection.scalar(select)) == 1


def test_a_server_that_takes_connections_and_says_nothing_is_down_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://u@127.0.0.1:{silent.getsockname()[1]}/d"
        with closing(quick(url, connect_timeout_s=1)) as database:
            started_at_s = time.monotonic()
            with pytest.raises(DatabaseDown):
                database.transaction(lambda connection: None)
            assert time.monotonic() - started_at_s < 30


# Connections beside the engine


def test_a_connection_beside_the_engine_has_the_same_limits(database_url: str) -> None:
    limits = DatabaseLimits(statement_timeout_s=0.75, row_lock_timeout_s=0.5, idle_in_transaction_timeout_s=3)
    names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "TimeZone", "application_name")

    def settings(cursor: psycopg2.extensions.cursor) -> list[str]:
        found = []
        for name in names:
            cursor.execute(f"SHOW {name}")
            row = cursor.fetchone()
            assert row is not None
            found.append(row[0])
        return found

    with closing(connector(database_url, limits).connect()) as beside, beside.cursor() as cursor:
        told = settings(cursor)
    with closing(Database(database_url, limits=limits)) as database:
        by_engine = database.transaction(
            lambda connection: [str(connection.scalar(sa.text(f"SHOW {name}"))) for name in names]
        )

    assert told == by_engine == ["750ms", "500ms", "3s", "UTC", "chargeonce"]


@pytest.mark.parametrize(
    ("code", "before_commit", "at_commit"),
    [
        ("40001", Conflict, Conflict),
        ("40P01", Conflict, Conflict),
        ("55P03", TimedOut, CommitUnknown),
        ("57014", TimedOut, CommitUnknown),
        ("25P03", DatabaseDown, CommitUnknown),
        ("57P01", DatabaseDown, CommitUnknown),
        ("08006", DatabaseDown, CommitUnknown),
        ("XX000", DatabaseDown, CommitUnknown),
        ("40003", DatabaseDown, CommitUnknown),
        ("25006", DatabaseDown, CommitUnknown),
        ("26000", DatabaseDown, CommitUnknown),
        ("42P05", DatabaseDown, CommitUnknown),
        ("0A000", DatabaseDown, CommitUnknown),
        ("53100", DatabaseDown, CommitUnknown),
        ("23514", DatabaseError, CommitUnknown),
        ("42P01", DatabaseError, CommitUnknown),
    ],
)
def test_the_drivers_own_error_means_what_it_means_through_the_engine(
    database: Database, database_url: str, code: str, before_commit: type, at_commit: type
) -> None:
    raising = f"DO $$ BEGIN RAISE EXCEPTION 'so it is' USING ERRCODE = '{code}'; END $$"
    with closing(psycopg2.connect(database_url)) as connection, pytest.raises(psycopg2.Error) as caught:
        connection.cursor().execute(raising)

    assert type(translated(caught.value)) is before_commit
    assert type(translated_at_commit(caught.value)) is at_commit
    assert str(translated(caught.value)) == "so it is"
    with pytest.raises(before_commit):
        database.transaction(lambda through: through.execute(sa.text(raising)))


def test_a_lost_connection_is_down_before_commit_and_unknown_at_it() -> None:
    for error in (psycopg2.OperationalError("server closed"), psycopg2.InterfaceError("connection already closed")):
        assert type(translated(error)) is DatabaseDown
        assert type(translated_at_commit(error)) is CommitUnknown


def _lock_both(other: psycopg2.extensions.connection, text: str) -> None:
    with other.cursor() as cursor:
        cursor.execute("SELECT 1 FROM note WHERE text = %s FOR UPDATE", (text,))
    other.rollback()

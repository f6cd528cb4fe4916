"""What a server answers says what was written, and never keeps a connection that is of no more use."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing
from typing import Any

import psycopg2
import pytest
import sqlalchemy as sa

from db import lock_audit
from db.appointments import create_appointment, find_appointment, set_status
from db.audit import audit
from db.charging import Charges, Verdict
from db.coupons import Grant, coupons_of, grant_coupons, movements_of
from db.database import Database
from db.decisions import ChargeRequest, Outcome
from db.errors import CommitUnknown, Conflict, DatabaseDown, DatabaseError, IdTaken
from db.events import ChargeEvent, Committing, Settled
from db.recent_charges import recent_charges
from db.row_locks import row_locks
from db.tables import AppointmentStatus
from tests.harness import PATIENCE_S, Rows, wait_until
from tests.integration.charging_helpers import (
    ANN,
    BOB,
    OURS,
    happened,
    outcomes_of,
    patient_charges,
    proxied_charges,
)
from tests.proxy import Cut, Proxy, postgres_proxy

# What makes a session useless. Each is done behind the service's back.
READ_ONLY = "SET default_transaction_read_only = on"
FORGOTTEN = "DEALLOCATE ALL"
COLUMNS = {
    "charge": "ALTER TABLE user_coupon ALTER COLUMN count TYPE numeric",
    "repeat": "ALTER TABLE user_consume ALTER COLUMN prop_id TYPE integer",
}


@pytest.fixture
def notes(rows: Rows) -> Rows:
    """The database with a table to write into."""
    rows.run("CREATE TABLE note (text text)")
    return rows


@asynccontextmanager
async def idle_sessions(database_url: str, rows: Rows, count: int) -> AsyncIterator[Charges]:
    """Charges with so many connections, of which none is in use."""
    rows.grant(ANN, 50)
    with patient_charges(database_url) as charges:
        connections = [await charges._idle_or_new() for _ in range(count)]
        charges._idle.extend(connections)
        yield charges


async def tell_each(charges: Charges, command: str) -> None:
    for connection in charges._idle:
        await connection.ask(command, within_s=PATIENCE_S)


# A session that is of no more use


@pytest.mark.parametrize("command", [READ_ONLY, FORGOTTEN])
async def test_a_charge_and_a_repeat_go_on_on_a_new_connection(database_url: str, rows: Rows, command: str) -> None:
    async with idle_sessions(database_url, rows, 3) as charges:
        id_ = rows.appointment(ANN, BOB)
        await tell_each(charges, command)
        assert outcomes_of(await charges.charge_batch([ChargeRequest(id_, ANN)])) == [Outcome.CHARGED]
        await tell_each(charges, command)
        assert outcomes_of(await charges.enter_again([ChargeRequest(id_, BOB)])) == [Outcome.ALREADY_CHARGED]
        await tell_each(charges, command)
        assert outcomes_of(await charges.charge_waiting([ChargeRequest(id_, BOB)])) == [Outcome.ALREADY_CHARGED]
    assert rows.balance(ANN) == 49


async def test_a_column_of_another_type_costs_nobody_anything(database_url: str, rows: Rows) -> None:
    """A statement that was prepared before answers "cached plan must not change result type"."""
    async with idle_sessions(database_url, rows, 3) as charges:
        first, second = rows.appointment(ANN, BOB), rows.appointment(ANN, BOB)
        await charges.charge_batch([ChargeRequest(first, ANN)])
        rows.run(COLUMNS["charge"])
        assert outcomes_of(await charges.charge_batch([ChargeRequest(second, ANN)])) == [Outcome.CHARGED]
        await charges.enter_again([ChargeRequest(first, ANN)])
        rows.run(COLUMNS["repeat"])
        assert outcomes_of(await charges.enter_again([ChargeRequest(first, ANN)])) == [Outcome.ALREADY_CHARGED]


async def test_a_server_that_only_reads_is_down_until_it_takes_writes(database_url: str, rows: Rows) -> None:
    database_name = sa.make_url(database_url).database
    async with idle_sessions(database_url, rows, 2) as charges:
        charged, id_ = rows.appointment(ANN, BOB), rows.appointment(ANN, BOB)
        await charges.charge_batch([ChargeRequest(charged, ANN)])
        await tell_each(charges, READ_ONLY)
        rows.run(f"ALTER DATABASE {database_name} SET default_transaction_read_only = on")
        for _ in range(3):
            with pytest.raises(DatabaseDown, match="read-only"):
                await charges.charge_batch([ChargeRequest(id_, ANN)])
            with pytest.raises(DatabaseDown, match="read-only"):
                await charges.enter_again([ChargeRequest(charged, ANN)])
        with closing(Database(database_url)) as database, pytest.raises(DatabaseDown, match="read-only"):
            grant_coupons(database, user_id=ANN, coupon_id=1, count=1, reference="r")
        rows.run(f"ALTER DATABASE {database_name} RESET default_transaction_read_only")

        assert outcomes_of(await charges.charge_batch([ChargeRequest(id_, ANN)])) == [Outcome.CHARGED]


@pytest.mark.parametrize("code", ["0A000", "25006", "26000", "42P05", "53100", "57P01", "XX000"])
def test_work_is_done_on_a_new_connection_and_no_older_one_is_used_again(
    database: Database, notes: Rows, code: str
) -> None:
    seen: list[int] = []

    def pid(connection: sa.Connection) -> int:
        found = connection.scalar(sa.text("SELECT pg_backend_pid()"))
        assert isinstance(found, int)
        return found

    def work(connection: sa.Connection) -> None:
        seen.append(pid(connection))
        connection.execute(sa.text("INSERT INTO note VALUES ('a')"))
        if len(seen) == 1:
            connection.execute(sa.text(f"DO $$ BEGIN RAISE EXCEPTION 'useless' USING ERRCODE = '{code}'; END $$"))

    before = database.transaction(lambda one: {pid(one), database.transaction(pid)})
    assert len(before) == 2

    database.transaction(work)

    assert seen[0] in before
    assert seen[1] not in before
    after = database.transaction(lambda one: {pid(one), database.transaction(pid)})
    assert not before & after
    assert notes.run("SELECT text FROM note") == [("a",)]


@pytest.mark.parametrize("code", ["23514", "22012", "P0001", "42501"])
def test_an_answer_about_the_statement_keeps_the_connection_and_is_not_tried_again(
    database: Database, notes: Rows, code: str
) -> None:
    seen: list[object] = []

    def work(connection: sa.Connection) -> None:
        seen.append(connection.scalar(sa.text("SELECT pg_backend_pid()")))
        connection.execute(sa.text(f"DO $$ BEGIN RAISE EXCEPTION 'wrong' USING ERRCODE = '{code}'; END $$"))

    for _ in range(2):
        with pytest.raises(DatabaseError) as caught:
            database.transaction(work)
        assert type(caught.value) is DatabaseError
    assert len(seen) == 2
    assert len(set(seen)) == 1


# A connection that the server has closed while nobody used it


@pytest.fixture
def idle_ends(database_url: str, rows: Rows) -> Iterator[Database]:
    """A database whose server ends sessions that are idle for 50 ms."""
    rows.run(f"ALTER DATABASE {sa.make_url(database_url).database} SET idle_session_timeout = '50ms'")
    with closing(Database(database_url)) as database:
        yield database


def test_reads_grants_and_all_else_outlive_a_session_that_was_ended_while_idle(idle_ends: Database, rows: Rows) -> None:
    made = create_appointment(idle_ends, user_id=ANN, invitee_user_id=BOB)

    def all_ended() -> bool:
        return not rows.run(f"SELECT 1 FROM pg_stat_activity WHERE {OURS}")

    def grant() -> Grant:
        return grant_coupons(idle_ends, user_id=ANN, coupon_id=1, count=1, reference="once")

    for work in (
        grant,
        lambda: coupons_of(idle_ends, ANN),
        lambda: movements_of(idle_ends, ANN, limit=5),
        lambda: find_appointment(idle_ends, made.id, entry_limit=5),
        lambda: set_status(idle_ends, made.id, AppointmentStatus.ENDED, entry_limit=5),
        lambda: create_appointment(idle_ends, user_id=ANN, invitee_user_id=BOB),
        lambda: recent_charges(idle_ends, limit=5),
        lambda: row_locks(idle_ends, made.id),
        lambda: lock_audit.note(idle_ends, actor="a", lock_name="l", reason="r", holder=None, fencing_token=1),
        lambda: lock_audit.entries(idle_ends, limit=5),
        lambda: audit(idle_ends),
        grant,
    ):
        wait_until(all_ended, what="the end of the idle sessions")
        work()
    assert rows.balance(ANN) == 1
    assert rows.number("SELECT count(*) FROM appointment_info") == 2


async def test_charges_outlive_sessions_that_were_ended_while_idle(database_url: str, rows: Rows) -> None:
    async with idle_sessions(database_url, rows, 3) as charges:
        id_ = rows.appointment(ANN, BOB)
        rows.run(f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE {OURS}")
        # Without a turn of the loop, so that nobody has noticed yet.
        assert outcomes_of(await charges.charge_batch([ChargeRequest(id_, ANN)])) == [Outcome.CHARGED]


# At COMMIT


def told(code: str) -> bytes:
    """The server's words for an error after which no transaction is open."""
    fields = b"".join(name + value + b"\0" for name, value in ((b"S", b"ERROR"), (b"V", b"ERROR"), (b"M", b"so it is")))
    body = fields + b"C" + code.encode() + b"\0\0"
    return b"E" + struct.pack("!I", len(body) + 4) + body + b"Z" + struct.pack("!I", 5) + b"I"


@pytest.mark.parametrize("code", ["40003", "XX000", "23514", "57P01"])
async def test_what_is_told_at_commit_is_settled_by_reading(database_url: str, rows: Rows, code: str) -> None:
    """CockroachDB's 40003 says "unknown" in so many words; here it was committed."""
    rows.grant(ANN, 5)
    id_ = rows.appointment(ANN, BOB)
    heard: list[ChargeEvent] = []
    with proxied_charges(database_url, listener=heard.append) as (proxy, charges):
        proxy.replace_reply_once(told(code), at=b"COMMIT")

        verdicts = await charges.charge_batch([ChargeRequest(id_, ANN)])

    assert outcomes_of(verdicts) == [Outcome.CHARGED]
    assert [event for event in heard if isinstance(event, Settled)] == [Settled([id_], had_committed=True)]
    assert rows.balance(ANN) == 4


@pytest.mark.parametrize("code", ["40003", "XX000", "23514"])
async def test_a_commit_that_fails_has_written_nothing_once_that_is_read(
    database_url: str, rows: Rows, code: str
) -> None:
    heard: list[ChargeEvent] = []
    _fail(rows, "CONSTRAINT TRIGGER", "AFTER INSERT ON user_consume DEFERRABLE INITIALLY DEFERRED", code)

    with pytest.raises(DatabaseDown, match="nothing was written"):
        await _charge(database_url, rows, heard)

    assert [event.had_committed for event in heard if isinstance(event, Settled)] == [False, False]
    _nothing_is_written(rows)


@pytest.mark.parametrize(
    ("code", "means", "runs"),
    [("XX000", DatabaseDown, 2), ("25006", DatabaseDown, 2), ("23514", DatabaseError, 1), ("40003", DatabaseDown, 2)],
)
async def test_an_error_of_the_statement_that_commit_travels_with_needs_no_settling(
    database_url: str, rows: Rows, code: str, means: type[DatabaseError], runs: int
) -> None:
    heard: list[ChargeEvent] = []
    _fail(rows, "TRIGGER", "BEFORE INSERT ON user_consume", code)

    with pytest.raises(DatabaseError) as caught:
        await _charge(database_url, rows, heard)

    assert type(caught.value) is means
    assert sum(isinstance(event, Committing) for event in heard) == runs
    assert not any(isinstance(event, Settled) for event in heard)
    _nothing_is_written(rows)


async def test_a_conflict_at_commit_is_run_again(database_url: str, rows: Rows) -> None:
    heard: list[ChargeEvent] = []
    _fail(rows, "CONSTRAINT TRIGGER", "AFTER INSERT ON user_consume DEFERRABLE INITIALLY DEFERRED", "40001")

    with pytest.raises(Conflict):
        await _charge(database_url, rows, heard)

    assert not any(isinstance(event, Settled) for event in heard)
    _nothing_is_written(rows)


async def test_whatever_is_told_while_it_is_settled_leaves_it_unknown(database_url: str, rows: Rows) -> None:
    """Here no more ids are to be had: of a new charge this would say that nothing was written."""
    rows.grant(ANN, 5)
    id_ = rows.appointment(ANN, BOB)
    with proxied_charges(database_url, settle_within_s=0.3) as (proxy, charges):
        proxy.cut_once(Cut.AFTER_ANSWERED, at=b"COMMIT", then_away=True)
        charging = asyncio.create_task(charges.charge_batch([ChargeRequest(id_, ANN)]))
        await happened(proxy.cut_happened)
        last = rows.number("SELECT last_value FROM appointment_action_id_seq")
        rows.run(f"ALTER SEQUENCE appointment_action_id_seq MAXVALUE {last}")
        proxy.come_back()

        with pytest.raises(CommitUnknown):
            await charging

    assert rows.balance(ANN) == 4


async def _charge(database_url: str, rows: Rows, heard: list[ChargeEvent]) -> Sequence[Verdict]:
    rows.grant(ANN, 5)
    with patient_charges(database_url, listener=heard.append) as charges:
        return await charges.charge_batch([ChargeRequest(rows.appointment(ANN, BOB), ANN)])


def _fail(rows: Rows, kind: str, when: str, code: str) -> None:
    raising = f"BEGIN RAISE EXCEPTION 'so it is' USING ERRCODE = '{code}'; END"
    rows.run(f"CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ {raising} $$")
    rows.run(f"CREATE {kind} fails {when} FOR EACH ROW EXECUTE FUNCTION fail()")


def _nothing_is_written(rows: Rows) -> None:
    assert rows.balance(ANN) == 5
    assert rows.run("SELECT 1 FROM user_consume UNION ALL SELECT 1 FROM appointment_action") == []
    assert rows.run("SELECT 1 FROM appointment_info WHERE is_consume") == []


# A grant, and what only reads


@pytest.fixture
def proxied(database_url: str) -> Iterator[tuple[Proxy, Database]]:
    """The database as seen through a proxy."""
    proxy, url = postgres_proxy(database_url)
    with proxy, closing(Database(url)) as database:
        yield proxy, database


@pytest.mark.parametrize("cut", list(Cut))
def test_a_grant_that_is_lost_during_commit_is_settled_by_its_reference(
    proxied: tuple[Proxy, Database], rows: Rows, cut: Cut
) -> None:
    proxy, database = proxied
    proxy.cut_once(cut, at=b"COMMIT")

    granted = grant_coupons(database, user_id=ANN, coupon_id=1, count=3, reference="once")

    assert proxy.cut_happened.is_set()
    assert (granted.repeated, granted.balance) == (False, 3)
    assert rows.run("SELECT id, created_at FROM coupon_grant") == [(granted.id, granted.granted_at)]
    again = grant_coupons(database, user_id=ANN, coupon_id=1, count=3, reference="once")
    assert (again.repeated, again.balance) == (True, 3)


WRITES: dict[str, Callable[[Database, int], Any]] = {
    "coupon_grant": lambda database, _: grant_coupons(database, user_id=ANN, coupon_id=1, count=3, reference="once"),
    "appointment_info": lambda database, _: create_appointment(database, user_id=ANN, invitee_user_id=BOB),
    "lock_audit": lambda database, _: lock_audit.note(
        database, actor="a", lock_name="l", reason="r", holder=None, fencing_token=1
    ),
    "status": lambda database, id_: set_status(database, id_, AppointmentStatus.ENDED, entry_limit=5),
}


@pytest.mark.parametrize("code", ["53100", "XX000", "40003", "P0001"])
@pytest.mark.parametrize("what", list(WRITES))
def test_a_write_whose_commit_fails_has_written_nothing_once_that_is_read(
    database: Database, rows: Rows, what: str, code: str
) -> None:
    id_ = rows.appointment(ANN, BOB)
    when = "UPDATE ON appointment_info" if what == "status" else f"INSERT ON {what}"
    _fail(rows, "CONSTRAINT TRIGGER", f"AFTER {when} DEFERRABLE INITIALLY DEFERRED", code)

    with pytest.raises(DatabaseDown, match="nothing was written"):
        WRITES[what](database, id_)

    for table in ("coupon_grant", "user_coupon", "lock_audit"):
        assert rows.run(f"SELECT 1 FROM {table}") == []
    assert rows.run("SELECT id, status FROM appointment_info") == [(id_, AppointmentStatus.OPEN)]


@pytest.mark.parametrize("cut", list(Cut))
@pytest.mark.parametrize("what", list(WRITES))
def test_a_write_that_is_lost_during_commit_is_done_once_and_answered(
    proxied: tuple[Proxy, Database], rows: Rows, what: str, cut: Cut
) -> None:
    id_ = rows.appointment(ANN, BOB)
    proxy, database = proxied
    proxy.cut_once(cut, at=b"COMMIT")

    done = WRITES[what](database, id_)

    assert proxy.cut_happened.is_set()
    table = "appointment_info" if what == "status" else what
    [*_, newest] = rows.run(f"SELECT id FROM {table} ORDER BY id")
    assert newest == (done if isinstance(done, int) else done.id,)
    assert len(rows.run(f"SELECT id FROM {table}")) == 1 + (what == "appointment_info")
    assert rows.run("SELECT status FROM appointment_info WHERE id = %s", id_) == [(1 + (what == "status"),)]


@pytest.mark.parametrize("what", list(WRITES))
def test_a_write_of_which_nothing_can_be_read_is_unknown(
    proxied: tuple[Proxy, Database], rows: Rows, what: str
) -> None:
    id_ = rows.appointment(ANN, BOB)
    proxy, database = proxied
    proxy.cut_once(Cut.AFTER_ANSWERED, at=b"COMMIT", then_away=True)

    with pytest.raises(CommitUnknown):
        WRITES[what](database, id_)


@pytest.mark.parametrize("at", [b"COMMIT", b"ROLLBACK"])
def test_a_read_that_is_lost_at_its_end_is_read(proxied: tuple[Proxy, Database], rows: Rows, at: bytes) -> None:
    rows.grant(ANN, 3)
    proxy, database = proxied
    coupons_of(database, ANN)  # a new connection rolls back as well
    proxy.cut_once(Cut.BEFORE_FORWARDING, at=at)

    assert [found.count for found in coupons_of(database, ANN)] == [3]


# A sequence that is behind


async def test_an_id_that_is_taken_is_told_and_nothing_is_written(database_url: str, rows: Rows) -> None:
    rows.grant(ANN, 5)
    taken = rows.appointment(ANN, BOB)
    with patient_charges(database_url) as charges:
        await charges.charge_batch([ChargeRequest(taken, ANN)])
        id_ = rows.appointment(ANN, BOB)
        for table in ("user_consume", "appointment_action"):
            rows.run(f"SELECT setval('{table}_id_seq', (SELECT max(id) FROM {table}), false)")
            with pytest.raises(IdTaken, match=f"{table}_id_seq is behind"):
                await charges.charge_batch([ChargeRequest(id_, ANN)])
            assert rows.balance(ANN) == 4
        # The ids that were taken are behind now.
        assert outcomes_of(await charges.charge_batch([ChargeRequest(id_, ANN)])) == [Outcome.CHARGED]


def test_each_table_whose_ids_come_from_a_sequence_tells_that_it_is_behind(database: Database, rows: Rows) -> None:
    def grant(reference: str) -> Grant:
        return grant_coupons(database, user_id=ANN, coupon_id=1, count=1, reference=reference)

    def note(_: str) -> int:
        return lock_audit.note(database, actor="a", lock_name="l", reason="r", holder=None, fencing_token=1)

    for table, work in (
        ("coupon_grant", grant),
        ("lock_audit", note),
        ("appointment_info", lambda _: create_appointment(database, user_id=ANN, invitee_user_id=BOB)),
    ):
        work("first")
        rows.run(f"SELECT setval('{table}_id_seq', (SELECT max(id) FROM {table}), false)")
        with pytest.raises(IdTaken, match=f"{table}_id_seq is behind"):
            work("second")
        work("second")


async def test_a_charge_that_stands_without_its_flag_is_no_taken_id(database_url: str, rows: Rows) -> None:
    rows.grant(ANN, 5)
    id_ = rows.appointment(ANN, BOB)
    rows.run("INSERT INTO user_consume VALUES (DEFAULT, %s, %s, %s, 1, 1, 1)", id_, ANN, BOB)
    with patient_charges(database_url) as charges, pytest.raises(DatabaseError) as caught:
        await charges.charge_batch([ChargeRequest(id_, ANN)])
    assert type(caught.value) is DatabaseError
    assert isinstance(caught.value.__cause__, psycopg2.Error)
    assert rows.balance(ANN) == 5

"""One connection that an event loop drives: every command has an answer or an end, and nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2
import pytest

from db.connection import Connection
from db.database import DatabaseLimits, connector
from db.errors import DatabaseDown
from tests.harness import PATIENCE_S, Rows, wait_until_async
from tests.integration.charging_helpers import frozen, session_ends
from tests.proxy import Cut, Proxy, Way
from tests.servers.processes import unused_port

QUICK = DatabaseLimits(connect_timeout_s=0.3)
SOON_S = 15.0  # far below the patience of whoever waits for ever
BACKEND = "SELECT pg_backend_pid()"


async def opened(url: str, *, script: str = "SELECT 1", within_s: float = PATIENCE_S) -> Connection:
    return await Connection.open(connector(url, DatabaseLimits(connect_timeout_s=within_s)), script=script)


# Answers


async def test_the_rows_of_the_last_statement_come_back(database_url: str) -> None:
    connection = await opened(database_url)

    assert await connection.ask("SELECT 1; SELECT n, n * 2 FROM generate_series(1, 2) n", within_s=PATIENCE_S) == [
        (1, 2),
        (2, 4),
    ]
    assert await connection.ask("BEGIN", within_s=PATIENCE_S) == []
    assert await connection.ask("CREATE TEMPORARY TABLE t (n int); COMMIT", within_s=PATIENCE_S) == []
    connection.close()


async def test_the_script_has_run_before_the_first_command(database_url: str) -> None:
    connection = await opened(database_url, script="SET search_path = here; PREPARE twice AS SELECT $1::int * 2")

    assert await connection.ask("EXECUTE twice(21)", within_s=PATIENCE_S) == [(42,)]
    assert await connection.ask("SHOW search_path", within_s=PATIENCE_S) == [("here",)]
    connection.close()


async def test_a_command_and_an_answer_larger_than_any_socket_buffer_pass(database_url: str) -> None:
    connection = await opened(database_url)
    text = "x" * 20_000_000

    assert await connection.ask(f"SELECT length('{text}')", within_s=PATIENCE_S) == [(len(text),)]
    assert await connection.ask(f"SELECT '{text}'", within_s=PATIENCE_S) == [(text,)]
    connection.close()


async def test_two_connections_do_not_wait_for_each_other(database_url: str) -> None:
    one, other = await opened(database_url), await opened(database_url)
    await one.ask("SELECT pg_advisory_lock(1)", within_s=PATIENCE_S)
    waiting = asyncio.create_task(other.ask("SELECT pg_advisory_lock(1)", within_s=PATIENCE_S))

    assert await one.ask("SELECT 1", within_s=PATIENCE_S) == [(1,)]
    assert not waiting.done()
    await one.ask("SELECT pg_advisory_unlock(1)", within_s=PATIENCE_S)
    await waiting
    one.close()
    other.close()


# Errors


async def test_an_error_that_the_server_tells_leaves_it_usable(database_url: str) -> None:
    connection = await opened(database_url)

    with pytest.raises(psycopg2.Error) as caught:
        await connection.ask("SELECT 1 FROM nowhere", within_s=PATIENCE_S)

    assert caught.value.pgcode == "42P01"
    assert connection.is_open
    assert await connection.ask("SELECT 1", within_s=PATIENCE_S) == [(1,)]
    connection.close()


async def test_a_connection_lost_in_the_middle_is_closed(proxied: tuple[Proxy, str]) -> None:
    proxy, url = proxied
    connection = await opened(url)
    proxy.cut_once(Cut.BEFORE_FORWARDING, at=b"lost")

    with pytest.raises(psycopg2.Error) as caught:
        await connection.ask("SELECT 'lost'", within_s=PATIENCE_S)

    assert caught.value.pgcode is None
    assert not connection.is_open
    with pytest.raises(psycopg2.InterfaceError):
        await connection.ask("SELECT 1", within_s=PATIENCE_S)


async def test_a_session_that_the_server_ends_in_the_middle_is_closed(database_url: str, rows: Rows) -> None:
    connection = await opened(database_url)
    ((pid,),) = await connection.ask(BACKEND, within_s=PATIENCE_S)
    asking = asyncio.create_task(connection.ask("SELECT pg_sleep(600)", within_s=PATIENCE_S))
    await runs(rows, pid)
    rows.run("SELECT pg_terminate_backend(%s)", pid)

    with pytest.raises(psycopg2.Error):
        await asking

    assert not connection.is_open


async def test_no_answer_in_time_closes_it(proxied: tuple[Proxy, str]) -> None:
    proxy, url = proxied
    connection = await opened(url)
    proxy.swallow(Way.REPLIES)
    started_at_s = time.monotonic()

    with pytest.raises(TimeoutError):
        await connection.ask("SELECT 1", within_s=0.2)

    assert 0.15 <= time.monotonic() - started_at_s < SOON_S
    assert not connection.is_open


async def test_a_server_that_reads_no_more_is_no_answer_in_time(database_url: str) -> None:
    """The command does not even go out."""
    connection = await opened(database_url)
    ((pid,),) = await connection.ask(BACKEND, within_s=PATIENCE_S)
    with frozen(pid):
        with pytest.raises(TimeoutError):
            await connection.ask(f"SELECT length('{'x' * 20_000_000}')", within_s=0.3)
        assert not connection.is_open


async def test_cancelled_in_the_middle_it_is_closed_and_the_server_rolls_back(database_url: str, rows: Rows) -> None:
    rows.run("CREATE TABLE note (text text)")
    connection = await opened(database_url)
    ((pid,),) = await connection.ask(BACKEND, within_s=PATIENCE_S)
    await connection.ask("BEGIN; INSERT INTO note VALUES ('a')", within_s=PATIENCE_S)
    rows.run("SELECT pg_advisory_lock(2)")
    asking = asyncio.create_task(connection.ask("SELECT pg_advisory_lock(2)", within_s=PATIENCE_S))
    await runs(rows, pid)
    asking.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asking

    assert not connection.is_open
    rows.run("SELECT pg_advisory_unlock(2)")
    await session_ends(rows, pid)
    assert rows.run("SELECT text FROM note") == []


async def test_closed_under_a_command_it_tells_whoever_asked(database_url: str, rows: Rows) -> None:
    connection = await opened(database_url)
    ((pid,),) = await connection.ask(BACKEND, within_s=PATIENCE_S)
    asking = asyncio.create_task(connection.ask("SELECT pg_sleep(60)", within_s=PATIENCE_S))
    await runs(rows, pid)

    connection.close()
    connection.close()  # harmless twice

    with pytest.raises(psycopg2.InterfaceError):
        await asking
    rows.run("SELECT pg_terminate_backend(%s)", pid)


async def test_an_idle_connection_that_the_server_ends_is_noticed_at_once(database_url: str, rows: Rows) -> None:
    connection = await opened(database_url)
    ((pid,),) = await connection.ask(BACKEND, within_s=PATIENCE_S)
    rows.run("SELECT pg_terminate_backend(%s)", pid)

    async def noticed() -> bool:
        return not connection.is_open

    await wait_until_async(noticed, what="the end of an idle connection")


async def test_an_idle_connection_that_is_cut_is_noticed_at_once(proxied: tuple[Proxy, str]) -> None:
    proxy, url = proxied
    connection = await opened(url)
    proxy.go_away()

    async def noticed() -> bool:
        return not connection.is_open

    await wait_until_async(noticed, what="the end of an idle connection")


async def test_what_the_server_says_unasked_does_not_disturb(database_url: str, rows: Rows) -> None:
    connection = await opened(database_url)
    await connection.ask("LISTEN something", within_s=PATIENCE_S)
    for _ in range(3):
        rows.run("NOTIFY something")
        rows.run("NOTIFY something")
        assert await connection.ask("SELECT 1", within_s=PATIENCE_S) == [(1,)]
    assert connection.is_open
    connection.close()


# Opening


async def test_a_closed_port_is_down_in_one_line() -> None:
    with nothing_left_behind(), pytest.raises(DatabaseDown) as caught:
        await open_quickly(f"postgresql://u@127.0.0.1:{unused_port()}/d")
    assert "\n" not in str(caught.value)


async def test_a_server_that_swallows_everything_is_down_within_the_limit(proxied: tuple[Proxy, str]) -> None:
    proxy, url = proxied
    proxy.swallow(Way.REQUESTS)
    started_at_s = time.monotonic()

    with pytest.raises(DatabaseDown):
        await open_quickly(url)

    assert time.monotonic() - started_at_s < SOON_S


async def test_a_server_that_freezes_after_the_greeting_is_down_within_the_limit(proxied: tuple[Proxy, str]) -> None:
    proxy, url = proxied
    proxy.eat_reply_once(at=b"a script")
    started_at_s = time.monotonic()

    with pytest.raises(DatabaseDown):
        await Connection.open(connector(url, QUICK), script="SELECT 'a script'")

    assert time.monotonic() - started_at_s < SOON_S
    await asyncio.to_thread(proxy.reply_eaten.wait, PATIENCE_S)


async def test_a_script_that_is_wrong_is_told_and_leaves_nothing_behind(database_url: str) -> None:
    with nothing_left_behind(), pytest.raises(DatabaseDown, match="nowhere"):
        await opened(database_url, script="SELECT 1 FROM nowhere")


async def test_many_that_fail_and_many_that_are_closed_leave_no_descriptor_behind(database_url: str) -> None:
    closed_port = unused_port()
    with nothing_left_behind():
        for _ in range(20):
            with pytest.raises(DatabaseDown):
                await open_quickly(f"postgresql://u@127.0.0.1:{closed_port}/d")
        for connection in await asyncio.gather(*[opened(database_url) for _ in range(20)]):
            connection.close()


async def test_a_caller_cancelled_while_it_connects_leaves_no_session_behind(database_url: str, rows: Rows) -> None:
    rows.run("SELECT pg_advisory_lock(3)")
    connecting = asyncio.create_task(opened(database_url, script="SELECT pg_advisory_lock(3)"))
    await sessions(rows, 1)
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting

    rows.run("SELECT pg_advisory_unlock(3)")

    await sessions(rows, 0)


def test_an_event_loop_that_ends_leaves_no_thread_behind(database_url: str) -> None:
    async def use() -> None:
        connection = await opened(database_url)
        with pytest.raises(DatabaseDown):
            await open_quickly(f"postgresql://u@127.0.0.1:{unused_port()}/d")
        connection.close()

    before = set(threading.enumerate())
    asyncio.run(use())

    assert set(threading.enumerate()) <= before


# Helpers


async def open_quickly(url: str) -> Connection:
    return await Connection.open(connector(url, QUICK), script="SELECT 1")


@contextmanager
def nothing_left_behind() -> Iterator[None]:
    """As many file descriptors after as before."""
    before = len(os.listdir("/dev/fd"))
    yield
    assert len(os.listdir("/dev/fd")) <= before


async def runs(rows: Rows, pid: int) -> None:
    """Returns once the session is in the middle of a statement."""

    async def active() -> bool:
        return bool(rows.run("SELECT 1 FROM pg_stat_activity WHERE pid = %s AND state = 'active'", pid))

    await wait_until_async(active, what="the statement")


async def sessions(rows: Rows, count: int) -> None:
    """Returns once so many sessions beside ours are there."""
    beside = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"

    async def so_many() -> bool:
        return rows.number(beside) == count

    await wait_until_async(so_many, what=f"{count} sessions")

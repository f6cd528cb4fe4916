"""What is spent is spent once, for all who ask, and is forgotten when it is over; one look serves many."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psycopg2
import pytest
import sqlalchemy as sa

from db.database import Database, DatabaseLimits
from db.errors import DatabaseDown, DatabaseError
from db.spent_tokens import spend, spent_among
from service.reading import Reading
from service.spent import LOOK_WAIT_S, SpentTokens
from tests.harness import Rows

LATER = time.time() + 600


def reading_with(database: Database) -> Reading:
    return Reading(database, name="sessions", threads=2, max_waiting=100, caller_share=1.0, timeout_s=60)


def test_of_many_at_once_one_spends_and_all_see_it(database_url: str) -> None:
    database = Database(database_url, limits=DatabaseLimits(pool_size=16))
    digests = [os.urandom(32) for _ in range(20)]
    with ThreadPoolExecutor(16) as threads:
        for digest in digests:
            done = list(threads.map(lambda _, digest=digest: spend(database, digest, expires_at=LATER), range(16)))
            assert sorted(done) == [False] * 15 + [True]
    assert spent_among(database, [*digests, b"another"]) == frozenset(digests)
    assert spent_among(database, []) == frozenset()
    database.close()


@pytest.mark.parametrize("stands", [True, False])
def test_a_commit_without_an_answer_is_settled_by_what_stands(database: Database, rows: Rows, stands: bool) -> None:
    """The one whose COMMIT was lost is told the truth: it spent the token, or, having written nothing, does it now."""
    digest = os.urandom(32)
    failed: list[sa.Connection] = []

    def fail_once(connection: sa.Connection) -> None:
        if not failed:
            failed.append(connection)
            raw = connection.connection.driver_connection
            assert raw is not None
            if stands:
                raw.commit()
            else:
                raw.rollback()
            raise sa.exc.OperationalError("COMMIT", None, psycopg2.OperationalError("no answer"))

    sa.event.listen(database.engine, "commit", fail_once)
    assert spend(database, digest, expires_at=LATER) is True
    assert failed
    assert spend(database, digest, expires_at=LATER) is False
    assert rows.number("SELECT count(*) FROM spent_token") == 1


def test_rows_go_when_they_are_long_over_and_no_expiry_is_too_far(database: Database, rows: Rows) -> None:
    rows.run("INSERT INTO spent_token VALUES ('old', now(), now() - interval '25 hours'), ('new', now(), now())")

    assert spend(database, b"for ever", expires_at=1e300)

    assert rows.run("SELECT encode(digest, 'escape') FROM spent_token ORDER BY 1") == [("for ever",), ("new",)]


def test_those_who_ask_at_once_share_a_look_and_hear_what_was_written_before_they_asked(
    database: Database,
) -> None:
    asyncio.run(_ask_at_once(database))


async def _ask_at_once(database: Database) -> None:
    looks = []
    sa.event.listen(
        database.engine, "before_cursor_execute", lambda *a: looks.append(a[2]) if "digest IN" in a[2] else None
    )
    with closing(reading_with(database)) as reading:
        spent, there = SpentTokens(reading), SpentTokens(reading)
        digests = [os.urandom(32) for _ in range(50)]
        assert not any(await asyncio.gather(*(spent.is_spent(each, at_most_s=0) for each in digests)))
        assert len(looks) <= 2
        assert await there.spend(digests[7], expires_at=LATER, caller=1)
        looks.clear()
        told = await asyncio.gather(*(spent.is_spent(each, at_most_s=0) for each in digests))
        assert [number for number, is_spent in enumerate(told) if is_spent] == [7]
        looks.clear()
        for _ in range(20):
            await asyncio.gather(*(spent.is_spent(each, at_most_s=60) for each in digests))
        assert looks == [], "what was just looked at is known"


def test_what_is_known_to_be_spent_is_so_without_postgres_and_all_else_is_unknown(database: Database) -> None:
    async def ask() -> None:
        with closing(reading_with(database)) as reading:
            spent = SpentTokens(reading)
            assert await spent.spend(b"known", expires_at=LATER, caller=1)
            database.close()
            assert await spent.is_spent(b"known", at_most_s=0)
            with pytest.raises(DatabaseError):
                await spent.is_spent(b"another", at_most_s=0)

    asyncio.run(ask())


def test_a_postgres_that_hangs_has_one_look_at_most_and_each_asker_waits_for_a_moment(database_url: str) -> None:
    async def ask(stuck: psycopg2.extensions.connection) -> None:
        with closing(reading_with(database)) as reading:
            spent = SpentTokens(reading)
            for digest in (b"one", b"two", b"three"):
                with pytest.raises(DatabaseDown):
                    await spent.is_spent(digest, at_most_s=0)
                assert (reading.busy_count, reading.waiting_count) == (1, 0)
            stuck.rollback()
            assert not await spent.is_spent(b"four", at_most_s=0)

    database = Database(database_url, limits=DatabaseLimits(statement_timeout_s=60, row_lock_timeout_s=60))
    with closing(psycopg2.connect(database_url)) as stuck:
        stuck.cursor().execute("LOCK TABLE spent_token")
        asyncio.run(ask(stuck))
    database.close()


def test_a_look_that_fails_after_all_have_left_is_told_to_nobody(database_url: str) -> None:
    left_to_the_loop = list[str]()

    async def ask(stuck: psycopg2.extensions.connection) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, told: left_to_the_loop.append(told["message"]))
        reading = Reading(
            database, name="sessions", threads=2, max_waiting=10, caller_share=1.0, timeout_s=2 * LOOK_WAIT_S
        )
        with closing(reading):
            spent = SpentTokens(reading)
            with pytest.raises(DatabaseDown):
                await spent.is_spent(b"one", at_most_s=0)
            [look] = [task for task in asyncio.all_tasks() if task.get_name() == "spent-tokens"]
            await asyncio.wait([look])
            stuck.rollback()
        del spent, look
        gc.collect()

    database = Database(database_url, limits=DatabaseLimits(statement_timeout_s=60, row_lock_timeout_s=60))
    with closing(psycopg2.connect(database_url)) as stuck:
        stuck.cursor().execute("LOCK TABLE spent_token")
        asyncio.run(ask(stuck))
    database.close()
    assert left_to_the_loop == []

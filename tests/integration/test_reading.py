"""Database work beside the event loop: callers take turns, and who is told that the database is slow has asked it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import psycopg2
import pytest

from db.coupons import coupons_of, grant_coupons
from db.database import Database
from db.errors import CommitUnknown, DatabaseDown
from service.reading import Reading
from service.refusals import Overloaded, TooManyRequests
from tests.harness import PATIENCE_S, Rows, wait_until_async
from tests.integration.charging_helpers import ANN, BOB, PATIENT

SHORT_S = 0.4
MANY = 200


@contextmanager
def reading_with(
    database_url: str, *, threads: int, max_waiting: int = 1000, timeout_s: float = 2 * PATIENCE_S
) -> Iterator[Reading]:
    """A pool of threads and connections."""
    with (
        closing(Database(database_url, limits=PATIENT)) as database,
        closing(
            Reading(
                database,
                name="test",
                threads=threads,
                max_waiting=max_waiting,
                caller_share=0.5,
                timeout_s=timeout_s,
            )
        ) as reading,
    ):
        yield reading


@contextmanager
def held_coupons(database_url: str) -> Iterator[Callable[[], None]]:
    """Nobody reads or writes anybody's coupons until the function is called."""
    with closing(psycopg2.connect(database_url)) as other:
        other.cursor().execute("LOCK TABLE user_coupon IN ACCESS EXCLUSIVE MODE")
        yield other.rollback


def grant(database: Database) -> object:
    return grant_coupons(database, user_id=ANN, coupon_id=1, count=1, reference="r")


async def until_waiting(reading: Reading, count: int) -> None:
    async def waiting() -> bool:
        return reading.waiting_count == count

    await wait_until_async(waiting, what=f"{count} that wait for a thread")


async def until_busy(reading: Reading, count: int) -> None:
    async def busy() -> bool:
        return reading.busy_count == count

    await wait_until_async(busy, what=f"{count} threads at work")


async def until_idle(reading: Reading) -> None:
    async def idle() -> bool:
        return (reading.busy_count, reading.waiting_count) == (0, 0)

    await wait_until_async(idle, what="everything to be over")


async def test_a_write_that_takes_too_long_is_unknown_and_a_read_is_down(database_url: str, rows: Rows) -> None:
    with (
        reading_with(database_url, threads=2, timeout_s=SHORT_S) as reading,
        held_coupons(database_url) as release,
    ):
        with pytest.raises(DatabaseDown):
            await reading.run(lambda database: coupons_of(database, ANN), caller=ANN)
        with pytest.raises(CommitUnknown):
            await reading.write(grant, caller=ANN)
        assert reading.busy_count == 2, "a place is taken for as long as its thread"
        release()

        async def granted() -> bool:
            return rows.balance(ANN) == 1

        await wait_until_async(granted, patience_s=PATIENCE_S, what="the grant, which went on")
        await until_idle(reading)


async def test_one_caller_with_hundreds_of_reads_delays_another_by_no_more_than_a_turn(database_url: str) -> None:
    begun = list[int]()

    def read(caller: int) -> asyncio.Task[object]:
        def work(database: Database) -> object:
            begun.append(caller)
            return coupons_of(database, caller)

        return asyncio.create_task(reading.run(work, caller=caller))

    with reading_with(database_url, threads=2) as reading, held_coupons(database_url) as release:
        of_ann = [read(ANN) for _ in range(MANY)]
        await until_waiting(reading, MANY - 2)
        of_bob = [read(BOB) for _ in range(3)]
        await until_waiting(reading, MANY + 1)
        release()
        await asyncio.gather(*of_ann, *of_bob)
        await until_idle(reading)

    assert len(begun) == MANY + 3
    # Two were at work; then one each in turn, give or take that two threads begin at once.
    assert [at for at, caller in enumerate(begun) if caller == BOB][-1] <= 2 + 2 * 3


async def test_what_reaches_no_thread_in_time_is_overload_and_is_never_begun(database_url: str, rows: Rows) -> None:
    begun = list[str]()

    def note(database: Database) -> object:
        begun.append("work")
        return grant(database)

    with (
        reading_with(database_url, threads=1, timeout_s=SHORT_S) as reading,
        held_coupons(database_url) as release,
    ):
        at_work = asyncio.create_task(reading.run(lambda database: coupons_of(database, ANN), caller=ANN))
        await until_busy(reading, 1)
        with pytest.raises(Overloaded):
            await reading.write(note, caller=BOB)
        with pytest.raises(Overloaded):
            await reading.run(note, caller=BOB)
        with pytest.raises(DatabaseDown):
            await at_work
        release()
        await until_idle(reading)
        assert await reading.run(lambda database: list(coupons_of(database, ANN)), caller=BOB) == []

    assert begun == []
    assert rows.number("SELECT count(*) FROM coupon_grant") == 0


async def test_what_a_caller_who_has_gone_had_waiting_is_never_begun(database_url: str, rows: Rows) -> None:
    with reading_with(database_url, threads=1) as reading, held_coupons(database_url) as release:
        at_work = asyncio.create_task(reading.run(lambda database: coupons_of(database, ANN), caller=ANN))
        await until_busy(reading, 1)
        gone = [asyncio.create_task(reading.write(grant, caller=BOB)) for _ in range(5)]
        await until_waiting(reading, 5)
        for task in gone:
            task.cancel()
        await asyncio.wait(gone)
        assert (reading.waiting_count, reading.busy_count) == (0, 1)
        release()
        await at_work
        await until_idle(reading)

    assert rows.number("SELECT count(*) FROM coupon_grant") == 0


async def test_a_caller_has_a_share_of_what_may_wait_and_another_still_finds_room(database_url: str) -> None:
    with reading_with(database_url, threads=1, max_waiting=4) as reading, held_coupons(database_url) as release:

        def read(caller: int) -> asyncio.Task[object]:
            return asyncio.create_task(reading.run(lambda database: coupons_of(database, caller), caller=caller))

        waiting = [read(ANN), read(ANN)]
        await until_waiting(reading, 1)
        with pytest.raises(TooManyRequests):
            await read(ANN)
        waiting += [read(BOB), read(BOB)]
        await until_waiting(reading, 3)
        with pytest.raises(Overloaded) as full:
            await read(ANN + BOB)
        assert not isinstance(full.value, TooManyRequests)
        release()
        await asyncio.gather(*waiting)
        await read(ANN)
        await until_idle(reading)

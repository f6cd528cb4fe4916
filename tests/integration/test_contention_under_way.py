"""Waits that go on: counted while they do, at what they have lasted so far, and once."""

from __future__ import annotations

import asyncio
import time

from locks.contention import Contention, Slot
from locks.histogram import bucket_of
from locks.lease import Lease
from tests.harness import OwnRedis, wait_until_async
from tests.integration.contending import LONG_S, Instance, instance

WAITERS = 30


async def stuck(holder: Instance, *waiting: Instance) -> tuple[Lease, list[asyncio.Task[Lease]]]:
    """A lock that one holds and the others wait for, until they have told so."""
    lease = await holder.locker.acquire("jobs:x", lease_ttl_s=10 * LONG_S, request_id="nightly-1")
    tasks = [
        asyncio.create_task(waiting[number % len(waiting)].locker.acquire("jobs:x", lease_ttl_s=10 * LONG_S))
        for number in range(WAITERS)
    ]

    async def told() -> bool:
        return (await holder.contention.snapshot()).waiting == WAITERS

    await wait_until_async(told)
    return lease, tasks


async def each_in_turn(lease: Lease, tasks: list[asyncio.Task[Lease]]) -> None:
    """Everybody gets the lock and gives it back."""
    await lease.release()
    for task in asyncio.as_completed(tasks):
        await (await task).release()


async def test_a_snapshot_counts_the_waits_that_go_on_at_their_age(own_redis: OwnRedis) -> None:
    async with instance(own_redis.url, "a") as a, instance(own_redis.url, "b") as b:
        began_at_s = time.monotonic()
        lease, tasks = await stuck(a, a, b)
        joined_after_s = time.monotonic() - began_at_s

        async def has_lasted() -> bool:
            return (await b.contention.snapshot()).oldest_wait_s > 1.0 + joined_after_s

        await wait_until_async(has_lasted)
        snapshot = await b.contention.snapshot()
        lasted_s = time.monotonic() - began_at_s
        assert not snapshot.counts  # nothing has ended within the window
        assert snapshot.contention_ratio == 1.0
        assert snapshot.wait.count == WAITERS
        for share in (0.5, 0.99):
            assert bucket_of(1.0) <= bucket_of(snapshot.wait.quantile(share)) <= bucket_of(lasted_s)
        (line,) = snapshot.lines
        assert snapshot.hottest == snapshot.lines
        assert (line.name, line.waits, line.waiting) == ("jobs:x", WAITERS, WAITERS)
        assert line.oldest_wait_s == line.longest_wait_s == snapshot.oldest_wait_s
        assert WAITERS * 1.0 < line.total_wait_s <= WAITERS * lasted_s
        assert [each.picture.all_waits.count for each in snapshot.instances] == [WAITERS // 2] * 2
        await each_in_turn(lease, tasks)


async def test_an_attempt_is_counted_once_whether_it_goes_on_or_has_ended(own_redis: OwnRedis) -> None:
    async with (
        instance(own_redis.url, "a", interval_s=0.6) as a,
        instance(own_redis.url, "b", interval_s=0.6) as b,
    ):
        lease, tasks = await stuck(a, a, b)
        seen_counts = set()

        async def watch() -> None:
            while True:
                snapshot = await Contention(b.locker).snapshot()  # one of its own: no answer is shared
                seen_counts.add(snapshot.wait.count)
                assert snapshot.contention_ratio <= WAITERS / (WAITERS + 1)

        watching = asyncio.create_task(watch())
        await each_in_turn(lease, tasks)

        async def told() -> bool:
            snapshot = await a.contention.snapshot()
            return (snapshot.waiting, snapshot.counts["acquired"]) == (0, WAITERS + 1)

        await wait_until_async(told)
        watching.cancel()
        (ended,) = await asyncio.gather(watching, return_exceptions=True)
        assert isinstance(ended, asyncio.CancelledError), ended
        assert max(seen_counts) == WAITERS + 1
        snapshot = await a.contention.snapshot()
        assert snapshot.contention_ratio == WAITERS / (WAITERS + 1)
        assert (snapshot.hottest[0].waits, snapshot.hottest[0].waiting, snapshot.lines) == (WAITERS, 0, ())


async def test_each_slot_of_time_has_the_waits_that_went_on_at_its_end(own_redis: OwnRedis) -> None:
    async with instance(own_redis.url, "a") as a, instance(own_redis.url, "b") as b:
        lease, tasks = await stuck(a, a, b)
        counted: list[Slot] = []

        async def over_with_waits() -> bool:
            counted[:] = [each for each in (await a.contention.recent())[:-1] if each.under_way.count]
            return bool(counted)

        await wait_until_async(over_with_waits)
        for slot in counted:
            assert slot.under_way.count == WAITERS
            assert slot.wait.count == WAITERS + slot.ended_wait.count
            assert slot.contention_ratio == WAITERS / slot.wait.count
        await each_in_turn(lease, tasks)

        async def ended() -> bool:
            return sum(each.ended_wait.count for each in await a.contention.recent()) == WAITERS + 1

        await wait_until_async(ended)
        last = (await a.contention.recent())[-1]
        assert last.under_way.count == 0
        now_s = time.time()
        minutes = await a.contention.minutes(from_s=now_s - 120, until_s=now_s + 60)
        assert sum(each.ended_wait.count for each in minutes) == WAITERS + 1
        assert minutes[-1].under_way.count == 0


async def test_the_minute_names_a_lock_whose_waits_go_on_and_forgets_nothing_when_they_end(own_redis: OwnRedis) -> None:
    async with instance(own_redis.url, "a") as a, instance(own_redis.url, "b") as b:

        async def noted() -> tuple[int, float]:
            """How many of its waits the minutes' cells name, and how long was waited for it."""
            count, total_s = 0, 0.0
            for at_s in (time.time(), time.time() - 60):
                for bucket in range(42):
                    named = await a.contention.locks_in_cell(at_s=at_s, kind="wait", bucket=bucket)
                    count += sum(times for name, times in named if name == "jobs:x")
                total_s += sum(each.total_wait_s for each in await a.contention.hot_in(at_s=at_s))
            return count, total_s

        lease, tasks = await stuck(a, a, b)

        async def named() -> bool:
            count, total_s = await noted()
            return count >= WAITERS and total_s > 0.1 * WAITERS

        await wait_until_async(named)
        await each_in_turn(lease, tasks)

        async def all_ended() -> bool:
            snapshot = await a.contention.snapshot()
            return snapshot.waiting == 0 and snapshot.counts["contended"] == WAITERS

        await wait_until_async(all_ended)
        count, total_s = await noted()
        assert count >= WAITERS
        assert total_s >= sum(a.waited_s + b.waited_s) * 0.999


async def test_after_lost_data_no_state_is_below_nothing(own_redis: OwnRedis) -> None:
    async with instance(own_redis.url, "a") as a, instance(own_redis.url, "b") as b:
        _, tasks = await stuck(a, a, b)
        await a.locker.store.run("{contention}", lambda node: "*1\r\n$8\r\nFLUSHALL\r\n")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

        async def nobody_waits() -> bool:
            return (await a.contention.snapshot()).waiting == 0

        await wait_until_async(nobody_waits)
        for slot in await a.contention.recent():
            assert min(slot.wait.counts) >= 0
            assert 0.0 <= slot.contention_ratio <= 1.0

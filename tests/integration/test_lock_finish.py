"""Finish: whose work is done for all gives the lock back, and whoever waits is told instead of getting a turn."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import redis

from locks import Dismissed, Lease, LeaseLost, LockBusy, Locker, LockStoreDown
from locks.events import Acquired, GaveUp, Released, Waiting
from tests.harness import ROOT, OwnRedis, wait_until_async
from tests.integration.lock_faults import keys_at, locking_through
from tests.integration.test_lock_runs import in_line, process
from tests.integration.test_locker import KEEP_MS, Heard, Keys, OtherProcess, locking
from tests.integration.test_python_redis_lock import blocked, their_lock
from tests.proxy import Cut, Proxy, Way

LONG_S = 60.0
SOON_S = 15.0  # for what takes milliseconds, and must not take a heartbeat of 20 s or a lease of 60 s
SLOWLY_MS = 60_000  # as alive_ms: nobody looks again by himself within the test
LEASES_S = pytest.mark.parametrize("lease_ttl_s", [10.0, LONG_S], ids=["short", "long"])  # of more than KEEP_MS or not

WAITS_IN_A_PROCESS_OF_ITS_OWN = f"""
import asyncio, sys
from locks import Dismissed, Locker
from locks.events import Waiting
from locks.store import QueueLimits

async def main():
    url, name = sys.argv[1], sys.argv[2]
    def hear(event):
        if isinstance(event, Waiting):
            print("waiting", flush=True)
    limits = QueueLimits(alive_ms={SLOWLY_MS})
    async with Locker(url, instance_id="other", command_timeout_s=20, queue_limits=limits, listener=hear) as locker:
        calls = [locker.acquire(name, lease_ttl_s=60), locker.acquire(name, lease_ttl_s=60)]
        ends = await asyncio.gather(*calls, return_exceptions=True)
        print("ends", *[type(end).__name__ for end in ends], flush=True)

asyncio.run(main())
"""


@pytest.fixture
def keys(redis_url: str, name: str) -> Iterator[Keys]:
    with keys_at(redis_url, name) as keys:
        yield keys


@asynccontextmanager
async def slowly(url: str, heard: Heard | None = None) -> AsyncIterator[Locker]:
    """A process whose waiters only wake when they are woken."""
    async with locking(url, heard=heard, alive_ms=SLOWLY_MS) as locker:
        yield locker


async def begin_to_wait(heard: Heard, locker: Locker, name: str, count: int = 1) -> list[asyncio.Task[Lease]]:
    """So many more callers of acquire, who wait."""
    before = len(heard.all(Waiting))
    waiting = [asyncio.create_task(locker.acquire(name, lease_ttl_s=LONG_S)) for _ in range(count)]
    await heard.count(Waiting, before + count)
    return waiting


def beginning(take: Callable[[int], Coroutine[None, None, None]], count: int) -> list[Callable[[], asyncio.Task[None]]]:
    def begin(number: int) -> asyncio.Task[None]:
        return asyncio.create_task(take(number))

    return [partial(begin, number) for number in range(count)]


async def ends_of(waiting: list[asyncio.Task[Lease]]) -> list[Lease | BaseException]:
    return await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), SOON_S)


def are_dismissed(ends: list[Lease | BaseException]) -> bool:
    return all(isinstance(end, Dismissed) for end in ends)


async def nothing_left(keys: Keys) -> None:
    """Waits until Redis has no holder, no queue and nothing of those who waited."""

    async def nothing() -> bool:
        return keys.client.exists(keys.lock, keys.queue, keys.waiters) == 0

    await wait_until_async(nothing, what=f"nothing left of {keys.name}")


# Who waits


@LEASES_S
async def test_waiters_of_the_same_process_are_dismissed(
    redis_url: str, name: str, keys: Keys, lease_ttl_s: float
) -> None:
    heard = Heard()
    async with slowly(redis_url, heard) as locker:
        lease = await locker.acquire(name, lease_ttl_s=lease_ttl_s)
        waiting = await begin_to_wait(heard, locker, name, 5)

        lease.finish()

        ends = await ends_of(waiting)
        assert are_dismissed(ends)
        assert isinstance(ends[0], Dismissed)
        assert (ends[0].name, ends[0].waited_s > 0) == (name, True)
        await nothing_left(keys)
        await heard.count(Released, 1)
    assert len(heard.all(Acquired)) == 1


@LEASES_S
async def test_waiters_of_other_processes_are_dismissed_at_once(
    redis_url: str, name: str, keys: Keys, lease_ttl_s: float
) -> None:
    heard, others = Heard(), [Heard(), Heard()]
    async with slowly(redis_url, heard) as locker, slowly(redis_url, others[0]) as b, slowly(redis_url, others[1]) as c:
        lease = await locker.acquire(name, lease_ttl_s=lease_ttl_s)
        waiting = await begin_to_wait(others[0], b, name, 2)
        waiting += await begin_to_wait(others[1], c, name, 2)
        await keys.queue_of(2)

        lease.finish()

        assert are_dismissed(await ends_of(waiting))
        await nothing_left(keys)
        assert b.waiter_count == c.waiter_count == 0
    assert others[0].all(Acquired) == others[1].all(Acquired) == []


async def test_a_process_of_its_own_is_told_too(redis_url: str, name: str, keys: Keys) -> None:
    async with slowly(redis_url) as locker, waits_in_another_process(redis_url, name) as other:
        lease = await locker.acquire(name, lease_ttl_s=LONG_S)
        await other.says("waiting")
        await other.says("waiting")
        await keys.queue_of(1)

        lease.finish()

        assert await asyncio.wait_for(other.says("ends"), SOON_S) == "ends Dismissed Dismissed"
        await nothing_left(keys)


async def test_a_python_redis_lock_program_that_waits_gets_its_turn(
    redis_url: str, name: str, keys: Keys, their_client: redis.Redis
) -> None:
    heard, theirs = Heard(), their_lock(their_client, name)
    async with slowly(redis_url, heard) as locker, slowly(redis_url) as other:
        lease = await locker.acquire(name, lease_ttl_s=LONG_S)
        acquiring = asyncio.create_task(asyncio.to_thread(theirs.acquire))
        await blocked(their_client)
        waiting = await begin_to_wait(heard, locker, name)
        elsewhere = asyncio.create_task(other.acquire(name))
        await keys.queue_of(2)

        lease.finish()

        assert await asyncio.wait_for(acquiring, SOON_S)
        assert are_dismissed(await ends_of([*waiting, elsewhere]))
        await asyncio.to_thread(theirs.release)


async def test_a_dismissed_waiter_frees_its_place(redis_url: str, name: str) -> None:
    heard = Heard()
    async with locking(redis_url, heard=heard, alive_ms=SLOWLY_MS, max_waiters=2) as locker:
        for _ in range(3):
            lease = await locker.acquire(name, lease_ttl_s=LONG_S)
            waiting = await begin_to_wait(heard, locker, name, 2)
            line = locker._lines.by_name[name]
            waiters = list(line.waiters)

            lease.finish()

            assert are_dismissed(await ends_of(waiting))
            assert locker.waiter_count == 0
            assert locker._lines.by_name == locker._lines._by_lease_id == {}
            assert [waiter.timer for waiter in waiters] == [None, None]
            assert line._next_look is None


async def test_a_caller_who_asks_for_itself_is_not_dismissed_and_those_behind_it_are(
    redis_url: str, name: str, keys: Keys
) -> None:
    async with slowly(redis_url) as locker:
        first, behind = (asyncio.create_task(locker.acquire(name, lease_ttl_s=LONG_S)) for _ in range(2))
        await asyncio.sleep(0)
        line = locker._lines.by_name[name]
        assert (line.asked is line, len(line.waiters)) == (True, 1)

        locker.dismiss(name)

        assert are_dismissed(await ends_of([behind]))
        lease = await asyncio.wait_for(first, SOON_S)
        assert keys.holder() == lease.lease_id
        assert await lease.release()
        await nothing_left(keys)


async def test_a_caller_who_asks_for_itself_is_refused_and_waits_on_after_a_dismissal(
    redis_url: str, name: str, keys: Keys
) -> None:
    async with slowly(redis_url) as locker, slowly(redis_url) as other:
        held = await other.acquire(name, lease_ttl_s=LONG_S)
        first, behind = (asyncio.create_task(locker.acquire(name, lease_ttl_s=LONG_S)) for _ in range(2))
        await asyncio.sleep(0)

        locker.dismiss(name)

        assert are_dismissed(await ends_of([behind]))
        await keys.queue_of(1)
        assert await held.release()
        assert await (await asyncio.wait_for(first, SOON_S)).release()
        await keys.gone()


async def test_a_waiter_that_is_cancelled_meanwhile_is_cancelled(redis_url: str, name: str, keys: Keys) -> None:
    heard = Heard()
    async with slowly(redis_url, heard) as locker:
        lease = await locker.acquire(name, lease_ttl_s=LONG_S)
        before, after, left = await begin_to_wait(heard, locker, name, 3)

        before.cancel()
        lease.finish()
        after.cancel()

        ends = await ends_of([before, after, left])
        assert [type(end) for end in ends] == [asyncio.CancelledError, asyncio.CancelledError, Dismissed]
        assert locker.waiter_count == 0
        await nothing_left(keys)
    assert sorted(event.outcome for event in heard.all(GaveUp)) == ["cancelled", "cancelled", "dismissed"]


async def test_a_hold_that_waits_is_dismissed_without_its_body(redis_url: str, name: str) -> None:
    heard = Heard()
    async with slowly(redis_url, heard) as locker:
        lease = await locker.acquire(name, lease_ttl_s=LONG_S)

        async def hold() -> None:
            async with locker.hold(name):
                pytest.fail("the body has begun")

        holding = asyncio.create_task(hold())
        await heard.count(Waiting, 1)
        lease.finish()

        with pytest.raises(Dismissed):
            await asyncio.wait_for(holding, SOON_S)


async def test_of_many_locks_a_dismissal_from_one_leaves_none(redis_url: str, name: str) -> None:
    names, heard = [f"{name}/{number}" for number in range(3)], Heard()
    async with slowly(redis_url) as locker, slowly(redis_url, heard) as other:
        lease = await locker.acquire(names[1], lease_ttl_s=LONG_S)
        waiting = asyncio.create_task(other.acquire_many(names, lease_ttl_s=LONG_S))
        await heard.count(Waiting, 1)
        with keys_at(redis_url, names[1]) as wanted:
            await wanted.queue_of(1)

        lease.finish()

        with pytest.raises(Dismissed) as caught:
            await asyncio.wait_for(waiting, SOON_S)
        assert caught.value.name == names[1]
        for each in names:
            with keys_at(redis_url, each) as left:
                await left.gone()
        assert other.held == []


# Who comes after it


async def test_a_caller_who_comes_after_it_gets_the_lock_at_once(redis_url: str, name: str) -> None:
    async with slowly(redis_url) as locker:
        lease = await locker.acquire(name, lease_ttl_s=10)
        for wait_s in (0, None):
            lease.finish()
            after = await asyncio.wait_for(locker.acquire(name, lease_ttl_s=10, wait_s=wait_s), SOON_S)
            assert after.fencing_token > lease.fencing_token
            lease = after


async def test_a_caller_who_comes_while_others_are_being_told_gets_the_lock_at_once(
    redis_url: str, name: str, keys: Keys
) -> None:
    heard = Heard()
    async with slowly(redis_url, heard) as locker, slowly(redis_url) as other:
        lease = await locker.acquire(name, lease_ttl_s=10)
        here = await begin_to_wait(heard, locker, name)
        elsewhere = asyncio.create_task(other.acquire(name, lease_ttl_s=LONG_S))
        await keys.queue_of(2)

        lease.finish()
        after = await asyncio.wait_for(locker.acquire(name, lease_ttl_s=LONG_S), SOON_S)

        assert are_dismissed(await ends_of([*here, elsewhere]))
        assert after.fencing_token > lease.fencing_token
        assert keys.holder() == after.lease_id
        assert await after.release()


async def test_it_does_nothing_to_the_next_holder(redis_url: str, name: str, keys: Keys) -> None:
    """Neither once the lease is released, nor when it is gone and its holder does not know or does."""
    heard = Heard()
    async with slowly(redis_url, heard) as locker, slowly(redis_url) as other:
        released = await locker.acquire(name, lease_ttl_s=LONG_S)
        assert await released.release()
        unaware = await locker.acquire(name, lease_ttl_s=LONG_S)
        keys.client.delete(keys.lock)
        forced = await other.acquire(name, lease_ttl_s=LONG_S, wait_s=0)
        assert await locker.force_release(name, fencing_token=forced.fencing_token) is True
        await asyncio.wait_for(forced.lost.wait(), SOON_S)
        next_lease = await other.acquire(name, lease_ttl_s=LONG_S, wait_s=0)

        for lease in (released, unaware, unaware, forced):
            lease.finish()

        await heard.count(Released, 2)
        assert keys.holder() == next_lease.lease_id
        assert await next_lease.release()
    assert [event.still_ours for event in heard.all(Released)] == [True, False]


@LEASES_S
async def test_whoever_waits_for_the_next_holder_is_not_told_by_a_stale_one(
    redis_url: str, name: str, keys: Keys, lease_ttl_s: float
) -> None:
    heard = Heard()
    async with slowly(redis_url, heard) as locker, slowly(redis_url) as other, slowly(redis_url) as third:
        stale = await locker.acquire(name, lease_ttl_s=lease_ttl_s)
        keys.client.delete(keys.lock)
        holder = await other.acquire(name, lease_ttl_s=LONG_S, wait_s=0)
        waiting = asyncio.create_task(third.acquire(name, lease_ttl_s=LONG_S))
        await keys.queue_of(1)

        stale.finish()

        await heard.count(Released, 1)
        assert await holder.release()
        assert await (await asyncio.wait_for(waiting, SOON_S)).release()


async def test_a_finished_lease_is_over_for_its_holder(redis_url: str, name: str) -> None:
    async with slowly(redis_url) as locker:
        lease = await locker.acquire(name, keep_extended=True)

        lease.finish()

        assert (lease.remaining_s(), lease.is_lost, locker.held) == (0, False, [])
        assert await lease.release() is False
        with pytest.raises(LeaseLost):
            await lease.extend(LONG_S)


async def test_a_long_lease_leaves_its_grant_for_no_longer_than_a_short_one(
    redis_url: str, name: str, keys: Keys
) -> None:
    heard = Heard()
    async with slowly(redis_url, heard) as locker:
        lease = await locker.acquire(name, lease_ttl_s=3600)
        lease.finish()
        await heard.count(Released, 1)
        assert 0 < keys.client.pttl(keys.grant) <= KEEP_MS
        assert keys.holder() is None


# The holder


async def test_a_hold_whose_body_finishes_leaves_quietly_and_releases_once(own_redis: OwnRedis, name: str) -> None:
    heard = Heard()
    with redis.Redis(port=own_redis.port) as client:
        async with slowly(own_redis.url, heard) as locker:
            client.config_resetstat()
            async with locker.hold(name) as lease:
                lease.finish()
                lease.finish()
            await heard.count(Released, 1)
            assert client.info("commandstats")["cmdstat_evalsha"]["calls"] == 2
    (released,) = heard.all(Released)
    assert (released.still_ours, released.handed_over) == (True, False)
    assert released.fencing_token == lease.fencing_token


async def test_it_is_told_as_a_release_and_as_the_end_of_a_wait(redis_url: str, name: str, keys: Keys) -> None:
    heard, others = Heard(), Heard()
    async with slowly(redis_url, heard) as locker, slowly(redis_url, others) as other:
        lease = await locker.acquire(name, lease_ttl_s=LONG_S)
        waiting = await begin_to_wait(others, other, name)
        await keys.queue_of(1)

        lease.finish()
        await ends_of(waiting)
        await heard.count(Released, 1)

    (released,) = heard.all(Released)
    assert (released.name, released.still_ours, released.handed_over) == (name, True, False)
    (gave_up,) = others.all(GaveUp)
    assert (gave_up.name, gave_up.outcome, gave_up.queued) == (name, "dismissed", True)
    assert gave_up.waited_s > 0


@pytest.mark.parametrize("turn", [0, 1, 3])
async def test_a_turn_of_a_run_finishes_for_the_rest_of_it(redis_url: str, name: str, keys: Keys, turn: int) -> None:
    heard, turns = Heard(), list[int]()
    async with process(redis_url, "a", heard) as locker:
        first = await locker.acquire(name, lease_ttl_s=LONG_S)

        async def take(number: int) -> None:
            async with locker.hold(name, lease_ttl_s=LONG_S) as lease:
                turns.append(lease.fencing_token)
                if number == turn:
                    lease.finish()

        tasks = await in_line(heard, beginning(take, 6))
        assert await first.release()
        ends = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), SOON_S)

        assert [type(end) for end in ends] == [type(None)] * (turn + 1) + [Dismissed] * (5 - turn)
        await keys.gone()
        after = await locker.acquire(name, lease_ttl_s=LONG_S, wait_s=0)
        assert after.fencing_token > turns[-1]
        assert await after.release()


async def test_a_turn_of_a_run_finishes_for_other_processes_too(redis_url: str, name: str, keys: Keys) -> None:
    heard, others = Heard(), Heard()
    async with process(redis_url, "a", heard) as locker, process(redis_url, "b", others) as other:
        first = await locker.acquire(name, lease_ttl_s=LONG_S)

        async def take(number: int) -> None:
            async with locker.hold(name, lease_ttl_s=LONG_S) as lease:
                if number == 1:
                    lease.finish()

        tasks = await in_line(heard, beginning(take, 3))
        elsewhere = await begin_to_wait(others, other, name)
        await keys.queue_of(1)
        assert await first.release()

        assert are_dismissed(await ends_of(elsewhere))
        ends = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), SOON_S)
        assert [type(end) for end in ends] == [type(None), type(None), Dismissed]
        await nothing_left(keys)


async def test_a_body_under_its_claim_finishes_although_it_is_not_confirmed(own_redis: OwnRedis, name: str) -> None:
    heard, began = Heard(), list[bool]()
    with Proxy("127.0.0.1", own_redis.port) as proxy, keys_at(own_redis.url, name) as keys:
        slow_url = f"redis://127.0.0.1:{proxy.port}/0"
        async with (
            process(own_redis.url, "a", claim_ms=5000) as here,
            process(slow_url, "b", heard, claim_ms=5000) as there,
        ):
            held = await here.acquire(name, lease_ttl_s=LONG_S)

            async def body() -> None:
                async with there.hold(name, lease_ttl_s=LONG_S) as lease:
                    began.append(lease.is_unconfirmed)
                    lease.finish()

            bodies = asyncio.create_task(body())
            await heard.count(Waiting, 1)
            (behind,) = await begin_to_wait(heard, there, name)
            await keys.queue_of(1)
            proxy.delay(Way.REPLIES, delay_s=0.3)
            assert await held.release()

            await asyncio.wait_for(bodies, SOON_S)
            assert are_dismissed(await ends_of([behind]))
            await heard.count(Released, 1)
            await nothing_left(keys)
    assert began == [True]
    assert [event.still_ours for event in heard.all(Released)] == [True]


# This process alone


async def test_a_dismissal_tells_this_process_alone(redis_url: str, name: str, keys: Keys) -> None:
    heard = Heard()
    async with slowly(redis_url) as holder, slowly(redis_url, heard) as locker, slowly(redis_url) as other:
        lease = await holder.acquire(name, lease_ttl_s=LONG_S)
        here = await begin_to_wait(heard, locker, name, 3)
        await keys.queue_of(1)
        elsewhere = asyncio.create_task(other.acquire(name, lease_ttl_s=LONG_S))
        await keys.queue_of(2)

        locker.dismiss(name)
        locker.dismiss(name)

        assert are_dismissed(await ends_of(here))
        assert not elsewhere.done()
        assert keys.holder() == lease.lease_id
        await keys.queue_of(1)  # its place in line goes with them
        assert await lease.release()
        assert await (await asyncio.wait_for(elsewhere, SOON_S)).release()


async def test_a_dismissal_while_the_lock_is_on_its_way_gives_it_to_the_next(
    redis_url: str, name: str, keys: Keys
) -> None:
    heard = Heard()
    async with slowly(redis_url, heard) as locker, slowly(redis_url) as other:
        lease = await locker.acquire(name, lease_ttl_s=LONG_S)
        here = await begin_to_wait(heard, locker, name, 2)
        elsewhere = asyncio.create_task(other.acquire(name, lease_ttl_s=LONG_S))
        await keys.queue_of(2)
        releasing = asyncio.create_task(lease.release())
        await asyncio.sleep(0)

        locker.dismiss(name)

        assert await releasing
        assert are_dismissed(await ends_of(here))
        assert await (await asyncio.wait_for(elsewhere, SOON_S)).release()
        await keys.gone()


# Connections that are lost


async def test_without_a_connection_it_becomes_a_release(own_redis: OwnRedis, name: str, proxy: Proxy) -> None:
    heard = Heard()
    with keys_at(own_redis.url, name) as keys:
        async with locking_through(proxy, heard) as locker, slowly(own_redis.url) as other:
            lease = await locker.acquire(name, lease_ttl_s=LONG_S)
            here = await begin_to_wait(heard, locker, name)
            elsewhere = asyncio.create_task(other.acquire(name, lease_ttl_s=LONG_S))
            await keys.queue_of(2)
            proxy.go_away()
            await wait_until_async(lambda: is_down(locker), what="a connection that is lost")

            lease.finish()
            assert are_dismissed(await ends_of(here))
            proxy.come_back()

            assert await (await asyncio.wait_for(elsewhere, SOON_S)).release()
            await keys.gone()
    assert [event.still_ours for event in heard.all(Released)] == [False]


async def test_a_process_that_does_not_hear_of_it_gets_its_turn(
    redis_url: str, name: str, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unreachable() -> None:
        raise LockStoreDown("kept away by the test")

    async with slowly(redis_url) as locker, locking(redis_url, alive_ms=900) as other:
        lease = await locker.acquire(name, lease_ttl_s=LONG_S)
        elsewhere = asyncio.create_task(other.acquire(name, lease_ttl_s=LONG_S))
        await keys.queue_of(1)
        messages = other._servers.node_of(name).messages
        monkeypatch.setattr(messages, "_connect", unreachable)
        messages.drop("lost by the test")

        lease.finish()

        assert await (await asyncio.wait_for(elsewhere, SOON_S)).release()
        await keys.gone()


@LEASES_S
@pytest.mark.parametrize("cut", list(Cut))
async def test_a_connection_that_is_lost_meanwhile_leaves_no_key_and_nobody_waiting(
    own_redis: OwnRedis, name: str, proxy: Proxy, cut: Cut, lease_ttl_s: float
) -> None:
    heard = Heard()
    with keys_at(own_redis.url, name) as keys:
        async with locking_through(proxy, heard) as locker, slowly(own_redis.url) as other:
            lease = await locker.acquire(name, lease_ttl_s=lease_ttl_s)
            elsewhere = asyncio.create_task(other.acquire(name, lease_ttl_s=LONG_S))
            await keys.queue_of(1)
            proxy.cut_once(cut, at=b"EVALSHA")

            lease.finish()

            (end,) = await ends_of([elsewhere])  # a turn, or the news that none is needed
            if isinstance(end, Lease):
                assert await end.release()
            else:
                assert isinstance(end, Dismissed)
                assert cut is Cut.AFTER_ANSWERED
            await keys.gone()
            after = await other.acquire(name, lease_ttl_s=LONG_S, wait_s=0)
            await heard.count(Released, 1)
            assert keys.holder() == after.lease_id  # the second try has done it no harm
            assert await after.release()


async def test_a_process_that_closes_right_after_it_leaves_the_lock_to_others(
    own_redis: OwnRedis, name: str, proxy: Proxy
) -> None:
    """Others wait, so it takes a second command; the connection is closed before the first one's answer is there."""
    with keys_at(own_redis.url, name) as keys:
        async with slowly(own_redis.url) as other:
            url = f"redis://127.0.0.1:{proxy.port}/0"
            async with locking(url, alive_ms=SLOWLY_MS, keep_ms=int(LONG_S * 1000)) as locker:
                lease = await locker.acquire(name, lease_ttl_s=LONG_S)
                elsewhere = asyncio.create_task(other.acquire(name, lease_ttl_s=LONG_S))
                await keys.queue_of(1)
                proxy.delay(Way.REPLIES, delay_s=0.3)
                lease.finish()

            assert await (await asyncio.wait_for(elsewhere, SOON_S)).release()
            await keys.gone()


# One tick


async def test_a_lock_that_is_asked_for_twice_at_once_is_given_once(own_redis: OwnRedis, name: str) -> None:
    async with slowly(own_redis.url) as locker:
        node, scripts = locker._store.node_of(name), locker._scripts
        items = [
            scripts.acquire_item(node, each, f"{number:032x}", lease_ms=10_000, for_whom="")
            for number, each in enumerate((name, f"{name}/other", name))
        ]
        tokens = await node.ask(scripts.acquire_free(items, seen_fence=0))

    assert tokens[0] > 0
    assert tokens[1] > 0
    assert tokens[2] == 0
    with keys_at(own_redis.url, name) as keys:
        assert keys.holder() == f"{0:032x}"


async def test_of_two_callers_in_one_tick_the_second_has_the_lock_when_the_first_is_cancelled(
    redis_url: str, name: str, keys: Keys
) -> None:
    async with slowly(redis_url) as locker:
        for _ in range(20):
            first = asyncio.create_task(locker.acquire(name, lease_ttl_s=LONG_S))
            await asyncio.sleep(0)
            first.cancel()
            second = await asyncio.wait_for(locker.acquire(name, lease_ttl_s=LONG_S), SOON_S)

            assert first.cancelled()
            assert keys.holder() == second.lease_id
            with pytest.raises(LockBusy):
                await locker.acquire(name, wait_s=0)
            second.finish()


async def is_down(locker: Locker) -> bool:
    return not locker.is_up


@asynccontextmanager
async def waits_in_another_process(url: str, name: str) -> AsyncIterator[OtherProcess]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        WAITS_IN_A_PROCESS_OF_ITS_OWN,
        url,
        name,
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield OtherProcess(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()

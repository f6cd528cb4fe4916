"""The original python-redis-lock on the same locks: it and we exclude each other, and both get turns."""
# ruff: noqa: PT012 - what raises is a hold with its whole body

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
import redis
import redis_lock

from locks import LeaseLost, LockBusy, Locker, LossReason
from locks.events import Waiting
from tests.harness import PATIENCE_S, wait_until_async
from tests.integration.test_locker import Heard, locking


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """As python-redis-lock needs it: its BLPOP waits for longer than redis-py's default timeout."""
    with closing(redis.Redis.from_url(redis_url, socket_timeout=None)) as client:
        yield client


def their_lock(client: redis.Redis, name: str, *, expire: int | None = 20) -> redis_lock.Lock:
    return redis_lock.Lock(client, f"{{{name}}}", expire=expire)


async def test_while_they_hold_we_do_not_get_it(redis_url: str, client: redis.Redis, name: str) -> None:
    theirs = their_lock(client, name)
    async with locking(redis_url) as locker:
        assert theirs.acquire(blocking=False)
        with pytest.raises(LockBusy) as caught:
            await locker.acquire(name, wait_s=0)
        assert caught.value.expires_in_s is not None
        assert 10 < caught.value.expires_in_s <= 20
        theirs.release()
        assert await (await locker.acquire(name, wait_s=PATIENCE_S)).release()


async def test_while_we_hold_they_do_not_get_it(redis_url: str, client: redis.Redis, name: str) -> None:
    theirs = their_lock(client, name)
    async with locking(redis_url) as locker:
        async with locker.hold(name):
            assert not theirs.acquire(blocking=False)
            with pytest.raises(redis_lock.NotAcquired):
                theirs.release()
        assert theirs.acquire(blocking=False)
        theirs.release()


async def test_our_release_wakes_their_waiter(redis_url: str, client: redis.Redis, name: str) -> None:
    theirs = their_lock(client, name)
    async with locking(redis_url) as locker:
        lease = await locker.acquire(name, lease_ttl_s=60)
        acquiring = asyncio.create_task(asyncio.to_thread(theirs.acquire))
        await blocked(client)
        released_at_s = time.monotonic()

        assert await lease.release()

        assert await acquiring
        assert time.monotonic() - released_at_s < 15  # its own timeout is 20 s
        theirs.release()


async def test_their_release_is_found_by_our_waiter(redis_url: str, client: redis.Redis, name: str) -> None:
    heard = Heard()
    theirs = their_lock(client, name)
    async with locking(redis_url, heard=heard, alive_ms=1000) as locker:
        assert theirs.acquire()
        waiting = asyncio.create_task(locker.acquire(name))
        await heard.count(Waiting, 1)

        theirs.release()

        lease = await asyncio.wait_for(waiting, 15)
        assert client.get(f"lock:{{{name}}}") == lease.lease_id.encode()
        assert await lease.release()


async def test_their_reset_is_a_loss_by_deletion(redis_url: str, client: redis.Redis, name: str) -> None:
    async with locking(redis_url) as locker:
        with pytest.raises(LeaseLost) as caught:
            async with locker.hold(name, lease_ttl_s=2.0):
                their_lock(client, name).reset()
                await asyncio.sleep(PATIENCE_S)
    assert caught.value.reason is LossReason.DELETED


async def test_their_acquisition_after_a_reset_is_a_loss_to_another(
    redis_url: str, client: redis.Redis, name: str
) -> None:
    theirs = their_lock(client, name)
    async with locking(redis_url) as locker:
        with pytest.raises(LeaseLost) as caught:
            async with locker.hold(name, lease_ttl_s=2.0):
                theirs.reset()
                assert theirs.acquire(blocking=False)
                await asyncio.sleep(PATIENCE_S)
    assert caught.value.reason is LossReason.TAKEN
    theirs.release()  # which is still theirs


async def test_a_holder_without_expiry_is_waited_for(redis_url: str, client: redis.Redis, name: str) -> None:
    heard = Heard()
    theirs = their_lock(client, name, expire=None)
    async with locking(redis_url, heard=heard, alive_ms=150) as locker:
        assert theirs.acquire()
        with pytest.raises(LockBusy) as caught:
            await locker.acquire(name, wait_s=0)
        assert caught.value.expires_in_s is None
        waiting = asyncio.create_task(locker.acquire(name))
        await heard.count(Waiting, 1)
        # Many heartbeats of 50 ms, and longer than a sign of life lasts.
        assert not (await asyncio.wait([waiting], timeout=1.0))[0]

        theirs.release()

        assert await (await asyncio.wait_for(waiting, 15)).release()


async def test_their_holders_death_costs_us_its_lease_and_no_more(
    redis_url: str, client: redis.Redis, name: str
) -> None:
    theirs = their_lock(client, name, expire=1)
    async with locking(redis_url, alive_ms=60_000) as locker:
        assert theirs.acquire()
        acquired_at_s = time.monotonic()
        lease = await asyncio.wait_for(locker.acquire(name), 15)
        assert time.monotonic() - acquired_at_s >= 0.9
        assert await lease.release()


async def test_their_waiter_gets_its_turn_beside_a_crowd_of_ours(
    redis_url: str, client: redis.Redis, name: str
) -> None:
    """Without a bound on handoffs in a row it would never find the lock free."""
    heard = Heard()
    got_it = threading.Event()
    turns = 0

    def take() -> None:
        theirs = their_lock(client, name)
        assert theirs.acquire()
        got_it.set()
        theirs.release()

    async with locking(redis_url, heard=heard) as locker:

        async def cycle() -> None:
            nonlocal turns
            while not got_it.is_set():
                turns += 1
                assert turns < 200_000
                async with locker.hold(name):
                    await asyncio.sleep(0)

        first = await locker.acquire(name)
        crowd = [asyncio.create_task(cycle()) for _ in range(4)]
        await heard.count(Waiting, 4)
        taking = asyncio.create_task(asyncio.to_thread(take))
        await blocked(client)
        assert await first.release()
        await asyncio.wait_for(asyncio.gather(taking, *crowd), PATIENCE_S)

    assert got_it.is_set()


async def test_no_two_are_ever_inside_and_both_sides_get_turns(redis_url: str, client: redis.Redis, name: str) -> None:
    enough = 300
    inside = threading.Lock()
    overlaps = 0
    turns = {"ours": 0, "theirs": 0}
    give_up_at_s = time.monotonic() + PATIENCE_S

    def go_on() -> bool:
        return (sum(turns.values()) < enough or 0 in turns.values()) and time.monotonic() < give_up_at_s

    def enter(side: str) -> bool:
        nonlocal overlaps
        turns[side] += 1
        if inside.acquire(blocking=False):
            return True
        overlaps += 1
        return False

    async def ours(locker: Locker) -> None:
        while go_on():
            async with locker.hold(name):
                alone = enter("ours")
                await asyncio.sleep(0.001)
                if alone:
                    inside.release()

    def theirs() -> None:
        with closing(redis.Redis.from_url(redis_url, socket_timeout=None)) as own_client:
            lock = their_lock(own_client, name, expire=2)
            while go_on():
                with lock:
                    alone = enter("theirs")
                    time.sleep(0.001)
                    if alone:
                        inside.release()

    async with locking(redis_url, alive_ms=300) as one, locking(redis_url, alive_ms=300) as other:
        await asyncio.gather(ours(one), ours(other), asyncio.to_thread(theirs), asyncio.to_thread(theirs))

    assert overlaps == 0
    assert min(turns.values()) > 0, turns


async def blocked(client: redis.Redis) -> None:
    """Once somebody waits in a BLPOP on this server."""

    async def somebody() -> bool:
        return bool(client.info("clients")["blocked_clients"])

    await wait_until_async(somebody)

"""Whoever gives up is told that another has the lock only where Redis has said so; else that Redis did not answer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from locks import LockBusy, LockStoreDown
from locks.events import GaveUp
from tests.integration.lock_faults import SOON_S, stand, url_of
from tests.integration.test_locker import Heard, Keys, locking
from tests.proxy import Proxy, Way
from tests.servers.redis_server import RedisServer

HEARTBEAT_MS = 300


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[Proxy]:
    with Proxy("127.0.0.1", redis_server.port) as proxy:
        yield proxy


async def test_a_waiter_whose_looks_were_never_answered_is_told_that_the_store_is_down(
    proxy: Proxy, name: str, keys: Keys
) -> None:
    heard = Heard()
    async with locking(url_of(proxy), heard=heard, alive_ms=3 * HEARTBEAT_MS) as locker:
        keys.client.set(keys.lock, "another", px=600_000)
        first = asyncio.create_task(locker.acquire(name))
        await stand(keys, 1)
        proxy.hold(Way.REPLIES)
        # For longer than from one look to the next: what the first was told before is old by then.
        for _ in range(2):
            with pytest.raises(LockStoreDown, match="has not told"):
                await asyncio.wait_for(locker.acquire(name, wait_s=4 * HEARTBEAT_MS / 1000), SOON_S)
        proxy.let_through(Way.REPLIES)
        assert {event.outcome for event in heard.all(GaveUp)} == {"store-down"}
        first.cancel()
        await asyncio.wait([first])


async def test_whoever_comes_while_the_first_caller_has_no_answer_is_told_that_nobody_knows(
    proxy: Proxy, name: str
) -> None:
    async with locking(url_of(proxy)) as locker:
        proxy.hold(Way.REPLIES)
        first = asyncio.create_task(locker.acquire(name))
        await asyncio.sleep(0)  # it has asked
        with pytest.raises(LockStoreDown, match="has not told"):
            await asyncio.wait_for(locker.acquire(name, wait_s=0.05), SOON_S)
        proxy.let_through(Way.REPLIES)
        assert await (await first).release()


async def test_the_first_caller_whose_call_failed_is_told_that_the_store_is_down(
    redis_server: RedisServer, name: str
) -> None:
    async with locking(redis_server.url, command_timeout_s=0.4) as locker:
        locker._lines.outage_wait_s = SOON_S  # so that its own patience ends first
        redis_server.freeze()
        with pytest.raises(LockStoreDown):
            await asyncio.wait_for(locker.acquire(name, wait_s=0.1), SOON_S)
        # There is no connection now.
        with pytest.raises(LockStoreDown):
            await asyncio.wait_for(locker.acquire(name, wait_s=0.1), SOON_S)
        redis_server.thaw()


async def test_who_was_told_that_another_has_the_lock_is_told_so_in_the_end(
    proxy: Proxy, name: str, keys: Keys
) -> None:
    async with locking(url_of(proxy), alive_ms=3 * HEARTBEAT_MS) as locker:
        keys.client.set(keys.lock, "another", px=600_000)
        for wait_s in (0.01, 0.05, 4 * HEARTBEAT_MS / 1000):
            with pytest.raises(LockBusy):
                await asyncio.wait_for(locker.acquire(name, wait_s=wait_s), SOON_S)
        # One who comes to a line that has heard, and waits for less than from one look to the next.
        first = asyncio.create_task(locker.acquire(name))
        await stand(keys, 1)
        for _ in range(20):
            with pytest.raises(LockBusy):
                await asyncio.wait_for(locker.acquire(name, wait_s=0.03), SOON_S)
        first.cancel()
        await asyncio.wait([first])


async def test_a_lock_of_this_process_is_busy_without_asking(proxy: Proxy, name: str) -> None:
    async with locking(url_of(proxy)) as locker, locker.hold(name, lease_ttl_s=600):
        proxy.hold(Way.REPLIES)
        with pytest.raises(LockBusy):
            await asyncio.wait_for(locker.acquire(name, wait_s=0.3), SOON_S)
        proxy.let_through(Way.REPLIES)


async def test_an_adoption_that_was_not_answered_leaves_nobody_with_the_lock(
    redis_server: RedisServer, proxy: Proxy, name: str, keys: Keys
) -> None:
    async with locking(redis_server.url) as here, locking(url_of(proxy), command_timeout_s=0.4) as there:
        text = (await here.acquire(name, lease_ttl_s=600.0)).export()
        proxy.hold(Way.REPLIES)
        with pytest.raises(LockStoreDown):
            await asyncio.wait_for(there.adopt(text), SOON_S)
        proxy.let_through(Way.REPLIES)
        await keys.gone()


async def test_a_shorter_lease_that_is_heard_of_too_late_takes_nothing_away(proxy: Proxy, name: str) -> None:
    async with locking(url_of(proxy)) as locker:
        lease = await locker.acquire(name, lease_ttl_s=600.0)
        proxy.hold(Way.REPLIES)
        extending = asyncio.create_task(lease.extend(0.2))
        asyncio.get_running_loop().call_later(0.3, proxy.let_through, Way.REPLIES)
        await asyncio.wait_for(extending, SOON_S)
        assert not lease.is_lost
        assert await lease.release()

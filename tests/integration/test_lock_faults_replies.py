"""Requests and replies that are lost: whoever was granted a lock has it, under one token, once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from locks import Lease, Locker, LockStoreDown
from locks.events import Extended, Lost, Unknown
from tests.harness import PATIENCE_S, wait_until_async
from tests.integration.lock_faults import LONG_MS, SOON_S, keys_at, locking_through, stand
from tests.integration.test_locker import Heard, Keys, locking
from tests.proxy import Cut, Proxy, Way
from tests.servers.redis_server import RedisServer

Lose = Callable[[Proxy], None]


def swallow_reply(proxy: Proxy) -> None:
    """The connection stays open and silent."""
    proxy.eat_reply_once(at=b"EVALSHA")


def cut_before_reply(proxy: Proxy) -> None:
    """The connection ends."""
    proxy.cut_once(Cut.AFTER_ANSWERED, at=b"EVALSHA")


def cut_before_request(proxy: Proxy) -> None:
    """The connection ends, and the server never hears of it."""
    proxy.cut_once(Cut.BEFORE_FORWARDING, at=b"EVALSHA")


both_ways = pytest.mark.parametrize("lose_reply", [swallow_reply, cut_before_reply])


@pytest.fixture
async def onlooker(redis_server: RedisServer) -> AsyncIterator[Locker]:
    """A locker on a connection of its own, which nothing happens to."""
    async with locking(redis_server.url) as locker:
        yield locker


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[Proxy]:
    with Proxy("127.0.0.1", redis_server.port) as proxy:
        yield proxy


# A reply that is lost


@both_ways
@pytest.mark.parametrize("count", [1, 5])
async def test_a_lost_reply_to_first_calls_gives_each_its_own_lease_under_its_one_token(
    onlooker: Locker, redis_server: RedisServer, proxy: Proxy, name: str, lose_reply: Lose, count: int
) -> None:
    async with locking_through(proxy) as locker:
        lose_reply(proxy)
        names = [f"{name}/{number}" for number in range(count)]

        acquiring = [asyncio.create_task(locker.acquire(each, lease_ttl_s=600)) for each in names]
        granted = [await first_grant(onlooker, each) for each in names]
        leases = await asyncio.wait_for(asyncio.gather(*acquiring), PATIENCE_S)

        assert [lease.fencing_token for lease in leases] == granted
        for lease in leases:
            with keys_at(redis_server.url, lease.name) as keys:
                await is_the_only_one(onlooker, keys, lease)


@both_ways
async def test_a_lost_reply_to_a_waiters_look_gives_it_its_lease_under_the_one_token(
    onlooker: Locker, proxy: Proxy, name: str, keys: Keys, lose_reply: Lose
) -> None:
    async with locking_through(proxy) as locker:
        keys.client.set(keys.lock, "another", px=LONG_MS)
        waiting = asyncio.create_task(locker.acquire(name, lease_ttl_s=600))
        await stand(keys, 1)
        lose_reply(proxy)

        keys.client.delete(keys.lock)

        granted = await first_grant(onlooker, name)
        lease = await asyncio.wait_for(waiting, PATIENCE_S)
        assert lease.fencing_token == granted
        await is_the_only_one(onlooker, keys, lease)


@both_ways
async def test_a_lost_reply_to_a_release_that_hands_over_gives_the_waiter_its_lease_under_the_one_token(
    onlooker: Locker, proxy: Proxy, name: str, keys: Keys, lose_reply: Lose
) -> None:
    async with locking_through(proxy) as locker:
        first = await locker.acquire(name, lease_ttl_s=600)
        waiting = [asyncio.create_task(locker.acquire(name, lease_ttl_s=600)) for _ in range(2)]
        await stand(keys, 1)
        lose_reply(proxy)

        releasing = asyncio.create_task(first.release())

        granted = await first_grant(onlooker, name, after=first.fencing_token)
        lease = await asyncio.wait_for(waiting[0], PATIENCE_S)
        with pytest.raises(LockStoreDown):
            await releasing
        assert lease.fencing_token == granted
        assert lease.fencing_token > first.fencing_token
        assert not waiting[1].done()
        assert await lease.release()
        await is_the_only_one(onlooker, keys, await asyncio.wait_for(waiting[1], SOON_S))


@pytest.mark.parametrize("lose", [swallow_reply, cut_before_reply, cut_before_request])
async def test_a_release_that_is_lost_leaves_nothing_held(proxy: Proxy, name: str, keys: Keys, lose: Lose) -> None:
    async with locking_through(proxy) as locker:
        lease = await locker.acquire(name, lease_ttl_s=600)
        lose(proxy)
        with pytest.raises(LockStoreDown):
            await lease.release()
        await keys.gone()


@pytest.mark.parametrize("waits", [True, False])
async def test_a_call_cancelled_before_its_lost_answer_is_given_back_on_the_next_connection(
    proxy: Proxy, name: str, keys: Keys, waits: bool
) -> None:
    async with locking_through(proxy) as locker:
        proxy.hold(Way.REPLIES)
        acquiring = asyncio.create_task(locker.acquire(name, lease_ttl_s=600, wait_s=None if waits else 0))
        await held(keys)
        proxy.swallow(Way.REQUESTS)
        acquiring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await acquiring
        proxy.go_away()
        for way in Way:
            proxy.let_through(way)
        proxy.come_back()
        await keys.gone()


@both_ways
async def test_a_lost_reply_to_an_extend_leaves_the_lease_as_it_was(
    onlooker: Locker, proxy: Proxy, name: str, keys: Keys, lose_reply: Lose
) -> None:
    async with locking_through(proxy) as locker:
        lease = await locker.acquire(name, lease_ttl_s=100)
        token = lease.fencing_token
        lose_reply(proxy)
        with pytest.raises(LockStoreDown):
            await lease.extend(600)
        assert 0 < lease.remaining_s() < 100

        assert await locker.up_within(PATIENCE_S)
        await lease.extend(600)

        assert lease.remaining_s() > 500
        assert lease.fencing_token == token
        await is_the_only_one(onlooker, keys, lease)


@both_ways
async def test_a_lost_reply_to_a_renewal_is_unknown_and_asked_again(
    onlooker: Locker, proxy: Proxy, name: str, keys: Keys, lose_reply: Lose
) -> None:
    heard = Heard()
    async with locking_through(proxy, heard) as locker:
        lease = await locker.acquire(name, lease_ttl_s=6.0, keep_extended=True)
        lose_reply(proxy)
        await heard.count(Unknown, 1)
        await heard.count(Extended, 1)
        assert heard.all(Lost) == []
        await is_the_only_one(onlooker, keys, lease)


# Helpers


async def held(keys: Keys) -> None:
    """Waits until somebody holds it in Redis."""

    async def is_held() -> bool:
        return keys.holder() is not None

    await wait_until_async(is_held, what=f"a holder of {keys.name}")


async def first_grant(onlooker: Locker, name: str, *, after: int = 0) -> int:
    """Waits until one of ours holds it in Redis by a later token than `after`: that token."""
    token = None

    async def held() -> bool:
        nonlocal token
        view = await onlooker.inspect(name)
        token = view.fencing_token if view else None
        return token is not None and token > after

    await wait_until_async(held, what=f"a holder of {name}")
    assert token is not None
    return token


async def is_the_only_one(onlooker: Locker, keys: Keys, lease: Lease) -> None:
    """The lease is what Redis has under this name, and its release leaves neither a holder nor anybody in line."""
    assert await first_grant(onlooker, lease.name, after=lease.fencing_token - 1) == lease.fencing_token
    assert await lease.release()
    await keys.gone()

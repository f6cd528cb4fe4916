"""What is carried out for a lease once that one is over keeps the lock for nobody: it is given back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

import pytest

from locks import Lease, LeaseLost, Locker, LossReason
from locks.clock import SYSTEM
from locks.events import StoreLost, WakeSource
from locks.lease import LATE_S
from locks.request import Request
from tests.harness import PATIENCE_S, wait_until_async
from tests.integration.lock_faults import LONG_MS, lease_end_s, stand_and_listen, url_of
from tests.integration.test_locker import Heard, Keys, locking
from tests.proxy import Proxy, Way
from tests.servers.redis_server import RedisServer

LEASE_S = 600.0
LAPSES_S = 5.0
CLAIM_MS = 3000  # of a handoff: how long a body lasts whose lease nobody confirms


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[Proxy]:
    with Proxy("127.0.0.1", redis_server.port) as proxy:
        yield proxy


async def until(condition: Callable[[], bool], what: str) -> None:
    async def is_so() -> bool:
        return condition()

    await wait_until_async(is_so, what=what)


async def lasts(locker: Locker, name: str) -> None:
    """A body that goes on until its lease is lost."""
    async with locker.hold(name, lease_ttl_s=LEASE_S):
        await asyncio.sleep(PATIENCE_S)


def block_until_over(lease: Lease) -> None:
    while lease.remaining_s():
        time.sleep(0.01)


async def is_over(body: asyncio.Task[None]) -> None:
    with pytest.raises(LeaseLost):
        await asyncio.wait_for(body, PATIENCE_S)


async def lose_connections(proxy: Proxy, heard: Heard) -> None:
    """Whatever the server has answered, and is kept back, is never heard."""
    proxy.go_away()
    await until(lambda: heard.all(StoreLost) != [], "a connection that is lost")
    proxy.let_through(Way.REPLIES)
    proxy.come_back()


@pytest.mark.parametrize("turns", [1, 2])
async def test_a_look_that_takes_the_lock_for_nobody_and_is_not_answered_is_given_back(
    redis_server: RedisServer, proxy: Proxy, name: str, keys: Keys, turns: int
) -> None:
    """It is on its way for longer than the lease that its id was granted meanwhile; the connection is lost then."""
    heard = Heard()
    async with (
        locking(redis_server.url, claim_ms=CLAIM_MS) as holder,
        locking(url_of(proxy), heard=heard, claim_ms=CLAIM_MS, alive_ms=900) as late,
    ):
        lease = await holder.acquire(name, lease_ttl_s=LEASE_S)
        bodies = [asyncio.create_task(lasts(late, name)) for _ in range(turns)]
        await stand_and_listen(keys, 1)
        line = late._lines.by_name[name]
        await until(lambda: len(line.waiters) == turns and line.asked is None, "all that wait here, in line")
        proxy.hold(Way.REQUESTS)
        await until(lambda: isinstance(line.asked, Request), "a look that is on its way")
        lease_id = line.lease_id
        await lease.release()
        await until(lambda: late._held.holder_of(name) is not None, "a body that has begun under its claim")
        if turns == 2:
            bodies[0].cancel()  # and the next turn of the run begins, under an id of its own
            await asyncio.wait([bodies[0]])
        await is_over(bodies[-1])
        await until(lambda: keys.holder() is None, "the end of the claim")

        proxy.hold(Way.REPLIES)
        proxy.let_through(Way.REQUESTS)
        await until(lambda: keys.holder() == lease_id, "the look that is carried out late")
        await lose_connections(proxy, heard)
        await keys.gone()


async def test_nor_does_one_that_takes_the_lock_after_a_lease_that_nobody_extends(
    redis_server: RedisServer, proxy: Proxy, name: str, keys: Keys
) -> None:
    heard = Heard()
    async with locking(url_of(proxy), heard=heard) as locker:
        lease = await locker.acquire(name, lease_ttl_s=LEASE_S)
        waiting = asyncio.create_task(locker.acquire(name, lease_ttl_s=LAPSES_S, keep_extended=False))
        await stand_and_listen(keys, 1)
        line = locker._lines.by_name[name]
        await until(lambda: line.asked is None, "an answer to the look")
        proxy.hold(Way.REPLIES)
        releasing = asyncio.create_task(lease.release())
        await until(lambda: keys.holder() == line.lease_id, "a handoff of which nobody has heard")
        proxy.hold(Way.REQUESTS)
        line.look(WakeSource.HEARTBEAT)
        proxy.let_through(Way.REPLIES)
        assert await releasing
        granted = await waiting
        await asyncio.wait_for(granted.lost.wait(), PATIENCE_S)
        await until(lambda: keys.holder() is None, "the end of the lease")

        proxy.hold(Way.REPLIES)
        proxy.let_through(Way.REQUESTS)
        await until(lambda: keys.holder() == granted.lease_id, "the look that is carried out late")
        ends_at_s = lease_end_s(keys)
        await lose_connections(proxy, heard)
        await keys.gone()
        assert ends_at_s is not None
        assert SYSTEM.monotonic_s() < ends_at_s - 1.0, "it was not given back, but over"


async def test_a_lease_that_the_server_was_asked_late_to_extend_is_given_back_when_it_is_lost(
    proxy: Proxy, name: str, keys: Keys
) -> None:
    """Its holder counts from when it asked, the server from when it was asked."""
    async with locking(url_of(proxy)) as locker:
        lease = await locker.acquire(name, lease_ttl_s=LEASE_S)
        proxy.hold(Way.REQUESTS)
        extending = asyncio.create_task(lease.extend(LEASE_S))
        await asyncio.sleep(2 * LATE_S)
        proxy.let_through(Way.REQUESTS)
        await extending
        locker._renewal.lose(lease, LossReason.EXPIRED)
        await keys.gone()


async def test_a_look_that_the_server_has_refused_for_a_while_stands_in_line_for_nobody_who_has_left(
    redis_server: RedisServer, name: str, keys: Keys
) -> None:
    """It is sent again behind the give-back of its id, and another caller of its process has a place by then."""
    keys.client.set(keys.lock, "another", px=LONG_MS)
    async with locking(redis_server.url, alive_ms=LONG_MS) as locker:
        keys.client.config_set("min-replicas-to-write", 1)
        leaves = asyncio.create_task(locker.acquire(name))

        def is_refused() -> bool:
            line = locker._lines.by_name.get(name)
            return line is not None and isinstance(line.asked, Request) and line.asked.sent_again

        await until(is_refused, "a look that is refused")
        leaves.cancel()
        await asyncio.wait([leaves])
        keys.client.config_set("min-replicas-to-write", 0)
        await until(lambda: len(locker._tasks) == 0, "an answer to it")
        await keys.queue_of(0)


async def test_a_lease_that_is_confirmed_when_it_is_lost_is_given_back(
    redis_server: RedisServer, proxy: Proxy, name: str, keys: Keys
) -> None:
    """By its holder's clock a claim ends earlier than at the server, which hears of the body between the two."""
    async with (
        locking(redis_server.url, claim_ms=CLAIM_MS) as holder,
        locking(url_of(proxy), claim_ms=CLAIM_MS, alive_ms=LONG_MS) as late,  # which looks once
    ):
        lease = await holder.acquire(name, lease_ttl_s=LEASE_S)

        async def blocks() -> None:
            async with late.hold(name, lease_ttl_s=LEASE_S) as held:
                block_until_over(held)  # so that no extension is sent
                await asyncio.sleep(PATIENCE_S)

        body = asyncio.create_task(blocks())
        await stand_and_listen(keys, 1)
        line = late._lines.by_name[name]
        await until(lambda: line.asked is None, "an answer to the look")
        proxy.hold(Way.REQUESTS)
        stood_at_s = line._stood_at_s
        await until(lambda: SYSTEM.monotonic_s() > stood_at_s + CLAIM_MS / 2000, "half a claim")
        await lease.release()
        await is_over(body)
        assert keys.holder() is not None, "the claim was over at the server too"
        proxy.let_through(Way.REQUESTS)
        await keys.gone()

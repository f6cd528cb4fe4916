"""A run whose turn is lent to a client outside."""

from __future__ import annotations

import asyncio

import pytest

from locks import LockStoreDown
from locks.events import Acquired, LockEvent
from tests.harness import PATIENCE_S, OwnRedis, wait_until_async
from tests.integration.test_lock_runs import LONG_S, in_line, process
from tests.integration.test_locker import Heard, own_keys
from tests.proxy import Proxy, Way


class HoldsAnswers(Heard):
    """Remembers, and holds back what the server says once so many leases were granted."""

    def __init__(self, proxy: Proxy, *, after: int) -> None:
        super().__init__()
        self._proxy, self._after = proxy, after

    def __call__(self, event: LockEvent) -> None:
        super().__call__(event)
        if isinstance(event, Acquired) and len(self.all(Acquired)) == self._after:
            self._proxy.hold(Way.REPLIES)


async def test_no_turn_follows_a_lease_that_may_have_been_lent_under_a_clients_id(
    own_redis: OwnRedis, name: str
) -> None:
    """Whoever asked for it does not wait any longer when the server's answer, that it is his, is still on its way."""
    with Proxy("127.0.0.1", own_redis.port) as proxy:
        heard = HoldsAnswers(proxy, after=2)
        async with process(f"redis://127.0.0.1:{proxy.port}", "api-1", heard) as locker:
            holder = await locker.acquire(name, lease_ttl_s=LONG_S)
            borrowing = locker.lending.lend_as(name, "c" * 32, lease_ttl_s=LONG_S, wait_s=1.0, request_id="lent")
            [borrower] = await in_line(heard, [lambda: asyncio.create_task(borrowing)])
            acquiring = locker.acquire(name, lease_ttl_s=LONG_S)
            [next_one] = await in_line(heard, [lambda: asyncio.create_task(acquiring)])
            await holder.release()
            await heard.count(Acquired, 2)
            await asyncio.wait([borrower], timeout=1.5)  # its wait is over, and it looks once more
            proxy.let_through(Way.REPLIES)
            loan = await borrower
            assert len(heard.all(Acquired)) == 2, "the next one began beside it"
            await locker.lending.release(name, loan.lease_id)
            lease = await next_one
            assert lease.fencing_token > loan.fencing_token
            await lease.release()


async def test_nobody_is_lent_a_turn_under_an_id_that_the_server_does_not_know(own_redis: OwnRedis, name: str) -> None:
    """Without memory the server extends the run, and cannot write down whose turn it is."""
    heard = Heard()
    with own_keys(own_redis, name) as keys:
        async with process(own_redis.url, "api-1", heard) as locker:
            holder = await locker.acquire(name, lease_ttl_s=LONG_S)
            [first] = await in_line(heard, [lambda: asyncio.create_task(locker.acquire(name, lease_ttl_s=LONG_S))])
            lending = locker.lending.lend(name, lease_ttl_s=LONG_S, wait_s=LONG_S, request_id="lent")
            [borrower] = await in_line(heard, [lambda: asyncio.create_task(lending)])
            await holder.release()
            lease = await first
            keys.client.config_set("maxmemory", 1)
            await lease.release()
            with pytest.raises(LockStoreDown):
                await borrower
            keys.client.config_set("maxmemory", 0)
            await keys.gone()


async def test_a_turn_that_begins_without_a_connection_is_lent_under_the_id_that_the_server_gets(
    proxy: Proxy, own_redis: OwnRedis, name: str
) -> None:
    heard = Heard()
    with own_keys(own_redis, name) as keys:
        async with process(f"redis://127.0.0.1:{proxy.port}/0", "api-1", heard) as locker:
            holder = await locker.acquire(name, lease_ttl_s=LONG_S)
            [first] = await in_line(heard, [lambda: asyncio.create_task(locker.acquire(name, lease_ttl_s=LONG_S))])
            lending = locker.lending.lend(name, lease_ttl_s=LONG_S, wait_s=LONG_S, request_id="lent")
            [borrower] = await in_line(heard, [lambda: asyncio.create_task(lending)])
            await holder.release()
            lease = await first

            async def is_down() -> bool:
                return not locker.is_up

            proxy.go_away()
            await wait_until_async(is_down, what="the end of the connection")
            await lease.release()
            proxy.come_back()
            loan = await asyncio.wait_for(borrower, PATIENCE_S)
            assert keys.holder() == loan.lease_id
            await locker.lending.extend(name, loan.lease_id, lease_ttl_s=LONG_S)
            await locker.lending.release(name, loan.lease_id)
            await keys.gone()

"""A run whose turn is lent to a client outside."""

from __future__ import annotations

import asyncio

from locks.events import Acquired, LockEvent
from tests.harness import OwnRedis
from tests.integration.test_lock_runs import LONG_S, in_line, process
from tests.integration.test_locker import Heard
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

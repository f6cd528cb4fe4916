"""A listener that raises at every event: every call does what it does without one, and the log says so once."""
# ruff: noqa: PT012 - what raises is a hold with its whole body

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import pytest
import redis

from locks import LeaseLost, LockBusy, LossReason
from locks.events import LockEvent
from tests.harness import PATIENCE_S, wait_until_async
from tests.integration.lock_faults import keys_at
from tests.integration.test_locker import Keys, locking


@pytest.fixture
def keys(redis_url: str, name: str) -> Iterator[Keys]:
    with keys_at(redis_url, name) as keys:
        yield keys


class Raising:
    """Remembers what it was told of, and raises."""

    def __init__(self, error: BaseException) -> None:
        self._error = error
        self.kinds: set[str] = set()

    def __call__(self, event: LockEvent) -> None:
        self.kinds.add(type(event).__name__)
        raise self._error


@pytest.mark.parametrize("error", [ValueError("no"), asyncio.CancelledError()], ids=repr)
async def test_what_a_listener_raises_changes_nothing(
    redis_url: str, name: str, keys: Keys, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    listener = Raising(error)
    async with locking(redis_url, heard=listener) as locker:
        lease = await locker.acquire(name)
        await lease.extend(20)
        with pytest.raises(LockBusy):
            await locker.acquire(name, wait_s=0.05)
        waiting = asyncio.create_task(locker.acquire(name, wait_s=60))
        await asyncio.sleep(0)
        assert await lease.release()
        lease = await locker.adopt((await waiting).export())
        assert await locker.force_release(name, fencing_token=lease.fencing_token)
        await asyncio.wait_for(lease.lost.wait(), PATIENCE_S)
        loan = await locker.lending.lend(name, lease_ttl_s=20, wait_s=60, request_id="")
        await locker.lending.extend(name, loan.lease_id, lease_ttl_s=20)
        await locker.lending.release(name, loan.lease_id)
        assert locker.held == []
    assert keys.holder() is None
    told = [record for record in caplog.records if record.name == "locks" and record.levelno == logging.ERROR]
    assert len(told) == 1
    assert {"StoreUp", "Acquired", "Waiting", "GaveUp", "Releasing", "Released"} <= listener.kinds
    assert {"Extended", "Exported", "Adopted", "Forced", "Lost"} <= listener.kinds


async def test_a_loss_whose_listener_raises_leaves_other_leases_extended(
    redis_url: str, their_client: redis.Redis, name: str
) -> None:
    def raise_always() -> None:
        raise ValueError("no")

    async with locking(redis_url, heard=Raising(ValueError("no"))) as locker:
        lost = [await locker.acquire(f"{name}/{n}", lease_ttl_s=0.6, keep_extended=True) for n in range(3)]
        async with locker.hold(name, lease_ttl_s=0.6) as lease:
            for each in lost:
                each.when_lost(raise_always)
                their_client.delete(f"lock:{{{each.name}}}")
            for each in lost:
                await asyncio.wait_for(each.lost.wait(), PATIENCE_S)
            ended_at_s = lease.deadline_s

            async def extended() -> bool:
                return lease.deadline_s > ended_at_s

            await wait_until_async(extended)
        assert lease.loss_reason is None
        with pytest.raises(LeaseLost) as loss:
            async with locker.hold(name, lease_ttl_s=0.6):
                their_client.delete(f"lock:{{{name}}}")
                await asyncio.sleep(PATIENCE_S)
        assert loss.value.reason is LossReason.DELETED

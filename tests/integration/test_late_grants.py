"""A grant that is heard only when its lease is over is none: the lock may be somebody else's by then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from locks import Lease, LeaseLost, LockBusy
from locks.events import Acquired, Adopted, Lost
from locks.wire import Wire
from tests.harness import PATIENCE_S
from tests.integration.lock_faults import LONG_MS, stand
from tests.integration.test_locker import Heard, Keys, locking

LEASE_S = 1.0
SENT_S = 0.5  # within that the server has done what was sent


@pytest.fixture
def keys(redis_url: str, name: str) -> Iterator[Keys]:
    keys = Keys(redis_url, name)
    yield keys
    keys.client.close()


class Standstill:
    """Once armed, this process stands still as soon as the lock is granted to somebody else than `before`, for as long
    as that lease lasts; so many times.
    """

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._before: str | None = None
        self._times = 0
        self.missed: list[str] = []  # the lease ids

    def arm(self, before: str | None = None, *, times: int = 1) -> None:
        self._before, self._times = before, times

    def after_sending(self) -> None:
        if self._times and (lease_id := self._granted()) is not None:
            self._times -= 1
            self.missed.append(lease_id)
            while self._keys.holder() == lease_id:
                time.sleep(0.01)

    def _granted(self) -> str | None:
        give_up_at_s = time.monotonic() + SENT_S
        while time.monotonic() < give_up_at_s:
            holder = self._keys.holder()
            if holder is not None and holder != self._before:
                return holder
            time.sleep(0.005)
        return None


@pytest.fixture
def standstill(monkeypatch: pytest.MonkeyPatch, keys: Keys) -> Standstill:
    standstill = Standstill(keys)
    flush = Wire.flush

    def flushing(wire: Wire) -> None:
        flush(wire)
        standstill.after_sending()

    monkeypatch.setattr(Wire, "flush", flushing)
    return standstill


async def is_a_lease(lease: Lease, keys: Keys, heard: Heard, *, grants: int = 1) -> None:
    """Still its holder's, the only grant that anybody was told of, and nothing is left when it is given back."""
    assert await lease.release(), "it was no lease any more"
    assert len(heard.all(Acquired)) == grants
    assert heard.all(Lost) == []
    await keys.gone()


@pytest.mark.parametrize("wait_s", [None, 0, PATIENCE_S])
async def test_who_asked_for_a_free_lock_asks_again(
    redis_url: str, keys: Keys, standstill: Standstill, wait_s: float | None
) -> None:
    heard = Heard()
    async with locking(redis_url, heard=heard) as locker:
        standstill.arm()
        lease = await locker.acquire(keys.name, lease_ttl_s=LEASE_S, wait_s=wait_s)
        assert len(standstill.missed) == 1
        assert lease.waited_s > LEASE_S / 2
        await is_a_lease(lease, keys, heard)


async def test_who_waited_in_line_asks_again(redis_url: str, keys: Keys, standstill: Standstill) -> None:
    heard = Heard()
    async with locking(redis_url, heard=heard) as locker:
        keys.client.set(keys.lock, "another", px=LONG_MS)
        waiting = asyncio.create_task(locker.acquire(keys.name, lease_ttl_s=LEASE_S))
        await stand(keys, 1)
        standstill.arm()
        keys.client.delete(keys.lock)
        lease = await asyncio.wait_for(waiting, PATIENCE_S)
        assert len(standstill.missed) == 1
        await is_a_lease(lease, keys, heard)


async def test_who_is_given_the_lock_by_a_release_of_its_own_process_asks_again(
    redis_url: str, keys: Keys, standstill: Standstill
) -> None:
    heard = Heard()
    async with locking(redis_url, heard=heard) as locker:
        first = await locker.acquire(keys.name, lease_ttl_s=PATIENCE_S)
        waiting = asyncio.create_task(locker.acquire(keys.name, lease_ttl_s=LEASE_S))
        await stand(keys, 1)
        standstill.arm(before=first.lease_id)
        assert await first.release()
        lease = await asyncio.wait_for(waiting, PATIENCE_S)
        assert len(standstill.missed) == 1
        assert lease.fencing_token > first.fencing_token
        await is_a_lease(lease, keys, heard, grants=2)


async def test_who_does_not_wait_and_hears_late_twice_is_told_that_it_is_busy(
    redis_url: str, keys: Keys, standstill: Standstill
) -> None:
    async with locking(redis_url) as locker:
        standstill.arm(times=2)
        with pytest.raises(LockBusy):
            await locker.acquire(keys.name, lease_ttl_s=LEASE_S, wait_s=0)
        assert len(standstill.missed) == 2
        await keys.gone()
        lease = await locker.acquire(keys.name, lease_ttl_s=LEASE_S, wait_s=0)
        assert await lease.release()


async def test_who_adopts_a_lease_and_hears_late_that_he_has_it_has_none(
    redis_url: str, keys: Keys, standstill: Standstill
) -> None:
    heard = Heard()
    async with locking(redis_url, heard=heard) as locker:
        exported = await locker.acquire(keys.name, lease_ttl_s=LEASE_S)
        text = exported.export()
        standstill.arm(before=exported.lease_id)
        with pytest.raises(LeaseLost):
            await locker.adopt(text)
        assert len(standstill.missed) == 1
        assert (heard.all(Adopted), heard.all(Lost)) == ([], [])
        await keys.gone()

"""The server's clock is moved by an hour: tokens rise all the same, and nobody waits for an hour."""
# ruff: noqa: PT012 - what raises is a hold with its whole body

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from locks import LeaseLost, Locker, LossReason
from tests.conftest import ReportFigures
from tests.harness import PATIENCE_S, wait_until_async
from tests.integration.lock_faults import LONG_MS, SOON_S, keys_at, stand
from tests.integration.test_locker import Keys, locking
from tests.lock_process import LockProcess
from tests.servers.clock import ShiftedClockServer
from tests.servers.fixtures import StartLockProcess

HOUR_S = 3600.0


@pytest.fixture
def keys(shifted_clock_server: ShiftedClockServer, name: str) -> Iterator[Keys]:
    with keys_at(shifted_clock_server.url, name) as keys:
        yield keys


@pytest.mark.parametrize("offset_s", [-HOUR_S, HOUR_S])
async def test_tokens_rise_over_a_clock_that_is_moved_and_moved_back(
    shifted_clock_server: ShiftedClockServer, name: str, lock_process: StartLockProcess, offset_s: float
) -> None:
    other = lock_process(shifted_clock_server.url)
    tokens = []
    async with locking(shifted_clock_server.url) as locker:
        for offset in (0.0, offset_s, 0.0):
            shifted_clock_server.shift_clock(offset_s=offset)
            tokens += [await our_turn(locker, name), await its_turn(other, name), await its_turn(other, name)]
            tokens += [await our_turn(locker, name), await our_turn(locker, name)]

    assert tokens == sorted(set(tokens))


async def test_who_comes_new_after_a_clock_was_set_back_gets_higher_tokens_too(
    shifted_clock_server: ShiftedClockServer, name: str, lock_process: StartLockProcess
) -> None:
    before = lock_process(shifted_clock_server.url)
    tokens = [await its_turn(before, name)]
    before.kill()
    shifted_clock_server.shift_clock(offset_s=-HOUR_S)
    after = lock_process(shifted_clock_server.url)
    tokens += [await its_turn(after, name), await its_turn(after, name)]

    assert tokens == sorted(set(tokens))


async def test_a_dead_holders_lock_is_taken_over_within_a_lease_of_a_clock_that_is_set_back(
    shifted_clock_server: ShiftedClockServer,
    name: str,
    keys: Keys,
    lock_process: StartLockProcess,
    report_figures: ReportFigures,
) -> None:
    """Its key would expire in an hour."""
    holder = lock_process(shifted_clock_server.url)
    held = await holder.wait_for_async(holder.hold(name, lease_ttl_s=1.0), "acquired")
    async with locking(shifted_clock_server.url, alive_ms=900) as locker:
        waiting = asyncio.create_task(locker.acquire(name))
        await stand(keys, 1)
        holder.kill()
        shifted_clock_server.shift_clock(offset_s=-HOUR_S)
        moved_at_s = time.monotonic()

        lease = await asyncio.wait_for(waiting, PATIENCE_S)

        took_ms = (time.monotonic() - moved_at_s) * 1000
        assert lease.fencing_token > held["fencing_token"]
        assert await lease.release()
    report_figures("takeover of a lease of 1 s after the clock was set back by an hour", [took_ms])


async def test_a_holder_and_its_waiters_keep_lease_and_order_when_the_clock_is_set_back(
    shifted_clock_server: ShiftedClockServer, name: str, keys: Keys, lock_process: StartLockProcess
) -> None:
    processes = [lock_process(shifted_clock_server.url) for _ in range(3)]
    async with locking(shifted_clock_server.url) as locker:
        async with locker.hold(name, lease_ttl_s=3.0) as lease:
            handles = []
            for number, process in enumerate(processes):
                handles.append(process.hold(name, lease_ttl_s=600))
                await stand(keys, number + 1)

            shifted_clock_server.shift_clock(offset_s=-HOUR_S)

            await all_have_shown_life(keys)
        assert lease.loss_reason is None
        tokens = [lease.fencing_token]
        for process, handle in zip(processes, handles, strict=True):
            tokens.append((await process.wait_for_async(handle, "acquired"))["fencing_token"])
            process.release(handle)
            assert (await process.wait_for_async(handle, "released"))["still_ours"]
        assert tokens == sorted(set(tokens))


@pytest.mark.parametrize("offset_s", [-HOUR_S, HOUR_S])
async def test_nobody_in_line_is_forgotten_when_the_lock_is_freed_as_the_clock_moves(
    shifted_clock_server: ShiftedClockServer, name: str, keys: Keys, lock_process: StartLockProcess, offset_s: float
) -> None:
    """Before anybody in line could show a sign of life by the new clock."""
    processes = [lock_process(shifted_clock_server.url) for _ in range(2)]
    async with locking(shifted_clock_server.url, alive_ms=900) as locker:
        lease = await locker.acquire(name, lease_ttl_s=600)
        handles = []
        for number, process in enumerate(processes):
            handles.append(process.hold(name, lease_ttl_s=600))
            await stand(keys, number + 1)
        waiting = asyncio.create_task(locker.acquire(name, lease_ttl_s=600))

        shifted_clock_server.shift_clock(offset_s=offset_s)
        await lease.release()

        turns = [asyncio.create_task(turn(process, handle)) for process, handle in zip(processes, handles, strict=True)]
        assert await (await asyncio.wait_for(waiting, SOON_S)).release()
        await asyncio.wait_for(asyncio.gather(*turns), SOON_S)
        await keys.gone()


async def test_a_clock_set_forward_past_a_lease_is_told_to_its_holder_and_tokens_rise(
    shifted_clock_server: ShiftedClockServer, name: str, keys: Keys, lock_process: StartLockProcess
) -> None:
    successor = lock_process(shifted_clock_server.url)
    async with locking(shifted_clock_server.url, alive_ms=LONG_MS) as locker:
        with pytest.raises(LeaseLost) as caught:
            async with locker.hold(name, lease_ttl_s=3.0) as lease:
                handle = successor.hold(name, lease_ttl_s=600)
                await stand(keys, 1)
                shifted_clock_server.shift_clock(offset_s=HOUR_S)
                await asyncio.sleep(PATIENCE_S)
        acquired = await successor.wait_for_async(handle, "acquired")
    assert caught.value.reason in (LossReason.DELETED, LossReason.TAKEN, LossReason.EXPIRED)
    assert acquired["fencing_token"] > lease.fencing_token


# Helpers


async def our_turn(locker: Locker, name: str) -> int:
    async with locker.hold(name, wait_s=SOON_S) as lease:
        return lease.fencing_token


async def its_turn(process: LockProcess, name: str) -> int:
    return await turn(process, process.hold(name, wait_s=SOON_S))


async def turn(process: LockProcess, handle: int) -> int:
    """Waits for the lock, lets go of it, and tells the fencing token."""
    acquired = await process.wait_for_async(handle, "acquired")
    process.release(handle)
    assert (await process.wait_for_async(handle, "released"))["still_ours"]
    token = acquired["fencing_token"]
    assert isinstance(token, int)
    return token


async def all_have_shown_life(keys: Keys) -> None:
    """Waits until every process in line has come again: its entry is another one."""
    before = keys.client.hgetall(keys.waiters)
    channels = [str(channel) for channel in keys.client.zrange(keys.queue, 0, -1)]

    async def all_have() -> bool:
        now = keys.client.hgetall(keys.waiters)
        return all(now.get(channel, before[channel]) != before[channel] for channel in channels)

    await wait_until_async(all_have, what="signs of life by the new clock")

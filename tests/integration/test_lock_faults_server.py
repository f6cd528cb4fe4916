"""A server that freezes, or loses its data, scripts or memory: nobody waits for ever, and all goes on afterwards."""
# ruff: noqa: PT012 - what raises is a hold with its whole body

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from locks import Lease, LeaseLost, Locker, LockStoreDown, LossReason
from locks.errors import LockStoreRefused
from locks.events import Acquired, Extended, Lost, StoreLost, Unknown
from tests.harness import PATIENCE_S, wait_until_async
from tests.integration.lock_faults import LONG_MS, SOON_S, Timed, explained, keys_at, stand, stand_and_listen
from tests.integration.test_locker import APART_S, Heard, Keys, locking
from tests.proxy import Proxy, Way
from tests.servers.fixtures import StartLockProcess, StartRedis
from tests.servers.redis_server import RedisServer

SILENT_S = 0.3  # the command timeout of those who are to find out


# A server that freezes


@pytest.mark.parametrize("wait_s", [0, 30, None])
async def test_a_frozen_server_fails_a_first_acquire_within_bounds_and_keeps_no_lock_for_it(
    redis_server: RedisServer, name: str, wait_s: float | None
) -> None:
    async with locking(redis_server.url, command_timeout_s=SILENT_S) as locker:
        redis_server.freeze()
        with pytest.raises(LockStoreDown):
            await asyncio.wait_for(locker.acquire(name, lease_ttl_s=600, wait_s=wait_s), SOON_S)

        # The server has the command, and carries it out for nobody.
        redis_server.thaw()

        assert await locker.up_within(PATIENCE_S)
        lease = await asyncio.wait_for(locker.acquire(name), SOON_S)
        assert await lease.release()


async def test_a_frozen_server_fails_waiters_within_bounds_and_keeps_no_lock_for_them(
    redis_server: RedisServer, name: str, keys: Keys
) -> None:
    async with locking(redis_server.url, command_timeout_s=SILENT_S, alive_ms=600) as locker:
        keys.client.set(keys.lock, "another", px=1000)
        waiting = [asyncio.create_task(locker.acquire(name, lease_ttl_s=600)) for _ in range(3)]
        await stand(keys, 1)
        redis_server.freeze()

        for outcome in await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), SOON_S):
            assert isinstance(outcome, LockStoreDown)
        await asyncio.sleep(1.0)  # the other's lease is over, and the look that the server has been sent finds that
        redis_server.thaw()

        assert await locker.up_within(PATIENCE_S)
        lease = await asyncio.wait_for(locker.acquire(name), SOON_S)
        assert await lease.release()


async def test_a_frozen_server_fails_a_release_within_bounds_and_it_is_done_afterwards(
    redis_server: RedisServer, name: str, keys: Keys
) -> None:
    async with locking(redis_server.url, command_timeout_s=SILENT_S) as locker:
        lease = await locker.acquire(name, lease_ttl_s=600)
        redis_server.freeze()
        with pytest.raises(LockStoreDown):
            await asyncio.wait_for(lease.release(), SOON_S)
        redis_server.thaw()
        await asyncio.wait_for(keys.gone(), SOON_S)


async def test_a_frozen_server_is_unknown_and_then_a_loss_before_the_lease_ends_in_it(
    redis_server: RedisServer, name: str, keys: Keys
) -> None:
    heard = Timed()
    async with locking(redis_server.url, heard=heard, command_timeout_s=SILENT_S) as locker:
        with pytest.raises(LeaseLost) as caught:
            async with locker.hold(name, lease_ttl_s=2.0) as lease:
                await heard.count(Extended, 1)
                # In one go, so that no answer changes the one without the other.
                deadline_s, remaining_ms = lease.deadline_s, int(keys.client.pttl(keys.lock))
                ends_at_most_s = time.monotonic() + (remaining_ms + 1) / 1000
                redis_server.freeze()
                await asyncio.sleep(PATIENCE_S)
        redis_server.thaw()

    assert caught.value.reason is LossReason.UNREACHABLE
    assert [type(event) for event in heard.events if isinstance(event, Unknown | Lost)][-2:] == [Unknown, Lost]
    assert deadline_s < ends_at_most_s
    # Not before its own end, and not long after.
    assert -0.01 <= heard.last_at_s(Lost) - lease.deadline_s < SOON_S


async def test_a_server_that_thaws_within_the_lease_costs_neither_holder_nor_waiter_anything(
    redis_server: RedisServer, name: str, keys: Keys
) -> None:
    heard = Heard()
    async with (
        locking(redis_server.url, heard=heard, command_timeout_s=SILENT_S) as holding,
        locking(redis_server.url, alive_ms=900) as locker,
    ):
        async with holding.hold(name, lease_ttl_s=6.0) as lease:
            waiting = asyncio.create_task(locker.acquire(name))
            await stand(keys, 1)
            redis_server.freeze()
            await heard.count(Unknown, 1)
            extended = len(heard.all(Extended))
            redis_server.thaw()
            await heard.count(Extended, extended + 1)
            assert lease.loss_reason is None
        assert (await asyncio.wait_for(waiting, SOON_S)).fencing_token > lease.fencing_token
        assert await waiting.result().release()
        assert heard.all(Lost) == []


# A server that loses everything


LOSSES = pytest.mark.parametrize("loss", [RedisServer.flush, RedisServer.restart], ids=["FLUSHALL", "restart"])
Loss = Callable[[RedisServer], None]


@LOSSES
async def test_lost_data_is_told_to_the_holder_and_changes_neither_order_nor_tokens(
    redis_server: RedisServer, name: str, keys: Keys, lock_process: StartLockProcess, loss: Loss
) -> None:
    first, second, third = processes = [lock_process(redis_server.url) for _ in range(3)]
    async with locking(redis_server.url) as locker:
        with explained(keys, processes):
            with pytest.raises(LeaseLost) as caught:
                async with locker.hold(name, lease_ttl_s=1.5) as lease:
                    handles = {}
                    for number, process in enumerate(processes):
                        await asyncio.sleep(APART_S)
                        handles[process] = process.hold(name, lease_ttl_s=600)
                        await stand(keys, number + 1)
                    for process in (second, third):
                        process.freeze()

                    loss(redis_server)

                    await asyncio.sleep(PATIENCE_S)
            assert caught.value.reason in (LossReason.DELETED, LossReason.TAKEN)
            # The holder may hear of its loss before the first is back, and the others must not come before it.
            await first.wait_for_async(handles[first], "acquired")

            # They come back in the wrong order, and stand in the right one.
            for number, process in enumerate((third, second)):
                process.thaw()
                await stand_and_listen(keys, number + 1)
            tokens = [lease.fencing_token]
            for process in processes:
                tokens.append((await process.wait_for_async(handles[process], "acquired"))["fencing_token"])
                process.release(handles[process])
                assert (await process.wait_for_async(handles[process], "released"))["still_ours"]
            assert tokens == sorted(set(tokens))


@LOSSES
async def test_after_lost_data_who_is_back_first_leaves_the_lock_to_who_has_waited_longer(
    redis_server: RedisServer, name: str, keys: Keys, loss: Loss
) -> None:
    grace_ms = 3000  # the one who has waited longer is back within a tenth of it
    with Proxy("127.0.0.1", redis_server.port) as proxy:
        async with (
            locking(f"redis://127.0.0.1:{proxy.port}/0", grace_ms=grace_ms) as longer,
            locking(redis_server.url, grace_ms=grace_ms) as other,
            locking(redis_server.url, grace_ms=grace_ms) as new,
        ):
            first, second = await in_line_behind_another(keys, longer, other)
            proxy.go_away()
            loss(redis_server)
            await stand(keys, 1)
            newcomer = asyncio.create_task(new.acquire(name, lease_ttl_s=600))
            await stand(keys, 2)
            proxy.come_back()

            for waiting, behind in ((first, [second, newcomer]), (second, [newcomer]), (newcomer, [])):
                lease = await asyncio.wait_for(waiting, SOON_S)
                assert not any(later.done() for later in behind)
                assert await lease.release()


@LOSSES
async def test_after_lost_data_nobody_waits_long_for_who_does_not_come_back(
    redis_server: RedisServer, name: str, keys: Keys, loss: Loss
) -> None:
    with Proxy("127.0.0.1", redis_server.port) as proxy:
        async with locking(f"redis://127.0.0.1:{proxy.port}/0") as longer, locking(redis_server.url) as other:
            first, second = await in_line_behind_another(keys, longer, other)
            proxy.go_away()
            loss(redis_server)

            lease = await asyncio.wait_for(second, SOON_S)

            proxy.come_back()
            await stand_and_listen(keys, 1)
            assert await lease.release()
            assert await (await asyncio.wait_for(first, SOON_S)).release()


async def in_line_behind_another(keys: Keys, *lockers: Locker) -> list[asyncio.Task[Lease]]:
    """A waiter in each of these processes, in this order."""
    keys.client.set(keys.lock, "another", px=600_000)
    waiting = []
    for number, locker in enumerate(lockers):
        waiting.append(asyncio.create_task(locker.acquire(keys.name, lease_ttl_s=600)))
        await stand(keys, number + 1)
        await asyncio.sleep(APART_S)
    return waiting


# A server that loses its scripts


async def test_flushed_scripts_cost_no_caller_anything(redis_server: RedisServer, name: str, keys: Keys) -> None:
    heard = Heard()
    flush = keys.client.script_flush
    async with locking(redis_server.url, heard=heard, alive_ms=LONG_MS) as locker:
        for wait_s in (0, None):
            flush()
            lease = await locker.acquire(name, wait_s=wait_s)
            flush()
            await lease.extend(20)
            flush()
            assert await lease.release()

        lease = await locker.acquire(name)
        flush()
        waiting = [asyncio.create_task(locker.acquire(name)) for _ in range(4)]
        await stand(keys, 1)
        flush()
        keys.client.delete(keys.lock)  # so that a look finds it free
        first = await asyncio.wait_for(waiting[0], SOON_S)
        flush()
        assert await first.release()  # which hands it over
        second = await asyncio.wait_for(waiting[1], SOON_S)
        flush()
        waiting[2].cancel()
        flush()
        waiting[3].cancel()
        await asyncio.wait(waiting)
        flush()
        assert await second.release()
        await keys.gone()
        assert not await lease.release()
        assert heard.all(StoreLost) == []


async def test_a_cancelled_call_that_has_the_lock_gives_it_back_although_the_scripts_are_flushed(
    redis_server: RedisServer, name: str, keys: Keys
) -> None:
    with Proxy("127.0.0.1", redis_server.port) as proxy:
        async with locking(f"redis://127.0.0.1:{proxy.port}/0") as locker:
            proxy.hold(Way.REPLIES)
            acquiring = asyncio.create_task(locker.acquire(name, lease_ttl_s=600))

            async def granted() -> bool:
                return keys.holder() is not None

            await wait_until_async(granted, what="the grant")
            keys.client.script_flush()
            acquiring.cancel()
            await asyncio.wait([acquiring])
            proxy.let_through(Way.REPLIES)
            await keys.gone()


async def test_scripts_that_are_flushed_all_the_time_cost_nobody_a_turn(
    redis_server: RedisServer, name: str, keys: Keys
) -> None:
    heard, turns = Heard(), 0
    async with locking(redis_server.url, heard=heard) as one, locking(redis_server.url, heard=heard) as other:

        async def flush() -> None:
            while turns < 200:
                keys.client.script_flush()
                await asyncio.sleep(0.002)

        async def take_turns(number: int) -> None:
            nonlocal turns
            while turns < 200:
                async with (one, other)[number % 2].hold(name, lease_ttl_s=600):
                    turns += 1
                    await asyncio.sleep(0)

        await asyncio.wait_for(asyncio.gather(flush(), *[take_turns(number) for number in range(6)]), PATIENCE_S)

    tokens = [event.fencing_token for event in heard.all(Acquired)]
    assert tokens == sorted(set(tokens))
    await keys.gone()


# A server that refuses


async def test_a_full_server_refuses_who_comes_at_once_and_takes_nothing_from_who_holds_or_stands_in_line(
    any_redis_server: RedisServer, name: str
) -> None:
    heard = Heard()
    with keys_at(any_redis_server.url, name) as keys:
        async with (
            locking(any_redis_server.url, heard=heard) as locker,
            locking(any_redis_server.url, heard=heard, alive_ms=600) as behind,
        ):
            lease = await locker.acquire(name, lease_ttl_s=600)
            waiting = asyncio.create_task(behind.acquire(name))
            await stand(keys, 1)
            any_redis_server.ask("CONFIG", "SET", "maxmemory", 1)

            # 20 s is the command timeout here.
            for wait_s in (0, None):
                with pytest.raises(LockStoreRefused):
                    await asyncio.wait_for(locker.acquire(f"{name}/other", wait_s=wait_s), SOON_S)
            await lease.extend(600)
            await asyncio.sleep(0.7)  # for longer than a sign of life lasts
            assert keys.queued() == 1
            assert await lease.release()
            assert await (await asyncio.wait_for(waiting, SOON_S)).release()
            assert keys.holder() is None

            any_redis_server.ask("CONFIG", "SET", "maxmemory", 0)
            async with locker.hold(name) as lease:
                waiting = asyncio.create_task(behind.acquire(name))
                await stand(keys, 1)
            assert await (await asyncio.wait_for(waiting, SOON_S)).release()
            assert heard.all(StoreLost) == []
            await keys.gone()


async def test_a_server_that_becomes_a_replica_is_down_and_one_that_is_a_master_again_is_up(
    any_redis_server: RedisServer, start_redis: StartRedis, name: str
) -> None:
    master = start_redis()
    async with locking(any_redis_server.url, command_timeout_s=1.0) as locker:
        assert await (await locker.acquire(name)).release()
        any_redis_server.ask("REPLICAOF", "127.0.0.1", master.port)
        for wait_s in (0, 30):
            with pytest.raises(LockStoreDown):
                await asyncio.wait_for(locker.acquire(name, wait_s=wait_s), SOON_S)

        any_redis_server.ask("REPLICAOF", "NO", "ONE")

        async def goes_on() -> bool:
            try:
                return await (await locker.acquire(name, wait_s=5)).release()
            except LockStoreDown:
                return False

        await wait_until_async(goes_on, what="a lock of a master")

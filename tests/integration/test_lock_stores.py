"""One contract for every kind of lock store; and of Sentinel's and the Cluster's own, failovers and moving slots."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import redis_lock

from locks import HolderChanged, LeaseLost, LockBusy, Locker, LossReason
from locks.events import Acquired, Extended, StoreUp, Waiting, WakeSource
from locks.keys import keys_of
from tests.harness import PATIENCE_S, wait_until_async
from tests.integration.lock_contract import SLOWLY, STORES, Store, in_line, locking, running, vanish, watching
from tests.integration.test_locker import Heard


@pytest.fixture(scope="module", params=STORES)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A lock store of each kind in turn, shared by the tests of the contract: it is not broken, and names are new."""
    with running(request.param, tmp_path_factory.mktemp(request.param)) as store:
        yield store


@pytest.fixture
def name(store: Store) -> str:
    (name,) = store.names(1)
    return name


# The contract


async def test_a_held_lock_excludes_in_the_order_of_arrival(store: Store, name: str) -> None:
    order: list[int] = []
    inside = most_inside = 0
    heard = Heard()
    async with locking(store, heard=heard) as one, locking(store, heard=heard) as other:

        async def enter(locker: Locker, number: int) -> int:
            nonlocal inside, most_inside
            async with locker.hold(name) as lease:
                order.append(number)
                inside += 1
                most_inside = max(most_inside, inside)
                await asyncio.sleep(0)
                inside -= 1
                return lease.fencing_token

        async with one.hold(name) as first:
            entering = []
            for number, locker in enumerate((other, one, other, one, one, other)):
                entering.append(asyncio.create_task(enter(locker, number)))
                await heard.count(Waiting, number + 1)
            await in_line(one, name, 2)
        tokens = [first.fencing_token, *await asyncio.gather(*entering)]

    assert most_inside == 1
    assert order == list(range(6))
    assert tokens == sorted(set(tokens))


async def test_without_waiting_a_held_lock_is_busy_at_once(store: Store, name: str) -> None:
    async with locking(store) as one, locking(store) as other:
        async with one.hold(name):
            for locker in (one, other):
                with pytest.raises(LockBusy) as caught:
                    await locker.acquire(name, wait_s=0)
                assert caught.value.expires_in_s is not None
        assert await (await other.acquire(name, wait_s=0)).release()


@pytest.mark.parametrize("across", [False, True], ids=["within-a-process", "across-processes"])
async def test_a_release_hands_over(store: Store, across: bool) -> None:
    for name in store.names(3):
        heard = Heard()
        async with locking(store, **SLOWLY) as one, locking(store, heard=heard, **SLOWLY) as other:
            holder = one if across else other
            lease = await holder.acquire(name, lease_ttl_s=60)
            waiting = asyncio.create_task(other.acquire(name, lease_ttl_s=60))
            await heard.count(Waiting, 1)
            if across:
                await in_line(one, name, 1)
            assert await lease.release()
            second = await asyncio.wait_for(waiting, 15)
            assert heard.all(Acquired)[-1].wake_source is WakeSource.HANDOFF
            assert second.fencing_token > lease.fencing_token
            assert second.remaining_s() > 50  # the claim has become a lease
            assert await second.release()


async def test_a_dead_process_is_skipped_at_once(store: Store, name: str) -> None:
    heard = Heard()
    async with locking(store, **SLOWLY) as one, locking(store, heard=heard, **SLOWLY) as other:
        lease = await one.acquire(name, lease_ttl_s=60)
        async with locking(store, outage_wait_s=60, **SLOWLY) as dying:
            dead = asyncio.create_task(dying.acquire(name))
            await in_line(one, name, 1)
            behind = asyncio.create_task(other.acquire(name))
            await in_line(one, name, 2)
            await vanish(dying)
            assert await lease.release()
            assert await (await asyncio.wait_for(behind, 15)).release()
            assert heard.all(Acquired)[0].wake_source is WakeSource.HANDOFF
            dead.cancel()


async def test_a_lease_is_kept_extended(store: Store, name: str) -> None:
    heard = Heard()
    async with locking(store, heard=heard) as locker, locker.hold(name, lease_ttl_s=0.3) as lease:
        await heard.count(Extended, 4)
        assert not lease.is_lost
        with pytest.raises(LockBusy):
            await locker.acquire(name, wait_s=0)


async def test_a_deleted_lock_is_told_to_its_holder(store: Store, name: str) -> None:
    async with locking(store) as locker:
        with pytest.raises(LeaseLost) as caught:
            async with locker.hold(name, lease_ttl_s=0.6):
                store.delete(keys_of(name).lock, of=name)
                await asyncio.sleep(PATIENCE_S)
    assert caught.value.reason is LossReason.DELETED


async def test_a_lapsed_lease_is_taken_over_when_its_time_is_over(store: Store) -> None:
    for name in store.names(3):
        heard = Heard()
        async with locking(store) as one, locking(store, heard=heard, **SLOWLY) as other:
            lapsing = await one.acquire(name, lease_ttl_s=0.2)
            lease = await asyncio.wait_for(other.acquire(name), 15)
            (acquired,) = heard.all(Acquired)
            assert acquired.wake_source is WakeSource.TIMER
            assert acquired.takeover
            assert lease.fencing_token > lapsing.fencing_token
            assert not await lapsing.release()
            assert await lease.release()


async def test_the_head_of_the_line_hears_of_a_foreign_release(store: Store) -> None:
    for name in store.names(3):
        heard = Heard()
        with store.client(name) as client:
            foreign = redis_lock.Lock(client, f"{{{name}}}", expire=60)
            assert foreign.acquire(blocking=False)
            async with locking(store, heard=heard, **SLOWLY) as locker:
                waiting = asyncio.create_task(locker.acquire(name))
                await in_line(locker, name, 1)
                foreign.release()
                assert await (await asyncio.wait_for(waiting, 15)).release()
        assert heard.all(Acquired)[0].wake_source is WakeSource.TRACKING


async def test_it_hears_of_a_foreign_release_also_after_its_connections_were_lost(store: Store, name: str) -> None:
    heard = Heard()
    with store.client(name) as client:
        foreign = redis_lock.Lock(client, f"{{{name}}}", expire=60)
        assert foreign.acquire(blocking=False)
        async with locking(store, heard=heard, **SLOWLY) as locker:
            waiting = asyncio.create_task(locker.acquire(name))
            await in_line(locker, name, 1)
            ups = len(heard.all(StoreUp))
            store.cut()
            await heard.count(StoreUp, ups + len(store.all_servers()))
            await watching(locker, name)
            client.delete(keys_of(name).lock)
            assert await (await asyncio.wait_for(waiting, 15)).release()
    assert heard.all(Acquired)[0].wake_source is WakeSource.TRACKING


async def test_fencing_tokens_rise_over_two_processes(store: Store, name: str) -> None:
    tokens = []
    async with locking(store) as one, locking(store) as other:
        for locker in (one, other) * 10:
            async with locker.hold(name) as lease:
                tokens.append(lease.fencing_token)
    assert tokens == sorted(set(tokens))


async def test_many_locks_are_acquired_all_or_none(store: Store) -> None:
    names = store.names(6)
    async with locking(store) as one, locking(store) as other:
        async with one.hold_many(names, lease_ttl_s=20) as leases:
            assert [lease.name for lease in leases] == names
            with pytest.raises(LockBusy):
                await other.acquire_many(names[::-1], wait_s=0)
        leases = await other.acquire_many(names[::-1], wait_s=5)
        assert await asyncio.gather(*[lease.release() for lease in leases]) == [True] * 6


async def test_anybody_sees_who_holds_and_who_waits(store: Store, name: str) -> None:
    async with locking(store, instance_id="one") as one, locking(store, instance_id="other") as other:
        assert await other.inspect(name) is None
        async with one.hold(name, request_id="r-1") as lease:
            waiting = asyncio.create_task(other.acquire(name, request_id="r-2"))
            await in_line(one, name, 1)
            view = await other.inspect(name)
            assert view is not None
            assert view.holder is not None
            assert (view.holder.instance_id, view.holder.request_id) == ("one", "r-1")
            assert view.fencing_token == lease.fencing_token
            assert [(each.party.instance_id, each.party.request_id) for each in view.waiting] == [("other", "r-2")]
        assert await (await waiting).release()


async def test_a_lease_is_ended_by_force_and_its_holder_told(store: Store) -> None:
    for name in store.names(3):
        async with locking(store, **SLOWLY) as one, locking(store, **SLOWLY) as other:
            lease = await one.acquire(name, lease_ttl_s=60)
            waiting = asyncio.create_task(other.acquire(name))
            await in_line(one, name, 1)
            with pytest.raises(HolderChanged):
                await other.force_release(name, fencing_token=lease.fencing_token - 1)

            assert await other.force_release(name, fencing_token=lease.fencing_token)

            assert await (await asyncio.wait_for(waiting, 15)).release()
            await asyncio.wait_for(lease.lost.wait(), 15)
            assert lease.loss_reason is LossReason.FORCED


async def test_a_hundred_callers_of_a_hundred_locks_do_not_meet(store: Store) -> None:
    heard = Heard()
    names = store.names(100)
    async with locking(store, heard=heard) as locker:
        leases = await asyncio.gather(*[locker.acquire(name) for name in names])
        for name in names[:3]:
            with store.client(name) as client:
                assert client.exists(keys_of(name).lock)
        assert await asyncio.gather(*[lease.release() for lease in leases]) == [True] * 100
    assert heard.all(Waiting) == []


async def test_nothing_is_left_of_a_lock_that_was_held_and_waited_for(store: Store, name: str) -> None:
    brief = {"keep_ms": 100, "signal_ms": 150, "alive_ms": 300}
    async with locking(store, **brief) as one, locking(store, **brief) as other:
        async with one.hold(name, lease_ttl_s=0.5):
            waiting = asyncio.create_task(other.acquire(name, lease_ttl_s=0.5))
            await in_line(one, name, 1)
            with store.client(name) as client:
                keys = client.keys(f"*{name}*")
                assert len(keys) >= 4
                assert all(client.pttl(key) > 0 for key in keys)
        assert await (await waiting).release()
        with store.client(name) as client:

            async def nothing_left() -> bool:
                return not client.keys(f"*{name}*")

            await wait_until_async(nothing_left, what="keys to expire")


async def test_a_process_has_two_connections_a_server_also_when_they_were_lost(store: Store, name: str) -> None:
    heard = Heard()
    count = len(store.connection_counts())

    async def two_each() -> bool:
        return store.connection_counts() == [2] * count

    async with locking(store, heard=heard) as locker:
        await wait_until_async(two_each, what="two connections a server")
        for times in (1, 2, 3):
            store.cut()
            await heard.count(StoreUp, (times + 1) * count)
            assert await (await locker.acquire(name)).release()
        await wait_until_async(two_each, what="two connections a server again")

    async def none() -> bool:
        return store.connection_counts() == [0] * count

    await wait_until_async(none, what="no connection after the close")

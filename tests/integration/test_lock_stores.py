"""One contract for every kind of lock store; and of Sentinel's and the Cluster's own, failovers and moving slots."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import redis_lock

from locks import Dismissed, HolderChanged, Lease, LeaseLost, LockBusy, Locker, LockStoreDown, LossReason
from locks.events import Acquired, Extended, Lost, Released, StoreLost, StoreUp, Waiting, WakeSource
from locks.keys import keys_of
from tests.harness import PATIENCE_S, wait_until, wait_until_async
from tests.integration.lock_contract import (
    RIGHTS,
    SLOWLY,
    STORES,
    Store,
    answered,
    cluster_store,
    in_line,
    locking,
    running,
    sentinel_store,
    vanish,
    watching,
)
from tests.integration.test_locker import APART_S, Heard
from tests.proxy import Proxy
from tests.servers.cluster import Cluster
from tests.servers.fixtures import StartLockProcess, StartRedis
from tests.servers.redis_server import AclUser, RedisServer
from tests.servers.sentinel import SentinelGroup


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
                await asyncio.sleep(APART_S)
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
    for name in store.name_on_each():
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


async def test_whoever_waits_for_a_finished_lock_is_dismissed(store: Store) -> None:
    for name in store.name_on_each():
        heard = Heard()
        for lease_ttl_s in (5, 60):  # freed with others, or told of by a script of its own at once
            async with locking(store, **SLOWLY) as one, locking(store, heard=heard, **SLOWLY) as other:
                lease = await one.acquire(name, lease_ttl_s=lease_ttl_s)
                waiting = [asyncio.create_task(locker.acquire(name)) for locker in (one, other, other)]
                await in_line(one, name, 2)
                await answered(other, name)  # who finds a lock free before it is told takes a turn after all
                lease.finish()
                ends = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 15)
                assert [type(end) for end in ends] == [Dismissed] * 3
                after = await asyncio.wait_for(other.acquire(name), 15)
                assert after.fencing_token > lease.fencing_token
                assert await after.release()
        assert len(heard.all(Acquired)) == 2


async def test_a_dead_process_is_skipped_at_once(store: Store, name: str) -> None:
    heard = Heard()
    async with locking(store, **SLOWLY) as one, locking(store, heard=heard, **SLOWLY) as other:
        lease = await one.acquire(name, lease_ttl_s=60)
        async with locking(store, outage_wait_s=60, **SLOWLY) as dying:
            dead = asyncio.create_task(dying.acquire(name))
            await in_line(one, name, 1)
            behind = asyncio.create_task(other.acquire(name))
            await in_line(one, name, 2)
            await vanish(store, dying, name)
            assert await lease.release()
            assert await (await asyncio.wait_for(behind, 15)).release()
            assert heard.all(Acquired)[0].wake_source is WakeSource.HANDOFF
            dead.cancel()


async def test_a_lease_is_kept_extended(store: Store, name: str) -> None:
    heard = Heard()
    async with locking(store, heard=heard) as locker, locker.hold(name, lease_ttl_s=0.2) as lease:
        await heard.count(Extended, 4)
        assert not lease.is_lost
        with pytest.raises(LockBusy):
            await locker.acquire(name, wait_s=0)


async def test_a_deleted_lock_is_told_to_its_holder(store: Store, name: str) -> None:
    async with locking(store) as locker:

        async def hold() -> None:
            async with locker.hold(name, lease_ttl_s=0.6):
                store.delete(keys_of(name).lock, of=name)
                await asyncio.sleep(PATIENCE_S)

        with pytest.raises(LeaseLost) as caught:
            await hold()
    assert caught.value.reason is LossReason.DELETED


async def test_a_lapsed_lease_is_taken_over_when_its_time_is_over(store: Store) -> None:
    for name in store.name_on_each():
        heard = Heard()
        async with locking(store) as one, locking(store, heard=heard, **SLOWLY) as other:
            lapsing = await one.acquire(name, lease_ttl_s=0.15)
            lease = await asyncio.wait_for(other.acquire(name), 15)
            (acquired,) = heard.all(Acquired)
            # Either is right: the server tells of the expiry, and the timer does not need it to.
            assert acquired.wake_source in (WakeSource.TIMER, WakeSource.TRACKING)
            assert acquired.takeover
            assert lease.fencing_token > lapsing.fencing_token
            assert not await lapsing.release()
            assert await lease.release()


async def test_the_head_of_the_line_hears_of_a_foreign_release(store: Store) -> None:
    for name in store.name_on_each():
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
    for name in store.name_on_each():
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


async def test_a_lent_lease_is_extended_and_given_back_through_another_process(store: Store) -> None:
    heard = Heard()
    async with locking(store, heard=heard) as keeper, locking(store) as other:
        for name in store.name_on_each():
            loan = await keeper.lending.lend(name, lease_ttl_s=60, wait_s=0, request_id="r-1")
            extended = await other.lending.extend(name, loan.lease_id, lease_ttl_s=90)
            assert extended.fencing_token == loan.fencing_token
            waiting = asyncio.create_task(other.lending.lend(name, lease_ttl_s=60, wait_s=60, request_id="r-2"))
            await in_line(keeper, name, 1)
            await other.lending.release(name, loan.lease_id)
            assert (await waiting).fencing_token > loan.fencing_token
        assert other.lending.all
        await heard.count(Released, len(store.all_servers()))
        assert keeper.lending.all == []


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
    brief: dict[str, Any] = {"keep_ms": 100, "signal_ms": 150, "alive_ms": 300}
    async with locking(store, **brief) as one, locking(store, **brief) as other:
        lease = await one.acquire(name, lease_ttl_s=0.3)
        waiting = asyncio.create_task(other.acquire(name, lease_ttl_s=0.3))
        await in_line(one, name, 1)
        with store.client(name) as client:
            keys = client.keys(f"*{name}*")
            assert len(keys) >= 4
            assert all(client.pttl(key) > 0 for key in keys)
        await lease.release()
        await (await waiting).release()
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


async def test_nothing_but_resp2_is_spoken_and_no_right_is_missing(store: Store, name: str) -> None:
    async with locking(store) as locker:
        assert await (await locker.acquire(name)).release()
    assert store.told("ping") > 0
    assert store.told("hello") == 0
    with store.client(name) as client:
        assert client.acl_log() == []


# Servers that cannot do everything


async def test_without_client_tracking_a_foreign_release_is_found_by_the_heartbeat(start_redis: StartRedis) -> None:
    heard, name = Heard(), new_name()
    server = start_redis(users=[AclUser("locks", "word", RIGHTS.replace(" +client|tracking", "") + " +del")])
    async with locking(server.url, heard=heard, alive_ms=1500) as locker:
        server.ask("SET", keys_of(name).lock, "foreign", "PX", 60_000)
        waiting = asyncio.create_task(locker.acquire(name))
        await in_line(locker, name, 1)
        deleted_at_s = asyncio.get_running_loop().time()
        server.ask("DEL", keys_of(name).lock)
        assert await (await waiting).release()
        took_s = asyncio.get_running_loop().time() - deleted_at_s
    assert heard.all(Acquired)[0].wake_source is WakeSource.HEARTBEAT
    assert took_s < 0.5 + 5  # a third of alive_ms; the rest is for a busy machine


async def test_without_client_tracking_a_lapse_is_found_by_the_timer(start_redis: StartRedis) -> None:
    heard, name = Heard(), new_name()
    server = start_redis(users=[AclUser("locks", "word", RIGHTS.replace(" +client|tracking", ""))])
    async with locking(server.url, heard=heard, **SLOWLY) as locker:
        server.ask("SET", keys_of(name).lock, "foreign", "PX", 300)
        assert await (await asyncio.wait_for(locker.acquire(name), 15)).release()
    assert heard.all(Acquired)[0].wake_source is WakeSource.TIMER


@pytest.mark.parametrize("kind", ["valkey", "redis-6.2"])
async def test_a_server_that_has_become_a_replica_is_down_until_it_is_a_master_again(
    start_redis: StartRedis, kind: str
) -> None:
    heard, name = Heard(), new_name()
    server, master = start_redis(kind), start_redis(kind)
    async with locking(server.url, command_timeout_s=0.2) as impatient, AsyncExitStack() as stack:
        patient = await stack.enter_async_context(locking(server.url, heard=heard, outage_wait_s=60))
        server.ask("REPLICAOF", "127.0.0.1", master.port)
        with pytest.raises(LockStoreDown):
            await impatient.acquire(name)
        waiting = asyncio.create_task(patient.acquire(name))
        await heard.count(StoreLost, 2)
        assert not waiting.done()
        server.ask("REPLICAOF", "NO", "ONE")
        assert await (await asyncio.wait_for(waiting, 30)).release()
        assert await impatient.up_within(PATIENCE_S)
        assert await (await impatient.acquire(name)).release()


# What the URL promises and the server does not keep


async def test_a_store_of_another_kind_than_the_urls_is_refused_and_told(
    shared_lock_cluster: Cluster, redis_server: RedisServer
) -> None:
    plain, node = f"127.0.0.1:{redis_server.port}", f"127.0.0.1:{shared_lock_cluster.nodes[0].port}"
    for url, reason in (
        (f"redis://{node}/0", r"node of a Cluster: its URL starts with redis\+cluster://"),
        (f"redis+cluster://{plain}", "no node of a Cluster.*cluster support disabled"),
        (f"redis+sentinel://{plain}/mymaster", "knows no 'mymaster': ERR unknown command"),
    ):
        with pytest.raises(LockStoreDown, match=reason):
            async with Locker.connect(url, instance_id="test"):
                pass


# Sentinel


async def test_a_killed_master_costs_waiters_a_while_and_nobody_the_truth(sentinel_group: SentinelGroup) -> None:
    group, store = sentinel_group, sentinel_store(sentinel_group)
    kept, forgotten, heard = new_name(), new_name(), Heard()
    async with (
        locking(store, outage_wait_s=60, command_timeout_s=2) as one,
        locking(store, outage_wait_s=60, command_timeout_s=2, heard=heard) as other,
        locking(store, outage_wait_s=0.1, command_timeout_s=2, alive_ms=300) as impatient,
    ):
        leases = [await one.acquire(each, lease_ttl_s=30, keep_extended=True) for each in (kept, forgotten)]
        waiting = [asyncio.create_task(other.acquire(each, lease_ttl_s=30)) for each in (kept, kept, forgotten)]
        await heard.count(Waiting, 3)
        too_short = asyncio.create_task(impatient.acquire(kept))
        await in_line(one, kept, 2)
        (replica,) = group.replicas()
        wait_until(lambda: all(replica.ask("EXISTS", keys_of(each).lock) for each in (kept, forgotten)))
        # What the replica has not heard of before its master dies is lost with it.
        replica.ask("CONFIG", "SET", "replica-read-only", "no")
        assert replica.ask("DEL", *[getattr(keys_of(forgotten), each) for each in ("lock", "grant")]) == 2
        replica.ask("CONFIG", "SET", "replica-read-only", "yes")

        dead = group.kill_master()
        with pytest.raises(LockStoreDown):
            await too_short
        await asyncio.to_thread(group.wait_for_new_master, instead_of=dead)

        # A lease that the replica knew of is its holder's as before.
        await extended(leases[0])
        assert not any(each.done() for each in waiting[:2])
        assert await leases[0].release()
        order = [await each for each in waiting[:1]]
        assert await order[0].release()
        order.append(await waiting[1])
        assert order[1].acquired_at_s > order[0].acquired_at_s
        tokens = [leases[0].fencing_token, *[each.fencing_token for each in order]]
        assert tokens == sorted(set(tokens))
        # Of another it is told at its next extension, and until then the fencing tokens tell the truth.
        taken = await asyncio.wait_for(waiting[2], PATIENCE_S)
        assert taken.fencing_token > leases[1].fencing_token
        with pytest.raises(LeaseLost) as caught:
            await leases[1].extend(30)
        assert caught.value.reason is LossReason.TAKEN
        assert await taken.release()
        assert await order[1].release()

        assert await impatient.up_within(PATIENCE_S)
        assert len(store.connections(group.master())) == 3 * 2
        assert store.told("hello") == 0


async def test_nobody_goes_on_with_a_master_that_was_frozen_and_replaced(sentinel_group: SentinelGroup) -> None:
    group, store, name, heard = sentinel_group, sentinel_store(sentinel_group), new_name(), Heard()
    async with (
        locking(store, outage_wait_s=60, command_timeout_s=0.5) as one,
        locking(store, outage_wait_s=60, command_timeout_s=0.5, heard=heard) as other,
    ):
        lease = await one.acquire(name, lease_ttl_s=30, keep_extended=True)
        waiting = asyncio.create_task(other.acquire(name, lease_ttl_s=30))
        await in_line(one, name, 1)
        (replica,) = group.replicas()
        wait_until(lambda: replica.ask("EXISTS", keys_of(name).lock))

        old = group.freeze_master()
        await asyncio.to_thread(group.wait_for_new_master, instead_of=old)
        old.thaw()
        await asyncio.to_thread(group.wait_for_replicas)

        async def all_with_the_new_one() -> bool:
            return not store.connections(old) and len(store.connections(replica)) == 2 * 2

        await wait_until_async(all_with_the_new_one, what="every locker with the new master")
        await extended(lease)
        assert not waiting.done()
        assert await lease.release()
        second = await asyncio.wait_for(waiting, 15)
        assert second.fencing_token > lease.fencing_token
        assert await second.release()
        assert heard.all(Lost) == []


async def test_a_replica_that_a_sentinel_takes_for_the_master_is_refused(start_redis: StartRedis) -> None:
    master = start_redis()
    replica = start_redis(settings=[f"replicaof 127.0.0.1 {master.port}"])
    alone = start_redis(settings=[f"sentinel monitor mymaster 127.0.0.1 {replica.port} 2"], arguments=["--sentinel"])
    with pytest.raises(LockStoreDown, match="is not the master"):
        async with Locker.connect(f"redis+sentinel://127.0.0.1:{alone.port}/mymaster", instance_id="test"):
            pass


async def test_a_sentinel_that_does_not_answer_delays_nobody(sentinel_group: SentinelGroup) -> None:
    for sentinel in sentinel_group.sentinels[:2]:
        sentinel.freeze()
    # Asked one after the other, the first two would use up all of the time for a connection.
    async with locking(sentinel_group.url, command_timeout_s=0.5) as locker:
        assert await (await locker.acquire(new_name())).release()


# The Cluster


async def test_a_lock_moves_with_its_slot_while_it_is_held_and_waited_for(shared_lock_cluster: Cluster) -> None:
    cluster, store, heard = shared_lock_cluster, cluster_store(shared_lock_cluster), Heard()
    (name,) = store.names(1)
    async with locking(store, **SLOWLY) as one, locking(store, heard=heard, **SLOWLY) as other:
        lease = await one.acquire(name, lease_ttl_s=60)
        waiting = asyncio.create_task(other.acquire(name, lease_ttl_s=60))
        await in_line(one, name, 1)
        await watching(other, name)
        slot = cluster.slot_of(keys_of(name).lock)
        source = cluster.master_of(slot)
        move = cluster.begin_move(slot, to=cluster.other_master(source))

        move.move_keys(keys_of(name).lock)
        extending = asyncio.create_task(lease.extend(60))
        await answered_so(cluster, "TRYAGAIN", 3)
        move.move_keys()
        await answered_so(cluster, "ASK", 3)
        assert not extending.done()
        move.finish()

        await asyncio.wait_for(extending, 15)
        assert not waiting.done()
        await in_line(one, name, 2)  # under the name that it has here, and under the old one, where nobody listens
        assert await lease.release()
        second = await asyncio.wait_for(waiting, 15)
        assert heard.all(Acquired)[0].wake_source is WakeSource.HANDOFF
        assert second.fencing_token > lease.fencing_token
        assert await second.release()
        assert await one.inspect(name) is None


async def test_who_waits_for_a_slot_that_moves_for_long_gets_the_lock_when_it_has_arrived(
    shared_lock_cluster: Cluster,
) -> None:
    cluster, store = shared_lock_cluster, cluster_store(shared_lock_cluster)
    (name,) = store.names(1)
    slot = cluster.slot_of(keys_of(name).lock)
    async with locking(store, command_timeout_s=0.2, outage_wait_s=60) as locker:
        move = cluster.begin_move(slot, to=cluster.other_master(cluster.master_of(slot)))
        before = answers(cluster, "TRYAGAIN")
        waiting = asyncio.create_task(locker.acquire(name))
        await answered_so(cluster, "TRYAGAIN", before + 20)  # for longer than one command is repeated
        assert not waiting.done()
        move.finish()
        assert await (await asyncio.wait_for(waiting, 15)).release()


async def test_a_head_in_line_watches_the_lock_where_its_slot_has_moved(shared_lock_cluster: Cluster) -> None:
    cluster, store, heard = shared_lock_cluster, cluster_store(shared_lock_cluster), Heard()
    (name,) = store.names(1)
    slot = cluster.slot_of(keys_of(name).lock)
    with store.client(name) as client:
        client.set(keys_of(name).lock, "foreign", px=60_000)
    async with locking(store, heard=heard, alive_ms=1500) as locker:
        waiting = asyncio.create_task(locker.acquire(name))
        await in_line(locker, name, 1)
        await watching(locker, name)
        cluster.move_slot(slot, to=cluster.other_master(cluster.master_of(slot)))
        await in_line(locker, name, 2)
        await watching(locker, name)
        store.delete(keys_of(name).lock, of=name)
        assert await (await asyncio.wait_for(waiting, 15)).release()
    assert heard.all(Acquired)[0].wake_source is WakeSource.TRACKING


async def test_who_is_sent_to_another_master_has_its_place_in_line_there(shared_lock_cluster: Cluster) -> None:
    cluster, store, order = shared_lock_cluster, cluster_store(shared_lock_cluster), Heard()
    (name,) = store.names(1)
    slot = cluster.slot_of(keys_of(name).lock)
    async with (
        locking(store, **SLOWLY) as holder,
        locking(store, heard=order, instance_id="first", **SLOWLY) as sent,
        locking(store, heard=order, instance_id="second", **SLOWLY) as other,
    ):
        cluster.move_slot(slot, to=cluster.other_master(cluster.master_of(slot)))
        assert await (await other.acquire(name)).release()  # this one knows of the move, the first does not
        lease = await holder.acquire(name, lease_ttl_s=60)
        first = asyncio.create_task(sent.acquire(name, lease_ttl_s=60))
        await in_line(holder, name, 1)
        second = asyncio.create_task(other.acquire(name, lease_ttl_s=60))
        await in_line(holder, name, 2)
        assert await lease.release()
        assert await (await asyncio.wait_for(first, 15)).release()
        assert await (await asyncio.wait_for(second, 15)).release()
        assert first.result().fencing_token < second.result().fencing_token


async def test_a_planned_failover_of_the_cluster_loses_nothing_and_leaves_no_connection(lock_cluster: Cluster) -> None:
    cluster, store, heard = lock_cluster, cluster_store(lock_cluster), Heard()
    (name,) = store.names(1)
    slot = cluster.slot_of(keys_of(name).lock)
    async with locking(store, command_timeout_s=1, outage_wait_s=60, heard=heard) as locker:
        lease = await locker.acquire(name, lease_ttl_s=30)
        waiting = asyncio.create_task(locker.acquire(name, lease_ttl_s=30))
        await heard.count(Waiting, 1)
        (replica,), old = cluster.replicas_of(slot), cluster.master_of(slot)
        replica.ask("CLUSTER", "FAILOVER")
        await asyncio.to_thread(cluster.wait_for_takeover, slot, instead_of=old)
        await extended(lease)
        assert await lease.release()
        assert await (await asyncio.wait_for(waiting, 15)).release()
        assert heard.all(Lost) == []

        async def moved_on() -> bool:
            return not store.connections(old) and store.connection_counts() == [2, 2, 2]

        await wait_until_async(moved_on, what="no connection to who is a replica now")


async def test_a_killed_master_of_the_cluster_disturbs_only_its_own_locks(lock_cluster: Cluster) -> None:
    cluster, store, heard = lock_cluster, cluster_store(lock_cluster), Heard()
    for node in cluster.nodes:
        node.ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
    struck, other_one, another_one = store.names(3)
    slot = cluster.slot_of(keys_of(struck).lock)
    async with (
        locking(store, outage_wait_s=60, command_timeout_s=2, heard=heard) as one,
        locking(store, outage_wait_s=60, command_timeout_s=2) as other,
    ):
        leases = [await one.acquire(each, lease_ttl_s=30) for each in (struck, other_one, another_one)]
        waiting = [
            asyncio.create_task(other.acquire(each, lease_ttl_s=30)) for each in (struck, other_one, another_one)
        ]
        for each in (struck, other_one, another_one):
            await in_line(one, each, 1)
        (replica,) = cluster.replicas_of(slot)
        wait_until(lambda: has_key(replica, keys_of(struck).lock))

        dead = cluster.kill_master_of(slot)
        for lease, next_one in list(zip(leases, waiting, strict=True))[1:]:
            await lease.extend(30)
            assert await lease.release()
            second = await asyncio.wait_for(next_one, 15)
            assert second.fencing_token > lease.fencing_token
            assert await second.release()
        await asyncio.to_thread(cluster.wait_for_takeover, slot, instead_of=dead)

        await extended(leases[0])
        assert not waiting[0].done()
        assert await leases[0].release()
        second = await asyncio.wait_for(waiting[0], 15)
        assert second.fencing_token > leases[0].fencing_token
        assert await second.release()
        assert heard.all(Lost) == []

        async def two_each() -> bool:
            return store.connection_counts() == [4, 4, 4]

        await wait_until_async(two_each, what="two connections a process and master")
        assert store.told("hello") == 0


async def test_a_locker_opened_while_the_cluster_is_down_comes_up_later(shared_lock_cluster: Cluster) -> None:
    name = new_name()
    with Proxy("127.0.0.1", shared_lock_cluster.nodes[0].port) as proxy:
        proxy.go_away()
        url = f"redis+cluster://127.0.0.1:{proxy.port}"
        unasked = Locker(url, instance_id="test", command_timeout_s=0.5)
        asked = Locker(url, instance_id="test", command_timeout_s=0.5, outage_wait_s=60)
        for locker in (unasked, asked):
            await locker.open()
        waiting = asyncio.create_task(asked.acquire(name))
        with pytest.raises(LockStoreDown, match="slots are not known yet"):
            await asked.acquire(name, wait_s=0)
        assert not unasked.is_up
        assert not await unasked.up_within(0.1)

        proxy.come_back()

        assert await (await asyncio.wait_for(waiting, PATIENCE_S)).release()
        assert await unasked.up_within(PATIENCE_S)
        assert unasked.is_up
        for locker in (unasked, asked):
            await locker.close()


async def test_a_caller_of_a_cluster_that_was_never_there_does_not_wait_for_it_again_and_again() -> None:
    with Proxy("127.0.0.1", 1) as proxy:
        proxy.go_away()
        locker = Locker(f"redis+cluster://127.0.0.1:{proxy.port}", instance_id="test", outage_wait_s=0.3)
        await locker.open()
        with pytest.raises(LockStoreDown):
            await locker.acquire(new_name())
        for _ in range(20):
            with pytest.raises(LockStoreDown):
                await asyncio.wait_for(locker.acquire(new_name()), 0.25)
        await locker.close()


async def test_a_killed_process_of_another_node_of_the_cluster_is_skipped_at_once(
    shared_lock_cluster: Cluster, lock_process: StartLockProcess
) -> None:
    store, heard = cluster_store(shared_lock_cluster), Heard()
    dying = lock_process(store.url)
    names = store.names(3)
    async with locking(store, heard=heard, **SLOWLY) as locker, locking(store, **SLOWLY) as holder:
        leases = [await holder.acquire(name, lease_ttl_s=60) for name in names]
        waiting: list[asyncio.Task[Lease]] = []
        for name in names:
            dying.acquire(name)
            await in_line(holder, name, 1)
            waiting.append(asyncio.create_task(locker.acquire(name, lease_ttl_s=60)))
            await in_line(holder, name, 2)
        dying.kill()
        for lease, behind in zip(leases, waiting, strict=True):
            assert await lease.release()
            assert await (await asyncio.wait_for(behind, 15)).release()
    assert {each.wake_source for each in heard.all(Acquired)} == {WakeSource.HANDOFF}


def new_name() -> str:
    """A lock's name that no other test uses."""
    return f"test:{uuid.uuid4().hex}"


async def extended(lease: Lease) -> None:
    """Extends the lease once its server is there again."""

    async def done() -> bool:
        try:
            await lease.extend(30)
        except LockStoreDown:
            return False
        return True

    await wait_until_async(done, what="a server that answers")


def answers(cluster: Cluster, word: str) -> int:
    """How often the nodes have answered with this error."""
    found = [node.info("errorstats").get(f"errorstat_{word}", "count=0") for node in cluster.live_nodes()]
    return sum(int(each.partition("=")[2]) for each in found)


async def answered_so(cluster: Cluster, word: str, count: int) -> None:
    """Waits until they have done so as often."""

    async def enough() -> bool:
        return answers(cluster, word) >= count

    await wait_until_async(enough, what=f"{count} x {word}")


def has_key(replica: RedisServer, key: str) -> bool:
    """Whether the write has reached this replica of a Cluster."""
    with replica.connect() as wire:
        wire.ask("READONLY")
        return bool(wire.ask("EXISTS", key))

"""What instances tell of their locks against what is known to have happened: holders, waiters, times, incidents."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import pytest
import redis
import redis_lock

from locks import LockStoreDown, PartyKind
from locks.contention_store import PREFIX
from locks.histogram import BOUNDS_S, LogHistogram, bucket_of
from tests.harness import OwnRedis, wait_until_async
from tests.integration.contending import LONG_S, Instance, instance


async def test_percentiles_of_all_instances_are_those_of_the_waits_and_holds_that_really_were(
    own_redis: OwnRedis,
) -> None:
    order = random.Random(5)
    async with instance(own_redis.url, "a") as a, instance(own_redis.url, "b") as b:

        async def worker(one: Instance, name: str, holds_s: list[float]) -> None:
            for hold_s in holds_s:
                async with one.locker.hold(name, lease_ttl_s=LONG_S):
                    await asyncio.sleep(hold_s)

        holds = [[order.choice((0.0, 0.003, 0.02)) for _ in range(12)] for _ in range(8)]
        async with asyncio.TaskGroup() as tasks:
            for number, hold_s in enumerate(holds):
                tasks.create_task(worker(a if number % 2 else b, f"hot:{number % 3}", hold_s))
        waits, held = sorted(a.waited_s + b.waited_s), sorted(a.held_s + b.held_s)
        assert len(waits) == len(held) == 96

        async def told() -> bool:
            snapshot = await a.contention.snapshot()
            return snapshot.wait.count == 96 and snapshot.hold.count == 96

        await wait_until_async(told)
        snapshot = await b.contention.snapshot()
        for share in (0.5, 0.9, 0.99):
            place = -int(-share * 96 // 1) - 1
            assert bucket_of(snapshot.wait.quantile(share)) == bucket_of(waits[place])
            assert bucket_of(snapshot.hold.quantile(share)) == bucket_of(held[place])
        assert snapshot.counts["acquired"] == snapshot.counts["released"] == 96
        contended = sum(hot.waits for hot in snapshot.hottest)
        assert snapshot.counts["contended"] == contended > 0
        assert snapshot.contention_ratio == contended / 96
        assert {hot.name for hot in snapshot.hottest} <= {"hot:0", "hot:1", "hot:2"}


async def test_holders_and_waiters_of_all_instances_are_exact(own_redis: OwnRedis) -> None:
    async with instance(own_redis.url, "a") as a, instance(own_redis.url, "b") as b:
        leases = [
            await (a if number % 2 else b).locker.acquire(f"lock:{number}", lease_ttl_s=LONG_S, request_id=f"r{number}")
            for number in range(7)
        ]
        waiting = [
            asyncio.create_task((a if number % 3 else b).locker.acquire("lock:3", lease_ttl_s=LONG_S))
            for number in range(5)
        ]

        async def told() -> bool:
            snapshot = await b.contention.snapshot()
            return snapshot.held == 7 and snapshot.waiting == 5

        await wait_until_async(told)
        snapshot = await a.contention.snapshot()
        assert [(each.picture.instance_id, each.picture.held, each.picture.waiting) for each in snapshot.instances] == [
            ("a", 3, 3),
            ("b", 4, 2),
        ]
        assert snapshot.hottest[0].name == "lock:3"
        assert snapshot.hottest[0].waiting == 5

        async def listed() -> bool:
            page = await b.contention.locks(sort="waiters", limit=10)
            return page.total == 7 and page.locks[0].waiters == 5

        await wait_until_async(listed)
        page = await b.contention.locks(sort="waiters", limit=10)
        first = page.locks[0]
        assert first.name == "lock:3"
        assert first.holder is not None
        assert (first.holder.instance_id, first.holder.request_id, first.fencing_token) == (
            "a",
            "r3",
            leases[3].fencing_token,
        )
        assert [each.name for each in page.locks[1:]] == [f"lock:{number}" for number in (0, 1, 2, 4, 5, 6)]
        by_age = await b.contention.locks(sort="held", limit=10)
        assert [each.name for each in by_age.locks] == [f"lock:{number}" for number in range(7)]

        pages, cursor = [], None
        while True:
            page = await a.contention.locks(sort="name", limit=3, cursor=cursor)
            pages.append([each.name for each in page.locks])
            cursor = page.next_cursor
            if cursor is None:
                break
        assert pages == [["lock:0", "lock:1", "lock:2"], ["lock:3", "lock:4", "lock:5"], ["lock:6"]]
        found = await a.contention.locks(sort="name", limit=3, search="k:4")
        assert [each.name for each in found.locks] == ["lock:4"]
        for nonsense in ("x", "!!!!", "WyJuYW1lIl0", "WyJoZWxkIiwgMSwgImEiXQ"):
            with pytest.raises(ValueError, match="is "):
                await a.contention.locks(sort="name", limit=3, cursor=nonsense)

        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for lease in leases:
            await lease.release()

        async def nothing() -> bool:
            snapshot = await b.contention.snapshot()
            return snapshot.held == 0 and snapshot.waiting == 0

        await wait_until_async(nothing)
        assert (await b.contention.locks(sort="waiters", limit=10)).locks == ()


async def test_the_list_shows_each_lock_as_it_is_now_and_not_as_it_was_told(own_redis: OwnRedis) -> None:
    async with instance(own_redis.url, "a") as a:
        lease = await a.locker.acquire("lock:x", lease_ttl_s=LONG_S)

        async def listed() -> bool:
            return bool((await a.contention.locks(sort="name", limit=10)).locks)

        await wait_until_async(listed)
        await lease.release()
        assert (await a.contention.locks(sort="name", limit=10)).locks == ()


async def test_takeovers_losses_and_forced_releases_become_incidents_and_past_holds(own_redis: OwnRedis) -> None:
    async with instance(own_redis.url, "a") as a, instance(own_redis.url, "b") as b:
        doomed = await a.locker.acquire("lock:x", lease_ttl_s=0.3, request_id="doomed")
        heir = await b.locker.acquire("lock:x", lease_ttl_s=LONG_S, wait_s=LONG_S, request_id="heir")
        assert await a.locker.force_release("lock:x", fencing_token=heir.fencing_token)

        async def all_told() -> bool:
            kinds = {each.kind for each in await a.contention.incidents(name="lock:x")}
            return kinds >= {"lost", "takeover", "forced"} and len(await a.contention.holds_of("lock:x")) == 2

        await wait_until_async(all_told)
        incidents = await b.contention.incidents(name="lock:x")
        assert [each.at for each in incidents] == sorted([each.at for each in incidents], reverse=True)
        lost = {each.instance_id: each.detail["reason"] for each in incidents if each.kind == "lost"}
        assert lost == {"a": "expired", "b": "forced"}
        last, first = await b.contention.holds_of("lock:x")
        assert (first.instance_id, first.request_id, first.end) == ("a", "doomed", "lost:expired")
        assert (last.instance_id, last.request_id, last.end) == ("b", "heir", "lost:forced")
        assert (first.fencing_token, last.fencing_token) == (doomed.fencing_token, heir.fencing_token)
        assert first.began_at < last.began_at < time.time() + 1
        only = await a.contention.incidents(kinds=frozenset({"takeover"}))
        assert [each.kind for each in only] == ["takeover"]
        snapshot = await a.contention.snapshot()
        assert (snapshot.totals["takeovers"], snapshot.totals["forced"]) == (1, 1)


async def test_an_instance_that_stops_says_so_and_one_that_dies_is_missed(own_redis: OwnRedis) -> None:
    async with instance(own_redis.url, "watcher") as watcher:
        async with instance(own_redis.url, "polite"):
            pass
        async with instance(own_redis.url, "dying") as dying:
            assert dying.publisher._task is not None
            dying.publisher._task.cancel()

            async def missed() -> bool:
                return any(each.kind == "instance-down" for each in await watcher.contention.incidents())

            await wait_until_async(missed)
            told = [(each.kind, each.instance_id) for each in await watcher.contention.incidents()]
            assert told.count(("instance-down", "dying")) == 1
            assert ("instance-stopped", "polite") in told
            assert ("instance-up", "dying") in told
            snapshot = await watcher.contention.snapshot()
            assert [each.picture.instance_id for each in snapshot.instances] == ["watcher"]
            dying.publisher._task = None


async def test_the_minutes_of_a_day_count_everything_once_also_when_an_answer_was_lost(own_redis: OwnRedis) -> None:
    async with instance(own_redis.url, "a") as a:
        for number in range(20):
            async with a.locker.hold(f"lock:{number}", lease_ttl_s=LONG_S):
                pass
            if number == 10:
                with redis.Redis.from_url(own_redis.url) as client:
                    client.client_kill_filter(_type="normal", skipme=True)

                async def is_up() -> bool:
                    return a.locker.is_up

                await wait_until_async(is_up)

        async def told() -> bool:
            now_s = time.time()
            slots = await a.contention.minutes(from_s=now_s - 120, until_s=now_s + 60)
            return sum(slot.counts.get("released", 0) for slot in slots) == 20

        await wait_until_async(told)
        fine = await a.contention.recent()
        assert sum(slot.counts.get("acquired", 0) for slot in fine) == 20
        assert sum(slot.hold.count for slot in fine) == 20
        now_s = time.time()
        assert sum(slot.hold.count for slot in await a.contention.minutes(from_s=now_s - 120, until_s=now_s)) == 20


async def test_a_publication_that_is_sent_again_counts_once(own_redis: OwnRedis) -> None:
    async with instance(own_redis.url, "a") as a:
        a.publisher._task.cancel()  # type: ignore[union-attr]
        a.seen.count("acquired", 3)
        await a.publisher._publish_once()
        publish = a.publisher._store.publish

        async def published_but_not_answered(**arguments: object) -> float:
            await publish(**arguments)  # type: ignore[arg-type]
            raise LockStoreDown("the answer was lost")

        a.seen.count("acquired", 4)
        a.publisher._store.publish = published_but_not_answered  # type: ignore[method-assign]
        await a.publisher._publish()
        a.publisher._store.publish = publish  # type: ignore[method-assign]
        a.seen.count("acquired", 5)
        await a.publisher._publish()
        await a.publisher._publish()
        slots = await a.contention.recent()
        assert sum(slot.counts.get("acquired", 0) for slot in slots) == 12
        a.publisher._task = None


async def test_cells_and_hot_minutes_name_the_locks_that_were_waited_for(own_redis: OwnRedis) -> None:
    async with instance(own_redis.url, "a") as a:
        lease = await a.locker.acquire("lock:slow", lease_ttl_s=LONG_S)
        waiter = asyncio.create_task(a.locker.acquire("lock:slow", lease_ttl_s=LONG_S))

        async def waits() -> bool:
            return a.locker.waiter_count == 1

        await wait_until_async(waits)
        await asyncio.sleep(0.02)
        await lease.release()
        heir = await waiter
        await heir.release()
        bucket = bucket_of(heir.waited_s)

        async def found() -> bool:
            now_s = time.time()
            for at_s in (now_s, now_s - 60):
                named = await a.contention.locks_in_cell(at_s=at_s, kind="wait", bucket=bucket)
                hot = await a.contention.hot_in(at_s=at_s)
                if [name for name, _ in named] == ["lock:slow"] and [each.name for each in hot] == ["lock:slow"]:
                    assert hot[0].total_wait_s == pytest.approx(heir.waited_s, abs=0.001)
                    return True
            return False

        await wait_until_async(found)


async def test_no_key_of_it_stays_for_ever_and_none_shows_a_lease_id(own_redis: OwnRedis) -> None:
    async with instance(own_redis.url, "a") as a, instance(own_redis.url, "b") as b:
        lease = await a.locker.acquire("lock:x", lease_ttl_s=0.3)
        other = await b.locker.acquire("lock:x", lease_ttl_s=LONG_S, wait_s=LONG_S)

        async def told() -> bool:
            return bool(await a.contention.holds_of("lock:x"))

        await wait_until_async(told)
        with redis.Redis.from_url(own_redis.url) as client:
            keys = list(client.scan_iter(match=f"{PREFIX}*"))
            assert len(keys) >= 8
            for key in keys:
                # A key may have gone by now, which is as good.
                assert client.ttl(key) != -1, key
                dumped = client.dump(key) or b""
                assert lease.lease_id.encode() not in dumped
                assert other.lease_id.encode() not in dumped
        await other.release()


async def test_instances_tell_again_after_redis_has_lost_everything(own_redis: OwnRedis) -> None:
    async with instance(own_redis.url, "a") as a:
        with redis.Redis.from_url(own_redis.url) as client:
            client.flushall()

        async def back() -> bool:
            return [each.picture.instance_id for each in (await a.contention.snapshot()).instances] == ["a"]

        await wait_until_async(back)


def test_a_histogram_tells_quantiles_within_one_bucket_and_adds_up() -> None:
    order = random.Random(7)
    times = [10 ** order.uniform(-5, 1.5) for _ in range(5000)]
    first, second = LogHistogram(), LogHistogram()
    for number, seconds in enumerate(times):
        (first if number % 2 else second).add(seconds)
    first.merge(LogHistogram.from_sparse(second.sparse()))
    assert first.count == 5000
    for share in (0.01, 0.5, 0.9, 0.99, 1.0):
        exact = sorted(times)[max(0, -int(-share * 5000 // 1) - 1)]
        told = first.quantile(share)
        assert told / 2**0.5 - 1e-12 <= max(exact, BOUNDS_S[0] / 2**0.5) <= told + 1e-12
    assert LogHistogram().quantile(0.5) == 0.0


async def test_a_list_of_all_locks_names_every_holder_without_looking_at_each(own_redis: OwnRedis) -> None:
    async with instance(own_redis.url, "a") as a, instance(own_redis.url, "b") as b:
        await a.locker.acquire("lock:a", lease_ttl_s=LONG_S, request_id="r-a", owner="nightly import")
        await b.locker.acquire("lock:b", lease_ttl_s=LONG_S, request_id="r-b")
        await b.locker.lending.lend("lock:lent", lease_ttl_s=LONG_S, wait_s=0, request_id="r-c", owner="a crawler")
        with redis.Redis.from_url(own_redis.url) as client:
            assert redis_lock.Lock(client, "{lock:untold}", expire=30).acquire()
        waiting = [asyncio.create_task(b.locker.acquire(name)) for name in ("lock:a", "lock:untold")]

        async def told() -> bool:
            listed = await a.contention.all_locks(sort="name")
            return len(listed) == 4 and sum(each.waiters for each in listed) == 2

        await wait_until_async(told)
        listed = await a.contention.all_locks(sort="name")
        looked_at = (await a.contention.locks(sort="name", limit=10)).locks
        assert [(each.name, each.holder, each.fencing_token, each.by_python_redis_lock) for each in listed] == [
            (each.name, each.holder, each.fencing_token, each.by_python_redis_lock) for each in looked_at
        ]
        kinds = [each.holder and (each.holder.instance_id, each.holder.owner, each.holder.kind) for each in listed]
        assert kinds == [
            ("a", "nightly import", PartyKind.LOCKER),
            ("b", None, PartyKind.LOCKER),
            ("b", "a crawler", PartyKind.CLIENT),
            None,
        ]
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_list_of_25_000_locks_names_their_holders_without_a_command_for_each(own_redis: OwnRedis) -> None:
    count = 25_000
    async with instance(own_redis.url, "a") as a, instance(own_redis.url, "b") as b:
        for at in range(0, count, 1000):
            names = [f"lock:{number}" for number in range(at, at + 1000)]
            await asyncio.gather(
                *[a.locker.acquire(name, lease_ttl_s=600, request_id="r", owner="x") for name in names]
            )

        async def told() -> bool:
            return len(await b.contention.all_locks(sort="name")) == count

        await wait_until_async(told)
        with redis.Redis.from_url(own_redis.url) as client:

            def scripts_run() -> int:
                told: Any = client.info("commandstats")
                return int(told["cmdstat_evalsha"]["calls"])

            before = scripts_run()
            listed = await b.contention.all_locks(sort="held")
            assert scripts_run() - before < 100, "a few for what instances tell meanwhile"
        assert len(listed) == count
        assert {(each.holder.instance_id, each.holder.owner) for each in listed if each.holder} == {("a", "x")}
        assert all(each.holder for each in listed)


async def test_past_holds_and_losses_name_the_owner(own_redis: OwnRedis) -> None:
    async with instance(own_redis.url, "a") as a, instance(own_redis.url, "b") as b:
        await a.locker.lending.lend("lock:x", lease_ttl_s=0.3, wait_s=0, request_id="doomed", owner="a crawler")

        async def all_told() -> bool:
            return bool(await b.contention.holds_of("lock:x"))

        await wait_until_async(all_told)
        [lost] = await b.contention.incidents(name="lock:x", kinds=frozenset({"lost"}))
        assert lost.detail["owner"] == "a crawler"
        [doomed] = await b.contention.holds_of("lock:x")
        assert (doomed.request_id, doomed.owner, doomed.end) == ("doomed", "a crawler", "lost:expired")

"""Locks on a real server: they exclude, in order, with rising fencing tokens, and nobody leaves anything behind."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TypeVar

import pytest
import redis

from locks import Lease, LockBusy, Locker, LockStoreDown, TooManyWaiters
from locks.events import Acquired, GaveUp, LockEvent, Released, StoreUp, Waiting, WakeSource
from locks.store import QueueLimits
from tests.harness import PATIENCE_S, ROOT, OwnRedis, wait_until_async
from tests.proxy import Cut, Proxy
from tests.servers.processes import unused_port

KEEP_MS = QueueLimits().keep_ms
APART_S = 0.1  # arrivals: more than the slack of 5 ms, and than a command takes on a busy machine
Event = TypeVar("Event", bound=LockEvent)

OTHER_PROCESS = """
import asyncio, sys
from locks import Locker
from locks.events import Waiting
from locks.store import QueueLimits

async def main():
    url, name, lease_ttl_s = sys.argv[1], sys.argv[2], float(sys.argv[3])
    def hear(event):
        if isinstance(event, Waiting):
            print("waiting", flush=True)
    limits = QueueLimits(slack_ms=0)
    async with Locker(url, instance_id="other", command_timeout_s=30, queue_limits=limits, listener=hear) as locker:
        async with locker.hold(name, lease_ttl_s=lease_ttl_s) as lease:
            print("holding", lease.fencing_token, flush=True)
            await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main())
"""


class Heard:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.events: list[LockEvent] = []

    def __call__(self, event: LockEvent) -> None:
        self.events.append(event)

    def all(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]

    async def count(self, kind: type[LockEvent], count: int) -> None:
        """Waits until so many were heard."""

        async def enough() -> bool:
            return len(self.all(kind)) >= count

        await wait_until_async(enough, what=f"{count} x {kind.__name__} in {self.events}")


class Keys:
    """The keys of one lock, seen from outside."""

    def __init__(self, url: str, name: str) -> None:
        self.name = name
        self.client = redis.Redis.from_url(url, decode_responses=True, socket_timeout=PATIENCE_S)
        self.lock = f"lock:{{{name}}}"
        self.queue = f"lock-queue:{{{name}}}"
        self.waiters = f"lock-waiters:{{{name}}}"
        self.grant = f"lock-grant:{{{name}}}"

    def holder(self) -> str | None:
        holder = self.client.get(self.lock)
        assert holder is None or isinstance(holder, str)
        return holder

    def content(self, key: str) -> object:
        """What a key holds, and for how many ms yet."""
        read = {
            "string": self.client.get,
            "zset": lambda key: self.client.zrange(key, 0, -1, withscores=True),
            "hash": self.client.hgetall,
        }.get(str(self.client.type(key)))
        return read and (read(key), self.client.pttl(key))

    def queued(self) -> int:
        return int(self.client.zcard(self.queue))

    def fence(self) -> int:
        grant = self.client.get(self.grant)
        assert isinstance(grant, str)
        seconds, microseconds, *_ = grant.partition("\t")[0].split(" ")
        return int(seconds) * 1_000_000 + int(microseconds)

    async def queue_of(self, count: int) -> None:
        """Waits until so many processes stand in line."""

        async def so_many() -> bool:
            return self.queued() == count

        await wait_until_async(so_many, what=f"{count} in line")

    async def gone(self) -> None:
        """Waits until nobody holds it and nobody waits."""

        async def nothing_left() -> bool:
            return self.holder() is None and self.queued() == 0

        await wait_until_async(nothing_left, what=f"{self.lock} to be gone")


@pytest.fixture
def keys(redis_url: str, name: str) -> Iterator[Keys]:
    keys = Keys(redis_url, name)
    yield keys
    keys.client.close()


@asynccontextmanager
async def locking(
    url: str, *, heard: Callable[[LockEvent], None] | None = None, command_timeout_s: float = 20, **limits: int
) -> AsyncIterator[Locker]:
    """A connected locker; with a command timeout that a busy machine does not reach."""
    locker = Locker(
        url,
        instance_id="test",
        command_timeout_s=command_timeout_s,
        max_waiters=limits.pop("max_waiters", 10_000),
        queue_limits=QueueLimits(**{"alive_ms": 5000, "slack_ms": 0, **limits}),
        listener=heard or (lambda event: None),
    )
    async with locker:
        yield locker


@contextmanager
def own_keys(server: OwnRedis, name: str) -> Iterator[Keys]:
    keys = Keys(server.url, name)
    yield keys
    keys.client.close()


# The library as the contract shows it


async def test_the_contracts_example_is_true(redis_url: str, name: str) -> None:
    async with Locker.connect(redis_url, instance_id="api-3") as locker:
        async with locker.hold(name, lease_ttl_s=10.0, wait_s=3.0) as lease:
            assert lease.fencing_token > 0
            assert 5 < lease.remaining_s() <= 10
            assert isinstance(lease.lost, asyncio.Event)
            assert not lease.lost.is_set()
            with pytest.raises(LockBusy):
                await locker.acquire(name, lease_ttl_s=10.0, wait_s=0)
        lease = await locker.acquire(name, lease_ttl_s=10.0, wait_s=0)
        await lease.extend(lease_ttl_s=30.0)
        assert 20 < lease.remaining_s() <= 30
        assert await lease.release() is True
        assert lease.remaining_s() == 0
        assert await lease.release() is False


async def test_a_held_lock_excludes_until_its_release(redis_url: str, name: str) -> None:
    inside = 0
    most_inside = 0

    async with locking(redis_url) as one, locking(redis_url) as other:

        async def enter(locker: Locker) -> None:
            nonlocal inside, most_inside
            for _ in range(10):
                async with locker.hold(name):
                    inside += 1
                    most_inside = max(most_inside, inside)
                    await asyncio.sleep(0)
                    inside -= 1

        await asyncio.gather(*[enter(locker) for locker in (one, other) for _ in range(5)])

    assert most_inside == 1


async def test_locks_of_different_names_do_not_meet(redis_url: str, name: str) -> None:
    async with locking(redis_url) as locker:
        leases = await asyncio.gather(*[locker.acquire(f"{name}/{number}", wait_s=0) for number in range(300)])
        assert await asyncio.gather(*[lease.release() for lease in leases]) == [True] * 300


@pytest.mark.parametrize("bad", ["", "a b", "ä", "a{b}", "a\n", "a" * 201, "lock*", "a\x00"])
async def test_a_name_outside_the_alphabet_is_refused(redis_url: str, bad: str) -> None:
    async with locking(redis_url) as locker:
        with pytest.raises(ValueError, match="a lock's name"):
            await locker.acquire(bad, wait_s=0)
        with pytest.raises(ValueError, match="a lock's name"):
            async with locker.hold(bad):
                pass


async def test_the_longest_name_of_every_sign_is_a_name(redis_url: str) -> None:
    longest = f"{uuid.uuid4().hex}:aZ0._/-".ljust(200, "x")
    async with locking(redis_url) as locker:
        assert await (await locker.acquire(longest, wait_s=0)).release()


@pytest.mark.parametrize("bad_s", [0, -1, 0.099, 3600.1, float("nan"), float("inf")])
async def test_a_lease_that_is_too_short_or_too_long_is_refused(redis_url: str, name: str, bad_s: float) -> None:
    async with locking(redis_url) as locker:
        with pytest.raises(ValueError, match="lease_ttl_s"):
            await locker.acquire(name, lease_ttl_s=bad_s)
        lease = await locker.acquire(name)
        with pytest.raises(ValueError, match="lease_ttl_s"):
            await lease.extend(bad_s)
        assert await lease.release()


# Waiting


async def test_without_waiting_a_held_lock_is_busy_at_once(redis_url: str, name: str, keys: Keys) -> None:
    heard = Heard()
    async with locking(redis_url, heard=heard) as locker:
        await locker.acquire(name, lease_ttl_s=20.0)

        with pytest.raises(LockBusy) as caught:
            await locker.acquire(name, wait_s=0)

    assert caught.value.name == name
    assert caught.value.expires_in_s is not None
    assert 10 < caught.value.expires_in_s <= 20
    assert keys.queued() == 0
    (gave_up,) = heard.all(GaveUp)
    assert (gave_up.outcome, gave_up.queued) == ("busy", False)
    assert heard.all(Waiting) == []


async def test_fractions_of_a_second_are_waited(redis_url: str, name: str, keys: Keys) -> None:
    async with locking(redis_url) as locker:
        lease = await locker.acquire(name)
        started_at_s = time.monotonic()

        with pytest.raises(LockBusy) as caught:
            await locker.acquire(name, wait_s=0.25)

        assert 0.25 <= time.monotonic() - started_at_s < 10
        assert caught.value.waited_s >= 0.25
        assert await lease.release()
        await keys.gone()


async def test_none_waits_as_long_as_it_takes(redis_url: str, name: str) -> None:
    heard = Heard()
    async with locking(redis_url, heard=heard, alive_ms=150) as locker:
        async with locker.hold(name):
            waiting = asyncio.create_task(locker.acquire(name, wait_s=None))
            await heard.count(Waiting, 1)
            # For more than its sign of life lasts.
            assert not (await asyncio.wait([waiting], timeout=0.5))[0]
        assert await (await waiting).release()


async def test_a_release_hands_over_to_the_next_at_once(redis_url: str, name: str) -> None:
    heard = Heard()
    async with locking(redis_url, heard=heard, alive_ms=60_000) as locker:
        async with locker.hold(name, lease_ttl_s=60) as first:
            waiting = asyncio.create_task(locker.acquire(name, lease_ttl_s=60))
            await heard.count(Waiting, 1)
        # Neither the timer at the lease's end nor the heartbeat of 20 s comes before the test's own end.
        second = await asyncio.wait_for(waiting, 15)
        acquired = heard.all(Acquired)[1]
        assert acquired.wake_source is WakeSource.HANDOFF
        assert acquired.handoff_s is not None
        assert not acquired.takeover
        assert acquired.waited_s == second.waited_s
        assert second.stood_in_line
        assert second.fencing_token > first.fencing_token
        assert [event.handed_over for event in heard.all(Released)] == [True]
        # The short claim of the handoff has become a whole lease.
        assert second.remaining_s() > 50
        assert await second.release()


async def test_a_confirmed_hand_over_has_its_whole_lease_in_redis(redis_url: str, name: str, keys: Keys) -> None:
    heard = Heard()
    async with locking(redis_url, heard=heard) as locker:
        async with locker.hold(name):
            waiting = asyncio.create_task(locker.acquire(name, lease_ttl_s=60))
            await heard.count(Waiting, 1)
        lease = await waiting
        assert keys.client.pttl(keys.lock) > 50_000
        assert await lease.release()


async def test_waiters_of_one_process_come_in_their_order(redis_url: str, name: str) -> None:
    heard = Heard()
    order: list[int] = []
    tokens: list[int] = []
    async with locking(redis_url, heard=heard) as locker:

        async def wait(number: int) -> None:
            async with locker.hold(name) as lease:
                order.append(number)
                tokens.append(lease.fencing_token)

        async with locker.hold(name) as first:
            tokens.append(first.fencing_token)
            waiting = []
            for number in range(25):
                waiting.append(asyncio.create_task(wait(number)))
                await heard.count(Waiting, number + 1)
        await asyncio.gather(*waiting)

    assert order == list(range(25))
    assert tokens == sorted(set(tokens))


async def test_waiters_of_two_processes_come_in_their_order(redis_url: str, name: str) -> None:
    heard = Heard()
    async with locking(redis_url, heard=heard) as locker, AsyncExitStack() as stack:

        async def here() -> int:
            async with locker.hold(name) as lease:
                return lease.fencing_token

        first = await locker.acquire(name, lease_ttl_s=60)
        waiting: list[asyncio.Task[int]] = []
        for number in range(2):
            waiting.append(asyncio.create_task(here()))
            await heard.count(Waiting, number + 1)
            there = await stack.enter_async_context(other_process(redis_url, name))
            await there.says("waiting")
            waiting.append(asyncio.create_task(there.holds_and_releases()))
            await asyncio.sleep(APART_S)
        waiting.append(asyncio.create_task(here()))
        await heard.count(Waiting, 3)

        assert await first.release()

        tokens = [first.fencing_token, *await asyncio.gather(*waiting)]
    assert tokens == sorted(set(tokens))


async def test_who_gives_up_leaves_the_queue_and_delays_nobody(redis_url: str, name: str, keys: Keys) -> None:
    heard = Heard()
    async with locking(redis_url, heard=heard, alive_ms=60_000) as locker:
        lease = await locker.acquire(name, lease_ttl_s=60)
        impatient = asyncio.create_task(locker.acquire(name, wait_s=0.3))
        await heard.count(Waiting, 1)
        patient = asyncio.create_task(locker.acquire(name, lease_ttl_s=60))
        await heard.count(Waiting, 2)
        with pytest.raises(LockBusy):
            await impatient
        assert heard.all(GaveUp)[0].queued

        assert await lease.release()

        assert await (await asyncio.wait_for(patient, 15)).release()
        await keys.gone()


async def test_the_order_holds_where_the_first_in_line_gave_up_once(redis_url: str, name: str) -> None:
    """A lock that was freed for a head who then gave up must not stay open to everybody from then on."""
    heard = Heard()
    async with locking(redis_url, heard=heard, handoffs=0, grace_ms=50, alive_ms=60_000) as locker:
        lease = await locker.acquire(name, lease_ttl_s=60)
        head = asyncio.create_task(locker.acquire(name))
        await heard.count(Waiting, 1)
        released = asyncio.create_task(lease.release())
        head.cancel()
        await asyncio.gather(released, head, return_exceptions=True)
        await asyncio.sleep(0.1)  # longer than the head's grace

        blocking = await locker.acquire(name, lease_ttl_s=0.3)
        first = asyncio.create_task(locker.acquire(name, lease_ttl_s=60))
        await heard.count(Waiting, 2)
        with Keys(redis_url, name).client as client:
            client.delete(f"lock:{{{name}}}")  # free, and the head does not know it yet
        with pytest.raises(LockBusy):
            await locker.acquire(name, wait_s=0)
        assert await (await asyncio.wait_for(first, PATIENCE_S)).release()
        assert not await blocking.release()


async def test_whoever_becomes_the_first_in_line_hears_at_once_of_a_lock_that_is_deleted(
    redis_url: str, name: str, keys: Keys
) -> None:
    """Only the first watches the lock; with signs of life this rare, nothing else would tell it."""
    one, other = Heard(), Heard()
    async with locking(redis_url) as holder:
        await holder.acquire(name, lease_ttl_s=60)
        async with (
            locking(redis_url, heard=one, alive_ms=3_600_000) as first,
            locking(redis_url, heard=other, alive_ms=3_600_000) as second,
        ):
            leaving = asyncio.create_task(first.acquire(name, lease_ttl_s=60))
            await one.count(Waiting, 1)
            await keys.queue_of(1)
            staying = asyncio.create_task(second.acquire(name, lease_ttl_s=60))
            await keys.queue_of(2)
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)

            async def the_next_one_watches() -> bool:
                return second._lines.by_name[name]._watched

            await wait_until_async(the_next_one_watches)
            keys.client.delete(keys.lock)

            lease = await asyncio.wait_for(staying, PATIENCE_S)

            (acquired,) = other.all(Acquired)
            assert acquired.wake_source is WakeSource.TRACKING
            assert await lease.release()


async def test_nobody_overtakes_the_first_in_line_behind_a_foreign_holder(
    redis_url: str, name: str, keys: Keys
) -> None:
    heard = Heard()
    async with locking(redis_url, heard=heard, alive_ms=300) as locker:
        keys.client.set(keys.lock, "python-redis-lock", px=20_000)
        first = asyncio.create_task(locker.acquire(name))
        await heard.count(Waiting, 1)
        # As left by a lock that was freed for somebody, before the foreign holder was quicker.
        keys.client.hset(keys.waiters, ".grace_until", "1")

        async def grace_is_over() -> bool:
            return keys.client.hget(keys.waiters, ".grace_until") is None

        await wait_until_async(grace_is_over, patience_s=10, what="the old grace to be forgotten")
        keys.client.delete(keys.lock)
        with pytest.raises(LockBusy):
            await locker.acquire(name, wait_s=0)
        assert await (await first).release()


async def test_too_many_waiters_are_refused_and_nothing_is_queued(redis_url: str, name: str, keys: Keys) -> None:
    heard = Heard()
    async with locking(redis_url, heard=heard, max_waiters=2) as locker:
        lease = await locker.acquire(name)
        waiting = [asyncio.create_task(locker.acquire(name)) for _ in range(2)]
        await heard.count(Waiting, 2)
        assert locker.waiter_count == 2

        with pytest.raises(TooManyWaiters):
            await locker.acquire(name)
        with pytest.raises(LockBusy):
            await locker.acquire(name, wait_s=0)  # who does not wait is no waiter

        assert keys.queued() <= 1  # one place in line for the whole process, and only when the holder takes its time
        await lease.release()
        for each in waiting:
            assert await (await each).release()
        assert locker.waiter_count == 0


async def test_a_release_never_frees_another_holders_lock(redis_url: str, name: str, keys: Keys) -> None:
    async with locking(redis_url) as locker:
        lease = await locker.acquire(name)
        keys.client.set(keys.lock, "another", px=20_000)

        assert await lease.release() is False

        assert keys.holder() == "another"


# Fencing tokens


async def test_fencing_tokens_rise_through_flushall_and_restart(own_redis: OwnRedis, name: str) -> None:
    tokens: list[int] = []
    heard = Heard()
    async with locking(own_redis.url, heard=heard) as locker:
        for loss in (_nothing, _flushall(own_redis), _nothing, _restart(own_redis), _nothing):
            lease = await locker.acquire(name)
            tokens.append(lease.fencing_token)
            await lease.release()
            loss()
            lease = await acquired_again(locker, name)
            tokens.append(lease.fencing_token)
            await lease.release()

    assert len(tokens) == 10
    assert tokens == sorted(set(tokens))
    assert len(heard.all(StoreUp)) >= 2


async def test_fencing_tokens_rise_faster_than_the_clock(redis_url: str, name: str) -> None:
    tokens = []
    async with locking(redis_url) as locker:
        for _ in range(300):
            lease = await locker.acquire(name, wait_s=0)
            tokens.append(lease.fencing_token)
            await lease.release()

    assert tokens == sorted(set(tokens))


async def test_a_fencing_token_rises_from_one_that_is_ahead_of_the_clock(redis_url: str, name: str, keys: Keys) -> None:
    ahead = int(time.time() * 1e6) + 3_600_000_000
    keys.client.set(keys.grant, f"{ahead // 1_000_000} {ahead % 1_000_000}", px=60_000)
    async with locking(redis_url) as locker:
        tokens = []
        for _ in range(2):
            lease = await locker.acquire(name, wait_s=0)
            tokens.append(lease.fencing_token)
            await lease.release()

    assert tokens == [ahead + 1, ahead + 2]


# Processes that die


async def test_a_dead_processes_waiter_is_skipped(redis_url: str, name: str) -> None:
    heard = Heard()
    async with locking(redis_url, heard=heard, alive_ms=60_000) as locker:
        lease = await locker.acquire(name, lease_ttl_s=60)
        async with other_process(redis_url, name) as other:
            await other.says("waiting")
            behind = asyncio.create_task(locker.acquire(name, lease_ttl_s=60))
            await heard.count(Waiting, 1)
            await other.kill()

            assert await lease.release()

            assert await (await asyncio.wait_for(behind, 15)).release()


async def test_a_dead_holders_lock_is_taken_over_when_its_lease_ends(redis_url: str, name: str, keys: Keys) -> None:
    heard = Heard()
    async with (
        locking(redis_url, heard=heard, alive_ms=60_000) as locker,
        other_process(redis_url, name, lease_ttl_s=0.6) as other,
    ):
        token = int((await other.says("holding")).split()[1])
        waiting = asyncio.create_task(locker.acquire(name))
        await heard.count(Waiting, 1)
        await other.kill()
        killed_at_s = time.monotonic()
        remaining_ms = int(keys.client.pttl(keys.lock))

        lease = await waiting

        took_s = time.monotonic() - killed_at_s
        assert remaining_ms > 0
        assert took_s >= remaining_ms / 1000 - 0.005  # Redis counts whole milliseconds
        assert took_s < remaining_ms / 1000 + 10
        assert lease.fencing_token > token
        acquired = heard.all(Acquired)[0]
        assert acquired.takeover
        # The server tells of the key's end too, where its round of expiry falls into the 2 ms before the timer.
        assert acquired.wake_source in (WakeSource.TIMER, WakeSource.TRACKING)
        assert await lease.release()


async def test_a_hand_over_to_a_process_that_dies_on_it_costs_its_short_claim(redis_url: str, name: str) -> None:
    """A frozen process still listens, so it is handed the lock; it never confirms, and the next one gets its turn."""
    heard = Heard()
    async with locking(redis_url, heard=heard, claim_ms=300) as locker:
        lease = await locker.acquire(name, lease_ttl_s=60)
        async with other_process(redis_url, name, lease_ttl_s=60) as other:
            await other.says("waiting")
            behind = asyncio.create_task(locker.acquire(name, lease_ttl_s=60))
            await heard.count(Waiting, 1)
            other.process.send_signal(signal.SIGSTOP)
            assert await lease.release()

            next_lease = await asyncio.wait_for(behind, 30)

            assert await next_lease.release()
            await other.kill()


# Cancellation


@pytest.mark.parametrize("seed", range(4))
async def test_a_call_cancelled_anywhere_leaves_neither_key_nor_queue_entry(
    redis_url: str, name: str, keys: Keys, seed: int
) -> None:
    choices = random.Random(seed)
    heard = Heard()
    async with locking(redis_url, heard=heard) as locker, locking(redis_url) as other:

        async def take(who: Locker) -> None:
            async with who.hold(name, lease_ttl_s=60):
                await asyncio.sleep(0)

        for _ in range(40):
            tasks = [asyncio.create_task(take(choices.choice([locker, other]))) for _ in range(4)]
            for _ in range(choices.randrange(8)):
                await asyncio.sleep(choices.choice([0, 0, 0.0005]))
            victims = [task for task in tasks if choices.random() < 0.6]
            for task in victims:
                task.cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                assert outcome is None or isinstance(outcome, asyncio.CancelledError)
        await keys.gone()
        assert locker.waiter_count == other.waiter_count == 0


async def test_a_cancelled_waiter_leaves_the_queue(redis_url: str, name: str, keys: Keys) -> None:
    heard = Heard()
    async with locking(redis_url, heard=heard) as locker:
        lease = await locker.acquire(name)
        waiting = asyncio.create_task(locker.acquire(name))
        await heard.count(Waiting, 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        (gave_up,) = heard.all(GaveUp)
        assert (gave_up.outcome, gave_up.queued) == ("cancelled", True)
        assert await lease.release()
        await keys.gone()


async def test_a_timeout_around_acquire_leaves_the_queue_too(redis_url: str, name: str, keys: Keys) -> None:
    async with locking(redis_url) as locker:
        lease = await locker.acquire(name)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await locker.acquire(name)
        assert await lease.release()
        await keys.gone()


async def test_a_hand_over_to_a_cancelled_waiter_goes_on_to_the_next(redis_url: str, name: str) -> None:
    heard = Heard()
    async with locking(redis_url, heard=heard, alive_ms=60_000, claim_ms=60_000) as locker:
        lease = await locker.acquire(name, lease_ttl_s=60)
        cancelled = asyncio.create_task(locker.acquire(name, lease_ttl_s=60))
        await heard.count(Waiting, 1)
        behind = asyncio.create_task(locker.acquire(name, lease_ttl_s=60))
        await heard.count(Waiting, 2)
        release = asyncio.create_task(lease.release())
        await asyncio.sleep(0)  # the release is on the wire, so the cancelled one's grant may be on its way
        cancelled.cancel()
        assert await release

        assert await (await asyncio.wait_for(behind, 15)).release()
        with pytest.raises(asyncio.CancelledError):
            await cancelled


async def test_a_cancelled_call_gives_back_although_the_scripts_were_flushed(own_redis: OwnRedis, name: str) -> None:
    heard = Heard()
    with own_keys(own_redis, name) as keys:
        async with locking(own_redis.url, heard=heard) as locker:
            lease = await locker.acquire(name, lease_ttl_s=60)
            waiting = asyncio.create_task(locker.acquire(name))
            await heard.count(Waiting, 1)
            keys.client.script_flush()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert await lease.release()
            await keys.gone()


# What is left behind


async def test_every_key_expires_at_all_times(own_redis: OwnRedis) -> None:
    """Sampled while waiters, handoffs, cancellations and lapses go on."""
    client = redis.Redis(port=own_redis.port, decode_responses=True)
    bound_ms = 1000 + KEEP_MS + 5000
    seen: set[str] = set()
    done = False
    heard = Heard()

    async def look() -> None:
        sample = (
            "local found = {} for _, key in ipairs(redis.call('KEYS', '*')) do"
            " found[#found + 1] = {key, redis.call('PTTL', key)} end return found"
        )
        while not done:
            for key, ttl_ms in client.eval(sample, 0):
                seen.add(key.split(":")[0])
                assert 0 <= ttl_ms <= bound_ms, (key, ttl_ms)
            await asyncio.sleep(0.001)

    async def work(locker: Locker, number: int) -> None:
        choices = random.Random(number)
        for _ in range(8):
            try:
                lease = await locker.acquire(
                    f"lock:{choices.randrange(3)}",
                    lease_ttl_s=choices.choice([0.1, 1.0]),
                    wait_s=choices.choice([0, 0.05, 2]),
                )
            except LockBusy:
                continue
            await asyncio.sleep(choices.choice([0, 0.005]))
            if choices.random() < 0.2:
                await lease.extend(1.0)
            if choices.random() < 0.8:
                await lease.release()

    async with locking(own_redis.url, heard=heard) as locker, locking(own_redis.url, handoffs=1) as other:
        looking = asyncio.create_task(look())
        await asyncio.gather(*[work((locker, other)[number % 2], number) for number in range(12)])
        done = True
        await looking
    assert seen == {"lock", "lock-queue", "lock-waiters", "lock-grant", "lock-signal"}
    client.close()


async def test_a_long_lease_leaves_nothing_behind_for_longer_than_a_short_one(own_redis: OwnRedis, name: str) -> None:
    async with locking(own_redis.url) as locker:
        assert await (await locker.acquire(name, lease_ttl_s=3600)).release()
        with own_keys(own_redis, name) as keys:
            assert 0 < int(keys.client.pttl(keys.grant)) <= KEEP_MS


async def test_the_memory_returns_when_the_locks_are_gone(own_redis: OwnRedis) -> None:
    client = redis.Redis(port=own_redis.port, decode_responses=True)
    async with locking(own_redis.url, alive_ms=100) as locker:
        for number in range(50):
            async with locker.hold(f"lock:{number}", lease_ttl_s=0.1):
                pass
        # What outlives its lease, the fence, does so for a known time: nobody needs to wait for it here.
        for key in client.scan_iter("*"):
            assert key.split(":")[0] in ("lock-grant", "lock-signal")
            ttl_ms = int(client.pttl(key))
            assert 0 < ttl_ms <= 100 + KEEP_MS, (key, ttl_ms)
            client.pexpire(key, max(1, ttl_ms - KEEP_MS - 100 - 1000))

        async def empty() -> bool:
            return int(client.dbsize()) == 0

        await wait_until_async(empty, what="an empty server")
    client.close()


# A server in trouble


async def test_a_dead_port_is_down_at_the_start() -> None:
    started_at_s = time.monotonic()
    with pytest.raises(LockStoreDown):
        async with Locker.connect(f"redis://127.0.0.1:{unused_port()}", instance_id="test"):
            pass
    assert time.monotonic() - started_at_s < 15


async def test_flushed_scripts_are_sent_again(own_redis: OwnRedis, name: str) -> None:
    heard = Heard()
    with own_keys(own_redis, name) as keys:
        async with locking(own_redis.url, heard=heard) as locker:
            keys.client.script_flush()
            lease = await locker.acquire(name)
            keys.client.script_flush()
            await lease.extend(20)
            waiting = asyncio.create_task(locker.acquire(name))
            await heard.count(Waiting, 1)
            keys.client.script_flush()
            assert await lease.release()
            assert await (await waiting).release()


async def test_killed_connections_cost_neither_holder_nor_waiters_anything(own_redis: OwnRedis, name: str) -> None:
    heard = Heard()
    with own_keys(own_redis, name) as keys:
        async with locking(own_redis.url, heard=heard, alive_ms=600) as locker:
            async with locker.hold(name, lease_ttl_s=20) as lease:
                waiting = [asyncio.create_task(locker.acquire(name)) for _ in range(5)]
                await heard.count(Waiting, 5)
                for kind in ("normal", "pubsub"):
                    keys.client.client_kill_filter(_type=kind, skipme=True)
                await heard.count(StoreUp, 2)

                # The heartbeats go on over the new connection.
                async def queued_again() -> bool:
                    return keys.queued() == 1

                await wait_until_async(queued_again)
                assert not lease.lost.is_set()
            for each in asyncio.as_completed(waiting):
                assert await (await each).release()


@pytest.mark.parametrize("kill", [False, True], ids=["frozen", "dead"])
async def test_a_server_out_of_reach_is_down_within_bounds(own_redis: OwnRedis, name: str, kill: bool) -> None:
    heard = Heard()
    async with locking(own_redis.url, heard=heard, command_timeout_s=0.2) as locker:
        async with locker.hold(name, lease_ttl_s=30):
            waiting = asyncio.create_task(locker.acquire(name))
            await heard.count(Waiting, 1)
            if kill:
                own_redis.kill()
            else:
                own_redis.signal(signal.SIGSTOP)
            started_at_s = time.monotonic()
            another = asyncio.create_task(locker.acquire(name))
            for call in (waiting, another, locker.acquire(f"{name}/2", wait_s=0)):
                with pytest.raises(LockStoreDown):
                    await call
            # The end of the hold is polite, and no error.
        assert time.monotonic() - started_at_s < 20
        assert not locker.is_up
        assert {event.outcome for event in heard.all(GaveUp)} == {"store-down"}
        if not kill:
            own_redis.signal(signal.SIGCONT)
            assert await locker.up_within(PATIENCE_S)


async def test_a_lost_reply_gives_the_same_lease_with_the_same_token(own_redis: OwnRedis, name: str) -> None:
    with Proxy("127.0.0.1", own_redis.port) as proxy, own_keys(own_redis, name) as keys:
        async with locking(f"redis://127.0.0.1:{proxy.port}/0") as locker:
            proxy.cut_once(Cut.AFTER_ANSWERED, at=b"EVALSHA", then_away=True)
            acquiring = asyncio.create_task(locker.acquire(name, lease_ttl_s=60))
            assert await asyncio.to_thread(proxy.cut_happened.wait, PATIENCE_S)

            async def granted() -> bool:
                return keys.holder() is not None

            await wait_until_async(granted)
            holder, token = keys.holder(), keys.fence()
            proxy.come_back()

            lease = await acquiring

            assert (lease.lease_id, lease.fencing_token) == (holder, token)
            assert await lease.release()


async def test_a_lost_request_is_asked_again(own_redis: OwnRedis, name: str) -> None:
    with Proxy("127.0.0.1", own_redis.port) as proxy:
        async with locking(f"redis://127.0.0.1:{proxy.port}/0") as locker:
            proxy.cut_once(Cut.BEFORE_FORWARDING, at=b"EVALSHA")
            assert await (await locker.acquire(name)).release()


async def test_a_password_and_a_database_number_are_used(own_redis: OwnRedis, name: str) -> None:
    with redis.Redis(port=own_redis.port) as client:
        client.config_set("requirepass", "pass@word")
        client.execute_command("AUTH", "pass@word")
        client.execute_command("ACL", "SETUSER", "chargeonce", "on", ">s3cret", "~lock*", "&lock-wake:*", "+@all")
        for who in (":pass%40word", "chargeonce:s3cret", "default:pass%40word"):
            async with locking(f"redis://{who}@127.0.0.1:{own_redis.port}/3") as locker:
                lease = await locker.acquire(name)
                client.execute_command("SELECT", 3)
                assert client.get(f"lock:{{{name}}}") == lease.lease_id.encode()
                assert await lease.release()


@pytest.mark.parametrize("who", ["", ":hunter2@", "chargeonce:hunter2@"])
async def test_a_wrong_password_is_down_and_shows_nothing(own_redis: OwnRedis, who: str) -> None:
    with redis.Redis(port=own_redis.port) as client:
        client.config_set("requirepass", "right")
        with pytest.raises(LockStoreDown) as caught:
            async with Locker.connect(f"redis://{who}127.0.0.1:{own_redis.port}", instance_id="test"):
                pass
    assert "hunter2" not in str(caught.value)
    assert "NOAUTH" in str(caught.value) or "WRONGPASS" in str(caught.value)


async def test_a_refusing_server_is_told_from_a_dead_one(own_redis: OwnRedis, name: str) -> None:
    with redis.Redis(port=own_redis.port) as client:
        async with locking(own_redis.url) as locker:
            client.set(f"lock:{{{name}}}", "a foreign holder")
            client.set(f"lock-queue:{{{name}}}", "a key of another type")
            with pytest.raises(LockStoreDown, match="refuses"):
                await locker.acquire(name)
            assert locker.is_up


# Closing


async def test_a_close_fails_those_who_wait_and_leaves_no_task(redis_url: str, name: str) -> None:
    heard = Heard()
    before = asyncio.all_tasks()
    async with locking(redis_url, heard=heard, command_timeout_s=0.5, alive_ms=600) as locker:
        lease = await locker.acquire(name, lease_ttl_s=1, keep_extended=True)
        waiting = [asyncio.create_task(locker.acquire(name)) for _ in range(3)]
        await heard.count(Waiting, 3)

    for each in waiting:
        with pytest.raises(LockStoreDown):
            await asyncio.wait_for(each, 15)
    with pytest.raises(LockStoreDown):
        await lease.release()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() - before == set()


# Helpers


class OtherProcess:
    """A process that waits for a lock, then holds it until it is told to go on."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def says(self, word: str) -> str:
        assert self.process.stdout is not None
        line = (await asyncio.wait_for(self.process.stdout.readline(), PATIENCE_S)).decode().strip()
        assert line.startswith(word), line
        return line

    async def holds_and_releases(self) -> int:
        token = int((await self.says("holding")).split()[1])
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        return token

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def other_process(url: str, name: str, *, lease_ttl_s: float = 10) -> AsyncIterator[OtherProcess]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        OTHER_PROCESS,
        url,
        name,
        str(lease_ttl_s),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    other = OtherProcess(process)
    try:
        yield other
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def acquired_again(locker: Locker, name: str) -> Lease:
    """A lease as soon as the server is back."""
    assert await locker.up_within(PATIENCE_S)
    return await locker.acquire(name)


def _nothing() -> None:
    pass


def _flushall(server: OwnRedis) -> Callable[[], None]:
    def flush() -> None:
        with redis.Redis(port=server.port) as client:
            client.flushall()

    return flush


def _restart(server: OwnRedis) -> Callable[[], None]:
    def restart() -> None:
        server.kill()
        server.start()

    return restart

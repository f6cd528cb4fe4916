"""SafeLock beside the original python-redis-lock and beside Locker, on the same locks."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest
import redis
import redis_lock

from locks import LeaseLost, LockBusy, Locker
from locks.compat import SafeLock
from locks.compat import client as stated_client
from tests.harness import PATIENCE_S, OwnRedis, wait_until, wait_until_async
from tests.integration.compat_helpers import SOON_S, blocked, doing, original, program, says


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with closing(stated_client(redis_url)) as client:
        yield client


# Beside the original.

BESIDE = """
import sys, threading, time
import redis, redis_lock
from locks.compat import SafeLock, client

url, name, turns = sys.argv[1], sys.argv[2], int(sys.argv[3])

def take_turns(lock):
    with client(url) as seen:
        for _ in range(turns):
            with lock:
                if seen.incr(name + ":inside") != 1:
                    seen.incr(name + ":overlaps")
                if isinstance(lock, SafeLock):
                    seen.rpush(name + ":tokens", lock.fencing_token)
                time.sleep(0.001)
                seen.decr(name + ":inside")

theirs = redis.Redis.from_url(url, socket_timeout=None)
locks = [SafeLock(client(url), name, expire=30), redis_lock.Lock(theirs, "{" + name + "}", expire=30)]
threads = [threading.Thread(target=take_turns, args=[lock]) for lock in locks]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_threads_and_processes_of_both_kinds_exclude_each_other(own_redis: OwnRedis, name: str) -> None:
    turns = 60
    with closing(stated_client(own_redis.url)) as client, ExitStack() as stack:
        for process in [stack.enter_context(program(BESIDE, own_redis.url, name, turns)) for _ in range(3)]:
            assert process.wait(PATIENCE_S) == 0
        tokens = client.lrange(f"{name}:tokens", 0, -1)
        assert isinstance(tokens, list)
        overlaps = client.get(f"{name}:overlaps")

    assert overlaps is None
    assert len(tokens) == 3 * turns
    assert sorted(set(map(int, tokens))) == [int(token) for token in tokens]


def test_each_sees_the_other(client: redis.Redis, their_client: redis.Redis, name: str) -> None:
    ours, theirs = SafeLock(client, name), original(their_client, name)

    with ours:
        assert theirs.locked()
        assert theirs.get_owner_id() == ours.id
        assert not theirs.acquire(blocking=False)
        with pytest.raises(redis_lock.NotAcquired):
            theirs.release()
    with theirs:
        assert ours.locked()
        assert ours.get_owner_id() == theirs.id
        assert not ours.acquire(blocking=False)
        with pytest.raises(redis_lock.NotAcquired):
            ours.release()


def test_our_release_and_reset_wake_their_waiter(client: redis.Redis, their_client: redis.Redis, name: str) -> None:
    ours, theirs = SafeLock(client, name), original(their_client, name, expire=600)
    for let_go in (ours.release, ours.reset):
        assert ours.acquire()
        with doing(theirs.acquire) as returned:
            wait_until(lambda: blocked(client))
            let_go()
            assert returned.wait(SOON_S)
        theirs.release()
    with pytest.raises(LeaseLost):
        ours.release()


def test_their_release_and_reset_wake_our_waiter(redis_url: str, client: redis.Redis, name: str) -> None:
    """A waiter that looks only every 29 s, so that it is the signal that wakes it."""
    with (
        closing(stated_client(redis_url, socket_timeout_s=PATIENCE_S)) as patient,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr("locks.compat.LONGEST_SIGNAL_WAIT_S", 29.0)
        ours, theirs = SafeLock(patient, name), original(client, name, expire=600)
        for let_go in (theirs.release, theirs.reset):
            assert theirs.acquire()
            with doing(ours.acquire) as returned:
                wait_until(lambda: blocked(client))
                let_go()
                assert returned.wait(SOON_S)
            ours.release()


def test_using_ours_first_does_not_break_theirs(redis_url: str, name: str) -> None:
    """The original keeps its scripts in the first class that is used; in a subclass it would not find them again."""
    source = """
import sys, redis_lock
from locks.compat import SafeLock, client
with SafeLock(client(sys.argv[1]), sys.argv[2]), redis_lock.Lock(client(sys.argv[1]), sys.argv[2] + ":their"):
    pass
print("both")
"""
    with program(source, redis_url, name) as process:
        assert says(process) == "both"


# Beside Locker.


async def test_while_one_kind_holds_the_other_does_not(redis_url: str, client: redis.Redis, name: str) -> None:
    lock = SafeLock(client, name)
    async with Locker.connect(redis_url, instance_id="test") as locker:
        tokens = []
        for _ in range(2):
            async with locker.hold(name) as lease:
                tokens.append(lease.fencing_token)
                assert not lock.acquire(blocking=False)
            assert lock.acquire(timeout=SOON_S)
            tokens.append(lock.fencing_token)
            with pytest.raises(LockBusy) as caught:
                await locker.acquire(name, wait_s=0)
            assert caught.value.expires_in_s is not None
            assert 0 < caught.value.expires_in_s <= 10
            lock.release()
    assert tokens == sorted(set(tokens))


async def test_a_holder_of_either_kind_is_shown(redis_url: str, client: redis.Redis, name: str) -> None:
    async with Locker.connect(redis_url, instance_id="test") as locker:
        with SafeLock(client, name, expire=2.5, instance_id="billing") as lock:
            lock.extend(5.0)
            view = await locker.inspect(name)
        assert view is not None
        assert view.holder is not None
        assert (view.holder.instance_id, view.holder.pid) == ("billing", os.getpid())
        assert (view.holder.host, view.holder.request_id) == (socket.gethostname(), "")
        assert (view.fencing_token, view.lease_ttl_s) == (lock.fencing_token, 5.0)
        assert view.expires_in_s is not None
        assert 0 < view.expires_in_s <= 5.0


async def test_each_kinds_release_wakes_the_others_waiter(redis_url: str, client: redis.Redis, name: str) -> None:
    lock = SafeLock(client, name, expire=600)
    async with Locker.connect(redis_url, instance_id="test") as locker:
        async with locker.hold(name, lease_ttl_s=600):
            acquiring = asyncio.create_task(asyncio.to_thread(lock.acquire))

            async def it_waits() -> bool:
                return blocked(client)

            await wait_until_async(it_waits)
        assert await asyncio.wait_for(acquiring, SOON_S)

        waiting = asyncio.create_task(locker.acquire(name))
        await asyncio.wait([waiting], timeout=0.3)
        assert not waiting.done()
        lock.release()
        assert await (await asyncio.wait_for(waiting, SOON_S)).release()


async def test_no_two_of_either_kind_are_ever_inside(redis_url: str, name: str) -> None:
    inside, enough = threading.Lock(), 200
    overlaps = 0
    turns = {"ours": 0, "theirs": 0}
    give_up_at_s = time.monotonic() + PATIENCE_S

    def go_on() -> bool:
        return (sum(turns.values()) < enough or 0 in turns.values()) and time.monotonic() < give_up_at_s

    def enter(side: str) -> bool:
        nonlocal overlaps
        turns[side] += 1
        if inside.acquire(blocking=False):
            return True
        overlaps += 1
        return False

    def ours() -> None:
        with closing(stated_client(redis_url)) as client:
            lock = SafeLock(client, name, expire=5)
            while go_on():
                with lock:
                    alone = enter("ours")
                    time.sleep(0.001)
                    if alone:
                        inside.release()

    async def theirs(locker: Locker) -> None:
        while go_on():
            async with locker.hold(name):
                alone = enter("theirs")
                await asyncio.sleep(0.001)
                if alone:
                    inside.release()

    async with Locker.connect(redis_url, instance_id="test") as locker:
        await asyncio.gather(theirs(locker), theirs(locker), asyncio.to_thread(ours), asyncio.to_thread(ours))

    assert overlaps == 0
    assert min(turns.values()) > 0, turns


async def test_an_expiry_given_to_an_endless_lock_is_not_the_end_of_it_when_either_kind_looks(
    redis_url: str, client: redis.Redis, name: str
) -> None:
    with SafeLock(client, name, expire=None) as lock:
        client.expire(f"lock:{{{name}}}", 600)
        assert not SafeLock(client, name).acquire(blocking=False)
        async with Locker.connect(redis_url, instance_id="test") as locker:
            with pytest.raises(LockBusy):
                await locker.acquire(name, wait_s=0)
        assert client.ttl(f"lock:{{{name}}}") > 500
        assert lock.get_owner_id() == lock.id

"""SafeLock's lease: it is renewed for as long as it is held, its loss is told, and a fork has no part in it."""
# ruff: noqa: PT012 - what raises is a `with` with its whole body

from __future__ import annotations

import asyncio
import gc
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
import redis
import redis_lock

from locks import LeaseLost, Locker, LockStoreDown, LossReason
from locks.compat import SafeLock
from locks.compat import client as stated_client
from tests.harness import PATIENCE_S, OwnRedis, wait_until
from tests.integration.compat_helpers import SOON_S, original, program, says, through, wait_for_no_threads
from tests.proxy import Cut, Proxy


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with closing(stated_client(redis_url)) as client:
        yield client


# How long it renews.


def test_with_auto_renewal_it_is_held_for_as_long_as_it_takes(client: redis.Redis, name: str) -> None:
    with SafeLock(client, name, expire=0.6, auto_renewal=True) as lock:
        ends_at_s = time.monotonic() + 2.0
        while time.monotonic() < ends_at_s:
            assert not SafeLock(client, name).acquire(timeout=0.2)
            assert not lock.lost.is_set()


def test_a_lock_object_that_is_thrown_away_is_not_renewed(client: redis.Redis, name: str) -> None:
    lock = SafeLock(client, name, expire=0.5, auto_renewal=True)
    assert lock.acquire()
    del lock
    gc.collect()

    wait_until(lambda: client.get(f"lock:{{{name}}}") is None, patience_s=SOON_S)
    wait_for_no_threads()


def test_no_thread_outlives_its_lock(client: redis.Redis) -> None:
    locks = [SafeLock(client, f"test:{uuid.uuid4().hex}", expire=0.3, auto_renewal=True) for _ in range(20)]
    for lock in locks:
        assert lock.acquire()
    seen = {thread.name for thread in threading.enumerate()}
    for lock in locks:
        wait_until(lambda lock=lock: lock.remaining_s() > 0.25, patience_s=SOON_S)  # type: ignore[misc]
        lock.release()

    assert "safe-lock-keeper" in seen
    wait_for_no_threads()


# Traps of holding.


def test_half_a_second_of_expiry_is_half_a_second(client: redis.Redis, their_client: redis.Redis, name: str) -> None:
    with pytest.raises(redis.ResponseError, match="invalid expire"):
        original(their_client, name, expire=0.5).acquire()
    assert SafeLock(client, name, expire=0.5).acquire()
    assert 0 < client.pttl(f"lock:{{{name}}}") <= 500


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_renewal_outlives_errors(proxy: Proxy, name: str) -> None:
    with closing(through(proxy, retries=0)) as client:
        theirs = original(client, "their", expire=1, auto_renewal=True)
        assert theirs.acquire()
        with SafeLock(client, name, expire=6.0, auto_renewal=True) as ours:
            proxy.go_away()
            wait_until(lambda: not theirs._lock_renewal_thread.is_alive(), patience_s=SOON_S)
            wait_until(lambda: ours.remaining_s() < 3.5, patience_s=SOON_S)  # its renewal was due at 4
            assert not ours.lost.is_set()
            proxy.come_back()

            wait_until(lambda: ours.remaining_s() > 5.0, patience_s=SOON_S)
            assert not theirs.locked(), "the original's renewal lives after all"
            assert ours.get_owner_id() == ours.id


@pytest.mark.parametrize("seconds", [60, 0.5])
def test_an_unanswered_extension_is_unknown(proxy: Proxy, own_redis: OwnRedis, name: str, seconds: float) -> None:
    with closing(through(proxy, retries=0)) as client, closing(stated_client(own_redis.url)) as direct:
        lock = SafeLock(client, name)
        assert lock.acquire()
        with pytest.raises(redis_lock.NotAcquired):
            SafeLock(client, f"{name}:other").extend()  # so that the server knows the script
        proxy.cut_once(Cut.AFTER_ANSWERED, at=b"EVALSHA")

        with pytest.raises(LockStoreDown):
            lock.extend(seconds)

        assert direct.pttl(f"lock:{{{name}}}") > 10_000 or seconds < 10, "the server did not extend it"
        assert lock.remaining_s() < min(10, seconds)


class Told:
    """An on_lost that remembers."""

    def __init__(self) -> None:
        self.reasons: list[LossReason] = []

    def __call__(self, reason: LossReason) -> None:
        self.reasons.append(reason)


def deleted(redis_url: str, client: redis.Redis, lock: SafeLock) -> None:
    client.delete(f"lock:{{{lock.name}}}")


def taken(redis_url: str, client: redis.Redis, lock: SafeLock) -> None:
    theirs = original(client, lock.name)
    theirs.reset()
    assert theirs.acquire(blocking=False)


def forced(redis_url: str, client: redis.Redis, lock: SafeLock) -> None:
    async def force() -> None:
        async with Locker.connect(redis_url, instance_id="operator") as locker:
            assert await locker.force_release(lock.name, fencing_token=lock.fencing_token)

    asyncio.run(force())


@pytest.mark.parametrize("lose", [deleted, taken, forced])
@pytest.mark.parametrize("auto_renewal", [True, False], ids=["renewed", "not renewed"])
def test_a_loss_is_told_with_its_reason(
    redis_url: str, client: redis.Redis, name: str, lose: Callable[..., None], auto_renewal: bool
) -> None:
    told = Told()
    lock = SafeLock(client, name, expire=1.0 if auto_renewal else 60, auto_renewal=auto_renewal, on_lost=told)
    with pytest.raises(LeaseLost) as caught, lock:
        lose(redis_url, client, lock)
        if auto_renewal:
            assert lock.lost.wait(SOON_S)
            assert lock.remaining_s() == 0
            with pytest.raises(LeaseLost):
                lock.extend()

    assert caught.value.reason is lock.loss_reason is LossReason(lose.__name__)
    assert caught.value.fencing_token == lock.fencing_token
    assert lock.lost.is_set()
    wait_until(lambda: told.reasons == [lock.loss_reason])
    with pytest.raises(redis_lock.NotAcquired):
        lock.release()
    client.delete(f"lock:{{{name}}}")


def test_a_lapse_is_told(client: redis.Redis, name: str) -> None:
    told = Told()
    lock = SafeLock(client, name, expire=0.2, on_lost=told)
    assert lock.acquire()
    first = lock.lost
    assert first.wait(SOON_S)
    assert lock.loss_reason is LossReason.EXPIRED
    wait_until(lambda: told.reasons == [LossReason.EXPIRED])

    with pytest.raises(LeaseLost) as caught:
        lock.release()
    assert caught.value.reason is LossReason.EXPIRED
    assert lock.acquire()  # the object may be used again
    assert not lock.lost.is_set()
    assert first.is_set()
    lock.release()


def test_a_lapsed_lease_does_not_take_its_successor_along(client: redis.Redis, name: str) -> None:
    lapsed, successor = SafeLock(client, name, expire=0.2), SafeLock(client, name, expire=60)
    assert lapsed.acquire()
    assert successor.acquire()
    with pytest.raises(LeaseLost):
        lapsed.release()
    assert successor.get_owner_id() == successor.id
    successor.release()


def test_a_server_that_went_away_is_told_by_the_clock(own_redis: OwnRedis, name: str) -> None:
    with closing(stated_client(own_redis.url)) as client:
        lock = SafeLock(client, name, expire=1.0, auto_renewal=True)
        with pytest.raises(LeaseLost) as caught, lock:
            own_redis.kill()
            assert lock.lost.wait(SOON_S)
        assert caught.value.reason is LossReason.UNREACHABLE


def test_a_frozen_server_does_not_delay_the_telling(own_redis: OwnRedis, name: str) -> None:
    with closing(stated_client(own_redis.url, socket_timeout_s=PATIENCE_S)) as client:
        lock = SafeLock(client, name, expire=1.0, auto_renewal=True)
        assert lock.acquire()
        own_redis.signal(signal.SIGSTOP)
        told = lock.lost.wait(SOON_S)
        own_redis.signal(signal.SIGCONT)
        assert told
        with pytest.raises(LeaseLost) as caught:
            lock.release()
        assert caught.value.reason is LossReason.UNREACHABLE


def test_the_bodys_own_error_comes_out(client: redis.Redis, name: str) -> None:
    lock = SafeLock(client, name)
    with pytest.raises(ZeroDivisionError), lock:
        lock.reset()
        _ = 1 / 0
    with pytest.raises(ZeroDivisionError), lock:
        _ = 1 / 0
    assert not lock.locked()


# Forks.

FORKING = """
import os, sys
import redis_lock
from locks.compat import SafeLock, client

url, name = sys.argv[1:]
unused = SafeLock(client(url), name)
with SafeLock(client(url), name, expire=60, auto_renewal=True) as lock:
    child = os.fork()
    if child == 0:
        refusals = 0
        for call in (lock.release, lock.extend, unused.release):
            try:
                call()
            except redis_lock.NotAcquired:
                refusals += 1
        print(refusals == 3, lock.remaining_s() == 0, flush=True)
    else:
        os.waitpid(child, 0)
        print(lock.get_owner_id() == lock.id, flush=True)
        sys.stdin.readline()
if child == 0:
    print("busy" if not lock.acquire(blocking=False) else "got it", flush=True)
    os._exit(0)
"""

ORPHANING = """
import os, sys
from locks.compat import SafeLock, client

url, name = sys.argv[1:]
lock = SafeLock(client(url), name, expire=1.0, auto_renewal=True)
lock.acquire()
if os.fork():
    os._exit(0)
with SafeLock(client(url), name + ":child", expire=1.0, auto_renewal=True):
    print("alive", flush=True)
    sys.stdin.readline()
print("released", flush=True)
"""


def test_a_forked_child_has_nothing_of_its_parents(redis_url: str, client: redis.Redis, name: str) -> None:
    with program(FORKING, redis_url, name) as process:
        assert says(process) == "True True"
        assert says(process) == "busy"
        assert says(process) == "True"
        assert client.exists(f"lock:{{{name}}}")


def test_a_forked_child_does_not_renew_for_its_dead_parent(redis_url: str, client: redis.Redis, name: str) -> None:
    with program(ORPHANING, redis_url, name) as process:
        assert says(process) == "alive"
        wait_until(lambda: not client.exists(f"lock:{{{name}}}"), patience_s=SOON_S)
        assert client.exists(f"lock:{{{name}:child}}")
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert says(process) == "released"

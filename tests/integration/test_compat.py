"""SafeLock beside the original python-redis-lock and beside Locker: each trap springs on the original and not on it."""
# ruff: noqa: PT012 - what raises is a `with` with its whole body

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import pytest
import redis
import redis_lock

from locks import LeaseLost, LockBusy, Locker, LockStoreDown, LossReason
from locks.compat import SafeLock
from locks.compat import client as stated_client
from tests.harness import PATIENCE_S, ROOT, OwnRedis, free_port, wait_until, wait_until_async
from tests.proxy import Cut, Proxy

SOON_S = 20.0  # far below the waits that a trap costs, far above what is needed


@pytest.fixture
def name() -> str:
    """A lock's name that no other test uses."""
    return f"test:{uuid.uuid4().hex}"


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with closing(stated_client(redis_url)) as client:
        yield client


@pytest.fixture
def proxy(own_redis: OwnRedis) -> Iterator[Proxy]:
    with Proxy("127.0.0.1", own_redis.port) as proxy:
        yield proxy


def through(proxy: Proxy, **limits: Any) -> redis.Redis:
    return stated_client(f"redis://127.0.0.1:{proxy.port}/0", **limits)


@pytest.fixture
def their_client(redis_url: str) -> Iterator[redis.Redis]:
    """As python-redis-lock needs it: its BLPOP waits for longer than any socket timeout."""
    with closing(redis.Redis.from_url(redis_url, socket_timeout=None)) as client:
        yield client


def original(client: redis.Redis, name: str, *, expire: float | None = 20, **words: Any) -> redis_lock.Lock:
    return redis_lock.Lock(client, f"{{{name}}}", expire=expire, **words)


@contextmanager
def doing(work: Callable[[], object]) -> Iterator[threading.Event]:
    """Does it in a thread; the event is set once it has returned. What it raised comes out at the end."""
    returned = threading.Event()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)
        returned.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield returned
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    if errors:
        raise errors[0]


@contextmanager
def program(source: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Another Python program; gone afterwards, and whatever it forked."""
    command = [sys.executable, "-c", source, *map(str, arguments)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def says(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def blocked(client: redis.Redis) -> bool:
    """Whether anybody waits in a BLPOP on this server."""
    return bool(client.info("clients")["blocked_clients"])


def wait_for_no_threads() -> None:
    wait_until(
        lambda: not any(thread.name.startswith("safe-lock") for thread in threading.enumerate()),
        what="the end of every thread",
    )


# What it promises by itself.


def test_one_at_a_time_with_rising_tokens(client: redis.Redis, name: str) -> None:
    one, other = SafeLock(client, name), SafeLock(client, name)

    with one:
        assert one.locked()
        assert other.get_owner_id() == one.id
        assert not other.acquire(blocking=False)
        first_token = one.fencing_token
        assert 0 < one.remaining_s() < 10
    assert not one.locked()
    assert one.remaining_s() == 0
    assert other.acquire()

    assert other.fencing_token > first_token > 1_700_000_000_000_000  # microseconds since 1970
    other.release()


def test_every_key_expires_but_a_lock_that_was_asked_not_to(own_redis: OwnRedis, name: str) -> None:
    with closing(stated_client(own_redis.url)) as client:
        unexpiring = SafeLock(client, "without:expiry", expire=None)
        with SafeLock(client, name, expire=1.5), unexpiring:
            assert unexpiring.remaining_s() == math.inf
            assert 0 < client.pttl(f"lock:{{{name}}}") <= 1500
            endless = [key for key in client.scan_iter("*") if client.pttl(key) < 0]
            assert endless == [b"lock:{without:expiry}"]
        assert all(0 < client.pttl(key) <= 10_000 for key in client.scan_iter("*"))


@pytest.mark.parametrize("expire", [0, -1, 0.05, 3601, math.nan])
def test_an_expiry_that_makes_no_sense_is_refused(client: redis.Redis, name: str, expire: float) -> None:
    with pytest.raises(ValueError, match="expire"):
        SafeLock(client, name, expire=expire)


@pytest.mark.parametrize("name", ["", "{appointment:42}", "a b", "x" * 201])
def test_a_name_that_locker_would_refuse_is_refused(client: redis.Redis, name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        SafeLock(client, name)


def test_words_that_contradict_each_other_are_refused(client: redis.Redis, name: str) -> None:
    with pytest.raises(ValueError, match="expire"):
        SafeLock(client, name, expire=None, auto_renewal=True)
    with pytest.raises(ValueError, match="tab"):
        SafeLock(client, name, instance_id="a\tb")
    with pytest.raises(redis_lock.TimeoutNotUsable):
        SafeLock(client, name).acquire(blocking=False, timeout=1)
    for timeout in (-1, math.nan):
        with pytest.raises(redis_lock.InvalidTimeout):
            SafeLock(client, name).acquire(timeout=timeout)


def test_what_is_not_held_is_neither_released_nor_extended(client: redis.Redis, name: str) -> None:
    lock = SafeLock(client, name)
    with SafeLock(client, name) as holder:
        for call in (lock.release, lock.extend):
            with pytest.raises(redis_lock.NotAcquired):
                call()
        with pytest.raises(redis_lock.NotAcquired), SafeLock(client, name, blocking=False):
            pass
        assert lock.get_owner_id() == holder.id
    with pytest.raises(redis_lock.NotAcquired):
        holder.release()
    with pytest.raises(redis_lock.NotAcquired):
        _ = lock.fencing_token


def test_one_object_acquires_once(client: redis.Redis, name: str) -> None:
    lock = SafeLock(client, name)
    with lock, pytest.raises(redis_lock.AlreadyAcquired):
        lock.acquire()

    holder = SafeLock(client, name)
    assert holder.acquire()
    with doing(lock.acquire):
        wait_until(lambda: blocked(client))
        with pytest.raises(redis_lock.AlreadyAcquired):
            lock.acquire()  # by the same id both would find the lock their own
        holder.release()
    lock.release()


def test_a_hold_elsewhere_is_extended_and_released_by_its_id(client: redis.Redis, name: str) -> None:
    holder = SafeLock(client, name)
    assert holder.acquire()
    elsewhere = SafeLock(client, name, id=holder.id)

    with pytest.raises(redis_lock.AlreadyAcquired):
        elsewhere.acquire()
    elsewhere.extend(60)
    assert client.pttl(f"lock:{{{name}}}") > 50_000
    elsewhere.release()

    assert not holder.locked()
    with pytest.raises(redis_lock.NotAcquired):
        elsewhere.release()
    with pytest.raises(LeaseLost) as caught:
        holder.release()
    assert caught.value.reason is LossReason.DELETED


def test_extending_counts_from_now_and_waiters_believe_it(client: redis.Redis, name: str) -> None:
    lock = SafeLock(client, name, expire=1.0)
    assert lock.acquire()
    token = lock.fencing_token

    lock.extend(60)
    assert not SafeLock(client, name).acquire(blocking=False)  # which would shorten a lease beyond what was granted

    assert client.pttl(f"lock:{{{name}}}") > 50_000
    assert 50 < lock.remaining_s() < 60
    assert lock.fencing_token == token
    lock.release()
    with SafeLock(client, name, expire=None) as unexpiring:
        with pytest.raises(redis_lock.NotExpirable):
            unexpiring.extend(5)
        with pytest.raises(TypeError):
            unexpiring.extend()


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


# Traps of waiting.


def test_half_a_second_is_half_a_second(client: redis.Redis, their_client: redis.Redis, name: str) -> None:
    theirs = original(their_client, name)
    holder = SafeLock(client, name, expire=60)
    assert holder.acquire()
    with doing(lambda: theirs.acquire(timeout=0.5)) as they_returned:
        began_at_s = time.monotonic()
        assert SafeLock(client, name).acquire(timeout=0.5) is False
        waited_s = time.monotonic() - began_at_s
        assert SafeLock(client, name).acquire(timeout=0) is False

        assert 0.5 <= waited_s < SOON_S
        assert not they_returned.wait(1.0), "the original kept its timeout after all"
        holder.release()
    theirs.release()


def test_a_timeout_may_be_longer_than_the_lease(client: redis.Redis, their_client: redis.Redis, name: str) -> None:
    with pytest.raises(redis_lock.TimeoutTooLarge):
        original(their_client, name, expire=1).acquire(timeout=5)
    holder, waiter = SafeLock(client, name), SafeLock(client, name, expire=1.0)
    assert holder.acquire()
    with doing(lambda: waiter.acquire(timeout=PATIENCE_S)):
        wait_until(lambda: blocked(client))
        holder.release()
    waiter.release()


def test_a_dead_holder_costs_its_remaining_lease(client: redis.Redis, their_client: redis.Redis, name: str) -> None:
    theirs = original(their_client, name, expire=60)
    assert SafeLock(client, name, expire=1.0).acquire()  # and never heard of again
    with doing(theirs.acquire) as they_returned:
        waiter = SafeLock(client, name)
        began_at_s = time.monotonic()
        assert waiter.acquire(timeout=PATIENCE_S)

        assert time.monotonic() - began_at_s < SOON_S
        assert not they_returned.wait(0.2), "the original looked again after all"
        waiter.release()
    theirs.release()


def test_a_waiter_wakes_at_the_end_of_the_lease_not_at_its_next_regular_look(client: redis.Redis, name: str) -> None:
    began_at_s = time.monotonic()
    for _ in range(10):
        assert SafeLock(client, name, expire=0.1).acquire()
    assert time.monotonic() - began_at_s < 6.0  # 1 s; 9 s by regular looks


def test_a_holder_without_expiry_is_looked_at_regularly(
    client: redis.Redis, their_client: redis.Redis, name: str
) -> None:
    assert original(their_client, name, expire=None).acquire()
    waiter = SafeLock(client, name)
    with doing(waiter.acquire) as returned:
        wait_until(lambda: blocked(client))
        client.delete(f"lock:{{{name}}}")  # nobody signals
        assert returned.wait(SOON_S)
    waiter.release()


def test_waiting_is_longer_than_the_socket_timeout(redis_url: str, client: redis.Redis, name: str) -> None:
    with (
        closing(stated_client(redis_url, socket_timeout_s=0.4)) as impatient,
        SafeLock(client, name, expire=60) as holder,
    ):
        with pytest.raises(redis.TimeoutError):
            original(impatient, name).acquire()
        waiter = SafeLock(impatient, name)
        with doing(waiter.acquire) as returned:
            assert not returned.wait(1.5)
            holder.release()
        waiter.release()
        assert holder.acquire()


@pytest.mark.parametrize(
    "limits", [{"socket_timeout": None}, {"socket_timeout": 1.0}], ids=["no timeout", "10 retries"]
)
def test_a_frozen_server_is_not_waited_for_for_ever(
    own_redis: OwnRedis, name: str, limits: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By redis-py's ten retries this takes half a minute (a minute by its 5 s); without a timeout, for ever."""
    monkeypatch.setattr("locks.compat.SOCKET_TIMEOUT_S", 0.5)
    with closing(redis.Redis(port=own_redis.port, **limits)) as client:
        holder, waiter = SafeLock(client, name, expire=60), SafeLock(client, name)
        assert holder.acquire()
        with pytest.raises(LockStoreDown), doing(waiter.acquire):
            wait_until(lambda: blocked(client))
            own_redis.signal(signal.SIGSTOP)
            began_at_s = time.monotonic()
        took_s = time.monotonic() - began_at_s
        own_redis.signal(signal.SIGCONT)

        assert took_s < SOON_S
        holder.release()


def test_a_lease_longer_than_granted_is_from_before_the_clock_was_set_back(client: redis.Redis, name: str) -> None:
    assert SafeLock(client, name, expire=0.5).acquire()
    client.pexpire(f"lock:{{{name}}}", 3_600_000)

    waiter = SafeLock(client, name)
    assert waiter.acquire(timeout=SOON_S)
    waiter.release()


# Traps of the wire.


def test_a_lost_answer_does_not_lock_us_out_of_our_own_lock(proxy: Proxy, own_redis: OwnRedis, name: str) -> None:
    with closing(through(proxy)) as client:
        theirs, ours = original(client, "their"), SafeLock(client, name)
        for lock in (theirs, ours):
            lock.acquire()  # so that the server knows the scripts
            lock.release()

        proxy.cut_once(Cut.AFTER_ANSWERED, at=b"lock:{their}\r\n$24")
        assert theirs.acquire(blocking=False) is False
        assert theirs.get_owner_id() == theirs.id, "the original did not get it at all"
        assert proxy.cut_happened.is_set()
        proxy.cut_once(Cut.AFTER_ANSWERED, at=b"EVALSHA")
        assert ours.acquire(blocking=False) is True
        assert proxy.cut_happened.is_set()
        ours.release()


def test_the_lost_answer_to_a_release_is_no_loss(proxy: Proxy, name: str) -> None:
    with closing(through(proxy)) as client:
        lock = SafeLock(client, name)
        for _ in range(2):
            with lock:
                proxy.cut_once(Cut.AFTER_ANSWERED, at=b"EVALSHA")
            assert proxy.cut_happened.is_set()
        assert not lock.locked()
        with pytest.raises(redis_lock.NotAcquired):
            lock.release()


def test_a_failed_acquisition_leaves_nothing_behind(proxy: Proxy, name: str) -> None:
    with closing(through(proxy, retries=0)) as client:
        lock = SafeLock(client, name)
        with lock:
            pass
        proxy.cut_once(Cut.AFTER_ANSWERED, at=b"EVALSHA")

        with pytest.raises(LockStoreDown) as caught:
            lock.acquire()

        assert isinstance(caught.value.__cause__, redis.ConnectionError)
        assert not lock.locked()


def test_an_interrupted_acquisition_leaves_nothing_behind(redis_url: str, name: str) -> None:
    class Interrupting(redis.Redis):
        armed = True

        def evalsha(self, *arguments: Any) -> Any:
            answer = super().evalsha(*arguments)
            if self.armed:
                self.armed = False
                assert self.exists(f"lock:{{{name}}}")
                raise KeyboardInterrupt
            return answer

    with closing(stated_client(redis_url)) as other, SafeLock(other, f"{name}:other"):
        pass  # the server knows the scripts
    with closing(Interrupting.from_url(redis_url, socket_timeout=5)) as client:
        lock = SafeLock(client, name)
        with pytest.raises(KeyboardInterrupt):
            lock.acquire()

        assert not lock.locked()
        assert lock.acquire(blocking=False)
        lock.release()


def test_redis_out_of_reach_is_one_error(name: str) -> None:
    with closing(stated_client(f"redis://127.0.0.1:{free_port()}/0", retries=0)) as client:
        lock = SafeLock(client, name)
        for call in (lock.acquire, lock.release, lock.extend, lock.reset, lock.locked, lock.get_owner_id):
            with pytest.raises(LockStoreDown):
                call()


def test_redis_that_refuses_is_the_same_error(client: redis.Redis, name: str) -> None:
    client.lpush(f"lock:{{{name}}}", "no string")
    with pytest.raises(LockStoreDown, match="WRONGTYPE"):
        SafeLock(client, name).acquire()
    client.delete(f"lock:{{{name}}}")


def test_a_release_that_cannot_be_sent_fails_nothing_that_ends_by_itself(proxy: Proxy, name: str) -> None:
    with closing(through(proxy, retries=0)) as client:
        lock = SafeLock(client, name, expire=60)
        with lock:
            proxy.go_away()
        proxy.come_back()
        assert lock.locked()
        assert lock.acquire(blocking=False), "it finds its own lock"
        proxy.go_away()
        with pytest.raises(LockStoreDown):
            lock.release()
        proxy.come_back()
        lock.release()

        with pytest.raises(LockStoreDown), SafeLock(client, f"{name}:endless", expire=None):
            proxy.go_away()


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

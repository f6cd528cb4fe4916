"""SafeLock by itself: what it promises, and the traps of waiting and of the wire that spring on the original."""
# ruff: noqa: PT012 - what raises is a `with` with its whole body

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import redis
import redis_lock

from locks import LeaseLost, LockStoreDown, LossReason
from locks.compat import SafeLock
from locks.compat import client as stated_client
from tests.harness import PATIENCE_S, OwnRedis, wait_until
from tests.integration.compat_helpers import SOON_S, blocked, doing, original, through
from tests.proxy import Cut, Proxy
from tests.servers.processes import unused_port


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with closing(stated_client(redis_url)) as client:
        yield client


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
    monkeypatch.setattr("locks.sync_store.SOCKET_TIMEOUT_S", 0.5)
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
    with closing(stated_client(f"redis://127.0.0.1:{unused_port()}/0", retries=0)) as client:
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
        assert lock.acquire(blocking=False), "its own hold before is in its way"
        proxy.go_away()
        with pytest.raises(LockStoreDown):
            lock.release()
        proxy.come_back()
        lock.release()
        assert not lock.locked()

        endless = SafeLock(client, f"{name}:endless", expire=None)
        with pytest.raises(LockStoreDown), endless:
            proxy.go_away()
        proxy.come_back()
        wait_until(lambda: not endless.locked(), what="a lock without an end that is given back")


def test_a_late_command_of_an_earlier_hold_under_the_same_id_touches_not_the_next(
    client: redis.Redis, name: str
) -> None:
    lock = SafeLock(client, name, id="always-the-same", expire=60)
    assert lock.acquire()
    first = lock.fencing_token
    lock.release()
    assert lock.acquire()
    store = lock._store
    assert store.release("always-the-same", "late", grant_fence=first) == "taken"
    assert store.extend("always-the-same", 30, grant_fence=first) == "taken"
    store.acquire("always-the-same", 1, "\ti\th\t1\t", 0)  # an acquire that redis-py had sent twice
    assert client.pttl(f"lock:{{{name}}}") > 30_000
    lock.extend()
    lock.release()
    assert not lock.locked()

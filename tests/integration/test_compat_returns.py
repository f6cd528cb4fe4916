"""What a SafeLock could not give back is owed to Redis, and given back without anybody's doing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, suppress

import pytest
import redis

from locks import LeaseLost, LockStoreDown
from locks.clock import SYSTEM
from locks.compat import SafeLock
from locks.compat import client as stated_client
from locks.returns import SLACK_S
from locks.sync_lease import KEEPER
from tests.harness import PATIENCE_S, wait_until
from tests.integration.compat_helpers import SOON_S, program, says
from tests.integration.refusing import EVERY, MISCONF, Refusal
from tests.proxy import Proxy, Way
from tests.servers.fixtures import StartRedis
from tests.servers.redis_server import RedisServer

EXPIRE_S = 600.0


@pytest.fixture
def server(start_redis: StartRedis) -> RedisServer:
    return start_redis(settings=MISCONF.settings)


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with closing(stated_client(server.url, socket_timeout_s=0.5, retries=0)) as client:
        yield client


def free(server: RedisServer, name: str) -> bool:
    return bool(server.ask("EXISTS", f"lock:{{{name}}}") == 0)


@pytest.mark.parametrize("refusal", EVERY, ids=lambda refusal: refusal.word)
def test_a_release_that_was_refused_is_done_once_the_server_takes_it(
    start_redis: StartRedis, name: str, refusal: Refusal
) -> None:
    server = start_redis(settings=refusal.settings)
    with closing(stated_client(server.url, socket_timeout_s=0.5, retries=0)) as client:
        lock = SafeLock(client, name, expire=EXPIRE_S)
        assert lock.acquire()
        refusal.begin(server)
        with pytest.raises(LockStoreDown):
            lock.release()
        refusal.end(server)
        wait_until(lambda: free(server, name), patience_s=SOON_S, what="a lock that is given back")
        lock.release()  # again does no harm, and is no error


@pytest.mark.parametrize("leave", [lambda: None, lambda: 1 / 0], ids=["at its end", "by an error"])
def test_a_with_is_given_back_once_the_server_takes_it(
    server: RedisServer, client: redis.Redis, name: str, leave: Callable[[], object]
) -> None:
    with suppress(ZeroDivisionError), SafeLock(client, name, expire=EXPIRE_S):
        MISCONF.begin(server)
        leave()
    assert not free(server, name), "it was released, and not refused"
    MISCONF.end(server)
    wait_until(lambda: free(server, name), patience_s=SOON_S, what="a lock that is given back")


def test_what_was_extended_is_owed_for_as_long_as_it_lasts(server: RedisServer, client: redis.Redis, name: str) -> None:
    lock = SafeLock(client, name, expire=0.1)
    assert lock.acquire()
    lock.extend(EXPIRE_S)
    MISCONF.begin(server)
    with pytest.raises(LockStoreDown):
        lock.release()
    # Longer than the first lease and all that is added to it.
    with pytest.raises(AssertionError, match="in vain"):
        wait_until(lambda: free(server, name), patience_s=1.5)
    MISCONF.end(server)
    wait_until(lambda: free(server, name), patience_s=SOON_S, what="a lock that is given back")


@pytest.mark.parametrize("id_", [None, "an-id-of-my-own"])
def test_a_hold_that_begins_while_the_last_is_owed_is_not_ended_with_it(
    server: RedisServer, client: redis.Redis, name: str, id_: str | None
) -> None:
    lock = SafeLock(client, name, expire=EXPIRE_S, id=id_)
    assert lock.acquire()
    MISCONF.begin(server)
    with pytest.raises(LockStoreDown):
        lock.release()
    with pytest.raises(LockStoreDown):
        lock.acquire(blocking=False)
    MISCONF.end(server)

    assert lock.acquire(blocking=False), "its own hold before is in its way"
    with pytest.raises(AssertionError, match="in vain"):  # longer than the longest pause between two tries
        wait_until(lambda: free(server, name), patience_s=2.0)
    lock.release()
    assert free(server, name)


def test_what_is_owed_outlasts_the_silence_of_a_server_that_takes_the_lock_late(
    server: RedisServer, client: redis.Redis, name: str
) -> None:
    expire_s = 2.0
    lock = SafeLock(client, name, expire=expire_s)
    with SafeLock(client, f"{name}/other"):  # the script is loaded, on a connection that is read before the next ones
        pass
    server.freeze()
    silent_since_s = SYSTEM.monotonic_s()
    with pytest.raises(LockStoreDown):
        lock.acquire(timeout=0)
    ends_at_s = silent_since_s + expire_s + SLACK_S + 1.0
    wait_until(lambda: SYSTEM.monotonic_s() > ends_at_s, what="longer than the lease, and all that is added to it")
    server.thaw()
    wait_until(lambda: server.ask("EXISTS", f"lock-released:{{{name}}}") == 1, what="a lock that is given back")
    assert free(server, name)


def test_an_extension_without_an_answer_is_owed_as_if_it_were_done(
    server: RedisServer, client: redis.Redis, name: str
) -> None:
    with (
        Proxy("127.0.0.1", server.port) as proxy,
        closing(stated_client(f"redis://127.0.0.1:{proxy.port}/0", socket_timeout_s=0.5, retries=0)) as through,
    ):
        lock = SafeLock(through, name, expire=1.0)
        assert lock.acquire()
        lock.extend(1.0)  # and the script is loaded
        proxy.hold(Way.REPLIES)
        with pytest.raises(LockStoreDown):
            lock.extend(EXPIRE_S)
        proxy.let_through(Way.REPLIES)
        MISCONF.begin(server)
        with suppress(LockStoreDown, LeaseLost):
            lock.release()
        with pytest.raises(AssertionError, match="in vain"):  # longer than the lease before, and all that is added
            wait_until(lambda: free(server, name), patience_s=1.0 + SLACK_S + 0.5)
        MISCONF.end(server)
        wait_until(lambda: free(server, name), patience_s=SOON_S, what="a lock that is given back")


OWES_AT_ITS_END = """
import sys
from contextlib import suppress
from locks import LockStoreDown
from locks.compat import SafeLock, client

redis_client = client(sys.argv[1])
lock = SafeLock(redis_client, sys.argv[2], expire=600)
lock.acquire()
redis_client.config_set("min-replicas-to-write", 1)
with suppress(LockStoreDown):
    lock.release()
print("owed", flush=True)
redis_client.config_set("min-replicas-to-write", 0)
"""


def test_a_program_that_ends_sends_once_more_what_it_owes(server: RedisServer, name: str) -> None:
    with program(OWES_AT_ITS_END, server.url, name) as process:
        assert says(process) == "owed"
        assert process.wait(PATIENCE_S) == 0
    assert free(server, name)


def test_a_lease_that_is_lost_while_its_extension_is_on_its_way_is_given_back(server: RedisServer, name: str) -> None:
    expire_s = 6.0
    with (
        Proxy("127.0.0.1", server.port) as proxy,
        closing(stated_client(f"redis://127.0.0.1:{proxy.port}/0", socket_timeout_s=0.5, retries=0)) as through,
    ):
        lock = SafeLock(through, name, expire=expire_s, auto_renewal=True)
        assert lock.acquire()
        proxy.hold(Way.REPLIES)
        assert lock.lost.wait(PATIENCE_S)
        lost_at_s = SYSTEM.monotonic_s()
        assert not free(server, name), "no extension was carried out"
        proxy.let_through(Way.REPLIES)
        wait_until(lambda: free(server, name), what="a lock that is given back")
        assert SYSTEM.monotonic_s() < lost_at_s + expire_s / 2, "it was not given back, but over"
        with pytest.raises(LeaseLost):
            lock.release()


def test_an_extension_that_is_heard_of_when_the_lease_is_over_is_given_back(server: RedisServer, name: str) -> None:
    """By a thread that is faster than the one that looks at every lease."""
    expire_s = 3.0
    with (
        Proxy("127.0.0.1", server.port) as proxy,
        closing(stated_client(f"redis://127.0.0.1:{proxy.port}/0")) as through,
    ):
        lock = SafeLock(through, name, expire=expire_s)
        assert lock.acquire()
        lock.extend()  # so that the server has the script
        assert lock._lease is not None
        KEEPER.forget(lock._lease)
        wait_until(lambda: lock.remaining_s() < 0.2 * expire_s, what="the last part of its lease")
        proxy.delay(Way.REPLIES, delay_s=0.3 * expire_s)
        with pytest.raises(LeaseLost):
            lock.extend()
        lost_at_s = SYSTEM.monotonic_s()
        assert not free(server, name), "no extension was carried out"
        proxy.delay(Way.REPLIES, delay_s=0.0)
        wait_until(lambda: free(server, name), what="a lock that is given back")
        assert SYSTEM.monotonic_s() < lost_at_s + expire_s / 2, "it was not given back, but over"


def test_a_shorter_lease_that_is_heard_of_too_late_takes_nothing_away(server: RedisServer, name: str) -> None:
    with (
        Proxy("127.0.0.1", server.port) as proxy,
        closing(stated_client(f"redis://127.0.0.1:{proxy.port}/0")) as through,
    ):
        lock = SafeLock(through, name, expire=600)
        assert lock.acquire()
        proxy.delay(Way.REPLIES, delay_s=0.4)
        lock.extend(0.2)
        proxy.delay(Way.REPLIES, delay_s=0.0)
        assert not lock.lost.is_set()
        lock.release()


def test_a_lease_that_redis_keeps_for_longer_than_its_holder_counts_is_given_back_at_its_end(
    server: RedisServer, client: redis.Redis, name: str
) -> None:
    lock = SafeLock(client, name, expire=EXPIRE_S)
    assert lock.acquire()
    lock.extend(0.5)
    assert lock.lost.wait(PATIENCE_S)
    wait_until(lambda: free(server, name), patience_s=SOON_S, what="a lock that is given back")


def test_who_takes_a_lock_again_whose_lease_was_lost_gives_back_first_what_redis_keeps(
    server: RedisServer, client: redis.Redis, name: str
) -> None:
    lock = SafeLock(client, name, expire=EXPIRE_S)
    assert lock.acquire()
    lock.extend(0.5)
    assert lock.lost.wait(PATIENCE_S)
    assert lock.acquire(blocking=False), "its own hold before is in its way"
    lock.release()

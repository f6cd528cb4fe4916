"""What a SafeLock could not give back is owed to Redis, and given back without anybody's doing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, suppress

import pytest
import redis

from locks import LockStoreDown
from locks.compat import SafeLock
from locks.compat import client as stated_client
from tests.harness import wait_until
from tests.integration.compat_helpers import SOON_S
from tests.integration.refusing import EVERY, MISCONF, Refusal
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

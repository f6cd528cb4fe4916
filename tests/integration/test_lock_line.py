"""The line at the server: when those who stand in it look for themselves."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
import redis
from redis.client import PubSub

from locks.keys import keys_of
from locks.store import QueueLimits, Scripts

HELD_MS, WANTED_MS = 10_000, 60_000
LIMITS = QueueLimits(alive_ms=90_000)  # a sign of life is due only long after the lease
LATEST_MS = 40


class Server:
    """The acquire script on a real server, called as so many processes."""

    def __init__(self, url: str) -> None:
        self.client = redis.Redis.from_url(url, socket_timeout=5)
        self._script = self.client.register_script(Scripts(LIMITS, holder="test")._acquire.source)
        self._keys = keys_of(f"test:{uuid.uuid4().hex}")

    def acquire(self, process: int, lease_ms: int, *, age_us: int = 1000) -> Any:
        """What a process is answered that has waited for the lock for so long."""
        keys = self._keys
        return self._script(
            keys=[keys.lock, keys.queue, keys.waiters, keys.grant, keys.signal],
            args=[f"{process:032}", lease_ms, f"channel-{process}\ti\th\t1\tr", 0, age_us, 1, ""],
        )

    def free(self) -> None:
        """As a python-redis-lock program does it, which knows nothing of a line."""
        self.client.delete(self._keys.lock)


@pytest.fixture
def server(redis_url: str) -> Iterator[Server]:
    server = Server(redis_url)
    with closing(server.client):
        yield server


def test_everybody_in_line_looks_soon_after_the_lease_since_all_before_may_have_died_with_its_holder(
    server: Server,
) -> None:
    assert server.acquire(0, HELD_MS) > 0

    for process in range(1, 8):
        remaining_ms, place, look_within_ms, *_ = server.acquire(process, WANTED_MS)
        assert place == process - 1
        if place > 0:  # the first one goes by the holder's remaining time itself
            assert 0 < look_within_ms <= remaining_ms + LATEST_MS


@contextmanager
def hearing(server: Server, *processes: int) -> Iterator[PubSub]:
    """These hear what is said to them; others are found to be dead."""
    with closing(server.client.pubsub()) as messages:  # type: ignore[no-untyped-call]
        messages.subscribe(*[f"channel-{process}" for process in processes])
        for _ in processes:
            assert messages.get_message(timeout=5) is not None
        yield messages


def test_two_whose_ages_are_told_differently_each_time_do_not_wait_for_each_other(server: Server) -> None:
    with hearing(server, 1, 2):
        server.acquire(0, HELD_MS)
        assert [server.acquire(process, WANTED_MS, age_us=50_000)[1] for process in (1, 2)] == [0, 1]
        server.free()

        assert (
            server.acquire(2, WANTED_MS, age_us=900_000) > 0
        )  # by now it was the first to come, so it is first in line


def test_nor_do_they_behind_one_that_is_dead(server: Server) -> None:
    with hearing(server, 2, 3):
        server.acquire(0, HELD_MS)
        ages_us = {1: 30_000_000, 2: 10_000_000, 3: 5_000_000}
        assert [server.acquire(process, WANTED_MS, age_us=age_us)[1] for process, age_us in ages_us.items()] == [
            0,
            1,
            2,
        ]
        server.free()

        assert server.acquire(3, WANTED_MS, age_us=20_000_000) > 0


def test_a_free_lock_is_kept_for_whoever_came_first(server: Server) -> None:
    with hearing(server, 1, 2):
        server.acquire(0, HELD_MS)
        assert [server.acquire(process, WANTED_MS)[1] for process in (1, 2)] == [0, 1]
        server.free()

        assert server.acquire(2, WANTED_MS, age_us=0)[1] == 1
        assert server.acquire(1, WANTED_MS, age_us=900_000) > 0


def test_whoever_is_first_because_the_one_before_has_moved_behind_is_told(server: Server) -> None:
    """Its first waiter has left, and the next one came later. Only the first in line watches the lock."""
    with hearing(server, 1, 2) as messages:
        server.acquire(0, HELD_MS)
        assert [server.acquire(process, WANTED_MS, age_us=900_000)[1] for process in (1, 2)] == [0, 1]

        assert server.acquire(1, WANTED_MS, age_us=0)[1] == 1
        message = messages.get_message(timeout=5)
        assert message is not None
        assert (message["channel"], message["data"]) == (b"channel-2", f"look {2:032}".encode())


def test_those_who_do_not_hear_that_they_are_first_are_gone_and_whoever_asks_is_not(server: Server) -> None:
    """Its own messages may be away for a moment, while it can ask."""
    server.acquire(0, HELD_MS)
    assert [server.acquire(process, WANTED_MS, age_us=900_000)[1] for process in (1, 2, 3)] == [0, 1, 2]

    assert server.acquire(1, WANTED_MS, age_us=0)[1] == 0
    server.free()
    assert server.acquire(1, WANTED_MS, age_us=0) > 0

"""The lock in front of an entry is the one that python-redis-lock takes as {appointment:ID}."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis_lock import Lock

from tests.contract.api import (
    Api,
    charge_rows,
    everything,
    held_row,
    in_background,
    problem,
    waits_for_row,
)
from tests.contract.conftest import World
from tests.harness import service, wait_until


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    return {
        "lock_wait_s": "40",
        "lease_ttl_s": "5",
        "row_lock_timeout_s": "40",
        "statement_timeout_s": "40",
        "charge_timeout_s": "50",
    }


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """As python-redis-lock needs it: no timeout of the socket's own under its BLPOP."""
    with redis.Redis.from_url(redis_url, socket_timeout=None) as client:
        yield client


def someone_waits(world: World) -> bool:
    return world.api.metric("lock_waiters", resource="appointment") >= 1


def test_an_entry_waits_while_python_redis_lock_holds_and_goes_in_once_it_lets_go(
    world: World, client: redis.Redis
) -> None:
    id_, inviter, _ = world.meeting()
    lock = Lock(client, f"{{appointment:{id_}}}", expire=30)
    before = everything(world.rows)
    with in_background() as start:
        assert lock.acquire()
        entering = start(world.api.enter, id_, inviter)
        wait_until(lambda: someone_waits(world))
        assert not entering.done()
        assert everything(world.rows) == before
        lock.release()
        assert entering.result().status == 201
    assert entering.result().took_s < 20, "it went in at the release, not at the end of the 30 s lease"
    assert world.api.metric("lock_waiters", resource="appointment") == 0


def test_an_entry_takes_over_when_a_python_redis_lock_program_died_holding(world: World, client: redis.Redis) -> None:
    id_, inviter, _ = world.meeting()
    assert Lock(client, f"{{appointment:{id_}}}", expire=1).acquire()  # and is never heard of again
    assert world.api.enter(id_, inviter).status == 201


def test_python_redis_lock_is_refused_while_an_entry_holds_and_is_woken_when_it_is_over(
    world: World, client: redis.Redis
) -> None:
    id_, inviter, _ = world.meeting()
    lock = Lock(client, f"{{appointment:{id_}}}", expire=60)
    with in_background() as start, held_row(world.database_url, id_) as release:
        entering = start(world.api.enter, id_, inviter)
        wait_until(lambda: waits_for_row(world.rows))
        assert not Lock(client, f"{{appointment:{id_}}}", expire=60).acquire(blocking=False)
        waiting = start(lock.acquire, timeout=50)
        wait_until(lambda: blocked_in_blpop(client))
        assert not waiting.done()
        let_go_at_s = time.monotonic()
        release()
        assert entering.result().status == 201
        assert waiting.result() is True
        assert time.monotonic() - let_go_at_s < 25, "it was woken, not left to its own timeout"
    lock.release()


def blocked_in_blpop(client: redis.Redis) -> bool:
    return any(entry["cmd"] == "blpop" for entry in client.client_list())


def test_an_entry_that_cannot_have_the_lock_in_time_is_refused_and_may_come_again(
    world: World, client: redis.Redis, tmp_path: Path
) -> None:
    id_, inviter, _ = world.meeting()
    addresses = {"database_url": world.database_url, "redis_url": world.redis_url}
    lock = Lock(client, f"{{appointment:{id_}}}", expire=60)
    with service(tmp_path, workers=1, lock_wait_s="0.6", lease_ttl_s="0.3", **addresses) as hasty:
        api = Api(hasty.url)
        assert lock.acquire()
        before = everything(world.rows)
        answer = api.enter(id_, inviter)
        problem(answer, "charge-in-progress")
        assert answer.took_s >= 0.6
        assert everything(world.rows) == before
        assert api.metric("charges_total", outcome="charge-in-progress") == 1
        assert api.metric("lock_acquire_total", resource="appointment", outcome="busy") == 1
        lock.release()
        assert api.enter(id_, inviter).status == 201


def test_an_entry_whose_row_a_stranger_holds_is_refused_in_time_and_delays_nobody_else(
    world: World, tmp_path: Path
) -> None:
    (stuck, person, _), (other, other_person, _) = world.meeting(), world.meeting()
    addresses = {"database_url": world.database_url, "redis_url": world.redis_url}
    limits = {"row_lock_timeout_s": "3", "statement_timeout_s": "8", "charge_timeout_s": "30"}
    with service(tmp_path, workers=1, **addresses, **limits) as hasty, in_background() as start:
        api = Api(hasty.url)
        with held_row(world.database_url, stuck):
            entering = start(api.enter, stuck, person)
            wait_until(lambda: waits_for_row(world.rows))
            assert api.enter(other, other_person).status == 201
            problem(entering.result(), "charge-in-progress")
        assert charge_rows(world.rows, stuck) == 0
        assert api.enter(stuck, person).status == 201

"""A server that tracks fewer keys than are watched tells of changes that are none: looks stay few. One is no reason."""

from __future__ import annotations

import asyncio

import pytest

from locks import line
from locks.clock import SYSTEM
from locks.locker import Locker
from tests.harness import wait_until_async
from tests.integration.lock_faults import SOON_S, keys_at
from tests.integration.test_locker import locking
from tests.servers.fixtures import StartRedis
from tests.servers.redis_server import RedisServer

LOCKS, SECONDS = 20, 2.0
HEARTBEATS_A_S = 1000 / 300


def calls_of(server: RedisServer, command: str) -> int:
    stats = server.info("commandstats").get(f"cmdstat_{command}", "calls=0")
    return int(stats.split(",")[0].removeprefix("calls="))


@pytest.mark.parametrize("kind", ["valkey", "redis-7"])
async def test_a_full_tracking_table_makes_no_storm_of_looks_and_a_foreign_release_is_heard(
    start_redis: StartRedis, name: str, kind: str
) -> None:
    server = start_redis(kind, settings=["tracking-table-max-keys 4"])
    names = [f"{name}/{number}" for number in range(LOCKS)]
    with keys_at(server.url, name) as keys:
        async with locking(server.url, alive_ms=900) as locker:
            for each in names:
                keys.client.set(f"lock:{{{each}}}", "another", px=600_000)
            waiting = [asyncio.create_task(locker.acquire(each, lease_ttl_s=60)) for each in names]
            await asyncio.sleep(0.5)  # all have looked once
            began_at_s, before = SYSTEM.monotonic_s(), calls_of(server, "evalsha")
            await asyncio.sleep(SECONDS)
            calls, took_s = calls_of(server, "evalsha") - before, SYSTEM.monotonic_s() - began_at_s
            assert calls < LOCKS * (2 * HEARTBEATS_A_S * took_s + 2)

            for each in names:
                keys.client.delete(f"lock:{{{each}}}")
            await asyncio.wait_for(asyncio.gather(*waiting), SOON_S)


async def ends_known(locker: Locker, name: str) -> list[float]:
    """When the holder's lease ends, as of when the key was read last; it is counted anew each time."""
    found = locker._lines.by_name.get(name)
    return [] if found is None or found._watched_end_s is None else [found._watched_end_s]


async def test_news_of_one_change_that_was_none_does_not_keep_the_next_one_from_being_heard(
    start_redis: StartRedis, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where it had been on its way since before the key was read."""
    monkeypatch.setattr(line, "QUIET_S", 3600.0)
    server = start_redis()
    with keys_at(server.url, name) as keys:
        async with locking(server.url, alive_ms=3_600_000) as locker:
            keys.client.set(f"lock:{{{name}}}", "another", px=600_000)
            waiting = asyncio.create_task(locker.acquire(name, lease_ttl_s=60))

            await wait_until_async(lambda: ends_known(locker, name), what="the key to be read")
            [end_s] = await ends_known(locker, name)
            keys.client.set(f"lock:{{{name}}}", "another", keepttl=True)

            async def is_read_again() -> bool:
                return await ends_known(locker, name) != [end_s]

            await wait_until_async(is_read_again, what="the key to be read again")
            keys.client.delete(f"lock:{{{name}}}")
            lease = await asyncio.wait_for(waiting, SOON_S)
            assert await lease.release()

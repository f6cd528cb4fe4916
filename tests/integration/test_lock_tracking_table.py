"""A server that tracks fewer keys than are watched tells of changes that are none: looks stay few."""

from __future__ import annotations

import asyncio

import pytest

from locks.clock import SYSTEM
from tests.integration.lock_faults import SOON_S, keys_at
from tests.integration.test_locker import locking
from tests.servers.fixtures import StartRedis
from tests.servers.redis_server import RedisServer

LOCKS, SECONDS = 20, 2.0
HEARTBEATS_A_S = 1000 / 300


def script_calls(server: RedisServer) -> int:
    stats = server.info("commandstats").get("cmdstat_evalsha", "calls=0")
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
            began_at_s, before = SYSTEM.monotonic_s(), script_calls(server)
            await asyncio.sleep(SECONDS)
            calls, took_s = script_calls(server) - before, SYSTEM.monotonic_s() - began_at_s
            assert calls < LOCKS * (2 * HEARTBEATS_A_S * took_s + 2)

            for each in names:
                keys.client.delete(f"lock:{{{each}}}")
            await asyncio.wait_for(asyncio.gather(*waiting), SOON_S)

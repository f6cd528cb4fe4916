"""What locks weigh on the server: held, waited for, and after they were released.

`python -m tests.bench.locks.memory --url URL` writes one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import uvloop
from redis.asyncio import Redis

from locks import Locker

from .driving import say

HELD_FOR_S = 30.0
SETTLING_S = 1.0
EMPTY_WITHIN_S = 60.0
SAMPLE_EVERY_S = 0.1
TASKS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """The server's memory and number of keys at a moment."""

    used_bytes: int
    keys: int


async def main(url: str, *, names: int, locks: int) -> None:
    """First locks that are held and waited for, then many that come and go."""
    async with (
        Redis.from_url(url) as watcher,
        Locker.connect(url, instance_id="holds") as holder,
        Locker.connect(url, instance_id="waits") as waiter,
    ):
        standing = await _standing(watcher, holder, waiter, names)
        await watcher.flushall()  # nobody holds anything now
        churn = await _churn(watcher, holder, locks)
    say({"standing": standing, "churn": churn})


async def _standing(watcher: Redis, holder: Locker, waiter: Locker, count: int) -> dict[str, Any]:
    names = [f"bench:standing:{number}" for number in range(count)]
    empty = await _weight(watcher)
    leases = await asyncio.gather(*(holder.acquire(name, lease_ttl_s=HELD_FOR_S) for name in names))
    held = await _weight(watcher)
    tasks = [asyncio.create_task(waiter.acquire(name)) for name in names]
    await asyncio.sleep(SETTLING_S)
    waited_for = await _weight(watcher)
    faults = [f"{sum(task.done() for task in tasks)} did not wait"] if any(task.done() for task in tasks) else []
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.gather(*(lease.release() for lease in leases))
    return {
        "names": count,
        "bytes_per_held_lock": round((held.used_bytes - empty.used_bytes) / count, 1),
        "keys_per_held_lock": round((held.keys - empty.keys) / count, 3),
        "bytes_per_waiter_line": round((waited_for.used_bytes - held.used_bytes) / count, 1),
        "keys_per_waiter_line": round((waited_for.keys - held.keys) / count, 3),
        "empty_after_s": await _empty_after_s(watcher),
        "faults": faults,
    }


async def _churn(watcher: Redis, locker: Locker, locks: int) -> dict[str, Any]:
    """Takes and releases that many locks, each on a name of its own."""
    before = await _weight(watcher)
    numbers = iter(range(locks))

    async def work() -> None:
        for number in numbers:
            lease = await locker.acquire(f"bench:churn:{number}")
            await lease.release()

    began_s = time.monotonic()
    peak = await _peak_during(watcher, lambda: asyncio.gather(*(work() for _ in range(TASKS))))
    took_s = time.monotonic() - began_s
    after = await _weight(watcher)
    empty_after_s = await _empty_after_s(watcher)
    when_empty = await _weight(watcher)
    return {
        "locks": locks,
        "took_s": round(took_s, 3),
        "used_bytes_before": before.used_bytes,
        "used_bytes_peak": peak.used_bytes,
        "used_bytes_after": after.used_bytes,
        "used_bytes_in_the_end": when_empty.used_bytes,
        "keys_before": before.keys,
        "keys_peak": peak.keys,
        "keys_after": after.keys,
        "keys_in_the_end": when_empty.keys,
        "empty_after_s": empty_after_s,
    }


async def _peak_during(watcher: Redis, work: Callable[[], Awaitable[object]]) -> Weight:
    """The heaviest of many looks while the work goes on."""
    weights = [await _weight(watcher)]
    working = asyncio.ensure_future(work())
    while not working.done():
        await asyncio.wait([working], timeout=SAMPLE_EVERY_S)
        weights.append(await _weight(watcher))
    await working
    return Weight(used_bytes=max(each.used_bytes for each in weights), keys=max(each.keys for each in weights))


async def _empty_after_s(watcher: Redis) -> float | None:
    """Seconds until there is no key; None when there still are some after a long time."""
    began_s = time.monotonic()
    while await watcher.dbsize():
        if time.monotonic() - began_s > EMPTY_WITHIN_S:
            return None
        await asyncio.sleep(0.02)
    return round(time.monotonic() - began_s, 3)


async def _weight(watcher: Redis) -> Weight:
    info = await watcher.info("memory")
    return Weight(used_bytes=int(info["used_memory"]), keys=int(await watcher.dbsize()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--names", type=int, default=10_000)
    parser.add_argument("--locks", type=int, default=1_000_000)
    chosen = parser.parse_args()
    uvloop.run(main(chosen.url, names=chosen.names, locks=chosen.locks))

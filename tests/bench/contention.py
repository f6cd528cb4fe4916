"""How long the list of locks takes with many of them held: `python -m tests.bench.contention`."""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import typer
from rich.console import Console
from rich.table import Table

from locks import Locker
from locks.publishing import Publisher
from locks.seen import Seen
from tests.bench.ground import shared_ground
from tests.harness import bearer, service

HELD, WAITING, WAITED_FOR = 10_000, 2_000, 200
ROUNDS = 50
MEDIAN_LIMIT_S = 0.1
LEASE_TTL_S, WAIT_S = 300.0, 300.0
PATHS = ("/v1/locks", "/v1/locks?sort=held", "/v1/locks?search=lock:77", "/v1/contention")


def main(held: int = HELD, waiting: int = WAITING, rounds: int = ROUNDS) -> None:
    """Holds so many locks from one process, waits for 200 of them from another, and asks a service of two workers."""
    with (
        tempfile.TemporaryDirectory(prefix="chargeonce-contention-") as folder,
        shared_ground(Path(folder), users=10) as ground,
    ):
        wanted = ("CHARGEONCE_DATABASE_URL", "CHARGEONCE_REDIS_URL")
        settings = {
            name.removeprefix("CHARGEONCE_").lower(): value
            for name, value in ground.environment().items()
            if name in wanted
        }
        with service(Path(folder), workers=2, **settings) as running:
            reached = asyncio.run(_measured(running.url, settings["redis_url"], held, waiting, rounds))
    sys.exit(0 if reached else 1)


async def _measured(url: str, redis_url: str, held: int, waiting: int, rounds: int) -> bool:
    async with (
        Locker.connect(redis_url, instance_id="bench-holder", command_timeout_s=5.0) as holder,
        Locker.connect(redis_url, instance_id="bench-waiter", command_timeout_s=5.0) as waiter,
    ):
        voices = [Publisher(locker, Seen(), version="bench") for locker in (holder, waiter)]
        names = [f"lock:{number}" for number in range(held)]
        await asyncio.gather(*[holder.acquire(name, lease_ttl_s=LEASE_TTL_S) for name in names])
        waits = [
            asyncio.create_task(waiter.acquire(names[number % WAITED_FOR], lease_ttl_s=LEASE_TTL_S, wait_s=WAIT_S))
            for number in range(waiting)
        ]
        for voice in voices:
            await voice.start()
        async with aiohttp.ClientSession(url, headers=bearer(1, "monitor")) as client:
            await _until(lambda: _told(client, held, waiting))
            table = Table(
                "asked for", "median", "slowest", title=f"{held} held, {waiting} waiting", title_justify="left"
            )
            medians = {}
            for path in PATHS:
                times_s = [await _asked(client, path) for _ in range(rounds)]
                medians[path] = statistics.median(times_s)
                table.add_row(path, f"{medians[path] * 1000:.1f} ms", f"{max(times_s) * 1000:.1f} ms")
        for each in waits:
            each.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        for voice in voices:
            await voice.stop()
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(table)
    reached = medians["/v1/locks"] <= MEDIAN_LIMIT_S
    console.print(f"first page within {MEDIAN_LIMIT_S * 1000:g} ms at the median: {'reached' if reached else 'MISSED'}")
    return reached


async def _asked(client: aiohttp.ClientSession, path: str) -> float:
    # Further apart than an answer is shared for, so that each one is read anew.
    await asyncio.sleep(0.45)
    started_at_s = time.perf_counter()
    async with client.get(path) as response:
        await response.read()
        assert response.status == 200
    return time.perf_counter() - started_at_s


async def _told(client: aiohttp.ClientSession, held: int, waiting: int) -> bool:
    async with client.get("/v1/contention") as response:
        told = await response.json()
    async with client.get("/v1/locks?limit=1") as response:
        listed = await response.json()
    return (told["held"], told["waiting"], listed["total"]) == (held, waiting, held)


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    give_up_at_s = time.monotonic() + 60
    while not await condition():
        if time.monotonic() > give_up_at_s:
            raise RuntimeError("the service has not heard of all locks within a minute")
        await asyncio.sleep(0.2)


if __name__ == "__main__":
    typer.run(main)

"""What waiters cost: thousands of them on a hundred held names, from one process of ours, while nothing happens.

`python -m tests.bench.locks.waiting --url URL` writes one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import resource
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import uvloop
from redis.asyncio import Redis

from locks import Lease, Locker

from .driving import say

HELD_FOR_S = 600.0
SETTLING_S = 1.0
KEYS_GONE_WITHIN_S = 15.0
SHOWN_KEYS = 5
STRANGER = "bench:stranger"
# +1700000000.123456 [0 127.0.0.1:50104] "evalsha" ...; in a script, "lua" stands for the address.
MONITORED = re.compile(rb"^\+[0-9.]+ \[[0-9]+ ([^] ]+)\]", re.MULTILINE)


async def main(url: str, *, waiters: int, names: int, quiet_s: float) -> None:
    """Queues all, watches them wait, cancels all, and looks what is left."""
    async with (
        Redis.from_url(url, decode_responses=True) as watcher,
        Locker.connect(url, instance_id="holds") as holder,
    ):
        held = [f"bench:waiting:{number}" for number in range(names)]
        for name in held:
            await holder.acquire(name, lease_ttl_s=HELD_FOR_S)
        keys_of_holders = await _keys(watcher)
        others = await _addresses(watcher)
        async with Locker.connect(url, instance_id="waits") as locker:
            began_s = time.monotonic()
            tasks = [asyncio.create_task(locker.acquire(held[number % names])) for number in range(waiters)]
            await _served_behind_them(locker, "first")
            queued_after_s = time.monotonic() - began_s
            await asyncio.sleep(SETTLING_S)
            ours = await _addresses(watcher) - others
            quiet = await _quiet(watcher, quiet_s=quiet_s) | await _sent(url, ours, quiet_s=quiet_s)
            faults = _faults(tasks)
            cancelled_after_s = await _cancelled(tasks)
            await _served_behind_them(locker, "second")
            leftover = await _leftover(watcher, keys_of_holders)
    say(
        {
            "waiters": waiters,
            "names": names,
            "queued_after_s": round(queued_after_s, 3),
            "connections": len(ours),
            **quiet,
            "cancelled_after_s": round(cancelled_after_s, 3),
            **leftover,
            "faults": faults,
        }
    )


async def _served_behind_them(locker: Locker, which: str) -> None:
    """A stranger's lock on a free name, asked for after all others: when it comes, theirs have been answered."""
    stranger = await locker.acquire(f"{STRANGER}:{which}", wait_s=0)
    await stranger.release()


async def _quiet(watcher: Redis, *, quiet_s: float) -> dict[str, Any]:
    """Per second of doing nothing: all that the server runs, scripts' own commands too, and both sides' CPU."""
    before, used_before_s, began_s = await watcher.info("all"), _used_s(), time.monotonic()
    await asyncio.sleep(quiet_s)
    after, used_s, took_s = await watcher.info("all"), _used_s(), time.monotonic() - began_s
    commands = after["total_commands_processed"] - before["total_commands_processed"] - 1  # the INFO
    return {
        "commands_with_those_in_scripts_per_s": round(commands / took_s, 1),
        "server_cpu_ms_per_s": round((_server_s(after) - _server_s(before)) / took_s * 1000, 2),
        "client_cpu_ms_per_s": round((used_s - used_before_s) / took_s * 1000, 2),
    }


async def _sent(url: str, addresses: set[str], *, quiet_s: float) -> dict[str, Any]:
    """Commands that these clients send per second of doing nothing, by MONITOR: INFO counts those in scripts too."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(b"MONITOR\r\n")
    await reader.readline()
    heard = bytearray()
    began_s = time.monotonic()
    with suppress(TimeoutError):
        async with asyncio.timeout(quiet_s):
            while chunk := await reader.read(1 << 20):
                heard += chunk
    took_s = time.monotonic() - began_s
    writer.close()
    # Counted afterwards, not to be late for what is still to be read.
    sent = sum(match[1].decode() in addresses for match in MONITORED.finditer(heard))
    return {"commands_per_s": round(sent / took_s, 1)}


def _faults(tasks: Sequence[asyncio.Task[Lease]]) -> list[str]:
    ended = [task for task in tasks if task.done()]
    if not ended:
        return []
    error = ended[0].exception()
    return [f"{len(ended)} waiters did not wait: {error if error else 'the lock was granted while it was held'}"]


async def _cancelled(tasks: Sequence[asyncio.Task[Lease]]) -> float:
    began_s = time.monotonic()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return time.monotonic() - began_s


async def _leftover(watcher: Redis, keys_of_holders: set[str]) -> dict[str, Any]:
    """How many keys are there that were not before anybody waited: at once, and after they had time to go."""
    began_s = time.monotonic()
    at_once = left = await _keys(watcher) - keys_of_holders
    while left and time.monotonic() - began_s < KEYS_GONE_WITHIN_S:
        await asyncio.sleep(0.02)
        left = await _keys(watcher) - keys_of_holders
    return {
        "keys_left_at_once": len(at_once),
        "keys_left": len(left),
        "keys_gone_after_s": None if left else round(time.monotonic() - began_s, 3),
        "some_keys_left": sorted(at_once)[:SHOWN_KEYS],
    }


async def _keys(watcher: Redis) -> set[str]:
    return {str(key) for key in await watcher.keys("*") if STRANGER not in str(key)}


async def _addresses(watcher: Redis) -> set[str]:
    """Of every connection to the server."""
    return {str(each["addr"]) for each in await watcher.client_list()}


def _server_s(info: dict[str, Any]) -> float:
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


def _used_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--waiters", type=int, default=10_000)
    parser.add_argument("--names", type=int, default=100)
    parser.add_argument("--quiet-s", type=float, default=5.0)
    chosen = parser.parse_args()
    uvloop.run(main(chosen.url, waiters=chosen.waiters, names=chosen.names, quiet_s=chosen.quiet_s))

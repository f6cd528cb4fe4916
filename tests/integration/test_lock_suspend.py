"""The machine sleeps while a lock is held or waited for: what ended meanwhile is known within a moment of the resume.

A suspend is CLOCK_BOOTTIME going on while CLOCK_MONOTONIC, by which loops and threads count their waits, stands still.
"""

from __future__ import annotations

import statistics
import time

import redis

from tests.harness import wait_until
from tests.integration.compat_helpers import program, says
from tests.lock_process import LockProcess
from tests.servers.clock import ShiftedClock
from tests.servers.fixtures import StartLockProcess

LEASE_TTL_S = 60.0  # so long that whatever was counted by timers would be noticed long after SOON_S
SOON_S = 10.0


def sleeper(lock_process: StartLockProcess, url: str, suspend: ShiftedClock) -> LockProcess:
    return lock_process(url, environment=suspend.environment)


def test_a_body_whose_lease_ended_while_the_machine_slept_is_cancelled_at_once(
    redis_url: str, name: str, lock_process: StartLockProcess, suspend: ShiftedClock
) -> None:
    process = sleeper(lock_process, redis_url, suspend)
    holds = process.hold(name, lease_ttl_s=LEASE_TTL_S)
    process.wait_for(holds, "acquired")
    slept_at_s = time.monotonic()
    suspend.shift(offset_s=LEASE_TTL_S)

    lost = process.wait_for(holds, "lost")
    assert lost["reason"] == "expired"
    assert lost["at_s"] - slept_at_s < SOON_S


def test_a_lease_that_the_sleep_has_left_some_time_is_extended_at_once(
    redis_url: str, name: str, lock_process: StartLockProcess, suspend: ShiftedClock
) -> None:
    process = sleeper(lock_process, redis_url, suspend)
    holds = process.hold(name, lease_ttl_s=LEASE_TTL_S)
    process.wait_for(holds, "acquired")
    slept_at_s = time.monotonic()
    suspend.shift(offset_s=LEASE_TTL_S / 2)

    assert process.wait_for_emitted("Extended", name=name)["at_s"] - slept_at_s < SOON_S
    process.release(holds)
    assert process.wait_for(holds, "released")["still_ours"]


def test_a_wait_that_was_over_while_the_machine_slept_ends_at_once(
    redis_url: str, their_client: redis.Redis, name: str, lock_process: StartLockProcess, suspend: ShiftedClock
) -> None:
    holder = lock_process(redis_url)
    holder.wait_for(holder.hold(name, lease_ttl_s=LEASE_TTL_S), "acquired")
    process = sleeper(lock_process, redis_url, suspend)
    waits = process.acquire(name, wait_s=LEASE_TTL_S)
    wait_until(lambda: their_client.zcard(f"lock-queue:{{{name}}}") == 1, what="its place in line")
    slept_at_s = time.monotonic()
    suspend.shift(offset_s=LEASE_TTL_S)

    refused = process.wait_for(waits, "refused")
    assert refused["error"] == "LockBusy"
    assert refused["at_s"] - slept_at_s < SOON_S


LENDER = """
import asyncio, sys
from locks import Locker
from locks.events import Lost

async def main(url, name, lease_ttl_s):
    lost = asyncio.Event()
    def hear(event):
        if isinstance(event, Lost):
            lost.set()
    async with Locker.connect(url, instance_id="lender", listener=hear) as locker:
        await locker.lending.lend(name, lease_ttl_s=float(lease_ttl_s), wait_s=0.0, request_id="")
        print("lent", flush=True)
        await lost.wait()
        print("lost", flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


def test_a_lent_lease_that_ended_while_the_machine_slept_leaves_the_books_at_once(
    redis_url: str, their_client: redis.Redis, name: str, suspend: ShiftedClock
) -> None:
    with program(LENDER, redis_url, name, LEASE_TTL_S, environment=suspend.environment) as lender:
        assert says(lender) == "lent"
        their_client.delete(f"lock:{{{name}}}")
        slept_at_s = time.monotonic()
        suspend.shift(offset_s=LEASE_TTL_S)

        assert says(lender) == "lost"
        assert time.monotonic() - slept_at_s < SOON_S


SAFE_HOLDER = """
import sys, time
from locks.compat import SafeLock, client

url, name, expire = sys.argv[1:]
lock = SafeLock(client(url), name, expire=float(expire), auto_renewal=True)
for _ in range(5):
    assert lock.acquire()
    print("held", flush=True)
    sys.stdin.readline()
    slept_at_s = time.monotonic()
    assert lock.remaining_s() == 0, lock.remaining_s()
    assert lock.lost.wait(30)
    print(time.monotonic() - slept_at_s, flush=True)
    lock.reset()
"""


def test_a_safe_lock_that_ended_while_the_machine_slept_is_lost_at_once(
    redis_url: str, name: str, suspend: ShiftedClock
) -> None:
    noticed_s = []
    with program(SAFE_HOLDER, redis_url, name, LEASE_TTL_S, environment=suspend.environment) as holder:
        for sleep in range(1, 6):
            assert says(holder) == "held"
            suspend.shift(offset_s=sleep * LEASE_TTL_S)
            assert holder.stdin is not None
            holder.stdin.write("\n")
            holder.stdin.flush()
            noticed_s.append(float(says(holder)))

    # Most of them, since the machine may be busy: a keeper that waited for its next look took nearly a second.
    assert statistics.median(noticed_s) < 0.5, noticed_s

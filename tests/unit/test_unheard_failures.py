"""What fails when nobody waits for it any more is told to nobody: no "exception was never retrieved" in the log."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Iterator

import pytest

from locks.dialing import first_reached
from locks.errors import LockStoreDown
from service.shared_task import shared_task


@contextlib.contextmanager
def nothing_is_left_to_the_loop() -> Iterator[None]:
    """What is collected in here was looked at before."""
    told = list[str]()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(context["message"]))
    yield
    gc.collect()
    assert told == []


async def test_a_shared_task_that_fails_once_all_have_left() -> None:
    goes_on = asyncio.Event()

    async def fail() -> None:
        await goes_on.wait()
        raise LockStoreDown("gone")

    async def everybody_leaves() -> None:
        task = shared_task(fail(), name="shared")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(task), 0.01)
        goes_on.set()
        await asyncio.wait([task])

    with nothing_is_left_to_the_loop():
        await everybody_leaves()


async def test_a_shared_task_tells_whoever_waits() -> None:
    async def fail() -> None:
        raise LockStoreDown("gone")

    with pytest.raises(LockStoreDown):
        await asyncio.shield(shared_task(fail(), name="shared"))


@pytest.mark.parametrize("count", [2, 5])
async def test_addresses_that_fail_at_the_moment_another_is_reached(count: int) -> None:
    answered = asyncio.Event()

    async def attempt(ip: str) -> str:
        if ip == "last":
            answered.set()
            return ip
        await answered.wait()
        raise LockStoreDown(ip)

    with nothing_is_left_to_the_loop():
        ips = [*map(str, range(count)), "last"]
        assert await first_reached(ips, attempt, next_after_s=0.01) == "last"

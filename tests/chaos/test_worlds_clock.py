"""A world of clocks: each server's, and one process's among many, jump alone, and come back."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing

import psycopg2

from tests.chaos.worlds.rehearsal import OpenWorld, Rehearsal
from tests.harness import wait_until_async

pytest_plugins = ["tests.chaos.worlds.fixtures"]

FAR_S = 100.0
NEAR_S = 20.0  # what a slow machine takes to tell the time
TELL = "import time\nwhile input(): print(time.time(), time.monotonic(), flush=True)"


async def jumped(rehearsal: Rehearsal, kind: str, ahead_s: Callable[[], float], jump_s: float) -> None:
    """Returns once the fault has been seen by this clock, and has healed."""
    fault = asyncio.create_task(rehearsal.fire(kind, jump_s=jump_s, lasts_s=0.5))

    async def far() -> bool:
        return abs(ahead_s() - jump_s) < NEAR_S

    await wait_until_async(far, what=f"a clock {jump_s} s ahead")
    await fault
    assert abs(ahead_s()) < NEAR_S


async def test_the_clock_of_valkey_jumps_alone(open_world: OpenWorld) -> None:
    async with open_world("clock") as rehearsal:

        def ahead_s() -> float:
            return float(rehearsal.ground.valkey.ask("TIME")[0]) - time.time()

        await jumped(rehearsal, "redis_clock_forward", ahead_s, FAR_S)
        await jumped(rehearsal, "redis_clock_back", ahead_s, -FAR_S)


async def test_the_clock_of_postgres_jumps_alone(open_world: OpenWorld) -> None:
    async with open_world("clock") as rehearsal:

        def ahead_s() -> float:
            with closing(psycopg2.connect(rehearsal.ground.database_url)) as session, session.cursor() as cursor:
                cursor.execute("SELECT extract(epoch FROM clock_timestamp())::float8")
                (told,) = cursor.fetchone() or (0.0,)
                return float(told) - time.time()

        await jumped(rehearsal, "postgres_clock_forward", ahead_s, FAR_S)
        await jumped(rehearsal, "postgres_clock_back", ahead_s, -FAR_S)


async def test_the_clock_of_one_process_jumps_alone(open_world: OpenWorld) -> None:
    async with open_world("clock") as rehearsal:
        environment = {**os.environ, **rehearsal.ground.instance_environment}
        with Teller(environment) as one, Teller(environment) as other:
            rehearsal.instances[1].pid = one.pid
            monotonic_s = time.monotonic()
            await jumped(rehearsal, "instance_clock_forward", one.ahead_s, FAR_S)
            fault = asyncio.create_task(rehearsal.fire("instance_clock_back", jump_s=-FAR_S, lasts_s=0.5))
            await wait_until_async(one.is_behind, what="a clock that is behind")
            assert abs(other.ahead_s()) < NEAR_S
            assert 0 <= one.tell()[1] - monotonic_s < NEAR_S
            await fault
            assert abs(one.ahead_s()) < NEAR_S


class Teller:
    """A process that tells its time."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", TELL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    def tell(self) -> tuple[float, float]:
        """Its time.time() and time.monotonic()."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("now\n")
        self._process.stdin.flush()
        real_s, monotonic_s = self._process.stdout.readline().split()
        return float(real_s), float(monotonic_s)

    def ahead_s(self) -> float:
        """How far its clock is ahead of ours."""
        return self.tell()[0] - time.time()

    async def is_behind(self) -> bool:
        """Whether its clock is far behind ours."""
        return self.ahead_s() < -NEAR_S

    def __enter__(self) -> Teller:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

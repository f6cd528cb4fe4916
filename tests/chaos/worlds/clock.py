"""A world in which Valkey, Postgres, and any one instance have clocks of their own, which jump while they run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

from tests.chaos.faults.kinds import Draw, Fault, FaultKind, InstanceHandle, alone_with, in_thread
from tests.chaos.faults.kinds import World as Run
from tests.chaos.ground import ValkeyServer
from tests.chaos.worlds.native import FOLDER, Numbers, build, open_folder, why_no_compiler
from tests.chaos.worlds.special_ground import SpecialGround
from tests.chaos.worlds.world import World
from tests.harness import wait_until
from tests.servers.clock import SOURCE, TICK_S
from tests.servers.kinds import server_binary

NS_PER_S = 1_000_000_000
PID, AHEAD_NS = range(2)  # as native/process_clock.c has them
# Leases and their queues live by Valkey's clock: what it jumps by, a dead holder's lease may last longer.
MOST_LEASES = 3.0
LEAST_S = 0.05
MOST_S = 30.0  # of the others: far less than an access token's life


class ClockGround(SpecialGround):
    """shift_redis, shift_postgres, shift_instance: a clock is so many seconds ahead from now on, behind if below 0."""

    def __init__(self, folder: Path, *, postgres_settings: Mapping[str, str]) -> None:
        self._of_postgres: dict[str, str] = {}  # filled once the library is built
        self._redis: Numbers
        self._postgres: Numbers
        self._instance: Numbers
        super().__init__(folder, postgres_settings=postgres_settings, postgres_environment=self._of_postgres)

    def prepare(self, stack: ExitStack) -> None:
        """The libraries, and the numbers that they obey."""
        native = stack.enter_context(open_folder())
        self._library = build(SOURCE, native)
        of_one_process = build(FOLDER / "process_clock.c", native)
        self._redis = stack.enter_context(Numbers(native / "redis", count=1))
        self._postgres = stack.enter_context(Numbers(native / "postgres", count=1))
        self._instance = stack.enter_context(Numbers(native / "instance", count=2))
        self._of_postgres |= self._shifted(self._postgres)
        self.instance_environment = {
            "LD_PRELOAD": str(of_one_process),
            "PROCESS_CLOCK_FILE": str(self._instance.path),
        }

    def complete(self, stack: ExitStack) -> None:
        """A Valkey with a clock of its own takes the other one's place."""
        self.valkey.close()
        self.valkey = _ShiftedValkey(self.folder, self._shifted(self._redis))
        stack.callback(self.valkey.close)
        self.valkey.start()

    def shift_redis(self, ahead_s: float) -> None:
        """Returns once Valkey's TIME shows it: that looks at the clock only now and then."""
        self._redis[0] = round(ahead_s * NS_PER_S)
        wait_until(lambda: self._redis_is(ahead_s), what="a TIME that follows the clock")

    def shift_postgres(self, ahead_s: float) -> None:
        """Of all its processes."""
        self._postgres[0] = round(ahead_s * NS_PER_S)

    def shift_instance(self, pid: int, ahead_s: float) -> None:
        """Of this process alone; whose clock was another one before has the true one again."""
        self._instance[PID] = 0
        self._instance[AHEAD_NS] = round(ahead_s * NS_PER_S)
        self._instance[PID] = pid

    def _redis_is(self, ahead_s: float) -> bool:
        before_s = time.time()
        seconds, microseconds = self.valkey.ask("TIME")
        shown_s = int(seconds) + int(microseconds) / 1e6
        return before_s - TICK_S <= shown_s - ahead_s <= time.time() + TICK_S

    def _shifted(self, ahead_ns: Numbers) -> dict[str, str]:
        return {"LD_PRELOAD": str(self._library), "SHIFTED_CLOCK_FILE": str(ahead_ns.path)}


class _ShiftedValkey(ValkeyServer):
    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        super().__init__(server_binary("valkey"), folder)
        self._environment = environment


def _ground(run: Run) -> ClockGround:
    assert isinstance(run.ground, ClockGround)
    return run.ground


async def redis_clock(run: Run, fault: Fault, target: object) -> None:
    """Valkey's clock jumps, and jumps back."""
    ground = _ground(run)
    async with alone_with(run, "redis"):
        try:
            await in_thread(ground.shift_redis, fault["jump_s"])
            await asyncio.sleep(fault["lasts_s"])
        finally:
            await in_thread(ground.shift_redis, 0.0)


async def postgres_clock(run: Run, fault: Fault, target: object) -> None:
    """Postgres' clock jumps, and jumps back."""
    ground = _ground(run)
    async with alone_with(run, "postgres"):
        try:
            ground.shift_postgres(fault["jump_s"])
            await asyncio.sleep(fault["lasts_s"])
        finally:
            ground.shift_postgres(0.0)


async def instance_clock(run: Run, fault: Fault, target: InstanceHandle) -> None:
    """One instance's clock jumps, and jumps back; its next life has the true one."""
    ground = _ground(run)
    async with alone_with(run, "clock"):
        try:
            ground.shift_instance(target.pid, fault["jump_s"])
            await asyncio.sleep(fault["lasts_s"])
        finally:
            ground.shift_instance(0, 0.0)


def draw_jump(sign: int, *, of_redis: bool) -> Draw:
    """How far, small jumps as often as big ones, and when back."""

    def draw(rng: Random, lease_ttl_s: float) -> dict[str, Any]:
        most_s = MOST_LEASES * lease_ttl_s if of_redis else MOST_S
        jump_s = sign * LEAST_S * (most_s / LEAST_S) ** rng.random()
        return {"jump_s": round(jump_s, 3), "lasts_s": round(rng.uniform(0.3, 1.2), 3)}

    return draw


def _kinds() -> Iterator[FaultKind]:
    whose = (
        ("redis", "clock:redis", "Valkey", redis_clock),
        ("postgres", "clock:postgres", "Postgres", postgres_clock),
        ("instance", "clock:instance:<i>", "one instance", instance_clock),
    )
    for who, scope, called, run in whose:
        for way, sign in (("forward", 1), ("back", -1)):
            yield FaultKind(
                name=f"{who}_clock_{way}",
                scope=scope,
                does=f"The clock of {called} alone jumps {way}, and after up to 1.2 s to the true time again.",
                run=run,
                draw=draw_jump(sign, of_redis=who == "redis"),
                ambient=True,
                forgets=who == "redis",  # instances count leases by a clock that this one does not move
            )


WORLD = World(
    name="clock",
    does="Valkey, Postgres and instances with clocks of their own.",
    open=ClockGround,
    kinds=tuple(_kinds()),
    needs=why_no_compiler,
)

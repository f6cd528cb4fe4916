"""A world whose Postgres syncs its files slowly, or is told that a sync has failed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from random import Random
from typing import Any

import psycopg2

from tests.chaos.faults.kinds import Fault, FaultKind, FaultMissed, alone_with, in_thread
from tests.chaos.faults.kinds import World as Run
from tests.chaos.worlds.native import FOLDER, Numbers, build, open_folder, why_no_compiler
from tests.chaos.worlds.recovery import CONNECT_WAIT_S, bring_up
from tests.chaos.worlds.special_ground import SpecialGround
from tests.chaos.worlds.world import World

NS_PER_S = 1_000_000_000
DELAY_NS, FAILURES_LEFT = range(2)  # as native/iofault.c has them


class SlowDiskGround(SpecialGround):
    """Its Postgres alone has this disk."""

    def __init__(self, folder: Path, *, postgres_settings: Mapping[str, str]) -> None:
        self._of_postgres: dict[str, str] = {}  # filled once the library is built
        self._control: Numbers
        super().__init__(folder, postgres_settings=postgres_settings, postgres_environment=self._of_postgres)

    def prepare(self, stack: ExitStack) -> None:
        """The library, and the numbers that it obeys."""
        native = stack.enter_context(open_folder())
        self._control = stack.enter_context(Numbers(native / "control", count=2))
        self._of_postgres["LD_PRELOAD"] = str(build(FOLDER / "iofault.c", native))
        self._of_postgres["IO_FAULT_FILE"] = str(self._control.path)

    def slow_down(self, delay_s: float) -> None:
        """From now on each sync takes so much longer; 0 ends that."""
        self._control[DELAY_NS] = round(delay_s * NS_PER_S)

    def fail_a_sync(self) -> bool:
        """One sync of Postgres fails, and it recovers; whether one came that could fail."""
        self._control[FAILURES_LEFT] = 1
        try:
            with (
                suppress(psycopg2.OperationalError),  # the panic that is wanted
                closing(psycopg2.connect(self.postgres.url, connect_timeout=CONNECT_WAIT_S)) as session,
            ):
                session.cursor().execute("SELECT pg_logical_emit_message(true, 'chaos', 'to be synced')")
                session.commit()
            return self._control[FAILURES_LEFT] == 0
        finally:
            self._control[FAILURES_LEFT] = 0
            bring_up(self.postgres)


def _ground(run: Run) -> SlowDiskGround:
    assert isinstance(run.ground, SlowDiskGround)
    return run.ground


async def fsync_slow(run: Run, fault: Fault, target: object) -> None:
    """Each sync takes longer."""
    ground = _ground(run)
    async with alone_with(run, "postgres"):
        try:
            ground.slow_down(fault["delay_ms"] / 1000)
            await asyncio.sleep(fault["lasts_s"])
        finally:
            ground.slow_down(0)


async def fsync_error(run: Run, fault: Fault, target: object) -> None:
    """One sync fails."""
    async with alone_with(run, "postgres"):
        if not await in_thread(_ground(run).fail_a_sync):
            raise FaultMissed("nothing was synced")


def draw_slowness(rng: Random, lease_ttl_s: float) -> dict[str, Any]:
    """How slow, up to half a lease, and for how long."""
    return {"delay_ms": round(rng.uniform(10, 500 * lease_ttl_s), 1), "lasts_s": round(rng.uniform(0.3, 1.2), 3)}


WORLD = World(
    name="slow_disk",
    does="Postgres whose fsync is slow, or fails.",
    open=SlowDiskGround,
    kinds=(
        FaultKind(
            name="fsync_slow",
            scope="postgres",
            does="Every fsync of Postgres takes up to half a lease longer.",
            run=fsync_slow,
            draw=draw_slowness,
            ambient=True,
        ),
        FaultKind(
            name="fsync_error",
            scope="postgres",
            does="One fsync of Postgres fails with EIO: it panics, not knowing what is on the disk, and recovers.",
            run=fsync_error,
            ambient=True,
        ),
    ),
    needs=why_no_compiler,
)

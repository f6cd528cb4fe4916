"""A world whose Postgres has a small disk, which something else fills."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

import psycopg2
import psycopg2.errors

from tests.chaos.faults.kinds import Fault, FaultKind, alone_with, draw_lasting, in_thread
from tests.chaos.faults.kinds import World as Run
from tests.chaos.worlds.disk_ground import DiskGround
from tests.chaos.worlds.disks import SmallDisk
from tests.chaos.worlds.machine import why_not_root
from tests.chaos.worlds.recovery import CONNECT_WAIT_S, bring_up
from tests.chaos.worlds.world import World

DISK_MB = 192
# WAL is not to fill it by itself.
SETTINGS = {"max_wal_size": "64MB", "min_wal_size": "32MB"}
SEGMENT_PAUSE_S = 0.01


class FullDiskGround(DiskGround[SmallDisk]):
    """Its Postgres has a tmpfs."""

    def __init__(self, folder: Path, *, postgres_settings: Mapping[str, str]) -> None:
        disk = SmallDisk(folder, size_mb=DISK_MB)
        super().__init__(folder, disk, postgres_settings={**SETTINGS, **postgres_settings})

    def make_room(self) -> None:
        """The disk has room again; returns once Postgres takes clients, started again if it has ended."""
        self.disk.make_room()
        bring_up(self.postgres)


@asynccontextmanager
async def _with_room_afterwards(run: Run) -> AsyncIterator[FullDiskGround]:
    ground = run.ground
    assert isinstance(ground, FullDiskGround)
    async with alone_with(run, "postgres"):
        try:
            yield ground
        finally:
            await in_thread(ground.make_room)


async def disk_full(run: Run, fault: Fault, target: object) -> None:
    """No table can grow, until WAL cannot either."""
    async with _with_room_afterwards(run) as ground:
        await in_thread(ground.disk.fill)
        await asyncio.sleep(fault["lasts_s"])


async def wal_full(run: Run, fault: Fault, target: object) -> None:
    """As much WAL is asked for as the disk still holds."""
    async with _with_room_afterwards(run) as ground:
        await in_thread(_fill_and_use_up, ground, fault["lasts_s"])


def _fill_and_use_up(ground: FullDiskGround, lasts_s: float) -> None:
    """Until Postgres panics for want of a segment, or lasts_s is over."""
    end_at_s = time.monotonic() + lasts_s
    with (
        suppress(psycopg2.OperationalError),  # the panic that is wanted
        closing(psycopg2.connect(ground.postgres.url, connect_timeout=CONNECT_WAIT_S)) as session,
    ):
        session.autocommit = True
        ground.disk.fill()  # a full disk takes no new session
        while time.monotonic() < end_at_s:
            try:
                with session.cursor() as cursor:
                    cursor.execute("SELECT pg_logical_emit_message(true, 'chaos', 'a segment must not be empty')")
                    cursor.execute("SELECT pg_switch_wal()")
            except psycopg2.errors.DiskFull:  # not inside a COMMIT, where it would be a panic
                time.sleep(SEGMENT_PAUSE_S)


WORLD = World(
    name="full_disk",
    does=f"Postgres on a disk of {DISK_MB} MB that is filled by somebody else.",
    open=FullDiskGround,
    kinds=(
        FaultKind(
            name="disk_full",
            scope="postgres",
            does="The disk of Postgres is filled for up to a second: tables cannot grow, nor WAL when it must.",
            run=disk_full,
            draw=draw_lasting(0.3, 1.0),
            ambient=True,
        ),
        FaultKind(
            name="wal_full",
            scope="postgres",
            does="The disk of Postgres is filled and its WAL used up: it panics, and recovers once there is room.",
            run=wal_full,
            draw=draw_lasting(1.0, 2.0),
            ambient=True,
        ),
    ),
    needs=lambda: why_not_root("mount", "umount"),
)

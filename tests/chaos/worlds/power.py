"""A world whose Postgres can lose its power: what was written and not synced is gone, as it is not after a SIGKILL."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

from tests.chaos.faults.kinds import Fault, FaultKind, alone_with, in_thread
from tests.chaos.faults.kinds import World as Run
from tests.chaos.worlds.disk_ground import DiskGround
from tests.chaos.worlds.disks import PowerDisk
from tests.chaos.worlds.machine import run, why_not_root
from tests.chaos.worlds.world import World

DISK_MB = 1024  # sparse: it takes what is written


class PowerGround(DiskGround[PowerDisk]):
    """Its Postgres has an ext4 that can be switched off."""

    def __init__(self, folder: Path, *, postgres_settings: Mapping[str, str]) -> None:
        super().__init__(folder, PowerDisk(folder, size_mb=DISK_MB), postgres_settings=postgres_settings)

    def write_back(self) -> None:
        """All that was written is on the disk, as the kernel does it by itself once in a while."""
        run("sync", "--file-system", self.disk.folder)

    def lose_power(self) -> None:
        """The disk and Postgres stop, in this order: nothing is answered that could not reach the disk any more."""
        self.disk.lose_power()
        self.postgres.kill()

    def power_up(self) -> None:
        """Both are back; returns once Postgres takes clients."""
        self.disk.power_up()
        self.postgres.start()


async def power_loss(world: Run, fault: Fault, target: object) -> None:
    """Off, and on again after a while."""
    ground = world.ground
    assert isinstance(ground, PowerGround)
    async with alone_with(world, "postgres"):
        # Without fsync all since the start would be gone, the tables too: no run could tell what that has cost.
        await in_thread(ground.write_back)
        await asyncio.sleep(fault["unsynced_s"])
        try:
            await in_thread(ground.lose_power)
            await asyncio.sleep(fault["lasts_s"])
        finally:
            await in_thread(ground.power_up)


def draw_outage(rng: Random, lease_ttl_s: float) -> dict[str, Any]:
    """How long before it all was on the disk for the last time, synced or not, and for how long there is no power."""
    return {"unsynced_s": round(rng.uniform(0.1, 0.5), 3), "lasts_s": round(rng.uniform(0.0, 0.3), 3)}


WORLD = World(
    name="power",
    does="Postgres on an ext4 that is switched off under it.",
    open=PowerGround,
    kinds=(
        FaultKind(
            name="power_loss",
            scope="postgres",
            does="The disk of Postgres stops, with all that was not synced lost, Postgres is killed, and both start.",
            run=power_loss,
            draw=draw_outage,
            ambient=True,
        ),
    ),
    needs=lambda: why_not_root("mkfs.ext4", "mount", "umount"),
)

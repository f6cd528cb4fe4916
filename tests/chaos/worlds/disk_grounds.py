"""Grounds whose Postgres has all its data on a disk of its own: one that can lose its power, one that can be filled."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from tests.chaos.worlds.disks import Disk, PowerDisk, SmallDisk
from tests.chaos.worlds.machine import run
from tests.chaos.worlds.special_ground import SpecialGround

POWER_DISK_MB = 1024  # sparse: it takes what is written
SMALL_DISK_MB = 192
# WAL is not to fill the small disk by itself.
SMALL_WAL = {"max_wal_size": "64MB", "min_wal_size": "32MB"}


class PowerGround(SpecialGround):
    """A ground whose Postgres can lose its power."""

    def __init__(self, folder: Path, *, postgres_settings: Mapping[str, str]) -> None:
        super().__init__(folder, postgres_settings=postgres_settings)
        self.disk = PowerDisk(folder, size_mb=POWER_DISK_MB)

    def prepare(self, stack: ExitStack) -> None:
        """The disk."""
        stack.enter_context(self.disk)

    def complete(self, stack: ExitStack) -> None:
        """The data moves there."""
        _move_data(self, self.disk)

    def lose_power(self) -> None:
        """Postgres and its disk stop at one moment, and what had not reached the disk is gone."""
        self.disk.lose_power()
        self.postgres.kill()

    def power_up(self) -> None:
        """Both are back; returns once Postgres takes clients."""
        self.disk.power_up()
        self.postgres.start()


class SmallDiskGround(SpecialGround):
    """A ground whose Postgres has a disk that can be filled."""

    def __init__(self, folder: Path, *, postgres_settings: Mapping[str, str]) -> None:
        super().__init__(folder, postgres_settings={**SMALL_WAL, **postgres_settings})
        self.disk = SmallDisk(folder, size_mb=SMALL_DISK_MB)

    def prepare(self, stack: ExitStack) -> None:
        """The disk."""
        stack.enter_context(self.disk)

    def complete(self, stack: ExitStack) -> None:
        """The data moves there."""
        _move_data(self, self.disk)


def _move_data(ground: SpecialGround, disk: Disk) -> None:
    """The data folder becomes a link to one on the disk, and Postgres goes on from there."""
    ground.postgres.stop()
    place = ground.postgres.folder
    on_disk = disk.folder / "data"
    owner = place.stat()
    shutil.copytree(place, on_disk, symlinks=True)
    for path in [*on_disk.rglob("*"), on_disk]:
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
    run("sync", "--file-system", on_disk)
    shutil.rmtree(place)
    place.symlink_to(on_disk, target_is_directory=True)
    ground.postgres.start()

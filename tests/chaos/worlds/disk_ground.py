"""A ground whose Postgres has all its data on a disk of its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Generic, TypeVar

from tests.chaos.worlds.disks import Disk
from tests.chaos.worlds.machine import run
from tests.chaos.worlds.special_ground import SpecialGround

AnyDisk = TypeVar("AnyDisk", bound=Disk)


class DiskGround(SpecialGround, Generic[AnyDisk]):
    """`disk` is there as long as the ground is; the data folder is a link to one on it."""

    def __init__(self, folder: Path, disk: AnyDisk, *, postgres_settings: Mapping[str, str]) -> None:
        super().__init__(folder, postgres_settings=postgres_settings)
        self.disk = disk

    def prepare(self, stack: ExitStack) -> None:
        """The disk."""
        stack.enter_context(self.disk)

    def complete(self, stack: ExitStack) -> None:
        """The data moves there, and Postgres goes on from there."""
        self.postgres.stop()
        place = self.postgres.folder
        on_disk = self.disk.folder / "data"
        owner = place.stat()
        shutil.copytree(place, on_disk, symlinks=True)
        for path in [*on_disk.rglob("*"), on_disk]:
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
        run("sync", "--file-system", on_disk)
        shutil.rmtree(place)
        place.symlink_to(on_disk, target_is_directory=True)
        stack.callback(place.unlink)
        self.postgres.start()
        stack.callback(self.postgres.kill)

"""Disks of a world's own: one that can lose its power, and one small enough to be filled. Both need root."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.chaos.worlds.machine import is_orphan, own_name, run
from tests.harness import wait_until

EXT4_IOC_SHUTDOWN = 0x8004587D  # linux/fs/ext4/ext4.h
NO_LOG_FLUSH = 2
PREFIX = "disk"
BLOCK_BYTES = 1 << 20


class Disk:
    """A file system mounted on a new folder, `folder`; unmounted, also what an earlier killed run left, at the end."""

    def __init__(self, parent: Path, *, size_mb: int) -> None:
        self.folder = parent / own_name(PREFIX)
        self.size_mb = size_mb

    def make(self) -> None:
        """Makes what there is to mount."""

    def mount(self) -> None:
        """Mounts it."""
        raise NotImplementedError

    def unmount(self) -> None:
        """Unmounts it once nothing uses it any more; harmless when it is not mounted."""
        if os.path.ismount(self.folder):
            wait_until(self._unmounts, what=f"nobody who uses {self.folder}")

    def __enter__(self) -> Self:
        _unmount_orphans()
        self.folder.mkdir()
        try:
            self.make()
            self.mount()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.unmount()
        finally:
            if os.path.ismount(self.folder):
                run("umount", "--lazy", self.folder)
            self.folder.rmdir()

    def _unmounts(self) -> bool:
        with contextlib.suppress(RuntimeError):
            run("umount", self.folder)
        return not os.path.ismount(self.folder)


class PowerDisk(Disk):
    """An ext4 in a file, whose power can go: what was written and not synced is lost then."""

    def make(self) -> None:
        with self._image.open("wb") as image:
            image.truncate(self.size_mb << 20)
        run("mkfs.ext4", "-q", "-F", self._image)

    def mount(self) -> None:
        run("mount", "-o", "loop", self._image, self.folder)

    def lose_power(self) -> None:
        """From now on nothing reaches the disk, not even the journal's last entries; every write fails."""
        opened = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(opened, EXT4_IOC_SHUTDOWN, struct.pack("=I", NO_LOG_FLUSH))
        finally:
            os.close(opened)

    def power_up(self) -> None:
        """Mounted again, its journal replayed, with what had reached the disk. Whoever used it must be gone."""
        wait_until(self._is_mounted_anew, what=f"a {self.folder} that nobody else has mounted")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            super().__exit__(kind, error, trace)
        finally:
            self._image.unlink(missing_ok=True)

    def _is_mounted_anew(self) -> bool:
        """Not the disk that was shut down: a mount namespace that somebody has made meanwhile has that one still."""
        self.unmount()
        self.mount()
        probe = self.folder / ".power-is-back"
        try:
            probe.touch()
            probe.unlink()
        except OSError:
            return False
        return True

    @property
    def _image(self) -> Path:
        return self.folder.with_suffix(".ext4")


class SmallDisk(Disk):
    """A tmpfs of few megabytes, which can be filled to the last byte."""

    def mount(self) -> None:
        run("mount", "-t", "tmpfs", "-o", f"size={self.size_mb}m,mode=0755", "chaos", self.folder)

    def fill(self) -> None:
        """Takes all that is left of it."""
        with self._filler.open("wb", buffering=0) as filler:
            size_bytes = BLOCK_BYTES
            while size_bytes >= 512:
                try:
                    filler.write(bytes(size_bytes))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    size_bytes //= 2

    def make_room(self) -> None:
        """Gives it back; harmless twice."""
        self._filler.unlink(missing_ok=True)

    @property
    def _filler(self) -> Path:
        return self.folder / "filler"


def _unmount_orphans() -> None:
    """Unmounts the disks of runs that were killed."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        folder = Path(line.split()[1].encode().decode("unicode_escape"))
        if is_orphan(folder.name, PREFIX):
            with contextlib.suppress(RuntimeError):
                run("umount", "--lazy", folder)

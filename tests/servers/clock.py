"""Programs whose clock a test moves while they run, as an operator, NTP or a suspend does; nobody else's moves."""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

from tests.harness import wait_until
from tests.servers.kinds import skip_or_fail
from tests.servers.redis_server import RedisServer

TICK_S = 0.005  # how far a server's TIME may stand behind its clock
SOURCE = Path(__file__).with_name("clock.c")


def build_clock_library(folder: Path, *, clock: str = "CLOCK_REALTIME") -> Path:
    """clock.c as a library to preload; the test is skipped where none can be built, and fails with CI=true."""
    return build_library(SOURCE, folder / f"{clock.lower()}.so", f"-DSHIFTED_CLOCK={clock}")


def build_library(source: Path, library: Path, *options: str) -> Path:
    """A library to preload; the test is skipped where none can be built, and fails with CI=true."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or sys.platform != "linux":
        skip_or_fail("moving a program's clock needs Linux and a C compiler")
    subprocess.run(
        [compiler, "-O2", "-Wall", "-Werror", "-shared", "-fPIC", *options, "-o", library, source], check=True
    )
    return library


class ShiftedClock:
    """How far a program's clock is ahead of the true one; for programs that are started with `environment`."""

    def __init__(self, library: Path, folder: Path) -> None:
        offset_file = folder / "clock-offset"
        offset_file.write_bytes(struct.pack("=q", 0))
        with offset_file.open("r+b") as opened:
            self._offset_ns = mmap.mmap(opened.fileno(), 8)
        self.environment = {"LD_PRELOAD": str(library), "SHIFTED_CLOCK_FILE": str(offset_file)}

    def shift(self, *, offset_s: float) -> None:
        """The clock is now the true one plus offset_s, which may be negative."""
        self._offset_ns[:] = struct.pack("=q", round(offset_s * 1e9))


class ShiftedClockServer(RedisServer):
    """A server whose CLOCK_REALTIME is the true one plus an offset; its CLOCK_MONOTONIC is the true one."""

    def __init__(self, binary: Path, folder: Path, *, library: Path) -> None:
        self._clock = ShiftedClock(library, folder)
        super().__init__(binary, folder, environment=self._clock.environment)

    def shift_clock(self, *, offset_s: float) -> None:
        """Its clock is now the true one plus offset_s, which may be negative; returns once its TIME shows that.

        Valkey 9 counts on from the true clock by the monotonic one, and looks at the true one only now and then.
        """
        self._clock.shift(offset_s=offset_s)
        wait_until(lambda: self._follows(offset_s), what="a TIME that follows the clock")

    def time_s(self) -> float:
        """Its TIME, in seconds since 1970."""
        seconds, microseconds = self.ask("TIME")
        return int(seconds) + int(microseconds) / 1e6

    def _follows(self, offset_s: float) -> bool:
        before_s, shown_s, after_s = time.time(), self.time_s(), time.time()
        return before_s - TICK_S <= shown_s - offset_s <= after_s + TICK_S

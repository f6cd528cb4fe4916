"""Servers whose clocks stand still, except when a test moves them."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence
from pathlib import Path

from tests.servers.clock import build_library
from tests.servers.redis_server import RedisServer

SOURCE = Path(__file__).with_name("frozen_clock.c")
TICK_US = 110_000  # more than the pause between two rounds of a server's own work


def build_frozen_clock_library(folder: Path) -> Path:
    """frozen_clock.c as a library to preload; the test is skipped where none can be built, and fails with CI=true."""
    return build_library(SOURCE, folder / "frozen_clock.so")


class FrozenClockServer(RedisServer):
    """A server that sees the time that it is told, to the microsecond; its own work is done only when it is let.

    What needs time of itself, as an orderly end or a save in the background, needs tick().
    """

    def __init__(self, binary: Path, folder: Path, *, library: Path, now_us: int, settings: Sequence[str] = ()) -> None:
        file = folder / "frozen-clock"
        file.write_bytes(bytes(16))
        with file.open("r+b") as opened:
            self._shown_ns = mmap.mmap(opened.fileno(), 16)
        self._now_us, self._monotonic_us = now_us, 1_000_000
        self._show()
        environment = {"LD_PRELOAD": str(library), "FROZEN_CLOCK_FILE": str(file)}
        super().__init__(binary, folder, settings=settings, environment=environment)

    def start(self) -> None:
        """Returns once it answers."""
        super().start()
        # Else it reads the processor's own counter, which nobody can stop.
        assert self.info("server")["monotonic_clock"] == "POSIX clock_gettime"

    def set_clock(self, now_us: int) -> None:
        """Its TIME is this from now on; no timer of its own is due by that."""
        self._now_us = now_us
        self._show()

    def tick(self) -> None:
        """Its monotonic clock goes on, so that it does a round of its own work; its TIME stays."""
        self._monotonic_us += TICK_US
        self._show()

    def _show(self) -> None:
        self._shown_ns[:] = struct.pack("=qq", self._now_us * 1000, self._monotonic_us * 1000)

"""An alarm clock for open loops: rings within tens of microseconds, where a loop's own timers round to milliseconds."""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import time
from collections.abc import Callable
from typing import Protocol

CLOCK_MONOTONIC = 1
ABSOLUTE = 1
CLOSE_ON_EXEC = 0o2000000
NANOSECONDS = 1_000_000_000


class Alarm(Protocol):
    """Rings once at a time of `time.perf_counter`; set again, it forgets the earlier time."""

    def set(self, at_s: float) -> None:
        """Rings at this time, or at once when it is past."""

    def close(self) -> None:
        """Never rings again."""


def alarm(ring: Callable[[], None]) -> Alarm:
    """For the running loop: the kernel's timer on Linux, the loop's own elsewhere."""
    return KernelAlarm(ring) if sys.platform == "linux" else LoopAlarm(ring)


class KernelAlarm:
    """timerfd_create(2), on the clock of `time.perf_counter`."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.timerfd_create(CLOCK_MONOTONIC, CLOSE_ON_EXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._rings)

    def set(self, at_s: float) -> None:
        # A time of 0 would disarm it.
        seconds, nanoseconds = divmod(max(1, round(at_s * NANOSECONDS)), NANOSECONDS)
        self._arm(seconds, nanoseconds)

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _rings(self) -> None:
        self._arm(0, 0)  # which takes back that the descriptor can be read
        self._ring()

    def _arm(self, seconds: int, nanoseconds: int) -> None:
        # struct itimerspec: the interval, then the first time.
        when = (ctypes.c_long * 4)(0, 0, seconds, nanoseconds)
        if self._libc.timerfd_settime(self._fd, ABSOLUTE, when, None) < 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")


class LoopAlarm:
    """The loop's own timer."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.TimerHandle | None = None

    def set(self, at_s: float) -> None:
        self.close()
        self._handle = self._loop.call_later(max(0.0, at_s - time.perf_counter()), self._ring)

    def close(self) -> None:
        if self._handle is not None:
            self._handle.cancel()

"""What a process cannot compute: the time, random numbers, its own number. Nothing else in locks/ asks for them.

`time.monotonic` stands still in a suspend, and a lease in Redis does not: a holder that wakes would go on acting under
a lease that another has. Linux counts on with CLOCK_BOOTTIME (clock_gettime(2)), macOS with its own CLOCK_MONOTONIC
(clock_gettime(3) there; Python's is its CLOCK_UPTIME_RAW). For those who wait by timers: locks.suspension.
"""

from __future__ import annotations

import functools
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

_COUNTS_ON = getattr(time, "CLOCK_MONOTONIC" if sys.platform == "darwin" else "CLOCK_BOOTTIME", None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """A Locker has one, and all that it is made of asks that one.

    What an event loop counts by itself, sleeps and timers, stays the loop's.
    """

    monotonic_s: Callable[[], float]
    """Leases end and waits are counted by it: seconds since some moment in the past, also those of a suspend.

    Not comparable with `timers_s` or an event loop's time.
    """

    timers_s: Callable[[], float]
    """What the timers of event loops go by: as monotonic_s, but for the seconds of a suspend."""

    wall_s: Callable[[], float]
    """Seconds since 1970."""

    random_bytes: Callable[[int], bytes]
    """So many that nobody can guess: ids."""

    uniform: Callable[[float, float], float]
    """A number between two: the length of a pause."""

    pid: Callable[[], int]
    """The number of this process."""


SYSTEM = Clock(
    monotonic_s=time.monotonic if _COUNTS_ON is None else functools.partial(time.clock_gettime, _COUNTS_ON),
    timers_s=time.monotonic,
    wall_s=time.time,
    random_bytes=os.urandom,
    uniform=random.uniform,
    pid=os.getpid,
)
"""This machine's."""

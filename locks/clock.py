"""The clock by which leases end and waits are counted: monotonic, and it counts on while the machine is suspended.

`time.monotonic` stands still in a suspend, and a lease in Redis does not: a holder that wakes would go on acting under
a lease that another has. Linux counts on with CLOCK_BOOTTIME (clock_gettime(2)), macOS with its own CLOCK_MONOTONIC
(clock_gettime(3) there; Python's is its CLOCK_UPTIME_RAW). For those who wait by timers: locks.suspension.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable

_COUNTS_ON = getattr(time, "CLOCK_MONOTONIC" if sys.platform == "darwin" else "CLOCK_BOOTTIME", None)

monotonic_s: Callable[[], float] = (
    time.monotonic if _COUNTS_ON is None else functools.partial(time.clock_gettime, _COUNTS_ON)
)
"""Seconds since some moment in the past. Not comparable with `time.monotonic()` or an event loop's time."""

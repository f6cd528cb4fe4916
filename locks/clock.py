"""The clock by which leases end and waits are counted: monotonic, and it counts on while the machine is suspended.

`time.monotonic` stands still in a suspend on Linux (clock_gettime(2)), and a lease in Redis does not: a holder that
wakes would go on acting under a lease that another has.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

_BOOTTIME = getattr(time, "CLOCK_BOOTTIME", None)  # Linux; macOS' monotonic clock has no such second one in Python

monotonic_s: Callable[[], float] = (
    time.monotonic if _BOOTTIME is None else functools.partial(time.clock_gettime, _BOOTTIME)
)
"""Seconds since some moment in the past. Not comparable with `time.monotonic()` or an event loop's time."""

"""What a worker does for those who scrape it: one gathering at a time, at most one a second, shared by all who wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from service.shared_task import shared_task

ReadMetrics = Callable[[], bytes]  # every series; blocking; raises MetricsAway

EVERY_S = 1.0
# What other workers have counted in the tick that they are in reaches the series when it ends: a gathering lets it.
TALLY_S = 0.02


class MetricsAway(Exception):
    """The series cannot be told whole: files that processes of this serve count in are missing, or cannot be read."""


def no_metrics() -> bytes:
    """Of an instance in somebody's own program, which counts in no folder: none. Raises MetricsAway."""
    raise MetricsAway("this instance is none of `chargeonce serve`, and counts in no folder")


class Scraping:
    """For one event loop."""

    def __init__(self, read: ReadMetrics) -> None:
        self._read = read
        self._began_at_s = -EVERY_S
        self._one_at_a_time = asyncio.Lock()
        self._next: asyncio.Task[bytes] | None = None  # has not begun: who comes now may share it

    async def text(self) -> bytes:
        """Every series, by a gathering that began after this call: what was counted before is in it.

        Raises MetricsAway.
        """
        if self._next is None:
            self._next = shared_task(self._gathering(), name="metrics")
        return await asyncio.shield(self._next)  # whoever hangs up takes it from nobody else

    async def _gathering(self) -> bytes:
        async with self._one_at_a_time:
            await asyncio.sleep(max(TALLY_S, self._began_at_s + EVERY_S - time.monotonic()))
            self._began_at_s, self._next = time.monotonic(), None
            return await asyncio.to_thread(self._read)
